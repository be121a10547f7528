"""Killed at any moment, started again: nothing is lost, and the end is the undisturbed one's."""

import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from helpers import ROOT, run_here, run_script, trained, with_files_up_to

KILLS = [pytest.param(2, id="2-kills"), pytest.param(10, id="10-kills", marks=pytest.mark.long)]


def kill(command: list, moment: float, begun=None) -> bool:
    """Run a script and kill it with all its children; whether there was something to kill.

    `moment` is in seconds from its start, or, with `begun`, from when that function holds.
    """
    process = subprocess.Popen(
        [sys.executable, *map(str, command)],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    while begun is not None and not begun() and process.poll() is None:
        time.sleep(0.01)
    try:
        process.wait(moment)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
    return process.wait() == -signal.SIGKILL


def kill_again_and_again(command: list, kills: int, seconds: float, begun, after_each) -> None:
    """Kill at moments drawn over an undisturbed run, every other one after its first result."""
    draw = random.Random(kills)
    killed = 0
    while killed < kills:
        late = killed % 2 == 0
        moment = draw.uniform(0, 0.15 if late else 1) * seconds
        killed += kill(command, moment, begun if late else None)
        after_each()


@pytest.mark.long
@pytest.mark.parametrize("kills", KILLS)
def test_preprocess_killed_and_repeated_gives_the_same_bytes(demo, tmp_path, kills):
    output = tmp_path / "data"
    folders = ("--dataset_dir", demo / "dataset", "--output_dir", output)
    command = ["preprocess.py", *folders, "--encoder", "efficientnet_lite0"]
    shards = {}  # name -> inode: a shard that was done again is another file

    def look():
        now = {p.name: p.stat().st_ino for p in (output / "shards").glob("[!.]*.npz")}
        assert now.items() >= shards.items() or not now  # none again, until the end takes them all
        shards.update(now)

    seconds = float((demo / "preprocess_seconds").read_text())

    def begun():
        return any(output.glob("shards/[!.]*.npz")) or (output / "captions.pkl").exists()

    kill_again_and_again(command, kills, seconds, begun, look)
    assert shards
    run_script(*command)
    for name in ("features.pkl", "captions.pkl"):
        assert (output / name).read_bytes() == (demo / "data" / name).read_bytes()
    assert not (output / "shards").exists()


@pytest.mark.long
@pytest.mark.parametrize("kills", [10], ids=["10-kills"])
def test_train_killed_and_resumed_ends_with_the_same_bits(small, tmp_path, kills):
    options = ("--data_dir", small / "data", "--epochs", 5 + 4 * kills, "--resume")
    command = ["train.py", *options, "--model_path", tmp_path / "killed" / "m.h5"]
    started = time.monotonic()
    run_script("train.py", *options, "--model_path", tmp_path / "m.h5")
    seconds = time.monotonic() - started

    def begun():
        return (tmp_path / "killed" / "m.checkpoint.npz").exists()

    kill_again_and_again(command, kills, seconds, begun, lambda: None)
    done = run_script(*command)
    assert "epochs finished: " in done.stderr  # a late kill may have left nothing to do
    state, history, model = trained(tmp_path)
    killed_state, killed_history, killed_model = trained(tmp_path / "killed")
    assert len(state) > 20
    for name, array in state.items():
        np.testing.assert_array_equal(killed_state[name], array)
    assert killed_history == history
    assert killed_model == model


@pytest.mark.long
def test_a_checkpoint_of_another_run_is_refused(small, tmp_path):
    options = ["--data_dir", small / "data", "--units", 8, "--embedding_size", 8, "--epochs", 1]
    command = ["train.py", *options, "--model_path", tmp_path / "m.h5"]
    first = run_here(*command, "--resume")
    assert "starting with the first epoch" in first.stderr
    again = run_here(*command, "--resume")  # finished: nothing is trained
    assert "epochs finished: 1; nothing is left to do." in again.stderr
    assert "epoch 1/1" not in again.stdout
    assert "kept epoch 1" in again.stdout
    other = run_here(*command, "--units", 16, "--merge_units", 8, "--resume", code=1)
    assert "other units. Give the same options" in other.stderr
    longer = run_here(*command, "--epochs", 2, "--resume", code=1)
    assert "other epochs. Give the same options" in longer.stderr
    checkpoint = tmp_path / "m.checkpoint.npz"
    checkpoint.write_bytes(checkpoint.read_bytes()[:5000])
    assert "Train anew without --resume" in run_here(*command, "--resume", code=1).stderr


@pytest.mark.long
def test_ctrl_c_keeps_the_best_and_says_how_to_continue(small, tmp_path):
    command = [sys.executable, "train.py", "--data_dir", small / "data"]
    command += ["--epochs", "1000", "--patience", "1000", "--model_path", tmp_path / "m.h5"]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while not (tmp_path / "m.checkpoint.npz").exists():
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "kept epoch" in out
    assert err.splitlines()[-1].startswith("stopped. The same command with --resume")
    assert "Traceback" not in err
    assert (tmp_path / "m.h5").exists()


# -- full disks and closed folders -----------------------------------------------------------------


@pytest.mark.parametrize("size", [100_000, 2_000_000], ids=["shard", "features"])
@pytest.mark.long
def test_a_full_disk_in_preprocess(demo, tmp_path, size):
    output = tmp_path / "data"
    output.mkdir()
    (output / "captions.pkl").write_bytes(b"old")
    arguments = ("--dataset_dir", demo / "dataset", "--output_dir", output)
    arguments = ("preprocess.py", *arguments, "--encoder", "efficientnet_lite0")
    done = run_script(*arguments, code=1, preexec_fn=with_files_up_to(size))
    assert done.stderr.splitlines()[-1].startswith(f"error: cannot write {output}")
    assert "Free space" in done.stderr
    assert [p.name for p in output.glob("*.pkl")] == ["captions.pkl"]
    assert (output / "captions.pkl").read_bytes() == b"old"
    assert not list(output.rglob(".*"))


@pytest.mark.long
@pytest.mark.parametrize("size", [30_000, 5_000_000], ids=["model", "checkpoint"])
def test_a_full_disk_in_train(small, tmp_path, size):
    (tmp_path / "m.h5").write_bytes(b"old")
    arguments = ("--data_dir", small / "data", "--model_path", tmp_path / "m.h5", "--epochs", 1)
    done = run_script("train.py", *arguments, code=1, preexec_fn=with_files_up_to(size))
    assert done.stderr.splitlines()[-1].startswith(f"error: cannot write {tmp_path}")
    assert ((tmp_path / "m.h5").read_bytes() == b"old") == (size < 1_000_000)
    assert not list(tmp_path.glob(".*"))


@pytest.mark.long
def test_stdout_that_takes_nothing(demo):
    arguments = ("--image_path", demo / "dataset" / "Images" / "scene_0000.jpg")
    model = ("--model_path", demo / "models" / "caption_model.h5")
    command = [sys.executable, "generate_caption.py", *arguments, *model]
    with open("/dev/full", "w") as full:  # noqa: PTH123
        done = subprocess.run(command, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "error: [Errno 28] No space left on device"
    assert "Traceback" not in done.stderr


def test_a_folder_that_cannot_be_made(small, tmp_path):
    (tmp_path / "file").touch()
    output = ("--output_dir", tmp_path / "file" / "data")
    arguments = ("--dataset_dir", small / "dataset", *output, "--encoder", "efficientnet_lite0")
    done = run_here("preprocess.py", *arguments, code=1)
    assert "cannot write" in done.stderr
