"""The scores: worked out by hand, refused when misaligned, and the rows beside the model's."""

import csv
import json
import shutil
from dataclasses import replace
from math import exp, sqrt

import joblib
import numpy as np
import pytest
from helpers import run_here, shows

from captioning.baselines import constant_caption, score_rows
from captioning.captions import LENGTH_PENALTY, tokenize
from captioning.cli import INCLUDED_H5
from captioning.files import InputError
from captioning.scoring import Scorer
from captioning.significance import interval
from model import Captioner

CANDIDATES = {"a.jpg": "a dog runs fast", "b.jpg": "a man sits down"}
REFERENCES = {
    "a.jpg": ["a dog runs fast today", "the dog runs"],
    "b.jpg": ["a man stands up there now"],
}
needs_java = pytest.mark.skipif(shutil.which("java") is None, reason="Java is not installed")


def scores_of(scorer, candidates, references) -> dict[str, float]:
    """Bare numbers, by name."""
    return {name: m.score for name, m in scorer.measure(candidates, references).items()}


@pytest.fixture
def scorer(no_java):
    return Scorer()


def test_two_captions_scored_by_hand(scorer):
    measures = scorer.measure(CANDIDATES, REFERENCES)
    scores = {name: measure.score for name, measure in measures.items()}
    # BLEU: n-grams of the candidates that a reference holds, 1 to 4 words long, out of all.
    shares = [(4 + 2) / 8, (3 + 1) / 6, (2 + 0) / 4, (1 + 0) / 2]
    brevity = exp(1 - (3 + 6) / (4 + 4))  # 3 and 5 are as close to 4: the shorter one counts
    for n in range(1, 5):
        expected = brevity * np.prod(shares[:n]) ** (1 / n)
        assert scores[f"BLEU-{n}"] == pytest.approx(expected, rel=1e-5)

    # ROUGE-L: longest common subsequence; best precision and best recall over the references.
    def f_measure(precision, recall, beta=1.2):
        return (1 + beta**2) * precision * recall / (recall + beta**2 * precision)

    expected = (f_measure(4 / 4, 4 / 5) + f_measure(2 / 4, 2 / 6)) / 2
    assert scores["ROUGE-L"] == pytest.approx(expected)

    # CIDEr-D: "a" is in both images' references and weighs nothing, all else weighs log 2, which
    # cancels out of the cosines; a Gaussian (sigma 6) of the difference in length.
    first = (3 / sqrt(3 * 4) + 3 / sqrt(3 * 4) + 2 / sqrt(2 * 3) + 1 / sqrt(1 * 2)) / 4
    second = (2 / sqrt(3 * 3) + 1 / sqrt(3 * 2) + 0 + 0) / 4
    a = 10 * exp(-(1**2) / 72) * (first + second) / 2
    b = 10 * exp(-(2**2) / 72) * (1 / sqrt(3 * 5) + 1 / sqrt(3 * 5) + 0 + 0) / 4
    np.testing.assert_allclose(measures["CIDEr"].each, [a, b], rtol=1e-6)
    assert scores["CIDEr"] == pytest.approx((a + b) / 2)


def test_misaligned_ids_are_refused_and_order_does_not_matter(scorer):
    swapped = dict(reversed(REFERENCES.items()))
    assert scores_of(scorer, CANDIDATES, swapped) == scores_of(scorer, CANDIDATES, REFERENCES)
    for candidates, references, message in (
        (CANDIDATES | {"c.jpg": "a"}, REFERENCES, "c.jpg"),
        ({"a.jpg": "a dog"}, REFERENCES, "b.jpg"),
        (CANDIDATES, REFERENCES | {"b.jpg": []}, "no reference"),
    ):
        with pytest.raises(InputError, match=message):
            scores_of(scorer, candidates, references)


def test_a_model_that_says_what_people_say_gets_the_human_row(scorer, small):
    captions = joblib.load(small / "data" / "captions.pkl")["captions"]
    human = {image_id: lines[0] for image_id, lines in captions.items()}
    rows, _ = score_rows(scorer, human, captions, captions, seed=0)
    assert rows["model, same references as human"] == rows["human"]
    assert rows["human"]["BLEU-1"] < 0.9  # scored by the others
    assert rows["model"]["BLEU-1"] == pytest.approx(1.0)  # its own caption is a reference
    assert rows["model"]["copied_from_training"] == 1.0
    assert rows["shuffled"]["CIDEr"] < 0.5 * rows["model"]["CIDEr"]


def test_the_constant_caption_is_the_best_one(scorer):
    """Against every candidate, scored in full."""
    random = np.random.default_rng(0)
    lines = [random.choice([*"abcdef"], size, replace=False) for size in random.integers(4, 7, 40)]
    training = {i: [" ".join(line)] * 2 for i, line in enumerate(lines)}

    def cider(caption):
        return scores_of(scorer, dict.fromkeys(training, caption), training)["CIDEr"]

    best = max(cider(caption) for caption, _ in training.values())
    assert cider(constant_caption(training)) == pytest.approx(best, rel=1e-3)


def test_captions_of_a_word_or_two_are_scored(scorer):
    """As of classes or tags: there is no run of four words, and no two of them."""
    for caption in ("dog", "red dog"):
        training = {"a": ["cat"], "b": [caption], "c": [caption], "d": ["x"]}
        rows, _ = score_rows(scorer, dict.fromkeys(training, "dog"), training, training, seed=0)
        assert rows["protocol"]["constant_caption"] == caption
        assert np.isfinite(rows["constant"]["CIDEr"])


@pytest.mark.long
@needs_java
def test_meteor_knows_the_same_from_the_other_and_the_rest_does_without_it():
    scorer = Scorer()
    same = {image_id: lines[0] for image_id, lines in REFERENCES.items()}
    assert scores_of(scorer, same, REFERENCES)["METEOR"] == pytest.approx(1.0)
    measures = scorer.measure(CANDIDATES, REFERENCES)
    whole = scores_of(scorer, CANDIDATES, REFERENCES)
    assert 0 < whole.pop("METEOR") < 1
    scorer._meteor.meteor_p.kill()
    assert interval(measures["METEOR"]) is None
    assert "failed" in scorer.without_meteor
    assert scores_of(scorer, CANDIDATES, REFERENCES) == whole
    assert "failed" in scorer.without_meteor


def some_of_the_captions(data, other: int = 1) -> tuple[dict, dict]:
    """A human caption of each image as a system's, those from `other` on as its references."""
    captions = joblib.load(data / "data" / "captions.pkl")["captions"]
    kept = {i: lines for i, lines in captions.items() if len(lines) > other}
    return {i: lines[0] for i, lines in kept.items()}, {i: lines[1:] for i, lines in kept.items()}


def test_bleu_is_pycocoevalcap_s_and_sacrebleu_s(scorer, small):
    """Of all images, and of each alone; sacrebleu as it is without smoothing and tokens."""
    from pycocoevalcap.bleu.bleu import Bleu
    from sacrebleu.metrics import BLEU

    said, references = some_of_the_captions(small)
    said |= dict.fromkeys(list(said)[:20], "a red square")  # another length: the brevity counts
    said |= {i: references[i][-1] for i in list(said)[20:30]}  # long enough to have four words
    whole, each = Bleu(4).compute_score(references, {i: [c] for i, c in said.items()}, verbose=0)
    measures = scorer.measure(said, references)
    streams = [[lines[n] for lines in references.values()] for n in range(4)]
    for n in range(1, 5):
        measure = measures[f"BLEU-{n}"]
        assert measure.score == pytest.approx(whole[n - 1], rel=1e-12)
        np.testing.assert_allclose(measure.each, each[n - 1], rtol=1e-9)
        theirs = BLEU(tokenize="none", smooth_method="none", max_ngram_order=n, force=True)
        found = theirs.corpus_score(list(said.values()), streams)
        assert found.bp < 1
        assert 100 * measure.score == pytest.approx(found.score, rel=1e-6)


@pytest.mark.long
@needs_java
def test_meteor_of_the_counted_is_that_of_the_captions(small):
    from pycocoevalcap.meteor.meteor import Meteor

    said, references = some_of_the_captions(small)
    references = {
        i: [*lines, said[i]] if n % 3 == 0 else lines
        for n, (i, lines) in enumerate(references.items())
    }
    whole, _ = Meteor().compute_score(references, {i: [c] for i, c in said.items()})
    measure = Scorer().measure(said, references)["METEOR"]
    assert measure.score == pytest.approx(whole, rel=1e-12)
    low, high = interval(measure)
    assert low < whole < high


@needs_java
def test_tokens_agree_with_the_standard_tokenizer(flickr8k):
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    with (flickr8k / "captions.txt").open(newline="", encoding="utf-8") as file:
        captions = [caption for _, caption in list(csv.reader(file))[1:]]
    standard = PTBTokenizer().tokenize({n: [{"caption": c}] for n, c in enumerate(captions)})
    ours = [" ".join(tokenize(caption)) for caption in captions]
    other = [(a, standard[n][0]) for n, a in enumerate(ours) if a != standard[n][0]]
    assert len(other) <= 0.002 * len(captions), other


def evaluate(data, output, *arguments, code=0):
    places = ("--data_dir", data / "data", "--images_dir", data / "dataset" / "Images")
    return run_here("evaluate.py", *places, "--output_dir", output, *arguments, code=code)


def test_evaluate_scores_what_it_writes(demo, captioner, tmp_path, no_java):
    """Scored again, by the scorer itself; the loss is that of the training's best epoch."""
    from pycocoevalcap.cider.cider import Cider

    model = ("--model_path", demo / "models" / "caption_model.h5")
    done = evaluate(demo, tmp_path, *model, "--beam_size", 3, "--split", "dev")
    assert "no METEOR: java was not found; the other scores stand." in done.stderr
    lines = json.loads((tmp_path / "captions.json").read_text())
    said = {line["image_id"]: [line["caption"]] for line in lines}
    text = joblib.load(demo / "data" / "captions.pkl")
    assert list(said) == text["splits"]["dev"]
    scores = json.loads((tmp_path / "scores.json").read_text())
    cider, each = Cider().compute_score({i: text["captions"][i] for i in said}, said)
    assert scores["model"]["CIDEr"] == pytest.approx(cider)
    for row in scores.keys() - {"protocol"}:
        for name, ends in scores[row]["intervals"].items():
            assert ends is None or ends[0] <= scores[row][name] <= ends[1]
    assert all(low < high for low, high in scores["shuffled"]["intervals"].values())
    with (tmp_path / "per_photo.csv").open(newline="") as file:
        photos = list(csv.DictReader(file))
    assert [row["image"] for row in photos] == list(said)
    assert [row["caption"] for row in photos] == [caption for (caption,) in said.values()]
    np.testing.assert_allclose([float(row["CIDEr"]) for row in photos], each)
    assert all(json.loads(r["references"]) == text["captions"][r["image"]] for r in photos)
    assert all(float(r["log_probability"]) < 0 and r["confidence"] == "" for r in photos)
    data = scores["protocol"]["data"]
    assert data["captions_sha256"] == text["settings"]["captions_sha256"]
    assert scores["protocol"]["scst"] is None
    assert scores["model"]["CIDEr"] > 2 * scores["shuffled"]["CIDEr"]
    assert scores["model"]["BLEU-4"] > scores["constant"]["BLEU-4"]
    loss = captioner.config.training["kept"]["dev_loss"]
    assert scores["model"]["loss_per_token"] == pytest.approx(loss, rel=1e-4)
    decoding = {"beam_size": 3, "length_penalty": LENGTH_PENALTY, "neighbours": False}
    assert scores["protocol"]["decoding"] == decoding
    for row in scores.keys() - {"protocol"}:
        assert f"{row} " in done.stdout and f"{scores[row]['CIDEr']:.3f}\n" in done.stdout
    for chosen in (each.argmax(), each.argmin()):
        photo = demo / "dataset" / "Images" / list(said)[chosen]
        assert shows(tmp_path / "gallery.png", photo)


def test_what_says_little_is_said(demo, tmp_path, no_java):
    """Of few photos, of a single reference; the human rows are of the photos that have several."""
    data = tmp_path / "data"
    data.mkdir()
    shutil.copy(demo / "data" / "features.pkl", data)
    text = joblib.load(demo / "data" / "captions.pkl")
    first = text["splits"]["dev"][0]
    text["captions"][first] = text["captions"][first][:1]
    joblib.dump(text, data / "captions.pkl")
    model = ("--model_path", demo / "models" / "caption_model.h5")
    done = evaluate(tmp_path, tmp_path / "results", *model)
    assert "note: 72 images are few" in done.stderr
    assert "note: 1 of 72 images have a single reference" in done.stderr
    assert "\nhuman " in done.stdout
    assert done.stdout.count("the final figure is --split test") == 1


@pytest.mark.long
def test_photos_that_were_trained_on_are_told_and_left_out(demo, tmp_path, no_java):
    """Whatever split they are in now; one of a dev split that moved into training, here."""
    text = joblib.load(demo / "data" / "captions.pkl")
    moved = text["splits"]["train"][0]
    text["splits"]["dev"][0] = moved
    (tmp_path / "data").mkdir()
    shutil.copy(demo / "data" / "features.pkl", tmp_path / "data")
    joblib.dump(text, tmp_path / "data" / "captions.pkl")
    model = ("--model_path", demo / "models" / "caption_model.h5")
    done = evaluate(tmp_path, tmp_path / "results", *model)
    assert "note: 1 of these images are in the model's training set" in done.stderr
    evaluate(tmp_path, tmp_path / "results", *model, "--exclude_trained")
    said = json.loads((tmp_path / "results" / "captions.json").read_text())
    assert moved not in [line["image_id"] for line in said] and len(said) == 71
    unknown = replace(Captioner.load(model[1]), photos=None)
    unknown.save(tmp_path / "old.h5")
    done = evaluate(tmp_path, tmp_path / "results", "--model_path", tmp_path / "old.h5")
    assert "note: training photos not recorded" in done.stderr


def test_evaluate_refuses_what_cannot_be_compared(small, demo, tmp_path):
    text = joblib.load(small / "data" / "captions.pkl")
    features = joblib.load(small / "data" / "features.pkl")
    (tmp_path / "data").mkdir()
    demos, ours = demo / "models" / "caption_model.h5", INCLUDED_H5
    for change_text, change_features, model, message in (
        ({"splits": text["splits"] | {"dev": []}}, {}, demos, "the dev split is empty"),
        ({}, {"encoder": "vgg16"}, demos, "the features are of vgg16"),
        ({}, {"image_ids": ["x"] * 60}, demos, "has no features"),
        ({}, {}, ours, "--features grid"),
    ):
        joblib.dump(text | change_text, tmp_path / "data" / "captions.pkl")
        joblib.dump(features | change_features, tmp_path / "data" / "features.pkl")
        done = evaluate(tmp_path, tmp_path / "results", "--model_path", model, code=1)
        assert message in done.stderr
        assert not (tmp_path / "results").exists()
