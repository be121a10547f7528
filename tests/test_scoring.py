"""The scores: worked out by hand, refused when misaligned, and the rows beside the model's."""

import csv
import json
import shutil
from math import exp, sqrt

import joblib
import numpy as np
import pytest
from helpers import ROOT, run_here, run_script, shows

from captioning.batches import CaptionBatches, caption_rows
from captioning.captions import LENGTH_PENALTY, tokenize
from captioning.cli import INCLUDED
from captioning.files import InputError
from captioning.scoring import Scorer, constant_caption
from captioning.training import loss_per_token
from evaluate import score_rows

CANDIDATES = {"a.jpg": "a dog runs fast", "b.jpg": "a man sits down"}
REFERENCES = {
    "a.jpg": ["a dog runs fast today", "the dog runs"],
    "b.jpg": ["a man stands up there now"],
}
needs_java = pytest.mark.skipif(shutil.which("java") is None, reason="Java is not installed")


@pytest.fixture
def scorer(monkeypatch):
    """Without METEOR, which takes seconds to start."""
    monkeypatch.setattr(shutil, "which", lambda name: None)
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
    with pytest.raises(InputError, match=r"c\.jpg"):
        scorer.score(CANDIDATES | {"c.jpg": "a"}, REFERENCES)
    with pytest.raises(InputError, match=r"b\.jpg"):
        scorer.score({"a.jpg": "a dog"}, REFERENCES)
    with pytest.raises(InputError, match="no reference"):
        scorer.score(CANDIDATES, REFERENCES | {"b.jpg": []})


def test_a_model_that_says_what_people_say_gets_the_human_row(scorer, demo):
    captions = joblib.load(demo / "data" / "captions.pkl")["captions"]
    human = {image_id: lines[0] for image_id, lines in captions.items()}
    rows, _ = score_rows(scorer, human, captions, captions, seed=0)
    assert rows["model, same references as human"] == rows["human"]
    assert rows["model"]["BLEU-1"] == pytest.approx(1.0)  # its own caption is a reference
    assert rows["model"]["copied_from_training"] == 1.0
    assert rows["shuffled"]["CIDEr"] < 0.5 * rows["model"]["CIDEr"]
    assert rows["constant"]["CIDEr"] > 0


def test_the_constant_caption_is_the_best_one(scorer):
    """Against every candidate, scored in full."""
    random = np.random.default_rng(0)
    words = [f"w{i}" for i in range(6)]
    training = {
        f"{i}.jpg": [" ".join(random.choice(words, random.integers(4, 7), replace=False))] * 2
        for i in range(40)
    }
    found = constant_caption(training)

    def cider(caption):
        return scorer.score(dict.fromkeys(training, caption), training)[0]["CIDEr"]

    candidates = {caption for captions in training.values() for caption in captions}
    assert cider(found) == pytest.approx(max(map(cider, candidates)), rel=1e-3)


@needs_java
def test_meteor_knows_the_same_from_the_other():
    scorer = Scorer()
    same = {image_id: lines[0] for image_id, lines in REFERENCES.items()}
    assert scorer.score(same, REFERENCES)[0]["METEOR"] == pytest.approx(1.0)
    assert 0 < scorer.score(CANDIDATES, REFERENCES)[0]["METEOR"] < 1
    assert scorer.without_meteor == ""


@needs_java
def test_a_broken_meteor_leaves_the_other_scores():
    scorer = Scorer()
    scorer._meteor.meteor_p.kill()
    scorer._meteor.meteor_p.wait()
    scores, _ = scorer.score(CANDIDATES, REFERENCES)
    assert "METEOR" not in scores
    assert scores["BLEU-1"] > 0
    assert "failed" in scorer.without_meteor


def agreement_with_ptb(captions: list[str]) -> tuple[float, list[tuple[str, str]]]:
    """The share of captions that the standard tokenizer splits alike, and the others."""
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    standard = PTBTokenizer().tokenize(
        {number: [{"caption": caption}] for number, caption in enumerate(captions)}
    )
    ours = [" ".join(tokenize(caption)) for caption in captions]
    other = [(a, standard[n][0]) for n, a in enumerate(ours) if a != standard[n][0]]
    return 1 - len(other) / len(captions), other


def captions_in(path) -> list[str]:
    with path.open(newline="", encoding="utf-8") as file:
        return [caption for _, caption in list(csv.reader(file))[1:]]


@needs_java
def test_tokens_agree_with_the_standard_tokenizer(flickr8k):
    share, other = agreement_with_ptb(captions_in(flickr8k / "captions.txt"))
    print(*(f"{a!r} | {b!r}" for a, b in other), sep="\n")  # shown by pytest -s
    print(f"{share:.4%} of 40,455 captions agree with PTB")
    assert share >= 0.998


@needs_java
def test_tokens_of_the_sample_set_agree_with_the_standard_tokenizer(demo):
    share, other = agreement_with_ptb(captions_in(demo / "dataset" / "captions.txt"))
    assert share == 1, other


# -- the script --------------------------------------------------------------------------------


def evaluate(demo, output, *arguments, code=0, run=run_here):
    return run(
        *("evaluate.py", "--model_path", demo / "models" / "caption_model.h5"),
        *("--data_dir", demo / "data", "--output_dir", output),
        *("--images_dir", demo / "dataset" / "Images", *arguments),
        code=code,
    )


@pytest.mark.long
def test_evaluate_writes_comparable_results(demo, captioner, tmp_path):
    done = evaluate(demo, tmp_path / "results", "--beam_size", 3, run=run_script)
    captions = json.loads((tmp_path / "results" / "captions.json").read_text())
    text = joblib.load(demo / "data" / "captions.pkl")
    assert [line["image_id"] for line in captions] == text["splits"]["test"]
    assert not any("<" in line["caption"] for line in captions)
    scores = json.loads((tmp_path / "results" / "scores.json").read_text())
    # Scored again from what was written, by the scorers themselves.
    from pycocoevalcap.cider.cider import Cider

    said = {line["image_id"]: [line["caption"]] for line in captions}
    truth = {image_id: text["captions"][image_id] for image_id in said}
    cider, each = Cider().compute_score(truth, said)
    assert scores["model"]["CIDEr"] == pytest.approx(cider)
    assert scores["model"]["CIDEr"] > 2 * scores["shuffled"]["CIDEr"]
    assert scores["model"]["BLEU-4"] > scores["constant"]["BLEU-4"]
    assert scores["protocol"]["decoding"] == {"beam_size": 3, "length_penalty": LENGTH_PENALTY}
    assert scores["protocol"]["images"] == 72
    assert len(scores["protocol"]["model_sha256"]) == 64
    for row in ("model", "constant", "shuffled", "human"):
        assert row in done.stdout
    for chosen in (each.argmax(), each.argmin()):
        photo = demo / "dataset" / "Images" / list(said)[chosen]
        assert shows(tmp_path / "results" / "gallery.png", photo)
    with (demo / "models" / "caption_model.csv").open() as file:
        best = min(float(row["dev_loss"]) for row in csv.DictReader(file))
    features = joblib.load(demo / "data" / "features.pkl")
    pairs = caption_rows("dev", text, features)
    dev = CaptionBatches(features["features"], pairs, captioner.vocabulary, batch_size=64)
    assert loss_per_token(captioner.decoder.network, dev) == pytest.approx(best, rel=1e-4)


def test_evaluate_refuses_what_cannot_be_compared(demo, tmp_path):
    def error(change_features, change_text):
        other = tmp_path / "demo" / "data"
        other.mkdir(parents=True, exist_ok=True)
        features = joblib.load(demo / "data" / "features.pkl")
        text = joblib.load(demo / "data" / "captions.pkl")
        joblib.dump(features | change_features(features), other / "features.pkl")
        joblib.dump(text | change_text(text), other / "captions.pkl")
        done = evaluate(demo, tmp_path / "results", "--data_dir", other, code=1)
        assert not (tmp_path / "results").exists()
        return done.stderr

    def same(content):
        return {}

    no_test = error(same, lambda text: {"splits": text["splits"] | {"test": []}})
    assert "the test split is empty" in no_test
    assert "the features are of vgg16" in error(lambda f: {"encoder": "vgg16"}, same)
    lost = error(lambda f: {"image_ids": ["x"] * len(f["image_ids"])}, same)
    assert "has no features" in lost


def test_without_a_name_the_included_captioner_is_scored(small, tmp_path):
    """Which takes other features than these."""
    done = run_script(ROOT / "evaluate.py", "--data_dir", small / "data", code=1, cwd=tmp_path)
    assert done.stderr.startswith(f"captions by {INCLUDED} (included)\nerror: the features are")
    assert "--features layers" in done.stderr


def test_generate_n_best(demo):
    photo = demo / "dataset" / "Images" / "scene_0000.jpg"
    model_path = demo / "models" / "caption_model.h5"
    base = ("generate_caption.py", "--model_path", model_path, "--image_path", photo)
    done = run_here(*base, "--beam_size", 3, "--num_captions", 3)
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    assert len({caption for _, caption, _ in rows}) == 3
    assert all(float(score) < 0 for _, _, score in rows)
    assert "needs --beam_size 3" in run_here(*base, "--num_captions", 3, code=2).stderr
