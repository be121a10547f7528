"""Scores by pycocoevalcap, the standard implementation."""

import contextlib
import shutil
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from pycocoevalcap.bleu.bleu_scorer import BleuScorer
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.meteor.meteor import Meteor
from pycocoevalcap.rouge.rouge import Rouge

from captioning.cider import ORDERS
from captioning.files import InputError

# What pycocoevalcap adds to BLEU's quotients, lest it divide by zero.
TINY, SMALL = 1e-15, 1e-9
# Of METEOR's 23 counts: a segment's chunks, and how many words it and its reference have, in all
# and in common. Of a segment that is its reference METEOR does not count the one chunk.
CHUNKS, LENGTHS, MATCHES = 20, [0, 1], [21, 22]
METEOR_FAULTS = (OSError, ValueError, IndexError)


class Measure(NamedTuple):
    """A score, as a function of what the captions of N photos count together.

    So it can be had of any selection of the photos: BLEU and METEOR are no mean of the photos'.
    """

    counts: np.ndarray  # (N, k), what each photo adds
    of: Callable[[np.ndarray], np.ndarray]  # sums (…, k) -> scores (…)

    @property
    def score(self) -> float:
        """Of all photos together."""
        return float(self.of(self.counts.sum(axis=0)))

    @property
    def each(self) -> np.ndarray:
        """Of each photo alone, (N,)."""
        return self.of(self.counts)


class Scorer:
    """BLEU-1..4, ROUGE-L and CIDEr, and METEOR; `without_meteor` says why there is none."""

    def __init__(self):
        self.without_meteor = "" if shutil.which("java") else "java was not found"
        self._meteor = None if self.without_meteor else Meteor()

    def measure(
        self, candidates: dict[str, str], references: dict[str, list[str]]
    ) -> dict[str, Measure]:
        """Score a caption of each image against the human ones, all split by `captions.tokenize`.

        Returns scores by name, fractions (CIDEr up to 10), their counts in the candidates' order.
        Raises InputError if an image has no caption, or no reference.
        """
        if not candidates:
            raise InputError("there is nothing to score.")
        for image_id in [*candidates, *references]:
            if image_id not in candidates or not references.get(image_id):
                raise InputError(f"{image_id} has no caption or no reference: nothing to score.")
        # One order for all: the scorers walk through the dicts side by side.
        result = {image_id: [caption] for image_id, caption in candidates.items()}
        truth = {image_id: references[image_id] for image_id in candidates}
        counts = bleu_counts(candidates, truth)
        found = {f"BLEU-{n}": Measure(counts, bleu(n)) for n in ORDERS}
        _, rouge = Rouge().compute_score(truth, result)  # (N,)
        _, cider = Cider().compute_score(truth, result)  # (N,)
        found |= {"ROUGE-L": mean_of(rouge), "CIDEr": mean_of(cider)}
        if self._meteor is not None:
            try:
                counts = self._meteor_counts(candidates, truth)
                found["METEOR"] = Measure(counts, self._meteor_of)
            except METEOR_FAULTS as error:
                self._give_up_meteor(error)
        return found

    def _meteor_counts(self, candidates: dict[str, str], truth: dict[str, list[str]]):
        """What METEOR counts of each caption, (N, 23); their sum is the corpus'."""
        lines = [self._meteor._stat(candidates[i], truth[i]).split() for i in candidates]
        counts = np.array(lines, float)
        alike = (counts[:, LENGTHS] == counts[:, MATCHES]).all(axis=1) & (counts[:, CHUNKS] == 1)
        counts[alike, CHUNKS] = 0
        return counts

    def _meteor_of(self, sums: np.ndarray) -> np.ndarray:
        """METEOR of summed counts (…, 23), by its Java process; NaN once that has failed."""
        if self._meteor is None:
            return np.full(sums.shape[:-1], np.nan)
        rows = sums.reshape(-1, sums.shape[-1]).tolist()
        line = " ||| ".join(["EVAL", *(" ".join(map(repr, row)) for row in rows)])
        process = self._meteor.meteor_p
        try:
            process.stdin.write(f"{line}\n".encode())
            process.stdin.flush()
            scores = [float(process.stdout.readline()) for _ in rows]
            process.stdout.readline()  # that of all together
        except METEOR_FAULTS as error:
            self._give_up_meteor(error)
            scores = np.full(len(rows), np.nan)
        return np.reshape(scores, sums.shape[:-1])

    def _give_up_meteor(self, error: Exception) -> None:
        self.without_meteor = f"its Java process failed ({error})"
        with contextlib.suppress(OSError):
            self._meteor.meteor_p.stdin.close()
        self._meteor = None


def mean_of(values: np.ndarray) -> Measure:
    """A score that is the mean of the photos' own (N,)."""
    counts = np.stack([values, np.ones_like(values)], axis=1)  # (N, 2)
    return Measure(counts, lambda sums: sums[..., 0] / sums[..., 1])


def bleu_counts(candidates: dict[str, str], truth: dict[str, list[str]]) -> np.ndarray:
    """What pycocoevalcap counts for BLEU of each caption, (N, 10).

    Its n-grams of each order that a reference has, all of them, its length, and the length of the
    reference that is closest, the shorter of two.
    """
    scorer = BleuScorer(n=len(ORDERS))
    for image_id, caption in candidates.items():
        scorer += (caption, truth[image_id])
    rows = []
    for found in scorer.ctest:
        length = found["testlen"]
        closest = min(found["reflen"], key=lambda other: (abs(other - length), other))
        rows.append([*found["correct"], *found["guess"], length, closest])
    return np.array(rows, float)


def bleu(n: int) -> Callable[[np.ndarray], np.ndarray]:
    """BLEU-n of sums of `bleu_counts`, as pycocoevalcap computes it."""

    def of(sums: np.ndarray) -> np.ndarray:
        correct, guesses, length, closest = np.split(sums, [4, 8, 9], axis=-1)
        shares = (correct + TINY) / (guesses + SMALL)  # (…, 4)
        precision = np.prod(shares[..., :n], axis=-1) ** (1 / n)  # (…)
        ratio = ((length + TINY) / (closest + SMALL))[..., 0]
        return precision * np.exp(np.minimum(0, 1 - 1 / ratio))

    return of
