"""The caption networks: built for training on whole captions, run word by word when decoding."""

import math
from dataclasses import dataclass, field, fields, replace

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from captioning.captions import MAX_CAPTION_WORDS
from captioning.encoders import ENCODERS, GRID_CELLS
from captioning.files import InputError

# And the kinds of features that each one takes.
DECODERS = {"merge": ("pooled", "layers"), "attention": ("grid",)}
# Typical length of an image's vector before its Dense layer. With 1 Adam takes long to let the
# image in, and captions stay general (benchmarks/quality.md).
IMAGE_SCALE = 8.0
LEAST_VARIANCE = 0.1  # of a float of the features, as a share of the floats' mean variance
MERGED_DROPOUT = 0.6  # times the dropout before; with all of it captions were more general
# The largest sizes that a captioner may have: beyond them stands a mistake or an attack.
LIMITS = {
    "feature_size": 2**20,
    "vocabulary_size": 2**20,
    "max_length": MAX_CAPTION_WORDS,
    "embedding_size": 2**14,
    "units": 2**14,
    "merge_units": 2**14,
    "members": 2**4,
}


@dataclass(frozen=True)
class CaptionerConfig:
    """The few numbers that, with the weights and the vocabulary, make a captioner.

    Raises:
        InputError: one is not of its type, or out of its range.
    """

    feature_size: int  # floats an image, or a cell of its grid
    vocabulary_size: int
    max_length: int  # words in the longest training caption: decoding stops there
    encoder: str  # which CNN made the features
    weights_hash: str  # of that CNN, as `Encoder.weights_hash`
    features: str = "pooled"  # the features' kind, as `Encoder.kind`
    embedding_size: int = 256
    units: int = 256  # of the LSTM
    merge_units: int = 256  # of the layers where image and words meet
    dropout: float = 0.5
    decoder: str = "merge"  # one of `DECODERS`, which takes such features
    members: int = 1  # networks of these sizes, whose logits are averaged
    training: dict = field(default_factory=dict)  # settings and best dev loss, for people to read

    def __post_init__(self):
        for known in fields(self):
            value = getattr(self, known.name)
            if type(value) is not known.type:
                raise InputError(
                    f"{known.name} is {value!r:.50}, not of type {known.type.__name__}"
                )
        for name, limit in LIMITS.items():
            if not 1 <= getattr(self, name) <= limit:
                raise InputError(f"{name} is {getattr(self, name)}, not between 1 and {limit}")
        if not 0 <= self.dropout < 1:
            raise InputError(f"dropout is {self.dropout}, not from 0 to below 1")
        takes = DECODERS.get(self.decoder, ())
        for name, known in (("encoder", ENCODERS), ("decoder", DECODERS), ("features", takes)):
            if getattr(self, name) not in known:
                raise InputError(
                    f"its {name} is {getattr(self, name)!r:.50}, not one of {', '.join(known)}"
                )

    @property
    def features_shape(self) -> tuple[int, ...]:
        """Of one image's features: (feature_size,), or (cells, feature_size) for attention."""
        grid = (GRID_CELLS,) if self.features == "grid" else ()
        return (*grid, self.feature_size)

    def count_parameters(self) -> int:
        """The network's parameters, counted without building it."""
        width = self.merge_units
        image = 2 * self.feature_size + (self.feature_size + 1) * width
        lstm = 4 * self.units * (self.embedding_size + self.units + 1)
        words = (self.units + 1) * width if self.units != width else 0
        merged = (width + 1) * width
        logits = (width + 1) * self.vocabulary_size
        total = image + self.vocabulary_size * self.embedding_size + lstm + words + merged + logits
        if self.decoder == "attention":
            total += image + 2 * (width + 1) * width  # the cells, the keys and the query
        return total * self.members


def build_captioner(config: CaptionerConfig, log_frequencies: np.ndarray | None = None):
    """The network of `config`; of several members a network that holds theirs.

    Args:
        config: sizes and dropout.
        log_frequencies: (vocabulary_size,) start of a single network's output bias, so that,
            untrained, it already knows how common each word is; zeros when not given.

    Returns:
        A Keras model from features (B, *config.features_shape) and tokens (B, T) int32 to logits
        (B, T, vocabulary_size) float32 of each next token.
    """
    if config.members == 1:
        return _build_member(config, log_frequencies, "captioner")
    alone = replace(config, members=1)
    features = keras.Input(config.features_shape, name="features")
    tokens = keras.Input((None,), dtype="int32", name="tokens")  # (B, T)
    logits = [
        _build_member(alone, None, f"member{number}")([features, tokens])
        for number in range(1, config.members + 1)
    ]  # (B, T, vocabulary_size) each
    mean = layers.Average(name="mean")(logits)  # (B, T, vocabulary_size)
    return keras.Model([features, tokens], mean, name="captioner")


def members(network: keras.Model) -> list[keras.Model]:
    """The networks that `network` holds, or itself."""
    return [layer for layer in network.layers if isinstance(layer, keras.Model)] or [network]


def attention_weights(network: keras.Model, features, tokens) -> np.ndarray:
    """How much of each cell every word was given, on the members' average.

    Args:
        network: from `build_captioner`, its decoder "attention".
        features: (B, cells, feature_size).
        tokens: (B, T) int32.

    Returns:
        (B, T, cells) float32; a word's weights add up to 1.
    """
    each = [
        keras.Model(member.inputs, member.get_layer("attention").output)([features, tokens])
        for member in members(network)
    ]
    return np.mean(each, axis=0)


def _build_member(config: CaptionerConfig, log_frequencies: np.ndarray | None, name: str):
    """One network of `config.decoder`.

    "merge" (Tanti et al. 2017): image and words meet after the LSTM. "attention": the same, and
    what the LSTM has read chooses, at each word, which of the grid's cells are added. In both the
    LSTM sees words alone, so that whole captions pass at once.
    """
    width, vocabulary_size = config.merge_units, config.vocabulary_size
    bias = "zeros" if log_frequencies is None else keras.initializers.Constant(log_frequencies)
    features = keras.Input(config.features_shape, name="features")  # (B, [cells,] feature_size)
    tokens = keras.Input((None,), dtype="int32", name="tokens")  # (B, T)
    image = features
    if config.decoder == "attention":
        image = layers.GlobalAveragePooling1D(name="mean_cell")(features)  # (B, feature_size)
    image = _standard(image, "image")
    image = layers.Dropout(config.dropout, name="image_dropout")(image)
    image = layers.Dense(width, activation="relu", name="image")(image)  # (B, merge_units)
    image = layers.Reshape((1, width), name="image_step")(image)  # (B, 1, merge_units)
    words = layers.Embedding(vocabulary_size, config.embedding_size, name="embedding")(tokens)
    words = layers.Dropout(config.dropout, name="word_dropout")(words)  # (B, T, embedding_size)
    words = layers.LSTM(config.units, return_sequences=True, name="lstm")(words)  # (B, T, units)
    if config.units != width:
        words = layers.Dense(width, name="words")(words)  # (B, T, merge_units)
    meeting = [image, words]
    if config.decoder == "attention":
        meeting.append(_attend(config, features, words))  # (B, T, merge_units)
    merged = layers.Add(name="merge")(meeting)  # (B, T, merge_units)
    merged = layers.Dense(width, activation="relu", name="merged")(merged)  # (B, T, merge_units)
    merged = layers.Dropout(MERGED_DROPOUT * config.dropout, name="merged_dropout")(merged)
    logits = layers.Dense(vocabulary_size, bias_initializer=bias, name="logits")(merged)
    return keras.Model([features, tokens], logits, name=name)  # (B, T, vocabulary_size)


def _standard(vectors, name: str):
    """`vectors` (B, …, feature_size) of one length, less their mean, in standard deviations.

    The moments are those of the training images, by `standardize`, and stay as they are.
    """
    unit = layers.UnitNormalization(name=f"{name}_norm")(vectors)
    frozen = layers.BatchNormalization(
        epsilon=1e-6, center=False, scale=False, trainable=False, name=f"{name}_standard"
    )
    scale = IMAGE_SCALE / math.sqrt(vectors.shape[-1])
    return layers.Rescaling(scale, name=f"{name}_scale")(frozen(unit))


def _attend(config: CaptionerConfig, cells, words):
    """The cells (B, cells, feature_size) that `words` (B, T, merge_units) ask for, summed.

    One set of weights over the cells for each word (Xu et al. 2015, by dot products).
    """
    width = config.merge_units
    cells = _standard(cells, "cell")
    # The same floats of all cells are dropped: otherwise the neighbours would give them away.
    cells = layers.Dropout(config.dropout, (None, 1, None), name="cell_dropout")(cells)
    cells = layers.Dense(width, activation="relu", name="cells")(cells)  # (B, cells, merge_units)
    keys = layers.Dense(width, name="keys")(cells)  # (B, cells, merge_units)
    query = layers.Dense(width, name="query")(words)  # (B, T, merge_units)
    scores = layers.Dot(axes=2, name="scores")([query, keys])  # (B, T, cells)
    weights = layers.Softmax(name="attention")(scores)
    return layers.Dot(axes=(2, 1), name="attended")([weights, cells])  # (B, T, merge_units)


def standardize(network: keras.Model, features: np.ndarray, rows: list[int]) -> None:
    """Let the network see features as deviations from their mean, in standard deviations.

    Args:
        network: from `build_captioner`, new.
        features: (N, [cells,] feature_size).
        rows: of the training images, rising.
    """
    names = ["image_standard"] + ["cell_standard"] * (features.ndim == 3)
    total = np.zeros((len(names), 3, features.shape[-1]))  # counts, sums, sums of squares
    for start in range(0, len(rows), 256):  # a grid of all images would not fit into memory
        cells = np.asarray(features[rows[start : start + 256]], np.float64)
        images = cells.mean(axis=1) if features.ndim == 3 else cells  # (B, feature_size)
        for sums, values in zip(total, (images, cells), strict=False):
            values = values.reshape(-1, features.shape[-1])
            values /= np.linalg.norm(values, axis=1, keepdims=True) + 1e-9
            sums += [np.full_like(sums[0], len(values)), values.sum(0), np.square(values).sum(0)]
    for name, (count, first, second) in zip(names, total, strict=True):
        mean = first / count
        variance = second / count - mean**2
        # What hardly differs between these photos tells little of them and is not blown up.
        variance = np.maximum(variance, LEAST_VARIANCE * variance.mean())
        network.get_layer(name).set_weights([mean, variance])


# -- word by word ----------------------------------------------------------------------------------


def first_state(network: keras.Model, features, copies: int, training: bool = False) -> tuple:
    """All that a step needs, before the first word.

    Args:
        network: from `build_captioner`.
        features: (B, *config.features_shape).
        copies: captions begun of each image.
        training: with the features dropped that a step of training would drop.

    Returns:
        Of each member: the LSTM's hidden state and its carry, (B * copies, units) each; the
        image's part of the sum, (B * copies, merge_units); for attention also keys and cells
        (B * copies, cells, merge_units).
    """
    if training:  # each copy is dropped for itself
        features, copies = tf.repeat(features, copies, axis=0), 1
    features = tf.cast(features, tf.float32)
    states = [_first_state(member, features, training) for member in members(network)]
    return tf.nest.map_structure(lambda part: tf.repeat(part, copies, axis=0), tuple(states))


def _first_state(member: keras.Model, features, training: bool) -> tuple:
    layer = member.get_layer
    image = layer("mean_cell")(features) if features.shape.rank == 3 else features
    image = layer("image")(_prepared(member, image, "image", training))  # (B, merge_units)
    nothing = tf.zeros((tf.shape(image)[0], layer("lstm").units))
    if features.shape.rank < 3:
        return nothing, nothing, image
    cells = layer("cells")(_prepared(member, features, "cell", training))  # (B, cells, width)
    return nothing, nothing, image, layer("keys")(cells), cells


def _prepared(member: keras.Model, vectors, name: str, training: bool):
    """`vectors` as the Dense layer behind `_standard` and the dropout meets them."""
    for step in ("norm", "standard", "scale"):
        vectors = member.get_layer(f"{name}_{step}")(vectors)
    return member.get_layer(f"{name}_dropout")(vectors, training=training)


def next_word(network: keras.Model, tokens, state: tuple) -> tuple:
    """One word on: tokens (W,) int32 and state -> log-probabilities (W, V) and the next state."""
    steps = [
        _next_word(member, tokens, own) for member, own in zip(members(network), state, strict=True)
    ]
    logits, states = zip(*steps, strict=True)
    return tf.nn.log_softmax(tf.reduce_mean(logits, axis=0)), states


def _next_word(member: keras.Model, tokens, state: tuple) -> tuple:
    layer = member.get_layer
    hidden, carry, image, *grid = state
    words = layer("embedding")(tokens)  # (W, embedding_size)
    _, (hidden, carry) = layer("lstm").cell(words, (hidden, carry))  # (W, units) each
    read = hidden
    if hidden.shape[-1] != image.shape[-1]:
        read = layer("words")(hidden)  # (W, merge_units)
    merged = image + read  # (W, merge_units)
    if grid:
        keys, cells = grid  # (W, cells, merge_units) each
        query = layer("query")(read)[:, None]  # (W, 1, merge_units)
        weights = layer("attention")(layer("scores")([query, keys]))  # (W, 1, cells)
        merged += layer("attended")([weights, cells])[:, 0]
    logits = layer("logits")(layer("merged")(merged))  # (W, V)
    return logits, (hidden, carry, image, *grid)
