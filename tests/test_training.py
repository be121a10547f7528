"""What is to be seen of a training while it runs, and that looking changes nothing."""

import csv
import importlib.util

import joblib
import pytest
import tensorflow as tf
from conftest import run_here
from test_faults import trained

from captioning.training import EpochLog
from model import Captioner

SIZES = ("--units", 16, "--embedding_size", 16, "--batch_size", 16)


def train(small, model_path, *options, code=0):
    sizes = SIZES[-2:] if "--finetune_cider" in options else SIZES
    arguments = ("--data_dir", small / "data", "--model_path", model_path, *sizes, *options)
    return run_here("train.py", *arguments, code=code)


def shown(done) -> list[dict[str, str]]:
    """Of each epoch, the captions by image id."""
    epochs = []
    for line in done.stdout.splitlines():
        if line.startswith("epoch "):
            epochs.append({})
        elif line.startswith("    "):
            image_id, caption = line[4:].split(": ")
            epochs[-1][image_id] = caption
    return epochs


@pytest.mark.long
def test_three_dev_images_are_captioned_by_the_weights_of_each_epoch(small, tmp_path, monkeypatch):
    options = ("--epochs", 6, "--keep", "last", "--learning_rate", 0.02)
    (tmp_path / "dark").mkdir()
    seen = shown(train(small, tmp_path / "m.h5", *options))
    assert [len(captions) for captions in seen] == [3] * 6
    assert len({tuple(captions) for captions in seen}) == 1  # always the same images
    assert len({tuple(captions.values()) for captions in seen}) > 1  # and what is learnt is seen
    features = joblib.load(small / "data" / "features.pkl")
    split = joblib.load(small / "data" / "captions.pkl")["splits"]["dev"]
    assert list(seen[-1]) == [split[0], split[len(split) // 3], split[2 * len(split) // 3]]
    rows = [features["image_ids"].index(image_id) for image_id in seen[-1]]
    captions = Captioner.load(tmp_path / "m.h5").caption_features(features["features"][rows])
    assert list(seen[-1].values()) == captions

    monkeypatch.setattr(EpochLog, "show", lambda self: None)
    assert not any(shown(train(small, tmp_path / "dark" / "m.h5", *options)))
    (state, *rest), (dark_state, *dark_rest) = trained(tmp_path), trained(tmp_path / "dark")
    assert rest == dark_rest
    assert all((dark_state[name] == array).all() for name, array in state.items())


def test_tensorboard_without_its_package(small, tmp_path, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "tensorboard" else found(name)
    )
    done = train(small, tmp_path / "m.h5", "--tensorboard", tmp_path / "board", code=1)
    assert (
        done.stderr == "error: --tensorboard needs a package of its own: pip install tensorboard\n"
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.long
@pytest.mark.parametrize("measure", ["loss", "cider"])
def test_tensorboard_has_the_history_of_all_epochs_of_a_run_that_was_stopped(
    measure, small, tmp_path, monkeypatch
):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    path, board = tmp_path / "m.h5", tmp_path / "new" / "board"
    options = ("--epochs", 3, "--keep", "last", "--tensorboard", board)
    if measure == "cider":
        train(small, tmp_path / "start.h5", "--epochs", 2)
        options += ("--finetune_cider", tmp_path / "start.h5")
    end = EpochLog.on_epoch_begin

    def stopped(self, epoch, logs=None):
        end(self, epoch, logs)
        if epoch == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(EpochLog, "on_epoch_begin", stopped)
        train(small, path, *options, code=130)
    done = train(small, path, *options, "--resume")
    assert [len(captions) for captions in shown(done)] == [3]
    rows = list(csv.DictReader(path.with_suffix(".csv").open()))
    assert len(rows) == 3
    for folder, split in (("train", "train"), ("validation", "dev")):
        events = EventAccumulator(str(board / folder), {"tensors": 0})
        events.Reload()
        found = events.Tensors(f"epoch_{measure}")
        assert [event.step for event in found] == [0, 1, 2]
        values = [float(tf.make_ndarray(event.tensor_proto)) for event in found]
        assert values == pytest.approx([float(row[f"{split}_{measure}"]) for row in rows])


def test_a_place_for_tensorboard_that_is_none(small, tmp_path):
    pytest.importorskip("tensorboard")
    (tmp_path / "file").touch()
    done = train(small, tmp_path / "m.h5", "--tensorboard", tmp_path / "file", code=1)
    assert done.stderr == f"error: --tensorboard {tmp_path / 'file'}: File exists. Name a folder.\n"
