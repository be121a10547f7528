"""The merge network of the paper, and the Captioner: a decoder put to use, in one .h5 file."""

import functools
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path

try:
    import keras

    found = keras.backend.backend(), keras.config.dtype_policy().name
    found += (keras.config.image_data_format(),)
    if found != ("tensorflow", "float32", "channels_last"):
        raise ImportError(f"it is set to {', '.join(found)}")
except ImportError as error:  # of a backend, perhaps, that another project has set
    if error.name == "keras":  # is not installed
        raise
    raise ImportError(
        f"Keras must be set to tensorflow, float32 and channels_last ({error}): set KERAS_BACKEND, "
        f"or ~/.keras/keras.json, before it is imported"
    ) from None

import numpy as np
import tensorflow as tf
from keras import layers

from captioning.beams import Beams, Caption, rank
from captioning.captioner import (
    DECODING_BATCH,
    BaseCaptioner,
    check_beam_size,
    check_neighbours,
    parse_description,
)
from captioning.captions import LENGTH_PENALTY, Vocabulary
from captioning.confidence import Calibration
from captioning.config import CaptionerConfig
from captioning.decoder import LSTM, Decoder, Ensemble, LSTMDecoder
from captioning.decoding import beam_search
from captioning.encoders import Encoder
from captioning.features import finite
from captioning.files import InputError, check_h5, is_onnx
from captioning.model_file import (
    EXTRAS,
    not_a_captioner,
    open_model,
    read_arrays,
    read_description,
    write_model,
)
from captioning.neighbours import Neighbours
from captioning.updown import UpDownDecoder


class MergeDecoder(LSTMDecoder):
    """The LSTM reads words alone; the photo is added to what it has read (Tanti et al. 2017).

    features (B, feature_size) ─ FeatureInput ─ Dense, relu ───────────────┐
    tokens (B, T) ─ Embedding ─ dropout ─ LSTM (B, T, units) ─ [Dense] ─ Add ─ Dense, relu ─
    dropout ─ Dense ─ logits (B, T, vocabulary_size)

    Since the LSTM never sees the photo, one pass over a whole caption gives the loss and the
    gradients of all its prefixes.
    """

    kinds = ("pooled", "layers")

    def build(self, config) -> None:
        width = config.merge_units
        self.image_input = self.add_feature_input("image")
        self.image = layers.Dense(width, activation="relu", name="image")
        self.image_step = layers.Reshape((1, width), name="image_step")
        self.lstm = LSTM(config.units, return_sequences=True, name="lstm")
        # Projects the LSTM's output to the width of the sum, where they differ.
        self.words = layers.Dense(width, name="words") if config.units != width else None
        self.merge = layers.Add(name="merge")
        self.merged = layers.Dense(width, activation="relu", name="merged")
        # With as much dropout as before the LSTM, captions were more general.
        self.merged_dropout = self.add_dropout("merged", 0.6 * config.dropout)

    def project(self, features, training=None):
        """Features (B, feature_size) -> the photo's summand (B, 1, merge_units)."""
        return self.image_step(self.image(self.image_input(features, training)))

    def combine(self, image, hidden):
        """The photo's summand and the LSTM's output (B, T, units) -> logits (B, T, V)."""
        words = self.words(hidden) if self.words else hidden  # (B, T, merge_units)
        merged = self.merged(self.merge([image, words]))  # (B, T, merge_units)
        return self.logits(self.merged_dropout(merged))


# What --decoder offers (its names are in cli.DECODER_NAMES too) and a captioner's file may name.
DECODERS = {"merge": MergeDecoder, "updown": UpDownDecoder}


def count_parameters(config: CaptionerConfig) -> int:
    """The parameters of a network of `config`; none is made."""

    def count() -> int:
        with keras.StatelessScope(initialize_variables=False):
            return build_decoder(replace(config, members=1)).network.count_params()

    # Keras creates the variables that a thread has put off when it builds its next network. So
    # this thread is one of its own.
    with ThreadPoolExecutor(1) as pool:
        return config.members * pool.submit(count).result()


def build_decoder(config: CaptionerConfig, log_frequencies=None) -> Decoder | Ensemble:
    """The network of `config`, untrained; for `log_frequencies` see `Decoder`.

    Raises InputError if there is no such decoder, or it takes no such features.
    """
    config.check_choice("decoder", DECODERS)
    decoder = DECODERS[config.decoder]
    config.check_choice("features", decoder.kinds)
    if config.members == 1:
        return decoder(config, log_frequencies)
    alone, numbers = replace(config, members=1), range(1, config.members + 1)
    return Ensemble([decoder(alone, name=f"member{number}") for number in numbers], config)


@dataclass(eq=False)
class Captioner(BaseCaptioner):
    """A trained decoder with its vocabulary: features or photos in, sentences out.

    >>> Captioner.load("models/caption_model.h5").caption("x.jpg")  # doctest: +SKIP
    'a dog runs through the grass'
    """

    decoder: Decoder | Ensemble
    vocabulary: Vocabulary
    config: CaptionerConfig
    encoder_weights: str = "imagenet"  # as in `Encoder`
    photos: np.ndarray | None = None  # hashes of the training photos' pixels, uint64; None: unknown
    neighbours: Neighbours | None = None  # by which a beam is put into another order
    calibration: Calibration | None = None  # from which captions have their confidence

    def __post_init__(self):
        # Its scalars are tensors, so that another value of them is no new trace.
        self._compiled_search = tf.function(self.search_tensors, reduce_retracing=True)

    def save(self, path: str | Path, half: bool = False) -> None:
        """Write one .h5, all that captioning needs but the encoder's weights; `half` as float16."""
        words, config, network = self.vocabulary.words, asdict(self.config), self.decoder.network
        extras = {name: getattr(self, name) for name in EXTRAS}
        write_model(path, network, words, config, extras, half)

    @classmethod
    def load(cls, path: str | Path, weights: str = "imagenet") -> BaseCaptioner:
        """Read what `save` wrote, or export.py.

        Of what a file from elsewhere can do see docs/security.md. The encoder is built when the
        first photo comes; an .onnx has its own. Raises InputError if the file is missing or is no
        captioner.
        """
        if is_onnx(path):
            from captioning.onnx_captioner import OnnxCaptioner

            return OnnxCaptioner.load(path, weights)
        return cls.load_h5(path, weights)

    @classmethod
    def load_h5(cls, path: str | Path, weights: str = "imagenet") -> "Captioner":
        """As `load`, but an .h5 alone, for what needs more than captions of photos."""
        check_h5(path)
        with open_model(path) as file:  # in such a block every fault is the file's
            words, description, extras = read_description(file)
        try:
            vocabulary, config = parse_description(words, description)
            check_neighbours(extras["neighbours"], config)
            parameters = count_parameters(config)
        except InputError as error:
            raise not_a_captioner(path, error) from error
        if 2 * parameters > Path(path).stat().st_size:  # before they are built
            raise not_a_captioner(path, f"too small for its {parameters} parameters")
        decoder = build_decoder(config)
        with open_model(path) as file:
            read_arrays(file, decoder.network)
        return cls(decoder, vocabulary, config, weights, **extras)

    def check_features(self, features: dict) -> None:
        """Make sure that the content of features.pkl is what the captioner was trained on.

        Raises InputError if they come from another encoder, or other weights of it, or are of
        another kind or size.
        """
        config, shape = self.config, features["features"].shape[1:]
        if (features["kind"], shape) != (config.features, config.features_shape):
            raise InputError(
                f"the features are {features['kind']} {shape} for each image, but the captioner "
                f"takes {config.features} {config.features_shape}. Run preprocess.py with "
                f"--encoder {config.encoder} --features {config.features} "
                f"--photo_size {config.photo_size}."
            )
        if features["photo_size"] != config.photo_size:
            raise InputError(
                f"the features are of photos reduced to {features['photo_size']} pixels, those "
                f"that the captioner learnt from to {config.photo_size}. Run preprocess.py with "
                f"--photo_size {config.photo_size}."
            )
        encoder, weights_hash = features["encoder"], features["weights_hash"]
        if (encoder, weights_hash) != (config.encoder, config.weights_hash):
            raise InputError(
                f"the features are of {encoder} ({weights_hash[:8]}), but the captioner was "
                f"trained on {config.encoder} ({config.weights_hash[:8]}). Run preprocess.py with "
                f"that encoder and those weights."
            )

    @functools.cached_property
    def encoder(self) -> Encoder:
        """The CNN that the training features came from.

        Raises InputError if its weights cannot be loaded, or are not those used in training.
        """
        config = self.config
        encoder = Encoder(config.encoder, self.encoder_weights, config.features, config.photo_size)
        if encoder.weights_hash != self.config.weights_hash:
            raise InputError(
                f"the {encoder.name} weights ({self.encoder_weights}) are not those the "
                f"captioner was trained with. Name the same ones with --weights."
            )
        return encoder

    def search(
        self, pixels: np.ndarray, beam_size: int, length_penalty: float
    ) -> tuple[Beams, np.ndarray]:
        features = finite(self.encoder.encode(pixels))  # (B, *config.features_shape)
        return self.search_features(features, beam_size, length_penalty), features

    def caption_features(
        self,
        features: np.ndarray,
        beam_size: int | None = None,
        length_penalty: float = LENGTH_PENALTY,
    ) -> list[str]:
        """Caption a batch: features (N, *config.features_shape) -> N sentences."""
        return [beam[0].text for beam in self.decode(features, beam_size, length_penalty)]

    def decode(
        self,
        features: np.ndarray,
        beam_size: int | None = None,
        length_penalty: float = LENGTH_PENALTY,
    ) -> list[list[Caption]]:
        """The beam of every image, best first: sentences, log-probabilities, and confidence.

        Features are (N, *config.features_shape); for the rest see `decoding.beam_search`. Without
        a size, it is `self.beam_size`. Raises InputError if a feature is NaN or infinite.
        """
        size = self.beam_size if beam_size is None else beam_size
        found = []
        for start in range(0, len(features), DECODING_BATCH):
            batch = finite(features[start : start + DECODING_BATCH])
            beams = self.search_features(batch, size, length_penalty)
            found += self.in_words(rank(beams, batch, self.neighbours, length_penalty))
        return found

    def search_features(self, features: np.ndarray, beam_size: int, length_penalty: float) -> Beams:
        """What `decoding.beam_search` finds of features (B, …), as arrays."""
        check_beam_size(beam_size)
        size, penalty = tf.constant(beam_size), tf.constant(length_penalty, tf.float32)
        found = self._compiled_search(features, size, penalty)
        return Beams(*(None if each is None else each.numpy() for each in found))

    def search_tensors(self, features, beam_size, length_penalty) -> Beams:
        """The same of tensors, to tensors: features (B, …) and two scalars; export.py traces it."""
        decoder, longest = self.decoder, self.config.max_length
        state = decoder.init_state(features)
        state = tf.nest.map_structure(lambda part: tf.repeat(part, beam_size, axis=0), state)
        count = features.shape[0] or tf.shape(features)[0]  # known until sizes have varied
        sizes = count, beam_size, longest, length_penalty
        return beam_search(decoder.step, state, *sizes, decoder.attention)
