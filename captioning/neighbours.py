"""How well a caption will fit a photo, by what people said of the most similar training photos.

A network prefers safe captions. Kernel ridge regression on the photo's neighbours says of each
n-gram how much people will make of it, and so which CIDEr-D is to be expected of a caption. It is
consensus re-ranking (Devlin et al. 2015, Mao et al. 2015), but some neighbours count more than
others, and may count against it. TensorFlow is not needed.
"""

import functools
from collections import Counter
from dataclasses import dataclass

import numpy as np

from captioning.captions import END, PADDING, UNKNOWN
from captioning.cider import CIDER_SIGMA, ORDERS, TfIdf, image_frequencies
from captioning.features import floored

AXES = 256  # floats of a photo's vector
NEAREST = 800  # photos in a regression; fewer would do for the order, but not for confidence
RIDGE = 0.3  # added to a photo's similarity to itself, which is 2
MOST_GRAMS = 2**15  # n-grams that are stored, the most frequent ones
TYPES = {  # of the arrays below, in their order
    "mean": "float32",
    "axes": "float16",
    "vectors": "float16",
    "lengths": "float16",
    "starts": "uint32",
    "ids": "uint16",
    "weights": "float16",
    "grams": "uint16",
    "photos": "uint32",
}


@dataclass(eq=False)
class Neighbours:
    """N training photos, with the M n-grams of their captions, of G different ones."""

    mean: np.ndarray  # (F,), of the photos' features
    axes: np.ndarray  # (F, A): from features to a photo's vector
    vectors: np.ndarray  # (N, A), of length 1
    lengths: np.ndarray  # (N,), bigrams of a caption, the mean of the photo's
    starts: np.ndarray  # (N + 1,): where in the next two a photo's n-grams begin, and the last end
    ids: np.ndarray  # (M,), each a row of `grams`
    weights: np.ndarray  # (M,): TF-IDF, the mean of the photo's captions, each of length 1
    grams: np.ndarray  # (G, 4): words by id, PADDING after them
    photos: np.ndarray  # (G,), of how many photos each is; two or more

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

        lines = [[storable(ids) for ids in each] for each in captions.values()]
        counts = image_frequencies(lines).most_common(MOST_GRAMS)
        # An n-gram that is not found is taken to be as rare as one of a single photo.
        counts = {gram: count for gram, count in counts if count > 1}
        rows = {gram: row for row, gram in enumerate(counts)}
        grams = np.full((len(counts), len(ORDERS)), PADDING, np.uint16)
        for gram, row in rows.items():
            grams[row, : len(gram)] = gram
        tf_idf, starts, ids, weights, lengths = TfIdf(counts, len(lines)), [0], [], [], []
        for each in lines:
            weighed, of_photo = [tf_idf.weigh(caption) for caption in each], Counter()
            for vector, norms, _ in weighed:
                for gram in vector.keys() & rows.keys():
                    if weight := vector[gram]:
                        of_photo[rows[gram]] += weight / norms[len(gram) - 1] / len(each)
            ids += sorted(of_photo)
            weights += [of_photo[i] for i in sorted(of_photo)]
            starts.append(len(ids))
            lengths.append(np.mean([bigrams for _, _, bigrams in weighed]))
        arrays = (mean, axes, vectors, lengths, starts, ids, weights, grams, [*counts.values()])
        named = zip(arrays, TYPES.values(), strict=True)
        return cls(*(np.asarray(array, dtype) for array, dtype in named))

    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays, by name."""
        return {name: getattr(self, name) for name in TYPES}

    def check(self) -> "Neighbours":
        """Itself, if the arrays are of one whole; raises ValueError otherwise: files may lie."""
        (size, axes), photos = self.axes.shape, len(self.vectors)
        entries, grams = len(self.ids), len(self.grams)
        shapes = [(size,), (size, axes), (photos, axes), (photos,), (photos + 1,)]
        shapes += [(entries,), (entries,), (grams, len(ORDERS)), (grams,)]
        expected, found = zip(TYPES.values(), shapes, strict=True), self.arrays().values()
        if not photos or [*expected] != [(str(array.dtype), array.shape) for array in found]:
            raise ValueError("its neighbours' arrays do not fit together")
        if not all(np.isfinite(array).all() for array in found):
            raise ValueError("its neighbours are NaN or infinite in places")
        lengths = np.linalg.norm(self.training, axis=1)
        if lengths.max() > 1.01 or (np.abs(self.weights - 0.5) > 0.51).any():
            raise ValueError("its neighbours' vectors are longer than 1, or weights not 0 to 1")
        words = self.grams != PADDING  # (G, 4)
        if not words[:, :1].all() or (words[:, 1:] & ~words[:, :-1]).any():
            raise ValueError("its n-grams are not of words, or have gaps")
        if len(self.rows) != grams:
            raise ValueError("its n-grams are not all different")
        starts = self.starts.astype(np.int64)
        if starts[0] or starts[-1] != entries or (np.diff(starts) < 0).any():
            raise ValueError("its neighbours' n-grams do not begin where others end")
        if (self.ids >= grams).any() or not ((self.photos > 1) & (self.photos <= photos)).all():
            raise ValueError("its neighbours' n-grams are not those of so many photos")
        return self

    def expected_cider(self, features: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """The CIDEr-D to be expected of captions of B photos, (B, K).

        Features are (B, [cells,] F), tokens (B, K, T) as `beam_search` gives them. Unlike CIDEr-D
        itself, an n-gram that is said twice counts twice, and the length is compared with the mean.
        """
        # In float64, or the number of threads would show in the digits that people see.
        averaged = averages(features).astype(np.float64)
        vectors = to_vectors(averaged, self.mean, self.axes)  # (B, A)
        tokens = np.where(tokens == END, PADDING, tokens)
        found = []
        for vector, beam in zip(vectors, tokens, strict=True):
            photos, shares = self.regress(vector)
            entries = np.concatenate([np.arange(*self.starts[i : i + 2]) for i in photos])
            counts = self.starts[photos + 1] - self.starts[photos]
            said = np.repeat(shares, counts) * self.weights[entries]
            said = np.bincount(self.ids[entries], said, len(self.grams))  # (G,)
            length = shares @ self.lengths[photos]
            found.append([self.agreement(ids, said, length) for ids in without_padding(beam)])
        return np.nan_to_num(np.array(found), nan=0, posinf=0, neginf=0)  # a file may lie

    def regress(self, vector: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The photos nearest to a vector (A,), and how much each counts: their sum is about 1.

        The kernel of two photos is exp(their cosine − 1), and 1 for the constant.
        """
        cosines = self.training @ vector  # (N,)
        last = min(NEAREST, len(cosines)) - 1
        photos = np.argpartition(-cosines, last)[:NEAREST]  # (n,)
        near = self.training[photos]  # (n, A)
        kernel = np.exp(near @ near.T - 1) + 1 + RIDGE * np.eye(len(near))
        return photos, np.linalg.solve(kernel, np.exp(cosines[photos] - 1) + 1)

    def agreement(self, ids: list[int], said: np.ndarray, length: float) -> float:
        """CIDEr-D of a caption with what is `said` of the photo, (G,), in so many bigrams."""
        vector, norms, bigrams = self.tf_idf.weigh(storable(ids))
        near = np.exp(-((bigrams - length) ** 2) / (2 * CIDER_SIGMA**2))
        total = 0.0
        for gram, weight in vector.items():
            if weight and gram in self.rows:
                total += weight / norms[len(gram) - 1] * said[self.rows[gram]]
        return 10 / len(ORDERS) * near * total

    @functools.cached_property
    def training(self) -> np.ndarray:
        """The photos' vectors (N, A), float64."""
        return self.vectors.astype(np.float64)

    @functools.cached_property
    def rows(self) -> dict[tuple, int]:
        """Of each n-gram its row of `grams`."""
        return {tuple(ids): row for row, ids in enumerate(without_padding(self.grams))}

    @functools.cached_property
    def tf_idf(self) -> TfIdf:
        """By the counts of n-grams that are stored."""
        return TfIdf(dict(zip(self.rows, self.photos.tolist(), strict=True)), len(self.vectors))


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
    """Averaged features (B, F) -> (B, A) of the same precision, each of length 1."""
    return to_unit((averaged - mean) @ axes.astype(averaged.dtype))


def to_unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors (N, F), each scaled to length 1."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
