"""The captioner that is included, and when it is taken."""

from pathlib import Path

import pytest

from captioning.captions import Vocabulary, read_captions, read_split_lists
from captioning.cli import INCLUDED, TRAINED, default_model
from model import Captioner


def test_it_tells_the_examples_apart_in_its_own_words(said):
    words = set(Captioner.load(INCLUDED).vocabulary.words[4:])
    assert len(set(said.values())) == len(said) > 5
    assert all(set(caption.split()) <= words for caption in said.values())


def test_its_words_are_those_of_the_training_split(flickr8k):
    captioner = Captioner.load(INCLUDED)
    captions, _ = read_captions(flickr8k / "captions.txt")
    training = [line for i in read_split_lists(flickr8k)["train"] for line in captions[i]]
    (count,) = {member["data"]["min_word_count"] for member in captioner.config.training["members"]}
    assert captioner.vocabulary.words == Vocabulary.from_captions(training, count).words


@pytest.mark.parametrize("trained", [False, True])
def test_without_a_name_the_trained_model_is_taken_or_the_included_one(
    trained, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    if trained:
        TRAINED.parent.mkdir()
        TRAINED.touch()
    found = default_model()
    assert found == (Path("models/caption_model.h5") if trained else INCLUDED)
    told = capsys.readouterr().err
    assert str(found) in told
    assert ("included" in told) == (not trained)
