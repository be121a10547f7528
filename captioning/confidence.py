"""How sure a captioner is of a caption, and how far that can be trusted.

Confidence is a probability: that the caption's own CIDEr is `GOOD` or more. TensorFlow is not
needed.
"""

import math
from typing import NamedTuple

import numpy as np

from captioning.captions import LENGTH_PENALTY

GOOD = 0.5  # CIDEr; about half of a good captioner's captions have it
LEAST_CIDER = 0.05  # to be expected; less, or none, is as bad
BINS = 10  # of confidence, in which it is compared with the share of good captions
COVERAGES = (1.0, 0.9, 0.75, 0.5, 0.25, 0.1)  # shares of the photos, of the table's rows


class Calibration(NamedTuple):
    """A logistic regression on what is known of a caption when it has been found."""

    intercept: float
    log_probability: float  # the weight of it, divided as in a beam's ranking
    expected_cider: float  # the weight of its logarithm, 0 without `Neighbours`

    @classmethod
    def fit(cls, captions: list, cider: np.ndarray) -> "Calibration":
        """Of N `Caption`s and their CIDEr (N,); raises ValueError where all are good, or none."""
        from sklearn.linear_model import LogisticRegression

        good = cider >= GOOD
        if good.all() or not good.any():
            some = "all" if good.all() else "none"
            raise ValueError(f"{some} of {len(good)} captions have a CIDEr of {GOOD} or more")
        fitted = LogisticRegression(C=100, max_iter=1000).fit([*map(signals, captions)], good)
        return cls(float(fitted.intercept_[0]), *fitted.coef_[0].tolist())

    @classmethod
    def parse(cls, numbers: list) -> "Calibration":
        """From what a file holds; raises ValueError if these are not three finite numbers."""
        three = isinstance(numbers, list) and len(numbers) == len(cls._fields)
        if not three or not all(isinstance(x, float) and math.isfinite(x) for x in numbers):
            raise ValueError("its calibration is not of three numbers")
        return cls(*numbers)

    def confidence(self, caption) -> float:
        """Of a `Caption`."""
        odds = self.intercept + float(np.dot(self[1:], signals(caption)))
        odds = max(-30.0, min(30.0, odds)) if math.isfinite(odds) else -30.0  # a file may lie
        return 1 / (1 + math.exp(-odds))


def signals(caption) -> tuple[float, float]:
    """What a `Calibration` weighs; it does not depend on the options of decoding.

    An end is counted even where the longest caption has none.
    """
    length = len(caption.text.split()) + 1
    expected = 0.0
    if caption.expected_cider is not None:
        expected = math.log(max(caption.expected_cider, LEAST_CIDER))
    return caption.log_probability / length**LENGTH_PENALTY, expected


def report(confidence: np.ndarray, cider: np.ndarray) -> dict:
    """What N captions show of their confidence, both (N,).

    "spearman": the rank correlation with CIDEr, None where all are alike. "calibration_error": the
    expected one (Naeini et al. 2015), in ten bins of equal width. "coverage": of the surest
    captions their share, the least confidence among them, their mean CIDEr, and how many are good.
    """
    from scipy.stats import spearmanr

    order = np.argsort(-confidence, kind="stable")
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    gaps = np.bincount(bins, confidence - (cider >= GOOD), BINS)  # the sum in each bin
    coverage = []
    for share in COVERAGES:
        kept = order[: max(1, round(share * len(order)))]
        good = (cider[kept] >= GOOD).mean()
        values = (share, confidence[kept[-1]], cider[kept].mean(), good)
        names = ("share", "confidence", "CIDEr", "good")
        coverage.append(dict(zip(names, map(float, values), strict=True)))
    varied = np.ptp(confidence) > 0 and np.ptp(cider) > 0
    return {
        "images": len(cider),
        "spearman": float(spearmanr(confidence, cider)[0]) if varied else None,
        "calibration_error": float(np.abs(gaps).sum() / len(cider)),
        "coverage": coverage,
    }


def table(found: dict) -> str:
    """What `report` found, as text."""
    rows = ["of the surest  confidence  CIDEr   good"]
    row = "{share:>13.0%}  {confidence:>10.2f}  {CIDEr:>5.3f}  {good:>5.1%}".format_map
    rows += map(row, found["coverage"])
    spearman = "" if found["spearman"] is None else f"Spearman {found['spearman']:.3f}, "
    rows.append(
        f"confidence and CIDEr of {found['images']} photos: {spearman}"
        f"expected calibration error {found['calibration_error']:.3f}"
    )
    return "\n".join(rows)
