"""Extraction by several processes and by a real Dask cluster, a worker of which dies."""

import os
import signal
import subprocess
import sys
import time

import pytest
from helpers import ROOT, run_script

from captioning.features import SHARD_SIZE, _worker_encoder
from captioning.files import InputError
from data.sample import write_sample

SCENES = 6 * SHARD_SIZE


def wait_for(condition, what: str, seconds: float = 120):
    """Wait until `condition()` is true."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"{what} did not come within {seconds} seconds"
        time.sleep(0.05)


def preprocess_arguments(dataset, output) -> list:
    folders = ["--dataset_dir", dataset.name, "--output_dir", output]  # seen from dataset.parent
    return [ROOT / "preprocess.py", *folders, "--encoder", "efficientnet_lite0"]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parallel") / "set"
    write_sample(folder, scenes=SCENES, seed=3)
    (folder / "Images" / "scene_0300.jpg").write_bytes(b"not a photo")  # its error is kept, too
    return folder


@pytest.fixture(scope="module")
def expected(dataset):
    """The features of one process, as bytes."""
    output = dataset.parent / "one"
    run_script(*preprocess_arguments(dataset, output), cwd=dataset.parent)
    return (output / "features.pkl").read_bytes()


@pytest.fixture
def start(tmp_path):
    """A function that starts a part of a cluster in a process group of its own."""
    groups = []

    def start_part(part: str, *arguments):
        log = (tmp_path / f"{part}_{len(groups)}.log").open("w")
        command = [sys.executable, "-m", f"distributed.cli.dask_{part}", *arguments]
        command += ["--no-dashboard", "--host", "127.0.0.1"]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        groups.append(
            subprocess.Popen(
                command, env=environment, stdout=log, stderr=log, start_new_session=True
            )
        )
        return groups[-1]

    yield start_part
    for group in groups:
        kill(group)


def kill(group: subprocess.Popen) -> None:
    """Kill a process and its children, which restart one another otherwise."""
    if group.poll() is None:
        os.killpg(group.pid, signal.SIGKILL)
        group.wait()


@pytest.fixture
def cluster(start, tmp_path) -> tuple:
    """A scheduler's address and its two workers."""
    pytest.importorskip("distributed", reason="Dask is not installed (requirements-dev.txt)")
    contact = tmp_path / "scheduler.json"
    start("scheduler", "--port", "0", "--scheduler-file", str(contact))
    wait_for(contact.is_file, "the scheduler")
    import distributed

    with distributed.Client(scheduler_file=str(contact)) as client:
        address = client.scheduler.address
        workers = [start("worker", address, "--nthreads", "1") for _ in range(2)]
        client.wait_for_workers(2, timeout=60)
    return address, workers


@pytest.mark.long
def test_processes_give_the_same_bytes(dataset, expected):
    output = dataset.parent / "two"
    run_script(*preprocess_arguments(dataset, output), "--n_jobs", "2", cwd=dataset.parent)
    assert (output / "features.pkl").read_bytes() == expected


@pytest.mark.long
def test_a_cluster_loses_a_worker_and_gives_the_same_bytes(dataset, expected, cluster):
    address, workers = cluster
    output = dataset.parent / "cluster"
    arguments = [*preprocess_arguments(dataset, output), "--dask", address]
    command = [sys.executable, *map(str, arguments)]
    run = subprocess.Popen(
        command, cwd=dataset.parent, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    shards = output / "shards"
    wait_for(lambda: len(list(shards.glob("*.npz"))) >= 1, "the first shard")
    kill(workers[0])
    assert len(list(shards.glob("*.npz"))) < SCENES / SHARD_SIZE  # in the middle, not at the end
    printed = run.communicate(timeout=300)[0].decode()
    assert run.returncode == 0, printed
    assert (output / "features.pkl").read_bytes() == expected


def test_a_worker_with_other_weights_refuses():
    with pytest.raises(InputError, match="a worker has other weights of efficientnet_lite0"):
        _worker_encoder("efficientnet_lite0", "imagenet", "pooled", "0" * 64, threads=None)


@pytest.mark.long
def test_without_a_scheduler(dataset, tmp_path):
    arguments = preprocess_arguments(dataset, tmp_path / "data")
    done = run_script(*arguments, "--dask", "tcp://127.0.0.1:9", code=1, cwd=dataset.parent)
    assert done.stderr.splitlines() == [
        "error: no Dask scheduler answers at tcp://127.0.0.1:9. Start one: dask scheduler"
    ]


@pytest.mark.long
def test_without_dask(tmp_path, dataset):
    """The error names the package: shadowed here by a module that cannot be imported."""
    (tmp_path / "distributed.py").write_text("raise ImportError('not here')\n")
    arguments = preprocess_arguments(dataset, tmp_path / "data")
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = run_script(
        *arguments, "--dask", "tcp://127.0.0.1:9", code=1, env=environment, cwd=dataset.parent
    )
    assert "pip install 'dask[distributed]'" in done.stderr
