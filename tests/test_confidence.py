"""How sure a captioner is: a probability that holds on captions it was not fitted on."""

import csv
import functools
import io
import json

import joblib
import numpy as np
import pytest
from helpers import run_here

from captioning.beams import Caption
from captioning.captions import LENGTH_PENALTY
from captioning.confidence import GOOD, Calibration, report, signals, table
from captioning.files import save_pickle
from model import Captioner


def some_captions(count: int, seed: int = 0) -> list[Caption]:
    """Of a known probability to be good: see `truth`."""
    random = np.random.default_rng(seed)
    return [
        Caption("a dog runs"[: random.choice([5, 10])], random.uniform(-12, -2), random.uniform())
        for _ in range(count)
    ]


TRUTH = Calibration(intercept=1.5, log_probability=0.7, expected_cider=1.2)


def test_a_fit_finds_the_probability_with_which_captions_are_good():
    captions = some_captions(20_000)
    probability = np.array([TRUTH.confidence(caption) for caption in captions])
    assert 0.2 < probability.mean() < 0.8
    good = np.random.default_rng(1).uniform(size=len(captions)) < probability
    fitted = Calibration.fit(captions, np.where(good, GOOD, GOOD - 0.01))
    np.testing.assert_allclose(fitted, TRUTH, rtol=0.1)
    found = report(np.array([fitted.confidence(c) for c in captions]), good * 1.0)
    assert found["calibration_error"] < 0.02
    # Of a captioner without neighbours nothing is expected: the log-probability alone counts.
    alone = Calibration.fit([c._replace(expected_cider=None) for c in captions], good * 1.0)
    assert alone.expected_cider == 0 < alone.log_probability


def test_the_log_probability_counts_as_in_a_beam_s_ranking_whatever_the_options():
    caption = Caption("a dog runs", -8.0, 0.25)
    assert signals(caption) == (-8.0 / 4**LENGTH_PENALTY, np.log(0.25))
    odds = 1.5 + 0.7 * -8.0 / 4**0.8 + 1.2 * np.log(0.25)
    assert TRUTH.confidence(caption) == pytest.approx(1 / (1 + np.exp(-odds)))
    least = [TRUTH.confidence(caption._replace(expected_cider=x)) for x in (0.05, 0, -1)]
    assert len(set(least)) == 1
    assert 0 < TRUTH.confidence(Caption("a", -1e9)) < 1e-9  # no overflow
    assert 0 < TRUTH.confidence(Caption("a", float("nan"))) < 1e-9


@pytest.mark.parametrize(("cider", "some"), [(0.4, "none"), (0.6, "all")])
def test_of_equal_captions_nothing_is_learnt(cider, some):
    with pytest.raises(ValueError, match=f"{some} of 9 captions have a CIDEr of 0.5 or more"):
        Calibration.fit(some_captions(9), np.full(9, cider))


def test_a_report_by_hand():
    confidence = np.array([0.95, 0.05, 0.55, 0.58])
    found = report(confidence, np.array([1.0, 0.0, 0.2, 0.8]))
    # Bins: one of .95, good; one of .05, not; one of two, of which one is good.
    assert found["calibration_error"] == pytest.approx((0.05 + 0.05 + 0.13) / 4)
    assert found["spearman"] == pytest.approx(1)
    half = next(row for row in found["coverage"] if row["share"] == 0.5)
    assert half == pytest.approx({"share": 0.5, "confidence": 0.58, "CIDEr": 0.9, "good": 1.0})
    assert found["coverage"][0] == pytest.approx(
        {"share": 1.0, "confidence": 0.05, "CIDEr": 0.5, "good": 0.5}
    )
    assert "50%        0.58  0.900  100.0%" in table(found)
    equal = report(np.full(3, 0.5), np.arange(3.0))
    assert equal["spearman"] is None and "Spearman" not in table(equal)


@pytest.fixture(scope="module")
def data(demo, tmp_path_factory):
    """The demo's data, but that people say something else of every second photo of dev and test.

    Of its own dev split every caption is good: nothing could be learnt of confidence.
    """
    folder = tmp_path_factory.mktemp("data")
    (folder / "features.pkl").symlink_to(demo / "data" / "features.pkl")
    text = joblib.load(demo / "data" / "captions.pkl")
    for split in ("dev", "test"):
        for image_id in text["splits"][split][::2]:
            text["captions"][image_id] = ["nothing of that kind"]
    save_pickle(text, folder / "captions.pkl")
    return folder


@pytest.fixture(scope="module")
def calibrated(demo, data, tmp_path_factory):
    """The demo's captioner with neighbours and confidence, and what calibrate.py printed."""
    path = tmp_path_factory.mktemp("calibrated") / "m.h5"
    add = ("--neighbours", data, "--model_path", path)
    run_here("ensemble.py", demo / "models" / "caption_model.h5", *add)
    before, size = Captioner.load(path), path.stat().st_size
    told = run_here("calibrate.py", path, "--data_dir", data).stdout
    after = Captioner.load(path)
    assert before.calibration is None and after.calibration.expected_cider
    weights = (captioner.decoder.network.weights for captioner in (before, after))
    for old, new in zip(*weights, strict=True):
        np.testing.assert_array_equal(old, new)
    assert path.stat().st_size < size + 5000
    return path, told


def test_calibrate_reports_on_the_half_that_it_has_not_seen(calibrated):
    _, told = calibrated
    assert "fitted on 36 dev photos; of the others:" in told
    assert "confidence and CIDEr of 36 photos" in told


@pytest.mark.long
def test_a_caption_s_confidence_is_written_and_bounds_what_is_written(
    calibrated, demo, monkeypatch
):
    path, _ = calibrated
    monkeypatch.setattr(Captioner, "load", functools.cache(Captioner.load))
    photos = sorted((demo / "dataset" / "Images").glob("*.jpg"))[:20]
    command = ("generate_caption.py", "--image_path", *photos, "--model_path", path)
    lines = run_here(*command, "--format", "jsonl").stdout.splitlines()
    confidence = {row["image_path"]: row["confidence"] for row in map(json.loads, lines)}
    assert all(0 < value < 1 for value in confidence.values())
    rows = csv.DictReader(io.StringIO(run_here(*command, "--format", "csv").stdout))
    assert {row["image_path"]: float(row["confidence"]) for row in rows} == confidence
    least = float(np.median([*confidence.values()])) + 1e-6
    done = run_here(*command, "--min_confidence", least)
    said = {line.split("\t")[0] for line in done.stdout.splitlines()}
    assert said == {path for path, value in confidence.items() if value >= least}
    skipped = len(confidence) - len(said)
    assert 0 < len(said) < len(confidence)
    assert f"{len(said)} captioned, {skipped} skipped" in done.stderr
    assert done.stderr.count(": confidence 0.") == skipped
    done = run_here(*command, "--min_confidence", 0.99999, code=1)
    assert "could be captioned with confidence 0.99999" in done.stderr


def test_without_a_calibration_there_is_no_confidence(calibrated, demo):
    path, _ = calibrated
    photo = next((demo / "dataset" / "Images").glob("*.jpg"))
    command = ("generate_caption.py", "--image_path", photo, "--format", "jsonl", "--model_path")
    assert json.loads(run_here(*command, path, "--no_neighbours").stdout)["confidence"] is None
    bound = ("--min_confidence", 0.5)
    done = run_here(*command, path, "--no_neighbours", *bound, code=1)
    assert "no confidence is known. Leave out --no_neighbours" in done.stderr
    done = run_here(*command, demo / "models" / "caption_model.h5", *bound, code=1)
    assert "caption_model.h5: python calibrate.py" in done.stderr


@pytest.mark.long
def test_evaluate_says_what_confidence_is_worth(calibrated, data, demo, tmp_path, no_java):
    path, _ = calibrated
    command = ("evaluate.py", "--data_dir", data, "--model_path", path)
    command += ("--images_dir", demo / "dataset" / "Images", "--output_dir", tmp_path)
    done = run_here(*command, "--split", "test")
    found = json.loads((tmp_path / "scores.json").read_text())
    assert table(found["confidence"]) in done.stdout
    coverage = found["confidence"]["coverage"]
    assert coverage[0]["CIDEr"] == pytest.approx(found["model"]["CIDEr"])
    assert (tmp_path / "coverage.png").stat().st_size > 10_000
    assert found["protocol"]["decoding"]["beam_size"] == 10


def test_what_calibrates_nothing_is_said(demo, small, tmp_path):
    model = demo / "models" / "caption_model.h5"
    text = joblib.load(demo / "data" / "captions.pkl")
    text["splits"]["dev"] = text["splits"]["train"][:50]
    save_pickle(text, tmp_path / "captions.pkl")
    (tmp_path / "features.pkl").symlink_to(demo / "data" / "features.pkl")
    done = run_here("calibrate.py", model, "--data_dir", tmp_path, code=1)
    assert "trained on 50 of the dev photos, and would seem too sure" in done.stderr
    done = run_here("calibrate.py", model, "--data_dir", demo / "data", code=1)
    assert "all of 36 captions have a CIDEr of 0.5 or more" in done.stderr
    done = run_here("calibrate.py", model, "--data_dir", small / "data", code=1)
    assert "the dev split has 6 photos; it takes 40 or more" in done.stderr
