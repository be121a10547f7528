"""How far a score may be chance: intervals over photos, paired tests, and several seeds.

The statistics are SciPy's. Photos are what is drawn again: a resample is an array of their
positions, and a score of it is computed from the sums of what its photos count.
"""

import warnings

import numpy as np
from scipy import stats

from captioning.scoring import Measure

LEVEL = 0.95  # of all intervals
RESAMPLES = 9999  # another seed moves an interval's ends by a hundredth of its width
BATCH = 100  # resamples at once, so that memory stays bounded


def interval(measure: Measure, seed: int = 0) -> list[float] | None:
    """The bootstrap's interval (BCa, Efron 1987) of a score over photos, as [low, high].

    None where photos are all alike, or fewer than two.
    """
    if (measure.counts == measure.counts[0]).all():
        return None
    return _bootstrap(lambda photos: score_of(measure, photos), len(measure.counts), seed)


def difference(first: Measure, second: Measure, seed: int = 0) -> dict:
    """By how much the second system's score is higher on the same N photos.

    Returns "difference", its "interval" as above, both systems' scores being resampled together,
    and "p" of the paired randomization test: the share of the ways to swap the two systems'
    captions, photo by photo, by which the difference is at least as large; twice that of the rarer
    direction. Of a single photo both are None.
    """
    count = len(first.counts)
    both = Measure(np.concatenate([first.counts, second.counts]), first.of)

    def gain(mine: np.ndarray, theirs: np.ndarray, axis: int = -1) -> np.ndarray:
        # Rounded: sums in another order differ in their last digit, and equals would count as less.
        return np.round(score_of(both, theirs) - score_of(both, mine), 12)

    if count < 2:
        return {"difference": second.score - first.score, "interval": None, "p": None}
    photos = np.arange(count)
    tested = stats.permutation_test(
        (photos, photos + count),
        gain,
        permutation_type="samples",
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=BATCH,
        rng=np.random.default_rng(seed),
    )
    return {
        "difference": second.score - first.score,
        "interval": _bootstrap(lambda drawn: gain(drawn, drawn + count), count, seed),
        "p": float(tested.pvalue),
    }


def seeds_difference(first: list[float], second: list[float]) -> dict:
    """The same of two systems, each trained with several seeds: of their mean scores.

    The chance is that of the seeds. Interval and p are of Welch's t-test, for which the seeds of
    one system may vary more than the other's. Both are None where no seed makes a difference.
    """
    if np.ptp(first) == np.ptp(second) == 0:
        gain = float(second[0] - first[0])
        return {"difference": gain, "interval": None, "p": None}
    tested = stats.ttest_ind(second, first, equal_var=False)
    low, high = map(float, tested.confidence_interval(LEVEL))
    return {
        "difference": float(np.mean(second) - np.mean(first)),
        "interval": [low, high],
        "p": float(tested.pvalue),
    }


def score_of(measure: Measure, photos: np.ndarray) -> np.ndarray:
    """The scores of drawn photos, positions (…, N) in the measure's counts -> (…)."""
    drawn = photos.reshape(-1, photos.shape[-1])  # (R, N)
    rows = np.arange(len(drawn))[:, None] * len(measure.counts)
    times = np.bincount((drawn + rows).ravel(), minlength=len(drawn) * len(measure.counts))
    sums = times.reshape(len(drawn), -1) @ measure.counts  # (R, k)
    return measure.of(sums).reshape(photos.shape[:-1])


def _bootstrap(score, count: int, seed: int) -> list[float] | None:
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        found = stats.bootstrap(
            (np.arange(count),),
            lambda photos, axis=-1: score(photos),
            vectorized=True,
            n_resamples=RESAMPLES,
            batch=BATCH,
            confidence_level=LEVEL,
            rng=np.random.default_rng(seed),
        ).confidence_interval
    ends = [float(found.low), float(found.high)]
    return ends if np.isfinite(ends).all() else None
