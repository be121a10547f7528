"""A beam is put into the order of what people said of similar photos."""

import json

import numpy as np
import pytest
from helpers import CONFIG, CONFIGS, random_features, run_here, untrained

from captioning.captions import END, PADDING, UNKNOWN
from captioning.cider import CiderD, cider_d
from captioning.files import InputError
from captioning.neighbours import MOST_CAPTIONS, NEAREST, Neighbours, without_padding
from model import Captioner


def some_captions(photos: int, words: int = 40) -> dict[int, list[list[int]]]:
    """Of each photo two to five captions of 1 to 9 ids, common ones more often."""
    random = np.random.default_rng(0)
    shares = 1 / np.arange(1, words + 1)
    return {
        photo: [
            (4 + random.choice(words, random.integers(1, 10), p=shares / shares.sum())).tolist()
            for _ in range(random.integers(2, 6))
        ]
        for photo in range(photos)
    }


def padded(captions: list[list[int]], width: int = 12) -> np.ndarray:
    rows = np.full((len(captions), width), PADDING)
    for row, ids in zip(rows, captions, strict=True):
        row[: len(ids) + 1] = [*ids, END]
    return rows


def test_cider_d_by_what_is_stored_is_that_of_the_captions_themselves():
    captions = some_captions(30)
    said = [ids for lines in some_captions(8, words=20).values() for ids in lines]
    said += [[4, 4, 4, 5], captions[3][0]]  # a word too often; a reference itself
    # Two n-grams that differ in their first word alone, and words with a high id.
    captions[0].append([4, 300, 301, 40302, 5, 300, 301, 40302])
    neighbours = Neighbours.of(random_features(30), captions)
    said += [captions[0][-1], captions[0][-1][1:]]
    lines = [[[str(i) for i in ids] for ids in each] for each in captions.values()]
    scorer = CiderD(lines)
    highest = 0
    for photo in range(5):
        expected = [scorer.score(photo, [str(i) for i in ids]) for ids in said]
        kept = filter(None, without_padding(neighbours.captions[photo]))
        references = [neighbours.tf_idf.weigh(ids) for ids in kept]
        found = [cider_d(neighbours.tf_idf.weigh(ids), references) for ids in said]
        np.testing.assert_allclose(found, expected, atol=1e-9)
        highest = max(highest, *expected)
    assert highest > 1


def test_what_was_said_of_similar_photos_comes_first():
    """Two kinds of photos; of each, people say one thing."""
    kinds = np.repeat(np.eye(2, 16, dtype=np.float32), 6, axis=0)  # (12, 16)
    features = 10 * kinds + np.random.default_rng(0).normal(size=(12, 16)).astype(np.float32)
    dog, cat = [5, 6, 7], [8, 9]
    neighbours = Neighbours.of(features, {row: [dog if row < 6 else cat] for row in range(12)})
    tokens = padded([cat, dog, [10]])[None].repeat(2, axis=0)  # (2, 3, 12)
    new = np.stack([10 * kinds[0], 10 * kinds[-1]])
    order = neighbours.rank(new, tokens, np.full((2, 3), -1.0))
    assert order[:, 0].tolist() == [1, 0]
    # Where nobody said any of it, the order stays that of the log-probability.
    others = padded([[10], [11], [12]])[None].repeat(2, axis=0)
    order = neighbours.rank(new, others, np.array([[-3.0, -1, -2], [-1, -2, -3]]))
    assert order.tolist() == [[1, 2, 0], [0, 1, 2]]
    # A caption that is improbable enough stays behind.
    scores = np.array([[-1.0, -100, -1], [-100, -1, -1]])
    assert neighbours.rank(new, tokens, scores)[:, -1].tolist() == [1, 0]


def test_few_photos_constant_features_and_words_beyond_its_keys():
    features = np.zeros((3, 8), np.float32)
    features[:, 0] = range(3)
    neighbours = Neighbours.of(features, {0: [[4]], 2: [[2**16, 2**16 - 1]]})
    assert neighbours.check() is neighbours
    assert NEAREST > len(neighbours.vectors) == 2
    assert neighbours.captions[1].tolist() == [[UNKNOWN, 2**16 - 1]]
    many = Neighbours.of(features, {0: [[4]] * 1000})
    assert many.captions.shape[1] == MOST_CAPTIONS
    order = neighbours.rank(features[:1], padded([[5], [4]])[None], np.zeros((1, 2)))
    assert order.tolist() == [[1, 0]]
    rare = neighbours.rank(features[2:], padded([[5], [2**17 + 4]])[None], np.zeros((1, 2)))
    assert rare.tolist() == [[1, 0]]  # of the rarest words all are alike


@pytest.mark.parametrize("config", [CONFIG, CONFIGS["updown"]], ids=["pooled", "grid"])
def test_a_captioner_s_beam_is_in_that_order(config, tmp_path):
    captioner, features = untrained(config), random_features(9, config)
    captioner.neighbours = Neighbours.of(features, some_captions(9))
    captioner.save(tmp_path / "m.h5")
    loaded = Captioner.load(tmp_path / "m.h5")
    for name, array in captioner.neighbours.arrays().items():
        np.testing.assert_array_equal(getattr(loaded.neighbours, name), array)
    found = loaded.decode(features, 6)
    loaded.neighbours = None
    plain = loaded.decode(features, 6)
    assert [sorted(beam) for beam in found] == [sorted(beam) for beam in plain]
    assert found != plain
    ids = np.array([padded([loaded.vocabulary.encode(c)[1:-1] for c, _ in b]) for b in plain])
    lengths = [[len(c.split()) + 1 for c, _ in beam] for beam in plain]
    lengths = np.minimum(lengths, config.max_length)  # there no END follows
    scores = np.array([[s for _, s in beam] for beam in plain]) / lengths**0.8
    order = captioner.neighbours.rank(features, ids, scores)
    expected = [[b[i] for i in row] for b, row in zip(plain, order, strict=True)]
    assert found == expected
    other = untrained(CONFIG)
    other.neighbours = Neighbours.of(random_features(9)[:, 1:], some_captions(9))
    other.save(tmp_path / "other.h5")
    with pytest.raises(InputError, match="its neighbours' features are of"):
        Captioner.load(tmp_path / "other.h5")


@pytest.mark.long
def test_the_scripts_add_it_use_it_and_leave_it_out(demo, tmp_path):
    model, ranked = demo / "models" / "caption_model.h5", tmp_path / "ranked.h5"
    add = ("ensemble.py", model, "--neighbours", demo / "data", "--model_path", ranked)
    assert "compared with 576 photos" in run_here(*add).stderr
    command = ("evaluate.py", "--data_dir", demo / "data", "--images_dir", demo / "dataset")
    command += ("--beam_size", 5, "--output_dir")
    for folder, arguments in (
        ("plain", ("--model_path", model)),
        ("ranked", ("--model_path", ranked)),
        ("left_out", ("--model_path", ranked, "--no_neighbours")),
    ):
        run_here(*command, tmp_path / folder, *arguments)
    captions, scores = (
        {
            folder: json.loads((tmp_path / folder / f"{name}.json").read_text())
            for folder in ("plain", "ranked", "left_out")
        }
        for name in ("captions", "scores")
    )
    assert captions["plain"] == captions["left_out"]
    used = {folder: each["protocol"]["decoding"]["neighbours"] for folder, each in scores.items()}
    assert used == {"plain": False, "ranked": True, "left_out": False}
    photos = ("generate_caption.py", "--image_path", demo / "dataset" / "Images", "--beam_size", 5)
    said = [
        run_here(*photos, "--model_path", path, *more).stdout
        for path, *more in ((model,), (ranked,), (ranked, "--no_neighbours"))
    ]
    assert said[0] == said[2] != said[1]
