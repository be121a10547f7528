"""Images to pixels to features."""

import os

import h5py
import numpy as np
import pytest
from helpers import ROOT, run_script
from PIL import Image

from captioning.encoders import Encoder
from captioning.files import InputError
from captioning.images import IMAGE_SIZE, image_to_pixels, load_image


def write_image(path, image, **options):
    image.save(path, **options)
    return load_image(path)


@pytest.fixture
def photo():
    """Red on the left, blue on the right, twice as wide as high."""
    pixels = np.zeros((100, 200, 3), np.uint8)
    pixels[:, :100, 0] = 255
    pixels[:, 100:, 2] = 255
    return Image.fromarray(pixels)


def test_squashed_not_cropped(tmp_path, photo):
    pixels = write_image(tmp_path / "x.png", photo)
    assert pixels.shape == (IMAGE_SIZE, IMAGE_SIZE, 3)
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels[:, 0], [[255, 0, 0]] * IMAGE_SIZE)
    np.testing.assert_array_equal(pixels[:, -1], [[0, 0, 255]] * IMAGE_SIZE)


def test_an_image_of_the_right_size_is_untouched(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (224, 224, 3), np.uint8)
    pixels = write_image(tmp_path / "x.png", Image.fromarray(noise))
    np.testing.assert_array_equal(pixels, noise)


def test_reduction_is_antialiased():
    """One-pixel stripes become grey, not a beat of black and white."""
    stripes = np.zeros((1000, 1000, 3), np.uint8)
    stripes[:, ::2] = 255
    pixels = image_to_pixels(Image.fromarray(stripes)).astype(int)
    assert np.abs(pixels[8:-8, 8:-8] - 128).max() < 16


def test_exif_rotation_is_applied(tmp_path, photo):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise: the left side comes to the top
    pixels = write_image(tmp_path / "x.png", photo, exif=exif)
    np.testing.assert_array_equal(pixels[0, 100], [255, 0, 0])
    np.testing.assert_array_equal(pixels[-1, 100], [0, 0, 255])


@pytest.mark.parametrize(
    ("image", "colour"),
    [
        (Image.new("L", (9, 9), 128), (128, 128, 128)),
        (Image.new("1", (9, 9), 1), (255, 255, 255)),
        (Image.new("P", (9, 9), 0), (0, 0, 0)),
        (Image.new("RGBA", (9, 9), (0, 0, 255, 0)), (255, 255, 255)),  # transparent: white
        (Image.new("LA", (9, 9), (10, 255)), (10, 10, 10)),
        (Image.new("CMYK", (9, 9), (0, 255, 255, 0)), (255, 0, 0)),
        (Image.new("I;16", (9, 9), 32768), (127, 127, 127)),  # scaled, not clipped to white
        (Image.new("F", (9, 9), 64.0), (64, 64, 64)),
        (Image.new("RGB", (1, 1), (1, 2, 3)), (1, 2, 3)),
    ],
    ids=lambda value: getattr(value, "mode", ""),
)
def test_any_mode_becomes_rgb(image, colour):
    pixels = image_to_pixels(image)
    assert pixels.shape == (IMAGE_SIZE, IMAGE_SIZE, 3)
    np.testing.assert_array_equal(pixels.reshape(-1, 3), [colour] * IMAGE_SIZE**2)


def test_what_is_no_image_is_named(tmp_path, photo):
    photo.save(tmp_path / "whole.jpg")
    content = (tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "truncated.jpg").write_bytes(content[: len(content) // 2])
    (tmp_path / "text.jpg").write_text("not an image")
    (tmp_path / "empty.jpg").touch()
    os.mkfifo(tmp_path / "pipe.jpg")
    for name in ("truncated.jpg", "text.jpg", "empty.jpg", "pipe.jpg", "missing.jpg", "."):
        with pytest.raises(InputError, match=name):
            load_image(tmp_path / name)


def test_lite0_names_what_is_in_a_photo():
    """scikit-learn's two photos, with the classifier that belongs to the shipped weights."""
    from sklearn.datasets import load_sample_images

    classifier = np.load(ROOT / "tests" / "efficientnet_lite0_classifier.npz")
    kernel = classifier["kernel"].astype(np.float32)  # (1280, 1000)
    encoder = Encoder("efficientnet_lite0")
    pixels = np.stack([load_image(path) for path in load_sample_images().filenames])
    features = encoder.encode(pixels)
    assert features.shape == (2, 1280)
    assert (features @ kernel + classifier["bias"]).argmax(axis=1).tolist() == [442, 985]
    # A lone image runs op by op, a batch compiled: the same network.
    np.testing.assert_allclose(encoder.encode(pixels[:1]), features[:1], rtol=1e-3, atol=1e-4)
    assert encoder.network.get_layer("grid").output.shape[-1] == 1280
    assert encoder.weights_hash == Encoder("efficientnet_lite0").weights_hash
    assert encoder.weights_hash != Encoder("efficientnet_lite0", "random").weights_hash


@pytest.fixture(scope="module")
def vgg16():
    """Keras' own VGG16, its weights random: the real ones are 550 MB and need a download."""
    import keras

    keras.utils.set_random_seed(1)
    return keras.applications.VGG16(weights=None)


def write_official_layout(network, path, layers):
    """Weights alone, laid out as in Keras' official VGG16 file."""
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [layer.name.encode() for layer in layers]
        for layer in layers:
            names = [f"{layer.name}_{part}_1:0" for part in ("W", "b")][: len(layer.weights)]
            group = file.create_group(layer.name)
            group.attrs["weight_names"] = [name.encode() for name in names]
            for name, array in zip(names, layer.get_weights(), strict=True):
                group[name] = array


@pytest.mark.long
def test_vgg16_fc2_equals_keras_on_hand_computed_pixels(vgg16, tmp_path):
    import keras

    official = tmp_path / "vgg16_weights_tf_dim_ordering_tf_kernels.h5"
    write_official_layout(vgg16, official, vgg16.layers)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 224, 224, 3), np.uint8)
    by_hand = pixels[..., ::-1].astype(np.float32) - np.float32([103.939, 116.779, 123.68])
    fc2 = keras.Model(vgg16.input, vgg16.get_layer("fc2").output)
    expected = fc2.predict(by_hand, verbose=0)
    encoder = Encoder("vgg16", str(official))
    features = encoder.encode(pixels)
    assert features.shape == (2, 4096)
    assert features.dtype == np.float32
    np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-5)

    newer = tmp_path / "vgg16.weights.h5"
    official.unlink()
    vgg16.save_weights(newer)
    assert Encoder("vgg16", str(newer)).weights_hash == encoder.weights_hash


def test_vgg16_weights_that_do_not_fit(vgg16, tmp_path):
    with pytest.raises(InputError, match="no such file"):
        Encoder("vgg16", str(tmp_path / "missing.h5"))
    notop = tmp_path / "vgg16_notop.h5"
    write_official_layout(vgg16, notop, vgg16.layers[:-4])
    with pytest.raises(InputError, match="not 'notop'"):
        Encoder("vgg16", str(notop))
    (tmp_path / "text.h5").write_text("not HDF5")
    with pytest.raises(InputError, match="does not fit VGG16"):
        Encoder("vgg16", str(tmp_path / "text.h5"))


def test_a_failed_download_says_what_to_do(small, tmp_path):
    """A proxy that is not there stands for a missing network."""
    nowhere = {"https_proxy": "http://127.0.0.1:9", "KERAS_HOME": str(tmp_path / "keras")}
    done = run_script(
        *("preprocess.py", "--dataset_dir", small / "dataset", "--output_dir", tmp_path / "data"),
        code=1,
        env=os.environ | nowhere,
    )
    lines = done.stderr.strip().splitlines()[-2:]
    assert lines[0].startswith("error: VGG16's weights could not be downloaded")
    assert "--weights FILE" in lines[1]
    assert "--encoder efficientnet_lite0" in lines[1]
    assert not list((tmp_path / "data").glob("*.pkl"))


def test_a_large_jpeg_is_decoded_small(tmp_path):
    """Decoding at a quarter, then resizing, shows what decoding in full does, but for rounding."""
    random = np.random.default_rng(0)
    scene = Image.fromarray(random.integers(0, 256, (12, 16, 3), np.uint8))
    scene = scene.resize((2400, 1800), Image.Resampling.BICUBIC)
    scene.save(tmp_path / "large.jpg", quality=95)
    full = Image.open(tmp_path / "large.jpg").convert("RGB")
    full = np.asarray(full.resize((224, 224), Image.Resampling.BICUBIC), float)
    difference = np.abs(load_image(tmp_path / "large.jpg") - full)
    assert 0 < difference.mean() < 1  # of 255; not 0, or it was decoded in full
    assert difference.max() < 16
