"""What comes with the repository: the captioner, and what the speed is measured on."""

import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import ROOT

from captioning.captions import Vocabulary, read_captions, read_split_lists
from captioning.cli import INCLUDED, TRAINED, default_model
from model import Captioner


def test_the_captioner_says_something_else_of_each_example(said):
    assert len(set(said.values())) == len(said) > 5


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
    (count,) = {member["data"]["min_word_count"] for member in captioner.config.training["members"]}
    assert captioner.vocabulary.words == Vocabulary.from_captions(training, count).words


def test_speed_is_measured_on_captions_as_long_as_flickr8k_s(training, monkeypatch):
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])
    import workload

    lengths = np.bincount([len(caption.split()) for caption in training])
    np.testing.assert_array_equal(lengths[workload.FIRST_LENGTH :], workload.LENGTHS)
