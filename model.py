"""The caption network, its .h5 file, and the Captioner that puts it to use."""

import logging
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from captions import MAX_CAPTION_WORDS, Vocabulary
from cli import LENGTH_PENALTY
from decoding import NEVER, beam_search
from encoders import ENCODERS, Encoder, image_to_pixels, load_image
from files import InputError
from model_file import open_model, read_arrays, read_description, write_model

# Keras calls HDF5 "legacy" at every save; here it is the format asked for.
logging.getLogger("absl").setLevel(logging.ERROR)

DECODING_BATCH = 256  # images decoded at once: enough to fill the cores, and memory stays bounded
# The largest sizes that a captioner may have: beyond them stands a mistake or an attack.
LIMITS = {
    "feature_size": 2**20,
    "vocabulary_size": 2**20,
    "max_length": MAX_CAPTION_WORDS,
    "embedding_size": 2**14,
    "units": 2**14,
}


@dataclass(frozen=True)
class CaptionerConfig:
    """The few numbers that, with the weights and the vocabulary, make a captioner.

    Raises:
        InputError: one is not of its type, or out of its range.
    """

    feature_size: int
    vocabulary_size: int
    max_length: int  # words in the longest training caption: decoding stops there
    encoder: str  # which CNN made the features
    weights_hash: str  # of that CNN, as `Encoder.weights_hash`
    embedding_size: int = 256
    units: int = 256
    dropout: float = 0.5
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
        if self.encoder not in ENCODERS:
            raise InputError(
                f"its encoder is {self.encoder!r:.50}, not one of {', '.join(ENCODERS)}"
            )

    def count_parameters(self) -> int:
        """The network's parameters, counted without building it."""
        image = (self.feature_size + 1) * self.units
        lstm = 4 * self.units * (self.embedding_size + self.units + 1)
        merged = (self.units + 1) * self.units
        logits = (self.units + 1) * self.vocabulary_size
        return image + self.vocabulary_size * self.embedding_size + lstm + merged + logits


def build_captioner(config: CaptionerConfig, log_frequencies: np.ndarray | None = None):
    """The merge network (Tanti et al. 2017): image and words meet after the LSTM.

    Args:
        config: sizes and dropout.
        log_frequencies: (vocabulary_size,) start of the output bias, so that the untrained network
            already knows how common each word is; zeros when not given.

    Returns:
        A Keras model from features (B, feature_size) float32 and tokens (B, T) int32 to logits
        (B, T, vocabulary_size) float32 of each next token.
    """
    units, vocabulary_size = config.units, config.vocabulary_size
    bias = "zeros" if log_frequencies is None else keras.initializers.Constant(log_frequencies)
    features = keras.Input((config.feature_size,), name="features")  # (B, feature_size)
    tokens = keras.Input((None,), dtype="int32", name="tokens")  # (B, T)
    # Unit length, as Tanti et al. have it: raw features are so large that the image branch learns
    # the training photos by heart.
    image = layers.UnitNormalization(name="image_norm")(features)
    image = layers.Dropout(config.dropout, name="image_dropout")(image)
    image = layers.Dense(units, activation="relu", name="image")(image)  # (B, units)
    image = layers.Reshape((1, units), name="image_step")(image)  # (B, 1, units)
    words = layers.Embedding(vocabulary_size, config.embedding_size, name="embedding")(tokens)
    words = layers.Dropout(config.dropout, name="word_dropout")(words)  # (B, T, embedding_size)
    words = layers.LSTM(units, return_sequences=True, name="lstm")(words)  # (B, T, units)
    merged = layers.Add(name="merge")([image, words])  # (B, T, units)
    merged = layers.Dense(units, activation="relu", name="merged")(merged)  # (B, T, units)
    merged = layers.Dropout(config.dropout, name="merged_dropout")(merged)
    logits = layers.Dense(vocabulary_size, bias_initializer=bias, name="logits")(merged)
    return keras.Model([features, tokens], logits, name="captioner")  # (B, T, vocabulary_size)


class Captioner:
    """A trained network with its vocabulary: features or photos in, sentences out.

    >>> Captioner.load("models/caption_model.h5").caption("x.jpg")  # doctest: +SKIP
    'a dog runs through the grass'
    """

    def __init__(self, network: keras.Model, vocabulary: Vocabulary, config: CaptionerConfig):
        self.network = network
        self.vocabulary = vocabulary
        self.config = config
        self.encoder_weights = "imagenet"
        self._encoder: Encoder | None = None

    # -- the .h5 file --------------------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        """Write one .h5, all that captioning needs but the encoder's weights."""
        write_model(path, self.network, self.vocabulary.words, asdict(self.config))

    @classmethod
    def load(cls, path: str | Path, weights: str = "imagenet") -> "Captioner":
        """Read a captioner; its encoder is built when the first photo comes.

        Args:
            path: an .h5 that `save` wrote; one from elsewhere cannot do harm.
            weights: the encoder's, as in `Encoder`.

        Raises:
            InputError: the file is missing or is no captioner.
        """
        with open_model(path) as file:
            words, description = read_description(file)
            config = CaptionerConfig(**description)
            vocabulary = Vocabulary(words)
            if len(vocabulary) != config.vocabulary_size:
                raise InputError(f"{len(vocabulary)} words for {config.vocabulary_size} outputs")
            if 4 * config.count_parameters() > Path(path).stat().st_size:  # before they are built
                raise InputError(f"too small for its {config.count_parameters()} parameters")
            network = build_captioner(config)
            read_arrays(file, network)
        captioner = cls(network, vocabulary, config)
        captioner.encoder_weights = weights
        return captioner

    def check_features(self, encoder: str, weights_hash: str) -> None:
        """Make sure that features are of the kind the captioner was trained on.

        Raises:
            InputError: they come from another encoder, or from other weights of it.
        """
        if (encoder, weights_hash) != (self.config.encoder, self.config.weights_hash):
            raise InputError(
                f"the features are of {encoder} ({weights_hash[:8]}), but the captioner was "
                f"trained on {self.config.encoder} ({self.config.weights_hash[:8]}). Run "
                f"preprocess.py with that encoder and those weights."
            )

    # -- captions ------------------------------------------------------------------------------

    @property
    def encoder(self) -> Encoder:
        """The CNN that the training features came from.

        Raises:
            InputError: its weights cannot be had, or are not those used in training.
        """
        if self._encoder is None:
            encoder = Encoder(self.config.encoder, self.encoder_weights)
            if encoder.weights_hash != self.config.weights_hash:
                raise InputError(
                    f"the {encoder.name} weights ({self.encoder_weights}) are not those the "
                    f"captioner was trained with. Name the same ones with --weights."
                )
            if encoder.feature_size != self.config.feature_size:
                raise InputError(
                    f"the captioner takes {self.config.feature_size} floats an image, not the "
                    f"{encoder.feature_size} of {encoder.name}."
                )
            self._encoder = encoder
        return self._encoder

    def caption(self, image, beam_size: int = 1) -> str:
        """Caption one image: a path, a PIL image, or (224, 224, 3) uint8 pixels."""
        if isinstance(image, str | Path):
            pixels = load_image(image)
        elif isinstance(image, np.ndarray):
            pixels = image
        else:
            pixels = image_to_pixels(image)
        return self.caption_features(self.encoder.encode(pixels[None]), beam_size)[0]

    def caption_features(
        self, features: np.ndarray, beam_size: int = 1, length_penalty: float = LENGTH_PENALTY
    ) -> list[str]:
        """Caption a batch: features (N, feature_size) float32 -> N sentences."""
        return [beam[0][0] for beam in self.decode(features, beam_size, length_penalty)]

    def decode(
        self, features: np.ndarray, beam_size: int = 1, length_penalty: float = LENGTH_PENALTY
    ) -> list[list[tuple[str, float]]]:
        """The beam of every image, best first: (sentence, summed log-probability) pairs.

        Args:
            features: (N, feature_size) float32.
            beam_size: hypotheses kept at each step; 1 is greedy decoding.
            length_penalty: see `decoding.beam_search`.
        """
        penalty = tf.constant(length_penalty, tf.float32)  # as a tensor: a new value, no new trace
        beams = []
        for start in range(0, len(features), DECODING_BATCH):
            batch = np.asarray(features[start : start + DECODING_BATCH], np.float32)
            tokens, scores = self._search(batch, beam_size, penalty)
            for lines, line_scores in zip(tokens.numpy(), scores.numpy(), strict=True):  # (K, …)
                found = zip(lines, line_scores, strict=True)
                beams.append([(self.vocabulary.decode(t), float(s)) for t, s in found if s > NEVER])
        return beams

    @tf.function(reduce_retracing=True)
    def _search(self, features, beam_size, length_penalty):
        batch_size = features.shape[0]  # None once batches of several sizes have come
        if batch_size is None:
            batch_size = tf.shape(features)[0]
        image = self.network.get_layer("image_norm")(features)  # (B, feature_size)
        image = self.network.get_layer("image")(image)  # (B, units)
        image = tf.repeat(image, beam_size, axis=0)  # (B * K, units)
        nothing = tf.zeros_like(image)  # the LSTM's state before the first word
        return beam_search(
            self._step,
            (image, nothing, nothing),
            batch_size,
            beam_size,
            self.config.max_length,
            length_penalty,
        )

    def _step(self, tokens, state):
        """One word on: tokens (W,), state 3 × (W, units) -> log-probabilities (W, V), state."""
        layer = self.network.get_layer
        image, hidden, carry = state
        words = layer("embedding")(tokens)  # (W, embedding_size)
        _, (hidden, carry) = layer("lstm").cell(words, (hidden, carry))  # (W, units) each
        logits = layer("logits")(layer("merged")(image + hidden))  # (W, V)
        return tf.nn.log_softmax(logits), (image, hidden, carry)
