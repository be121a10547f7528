"""Extraction by several processes and by a real Dask cluster, a worker of which dies."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import joblib
import numpy as np
import pytest
from helpers import (
    EXAMPLES,
    PATIENCE,
    ROOT,
    of_length_1,
    photographing,
    run_here,
    run_script,
    untrained,
)

from captioning import caption_photos, cli, parallel
from captioning.caption_photos import Captioned
from captioning.cli import INCLUDED
from captioning.features import SHARD_SIZE, _worker_encoder
from captioning.files import InputError
from data.sample import write_sample

SHARDS = 6
SEVERAL_CORES = pytest.mark.skipif(parallel.cores() < 2, reason="one core: one process")


def has_bfloat16() -> bool:
    try:
        cli.check_bfloat16()
    except InputError:
        return False
    return True


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


@SEVERAL_CORES
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
        parallel._cluster(cluster.scheduler_address),
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


def caption(folder, *options) -> list[str]:
    """Its arguments: photos of which one is broken, in batches that do not fill the tasks."""
    photos = ("--image_path", os.path.relpath(folder, ROOT), "--model_path", INCLUDED)
    rows = ("--format", "jsonl", "--num_captions", 2, "--batch_size", 3)
    return [*map(str, ("generate_caption.py", *photos, *rows, *options))]


@pytest.fixture
def photos(tmp_path):
    for photo in EXAMPLES.glob("*.jpg"):
        shutil.copy(photo, tmp_path)
    (tmp_path / "broken.jpg").write_bytes(b"not a photo")
    return tmp_path


@SEVERAL_CORES
@pytest.mark.long
def test_processes_say_the_same_of_photos(photos):
    one = run_here(*caption(photos))
    two = run_script(*caption(photos, "--n_jobs", 2))
    assert (two.stdout, two.stderr) == (one.stdout, one.stderr)
    assert "broken.jpg" in one.stderr


@pytest.mark.long
def test_a_cluster_says_the_same_of_photos(photos, monkeypatch):
    distributed = pytest.importorskip("distributed", reason="no Dask (requirements-dev.txt)")
    monkeypatch.setattr(caption_photos, "TASK", 4)
    options = {"n_workers": 1, "processes": False, "dashboard_address": None}
    with distributed.LocalCluster(**options) as cluster:
        two = run_here(*caption(photos, "--dask", cluster.scheduler_address))
    assert two.stdout == run_here(*caption(photos)).stdout


def test_few_photos_are_shared_as_well(monkeypatch):
    given = []

    def run_tasks(function, tasks, *_, **__):
        given.extend(photos for photos, _ in tasks)
        return [[Captioned(photo, []) for photo in photos] for photos, _ in tasks]

    monkeypatch.setattr(caption_photos, "run_tasks", run_tasks)
    job = caption_photos.Job(("model", "Captioner"), str(INCLUDED), "imagenet", True, 1, 0.8, 3)
    photos = [Path(f"{i}.jpg") for i in range(20)]
    found = caption_photos.caption_in_parallel(photos, job, 2, None)
    assert [each.photo for each in found] == photos
    assert [len(task) for task in given] == [3, 3, 3, 3, 3, 3, 2]


@pytest.mark.parametrize(
    ("n_jobs", "tasks", "used"), [(500, 3, 3), (500, 9, 4), (2, 9, 2), (2, 0, 1)]
)
def test_no_process_is_without_a_task_or_a_core(n_jobs, tasks, used, monkeypatch):
    monkeypatch.setattr(parallel, "cores", lambda: 4)
    assert parallel.useful_jobs(n_jobs, tasks) == used


def test_a_single_batch_needs_no_processes(monkeypatch):
    monkeypatch.setattr(caption_photos, "caption_in_parallel", None)
    command = ("generate_caption.py", "--image_path", EXAMPLES / "donna.jpg", "--n_jobs", 9)
    assert run_here(*command, "--model_path", INCLUDED).stdout


def test_photos_are_read_ahead(monkeypatch):
    """While a batch is captioned the next ones are read, but not all."""
    read, asked = [], []
    monkeypatch.setattr(caption_photos, "try_load_image", lambda p, size: (read.append(p), "x"))

    def caption(captioner, batch, loaded, job):
        return [future.result() and photo for photo, future in zip(batch, loaded, strict=True)]

    monkeypatch.setattr(caption_photos, "_caption_batch", caption)
    job = caption_photos.Job(("", ""), "", "", True, 1, 1.0, batch_size=2)
    captioner = photographing(untrained())
    for photo in caption_photos.caption_photos(captioner, list(range(20)), job):
        asked.append(photo)
        if len(asked) == 1:  # the first batch is done, and the next ones are being read
            until = time.monotonic() + PATIENCE
            while len(read) < 2 * (caption_photos.AHEAD + 1) and time.monotonic() < until:
                time.sleep(0.01)
            assert len(read) == 2 * (caption_photos.AHEAD + 1)
        assert len(read) <= len(asked) + 2 * (caption_photos.AHEAD + 1)
    assert asked == list(range(20)) == sorted(read)


def test_of_a_run_that_is_stopped_no_more_is_begun(monkeypatch):
    begun = []

    def caption(captioner, batch, loaded, job):
        begun.append(batch)
        time.sleep(0.3)
        return batch

    monkeypatch.setattr(caption_photos, "try_load_image", lambda p, size: (p, ""))
    monkeypatch.setattr(caption_photos, "_caption_batch", caption)
    job = caption_photos.Job(("", ""), "", "", True, 1, 1.0, batch_size=2)
    captions = caption_photos.caption_photos(photographing(untrained()), list(range(20)), job)
    assert next(captions) == 0
    captions.close()
    assert begun == [[0, 1], [2, 3]]  # the second batch was in work


def test_one_process_has_one_precision(monkeypatch):
    """A Dask worker's next task, say: oneDNN reads the mode once."""
    monkeypatch.setattr(cli, "check_bfloat16", lambda: None)
    with pytest.raises(InputError, match="was loaded with another --precision: not bfloat16"):
        cli.load_tensorflow("bfloat16")


def test_a_worker_with_another_captioner_refuses(tmp_path):
    (tmp_path / "m.onnx").write_bytes(b"other")
    job = caption_photos.Job(("x", "y"), str(tmp_path / "m.onnx"), "", True, 1, 1.0, 1, 0, "0" * 64)
    with pytest.raises(InputError, match=r"a worker has another .*m\.onnx"):
        caption_photos.load_captioner(job)


def test_bfloat16_where_the_processor_has_none(small, tmp_path, monkeypatch):
    monkeypatch.setattr(cli, "CPU_INFO", tmp_path / "cpuinfo")
    (tmp_path / "cpuinfo").write_text("flags: avx2 fma")
    done = run_here(*preprocess(small / "dataset", tmp_path), "--precision", "bfloat16", code=1)
    assert "this processor has none of amx_bf16, avx512_bf16" in done.stderr


@pytest.mark.long
@pytest.mark.skipif(not has_bfloat16(), reason="this processor has no bfloat16")
def test_bfloat16_features_are_others_and_nearly_the_same(small, tmp_path):
    command = (*preprocess(small / "dataset", tmp_path), "--precision", "bfloat16")
    run_script(*command)
    found = joblib.load(tmp_path / "features.pkl")
    exact = joblib.load(small / "data" / "features.pkl")
    assert found["precision"] == "bfloat16" and "precision" not in exact
    assert found["fingerprint"] != exact["fingerprint"]
    first, second = (of_length_1([each["features"]]) for each in (found, exact))
    cosines = (first * second).sum(axis=1)
    assert not np.array_equal(first, second) and cosines.min() > 0.99
    assert "up to date" in run_script(*command).stderr
    assert "up to date" not in run_here(*preprocess(small / "dataset", tmp_path)).stderr


def test_a_worker_with_other_weights_refuses():
    with pytest.raises(InputError, match="a worker has other weights of efficientnet_lite0"):
        _worker_encoder(
            "efficientnet_lite0", "imagenet", "pooled", 224, "float32", "0" * 64, threads=None
        )


def test_without_a_scheduler_or_without_dask(small, tmp_path, monkeypatch):
    pytest.importorskip("distributed", reason="no Dask (requirements-dev.txt)")
    monkeypatch.setattr(parallel, "CONNECTION_TIMEOUT", 1)
    command = (*preprocess(small / "dataset", tmp_path), "--dask", "tcp://127.0.0.1:9")
    assert run_here(*command, code=1).stderr.splitlines()[-1] == (
        "error: no Dask scheduler answers at tcp://127.0.0.1:9. Start one: dask scheduler"
    )
    monkeypatch.setitem(sys.modules, "distributed", None)
    assert "pip install 'dask[distributed]'" in run_here(*command, code=1).stderr
