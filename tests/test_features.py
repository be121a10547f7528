"""Grids and layers as features: what they hold, and the way from photos to a caption."""

import dataclasses
import json

import joblib
import numpy as np
import pytest
from helpers import CONFIGS, run_here

from captioning.decoder import MIN_VARIANCE
from captioning.encoders import GRID_CELLS, Encoder, enlarge, scale_lite0
from captioning.images import load_image
from model import Captioner, build_decoder

LITE0 = ("--encoder", "efficientnet_lite0")


@pytest.fixture(scope="module")
def grid(small):
    """The small sample set's grids, beside its vectors."""
    folders = ("--dataset_dir", small / "dataset", "--output_dir", small / "grid")
    run_here("preprocess.py", *folders, *LITE0, "--features", "grid")
    return small / "grid"


def test_the_mean_of_a_grid_is_the_vector(small, grid):
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


def test_features_are_standardized_by_the_moments_of_the_training_images(grid):
    """Of 300 images in two portions: the mean cell's as "image", each cell's as "cell"."""
    features = joblib.load(grid / "features.pkl", mmap_mode="r")["features"][..., :64]
    features = np.concatenate([features[: 60 - i] for i in range(6)])  # (345, 49, 64)
    decoder = build_decoder(dataclasses.replace(CONFIGS["attention"], feature_size=64))
    decoder.standardize(features, list(range(300)))
    chosen = features[:300].astype(float)
    vectors = {"image": chosen.mean(axis=1), "cell": chosen.reshape(-1, 64)}
    assert decoder.feature_inputs.keys() == vectors.keys()
    for name, each in vectors.items():
        units = each / np.maximum(np.linalg.norm(each, axis=1, keepdims=True), 1e-9)
        mean, variance = decoder.feature_inputs[name].standardizer.get_weights()
        np.testing.assert_allclose(mean, units.mean(axis=0), atol=1e-6)
        own = units.var(axis=0)
        np.testing.assert_allclose(variance, np.maximum(own, MIN_VARIANCE * own.mean()), atol=1e-7)


@pytest.mark.long
def test_attention_from_training_to_a_caption(small, grid, tmp_path):
    model_path = tmp_path / "m.h5"
    options = ("--epochs", 2, "--units", 32, "--embedding_size", 32, "--batch_size", 16)
    arguments = ("--decoder", "attention", "--model_path", model_path, *options)
    run_here("train.py", "--data_dir", grid, *arguments)
    run_here(
        *("evaluate.py", "--model_path", model_path, "--data_dir", grid, "--split", "dev"),
        *("--output_dir", tmp_path / "results", "--images_dir", small / "dataset" / "Images"),
    )
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
    folders = ("--dataset_dir", small / "dataset", "--output_dir", tmp_path)
    run_here("preprocess.py", *folders, *LITE0, "--features", "layers")
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
