"""What comes with the repository: the captioner, and what the speed is measured on."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import EXAMPLES, ROOT, run_here

from captioning.captions import Vocabulary
from captioning.cli import INCLUDED, INCLUDED_H5, TRAINED, default_model
from captioning.dataset import read_captions, read_split_lists
from captioning.files import sha256
from captioning.images import load_image
from captioning.onnx_captioner import INCLUDED_SHA256, OnnxCaptioner
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
def test_both_files_are_one_captioner(said):
    """One is made from the other, is known, and they say the same."""
    onnx, h5 = OnnxCaptioner.load(INCLUDED), Captioner.load(INCLUDED_H5)
    assert onnx.session.get_modelmeta().custom_metadata_map["source"] == f'"{sha256(INCLUDED_H5)}"'
    assert sha256(INCLUDED) == INCLUDED_SHA256, "write it into captioning/onnx_captioner.py"
    assert onnx.config == h5.config
    assert onnx.calibration == h5.calibration
    for name, array in h5.neighbours.arrays().items():
        np.testing.assert_array_equal(getattr(onnx.neighbours, name), array)
    options = ("--model_path", INCLUDED_H5)
    done = run_here("generate_caption.py", "--image_path", EXAMPLES, *options)
    lines = dict(line.split("\t") for line in done.stdout.splitlines())
    assert {Path(path).name: caption for path, caption in lines.items()} == said


@pytest.mark.long
def test_the_h5_exports_to_what_is_included(tmp_path):
    path = tmp_path / "again.onnx"
    run_here("export.py", "--model_path", INCLUDED_H5, "--output", path)
    photos = np.stack([load_image(photo) for photo in sorted(EXAMPLES.glob("*.jpg"))])
    again, included = (OnnxCaptioner.load(each).search(photos, 3, 0.8) for each in (path, INCLUDED))
    np.testing.assert_array_equal(again[0].tokens, included[0].tokens)
    np.testing.assert_allclose(again[0].scores, included[0].scores, atol=1e-4)


@pytest.mark.long
def test_both_files_say_the_same_of_flickr8k_s_photos(flickr8k):
    names = read_split_lists(flickr8k)["dev"][:200]
    photos = np.stack([load_image(flickr8k / "Images" / name) for name in names])
    said = []
    for captioner in (OnnxCaptioner.load(INCLUDED), Captioner.load(INCLUDED_H5)):
        batches = np.split(photos, range(20, len(photos), 20))
        said.append([b[0].text for batch in batches for b in captioner.decode_photos(batch)])
    assert sum(map(str.__eq__, *said)) >= 0.99 * len(names)
    assert len(set(said[0])) > 150


@pytest.mark.long
def test_it_doubts_what_it_says_of_drawings(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])
    import drawings

    words = [f"word{number}" for number in range(50)]
    paths = drawings.draw_pictures(tmp_path, words)
    assert len({path.read_bytes() for path in paths}) == drawings.PICTURES == 100
    captioner = OnnxCaptioner.load(INCLUDED)
    pixels = np.stack([load_image(path, captioner.config.photo_size) for path in paths])
    beams = [captioner.decode_photos(photo[None])[0] for photo in pixels]
    confidence = np.array([beam[0].confidence for beam in beams])
    assert max(np.median(confidence[kind::3]) for kind in range(3)) < 0.3


def test_it_is_small_and_records_the_photos_that_it_has_seen(training):
    captioner = Captioner.load(INCLUDED_H5)
    assert INCLUDED_H5.stat().st_size < 30e6
    assert INCLUDED.stat().st_size < 40e6
    assert len(training) == 30_000 and 11_990 < len(captioner.photos) <= 12_000  # some are twice
    assert len(captioner.neighbours.vectors) == 6_000


def test_it_is_taken_without_a_name_until_one_is_trained(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    TRAINED.parent.mkdir()
    own = TRAINED.with_suffix(".onnx")
    for path, found in ((None, (INCLUDED, INCLUDED_H5)), (own, (own, INCLUDED_H5))):
        if path:
            path.touch()
        assert (default_model(), default_model(INCLUDED_H5)) == found
        assert all(str(each) in capsys.readouterr().err for each in found[:1])
    TRAINED.touch()
    assert default_model() == default_model(INCLUDED_H5) == Path("models/caption_model.h5")


@pytest.fixture
def training(flickr8k) -> list[str]:
    """Flickr8k's training captions."""
    captions, _ = read_captions(flickr8k / "captions.txt")
    return [line for i in read_split_lists(flickr8k)["train"] for line in captions[i]]


def test_the_captioner_knows_the_words_of_flickr8k(training):
    captioner = Captioner.load(INCLUDED_H5)
    # Each word was seen twice as often, in a photo's captions and in those of its mirror image.
    count = captioner.config.training["data"]["min_word_count"] / 2
    words = Vocabulary.from_captions(training, count).words
    assert sorted(captioner.vocabulary.words) == sorted(words)


def test_speed_is_measured_on_captions_as_long_as_flickr8k_s(training, monkeypatch):
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])
    import workload

    lengths = np.bincount([len(caption.split()) for caption in training])
    np.testing.assert_array_equal(lengths[workload.FIRST_LENGTH :], workload.LENGTHS)
