"""The Captioner: a caption network put to use, in one .h5 file."""

import logging
from dataclasses import asdict
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from captioning.captions import Vocabulary
from captioning.cli import LENGTH_PENALTY
from captioning.decoding import NEVER, beam_search
from captioning.encoders import Encoder, image_to_pixels, load_image
from captioning.files import InputError
from captioning.model_file import open_model, read_arrays, read_description, write_model
from captioning.networks import (
    CaptionerConfig,
    attention_weights,
    build_captioner,
    first_state,
    next_word,
)

# Keras calls HDF5 "legacy" at every save; here it is the format asked for.
logging.getLogger("absl").setLevel(logging.ERROR)

DECODING_BATCH = 256  # images decoded at once: enough to fill the cores, and memory stays bounded


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

    def save(self, path: str | Path, half: bool = False) -> None:
        """Write one .h5, all that captioning needs but the encoder's weights; `half` as float16."""
        write_model(path, self.network, self.vocabulary.words, asdict(self.config), half)

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
            if 2 * config.count_parameters() > Path(path).stat().st_size:  # before they are built
                raise InputError(f"too small for its {config.count_parameters()} parameters")
            network = build_captioner(config)
            read_arrays(file, network)
        captioner = cls(network, vocabulary, config)
        captioner.encoder_weights = weights
        return captioner

    def check_features(self, features: dict) -> None:
        """Make sure that features.pkl's are of the kind the captioner was trained on.

        Raises:
            InputError: they come from another encoder, or other weights of it, or are of another
                kind or size.
        """
        config, shape = self.config, features["features"].shape[1:]
        if (features["kind"], shape) != (config.features, config.features_shape):
            raise InputError(
                f"the features are {features['kind']} {shape} for each image, but the captioner "
                f"takes {config.features} {config.features_shape}. Run preprocess.py with "
                f"--encoder {config.encoder} --features {config.features}."
            )
        encoder, weights_hash = features["encoder"], features["weights_hash"]
        if (encoder, weights_hash) != (config.encoder, config.weights_hash):
            raise InputError(
                f"the features are of {encoder} ({weights_hash[:8]}), but the captioner was "
                f"trained on {config.encoder} ({config.weights_hash[:8]}). Run preprocess.py with "
                f"that encoder and those weights."
            )

    # -- captions ------------------------------------------------------------------------------

    @property
    def encoder(self) -> Encoder:
        """The CNN that the training features came from.

        Raises:
            InputError: its weights cannot be had, or are not those used in training.
        """
        if self._encoder is None:
            encoder = Encoder(self.config.encoder, self.encoder_weights, self.config.features)
            if encoder.weights_hash != self.config.weights_hash:
                raise InputError(
                    f"the {encoder.name} weights ({self.encoder_weights}) are not those the "
                    f"captioner was trained with. Name the same ones with --weights."
                )
            if encoder.features_shape != self.config.features_shape:
                raise InputError(
                    f"the captioner takes {self.config.features_shape} floats an image, not the "
                    f"{encoder.features_shape} of {encoder.name}."
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
        """Caption a batch: features (N, *config.features_shape) -> N sentences."""
        return [beam[0][0] for beam in self.decode(features, beam_size, length_penalty)]

    def decode(
        self, features: np.ndarray, beam_size: int = 1, length_penalty: float = LENGTH_PENALTY
    ) -> list[list[tuple[str, float]]]:
        """The beam of every image, best first: (sentence, summed log-probability) pairs.

        Args:
            features: (N, *config.features_shape).
            beam_size: hypotheses kept at each step; 1 is greedy decoding.
            length_penalty: see `decoding.beam_search`.
        """
        penalty = tf.constant(length_penalty, tf.float32)  # as a tensor: a new value, no new trace
        beams = []
        for start in range(0, len(features), DECODING_BATCH):
            batch = np.asarray(features[start : start + DECODING_BATCH])
            tokens, scores = self._search(batch, beam_size, penalty)
            for lines, line_scores in zip(tokens.numpy(), scores.numpy(), strict=True):  # (K, …)
                found = zip(lines, line_scores, strict=True)
                beams.append([(self.vocabulary.decode(t), float(s)) for t, s in found if s > NEVER])
        return beams

    def explain(
        self, features: np.ndarray, caption: str
    ) -> tuple[list[str], np.ndarray, np.ndarray | None]:
        """How probable each word of a caption was after those before it, and where it looked.

        Args:
            features: (1, *config.features_shape), of one image.
            caption: a sentence from `decode`.

        Returns:
            The T words, <end> among them where the network said it; their probabilities (T,),
            whose product is the caption's; the cells' weights (T, cells), or None without
            attention.
        """
        # Only a caption of max_length words ends without END.
        ids = np.array([self.vocabulary.encode(caption)[: self.config.max_length + 1]], np.int32)
        tokens, said = ids[:, :-1], ids[0, 1:]  # (1, T), (T,)
        probabilities = tf.nn.softmax(self.network([features, tokens])[0]).numpy()  # (T, V)
        weights = None
        if self.config.decoder == "attention":
            weights = attention_weights(self.network, features, tokens)[0]
        words = [self.vocabulary.words[i] for i in said]
        return words, probabilities[np.arange(len(said)), said], weights

    @tf.function(reduce_retracing=True)
    def _search(self, features, beam_size, length_penalty):
        return beam_search(
            self._step,
            first_state(self.network, features, beam_size),
            _count(features),
            beam_size,
            self.config.max_length,
            length_penalty,
        )

    def _step(self, tokens, state):
        return next_word(self.network, tokens, state)


def _count(features) -> int | tf.Tensor:
    """The number of images; a tensor once batches of several sizes have come."""
    return features.shape[0] or tf.shape(features)[0]
