"""Captions of many photos: reading overlaps the network, and several processes share the work."""

import functools
import importlib
import itertools
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from captioning import cli
from captioning.beams import Caption
from captioning.files import InputError, sha256
from captioning.images import try_load_image
from captioning.parallel import everywhere, limit_threads, run_tasks, threads_each

TASK = 256  # photos of one task, at most, which a worker does in a few seconds
AHEAD = 2  # batches that are read while others are captioned


class Job(NamedTuple):
    """What a worker must know to caption photos as any other does."""

    captioner: tuple[str, str]  # module and name of the class that reads the file
    model_path: str
    weights: str
    neighbours: bool
    beam_size: int
    length_penalty: float
    batch_size: int
    threads: int = 0  # of its process; 0: all that it may use
    model_sha256: str = ""  # which a worker's file must have, too


class Captioned(NamedTuple):
    """One photo's beam, best first; or why there is none."""

    photo: Path
    beam: list[Caption]
    error: str = ""


def load_captioner(job: Job):
    """The captioner of a job; raises InputError if its file cannot be read."""
    if job.model_sha256 and sha256(job.model_path) != job.model_sha256:
        raise InputError(f"a worker has another {job.model_path}: give all machines the same file.")
    module, name = job.captioner
    options = {}
    if module == "model":
        cli.load_tensorflow()
        limit_threads(job.threads)
    elif job.threads:
        options["threads"] = job.threads
    captioner_class = getattr(importlib.import_module(module), name)
    captioner = captioner_class.load(job.model_path, job.weights, **options)
    if not job.neighbours:
        captioner.forget_neighbours()
    return captioner


def caption_photos(captioner, photos: list[Path], job: Job) -> Iterator[Captioned]:
    """Caption photos in order, in batches of `job.batch_size`; the next ones are read meanwhile.

    By TensorFlow two batches are captioned at once: one's words are searched, which leaves cores
    idle, while the CNN is busy with the other. ONNX Runtime is slower so.
    """
    together = 2 if job.captioner[0] == "model" else 1
    if together == 2:
        _ = captioner.encoder  # made here: two threads would both make one
    load = functools.partial(try_load_image, size=captioner.config.photo_size)
    batches = (photos[i : i + job.batch_size] for i in range(0, len(photos), job.batch_size))
    with ThreadPoolExecutor() as readers, ThreadPoolExecutor(together) as workers:
        begun: deque = deque()  # of batches that are read, or captioned
        try:
            for batch in itertools.chain(batches, [None] * (together + AHEAD)):
                if batch:
                    loaded = [readers.submit(load, photo) for photo in batch]
                    begun.append(workers.submit(_caption_batch, captioner, batch, loaded, job))
                if begun and (not batch or len(begun) >= together + AHEAD):
                    yield from begun.popleft().result()
        finally:
            for pool in (workers, readers):  # of a run that is stopped, no more is begun
                pool.shutdown(wait=False, cancel_futures=True)


def _caption_batch(
    captioner, photos: list[Path], loaded: list[Future], job: Job
) -> list[Captioned]:
    """Of photos that are being loaded."""
    found, readable = [], {}
    for place, (photo, future) in enumerate(zip(photos, loaded, strict=True)):
        pixels, error = future.result()
        found.append(Captioned(photo, [], error))
        if not error:
            readable[place] = pixels
    if readable:
        pixels = np.stack([*readable.values()])  # (B, S, S, 3)
        beams = captioner.decode_photos(pixels, job.beam_size, job.length_penalty)
        for place, beam in zip(readable, beams, strict=True):
            found[place] = Captioned(photos[place], beam)
    return found


def caption_in_parallel(
    photos: list[Path], job: Job, n_jobs: int, dask: str | None
) -> Iterator[Captioned]:
    """The same by `n_jobs` processes, or the workers of the Dask scheduler at `dask`.

    The batches are those of one process, and on processors of one kind so are the captions. Workers
    need the repository, and the photos, the captioner's file and its encoder's weights under the
    same paths.
    """
    job = job._replace(
        threads=threads_each(n_jobs, dask),
        model_path=str(Path(job.model_path).absolute()),
        weights=everywhere(job.weights),
        model_sha256=sha256(job.model_path),
    )
    share = TASK if dask else min(TASK, len(photos) // (2 * n_jobs))  # of few photos, two each
    size = max(1, share // job.batch_size) * job.batch_size
    groups = [photos[i : i + size] for i in range(0, len(photos), size)]
    tasks = [([photo.absolute() for photo in group], job) for group in groups]
    done = run_tasks(_worker_captions, tasks, n_jobs, dask, in_order=True)
    for group, found in zip(groups, done, strict=True):
        for photo, each in zip(group, found, strict=True):  # as one process would name them
            error = each.error.replace(str(photo.absolute()), str(photo), 1)
            yield Captioned(photo, each.beam, error)


def _worker_captions(photos: list[Path], job: Job) -> list[Captioned]:
    """Captions in a worker process, which loads its captioner once."""
    return list(caption_photos(_worker_captioner(job), photos, job))


_worker_captioner = functools.lru_cache(maxsize=1)(load_captioner)
