"""Work shared among processes of this machine, or the workers of a Dask cluster."""

import contextlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from captioning import cli
from captioning.files import ROOT, InputError

CONNECTION_TIMEOUT = 10  # seconds, for a Dask scheduler to answer and to have a worker


def add_worker_options(parser, why: str) -> None:
    """Add --n_jobs and --dask, of which one may be given; `why` says when it helps."""
    workers = parser.add_mutually_exclusive_group()
    workers.add_argument("--n_jobs", type=cli.positive_int, default=1, metavar="N", help=why)
    workers.add_argument("--dask", metavar="tcp://HOST:8786", help="a Dask scheduler to work on")


def run_tasks(
    function: Callable, tasks: list[tuple], n_jobs: int, dask: str | None, in_order: bool = False
) -> Iterator:
    """What `function` returns of each task's arguments: by processes, or by a cluster.

    As each is finished, unless they are to be in order. Raises InputError if no cluster answers, or
    its workers lack something or keep dying.
    """
    import joblib

    # A task at a time, its result taken as soon as it is there: what is done is then on the disk.
    kind = "generator" if in_order else "generator_unordered"
    with _cluster(dask) if dask else _processes():
        parallel = joblib.Parallel(-1 if dask else n_jobs, batch_size=1, return_as=kind)
        yield from parallel(joblib.delayed(function)(*task) for task in tasks)


def cores() -> int:
    """Those that this process may use."""
    known = hasattr(os, "sched_getaffinity")
    return len(os.sched_getaffinity(0)) if known else os.cpu_count() or 1


def useful_jobs(n_jobs: int, tasks: int) -> int:
    """Of so many processes those that have a task and a core: others would only take memory."""
    return max(1, min(n_jobs, tasks, cores()))


def threads_each(n_jobs: int, dask: str | None) -> int:
    """Threads of one of the processes that share this machine's cores; 0 is left to a worker."""
    return 0 if dask else max(1, cores() // n_jobs)


def limit_threads(threads: int) -> None:
    """Let TensorFlow, before its first operation, have so many; 0 is as many as it likes."""
    if threads:
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(threads)


def everywhere(weights: str) -> str:
    """The CNN's weights as a worker finds them, whose folder may be another."""
    return weights if weights in ("imagenet", "random") else str(Path(weights).absolute())


@contextlib.contextmanager
def _processes() -> Iterator[None]:
    """Say it in a line where one of this machine's processes is killed."""
    try:
        yield
    except BrokenProcessPool as error:
        raise InputError("a process was killed, perhaps for memory: fewer --n_jobs.") from error


@contextlib.contextmanager
def _cluster(address: str) -> Iterator[None]:
    """Let joblib use the Dask cluster at `address`."""
    try:
        import distributed
    except ImportError as error:
        raise InputError("--dask needs Dask: pip install 'dask[distributed]'") from error
    try:
        client = distributed.Client(address, timeout=CONNECTION_TIMEOUT)
    except (OSError, ValueError) as error:
        fix = "Start one: dask scheduler"
        raise InputError(f"no Dask scheduler answers at {address}. {fix}") from error
    import joblib

    with client, joblib.parallel_config("dask", client=client):
        start = f"PYTHONPATH={ROOT} dask worker {address} --nthreads 1"
        try:
            client.wait_for_workers(1, timeout=CONNECTION_TIMEOUT)
        except TimeoutError as error:
            raise InputError(f"the scheduler has no worker. Start one or more: {start}") from error
        try:
            yield
        except ModuleNotFoundError as error:
            raise InputError(f"a worker fails ({error}). Start it so: {start}") from error
        except distributed.KilledWorker as error:
            raise InputError(f"the cluster fails: {error}") from error
