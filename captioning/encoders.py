"""The frozen CNNs, from pixels to features.

TensorFlow is imported where it is needed: listing the encoders does without it.
"""

import contextlib
import hashlib
import sys
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from captioning.files import ROOT, InputError, is_file
from captioning.images import IMAGE_SIZE

GRID_CELLS = 49  # of both encoders' last maps, 7 × 7, row by row
KINDS = ("pooled", "layers", "grid")  # of features
LITE0_WEIGHTS = ROOT / "models" / "efficientnet_lite0.h5"
VGG16_FILE = "vgg16_weights_tf_dim_ordering_tf_kernels.h5"
VGG16_URL = f"https://storage.googleapis.com/tensorflow/keras-applications/vgg16/{VGG16_FILE}"

# EfficientNet-B0's stages, as (blocks, kernel, stride of the first block, expansion, channels).
LITE0_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


class Encoder:
    """A frozen CNN from pixels to features.

    Attributes:
        name: "vgg16" or "efficientnet_lite0".
        kind: "pooled", the network's own vector for each image; "layers", a longer vector, with
            the averages of earlier layers, which know more of colours and textures, of the image
            enlarged to `image_size`; "grid", a vector for each of 7 × 7 cells.
        image_size: pixels, the side of what the network sees.
        features_shape: of one image: (4096,), fc2's output, or (1280,), the averaged grid; of
            layers (5376,) or (1904,); as a grid (49, 512), block5's output, or (49, 1280).
        dtype: np.float32; of grids np.float16, for they are forty times as large.
        weights: where its weights came from, as given.
        weights_hash: SHA-256 of the weights in use, whatever file they came from.
    """

    def __init__(self, name: str = "vgg16", weights: str = "imagenet", kind: str = "pooled"):
        """Build the network.

        Args:
            name: a key of `ENCODERS`.
            weights: "imagenet", a weights file, or "random" (for tests).
            kind: one of `KINDS`.

        Raises:
            InputError: unknown encoder, or weights that cannot be loaded or do not fit.
        """
        import keras
        import tensorflow as tf

        if name not in ENCODERS:
            raise InputError(f"unknown encoder {name!r}: choose one of {', '.join(ENCODERS)}")
        spec = ENCODERS[name]
        self.name, self.weights, self.kind = name, str(weights), kind
        network = spec.build(self.weights)
        digest = hashlib.sha256(name.encode())
        for variable in network.weights:  # one by one: VGG16's are half a gigabyte
            digest.update(np.ascontiguousarray(variable))
        self.weights_hash = digest.hexdigest()
        self.dtype = np.dtype(np.float32)
        self.image_size = IMAGE_SIZE
        if kind == "layers":
            network = keras.Model(network.input, _layers_vector(network, spec.layers))
            self.image_size = spec.enlarged
        elif kind == "grid":
            cells = network.get_layer(spec.grid_layer).output  # (B, 7, 7, channels)
            cells = keras.layers.Reshape((GRID_CELLS, cells.shape[-1]))(cells)
            network = keras.Model(network.input, cells)
            self.dtype = np.dtype(np.float16)
        self.network = network
        self.features_shape = tuple(network.output_shape[1:])
        spec_input = tf.TensorSpec((None, self.image_size, self.image_size, 3), tf.uint8)
        self._run = lambda pixels: self.network(spec.scale(tf.cast(pixels, tf.float32)))
        self._run_compiled = tf.function(self._run, input_signature=[spec_input])

    def encode(self, images: np.ndarray) -> np.ndarray:
        """Features of a batch: (B, 224, 224, 3) uint8 -> (B, *features_shape) of `dtype`.

        A lone image runs op by op: tracing the network takes longer than running it once.
        """
        run = self._run if len(images) == 1 else self._run_compiled
        if self.image_size != IMAGE_SIZE:
            images = np.stack([enlarge(pixels, self.image_size) for pixels in images])
        return run(images).numpy().astype(self.dtype, copy=False)


@dataclass(frozen=True)
class EncoderSpec:
    """How to build a network, scale its pixels (float32, 0–255 RGB), and what it gives."""

    build: Callable
    scale: Callable
    layers: tuple[str, ...]  # that make the vector of kind "layers"
    enlarged: int  # pixels, the side of the image that those see
    grid_layer: str  # whose output is 7 × 7


def enlarge(pixels: np.ndarray, size: int) -> np.ndarray:
    """(224, 224, 3) uint8 -> (size, size, 3).

    Test-time upscaling (FixRes): the CNN was trained on crops, in which things are larger than in
    whole photos, and recognises them better at that size (Touvron et al. 2019).
    """
    image = Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(image)


def _layers_vector(network, names: tuple[str, ...]):
    """The outputs of some layers, averaged over the image, each of length 1, side by side."""
    from keras import layers

    vectors = []
    for name in names:
        output = network.get_layer(name).output  # (B, height, width, channels) or (B, channels)
        if len(output.shape) == 4:
            output = layers.GlobalAveragePooling2D()(output)
        vectors.append(layers.UnitNormalization()(output))  # (B, channels)
    return layers.Concatenate()(vectors)


def build_vgg16(weights: str):
    """Keras Applications' VGG16 up to `fc2`, its second 4096-wide layer (after the ReLU)."""
    import keras

    if weights in ("imagenet", "random"):
        source = None if weights == "random" else weights
    else:
        source = _existing_file(weights)
    if weights == "random":
        keras.utils.set_random_seed(0)  # the same features in every process
    try:
        with contextlib.redirect_stdout(sys.stderr):  # a download's bar is not output
            network = keras.applications.VGG16(weights=source)
    except Exception as error:  # Keras raises a bare Exception when its download fails
        if weights == "imagenet":
            raise InputError(
                f"VGG16's weights could not be downloaded ({str(error).rsplit(' -- ')[-1]}).\n"
                f"Place {VGG16_URL} into ~/.keras/models, or name that file with --weights FILE, "
                f"or use --encoder efficientnet_lite0: its weights are included."
            ) from error
        raise InputError(
            f"{weights} does not fit VGG16 ({str(error).splitlines()[0]}). Use {VGG16_FILE}, "
            f"with its fully connected layers (not 'notop'), or a .weights.h5 of Keras' VGG16."
        ) from error
    return keras.Model(network.input, network.get_layer("fc2").output, name="vgg16_fc2")


def scale_vgg16(pixels):
    """VGG16's own preprocessing: BGR, less ImageNet's mean colour. (B, 224, 224, 3) float32."""
    import keras

    return keras.applications.vgg16.preprocess_input(pixels)


def build_lite0(weights: str):
    """EfficientNet-Lite0 up to its averaged 7 × 7 × 1280 grid (layer `grid`).

    EfficientNet-B0 (Tan & Le 2019) without squeeze-excitation and with ReLU6. Batch normalisation
    is folded into the convolutions: a frozen network needs no more than a kernel and a bias.
    """
    import keras
    from keras import layers

    if weights == "random":
        keras.utils.set_random_seed(0)
    conv = dict(padding="same", kernel_initializer="he_normal", activation="relu6")
    depthwise = dict(padding="same", depthwise_initializer="he_normal", activation="relu6")
    pixels = keras.Input((None, None, 3))  # (B, 224, 224, 3), or larger
    x = layers.Conv2D(32, 3, strides=2, name="stem", **conv)(pixels)  # (B, 112, 112, 32)
    for stage, (blocks, kernel, stride, expansion, channels) in enumerate(LITE0_STAGES, 1):
        for block in range(1, blocks + 1):
            name, inputs = f"stage{stage}_block{block}", x
            if expansion > 1:
                x = layers.Conv2D(x.shape[-1] * expansion, 1, name=f"{name}_expand", **conv)(x)
            strides = stride if block == 1 else 1
            x = layers.DepthwiseConv2D(kernel, strides, name=f"{name}_depthwise", **depthwise)(x)
            x = layers.Conv2D(channels, 1, name=f"{name}_project", **conv | {"activation": None})(x)
            if block > 1:  # same shape in and out
                x = layers.Add(name=f"{name}_add")([inputs, x])
    x = layers.Conv2D(1280, 1, name="grid", **conv)(x)  # (B, 7, 7, 1280)
    features = layers.GlobalAveragePooling2D(name="features")(x)  # (B, 1280)
    network = keras.Model(pixels, features, name="efficientnet_lite0")
    if weights != "random":
        path = LITE0_WEIGHTS if weights == "imagenet" else _existing_file(weights)
        try:
            network.load_weights(path)
        except (OSError, ValueError, KeyError) as error:
            fix = f"Restore it with: git checkout models/{LITE0_WEIGHTS.name}"
            if weights != "imagenet":
                fix = "Name EfficientNet-Lite0's weights, or leave --weights out"
            reason = str(error).splitlines()[0]
            raise InputError(
                f"{path} does not fit EfficientNet-Lite0 ({reason}). {fix}."
            ) from error
    return network


def scale_lite0(pixels):
    """EfficientNet-Lite's scaling, 0–255 to about ±1. (B, 224, 224, 3) float32."""
    return (pixels - 127.0) / 128.0


def _existing_file(weights: str) -> str:
    if not is_file(weights):
        raise InputError(f'--weights {weights}: no such file. Give "imagenet" or an .h5 file.')
    return weights


ENCODERS = {
    "vgg16": EncoderSpec(
        build_vgg16,
        scale_vgg16,
        layers=("fc2", "block5_pool", "block4_pool", "block3_pool"),
        enlarged=IMAGE_SIZE,  # fc1 takes no other
        grid_layer="block5_pool",
    ),
    "efficientnet_lite0": EncoderSpec(
        build_lite0,
        scale_lite0,
        layers=("features", "stage7_block1_project", "stage6_block4_add", "stage5_block3_add"),
        enlarged=384,
        grid_layer="grid",
    ),
}
