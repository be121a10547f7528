"""The frozen CNNs, from pixels to features.

TensorFlow is imported where it is needed: listing the encoders does without it.
"""

import contextlib
import hashlib
import re
import sys
from collections import defaultdict

import numpy as np
from PIL import Image

from captioning.files import InputError, is_file, one_line
from captioning.lite import LITES, build_lite, scale_lite

# Functions of keras.applications. Their preprocessing, sizes and layers are found in Keras itself.
FUNCTIONS = """
    ConvNeXtBase ConvNeXtLarge ConvNeXtSmall ConvNeXtTiny ConvNeXtXLarge
    DenseNet121 DenseNet169 DenseNet201
    EfficientNetB0 EfficientNetB1 EfficientNetB2 EfficientNetB3
    EfficientNetB4 EfficientNetB5 EfficientNetB6 EfficientNetB7
    EfficientNetV2B0 EfficientNetV2B1 EfficientNetV2B2 EfficientNetV2B3
    EfficientNetV2L EfficientNetV2M EfficientNetV2S
    InceptionResNetV2 InceptionV3
    MobileNet MobileNetV2 MobileNetV3Large MobileNetV3Small
    NASNetLarge NASNetMobile
    ResNet101 ResNet101V2 ResNet152 ResNet152V2 ResNet50 ResNet50V2
    VGG16 VGG19
    Xception
"""
APPLICATIONS = {name.lower(): name for name in FUNCTIONS.split()}
ENCODERS = (*LITES, *APPLICATIONS)
# The layers whose maps are taken, where they are not those that `last_maps` finds.
VGG_MAPS = ("block5_pool", "block4_pool", "block3_pool")
MAPS = {"vgg16": VGG_MAPS, "vgg19": VGG_MAPS} | {name: lite.maps for name, lite in LITES.items()}
KINDS = ("pooled", "layers", "grid")  # of features
GRID_SIDE = 6  # cells
GRID_CELLS = GRID_SIDE**2  # of a photo, row by row
LITE_SIZE = 384  # pixels, at which maps are taken of EfficientNet-Lite


class Encoder:
    """A frozen CNN from pixels to features, an array of `features_shape` for each image.

    The kind "pooled" is what its classifier reads: the average of the last map, or VGG's fc2,
    (4096,). "layers" adds the averages of earlier maps, which know more of colours and textures,
    each of length 1: (1904,) of EfficientNet-Lite0. "grid" is the same of each of 6 × 6 cells, of
    maps alone: (36, 1904). It is of `dtype` np.float16, for it is large; the others are np.float32.
    """

    def __init__(
        self,
        name: str = "vgg16",
        weights: str = "imagenet",
        kind: str = "pooled",
        photo_size: int = 0,
        precision: str = "float32",
    ):
        """Build one of `ENCODERS`; raises InputError if its weights cannot be loaded or used.

        `precision` is the one with which TensorFlow was loaded, for the record. Photos are reduced
        to a side of `photo_size` pixels before anything else; 0 is the size that the network sees.
        A captioner that was trained on smaller photos must not see larger ones.
        """
        import keras
        import tensorflow as tf

        if name not in ENCODERS or kind not in KINDS:
            raise InputError(
                f"no encoder {name}, {kind}: choose one of {', '.join(ENCODERS)}, and one of "
                f"{', '.join(KINDS)}"
            )
        self.name, self.weights, self.kind, self.precision = name, str(weights), kind, precision
        if self.weights == "random":  # for tests; the same features in every process
            keras.utils.set_random_seed(0)
        elif self.weights != "imagenet" and not is_file(self.weights):
            raise InputError(f'--weights {weights}: no such file. Give "imagenet" or an .h5 file.')
        if name in LITES:  # their maps are of the photo enlarged
            network = build_lite(name, self.weights, 0 if kind == "pooled" else LITE_SIZE)
            scale = scale_lite
        else:
            network, scale = build_application(name, self.weights)
        digest = hashlib.sha256(name.encode())  # of the weights, whatever file they came from
        for variable in network.weights:  # one by one: VGG16's are half a gigabyte
            digest.update(np.ascontiguousarray(variable))
        self.weights_hash = digest.hexdigest()
        self.image_size = network.input_shape[1]
        self.photo_size = photo_size or self.image_size
        self.dtype = np.dtype(np.float16 if kind == "grid" else np.float32)
        if kind != "pooled":
            maps = [network.get_layer(layer).output for layer in MAPS.get(name, ())]
            features = side_by_side(network.output, maps or last_maps(network), kind)
            network = keras.Model(network.input, features)
        self.network, self.features_shape = network, network.output_shape[1:]
        batch = tf.TensorSpec((None, self.image_size, self.image_size, 3), tf.uint8)
        self._scale = scale
        self._run_compiled = tf.function(self.run, input_signature=[batch])

    def run(self, pixels):
        """Tensors: pixels (B, image_size, image_size, 3) uint8 -> (B, *features_shape) float32."""
        import tensorflow as tf

        return self.network(self._scale(tf.cast(pixels, tf.float32)))

    def encode(self, images: np.ndarray) -> np.ndarray:
        """Features of a batch: (B, S, S, 3) uint8 -> (B, *features_shape) of `dtype`.

        A lone image runs op by op: tracing the network takes longer than running it once.
        """
        run = self.run if len(images) == 1 else self._run_compiled
        if self.image_size != images.shape[1]:
            images = np.stack([enlarge(pixels, self.image_size) for pixels in images])
        return run(images).numpy().astype(self.dtype, copy=False)


def enlarge(pixels: np.ndarray, size: int) -> np.ndarray:
    """(S, S, 3) uint8 -> (size, size, 3).

    Test-time upscaling (FixRes): the CNN was trained on crops, in which things are larger than in
    whole photos, and recognises them better at that size (Touvron et al. 2019).
    """
    return np.asarray(Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC))


def side_by_side(vector, maps: list, kind: str):
    """The features of the kind "layers", (B, C), or "grid", (B, 36, C).

    They are made of the network's own vector (B, D) and its maps (B, side, side, channels), the
    last map first. Each part is scaled to length 1.
    """
    from keras import layers

    if kind == "grid":
        pool = layers.AdaptiveAveragePooling2D(GRID_SIDE)  # (B, 6, 6, channels); cells may overlap
        parts = [layers.Reshape((GRID_CELLS, x.shape[-1]))(pool(x)) for x in maps]
    else:
        # As wide as the last map, the vector is that map's average already.
        maps = maps[1:] if vector.shape[-1] == maps[0].shape[-1] else maps
        parts = [vector, *(layers.GlobalAveragePooling2D()(x) for x in maps)]
    return layers.Concatenate()([layers.UnitNormalization()(part) for part in parts])


def last_maps(network) -> list:
    """Maps (B, side, side, channels) of the network's three smallest sides, the smallest first.

    Of each side it is the last from which all smaller maps and the network's output are made: the
    end of a stage, or what the next stage's first layers make of it, but never a single branch.
    """
    from keras import layers, tree

    made_from = {}  # of each output: itself and all that it is made from
    maps = defaultdict(list)  # of each side, in the order of computation
    for layer in network.layers:
        x, all_before = layer.output, set(made_from)
        # A network within the network has inputs of its own: it may be made from all before.
        sources = [made_from.get(id(y), all_before) for y in tree.flatten(layer.input)]
        made_from[id(x)] = {id(x)}.union(*sources)
        is_map = len(x.shape) == 4 and x.shape[1] > 1  # not squeezed to 1 × 1
        if is_map and not isinstance(layer, layers.ZeroPadding2D):
            maps[x.shape[1]].append(x)
    found, needed = [], made_from[id(network.output)]
    for side in sorted(maps)[:3]:
        found.append([x for x in maps[side] if id(x) in needed][-1])
        needed = needed.intersection(*(made_from[id(x)] for x in maps[side]))
    return found


def build_application(name: str, weights: str):
    """A network of Keras Applications, up to what its classifier reads, (B, D), and its scaling.

    The scaling is of pixels (B, S, S, 3), float32, 0–255 RGB.
    """
    import keras

    function = getattr(keras.applications, APPLICATIONS[name])
    module = sys.modules[function.__module__]
    scale, known = module.preprocess_input, weights in ("imagenet", "random")
    if name.startswith("efficientnetb") and not known:
        scale = scale_efficientnet
    # MobileNetV3 takes any size unless one is given; it was trained on this.
    options = {"input_shape": (224, 224, 3)} if name.startswith("mobilenetv3") else {}
    try:
        with contextlib.redirect_stdout(sys.stderr):  # a download's bar is not output
            network = function(weights=None if weights == "random" else weights, **options)
    except Exception as error:  # Keras raises a bare Exception when its download fails
        raise weights_error(APPLICATIONS[name], weights, str(error)) from error
    classifier = [layer for layer in network.layers if layer.weights][-1]
    vector = keras.layers.Flatten(name="pooled")(classifier.input)  # of (B, D), or (B, 1, 1, D)
    return keras.Model(network.input, vector), scale


def weights_error(network: str, weights: str, reason: str) -> InputError:
    """What to do where Keras cannot download or load the weights of one of its networks."""
    if weights != "imagenet":
        return InputError(
            f"{weights} does not fit {network} ({one_line(reason.partition(chr(10))[0])}). Use the "
            f"file of Keras' {network} with its classifier (not 'notop'), or a .weights.h5 of it."
        )
    fix = "Give the same command again"  # a download was cut off
    if url := re.search(r"https:\S+\.h5", reason):
        file = url[0].rsplit("/")[-1].replace("NASNet-", "nasnet_")  # as Keras calls it here
        fix = (
            f"Place {url[0]} into ~/.keras/models as {file}, or name that file with --weights FILE"
        )
    return InputError(
        f"{network}'s weights could not be downloaded ({one_line(reason.rsplit(' -- ')[-1])}).\n"
        f"{fix}, or use --encoder efficientnet_lite0: its weights are included."
    )


def scale_efficientnet(pixels):
    """Pixels (B, S, S, 3) as EfficientNet's first layer must get them where weights are a file's.

    That layer computes (pixels / 255 − mean) / std. Where weights are called "imagenet", Keras adds
    one that divides by √std; without it the same weights would give other features.
    """
    mean, std = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
    return 255 * ((pixels / 255 - mean) / np.sqrt(std) + mean)
