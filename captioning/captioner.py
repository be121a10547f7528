"""What both captioners can do: that of an .h5 and that of an .onnx. TensorFlow is not needed."""

from abc import ABC, abstractmethod
from pathlib import Path

import numpy as np
from PIL import Image

from captioning.beams import NEIGHBOURS_BEAM, Beams, Caption, rank, to_captions
from captioning.captions import LENGTH_PENALTY, MAX_BEAM_SIZE, PADDING, Vocabulary
from captioning.confidence import Calibration
from captioning.config import CaptionerConfig
from captioning.files import InputError
from captioning.images import array_to_pixels, image_to_pixels, load_image
from captioning.neighbours import Neighbours

DECODING_BATCH = 256  # images decoded at once: enough to fill the cores, and memory stays bounded


class BaseCaptioner(ABC):
    """Photos in, sentences out. A subclass has these four fields, and `search`."""

    vocabulary: Vocabulary
    config: CaptionerConfig
    neighbours: Neighbours | None
    calibration: Calibration | None

    @abstractmethod
    def search(
        self, pixels: np.ndarray, beam_size: int, length_penalty: float
    ) -> tuple[Beams, np.ndarray]:
        """Photos' beams as `beam_search` finds them, and the features by which they are ranked.

        Pixels are (B, S, S, 3) uint8, S the config's photo_size; features (B, [cells,] F).
        """

    @property
    def beam_size(self) -> int:
        """Hypotheses kept where nothing else is said: with neighbours there is to be a choice."""
        return NEIGHBOURS_BEAM if self.neighbours else 1

    def forget_neighbours(self) -> None:
        """Rank by probability alone; a confidence that was fitted with neighbours goes as well."""
        if self.neighbours:
            self.neighbours = self.calibration = None

    def caption(self, image, beam_size: int | None = None) -> str:
        """Caption one image: a path, a PIL image, or an array (H, W[, 1, 3 or 4])."""
        if isinstance(image, str | Path):
            pixels = load_image(image, self.config.photo_size)
        else:
            read = image_to_pixels if isinstance(image, Image.Image) else array_to_pixels
            pixels = read(image, self.config.photo_size)
        return self.decode_photos(pixels[None], beam_size)[0][0].sentence

    def decode_photos(
        self,
        pixels: np.ndarray,
        beam_size: int | None = None,
        length_penalty: float = LENGTH_PENALTY,
    ) -> list[list[Caption]]:
        """The beam of every photo, best first: sentences, log-probabilities, and confidence.

        Pixels are (N, S, S, 3) uint8, as `images.load_image` gives them at the config's photo_size.
        Without a size, it is `self.beam_size`. Raises InputError if a feature is NaN or infinite.
        """
        found = []
        for start in range(0, len(pixels), DECODING_BATCH):
            batch = pixels[start : start + DECODING_BATCH]
            found += self.in_words(self.ranked_beams(batch, beam_size, length_penalty))
        return found

    def explain(
        self, pixels: np.ndarray, beam_size: int | None = None
    ) -> tuple[list[Caption], list[str], np.ndarray, np.ndarray | None]:
        """The beam of one photo, (S, S, 3) uint8, and of its best caption's words the grounds.

        These are the T words, <end> among them where the network produced it; how probable each was
        after those before it, (T,), whose product is the caption's probability; and how much it
        looked at each cell of the photo, (T, cells), or None without attention.
        """
        beams = self.ranked_beams(pixels[None], beam_size, LENGTH_PENALTY)
        (captions,), tokens = self.in_words(beams), beams.tokens[0, 0]  # (max_length,)
        tokens = tokens[tokens != PADDING]  # (T,)
        words = [self.vocabulary.words[i] for i in tokens]
        looked = None if beams.attention is None else beams.attention[0, 0, : len(words)]
        return captions, words, np.exp(beams.log_probs[0, 0, : len(words)]), looked

    def ranked_beams(
        self, pixels: np.ndarray, beam_size: int | None, length_penalty: float
    ) -> Beams:
        """What `search` finds of pixels (B, S, S, 3), in its final order."""
        size = self.beam_size if beam_size is None else beam_size
        beams, features = self.search(pixels, size, length_penalty)
        return rank(beams, features, self.neighbours, length_penalty)

    def in_words(self, beams: Beams) -> list[list[Caption]]:
        """Beams as captions, with confidence where it is known."""
        return to_captions(beams, self.vocabulary, self.calibration)


def check_beam_size(size: int) -> None:
    """Raises InputError unless there is something to search, in memory that a machine has."""
    if not 1 <= size <= MAX_BEAM_SIZE:
        raise InputError(f"a beam of {size}: choose between 1 and {MAX_BEAM_SIZE}")


def parse_description(words: list[str], config: dict) -> tuple[Vocabulary, CaptionerConfig]:
    """Of what a captioner's file holds; raises InputError where it does not fit together."""
    if not isinstance(config, dict):
        raise InputError("its config is not an object")
    vocabulary, config = Vocabulary(words), CaptionerConfig.parse(config)
    if len(vocabulary) != config.vocabulary_size:
        raise InputError(f"{len(vocabulary)} words for {config.vocabulary_size} outputs")
    return vocabulary, config


def check_neighbours(neighbours: Neighbours | None, config: CaptionerConfig) -> None:
    """Raises InputError if there are neighbours, of other features than the captioner's."""
    if neighbours and len(neighbours.mean) != config.feature_size:
        raise InputError(f"its neighbours' features are of {len(neighbours.mean)} floats")
