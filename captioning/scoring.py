"""Scores by pycocoevalcap, the standard implementation; CIDEr-D for fine-tuning; a baseline."""

import contextlib
import math
import shutil
from collections import Counter

import numpy as np
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.meteor.meteor import Meteor
from pycocoevalcap.rouge.rouge import Rouge
from scipy.sparse import csr_matrix

from captioning.files import InputError

ORDERS = (1, 2, 3, 4)  # words of an n-gram, for BLEU-4 and CIDEr
CIDER_SIGMA = 6.0  # words: CIDEr-D's tolerance for another length


class Scorer:
    """BLEU-1..4, ROUGE-L and CIDEr, and METEOR; `without_meteor` says why there is none."""

    def __init__(self):
        self.without_meteor = "" if shutil.which("java") else "java was not found"
        self._meteor = None if self.without_meteor else Meteor()

    def score(
        self, candidates: dict[str, str], references: dict[str, list[str]]
    ) -> tuple[dict[str, float], np.ndarray]:
        """Score a caption of each image against the human ones, all split by `captions.tokenize`.

        Returns scores by name as fractions (CIDEr up to 10), and each image's CIDEr, in the order
        of the candidates. Raises InputError if an image has no caption, or no reference.
        """
        if not candidates:
            raise InputError("there is nothing to score.")
        for image_id in [*candidates, *references]:
            if image_id not in candidates or not references.get(image_id):
                raise InputError(f"{image_id} has no caption or no reference: nothing to score.")
        # One order for all: the scorers walk through the dicts side by side.
        result = {image_id: [caption] for image_id, caption in candidates.items()}
        truth = {image_id: references[image_id] for image_id in candidates}
        bleu, _ = Bleu(len(ORDERS)).compute_score(truth, result, verbose=0)
        rouge, _ = Rouge().compute_score(truth, result)
        cider, each = Cider().compute_score(truth, result)
        scores = {f"BLEU-{n}": float(value) for n, value in enumerate(bleu, 1)}
        scores |= {"ROUGE-L": float(rouge), "CIDEr": float(cider)}
        if self._meteor is not None:
            try:
                scores["METEOR"] = float(self._meteor.compute_score(truth, result)[0])
            except (OSError, ValueError, IndexError) as error:
                self.without_meteor = f"its Java process failed ({error})"
                # Its __del__ would wait for this lock, held since the fault, and trip on the pipe.
                self._meteor.lock.release()
                with contextlib.suppress(OSError):
                    self._meteor.meteor_p.stdin.close()
                self._meteor = None
        return scores, np.asarray(each)


class CiderD:
    """CIDEr-D of captions against their image's references (Vedantam et al. 2015).

    The same numbers as pycocoevalcap's, which would weigh all references anew for every batch.
    """

    def __init__(self, references: list[list[list[str]]], corpus: list | None = None):
        """Weigh each image's captions, lists of tokens, by how many images an n-gram is of.

        These are the images of the `corpus`, where it is given: of few images such counts say
        little, and of a single one every weight is 0.
        """
        counted = [[Counter(ngrams(tokens)) for tokens in lines] for lines in references]
        corpus = references if corpus is None else corpus
        grams = (set().union(*map(ngrams, lines)) for lines in corpus)
        frequencies = Counter(gram for image in grams for gram in image)
        # The weight of an n-gram of no image; without a dev split, when nothing is scored, 0.
        self.rarest = math.log(max(1, len(corpus)))
        self.weights = {gram: self.rarest - math.log(n) for gram, n in frequencies.items()}
        self.references = [[self._weigh(counts) for counts in lines] for lines in counted]

    def score(self, image: int, tokens: list[str]) -> float:
        """CIDEr-D, from 0 to 10, of one caption of an image, the image by its position."""
        vector, norms, length = self._weigh(Counter(ngrams(tokens)))
        total = 0.0
        for reference, reference_norms, reference_length in self.references[image]:
            products = [0.0] * len(ORDERS)
            for gram, weight in vector.items():
                if other := reference.get(gram):  # what is said more often than there is clipped
                    products[len(gram) - 1] += min(weight, other) * other
            near = math.exp(-((length - reference_length) ** 2) / (2 * CIDER_SIGMA**2))
            for product, norm, reference_norm in zip(products, norms, reference_norms, strict=True):
                if product:
                    total += near * product / (norm * reference_norm)
        return 10 * total / (len(ORDERS) * len(self.references[image]))

    def _weigh(self, counts: Counter) -> tuple[dict, list[float], int]:
        """TF-IDF of each n-gram, the norm of each order's vector, and the number of bigrams."""
        vector = {gram: n * self.weights.get(gram, self.rarest) for gram, n in counts.items()}
        squares = [0.0] * len(ORDERS)
        for gram, weight in vector.items():
            squares[len(gram) - 1] += weight * weight
        length = sum(count for gram, count in counts.items() if len(gram) == 2)
        return vector, [math.sqrt(square) for square in squares], length


def constant_caption(training: dict[str, list[str]]) -> str:
    """The training caption that, said of every training image, has the highest CIDEr.

    CIDEr of one caption for all is its TF-IDF vector times the mean of all references' vectors, so
    that all captions are scored at once. (Repeated n-grams are not clipped as in CIDEr-D: they
    have hardly any weight.) `training` is image id -> tokenized captions.
    """
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.preprocessing import normalize

    captions = [caption for lines in training.values() for caption in lines]  # C in all
    owner = np.repeat(np.arange(len(training)), [len(lines) for lines in training.values()])
    share = 1 / (len(training) * np.bincount(owner)[owner])  # of each reference in the mean, (C,)
    lengths = np.array([len(caption.split()) for caption in captions])
    vectorizer = CountVectorizer(analyzer=lambda caption: ngrams(caption.split()))
    counts = vectorizer.fit_transform(captions).astype(float)  # (C, n-grams), sparse
    orders = np.array([len(gram) for gram in vectorizer.get_feature_names_out()])
    of_image = csr_matrix((np.ones_like(owner), (owner, np.arange(len(owner)))))  # (images, C)
    images = of_image @ (counts > 0)  # (images, n-grams)
    weights = np.log(len(training)) - np.log((images > 0).sum(axis=0).A1)  # (n-grams,)
    scores = np.zeros(len(captions))
    for n in ORDERS:
        columns = np.flatnonzero(orders == n)
        if not len(columns):  # of captions of a word or two
            continue
        vectors = normalize(counts[:, columns].multiply(weights[columns]).tocsr())
        for length in np.unique(lengths):
            near = share * np.exp(-((lengths - length) ** 2) / (2 * CIDER_SIGMA**2))  # (C,)
            same = lengths == length
            scores[same] += vectors[same] @ (near @ vectors)
    return captions[int(scores.argmax())]


def ngrams(tokens: list[str]) -> list[tuple[str, ...]]:
    """All runs of one to four tokens."""
    return [tuple(tokens[i : i + n]) for n in ORDERS for i in range(len(tokens) - n + 1)]
