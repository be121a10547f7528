"""Extraction by several processes and by a real Dask cluster, a worker of which dies."""

import os
import signal
import subprocess
import sys
import time

import joblib
import pytest
from helpers import ROOT, run_here, run_script

from captioning import features
from captioning.features import SHARD_SIZE, _worker_encoder
from captioning.files import InputError
from data.sample import write_sample

SHARDS = 6


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parallel") / "set"
    write_sample(folder, scenes=SHARDS * SHARD_SIZE, seed=3)
    (folder / "Images" / "scene_0300.jpg").write_bytes(b"not a photo")  # its error is kept, too
    return folder


def preprocess(dataset, output) -> list[str]:
    """Its arguments; workers name photos by other paths than one process, which gets these."""
    folders = ("--dataset_dir", os.path.relpath(dataset, ROOT), "--output_dir", output)
    return [*map(str, ("preprocess.py", *folders, "--encoder", "efficientnet_lite0"))]


@pytest.fixture(scope="module")
def expected(dataset):
    """The features of one process, as bytes."""
    run_here(*preprocess(dataset, dataset.parent / "one"))
    return (dataset.parent / "one" / "features.pkl").read_bytes()


@pytest.mark.long
def test_processes_give_the_same_bytes(dataset, expected, tmp_path):
    run_script(*preprocess(dataset, tmp_path), "--n_jobs", 2)
    assert (tmp_path / "features.pkl").read_bytes() == expected


def start_worker(address: str, folder) -> subprocess.Popen:
    """One as docs/preprocessing.md starts it, in a process group of its own."""
    command = [sys.executable, "-m", "distributed.cli.dask_worker", address, "--nthreads", "1"]
    here = {"env": os.environ | {"PYTHONPATH": str(ROOT)}, "cwd": folder}
    return subprocess.Popen([*command, "--no-dashboard"], start_new_session=True, **here)


def test_joblib_works_on_the_cluster():
    distributed = pytest.importorskip("distributed", reason="no Dask (requirements-dev.txt)")
    options = {"n_workers": 1, "processes": False, "dashboard_address": None}
    with (
        distributed.LocalCluster(**options) as cluster,
        features._cluster(cluster.scheduler_address),
    ):
        assert "Dask" in type(joblib.Parallel(-1)._backend).__name__


@pytest.mark.long
def test_a_cluster_loses_a_worker_and_gives_the_same_bytes(dataset, expected, tmp_path):
    distributed = pytest.importorskip("distributed", reason="no Dask (requirements-dev.txt)")
    shards = tmp_path / "shards"
    with distributed.LocalCluster(n_workers=0, dashboard_address=None) as cluster:
        workers = [start_worker(cluster.scheduler_address, tmp_path) for _ in range(2)]
        command = [sys.executable, *preprocess(dataset, tmp_path)]
        run = subprocess.Popen([*command, "--dask", cluster.scheduler_address], cwd=ROOT)
        try:
            while not any(shards.glob("*.npz")):
                assert run.poll() is None
                time.sleep(0.05)
            os.killpg(workers[0].pid, signal.SIGKILL)
            assert len(list(shards.glob("*.npz"))) < SHARDS  # in the middle, not at the end
            assert run.wait(300) == 0
        finally:
            os.killpg(workers[1].pid, signal.SIGKILL)
    assert (tmp_path / "features.pkl").read_bytes() == expected


def test_a_worker_with_other_weights_refuses():
    with pytest.raises(InputError, match="a worker has other weights of efficientnet_lite0"):
        _worker_encoder("efficientnet_lite0", "imagenet", "pooled", 224, "0" * 64, threads=None)


def test_without_a_scheduler_or_without_dask(small, tmp_path, monkeypatch):
    pytest.importorskip("distributed", reason="no Dask (requirements-dev.txt)")
    monkeypatch.setattr(features, "CONNECTION_TIMEOUT", 1)
    command = (*preprocess(small / "dataset", tmp_path), "--dask", "tcp://127.0.0.1:9")
    assert run_here(*command, code=1).stderr.splitlines()[-1] == (
        "error: no Dask scheduler answers at tcp://127.0.0.1:9. Start one: dask scheduler"
    )
    monkeypatch.setitem(sys.modules, "distributed", None)
    assert "pip install 'dask[distributed]'" in run_here(*command, code=1).stderr
