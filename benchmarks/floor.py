"""The arithmetic of an epoch and nothing else: python benchmarks/floor.py TASK FOLDER

TASK is train or updown, of which a share is measured, as by ours.py.

Every product of a training step as one plain `numpy.matmul` (here: OpenBLAS on all cores) into
memory that is there already: forwards, and backwards for inputs and weights, with the widths of
the bucketed batches, less their padding. No activation, loss, optimiser or data.
"""

import sys
import time

import numpy as np
import workload

B, E = workload.BATCH_SIZE, workload.EMBEDDING_SIZE
V, F = workload.VOCABULARY_SIZE, workload.FEATURE_SIZE


def layer(rows: int, inputs: int, outputs: int) -> list[tuple[int, int, int]]:
    """A Dense layer's (m, k) × (k, n) products: forwards, the kernel's gradient, the inputs'."""
    return [(rows, inputs, outputs), (inputs, rows, outputs), (rows, outputs, inputs)]


def recurrent(width: int, inputs: int, outputs: int) -> list[tuple[int, int, int]]:
    """Those of what needs the step before; the kernel's gradient is taken for all at once."""
    return [(B, inputs, outputs), (B, outputs, inputs)] * width + [(inputs, B * width, outputs)]


def merge(width: int) -> list[tuple[int, int, int]]:
    """The products of a step of the merge network on captions of `width` tokens."""
    rows, units = B * width, workload.UNITS
    shapes = layer(B, F, units)[:2]  # the image: its features need no gradient
    shapes += layer(rows, E, 4 * units) + recurrent(width, units, 4 * units)  # the LSTM
    return shapes + layer(rows, units, units) + layer(rows, units, V)


def updown(width: int) -> list[tuple[int, int, int]]:
    """Those of Up-Down's, but for the attention's small ones: its scores and weighted sums."""
    rows, units = B * width, workload.UPDOWN["units"]
    cells, size, keys = B * workload.CELLS, workload.CELL_SIZE, units // 2
    shapes = layer(cells, size, units)[:2] + layer(B, size, units)[:2] + layer(cells, units, keys)
    shapes += layer(B, units, 4 * units) + layer(rows, E, 4 * units)  # the first LSTM's gates
    shapes += recurrent(width, 2 * units, 4 * units) + recurrent(width, units, keys)
    return shapes + recurrent(width, 3 * units, 4 * units) + layer(rows, units, V)


def main(task: str) -> None:
    """One epoch's products."""
    products, share = {"train": (merge, 1), "updown": (updown, workload.UPDOWN_SHARE)}[task]
    lengths = sorted(len(line.split()) + 1 for _, line in workload.captions(share))  # with <start>
    widths = [max(lengths[start : start + B]) for start in range(0, len(lengths), B)]
    arrays, results = {}, {}
    for width in set(widths):
        for m, k, n in products(width):
            for shape in ((m, k), (k, n)):
                arrays.setdefault(shape, np.random.default_rng(0).random(shape, np.float32))
            results.setdefault((m, n), np.ones((m, n), np.float32))
    operations, start = 0, time.perf_counter()
    for width in widths:
        for m, k, n in products(width):
            np.matmul(arrays[m, k], arrays[k, n], out=results[m, n])
            operations += 2 * m * k * n
    seconds = time.perf_counter() - start
    workload.report(seconds=seconds / share, gflops=operations / seconds / 1e9)


if __name__ == "__main__":
    main(sys.argv[1])
