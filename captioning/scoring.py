"""Scores by pycocoevalcap, the standard implementation, and a baseline."""

import contextlib
import shutil

import numpy as np
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.meteor.meteor import Meteor
from pycocoevalcap.rouge.rouge import Rouge
from scipy.sparse import csr_matrix

from captioning.cider import CIDER_SIGMA, ORDERS, ngrams
from captioning.files import InputError


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
