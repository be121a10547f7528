"""What a beam search has found, as people get it: in its final order, with words and confidence.

TensorFlow is not needed.
"""

from typing import NamedTuple

import numpy as np

from captioning.captions import LENGTH_PENALTY, PADDING, Vocabulary
from captioning.confidence import Calibration
from captioning.neighbours import Neighbours

NEIGHBOURS_BEAM = 10  # hypotheses to choose from: 20 were no better, 5 worse
WEIGHT = 0.5  # of the log-probability, divided as in a beam's ranking, beside the CIDEr expected


class Caption(NamedTuple):
    """A sentence of a beam; what the captioner does not know is None."""

    text: str
    log_probability: float  # natural, of all its words and its end
    expected_cider: float | None = None  # by `Neighbours`
    confidence: float | None = None  # by `Calibration`


def to_captions(
    tokens: np.ndarray,
    scores: np.ndarray,
    vocabulary: Vocabulary,
    length_penalty: float = LENGTH_PENALTY,
    features: np.ndarray | None = None,
    neighbours: Neighbours | None = None,
    calibration: Calibration | None = None,
) -> list[list[Caption]]:
    """B images' captions, best first, from tokens (B, K, T) and scores (B, K) of a `beam_search`.

    `neighbours` put them into another order, for which the images' features (B, …) are needed.
    """
    expected = np.full(scores.shape, None)  # (B, K)
    order = np.broadcast_to(np.arange(scores.shape[1]), scores.shape)  # (B, K)
    if neighbours:
        expected = neighbours.expected_cider(features, tokens)
        lengths = np.count_nonzero(tokens != PADDING, axis=2)  # (B, K), with END
        ranking = scores / np.maximum(lengths, 1) ** float(length_penalty)
        order = np.argsort(-(expected + WEIGHT * ranking), axis=1, kind="stable")
    beams = []
    for number, best in enumerate(order):
        texts = map(vocabulary.decode, tokens[number, best])
        values = (each[number, best].tolist() for each in (scores, expected))  # (K,) each
        found = [Caption(*each) for each in zip(texts, *values, strict=True)]
        # Of NaN weights nothing is probable: the first caption stays all the same.
        found = [each for each in found if each.log_probability > -np.inf] or found[:1]
        if calibration:
            found = [each._replace(confidence=calibration.confidence(each)) for each in found]
        beams.append(found)
    return beams
