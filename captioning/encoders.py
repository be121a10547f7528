"""The frozen CNNs, from pixels to features.

TensorFlow is imported where it is needed: listing the encoders does without it.
"""

import contextlib
import hashlib
import sys
from functools import partial
from types import SimpleNamespace

import numpy as np
from PIL import Image

from captioning.files import ROOT, InputError, is_file
from captioning.images import IMAGE_SIZE

GRID_SIDE = 6  # cells
GRID_CELLS = GRID_SIDE**2  # of a photo, row by row
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
    """A frozen CNN from pixels to features, an array of `features_shape` for each image.

    The kind "pooled" is its own vector: (4096,), fc2's output, or (1280,), the averaged grid.
    "layers" is a longer one, (5376,) or (1904,), with the averages of earlier layers, which know
    more of colours and textures, of the image enlarged to a side of `image_size` pixels. "grid" is
    the same of each of 6 × 6 cells: (36, 1280) or (36, 1904). Grids are thirty-six times as large,
    and so of `dtype` np.float16; the others are np.float32.
    """

    def __init__(
        self,
        name: str = "vgg16",
        weights: str = "imagenet",
        kind: str = "pooled",
        photo_size: int = 0,
    ):
        """Build one of `ENCODERS`; raises InputError if its weights cannot be loaded or used.

        Photos are reduced to a side of `photo_size` pixels before anything else; 0 is the size that
        the network sees. Who learnt from smaller photos is not to be shown more of others.
        """
        import keras
        import tensorflow as tf

        if name not in ENCODERS or kind not in KINDS:
            raise InputError(
                f"no encoder {name}, {kind}: choose one of {', '.join(ENCODERS)}, and one of "
                f"{', '.join(KINDS)}"
            )
        spec = ENCODERS[name]
        self.name, self.weights, self.kind = name, str(weights), kind
        if self.weights == "random":  # for tests; the same features in every process
            keras.utils.set_random_seed(0)
        elif self.weights != "imagenet" and not is_file(self.weights):
            raise InputError(f'--weights {weights}: no such file. Give "imagenet" or an .h5 file.')
        self.image_size = IMAGE_SIZE if kind == "pooled" else spec.enlarged
        network = spec.build(self.weights, self.image_size)
        digest = hashlib.sha256(name.encode())  # of the weights, whatever file they came from
        for variable in network.weights:  # one by one: VGG16's are half a gigabyte
            digest.update(np.ascontiguousarray(variable))
        self.weights_hash = digest.hexdigest()
        self.photo_size = photo_size or self.image_size
        self.dtype = np.dtype(np.float16 if kind == "grid" else np.float32)
        if kind != "pooled":  # averaged, each vector of length 1, side by side
            names = spec.layers if kind == "layers" else spec.grid_layers
            outputs = [network.get_layer(layer).output for layer in names]
            average = average_cells if kind == "grid" else keras.layers.GlobalAveragePooling2D()
            # Maps, (B, height, width, C), become (B, C), or (B, 36, C).
            vectors = [average(x) if len(x.shape) == 4 else x for x in outputs]
            vectors = [keras.layers.UnitNormalization()(vector) for vector in vectors]
            network = keras.Model(network.input, keras.layers.Concatenate()(vectors))
        self.network, self.features_shape = network, network.output_shape[1:]
        batch = tf.TensorSpec((None, self.image_size, self.image_size, 3), tf.uint8)
        self._run = lambda pixels: self.network(spec.scale(tf.cast(pixels, tf.float32)))
        self._run_compiled = tf.function(self._run, input_signature=[batch])

    def encode(self, images: np.ndarray) -> np.ndarray:
        """Features of a batch: (B, S, S, 3) uint8 -> (B, *features_shape) of `dtype`.

        A lone image runs op by op: tracing the network takes longer than running it once.
        """
        run = self._run if len(images) == 1 else self._run_compiled
        if self.image_size != images.shape[1]:
            images = np.stack([enlarge(pixels, self.image_size) for pixels in images])
        return run(images).numpy().astype(self.dtype, copy=False)


def average_cells(features):
    """A map (B, height, width, C) averaged to 6 × 6 cells, which may overlap: (B, 36, C)."""
    from keras import layers

    cells = layers.AdaptiveAveragePooling2D(GRID_SIDE)(features)  # (B, 6, 6, C)
    return layers.Reshape((GRID_CELLS, features.shape[-1]))(cells)


def enlarge(pixels: np.ndarray, size: int) -> np.ndarray:
    """(S, S, 3) uint8 -> (size, size, 3).

    Test-time upscaling (FixRes): the CNN was trained on crops, in which things are larger than in
    whole photos, and recognises them better at that size (Touvron et al. 2019).
    """
    return np.asarray(Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC))


def build_vgg16(weights: str, size: int):
    """Keras Applications' VGG16 up to `fc2`, its second 4096-wide layer (after the ReLU)."""
    import keras

    try:
        with contextlib.redirect_stdout(sys.stderr):  # a download's bar is not output
            network = keras.applications.VGG16(weights=None if weights == "random" else weights)
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


def build_lite0(weights: str, size: int = IMAGE_SIZE):
    """EfficientNet-Lite0 up to its averaged last map (layer `grid`, 7 × 7 × 1280).

    EfficientNet-B0 (Tan & Le 2019) without squeeze-excitation and with ReLU6. Batch normalisation
    is folded into the convolutions: a frozen network needs no more than a kernel and a bias.
    """
    from keras import Input, Model, layers

    options = {"padding": "same", "activation": "relu6"}
    conv = partial(layers.Conv2D, kernel_initializer="he_normal", **options)
    depthwise = partial(layers.DepthwiseConv2D, depthwise_initializer="he_normal", **options)
    pixels = Input((size, size, 3))  # (B, 224, 224, 3), or larger
    x = conv(32, 3, strides=2, name="stem")(pixels)  # (B, 112, 112, 32)
    for stage, (blocks, kernel, stride, expansion, channels) in enumerate(LITE0_STAGES, 1):
        for block in range(1, blocks + 1):
            name, inputs = f"stage{stage}_block{block}", x
            if expansion > 1:
                x = conv(x.shape[-1] * expansion, 1, name=f"{name}_expand")(x)
            x = depthwise(kernel, stride if block == 1 else 1, name=f"{name}_depthwise")(x)
            x = conv(channels, 1, activation=None, name=f"{name}_project")(x)
            if block > 1:  # same shape in and out
                x = layers.Add(name=f"{name}_add")([inputs, x])
    x = conv(1280, 1, name="grid")(x)  # (B, 7, 7, 1280)
    features = layers.GlobalAveragePooling2D(name="features")(x)  # (B, 1280)
    network = Model(pixels, features, name="efficientnet_lite0")
    path, fix = weights, "Name EfficientNet-Lite0's weights, or leave --weights out"
    if weights == "imagenet":
        path, fix = LITE0_WEIGHTS, f"Restore it with: git checkout models/{LITE0_WEIGHTS.name}"
    try:
        if weights != "random":
            network.load_weights(path)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{path} does not fit EfficientNet-Lite0 ({reason}). {fix}.") from error
    return network


def scale_lite0(pixels):
    """EfficientNet-Lite's scaling, 0–255 to about ±1. (B, 224, 224, 3) float32."""
    return (pixels - 127.0) / 128.0


ENCODERS = {
    "vgg16": SimpleNamespace(
        build=build_vgg16,
        scale=scale_vgg16,  # of pixels, float32, 0–255 RGB
        layers=("fc2", "block5_pool", "block4_pool", "block3_pool"),  # of the kind "layers"
        enlarged=IMAGE_SIZE,  # pixels, the side of what those see; fc1 takes no other
        grid_layers=("block5_pool", "block4_pool", "block3_pool"),
    ),
    "efficientnet_lite0": SimpleNamespace(
        build=build_lite0,
        scale=scale_lite0,
        layers=("features", "stage7_block1_project", "stage6_block4_add", "stage5_block3_add"),
        enlarged=384,
        grid_layers=("grid", "stage7_block1_project", "stage6_block4_add", "stage5_block3_add"),
    ),
}
