"""What a beam search has found, as people get it: in its final order, with words and confidence.

TensorFlow is not needed.
"""

from typing import NamedTuple

import numpy as np

from captioning.captions import PADDING, Vocabulary, as_written
from captioning.confidence import Calibration
from captioning.neighbours import Neighbours

NEIGHBOURS_BEAM = 10  # hypotheses to choose from: 20 were no better, 5 worse
WEIGHT = 0.5  # of the log-probability, divided as in a beam's ranking, beside the CIDEr expected


class Beams(NamedTuple):
    """Captions of B images, K of each, best first, of T words at most: arrays, or tensors."""

    tokens: np.ndarray  # (B, K, T) int32, END and PADDING after the words
    scores: np.ndarray  # (B, K), the summed natural log-probabilities
    log_probs: np.ndarray  # (B, K, T), of each token; 0 of PADDING
    attention: np.ndarray | None = None  # (B, K, T, cells): how much a token looked at each cell
    expected_cider: np.ndarray | None = None  # (B, K), by `Neighbours`


class Caption(NamedTuple):
    """A sentence of a beam; what the captioner does not know is None."""

    text: str  # tokens, joined by spaces
    log_probability: float  # natural, of all its words and its end
    expected_cider: float | None = None  # by `Neighbours`
    confidence: float | None = None  # by `Calibration`

    @property
    def sentence(self) -> str:
        """The text as people write it, in scripts without spaces too."""
        return as_written(self.text)


def rank(
    beams: Beams, features: np.ndarray, neighbours: Neighbours | None, length_penalty: float
) -> Beams:
    """The beams in the order of the CIDEr that neighbours, if any, of features (B, …) expect."""
    if neighbours is None:
        return beams
    expected = neighbours.expected_cider(features, beams.tokens)  # (B, K)
    lengths = np.count_nonzero(beams.tokens != PADDING, axis=2)  # (B, K), with END
    ranking = beams.scores / np.maximum(lengths, 1) ** float(length_penalty)
    order = np.argsort(-(expected + WEIGHT * ranking), axis=1, kind="stable")  # (B, K)
    rows = np.arange(len(order))[:, None]
    parts = beams._replace(expected_cider=expected)
    return Beams(*(None if part is None else part[rows, order] for part in parts))


def to_captions(
    beams: Beams, vocabulary: Vocabulary, calibration: Calibration | None = None
) -> list[list[Caption]]:
    """B images' captions, best first."""
    expected = beams.expected_cider
    expected = np.full(beams.scores.shape, None) if expected is None else expected  # (B, K)
    found = []
    for tokens, *values in zip(beams.tokens, beams.scores, expected, strict=True):
        texts, values = map(vocabulary.decode, tokens), (each.tolist() for each in values)
        beam = [Caption(*each) for each in zip(texts, *values, strict=True)]
        # Of NaN weights nothing is probable: the first caption stays all the same.
        beam = [each for each in beam if each.log_probability > -np.inf] or beam[:1]
        if calibration:
            beam = [each._replace(confidence=calibration.confidence(each)) for each in beam]
        found.append(beam)
    return found
