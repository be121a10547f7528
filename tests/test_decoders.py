"""Attention over the grid, and fine-tuning on CIDEr, through the real scripts."""

import csv
import json

import joblib
import numpy as np
import pytest
from conftest import run_here
from PIL import Image

from captioning.encoders import GRID_CELLS, Encoder, enlarge, load_image, scale_lite0
from captioning.networks import LEAST_VARIANCE, build_captioner, standardize
from model import Captioner


@pytest.fixture(scope="module")
def grid(small):
    """The small sample set's grids, beside its vectors."""
    arguments = ("--dataset_dir", small / "dataset", "--output_dir", small / "grid")
    lite0 = ("--encoder", "efficientnet_lite0", "--features", "grid")
    run_here("preprocess.py", *arguments, *lite0)
    return small / "grid"


def test_a_grid_s_mean_is_the_vector(small, grid):
    features = joblib.load(grid / "features.pkl", mmap_mode="r")["features"]
    assert isinstance(features, np.memmap)
    assert features.shape == (60, GRID_CELLS, 1280)
    assert features.dtype == np.float16
    vectors = joblib.load(small / "data" / "features.pkl")["features"]
    np.testing.assert_allclose(features.astype(float).mean(axis=1), vectors, rtol=2e-3, atol=2e-4)


def test_cells_go_row_by_row(small):
    """What is changed in a photo's top right corner is seen in the cells there."""
    encoder = Encoder("efficientnet_lite0", kind="grid")
    image = load_image(small / "dataset" / "Images" / "scene_0000.jpg")
    changed = image.copy()
    changed[:48, -48:] = 255 - changed[:48, -48:]
    before, after = (encoder.encode(pixels[None])[0].astype(float) for pixels in (image, changed))
    change = np.abs(after - before).sum(axis=1).reshape(7, 7)
    row, column = np.unravel_index(change.argmax(), (7, 7))
    assert row < 2 < 4 < column
    # A cell sees more than its own patch, but most of what it says is of there.
    assert change[:3, 4:].mean() > 4 * change[3:, :4].mean()


def test_features_are_seen_in_standard_deviations(grid):
    from dataclasses import replace

    from test_model import CONFIGS

    features = joblib.load(grid / "features.pkl", mmap_mode="r")["features"]
    network = build_captioner(replace(CONFIGS["attention"], feature_size=1280))
    standardize(network, features, list(range(50)))
    units = features[:50].astype(float).reshape(-1, 1280)
    units /= np.linalg.norm(units, axis=1, keepdims=True)
    mean, variance = network.get_layer("cell_standard").get_weights()
    np.testing.assert_allclose(mean, units.mean(axis=0), atol=1e-6)
    expected = np.maximum(units.var(axis=0), LEAST_VARIANCE * units.var(axis=0).mean())
    np.testing.assert_allclose(variance, expected, atol=1e-7)
    mean, variance = network.get_layer("image_standard").get_weights()
    units = features[:50].astype(float).mean(axis=1)
    units /= np.linalg.norm(units, axis=1, keepdims=True)
    np.testing.assert_allclose(mean, units.mean(axis=0), atol=1e-6)
    expected = np.maximum(units.var(axis=0), LEAST_VARIANCE * units.var(axis=0).mean())
    np.testing.assert_allclose(variance, expected, atol=1e-7)


@pytest.mark.long
def test_attention_from_training_to_a_caption(small, grid, tmp_path):
    model_path = tmp_path / "m.h5"
    options = ("--epochs", 2, "--units", 32, "--embedding_size", 32, "--batch_size", 16)
    arguments = ("--decoder", "attention", "--model_path", model_path, *options)
    run_here("train.py", "--data_dir", grid, *arguments)
    evaluated = run_here(
        *("evaluate.py", "--model_path", model_path, "--data_dir", grid, "--split", "dev"),
        *("--output_dir", tmp_path / "results", "--images_dir", small / "dataset" / "Images"),
    )
    assert "model" in evaluated.stdout
    captions = json.loads((tmp_path / "results" / "captions.json").read_text())
    photo = small / "dataset" / "Images" / captions[0]["image_id"]
    done = run_here("generate_caption.py", "--image_path", photo, "--model_path", model_path)
    assert done.stdout == f"{photo}\t{captions[0]['caption']}\n"

    refused = run_here("train.py", "--data_dir", small / "data", *arguments, code=1)
    assert "--features grid" in refused.stderr
    refused = run_here("train.py", "--data_dir", grid, "--model_path", model_path, code=1)
    assert "--features pooled or layers" in refused.stderr
    refused = run_here(
        "evaluate.py", "--model_path", model_path, "--data_dir", small / "data", code=1
    )
    assert "(49, 1280)" in refused.stderr


@pytest.mark.long
def test_layers_from_photos_to_a_caption(small, tmp_path):
    """Each layer's average, of length 1, and the same path from a photo."""
    lite0 = ("--encoder", "efficientnet_lite0", "--features", "layers")
    data = ("--output_dir", tmp_path)
    run_here("preprocess.py", "--dataset_dir", small / "dataset", *data, *lite0)
    features = joblib.load(tmp_path / "features.pkl", mmap_mode="r")["features"]
    assert features.shape == (60, 1280 + 320 + 192 + 112)
    photos = [small / "dataset" / "Images" / f"scene_{i:04}.jpg" for i in range(4)]
    pixels = np.stack([enlarge(load_image(photo), 384) for photo in photos])
    vectors = Encoder("efficientnet_lite0").network(scale_lite0(pixels.astype(np.float32)))
    vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    np.testing.assert_allclose(features[:4, :1280], vectors, rtol=1e-3, atol=1e-4)
    for part in np.split(features, [1280, 1600, 1792], axis=1):
        np.testing.assert_allclose(np.linalg.norm(part, axis=1), 1, atol=1e-5)
        assert part.std(axis=0).mean() > 0.001  # it tells photos apart

    model_path = tmp_path / "m.h5"
    sizes = ("--units", 16, "--merge_units", 24, "--embedding_size", 16)
    arguments = ("--data_dir", tmp_path, "--model_path", model_path, "--epochs", 2)
    run_here("train.py", *arguments, *sizes)
    captioner = Captioner.load(model_path)
    photo = photos[0]
    done = run_here("generate_caption.py", "--image_path", photo, "--model_path", model_path)
    assert done.stdout == f"{photo}\t{captioner.caption_features(features[:1])[0]}\n"
    refused = run_here(
        "evaluate.py", "--model_path", model_path, "--data_dir", small / "data", code=1
    )
    assert "--features layers" in refused.stderr


@pytest.mark.long
def test_fine_tuning_goes_on_where_it_was_stopped(small, tmp_path):
    """Two epochs, and one epoch and another: the same file."""
    start = tmp_path / "start.h5"
    data = ("--data_dir", small / "data")
    sizes = ("--units", 32, "--embedding_size", 32)
    run_here("train.py", *data, "--epochs", 2, "--model_path", start, *sizes)
    whole, parts = tmp_path / "whole.h5", tmp_path / "parts.h5"
    options = (*data, "--finetune_cider", start, "--epochs", 2, "--batch_size", 16)
    run_here("train.py", *options, "--model_path", whole)
    rows = list(csv.DictReader(whole.with_suffix(".csv").open()))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert all(float(row["train_cider"]) > 0 and float(row["dev_cider"]) >= 0 for row in rows)
    assert Image.open(whole.with_suffix(".png")).width > 500

    from captioning.training import EpochLog

    stop = EpochLog.on_epoch_end

    def interrupted(self, epoch, logs=None):
        stop(self, epoch, logs)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EpochLog, "on_epoch_end", interrupted)
        run_here("train.py", *options, "--model_path", parts, code=130)
    assert len(parts.with_suffix(".csv").read_text().splitlines()) == 2
    run_here("train.py", *options, "--model_path", parts, "--resume")
    assert parts.read_bytes() == whole.read_bytes()
