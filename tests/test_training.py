"""What is to be seen of a training while it runs, and when it ends."""

import csv
import importlib.util

import joblib
import numpy as np
import pytest
import tensorflow as tf
from helpers import EXAMPLES, options, random_batches, run_here, untrained

from captioning.callbacks import Recorder
from captioning.cli import INCLUDED_H5
from captioning.encoders import Encoder
from captioning.features import encode_shard
from captioning.files import InputError
from captioning.training import compile_for_training, fit
from finetune import train_epoch
from model import Captioner

SIZES = ("--units", 16, "--embedding_size", 16)
BATCH = 240  # everything: of one shape, so XLA compiles once


def train(small, model_path, *more, code=0, start=None):
    command = ("train.py", *SIZES) if start is None else ("finetune.py", start)
    data = ("--data_dir", small / "data", "--model_path", model_path, "--batch_size", BATCH)
    return run_here(*command, *data, *more, code=code)


@pytest.mark.parametrize(
    ("patience", "kept", "stop"), [(2, 2, True), (3, 2, False), (None, 4, False)]
)
@pytest.mark.parametrize(("measure", "sign"), [("loss", 1), ("cider", -1)])
def test_the_epoch_that_is_kept_and_when_to_stop(patience, kept, stop, measure, sign, tmp_path):
    """The best one and its patience; with neither, the last, and on to the end."""
    for epochs, at_the_end in ((6, False), (4, True)):
        given = options(tmp_path / "m.h5", epochs, patience=patience)
        recorder = Recorder(None, given, 1, measure)
        assert not recorder.should_stop()
        for epoch, loss in enumerate([3.0, 2.8, 2.9, 2.9], 1):
            recorder.rows.append({"epoch": epoch, f"dev_{measure}": sign * loss})
        assert recorder.best()["epoch"] == kept
        assert recorder.should_stop() == (stop or at_the_end)


@pytest.mark.long
def test_three_dev_images_are_captioned_by_the_weights_of_each_epoch(small, tmp_path):
    given = ("--epochs", 12, "--keep", "last", "--learning_rate", 0.02)
    out = train(small, tmp_path / "m.h5", *given).stdout.splitlines()
    ids, captions = zip(*(x[4:].split(": ") for x in out if x.startswith("    ")), strict=True)
    features = joblib.load(small / "data" / "features.pkl")
    split = joblib.load(small / "data" / "captions.pkl")["splits"]["dev"]
    assert ids == (split[0], split[len(split) // 3], split[2 * len(split) // 3]) * 12
    rows = [features["image_ids"].index(image_id) for image_id in ids[-3:]]
    last = Captioner.load(tmp_path / "m.h5").caption_features(features["features"][rows])
    assert captions[-3:] == tuple(last) != captions[:3]  # what is learnt is seen


@pytest.mark.long
@pytest.mark.parametrize("measure", ["loss", "cider"])
def test_tensorboard_has_all_epochs_of_a_run_that_was_stopped(
    measure, small, tmp_path, monkeypatch
):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    path, board = tmp_path / "m.h5", tmp_path / "new" / "board"
    given = ("--epochs", 3, "--keep", "last", "--tensorboard", board)
    start = tmp_path / "start.h5" if measure == "cider" else None
    if start:
        train(small, start, "--epochs", 2)
    begin = Recorder.on_epoch_begin

    def stopped(self, epoch, logs=None):
        begin(self, epoch, logs)
        if epoch == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Recorder, "on_epoch_begin", stopped)
        train(small, path, *given, code=130, start=start)
    train(small, path, *given, "--resume", start=start)
    rows = list(csv.DictReader(path.with_suffix(".csv").open()))
    for folder, split in (("train", "train"), ("validation", "dev")):
        events = EventAccumulator(str(board / folder), {"tensors": 0}).Reload()
        found = events.Tensors(f"epoch_{measure}")
        assert [event.step for event in found] == [0, 1, 2]
        values = [float(tf.make_ndarray(event.tensor_proto)) for event in found]
        assert values == pytest.approx([float(row[f"{split}_{measure}"]) for row in rows])


@pytest.mark.parametrize(
    ("package", "message"),
    [("there", "cannot write {}/events"), (None, "--tensorboard needs tensorboard: pip install")],
)
def test_what_tensorboard_needs_is_told(package, message, small, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: package)
    file = tmp_path / "file"
    file.touch()
    done = train(small, tmp_path / "m.h5", "--tensorboard", file, code=1)
    assert done.stderr.startswith(f"error: {message.format(file)}")
    assert list(tmp_path.iterdir()) == [file]


def test_a_trained_model_is_not_replaced_without_a_word(small, tmp_path):
    path = tmp_path / "m.h5"
    path.write_text("trained for a week")
    for command in (
        ("train.py",),
        ("finetune.py", INCLUDED_H5),
        ("ensemble.py", INCLUDED_H5, "x.h5"),
    ):
        done = run_here(*command, "--model_path", path, code=1)
        assert f"{path} is there already. Give --overwrite" in done.stderr
    assert path.read_text() == "trained for a week"


@pytest.mark.long
def test_features_that_are_not_numbers_are_named_wherever_they_are_met(tmp_path):
    captioner, good, bad = untrained(), random_batches(8), random_batches(8)
    bad.features = bad.features.copy()
    bad.features[bad.rows] = np.inf
    for meet in (
        lambda: fit(captioner, bad, None, options(tmp_path / "m.h5")),
        lambda: fit(captioner, good, bad, options(tmp_path / "m.h5")),
        lambda: captioner.decoder.standardize(bad.features, [*range(10)]),
        lambda: captioner.decode(bad.features),
        lambda: train_epoch(captioner, [(np.arange(8), bad.features)], (0, 0), None, None, None),
    ):
        with pytest.raises(InputError, match="features that are NaN or infinite"):
            meet()
    assert not (tmp_path / "m.h5").exists()


def test_damaged_weights_make_no_features():
    with pytest.raises(InputError, match="NaN or infinite"):
        encoder = Encoder("efficientnet_lite0", "random")
        encoder.network.layers[1].kernel.assign(np.full((3, 3, 3, 32), np.nan))
        encode_shard(encoder, [EXAMPLES / "donna.jpg"], batch_size=1)


def test_matrices_alone_decay():
    """Not the biases, nor the vectors of words."""
    decoder = untrained().decoder
    compile_for_training(decoder, options(learning_rate=1e-2, weight_decay=0.9), steps=10**6)
    variables = decoder.network.trainable_variables
    for variable in variables:
        variable.assign(tf.ones(variable.shape))
    decoder.network.optimizer.apply([tf.zeros(v.shape) for v in variables], variables)
    shrunk = [v.path for v in variables if v.numpy().max() < 1]
    assert shrunk == [v.path for v in variables if v.path.endswith("kernel")]


def test_after_a_loss_that_is_no_number_there_is_no_next_step(tmp_path, capsys):
    (tmp_path / "m.h5").touch()
    recorder = Recorder(None, options(tmp_path / "m.h5"), 1)
    recorder.rows = [{"epoch": 1, "train_loss": 2.0, "dev_loss": 2.0}]
    recorder.diverged = True
    with pytest.raises(InputError, match="lower --learning_rate"), recorder:
        pass
    said = capsys.readouterr().out
    assert "kept epoch 1" in said
    assert "next:" not in said


@pytest.mark.long
def test_a_training_that_diverges_ends_in_one_error(small, tmp_path):
    """With samples and dev images, in both scripts; what was trained before stays."""
    path, start = tmp_path / "m.h5", tmp_path / "start.h5"
    train(small, start, "--epochs", 1)
    for given in None, start:
        steps = ("--learning_rate", 1e30, "--epochs", 3, "--batch_size", 16)
        done = train(small, path, *steps, code=1, start=given)
        error = done.stderr.splitlines()[-1]
        assert error.startswith("error: the loss is no longer a number: lower")
    assert not path.exists()


def test_the_bar_ends_at_the_number_of_batches(tmp_path):
    recorder = Recorder(None, options(tmp_path / "m.h5"), 7)
    recorder.on_epoch_begin(0)
    shown = []
    for batch in (4, 9):  # as Keras numbers them, five in a call
        recorder.on_train_batch_end(batch)
        shown.append(recorder.bar.n)
    assert shown == [5, 7]
