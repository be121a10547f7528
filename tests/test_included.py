"""The captioner that is included: what a fresh clone says of the example photos."""

import contextlib
import io
import shutil
from pathlib import Path

import pytest
from conftest import ROOT, run_here

from captioning.captions import Vocabulary, read_captions, read_split_lists
from generate_caption import INCLUDED, default_model
from model import Captioner

EXAMPLES = ROOT / "data" / "examples"
# Whether they are right is another matter: these photos are not like Flickr8k's.
CAPTIONS = {
    "astronaut.jpg": "a man in a red shirt is holding a drink",
    "camera.jpg": "a man in a red shirt is holding a camera",
    "chelsea.jpg": "a little boy is playing with a toy",
    "coffee.jpg": "a black and white dog is sitting on a red and red toy",
    "rocket.jpg": "a group of people are standing in the middle of a line",
}
MEGABYTES = 25  # at most, for a clone to stay small


def test_the_captions_of_the_examples_are_stable():
    done = run_here(
        *("generate_caption.py", "--image_path", "data/examples", "--beam_size", 3),
        *("--model_path", INCLUDED),
    )
    lines = dict(line.split("\t") for line in done.stdout.splitlines())
    assert {Path(path).name: caption for path, caption in lines.items()} == CAPTIONS


def test_every_example_has_its_rights_told():
    card = (EXAMPLES / "README.md").read_text()
    names = {path.name for path in EXAMPLES.glob("*.jpg")}
    assert names == set(CAPTIONS)
    assert all(f"`{name}`" in card for name in names)


def test_it_is_small():
    assert INCLUDED.stat().st_size < MEGABYTES * 1e6


def test_its_words_are_those_of_the_training_split(flickr8k):
    captioner = Captioner.load(INCLUDED)
    captions, _ = read_captions(flickr8k / "captions.txt")
    training = [line for i in read_split_lists(flickr8k)["train"] for line in captions[i]]
    (count,) = {member["data"]["min_word_count"] for member in captioner.config.training["members"]}
    assert captioner.vocabulary.words == Vocabulary.from_captions(training, count).words


@pytest.mark.parametrize("trained", [False, True])
def test_without_a_name_the_trained_model_is_taken_or_the_included_one(
    trained, demo, tmp_path, monkeypatch
):
    if trained:
        (tmp_path / "models").mkdir()
        shutil.copy(demo / "models" / "caption_model.h5", tmp_path / "models")
    monkeypatch.chdir(tmp_path)
    with contextlib.redirect_stderr(io.StringIO()) as said:
        found = default_model()
    assert found == (Path("models/caption_model.h5") if trained else INCLUDED)
    assert str(found) in said.getvalue()
    assert ("included" in said.getvalue()) == (not trained)
