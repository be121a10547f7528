"""Scores by pycocoevalcap, the standard implementation; CIDEr-D for fine-tuning; a baseline."""

import contextlib
import math
import shutil
from collections import Counter

import numpy as np
from scipy.sparse import csr_matrix

from captioning.files import InputError

MAX_ORDER = 4  # BLEU-4's longest n-gram
CIDER_SIGMA = 6.0  # words: CIDEr-D's tolerance for another length


class Scorer:
    """BLEU-1..4, ROUGE-L and CIDEr, and METEOR where Java is.

    Attributes:
        without_meteor: why there is no METEOR score; "" while there is.
    """

    def __init__(self):
        """Start METEOR's Java process, if there can be one."""
        from pycocoevalcap.meteor.meteor import Meteor

        self.without_meteor = ""
        self._meteor = None
        if shutil.which("java") is None:
            self.without_meteor = "java was not found"
        else:
            self._meteor = Meteor()

    def score(
        self, candidates: dict[str, str], references: dict[str, list[str]]
    ) -> tuple[dict[str, float], np.ndarray]:
        """Score one caption per image, all tokenized as `captions.tokenize` does.

        Args:
            candidates: image id -> caption.
            references: image id -> human captions, for the same images.

        Returns:
            Scores by name as fractions (CIDEr up to 10), and each image's CIDEr, in the order of
            the candidates.

        Raises:
            InputError: the two dicts are not about the same images, or an image has no reference.
        """
        from pycocoevalcap.bleu.bleu import Bleu
        from pycocoevalcap.cider.cider import Cider
        from pycocoevalcap.rouge.rouge import Rouge

        if candidates.keys() != references.keys():
            odd = sorted(candidates.keys() ^ references.keys())[0]
            raise InputError(f"{odd} has a caption or references, but not both: nothing to score.")
        if not candidates or not all(references.values()):
            raise InputError("there is nothing to score, or an image has no reference.")
        # One order for all: the scorers walk through the dicts side by side.
        result = {image_id: [caption] for image_id, caption in candidates.items()}
        truth = {image_id: references[image_id] for image_id in candidates}
        bleu, _ = Bleu(MAX_ORDER).compute_score(truth, result, verbose=0)
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

    def __init__(self, references: list[list[list[str]]]):
        """Count in how many images each n-gram occurs, and weigh the references by it.

        Args:
            references: of each image, its captions as lists of tokens.
        """
        counted = [[Counter(ngrams(tokens)) for tokens in lines] for lines in references]
        frequencies = Counter(gram for lines in counted for gram in set().union(*lines))
        images = math.log(max(1, len(references)))  # no dev split: nothing will be scored
        self.rarest = images  # the weight of an n-gram of no image
        self.weights = {gram: images - math.log(count) for gram, count in frequencies.items()}
        self.references = [[self._weigh(counts) for counts in lines] for lines in counted]

    def score(self, image: int, tokens: list[str]) -> float:
        """CIDEr-D, from 0 to 10, of one caption of an image, the image by its position."""
        vector, norms, length = self._weigh(Counter(ngrams(tokens)))
        total = 0.0
        for reference, reference_norms, reference_length in self.references[image]:
            products = [0.0] * MAX_ORDER
            for gram, weight in vector.items():
                other = reference.get(gram)
                if other is not None:  # what is said more often than by the human is clipped
                    products[len(gram) - 1] += min(weight, other) * other
            near = math.exp(-((length - reference_length) ** 2) / (2 * CIDER_SIGMA**2))
            for product, norm, reference_norm in zip(products, norms, reference_norms, strict=True):
                if product:
                    total += near * product / (norm * reference_norm)
        return 10 * total / (MAX_ORDER * len(self.references[image]))

    def _weigh(self, counts: Counter) -> tuple[dict, list[float], int]:
        """TF-IDF of each n-gram, the norm of each order's vector, and the number of bigrams."""
        vector = {
            gram: count * self.weights.get(gram, self.rarest) for gram, count in counts.items()
        }
        squares = [0.0] * MAX_ORDER
        for gram, weight in vector.items():
            squares[len(gram) - 1] += weight * weight
        length = sum(count for gram, count in counts.items() if len(gram) == 2)
        return vector, [math.sqrt(square) for square in squares], length


def constant_caption(training: dict[str, list[str]]) -> str:
    """The training caption that, said of every training image, has the highest CIDEr.

    CIDEr of one caption for all is its TF-IDF vector times the mean of all references' vectors, so
    that all captions are scored at once. (Repeated n-grams are not clipped as in CIDEr-D: they
    have hardly any weight.)

    Args:
        training: image id -> tokenized captions of the training split.
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
    ones = np.ones_like(owner)
    images = csr_matrix((ones, (owner, np.arange(len(owner))))) @ (counts > 0)  # by image
    weights = np.log(len(training)) - np.log((images > 0).sum(axis=0).A1)  # (n-grams,)
    scores = np.zeros(len(captions))
    for n in range(1, MAX_ORDER + 1):
        columns = np.flatnonzero(orders == n)
        vectors = normalize(counts[:, columns].multiply(weights[columns]).tocsr())
        for length in np.unique(lengths):
            near = share * np.exp(-((lengths - length) ** 2) / (2 * CIDER_SIGMA**2))  # (C,)
            same = lengths == length
            scores[same] += vectors[same] @ (near @ vectors)
    return captions[int(scores.argmax())]


def ngrams(tokens: list[str]) -> list[tuple[str, ...]]:
    """All runs of one to four tokens."""
    return [
        tuple(tokens[i : i + n])
        for n in range(1, MAX_ORDER + 1)
        for i in range(len(tokens) - n + 1)
    ]
