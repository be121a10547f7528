"""Scores by pycocoevalcap, the standard implementation, and the rows that give them a meaning."""

import contextlib
import shutil
from collections import Counter, defaultdict
from math import log

import numpy as np

from files import InputError

MAX_ORDER = 4  # BLEU-4's longest n-gram
BEFORE_TIES = 1e-9  # stands for an n-gram never seen, so that a logarithm can be taken


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


def constant_caption(training: dict[str, list[str]]) -> str:
    """The training caption that, said of every training image, has the highest BLEU-4.

    Args:
        training: image id -> tokenized captions of the training split.
    """
    images_with: Counter = Counter()  # n-gram -> images whose captions hold it
    lengths_of = []
    for captions in training.values():
        token_lists = [caption.split() for caption in captions]
        images_with.update({gram for tokens in token_lists for gram in ngrams(tokens)})
        lengths_of.append(sorted({len(tokens) for tokens in token_lists}))
    penalties: dict[int, float] = {}

    def log_bleu(caption: str) -> float:
        tokens = caption.split()
        if len(tokens) not in penalties:
            closest = [min(ls, key=lambda n: (abs(n - len(tokens)), n)) for ls in lengths_of]
            penalties[len(tokens)] = min(0.0, 1 - np.mean(closest) / len(tokens))
        shares = defaultdict(list)
        for gram in set(ngrams(tokens)):
            shares[len(gram)].append(images_with[gram] / len(training))
        precisions = [sum(shares[n]) / max(1, len(tokens) - n + 1) for n in range(1, MAX_ORDER + 1)]
        return penalties[len(tokens)] + sum(log(p or BEFORE_TIES) for p in precisions) / MAX_ORDER

    candidates = dict.fromkeys(caption for captions in training.values() for caption in captions)
    return max(candidates, key=log_bleu)


def ngrams(tokens: list[str]) -> list[tuple[str, ...]]:
    """All runs of one to four tokens."""
    return [
        tuple(tokens[i : i + n])
        for n in range(1, MAX_ORDER + 1)
        for i in range(len(tokens) - n + 1)
    ]
