"""What comes with the repository: the captioner, and what the speed is measured on."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import EXAMPLES, ROOT, run_here

from captioning.captions import Vocabulary, read_captions, read_split_lists
from captioning.cli import INCLUDED, TRAINED, default_model
from captioning.images import load_image
from model import Captioner


def test_the_captioner_says_something_else_of_each_example(said):
    assert len(set(said.values())) == len(said) > 5


def test_it_is_less_sure_of_a_cup_and_a_rocket_than_of_most_examples():
    """Flickr8k shows neither."""
    command = ("generate_caption.py", "--image_path", EXAMPLES, "--model_path", INCLUDED)
    rows = map(json.loads, run_here(*command, "--format", "jsonl").stdout.splitlines())
    confidence = {Path(row["image_path"]).stem: row["confidence"] for row in rows}
    unsure = max(confidence["coffee"], confidence["rocket"])
    assert unsure < np.median([*confidence.values()]) - 0.02
    assert confidence["donna"] > 0.7  # a dog in a wood


@pytest.mark.long
def test_it_doubts_what_it_says_of_drawings(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])
    import drawings

    words = [f"word{number}" for number in range(50)]
    paths = drawings.draw_pictures(tmp_path, words)
    assert len({path.read_bytes() for path in paths}) == drawings.PICTURES == 100
    captioner = Captioner.load(INCLUDED)
    size, encoder = captioner.config.photo_size, captioner.encoder
    features = np.concatenate([encoder.encode(load_image(path, size)[None]) for path in paths])
    confidence = np.array([beam[0].confidence for beam in captioner.decode(features)])
    assert max(np.median(confidence[kind::3]) for kind in range(3)) < 0.3


def test_it_is_small_and_records_the_photos_that_it_has_seen(training):
    captioner = Captioner.load(INCLUDED)
    assert INCLUDED.stat().st_size < 30e6
    assert len(training) == 30_000 and 11_990 < len(captioner.photos) <= 12_000  # some are twice
    assert len(captioner.neighbours.vectors) == 6_000


@pytest.mark.parametrize("trained", [False, True])
def test_it_is_taken_without_a_name_until_one_is_trained(trained, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    if trained:
        TRAINED.parent.mkdir()
        TRAINED.touch()
    found = default_model()
    assert found == (Path("models/caption_model.h5") if trained else INCLUDED)
    assert str(found) in capsys.readouterr().err


@pytest.fixture
def training(flickr8k) -> list[str]:
    """Flickr8k's training captions."""
    captions, _ = read_captions(flickr8k / "captions.txt")
    return [line for i in read_split_lists(flickr8k)["train"] for line in captions[i]]


def test_the_captioner_knows_the_words_of_flickr8k(training):
    captioner = Captioner.load(INCLUDED)
    # Each word was seen twice as often, in a photo's captions and in those of its mirror image.
    count = captioner.config.training["data"]["min_word_count"] / 2
    words = Vocabulary.from_captions(training, count).words
    assert sorted(captioner.vocabulary.words) == sorted(words)


def test_speed_is_measured_on_captions_as_long_as_flickr8k_s(training, monkeypatch):
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])
    import workload

    lengths = np.bincount([len(caption.split()) for caption in training])
    np.testing.assert_array_equal(lengths[workload.FIRST_LENGTH :], workload.LENGTHS)
