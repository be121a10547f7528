"""What is to be seen of a training while it runs, and that looking changes nothing."""

import csv
import importlib.util

import joblib
import pytest
import tensorflow as tf
from helpers import options, run_here, trained

from captioning.callbacks import Recorder, SampleCaptions
from model import Captioner

SIZES = ("--units", 16, "--embedding_size", 16)


def train(small, model_path, *more, code=0, start=None):
    command = ("train.py", *SIZES) if start is None else ("finetune.py", start)
    data = ("--data_dir", small / "data", "--model_path", model_path, "--batch_size", 16)
    return run_here(*command, *data, *more, code=code)


@pytest.mark.parametrize(
    ("patience", "kept", "stop"), [(2, 2, True), (3, 2, False), (None, 4, False)]
)
@pytest.mark.parametrize(("measure", "sign"), [("loss", 1), ("cider", -1)], ids=["loss", "cider"])
def test_the_epoch_that_is_kept_and_when_to_stop(patience, kept, stop, measure, sign, tmp_path):
    """The best one and its patience; with neither, the last, and on to the end."""
    losses = [3.0, 2.8, 2.9, 2.9]
    for epochs, at_the_end in ((6, False), (4, True)):
        given = options(tmp_path / "m.h5", epochs, patience=patience)
        recorder = Recorder(None, given, 1, measure)
        assert not recorder.should_stop()
        recorder.rows = [
            {"epoch": epoch, f"train_{measure}": 1.0, f"dev_{measure}": sign * loss}
            for epoch, loss in enumerate(losses, 1)
        ]
        assert recorder.best()["epoch"] == kept
        assert recorder.should_stop() == (stop or at_the_end)


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
    given = ("--epochs", 6, "--keep", "last", "--learning_rate", 0.02)
    seen = shown(train(small, tmp_path / "m.h5", *given))
    assert [len(captions) for captions in seen] == [3] * 6
    assert len({tuple(captions) for captions in seen}) == 1  # always the same images
    assert len({tuple(captions.values()) for captions in seen}) > 1  # and what is learnt is seen
    features = joblib.load(small / "data" / "features.pkl")
    split = joblib.load(small / "data" / "captions.pkl")["splits"]["dev"]
    assert list(seen[-1]) == [split[0], split[len(split) // 3], split[2 * len(split) // 3]]
    rows = [features["image_ids"].index(image_id) for image_id in seen[-1]]
    captions = Captioner.load(tmp_path / "m.h5").caption_features(features["features"][rows])
    assert list(seen[-1].values()) == captions

    monkeypatch.setattr(SampleCaptions, "on_epoch_end", lambda *_: None)
    assert not any(shown(train(small, tmp_path / "dark" / "m.h5", *given)))
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
    given = ("--epochs", 3, "--keep", "last", "--tensorboard", board)
    start = None
    if measure == "cider":
        start = tmp_path / "start.h5"
        train(small, start, "--epochs", 2)
    begin = Recorder.on_epoch_begin

    def stopped(self, epoch, logs=None):
        begin(self, epoch, logs)
        if epoch == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Recorder, "on_epoch_begin", stopped)
        train(small, path, *given, code=130, start=start)
    done = train(small, path, *given, "--resume", start=start)
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


@pytest.mark.long
def test_a_training_that_diverges_ends_in_one_error(small, tmp_path):
    """With samples and dev images, in both scripts; what was trained before stays."""
    steps = ("--learning_rate", 1e30, "--epochs", 3)
    done = train(small, tmp_path / "m.h5", *steps, code=1)
    assert done.stderr.splitlines()[-1].startswith("error: the loss is no longer a number: lower")
    assert not (tmp_path / "m.h5").exists()
    train(small, tmp_path / "start.h5", "--epochs", 1)
    done = train(small, tmp_path / "m.h5", *steps, code=1, start=tmp_path / "start.h5")
    assert done.stderr.splitlines()[-1].startswith("error: the loss is no longer a number: lower")
