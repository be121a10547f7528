"""Intervals hold as often as they say, tests find what is there, and seeds are not photos."""

import numpy as np
import pytest
from scipy import stats

from captioning.scoring import Measure, bleu, mean_of
from captioning.significance import difference, interval, seeds_difference

TRIALS = 300


@pytest.fixture
def resamples(monkeypatch):
    """Enough for what is asked here."""
    monkeypatch.setattr("captioning.significance.RESAMPLES", 999)


def ciders(count: int, random) -> np.ndarray:
    """Skewed as captions' CIDEr is: many near 0, a few high; mean .66."""
    return random.gamma(0.9, 0.66 / 0.9, count)


def bleus(count: int, random) -> Measure:
    """Captions of 8 to 14 words, of which some are right at once; the n-grams go with the words."""
    lengths = random.integers(8, 15, count)
    share = random.beta(4, 2, count)  # of words that are right, another one for each photo
    orders = np.arange(4)
    guesses = lengths[:, None] - orders  # (N, 4)
    correct = random.binomial(guesses, share[:, None] ** (1 + 0.7 * orders))
    closest = lengths + random.integers(-1, 3, count)
    counts = np.concatenate([correct, guesses, lengths[:, None], closest[:, None]], axis=1)
    return Measure(counts.astype(float), bleu(4))


@pytest.mark.long
@pytest.mark.parametrize("drawn", ["cider", "bleu"])
def test_intervals_cover_the_truth_as_often_as_they_say(resamples, drawn):
    """Of 300 samples of 200 photos; 95 % is within four standard errors of what is found."""

    def sample(count, random):
        return mean_of(ciders(count, random)) if drawn == "cider" else bleus(count, random)

    truth = sample(2_000_000, np.random.default_rng(1)).score
    found = [interval(sample(200, np.random.default_rng((2, n))), n) for n in range(TRIALS)]
    covered = np.mean([low <= truth <= high for low, high in found])
    assert abs(covered - 0.95) < 4 * np.sqrt(0.95 * 0.05 / TRIALS), covered
    below, above = (np.mean([end(truth, each) for each in found]) for end in ENDS)
    assert below < 0.07 and above < 0.07  # not on one side alone


ENDS = (lambda truth, each: truth < each[0], lambda truth, each: truth > each[1])


@pytest.mark.long
def test_a_difference_of_nothing_is_found_as_rarely_as_p_says(resamples):
    """Two systems of the same quality on the same photos: p is uniform, and the interval holds."""
    random = np.random.default_rng(3)
    p, covered = [], []
    for trial in range(TRIALS):
        photo = ciders(100, random)
        first, second = (mean_of(photo * random.uniform(0.5, 1.5, 100)) for _ in range(2))
        found = difference(first, second, trial)
        p.append(found["p"])
        covered.append(found["interval"][0] <= 0 <= found["interval"][1])
        assert found["difference"] == pytest.approx(second.score - first.score)
    assert stats.kstest(p, "uniform").pvalue > 0.001
    assert abs(np.mean(covered) - 0.95) < 4 * np.sqrt(0.95 * 0.05 / TRIALS)


def test_pairs_tell_more_than_two_intervals(resamples):
    """A small gain on every photo: the two intervals overlap, and yet it is no chance."""
    random = np.random.default_rng(4)
    first = ciders(300, random)
    second = first + random.normal(0.02, 0.05, 300)
    low, high = interval(mean_of(second))
    assert low < first.mean() < high
    found = difference(mean_of(first), mean_of(second))
    assert found["p"] < 0.005 and 0 < found["interval"][0] < 0.02 < found["interval"][1] < 0.04
    swapped = difference(mean_of(second), mean_of(first))
    np.testing.assert_allclose(swapped["interval"][::-1], np.negative(found["interval"]), atol=2e-3)
    assert difference(mean_of(first), mean_of(first))["p"] == 1


@pytest.mark.long
def test_sacrebleu_finds_the_same(resamples, small):
    """Its bootstrap of BLEU, and its paired tests, on captions: what ours do by SciPy."""
    import joblib
    from sacrebleu.metrics import BLEU
    from sacrebleu.significance import PairedTest

    from captioning.scoring import bleu_counts

    captions = joblib.load(small / "data" / "captions.pkl")["captions"]
    references = {i: lines[2:] for i, lines in captions.items()}
    sides = [{i: lines[n] for i, lines in captions.items()} for n in (0, 1)]
    first, second = (Measure(bleu_counts(side, references), bleu(2)) for side in sides)
    theirs = BLEU(tokenize="none", smooth_method="none", max_ngram_order=2, force=True)
    streams = [list(lines) for lines in zip(*references.values(), strict=True)]
    named = [(str(n), list(side.values())) for n, side in enumerate(sides)]
    found = difference(first, second)
    results = {}
    for kind in ("bs", "ar"):
        test = PairedTest(named, {"BLEU": theirs}, streams, test_type=kind, n_samples=2000)
        results[kind] = test()[1]["BLEU"][1]
    assert results["bs"].score == pytest.approx(100 * second.score)
    assert results["ar"].p_value == pytest.approx(found["p"], abs=0.03)
    low, high = np.multiply(100, interval(second))
    assert (high - low) / 2 == pytest.approx(results["bs"].ci, rel=0.1)
    assert (high + low) / 2 == pytest.approx(results["bs"].mean, abs=0.2 * (high - low))


def test_seeds_are_compared_as_seeds():
    """Welch's test by its formula; what varies little over photos may vary much over seeds."""
    first, second = [0.528, 0.537, 0.525], [0.662, 0.658, 0.647]
    found = seeds_difference(first, second)
    variances = [np.var(side, ddof=1) / 3 for side in (first, second)]
    error, gain = np.sqrt(sum(variances)), np.mean(second) - np.mean(first)
    freedom = sum(variances) ** 2 / sum(v**2 / 2 for v in variances)
    half = stats.t(freedom).ppf(0.975) * error
    np.testing.assert_allclose(found["interval"], [gain - half, gain + half])
    assert found["difference"] == pytest.approx(gain)
    assert found["p"] == pytest.approx(2 * stats.t(freedom).sf(gain / error))
    same = seeds_difference([0.5, 0.5], [0.5, 0.5])
    assert same == {"difference": 0, "interval": None, "p": None}
    assert seeds_difference([0.5, 0.5], [0.6, 0.6])["p"] is None


@pytest.mark.parametrize(("photos", "p", "error"), [(1, 1, 0.13), (2, 0.5, 0.11), (4, 0.125, 0.06)])
def test_p_is_exact_where_few_photos_differ(resamples, photos, p, error):
    """Of 200: a swap of equals changes nothing, not even the last digit of a sum."""
    for seed in range(5):
        first = ciders(200, np.random.default_rng(seed))
        second = first + np.where(np.arange(200) < photos, 0.1, 0)
        assert difference(mean_of(first), mean_of(second), seed)["p"] == pytest.approx(p, abs=error)


def test_what_cannot_vary_has_no_interval():
    one = mean_of(np.array([0.3]))
    assert difference(one, one) == {"difference": 0, "interval": None, "p": None}
    assert interval(mean_of(np.full(50, 0.3))) is None
    assert interval(mean_of(np.array([0.3]))) is None
    assert interval(mean_of(np.array([0.3, 0.5]))) is not None
