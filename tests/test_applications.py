"""The CNNs of Keras Applications: each with its own size, scaling and layers."""

import functools
import inspect
import multiprocessing
import re
from concurrent.futures import ProcessPoolExecutor

import keras
import numpy as np
import pytest
from helpers import ROOT, cells_of, of_length_1

from captioning.encoders import (
    APPLICATIONS,
    ENCODERS,
    MAPS,
    Encoder,
    build_application,
    last_maps,
    side_by_side,
    weights_error,
)
from captioning.lite import LITES

APPS = keras.applications
# Of each family its module and the last layers of the three smallest sides.
FAMILIES = {
    "mobilenetv2": (APPS.mobilenet_v2, "out_relu block_13_expand_relu block_6_expand_relu"),
    "resnet50v2": (APPS.resnet_v2, "post_relu conv4_block5_out conv3_block3_out"),
    "efficientnetv2b0": (
        APPS.efficientnet_v2,
        "top_activation block6a_expand_activation block4a_expand_activation",
    ),
}
SLOW = {"efficientnetv2b0", "mobilenetv2", "resnet50v2"}  # among these
LEFT_OUT = {
    *("efficientnetb6", "efficientnetb7", "efficientnetv2l"),  # take 5 to 9 GB for two photos
    "efficientnetv2m",  # of random weights is chaotic: float rounding changes all that it gives
}


def photos(count: int, size: int) -> np.ndarray:
    """Of smooth noise, (count, size, size, 3) uint8."""
    coarse = np.random.default_rng(0).integers(0, 256, (count, 10, 10, 3), np.uint8)
    return keras.ops.image.resize(coarse, (size, size)).numpy().astype(np.uint8)


def test_there_is_a_name_for_every_model_of_keras():
    models = {name for name, value in vars(APPS).items() if inspect.isfunction(value)}
    assert set(APPLICATIONS.values()) == models
    assert list(ENCODERS) == [*LITES, *(name.lower() for name in sorted(models))]


EACH = [pytest.param(name, marks=[pytest.mark.long] * (name in SLOW)) for name in FAMILIES]


@pytest.mark.parametrize("name", EACH)
def test_features_are_what_keras_own_network_says_of_pixels_scaled_by_keras(name, monkeypatch):
    module, layers = FAMILIES[name]
    function = functools.cache(getattr(APPS, APPLICATIONS[name]))  # one network for all kinds
    monkeypatch.setattr(APPS, APPLICATIONS[name], function)
    keras.utils.set_random_seed(0)
    network = function(weights=None)
    maps = [network.get_layer(layer).output for layer in layers.split()]
    pixels = photos(2, 224)
    scaled = module.preprocess_input(pixels.astype(np.float32))
    maps = [x.numpy() for x in keras.Model(network.input, maps)(scaled)]
    means = [x.mean(axis=(1, 2)) for x in maps]
    expected = {"pooled": means[0], "layers": of_length_1(means)}
    expected["grid"] = of_length_1(map(cells_of, maps))
    for kind, features in expected.items():
        encoder = Encoder(name, "random", kind)
        assert encoder.features_shape == features.shape[1:]
        found = encoder.encode(pixels if kind == "grid" else pixels[:1])
        limits = {"rtol": 2e-3, "atol": 2e-3 * features.std()}
        np.testing.assert_allclose(found, features[: len(found)], **limits)
        assert not np.allclose(features[0], features[1], **limits)


def test_a_file_to_be_placed_is_named_as_keras_names_it():
    """NASNet's has another name at its address."""
    for address, file in {
        "nasnet/NASNet-large.h5": "nasnet_large.h5",
        "x/x_v2.h5": "x_v2.h5",
    }.items():
        reason = f"URL fetch failure on https://host/{address}: None -- [Errno 111] refused"
        message = str(weights_error("X", "imagenet", reason))
        assert "X's weights could not be downloaded ([Errno 111] refused)" in message
        assert f"https://host/{address} into ~/.keras/models as {file}," in message


@pytest.mark.long
def test_efficientnet_s_file_is_scaled_as_the_download_is(cache, monkeypatch):
    """Keras changes the network for "imagenet" alone; the same file must give the same features."""
    network = APPS.EfficientNetB0(weights=None)
    mean, std = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
    (first,) = [x for x in network.layers if isinstance(x, keras.layers.Normalization)]
    first.set_weights([mean, np.square(std), np.int32(0)])
    network.save(cache / "efficientnetb0.h5")
    monkeypatch.setattr("keras.src.utils.file_utils.validate_file", lambda path, *_, **__: True)
    downloaded = Encoder("efficientnetb0")
    given = Encoder("efficientnetb0", cache / "efficientnetb0.h5")
    assert downloaded.weights_hash == given.weights_hash
    expected = downloaded.encode(photos(1, 224))
    limits = {"rtol": 1e-3, "atol": 1e-3 * expected.std()}
    np.testing.assert_allclose(given.encode(photos(1, 224)), expected, **limits)
    unscaled = given.network(photos(1, 224).astype(np.float32)).numpy()
    assert not np.allclose(unscaled, expected, rtol=0.1)


def measure(name: str) -> str:
    """A network's row in docs/encoders.md; fails where it gives no features."""
    keras.utils.set_random_seed(0)
    network, scale = build_application(name, "random")
    maps = [network.get_layer(layer).output for layer in MAPS.get(name, ())] or last_maps(network)
    kinds = [side_by_side(network.output, maps, kind) for kind in ("layers", "grid")]
    everything = keras.Model(network.input, [network.output, *kinds])
    size = network.input_shape[1]
    scaled = scale(keras.ops.cast(photos(2, size), "float32"))
    for both, alone in zip(everything(scaled), everything(scaled[:1]), strict=True):
        assert np.isfinite(both).all()
        assert np.ptp(both) > 0
        np.testing.assert_allclose(both[:1], alone, rtol=1e-2, atol=1e-3 * np.std(both))
    (pooled,), (layers,), grid = (output.shape[1:] for output in everything.outputs)
    sizes = f"{size} | {pooled:,} | {layers:,} | {grid[0]} × {grid[1]:,}"
    return f"{sizes} | {network.count_params() / 1e6:.1f}"


@pytest.mark.long
def test_every_network_gives_the_features_that_its_page_names():
    """Each but a few, in a process of its own, which gives its memory back."""
    text = (ROOT / "docs" / "encoders.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+)` \| (.+) \|$", text, re.M))
    assert rows.keys() == APPLICATIONS.keys()
    rows = {name: row for name, row in rows.items() if name not in LEFT_OUT}
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["keras"])
    with ProcessPoolExecutor(2, context, max_tasks_per_child=1) as pool:
        found = dict(zip(rows, pool.map(measure, rows), strict=True))
    assert found == rows
