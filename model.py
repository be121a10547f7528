"""The merge network of the paper, and the Captioner: a decoder put to use, in one .h5 file."""

import functools
from concurrent.futures import ThreadPoolExecutor
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from pathlib import Path

try:
    import keras

    found = keras.backend.backend(), keras.config.dtype_policy().name
    found += (keras.config.image_data_format(),)
    if found != ("tensorflow", "float32", "channels_last"):
        raise ImportError(f"it is set to {', '.join(found)}")
except ImportError as error:  # of a backend, perhaps, that another project has set
    raise ImportError(
        f"Keras must be set to tensorflow, float32 and channels_last ({error}): set KERAS_BACKEND, "
        f"or ~/.keras/keras.json, before it is imported"
    ) from None

import numpy as np
import tensorflow as tf
from keras import layers
from PIL import Image

from captioning.beams import NEIGHBOURS_BEAM, Caption, to_captions
from captioning.captions import LENGTH_PENALTY, MAX_CAPTION_WORDS, Vocabulary
from captioning.confidence import Calibration
from captioning.decoder import LSTM, Decoder, Ensemble, LSTMDecoder
from captioning.decoding import beam_search
from captioning.encoders import ENCODERS, GRID_CELLS, Encoder
from captioning.features import finite
from captioning.files import InputError
from captioning.images import array_to_pixels, image_to_pixels, load_image
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
# Upper bounds for the sizes read from a file: beyond them is a mistake or an attack.
LIMITS = dict.fromkeys(("feature_size", "vocabulary_size"), 2**20)
LIMITS |= dict.fromkeys(("embedding_size", "units", "merge_units"), 2**14)
LIMITS |= {"photo_size": 2**10, "max_length": MAX_CAPTION_WORDS, "members": 2**4}
DECODING_BATCH = 256  # images decoded at once: enough to fill the cores, and memory stays bounded


@dataclass(frozen=True)
class CaptionerConfig:
    """The few numbers that, with the weights and the vocabulary, make a captioner.

    Raises InputError if one is not of its type, or out of its range.
    """

    feature_size: int  # floats per image, or per cell of its grid
    vocabulary_size: int
    max_length: int  # words in the longest training caption: decoding stops there
    encoder: str  # which CNN made the features
    weights_hash: str  # of that CNN, as `Encoder.weights_hash`
    features: str = "pooled"  # their kind, as `Encoder.kind`
    photo_size: int = 224  # pixels, the side that photos are reduced to, as `Encoder.photo_size`
    embedding_size: int = 256
    units: int = 256  # of the LSTM
    merge_units: int = 256  # of the layers where image and words are added
    dropout: float = 0.5
    decoder: str = "merge"  # a key of `DECODERS`, which takes such features
    members: int = 1  # networks of these sizes, whose logits are averaged
    training: dict = field(default_factory=dict)  # settings and best dev loss, for people to read

    def __post_init__(self):
        for known in fields(self):
            kind, value = known.type, getattr(self, known.name)
            if type(value) is not kind:
                raise InputError(f"{known.name} is {value!r:.50}, not of type {kind.__name__}")
        for name, limit in LIMITS.items():
            if not 1 <= getattr(self, name) <= limit:
                raise InputError(f"{name} is {getattr(self, name)}, not between 1 and {limit}")
        if not 0 <= self.dropout < 1:
            raise InputError(f"dropout is {self.dropout}, not from 0 to below 1")
        if self.decoder == "attention":
            raise InputError(
                "its decoder was removed: python preprocess.py --features grid, then "
                "python train.py --decoder updown"
            )
        kinds = DECODERS[self.decoder].kinds if self.decoder in DECODERS else ()
        for name, known in (("encoder", ENCODERS), ("decoder", DECODERS), ("features", kinds)):
            if (value := getattr(self, name)) not in known:
                raise InputError(f"its {name} is {value!r:.50}, not one of {', '.join(known)}")

    @classmethod
    def parse(cls, description: dict) -> "CaptionerConfig":
        """The numbers that a file holds; raises InputError if one is unknown, or is not there."""
        known = {each.name for each in fields(cls)}
        needed = {f.name for f in fields(cls) if {f.default, f.default_factory} == {MISSING}}
        if wrong := (needed - description.keys()) | (description.keys() - known):
            raise InputError(f"its config lacks, or should not have, {', '.join(sorted(wrong))}")
        return cls(**description)

    @property
    def features_shape(self) -> tuple[int, ...]:
        """Of one image's features: (feature_size,), or (cells, feature_size) of a grid."""
        return (GRID_CELLS,) * (self.features == "grid") + (self.feature_size,)

    def count_parameters(self) -> int:
        """The network's parameters; none is made."""

        def count() -> int:
            with keras.StatelessScope(initialize_variables=False):
                return build_decoder(replace(self, members=1)).network.count_params()

        # Keras creates the variables that a thread has put off when it builds its next network. So
        # this thread is one of its own.
        with ThreadPoolExecutor(1) as pool:
            return self.members * pool.submit(count).result()


def build_decoder(config: CaptionerConfig, log_frequencies=None) -> Decoder | Ensemble:
    """The network of `config`, untrained; for `log_frequencies` see `Decoder`."""
    decoder = DECODERS[config.decoder]
    if config.members == 1:
        return decoder(config, log_frequencies)
    alone, numbers = replace(config, members=1), range(1, config.members + 1)
    return Ensemble([decoder(alone, name=f"member{number}") for number in numbers], config)


@dataclass(eq=False)
class Captioner:
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

    def save(self, path: str | Path, half: bool = False) -> None:
        """Write one .h5, all that captioning needs but the encoder's weights; `half` as float16."""
        words, config, network = self.vocabulary.words, asdict(self.config), self.decoder.network
        extras = {name: getattr(self, name) for name in EXTRAS}
        write_model(path, network, words, config, extras, half)

    @classmethod
    def load(cls, path: str | Path, weights: str = "imagenet") -> "Captioner":
        """Read what `save` wrote; a file from elsewhere cannot do harm.

        The encoder is built when the first photo comes. Raises InputError if the file is missing
        or is no captioner.
        """
        with open_model(path) as file:  # in such a block every fault is the file's
            words, description, extras = read_description(file)
        neighbours = extras["neighbours"]
        try:
            vocabulary, config = Vocabulary(words), CaptionerConfig.parse(description)
            if len(vocabulary) != config.vocabulary_size:
                raise InputError(f"{len(vocabulary)} words for {config.vocabulary_size} outputs")
            if neighbours and len(neighbours.mean) != config.feature_size:
                raise InputError(f"its neighbours' features are of {len(neighbours.mean)} floats")
        except InputError as error:
            raise not_a_captioner(path, error) from error
        parameters = config.count_parameters()
        if 2 * parameters > Path(path).stat().st_size:  # before they are built
            raise not_a_captioner(path, f"too small for its {parameters} parameters")
        decoder = build_decoder(config)
        with open_model(path) as file:
            read_arrays(file, decoder.network)
        return cls(decoder, vocabulary, config, weights, **extras)

    @property
    def beam_size(self) -> int:
        """Hypotheses kept where nothing else is said: with neighbours there is to be a choice."""
        return NEIGHBOURS_BEAM if self.neighbours else 1

    def forget_neighbours(self) -> None:
        """Rank by probability alone; a confidence that was fitted with neighbours goes as well."""
        if self.neighbours:
            self.neighbours = self.calibration = None

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
                f"--encoder {config.encoder} --features {config.features}."
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

    def caption(self, image, beam_size: int | None = None) -> str:
        """Caption one image: a path, a PIL image, or an array (H, W[, 1, 3 or 4])."""
        if isinstance(image, str | Path):
            pixels = load_image(image, self.config.photo_size)
        else:
            read = image_to_pixels if isinstance(image, Image.Image) else array_to_pixels
            pixels = read(image, self.config.photo_size)
        return self.caption_features(self.encoder.encode(pixels[None]), beam_size)[0]

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
        search = self._searches(self.beam_size if beam_size is None else beam_size)
        penalty = tf.constant(length_penalty, tf.float32)  # as a tensor: a new value, no new trace
        known = self.neighbours, self.calibration
        beams = []
        for start in range(0, len(features), DECODING_BATCH):
            batch = finite(features[start : start + DECODING_BATCH])
            tokens, scores = (each.numpy() for each in search(batch, penalty))  # (B, K, …), (B, K)
            beams += to_captions(tokens, scores, self.vocabulary, length_penalty, batch, *known)
        return beams

    @functools.cached_property
    def _searches(self):
        """By beam size, a compiled search: TensorFlow warns of one that is traced for each size."""
        return functools.cache(
            lambda size: tf.function(functools.partial(self._search, size), reduce_retracing=True)
        )

    def _search(self, beam_size: int, features, length_penalty):
        """Features (B, …) and a scalar -> tokens (B, K, max_length) and scores (B, K)."""
        state = self.decoder.init_state(features)
        state = tf.nest.map_structure(lambda part: tf.repeat(part, beam_size, axis=0), state)
        count = features.shape[0] or tf.shape(features)[0]  # known until sizes have varied
        max_length = self.config.max_length
        return beam_search(self.decoder.step, state, count, beam_size, max_length, length_penalty)

    def explain(
        self, features: np.ndarray, caption: str
    ) -> tuple[list[str], np.ndarray, np.ndarray | None]:
        """How probable each word of a caption was after those before it, and where it looked.

        Features (1, *config.features_shape) and a sentence from `decode` -> the T words, <end>
        among them where the network produced it; their probabilities (T,), whose product is the
        caption's; the cells' weights (T, cells), or None without attention.
        """
        # Only a caption of max_length words ends without END.
        ids = np.array([self.vocabulary.encode(caption)[: self.config.max_length + 1]], np.int32)
        tokens, targets = ids[:, :-1], ids[0, 1:]  # (1, T), (T,)
        logits = self.decoder.network([features, tokens])  # (1, T, V)
        probabilities = tf.nn.softmax(logits[0]).numpy()  # (T, V)
        weights = self.decoder.attention(features, tokens)  # (1, T, cells)
        words = [self.vocabulary.words[i] for i in targets]
        weights = None if weights is None else np.asarray(weights[0])
        return words, probabilities[np.arange(len(targets)), targets], weights
