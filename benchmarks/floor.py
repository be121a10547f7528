"""The arithmetic of an epoch and nothing else: python benchmarks/floor.py train FOLDER

Every product of a training step as one plain `numpy.matmul` (here: OpenBLAS on all cores) into
memory that is there already: forwards, and backwards for inputs and weights, with the widths of
the bucketed batches. No activation, loss, optimiser or data.
"""

import sys
import time

import numpy as np
import workload

B, U, E = workload.BATCH_SIZE, workload.UNITS, workload.EMBEDDING_SIZE
V, F = workload.VOCABULARY_SIZE, workload.FEATURE_SIZE


def products(width: int) -> list[tuple[int, int, int]]:
    """The (m, k) × (k, n) products of a step on captions of `width` tokens."""
    rows = B * width
    shapes = [(B, F, U), (F, B, U)]  # the image: its features need no gradient
    for inputs, outputs in ((E, 4 * U), (U, U), (U, V)):  # LSTM's inputs, merged, logits
        shapes += [(rows, inputs, outputs), (inputs, rows, outputs), (rows, outputs, inputs)]
    shapes += [(U, rows, 4 * U)]  # the gradient of the recurrent kernel
    shapes += [(B, U, 4 * U), (B, 4 * U, U)] * width  # what needs the step before
    return shapes


def main() -> None:
    """One epoch's products, after a first batch."""
    lengths = sorted(len(line.split()) + 1 for _, line in workload.captions())  # with <start>
    widths = [max(lengths[start : start + B]) for start in range(0, len(lengths), B)]
    arrays, results = {}, {}
    for width in set(widths):
        for m, k, n in products(width):
            for shape in ((m, k), (k, n)):
                arrays.setdefault(shape, np.random.default_rng(0).random(shape, np.float32))
            results.setdefault((m, n), np.empty((m, n), np.float32))
    operations, start = 0, time.perf_counter()
    for width in widths:
        for m, k, n in products(width):
            np.matmul(arrays[m, k], arrays[k, n], out=results[m, n])
            operations += 2 * m * k * n
    seconds = time.perf_counter() - start
    workload.report(seconds=seconds, gflops=operations / seconds / 1e9)


if __name__ == "__main__":
    assert sys.argv[1] == "train", __doc__
    main()
