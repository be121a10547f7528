"""Images to pixels to features."""

import h5py
import joblib
import keras
import numpy as np
import pytest
from helpers import ROOT, cells_of, of_length_1, run_here
from sklearn.datasets import load_sample_images

from captioning.encoders import Encoder
from captioning.images import load_image


@pytest.mark.parametrize(
    ("name", "classes"), [("efficientnet_lite0", [442, 985]), ("efficientnet_lite2", [698, 599])]
)
def test_lite_sees_in_a_photo_what_it_saw_when_it_was_converted(name, classes):
    """scikit-learn's two photos, with the classifiers that belong to the shipped weights.

    Lite0 sees a bell cote and a daisy. Lite2 sees a palace, but takes the flower for a honeycomb.
    """
    classifier = np.load(ROOT / "tests" / f"{name}_classifier.npz")
    kernel = classifier["kernel"].astype(np.float32)  # (1280, 1000)
    encoder = Encoder(name)
    size = encoder.image_size
    pixels = np.stack([load_image(path, size) for path in load_sample_images().filenames])
    features = encoder.encode(pixels)
    assert (features @ kernel + classifier["bias"]).argmax(axis=1).tolist() == classes
    # A lone image runs op by op, a batch compiled: the same network.
    np.testing.assert_allclose(encoder.encode(pixels[:1]), features[:1], rtol=1e-3, atol=1e-4)


VGG16_FILE = "vgg16_weights_tf_dim_ordering_tf_kernels.h5"


@pytest.fixture(scope="module")
def vgg16():
    """Keras' own VGG16, its weights random: the real ones are 550 MB and need a download."""
    keras.utils.set_random_seed(1)
    return keras.applications.VGG16(weights=None)


def write_official_layout(path, layers):
    """Weights alone, laid out as in the file that Keras downloads for VGG16."""
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [layer.name for layer in layers]
        for layer in layers:
            names = [f"{layer.name}_{part}_1:0" for part in "Wb"[: len(layer.weights)]]
            group = file.create_group(layer.name)
            group.attrs["weight_names"] = names
            for name, array in zip(names, layer.get_weights(), strict=True):
                group[name] = array


def preprocess(small, tmp_path, *options, code=0):
    """The command with its default encoder, on a photo of each split."""
    folders = ("--dataset_dir", small / "dataset", "--output_dir", tmp_path / "data")
    options = ("--limit", 1, "--min_word_count", 1, *options)
    return run_here("preprocess.py", *folders, *options, code=code)


def check_features(small, tmp_path, vgg16, kind, shape) -> str:
    """Whether they are what the network's layers say of the photos; its weights' hash."""
    content = joblib.load(tmp_path / "data" / "features.pkl")
    photos = [small / "dataset" / "Images" / name for name in content["image_ids"]]
    bgr = np.stack([load_image(photo)[..., ::-1] for photo in photos])
    names = ["fc2", "block5_pool", "block4_pool", "block3_pool"]
    network = keras.Model(vgg16.input, [vgg16.get_layer(name).output for name in names])
    vector, *maps = network(bgr - np.float32([103.939, 116.779, 123.68]))
    maps = [x.numpy() for x in maps]  # (B, side, side, channels)
    if kind == "pooled":
        expected = vector.numpy()
    else:
        parts = map(cells_of, maps) if kind == "grid" else [vector, *(x.mean((1, 2)) for x in maps)]
        expected = of_length_1(parts)
    assert content["features"].shape == (3, *shape)
    limits = {"rtol": 1e-3, "atol": 2e-3 * expected.std()}
    np.testing.assert_allclose(content["features"], expected, **limits)
    assert not np.allclose(expected[0], expected[1], **limits)
    return content["weights_hash"]


@pytest.mark.long
def test_preprocess_with_vgg16_whose_weights_keras_has(small, vgg16, cache, tmp_path, monkeypatch):
    """The command of the first page; the real file's MD5 sum is not to be had for made weights."""
    file = cache / VGG16_FILE
    write_official_layout(file, vgg16.layers)
    monkeypatch.setattr("keras.src.utils.file_utils.validate_file", lambda path, *_, **__: True)
    preprocess(small, tmp_path)
    check_features(small, tmp_path, vgg16, "pooled", (4096,))
    file.unlink()  # half a gigabyte


@pytest.mark.long
def test_preprocess_with_vgg16_from_files_of_both_layouts(small, vgg16, tmp_path):
    older, newer = tmp_path / "older.h5", tmp_path / "newer.weights.h5"
    write_official_layout(older, vgg16.layers)
    vgg16.save_weights(newer)
    preprocess(small, tmp_path, "--weights", older, "--features", "layers")
    one = check_features(small, tmp_path, vgg16, "layers", (5376,))
    preprocess(small, tmp_path, "--weights", newer, "--features", "grid")
    assert check_features(small, tmp_path, vgg16, "grid", (36, 1280)) == one
    older.unlink()
    newer.unlink()


def test_weights_that_cannot_be_had_or_do_not_fit(small, vgg16, cache, tmp_path):
    """The error names the file, the network, and what to do."""
    write_official_layout(tmp_path / "notop.h5", vgg16.layers[:-4])
    (tmp_path / "text.h5").write_text("not HDF5")
    (tmp_path / "x.keras").write_text("no zip")
    place = f"/vgg16/{VGG16_FILE} into ~/.keras/models as {VGG16_FILE}"
    for encoder, weights, messages in [
        ("vgg16", "imagenet", ["VGG16's weights could not be", place, "--encoder efficientnet"]),
        ("vgg16", tmp_path / "missing.h5", ["no such file"]),
        ("vgg16", tmp_path / "text.h5", ["does not fit VGG16", "not 'notop'"]),
        ("efficientnet_lite0", tmp_path / "x.keras", ["does not fit EfficientNet-Lite0 ("]),
        ("vgg16", tmp_path / "notop.h5", ["does not fit VGG16", "Keras' VGG16", "not 'notop'"]),
        ("mobilenet", tmp_path / "notop.h5", ["does not fit MobileNet (", "Keras' MobileNet "]),
    ]:
        options = ("--encoder", encoder, "--weights", weights)
        said = preprocess(small, tmp_path, *options, code=1).stderr
        assert "error: " in said
        assert all(message in said for message in messages), said
    assert not (tmp_path / "data").exists()
    assert "choose from" in preprocess(small, tmp_path, "--encoder", "resnet5", code=2).stderr
