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

from captioning.captions import LENGTH_PENALTY, tokenize
from captioning.cli import INCLUDED_H5
from captioning.files import InputError
from captioning.scoring import Scorer, constant_caption
from evaluate import score_rows
from model import Captioner

CANDIDATES = {"a.jpg": "a dog runs fast", "b.jpg": "a man sits down"}
REFERENCES = {
    "a.jpg": ["a dog runs fast today", "the dog runs"],
    "b.jpg": ["a man stands up there now"],
}
needs_java = pytest.mark.skipif(shutil.which("java") is None, reason="Java is not installed")


@pytest.fixture
def scorer(no_java):
    return Scorer()


def test_two_captions_scored_by_hand(scorer):
    scores, each = scorer.score(CANDIDATES, REFERENCES)
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
    np.testing.assert_allclose(each, [a, b], rtol=1e-6)
    assert scores["CIDEr"] == pytest.approx((a + b) / 2)


def test_misaligned_ids_are_refused_and_order_does_not_matter(scorer):
    swapped = dict(reversed(REFERENCES.items()))
    assert scorer.score(CANDIDATES, swapped)[0] == scorer.score(CANDIDATES, REFERENCES)[0]
    for candidates, references, message in (
        (CANDIDATES | {"c.jpg": "a"}, REFERENCES, "c.jpg"),
        ({"a.jpg": "a dog"}, REFERENCES, "b.jpg"),
        (CANDIDATES, REFERENCES | {"b.jpg": []}, "no reference"),
    ):
        with pytest.raises(InputError, match=message):
            scorer.score(candidates, references)


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
        return scorer.score(dict.fromkeys(training, caption), training)[0]["CIDEr"]

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
    assert scorer.score(same, REFERENCES)[0]["METEOR"] == pytest.approx(1.0)
    whole, _ = scorer.score(CANDIDATES, REFERENCES)
    assert 0 < whole.pop("METEOR") < 1
    scorer._meteor.meteor_p.kill()
    assert scorer.score(CANDIDATES, REFERENCES)[0] == whole
    assert "failed" in scorer.without_meteor


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
