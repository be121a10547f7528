"""A beam in another order: first what people said of the most similar training photos.

A network prefers safe captions. The captions of its neighbours bring back what such photos are of
(consensus re-ranking: Devlin et al. 2015, Mao et al. 2015). TensorFlow is not needed.
"""

import functools
from dataclasses import dataclass, fields

import numpy as np

from captioning.captions import END, MAX_CAPTION_WORDS, PADDING, UNKNOWN
from captioning.cider import ORDERS, TfIdf, cider_d, image_frequencies
from captioning.features import floored

AXES = 128  # floats of a photo's vector
NEAREST = 5  # photos
MOST_CAPTIONS = 16  # of a photo that are kept
WEIGHT = 0.5  # of the log-probability, divided as in a beam's ranking, beside CIDEr-D
TYPES = ("float32", "float16", "float16", "uint16", "uint16", "uint32")  # of the arrays below


@dataclass(eq=False)
class Neighbours:
    """N training photos with R captions each, to compare with."""

    mean: np.ndarray  # (F,) float32, of the photos' features
    axes: np.ndarray  # (F, A) float16: from features to a photo's vector
    vectors: np.ndarray  # (N, A) float16, of length 1
    captions: np.ndarray  # (N, R, L) uint16: words by id, PADDING after them
    grams: np.ndarray  # (G, 4) uint16, likewise: the n-grams of two photos or more
    photos: np.ndarray  # (G,) uint32, of how many photos each of these is

    @classmethod
    def of(cls, features: np.ndarray, captions: dict[int, list[list[int]]]) -> "Neighbours":
        """Of the rows of features (…, [cells,] F) whose captions are given, lists of words' ids."""
        vectors = np.concatenate([averages(features[row : row + 1]) for row in captions])  # (N, F)
        mean, deviation = vectors.mean(0), np.sqrt(floored(vectors.var(0)) + 1e-12)
        standard = (vectors - mean) / deviation
        # The principal axes of N photos, by a covariance whose side does not grow with N.
        _, axes = np.linalg.eigh(standard.T @ standard)  # (F, F), the longest axis last
        axes = axes[:, : -AXES - 1 : -1] / (deviation / deviation.mean())[:, None]
        axes = axes.astype(np.float16)  # (F, A)
        vectors = to_vectors(vectors, mean, axes).astype(np.float16)
        kept = [[storable(ids) for ids in lines[:MOST_CAPTIONS]] for lines in captions.values()]
        shape = len(kept), max(map(len, kept)), max(len(ids) for lines in kept for ids in lines)
        rows = np.full(shape, PADDING, np.uint16)  # (N, R, L)
        for photo, lines in zip(rows, kept, strict=True):
            for row, ids in enumerate(lines):  # the rows of captions that are not there stay empty
                photo[row, : len(ids)] = ids
        # An n-gram that is not found is as rare as one of a single photo.
        common = {gram: n for gram, n in image_frequencies(kept).items() if n > 1}
        grams = np.full((len(common), len(ORDERS)), PADDING, np.uint16)
        for row, gram in zip(grams, common, strict=True):
            row[: len(gram)] = gram
        return cls(mean, axes, vectors, rows, grams, np.array([*common.values()], np.uint32))

    def arrays(self) -> dict[str, np.ndarray]:
        """The six arrays, by name."""
        return {known.name: getattr(self, known.name) for known in fields(self)}

    def check(self) -> "Neighbours":
        """Itself, if the arrays are of one whole; raises ValueError otherwise: files may lie."""
        (size, axes), (photos, captions, words) = self.axes.shape, self.captions.shape
        grams = len(self.photos)
        shapes = [(size,), (size, axes), (photos, axes), (photos, captions, words)]
        shapes += [(grams, len(ORDERS)), (grams,)]
        expected, found = zip(TYPES, shapes, strict=True), self.arrays().values()
        if [*expected] != [(str(array.dtype), array.shape) for array in found]:
            raise ValueError("its neighbours' arrays do not fit together")
        if not self.captions.size or (self.captions[:, 0, 0] == PADDING).any():
            raise ValueError("its neighbours have no captions")
        if captions > MOST_CAPTIONS or words > MAX_CAPTION_WORDS:
            raise ValueError("its neighbours' captions are too many, or too long")
        if not all(np.isfinite(array).all() for array in (self.mean, self.axes, self.vectors)):
            raise ValueError("its neighbours are NaN or infinite in places")
        if not (self.photos > 1).all() or (self.photos > photos).any():
            raise ValueError("its n-grams are of no such number of photos")
        return self

    def rank(self, features: np.ndarray, tokens: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """The beams' new order, best first, (B, K).

        Features are (B, [cells,] F), tokens (B, K, T) as `beam_search` gives them, and scores
        (B, K) the log-probabilities, divided as for its own ranking.
        """
        vectors = to_vectors(averages(features), self.mean, self.axes)  # (B, A)
        training = self.vectors.astype(np.float32)  # (N, A)
        last = min(NEAREST, len(training)) - 1
        tokens = np.where(tokens == END, PADDING, tokens)
        consensus = []
        for vector, beam in zip(vectors, tokens, strict=True):
            nearest = np.argpartition(-(training @ vector), last)[:NEAREST]  # of N cosines
            captions = filter(None, without_padding(np.concatenate(self.captions[nearest])))
            references = [self.tf_idf.weigh(ids) for ids in captions]
            said = (self.tf_idf.weigh(storable(ids)) for ids in without_padding(beam))
            consensus.append([cider_d(weighed, references) for weighed in said])
        return np.argsort(-(np.array(consensus) + WEIGHT * scores), axis=1, kind="stable")

    @functools.cached_property
    def tf_idf(self) -> TfIdf:
        """By the counts of n-grams that are stored."""
        grams = map(tuple, without_padding(self.grams))
        return TfIdf(dict(zip(grams, self.photos.tolist(), strict=True)), len(self.vectors))


def storable(ids: list[int]) -> list[int]:
    """Words' ids as uint16 holds them: the rarest of a large vocabulary are UNKNOWN."""
    return [i if i < 2**16 else UNKNOWN for i in ids]


def without_padding(rows: np.ndarray) -> list[list[int]]:
    """Ids (C, L), PADDING after the words -> C lists of words' ids."""
    counts = np.count_nonzero(rows, axis=1)
    return [ids[:count] for ids, count in zip(rows.tolist(), counts, strict=True)]


def averages(features: np.ndarray) -> np.ndarray:
    """Features (B, [cells,] F) -> (B, F) float32, of a grid the cells' mean."""
    if features.ndim == 2:
        return np.asarray(features, np.float32)
    return np.stack([np.mean(cells, axis=0, dtype=np.float32) for cells in features])


def to_vectors(averaged: np.ndarray, mean: np.ndarray, axes: np.ndarray) -> np.ndarray:
    """Averaged features (B, F) -> (B, A) float32, each of length 1."""
    vectors = (averaged - mean) @ axes.astype(np.float32)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
