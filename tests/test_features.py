"""Grids and layers as features: what they hold, and the way from photos to a caption."""

import dataclasses

import joblib
import keras
import numpy as np
import pytest
from helpers import CONFIGS, run_here, untrained
from PIL import Image

from captioning.encoders import GRID_CELLS, Encoder, enlarge
from captioning.features import MIN_VARIANCE
from captioning.files import InputError
from captioning.images import load_image
from captioning.lite import build_lite, scale_lite
from data.sample import write_sample
from model import Captioner, build_decoder


def preprocess(small, kind: str):
    """The folder of the small sample set's features of that kind."""
    folders = ("--dataset_dir", small / "dataset", "--output_dir", small / kind)
    run_here("preprocess.py", *folders, "--encoder", "efficientnet_lite0", "--features", kind)
    return small / kind


@pytest.fixture(scope="module")
def grid(small):
    return preprocess(small, "grid")


def test_a_grid_s_cells_are_averages_of_maps_each_of_length_1(small, grid):
    content = joblib.load(grid / "features.pkl", mmap_mode="r")
    assert content["features"].shape == (60, GRID_CELLS, 1904)
    assert content["features"].dtype == np.float16
    photos = [small / "dataset" / "Images" / name for name in content["image_ids"][:2]]
    pixels = np.stack([enlarge(load_image(photo, content["photo_size"]), 384) for photo in photos])
    network = build_lite("efficientnet_lite0", "imagenet", 384)
    names = ("grid", "stage7_block1_project", "stage6_block4_add", "stage5_block3_add")
    network = keras.Model(network.input, [network.get_layer(name).output for name in names])
    expected = []
    for x in network(scale_lite(pixels.astype(np.float32))):
        side = x.shape[1] // 6  # 2 or 4 cells of the map, (2, side * 6, side * 6, C), make one
        cells = x.numpy().reshape(2, 6, side, 6, side, -1).mean(axis=(2, 4)).reshape(2, 36, -1)
        expected.append(cells / np.linalg.norm(cells, axis=-1, keepdims=True))
    expected = np.concatenate(expected, axis=-1)
    np.testing.assert_allclose(content["features"][:2], expected, rtol=5e-3, atol=1e-3)


def test_cells_go_row_by_row(small):
    """What is changed in a photo's top right corner is seen in the cells there."""
    encoder = Encoder("efficientnet_lite0", kind="grid")
    image = load_image(small / "dataset" / "Images" / "scene_0000.jpg")
    changed = image.copy()
    changed[:48, -48:] = 255 - changed[:48, -48:]
    before, after = (encoder.encode(pixels[None])[0].astype(float) for pixels in (image, changed))
    change = np.abs(after - before).sum(axis=1).reshape(6, 6)
    # A cell sees more than its own patch, but most of what it says is of there.
    assert change[:3, 4:].mean() > 4 * change[3:, :4].mean()
    assert change[:3, 4:].mean() > 2 * max(change[:3, :3].mean(), change[4:, 4:].mean())


def test_layers_are_averages_of_the_enlarged_photo_each_of_length_1(small):
    photos = sorted((small / "dataset" / "Images").iterdir())[:4]
    pixels = np.stack([load_image(photo) for photo in photos])
    features = Encoder("efficientnet_lite0", kind="layers").encode(pixels)
    parts = np.split(features, [1280, 1600, 1792], axis=1)
    assert [part.shape for part in parts] == [(4, size) for size in (1280, 320, 192, 112)]
    for part in parts:
        np.testing.assert_allclose(np.linalg.norm(part, axis=1), 1, atol=1e-5)
        assert part.std(axis=0).mean() > 0.001  # it tells photos apart
    large = np.stack([enlarge(image, 384) for image in pixels]).astype(np.float32)
    vectors = build_lite("efficientnet_lite0", "imagenet", 384)(scale_lite(large)).numpy()
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    np.testing.assert_allclose(parts[0], vectors, rtol=1e-3, atol=1e-4)


@pytest.mark.long
def test_photos_are_decoded_once_or_as_small_as_those_of_training_were(tmp_path, monkeypatch):
    """Large ones at the CNN's own size; for a captioner of small ones, at their size first."""
    write_sample(tmp_path / "set", scenes=12, seed=1)
    for path in sorted((tmp_path / "set" / "Images").iterdir()):
        Image.open(path).resize((640, 480)).save(path)
    command = ("preprocess.py", "--dataset_dir", tmp_path / "set", "--output_dir", tmp_path)
    command += ("--encoder", "efficientnet_lite0", "--features", "layers")
    encoder = Encoder("efficientnet_lite0", kind="layers")
    contents = {}
    for options, size in (((), 384), (("--photo_size", 224), 224)):
        run_here(*command, *options)
        contents[size] = joblib.load(tmp_path / "features.pkl")
        assert contents[size]["photo_size"] == size
        expected = encoder.encode(np.stack([load_image(path, size)] * 2))[0]
        np.testing.assert_allclose(contents[size]["features"][-1], expected, rtol=1e-3, atol=1e-5)
    captioner = untrained(dataclasses.replace(CONFIGS["wide merge"], feature_size=1904))
    captioner.config = dataclasses.replace(captioner.config, weights_hash=encoder.weights_hash)
    small = load_image(path, 224)
    encode, seen = Encoder.encode, []
    monkeypatch.setattr(Encoder, "encode", lambda s, x: seen.append(x) or encode(s, x))
    assert captioner.caption(path) == captioner.caption(small)
    captioner.save(tmp_path / "m.h5")
    model = ("--model_path", tmp_path / "m.h5")
    run_here("generate_caption.py", "--image_path", path, *model)
    for pixels in seen:
        np.testing.assert_array_equal(pixels, small[None])
    assert len(seen) == 3
    captioner.check_features(contents[224])
    with pytest.raises(InputError, match="--photo_size 224"):
        captioner.check_features(contents[384])


def test_features_are_standardized_by_the_moments_of_the_training_images(grid):
    """Of 300 images' cells, in two portions."""
    features = joblib.load(grid / "features.pkl", mmap_mode="r")["features"][..., :64]
    features = np.concatenate([features[: 60 - i] for i in range(6)])  # (345, 36, 64)
    decoder = build_decoder(dataclasses.replace(CONFIGS["updown"], feature_size=64))
    decoder.standardize(features, list(range(300)))
    cells = features[:300].astype(float).reshape(-1, 64)
    units = cells / np.maximum(np.linalg.norm(cells, axis=1, keepdims=True), 1e-9)
    mean, variance = decoder.cell_input.standardizer.get_weights()
    np.testing.assert_allclose(mean, units.mean(axis=0), atol=1e-6)
    own = units.var(axis=0)
    np.testing.assert_allclose(variance, np.maximum(own, MIN_VARIANCE * own.mean()), atol=1e-7)


@pytest.mark.long
@pytest.mark.parametrize(
    ("kind", "decoder", "others"),
    [("grid", "updown", "pooled or layers"), ("layers", "merge", "grid")],
)
def test_a_photo_s_caption_is_that_of_its_features(small, tmp_path, kind, decoder, others):
    data, path = preprocess(small, kind), ("--model_path", tmp_path / "m.h5")
    sizes = ("--units", 16, "--merge_units", 24, "--embedding_size", 16, "--batch_size", 16)
    command = ("train.py", *path, *sizes, "--epochs", 2, "--data_dir", data)
    run_here(*command, "--decoder", decoder)
    content = joblib.load(data / "features.pkl", mmap_mode="r")
    photo = small / "dataset" / "Images" / content["image_ids"][7]
    (caption,) = Captioner.load(tmp_path / "m.h5").caption_features(content["features"][7:8])
    done = run_here("generate_caption.py", "--image_path", photo, *path)
    assert done.stdout == f"{photo}\t{caption}\n"

    refused = run_here("evaluate.py", *path, "--data_dir", small / "data", code=1)
    assert f"--features {kind}" in refused.stderr
    other = "merge" if decoder == "updown" else "updown"
    again = (*command, "--decoder", other, "--overwrite")
    assert f"--features {others}" in run_here(*again, code=1).stderr
