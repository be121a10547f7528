"""Images to pixels to features."""

import urllib.request
import zlib

import h5py
import joblib
import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import ROOT, run_here
from PIL import Image
from sklearn.datasets import load_sample_images

from captioning.encoders import VGG16_FILE, Encoder
from captioning.images import IMAGE_SIZE, array_to_pixels, image_to_pixels, load_image

# -- pixels ----------------------------------------------------------------------------------------


def noise(height: int, width: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_photo_is_squashed_not_cropped_and_turned_as_its_exif_says(tmp_path, orientation):
    photo = Image.new("RGB", (200, 100), "red")
    photo.paste("blue", (100, 0, 200, 100))
    exif = Image.Exif()
    exif[0x0112] = orientation  # 6: to be turned a quarter clockwise, the left side to the top
    photo.save(tmp_path / "x.png", exif=exif)
    pixels = load_image(tmp_path / "x.png")
    assert pixels.shape == (IMAGE_SIZE, IMAGE_SIZE, 3)
    if orientation == 6:
        pixels = pixels.transpose(1, 0, 2)
    assert (pixels[:, 0] == [255, 0, 0]).all()
    assert (pixels[:, -1] == [0, 0, 255]).all()


def test_an_image_of_the_right_size_is_untouched(tmp_path):
    image = noise(224, 224)
    image.save(tmp_path / "x.png")
    np.testing.assert_array_equal(load_image(tmp_path / "x.png"), np.asarray(image))


def test_reduction_is_antialiased():
    """One-pixel stripes become grey, not a beat of black and white."""
    stripes = np.zeros((1000, 1000, 3), np.uint8)
    stripes[:, ::2] = 255
    pixels = image_to_pixels(Image.fromarray(stripes)).astype(int)
    assert np.abs(pixels[8:-8, 8:-8] - 128).max() < 16


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("L", 128, (128, 128, 128)),
        ("1", 1, (255, 255, 255)),
        ("P", 0, (0, 0, 0)),
        ("RGBA", (0, 0, 255, 0), (255, 255, 255)),  # transparent: white
        ("LA", (10, 255), (10, 10, 10)),
        ("CMYK", (0, 255, 255, 0), (255, 0, 0)),
        ("I;16", 32768, (127, 127, 127)),  # scaled, not clipped to white
        ("F", 64.0, (64, 64, 64)),
    ],
)
def test_any_mode_becomes_rgb(mode, colour, expected):
    assert (image_to_pixels(Image.new(mode, (9, 9), colour)) == expected).all()


GREY = np.linspace(20, 220, 40 * 40).reshape(40, 40)  # of 8 bits


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_deep_pixels_are_scaled_by_their_range(bits, tmp_path):
    """In files and arrays of 16 and 32 bits, grey and in colours: not black, not clipped."""
    values = np.round(GREY * (2**bits - 1) / 255).astype(np.uint16)
    colours = np.stack([values] * 3, axis=-1)
    for name, array in (("grey.png", values[..., None]), ("colours.png", colours)):
        (tmp_path / name).write_bytes(tf.io.encode_png(array).numpy())
    Image.fromarray(values.astype(np.int32)).save(tmp_path / "grey.tif")
    read = [load_image(path) for path in tmp_path.iterdir()]
    read += [array_to_pixels(values), array_to_pixels(colours.astype(np.int64))]
    for pixels in read:
        assert pixels.mean() == pytest.approx(GREY.mean(), abs=1)


def test_floats_from_0_to_1_are_not_black(tmp_path):
    values = (GREY / 255).astype(np.float32)
    Image.fromarray(values).save(tmp_path / "x.tif")
    for pixels in (load_image(tmp_path / "x.tif"), array_to_pixels(values[..., None])):
        assert pixels.mean() == pytest.approx(GREY.mean(), abs=1)
    values[0, 0] = np.inf
    assert array_to_pixels(values).mean() == pytest.approx(GREY.mean(), abs=1)


def test_a_stated_range_goes_before_the_usual_one(tmp_path):
    """A dark photo of 12 bits stays dark."""
    dark = np.round(GREY / 8 * 4095 / 255).astype(np.uint16)
    content = tf.io.encode_png(dark[..., None]).numpy()
    chunk = b"sBIT\x0c"
    chunk = b"\0\0\0\x01" + chunk + zlib.crc32(chunk).to_bytes(4)
    (tmp_path / "x.png").write_bytes(content[:33] + chunk + content[33:])  # after the header
    Image.fromarray(dark.astype(np.int32)).save(tmp_path / "x.tif", tiffinfo={281: 4095})
    for name in ("x.png", "x.tif"):
        assert load_image(tmp_path / name).mean() == pytest.approx(GREY.mean() / 8, abs=1), name


def test_the_caller_s_own_photo_stays_as_it_was(tmp_path):
    Image.new("RGB", (2400, 1800)).save(tmp_path / "x.jpg")
    image = Image.open(tmp_path / "x.jpg")
    image_to_pixels(image)
    assert image.size == (2400, 1800)


def test_a_large_jpeg_is_decoded_small(tmp_path):
    """Decoding at a quarter, then resizing, shows what decoding in full does, but for rounding."""
    scene = noise(12, 16).resize((2400, 1800), Image.Resampling.BICUBIC)
    scene.save(tmp_path / "large.jpg", quality=95)
    full = Image.open(tmp_path / "large.jpg").convert("RGB")
    full = np.asarray(full.resize((224, 224), Image.Resampling.BICUBIC), float)
    difference = np.abs(load_image(tmp_path / "large.jpg") - full)
    assert 0 < difference.mean() < 1  # of 255; not 0, or it was decoded in full
    assert difference.max() < 16


# -- features --------------------------------------------------------------------------------------


def test_lite0_names_what_is_in_a_photo():
    """scikit-learn's two photos, with the classifier that belongs to the shipped weights."""
    classifier = np.load(ROOT / "tests" / "efficientnet_lite0_classifier.npz")
    kernel = classifier["kernel"].astype(np.float32)  # (1280, 1000)
    encoder = Encoder("efficientnet_lite0")
    pixels = np.stack([load_image(path) for path in load_sample_images().filenames])
    features = encoder.encode(pixels)
    assert (features @ kernel + classifier["bias"]).argmax(axis=1).tolist() == [442, 985]
    # A lone image runs op by op, a batch compiled: the same network.
    np.testing.assert_allclose(encoder.encode(pixels[:1]), features[:1], rtol=1e-3, atol=1e-4)


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


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Keras' folder of weights, empty, on a machine without a network."""
    monkeypatch.setattr("keras.src.backend.config._KERAS_DIR", str(tmp_path / "keras"))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    urllib.request.install_opener(None)  # one that was used already keeps its proxies
    (tmp_path / "keras" / "models").mkdir(parents=True)
    yield tmp_path / "keras" / "models"
    urllib.request.install_opener(None)


def preprocess(small, tmp_path, *options, code=0):
    """The command with its default encoder, on a photo of each split."""
    folders = ("--dataset_dir", small / "dataset", "--output_dir", tmp_path / "data")
    options = ("--limit", 1, "--min_word_count", 1, *options)
    return run_here("preprocess.py", *folders, *options, code=code)


def check_features(small, tmp_path, vgg16, names, shape) -> str:
    """Whether they are what those layers of the network say of the photos; its weights' hash."""
    content = joblib.load(tmp_path / "data" / "features.pkl")
    photos = [small / "dataset" / "Images" / name for name in content["image_ids"]]
    bgr = np.stack([load_image(photo)[..., ::-1] for photo in photos])
    network = keras.Model(vgg16.input, [vgg16.get_layer(name).output for name in names])
    found = keras.tree.flatten(network(bgr - np.float32([103.939, 116.779, 123.68])))
    found = [x.numpy().reshape(len(x), -1, x.shape[-1]) for x in found]  # (B, cells, channels)
    if len(names) > 1:
        means = [x.mean(axis=1) for x in found]
        found = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in means]
    expected = np.concatenate(found, axis=-1).reshape(3, *shape)
    limits = {"rtol": 1e-3, "atol": 1e-3 * expected.std()}
    np.testing.assert_allclose(content["features"], expected, **limits)
    assert not np.allclose(expected[0], expected[1], **limits)
    return content["weights_hash"]


def test_preprocess_with_vgg16_whose_weights_keras_has(small, vgg16, cache, tmp_path, monkeypatch):
    """The command of the first page; the real file's MD5 sum is not to be had for made weights."""
    file = cache / VGG16_FILE
    write_official_layout(file, vgg16.layers)
    monkeypatch.setattr("keras.src.utils.file_utils.validate_file", lambda path, *_, **__: True)
    preprocess(small, tmp_path)
    check_features(small, tmp_path, vgg16, ["fc2"], (4096,))
    file.unlink()  # half a gigabyte


@pytest.mark.long
def test_preprocess_with_vgg16_from_files_of_both_layouts(small, vgg16, tmp_path):
    older, newer = tmp_path / "older.h5", tmp_path / "newer.weights.h5"
    write_official_layout(older, vgg16.layers)
    vgg16.save_weights(newer)
    preprocess(small, tmp_path, "--weights", older, "--features", "layers")
    names = ["fc2", "block5_pool", "block4_pool", "block3_pool"]
    one = check_features(small, tmp_path, vgg16, names, (5376,))
    preprocess(small, tmp_path, "--weights", newer, "--features", "grid")
    assert check_features(small, tmp_path, vgg16, ["block5_pool"], (49, 512)) == one
    older.unlink()
    newer.unlink()


def test_vgg16_weights_that_cannot_be_had_or_do_not_fit(small, vgg16, cache, tmp_path):
    write_official_layout(tmp_path / "notop.h5", vgg16.layers[:-4])
    (tmp_path / "text.h5").write_text("not HDF5")
    for weights, messages in {
        "imagenet": ["VGG16's weights could not be downloaded", "--weights FILE", "--encoder eff"],
        tmp_path / "missing.h5": ["no such file"],
        tmp_path / "text.h5": ["does not fit VGG16"],
        tmp_path / "notop.h5": ["not 'notop'"],
    }.items():
        said = preprocess(small, tmp_path, "--weights", weights, code=1).stderr
        assert "error: " in said
        assert all(message in said for message in messages), said
    assert not (tmp_path / "data").exists()
