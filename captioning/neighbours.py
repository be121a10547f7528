"""A beam in another order: first what people said of the most similar training photos.

A network prefers safe captions. The captions of its neighbours bring back what such photos are of
(consensus re-ranking: Devlin et al. 2015, Mao et al. 2015). NumPy alone is needed.
"""

from dataclasses import dataclass

import numpy as np

from captioning.captions import END, MAX_CAPTION_WORDS, PADDING, UNKNOWN

AXES = 128  # floats of a photo's vector
MIN_VARIANCE = 0.1  # of one float of the features, as a share of the floats' mean variance
NEAREST = 5  # photos
MOST_CAPTIONS = 16  # of a photo that are kept
WEIGHT = 0.5  # of the log-probability, divided as in a beam's ranking, beside CIDEr
ORDERS = (1, 2, 3, 4)  # words of an n-gram
CIDER_SIGMA = 6.0  # words: CIDEr-D's tolerance for another length
WORD_BITS = 16  # of an n-gram's key, for each of its words


@dataclass(eq=False)
class Neighbours:
    """N training photos with R captions each, to compare with."""

    mean: np.ndarray  # (F,) float32, of the photos' features
    axes: np.ndarray  # (F, A) float16: from features to a photo's vector
    vectors: np.ndarray  # (N, A) float16, of length 1
    captions: np.ndarray  # (N, R, L) uint16: words by id, PADDING after them
    grams: np.ndarray  # (G,) uint64, rising: the keys of n-grams of two photos or more
    photos: np.ndarray  # (G,) uint32, of how many photos each of these is

    @classmethod
    def of(cls, features: np.ndarray, captions: dict[int, list[list[int]]]) -> "Neighbours":
        """Of the rows of features (…, [cells,] F) whose captions are given, lists of words' ids."""
        vectors = np.concatenate([averages(features[row : row + 1]) for row in captions])  # (N, F)
        mean, variance = vectors.mean(0), vectors.var(0)
        # As for a decoder's input: what is nearly constant says little.
        deviation = np.sqrt(np.maximum(variance, MIN_VARIANCE * variance.mean()) + 1e-12)
        standard = (vectors - mean) / deviation
        # The principal axes of N photos, by a covariance whose side does not grow with N.
        _, axes = np.linalg.eigh(standard.T @ standard)  # (F, F), the longest axis last
        axes = axes[:, : -AXES - 1 : -1] / (deviation / deviation.mean())[:, None]
        axes = axes.astype(np.float16)  # (F, A)
        captions = {row: lines[:MOST_CAPTIONS] for row, lines in captions.items()}
        several = max(map(len, captions.values()))
        width = max(len(ids) for lines in captions.values() for ids in lines)
        rows = np.full((len(captions), several, width), PADDING, np.uint16)  # (N, R, L)
        for photo, lines in zip(rows, captions.values(), strict=True):
            for row, ids in enumerate(lines):  # the rows of captions that are not there stay empty
                photo[row, : len(ids)] = without_rarest(np.array(ids))
        grams = np.concatenate([np.unique(n_grams(photo)[1]) for photo in rows])  # once a photo
        grams, photos = np.unique(grams, return_counts=True)
        common = photos > 1  # what is not found is as rare as what one photo has
        vectors = to_vectors(vectors, mean, axes).astype(np.float16)
        return cls(mean, axes, vectors, rows, grams[common], photos[common].astype(np.uint32))

    def check(self) -> "Neighbours":
        """Itself, if the arrays are of one whole; raises ValueError otherwise: files may lie."""
        types = ("float32", "float16", "float16", "uint16", "uint64", "uint32")
        shapes = [array.shape for array in vars(self).values()]
        (size, axes), (photos, *_), grams = self.axes.shape, self.captions.shape, self.grams.shape
        whole = [(size,), (size, axes), (photos, axes), (photos, *shapes[3][1:]), grams, grams]
        if [str(array.dtype) for array in vars(self).values()] != [*types] or shapes != whole:
            raise ValueError("its neighbours' arrays do not fit together")
        if len(shapes[3]) != 3 or 0 in shapes[3] or (self.captions[:, 0, 0] == PADDING).any():
            raise ValueError("its neighbours have no captions")
        if shapes[3][1] > MOST_CAPTIONS or shapes[3][2] > MAX_CAPTION_WORDS:
            raise ValueError("its neighbours' captions are too many, or too long")
        if len(grams) != 1 or (self.grams[1:] <= self.grams[:-1]).any():
            raise ValueError("its n-grams are in disorder")
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
        words = without_rarest(np.where(tokens == END, PADDING, tokens))
        training = self.vectors.astype(np.float32)  # (N, A)
        last = min(NEAREST, len(training)) - 1
        consensus = []
        for vector, said in zip(vectors, words, strict=True):
            nearest = np.argpartition(-(training @ vector), last)[:NEAREST]  # of N cosines
            captions = self.captions[nearest].reshape(-1, self.captions.shape[-1])
            consensus.append(self.cider_d(said, captions))
        return np.argsort(-(np.array(consensus) + WEIGHT * scores), axis=1, kind="stable")

    def cider_d(self, said: np.ndarray, captions: np.ndarray) -> np.ndarray:
        """CIDEr-D (Vedantam et al. 2015) of captions (K, T) against others (C, L): (K,), 0 to 10.

        As `scoring.CiderD`, with the training photos as the corpus; empty others are left out.
        """
        captions = captions[captions[:, 0] != PADDING]
        rows, grams, weights, norms = self.weigh(said)  # norms (K, 4)
        their_rows, their_grams, their_weights, their_norms = self.weigh(captions)
        known = np.unique(grams)  # (U,)
        own = np.zeros((len(said), len(known)))
        own[rows, np.searchsorted(known, grams)] = weights
        theirs = np.zeros((len(captions), len(known)))
        places, found = look_up(known, their_grams)
        theirs[their_rows[found], places[found]] = their_weights[found]
        # What is said more often than in a reference is clipped.
        products = np.minimum(own[:, None], theirs) * theirs  # (K, C, U)
        products = products @ (order_of(known)[:, None] == ORDERS)  # (K, C, 4)
        cosines = products / np.maximum(norms[:, None] * their_norms, 1e-9)
        lengths, their_lengths = (np.count_nonzero(c, axis=1) for c in (said, captions))
        near = np.exp(-((lengths[:, None] - their_lengths) ** 2) / (2 * CIDER_SIGMA**2))  # (K, C)
        return 10 * (cosines.mean(2) * near).mean(1)

    def weigh(self, captions: np.ndarray) -> tuple[np.ndarray, ...]:
        """Of captions (C, L) the n-grams: each one's caption, key and TF-IDF, (M,) each.

        And the length of each caption's vector of each order, (C, 4).
        """
        rows, grams = n_grams(captions)
        order = np.lexsort((grams, rows))
        rows, grams = rows[order], grams[order]
        starts = np.flatnonzero(
            np.diff(rows, prepend=-1) | (np.diff(grams, prepend=np.uint64(0)) != 0)
        )
        counts = np.diff(starts, append=len(rows))  # of equal n-grams of a caption
        rows, grams = rows[starts], grams[starts]
        places, found = look_up(self.grams, grams)
        photos = np.where(found, self.photos[places], 1) if len(self.photos) else 1
        weights = counts * np.log(len(self.vectors) / photos)
        squares = np.zeros((len(captions), len(ORDERS)))
        np.add.at(squares, (rows, order_of(grams) - 1), weights**2)
        return rows, grams, weights, np.sqrt(squares)


def without_rarest(ids: np.ndarray) -> np.ndarray:
    """Ids, but UNKNOWN for those too large for a key: the rarest words of a large vocabulary."""
    return np.where(ids < 2**WORD_BITS, ids, UNKNOWN)


def averages(features: np.ndarray) -> np.ndarray:
    """Features (B, [cells,] F) -> (B, F) float32, of a grid the cells' mean."""
    if features.ndim == 2:
        return np.asarray(features, np.float32)
    return np.stack([np.mean(cells, axis=0, dtype=np.float32) for cells in features])


def to_vectors(averaged: np.ndarray, mean: np.ndarray, axes: np.ndarray) -> np.ndarray:
    """Averaged features (B, F) -> (B, A) float32, each of length 1."""
    vectors = (averaged - mean) @ axes.astype(np.float32)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)


def n_grams(captions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of captions (C, L), PADDING after the words, all n-grams: caption and key, (M,) each.

    A key is the ids of the words side by side, the first one lowest.
    """
    width = captions.shape[1]
    ids = np.pad(captions.astype(np.uint64), ((0, 0), (0, len(ORDERS) - 1)))
    key, parts = np.zeros(captions.shape, np.uint64), []
    for n in ORDERS:
        last = ids[:, n - 1 : n - 1 + width]  # (C, L), each n-gram's last word
        key = key | last << np.uint64(WORD_BITS * (n - 1))
        rows, places = np.nonzero(last)
        parts.append((rows, key[rows, places]))
    rows, keys = zip(*parts, strict=True)
    return np.concatenate(rows), np.concatenate(keys)


def order_of(grams: np.ndarray) -> np.ndarray:
    """How many words the n-grams of these keys (M,) have."""
    ends = np.array([2 ** (WORD_BITS * n) for n in ORDERS[:-1]], np.uint64)
    return np.searchsorted(ends, grams, side="right") + 1


def look_up(known: np.ndarray, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where each of the keys (M,) is among rising `known`: a place, and whether it is there."""
    if not len(known):
        return np.zeros(len(keys), int), np.zeros(len(keys), bool)
    places = np.minimum(np.searchsorted(known, keys), len(known) - 1)
    return places, known[places] == keys
