"""EfficientNet-Lite (Tan & Le 2019): EfficientNet without squeeze-excitation, with ReLU6.

TensorFlow is imported where it is needed.
"""

from functools import partial
from typing import NamedTuple

from captioning.files import ROOT, InputError, one_line

# EfficientNet-B0's stages: kernel, stride of the first block, and expansion.
STAGES = ((3, 1, 1), (3, 2, 6), (5, 2, 6), (3, 2, 6), (5, 1, 6), (5, 2, 6), (3, 1, 6))
STEM, TOP = 32, 1280  # channels of the first and the last convolution


class Lite(NamedTuple):
    """What tells one of the networks from another, and their file in models/."""

    size: int  # pixels, of the photos that its classifier was trained on
    blocks: tuple[int, ...]  # of each stage
    channels: tuple[int, ...]

    @property
    def maps(self) -> tuple[str, ...]:
        """The layers whose maps make features, the last one first."""
        ends = (f"stage{stage}_block{self.blocks[stage - 1]}_add" for stage in (6, 5))
        return ("grid", "stage7_block1_project", *ends)


LITES = {
    "efficientnet_lite0": Lite(224, (1, 2, 2, 3, 3, 4, 1), (16, 24, 40, 80, 112, 192, 320)),
    "efficientnet_lite2": Lite(260, (1, 3, 3, 4, 4, 5, 1), (16, 24, 48, 88, 120, 208, 352)),
}


def weights_file(name: str):
    """Where the weights of one of the `LITES` are."""
    return ROOT / "models" / f"{name}.h5"


def build_lite(name: str, weights: str, size: int = 0):
    """One of the `LITES` up to its averaged last map (layer `grid`, of 224 pixels 7 × 7 × 1280).

    Photos (B, size, size, 3) are of its own size where none is given. Batch normalisation is folded
    into the convolutions: a frozen network needs no more than a kernel and a bias. Raises
    InputError if the weights, "imagenet", "random" or a file, cannot be loaded.
    """
    from keras import Input, Model, layers

    lite, options = LITES[name], {"padding": "same", "activation": "relu6"}
    conv = partial(layers.Conv2D, kernel_initializer="he_normal", **options)
    depthwise = partial(layers.DepthwiseConv2D, depthwise_initializer="he_normal", **options)
    size = size or lite.size
    pixels = Input((size, size, 3))  # (B, 224, 224, 3), say
    x = conv(STEM, 3, strides=2, name="stem")(pixels)  # (B, 112, 112, 32)
    stages = zip(STAGES, lite.blocks, lite.channels, strict=True)
    for stage, ((kernel, stride, expansion), blocks, channels) in enumerate(stages, 1):
        for block in range(1, blocks + 1):
            label, inputs = f"stage{stage}_block{block}", x
            if expansion > 1:
                x = conv(x.shape[-1] * expansion, 1, name=f"{label}_expand")(x)
            x = depthwise(kernel, stride if block == 1 else 1, name=f"{label}_depthwise")(x)
            x = conv(channels, 1, activation=None, name=f"{label}_project")(x)
            if block > 1:  # same shape in and out
                x = layers.Add(name=f"{label}_add")([inputs, x])
    x = conv(TOP, 1, name="grid")(x)  # (B, 7, 7, 1280)
    features = layers.GlobalAveragePooling2D(name="features")(x)  # (B, 1280)
    network = Model(pixels, features, name=name)
    title = name.replace("efficientnet_lite", "EfficientNet-Lite")
    path, fix = weights, f"Name {title}'s weights, or leave --weights out"
    if weights == "imagenet":
        path, fix = weights_file(name), f"Restore it with: git checkout models/{name}.h5"
    try:
        if weights != "random":
            network.load_weights(path)
    except Exception as error:  # what Keras raises on another file is of many kinds
        reason = one_line(str(error).partition("\n")[0])
        raise InputError(f"{path} does not fit {title} ({reason}). {fix}.") from error
    return network


def scale_lite(pixels):
    """EfficientNet-Lite's scaling, 0–255 to about ±1. (B, S, S, 3) float32."""
    return (pixels - 127.0) / 128.0
