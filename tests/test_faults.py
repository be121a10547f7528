"""Stopped at any moment, started again: nothing is lost, and the end is the undisturbed one's."""

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from helpers import ROOT, files_up_to, run_here, run_script

from captioning.callbacks import Recorder
from model import Captioner

TINY = ("train.py", "--units", 32, "--embedding_size", 32, "--batch_size", 240)
SIZES = {"shards": 100_000, "features.npy": 2_000_000, "m.h5": 100_000, "m.checkpoint.npz": 550_000}


def files_in(folder) -> set[str]:
    """The names of all files; those that are being written have names of their own."""
    return {name for _, _, names in os.walk(folder) for name in names}


def stopped(command, folder, later, by=signal.SIGKILL) -> tuple[int, str]:
    """Stop a script some seconds `later` than it wrote something: its exit code, what it said."""
    before = files_in(folder)
    command = [sys.executable, *map(str, command)]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    while files_in(folder) == before and process.poll() is None:
        time.sleep(0.002)
    time.sleep(later)
    process.send_signal(by)
    said, _ = process.communicate(timeout=60)
    return process.returncode, said


def same_training(one, other) -> None:
    """Whether two trainings left the same, to the last bit, but for the seconds they took."""
    assert (one / "m.h5").read_bytes() == (other / "m.h5").read_bytes()
    rows = [(folder / "m.csv").read_text().splitlines() for folder in (one, other)]
    assert [row.rsplit(",", 1)[0] for row in rows[0]] == [row.rsplit(",", 1)[0] for row in rows[1]]
    with np.load(one / "m.checkpoint.npz") as ours, np.load(other / "m.checkpoint.npz") as theirs:
        names = ours.keys() - {"history"}
        assert len(names) > 20
        for name in names:
            np.testing.assert_array_equal(ours[name], theirs[name])


@pytest.mark.long
def test_preprocess_killed_and_repeated_gives_the_same_bytes(demo, tmp_path):
    output = tmp_path / "data"
    folders = ("--dataset_dir", demo / "dataset", "--output_dir", output)
    command = ("preprocess.py", *folders, "--encoder", "efficientnet_lite0")
    draw, shards, killed = random.Random(0), {}, 0
    for _ in range(6):
        killed += stopped(command, output, draw.uniform(0, 1))[0] == -signal.SIGKILL
        now = {p.name: p.stat().st_ino for p in (output / "shards").glob("[!.]*.npz")}
        assert now.items() >= shards.items() or not now  # none again, until the end takes them all
        shards.update(now)
    assert killed >= 2
    assert len(shards) >= 2
    run_script(*command)
    for name in ("features.pkl", "captions.pkl"):
        assert (output / name).read_bytes() == (demo / "data" / name).read_bytes()
    assert not (output / "shards").exists()


@pytest.mark.long
def test_train_killed_and_resumed_ends_with_the_same_bits(small, tmp_path):
    """Killed five times and stopped once by Ctrl-C, which tells how to continue."""
    options = (*TINY, "--data_dir", small / "data", "--epochs", 200, "--keep", "last")
    run_script(*options, "--model_path", tmp_path / "m.h5")
    again = tmp_path / "again"
    command = (*options, "--model_path", again / "m.h5", "--resume")
    draw = random.Random(0)
    codes = [stopped(command, again, draw.uniform(0, 0.5))[0] for _ in range(5)]
    assert codes == [-signal.SIGKILL] * 5
    code, said = stopped(command, again, 0.5, by=signal.SIGINT)
    assert code == 130
    assert "kept epoch" in said
    assert said.splitlines()[-1].startswith("stopped. The same command with --resume")
    assert "epochs finished: " in run_script(*command).stderr
    same_training(tmp_path, again)


@pytest.mark.long
def test_a_training_is_resumed_to_the_same_bits_but_not_by_another_run(
    small, tmp_path, monkeypatch
):
    whole, again = tmp_path / "whole", tmp_path / "again"
    options = (*TINY, "--data_dir", small / "data", "--epochs", 3, "--resume")
    begin = Recorder.on_epoch_begin

    def copy(self, epoch, logs=None):
        begin(self, epoch, logs)
        if epoch == 2:  # what a kill would leave
            shutil.copytree(whole, again)

    with monkeypatch.context() as patch:
        patch.setattr(Recorder, "on_epoch_begin", copy)
        done = run_here(*options, "--model_path", whole / "m.h5")
    assert "starting with the first epoch" in done.stderr
    command = (*options, "--model_path", again / "m.h5")
    for name, value in ("epochs", 4), ("dropout", 0.1):
        done = run_here(*command, f"--{name}", value, code=1)
        assert f"other {name}. Give the same options" in done.stderr
    assert "epochs finished: 2; continuing" in run_here(*command).stderr
    same_training(whole, again)
    done = run_here(*command)
    assert "epochs finished: 3; nothing is left to do." in done.stderr
    assert "epoch 1/3" not in done.stdout
    checkpoint = again / "m.checkpoint.npz"
    checkpoint.write_bytes(checkpoint.read_bytes()[:5000])
    assert "Train anew with --overwrite" in run_here(*command, code=1).stderr
    checkpoint.unlink()
    model = (again / "m.h5").read_bytes()
    assert "cannot be resumed. Train anew with" in run_here(*command, code=1).stderr
    assert (again / "m.h5").read_bytes() == model


@pytest.mark.long
@pytest.mark.parametrize(("file", "size"), SIZES.items(), ids=SIZES)
def test_a_full_disk_ends_in_one_error_and_leaves_whole_files(demo, small, tmp_path, file, size):
    for name in ("captions.pkl", "m.h5"):
        (tmp_path / name).write_bytes(b"old")
    folders = ("--dataset_dir", demo / "dataset", "--output_dir", tmp_path)
    command = ("preprocess.py", *folders, "--encoder", "efficientnet_lite0")
    if file.startswith("m."):
        model = ("--model_path", tmp_path / "m.h5", "--epochs", 1)
        command = (*TINY, "--data_dir", small / "data", *model, "--overwrite")
    with files_up_to(size):
        done = run_here(*command, code=1)
    assert re.match(rf"error: cannot write .*{file}.*Free space", done.stderr.splitlines()[-1])
    assert (tmp_path / "captions.pkl").read_bytes() == b"old"
    if file == "m.checkpoint.npz":
        assert Captioner.load(tmp_path / "m.h5")
    else:
        assert (tmp_path / "m.h5").read_bytes() == b"old"
    assert not [*tmp_path.rglob(".*"), *tmp_path.glob("features.*")]


def test_stdout_that_takes_nothing_ends_in_one_error(tmp_path):
    command = [sys.executable, "data/sample.py", "--output_dir", tmp_path, "--scenes", "1"]
    with open("/dev/full", "w") as full:  # noqa: PTH123
        done = subprocess.run(command, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert done.stderr == "error: [Errno 28] No space left on device\n"
