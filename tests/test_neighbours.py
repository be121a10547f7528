"""What people said of similar photos puts a beam into another order."""

import json

import numpy as np
import pytest
from helpers import CONFIG, CONFIGS, random_features, run_here, untrained
from sklearn.kernel_ridge import KernelRidge

from captioning.beams import NEIGHBOURS_BEAM, WEIGHT, Beams, rank, to_captions
from captioning.captions import END, PADDING, SPECIAL_TOKENS, UNKNOWN, Vocabulary
from captioning.cider import CIDER_SIGMA, CiderD
from captioning.files import InputError
from captioning.neighbours import NEAREST, RIDGE, Neighbours, to_vectors
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


def test_shares_are_those_of_kernel_ridge_regression():
    neighbours = Neighbours.of(random_features(50), some_captions(50))
    training = neighbours.vectors.astype(float)  # (50, A)
    kernel = KernelRidge(alpha=RIDGE, kernel="precomputed")
    kernel.fit(np.exp(training @ training.T - 1) + 1, np.eye(50))
    for vector in to_vectors(random_features(4, seed=1), neighbours.mean, neighbours.axes):
        photos, shares = neighbours.regress(vector)
        expected = kernel.predict(np.exp(training @ vector - 1)[None] + 1)[0]
        np.testing.assert_allclose(shares, expected[photos], atol=1e-4)
        assert shares.sum() == pytest.approx(1, abs=0.1)


def test_the_expected_cider_d_is_the_mean_with_these_shares():
    """Of captions as long as is expected, CIDEr-D with each photo's captions; no word is twice."""
    captions = {photo: [[4 + photo % 7, 12, 13], [4 + photo % 5, 14, 15]] for photo in range(40)}
    neighbours = Neighbours.of(random_features(40), captions)
    scorer = CiderD([*captions.values()])
    said = [[4, 12, 13], [5, 14, 15], [4, 14, 13], [15, 12, 99]]
    features = random_features(3, seed=1)
    found = neighbours.expected_cider(features, padded(said)[None].repeat(3, axis=0))  # (3, 4)
    assert found.max() > 1
    vectors = to_vectors(features, neighbours.mean, neighbours.axes)
    for vector, row in zip(vectors, found, strict=True):
        photos, shares = neighbours.regress(vector)
        near = np.exp(-((2 - 2 * shares.sum()) ** 2) / (2 * CIDER_SIGMA**2))
        each = [[scorer.score(photo, ids) for photo in photos] for ids in said]
        np.testing.assert_allclose(row, near * (np.array(each) @ shares), rtol=2e-3, atol=1e-3)


def test_a_length_that_people_do_not_have_counts_less():
    captions = {photo: [[4, 5, 6], [4, 5, 6, 7, 8]] for photo in range(9)}
    captions[9] = [[9]]  # or each n-gram would be of all photos, and weigh nothing
    neighbours = Neighbours.of(random_features(10), captions)
    said = padded([[4, 5, 6], [4, 5, 6] + [9] * 8])
    short, long = neighbours.expected_cider(random_features(1, seed=1), said[None])[0]
    assert 0 < long < short / 2


def test_what_was_said_of_similar_photos_is_expected():
    """Two kinds of photos; of each, people say one thing."""
    kinds = np.repeat(np.eye(2, 16, dtype=np.float32), 6, axis=0)  # (12, 16)
    features = 10 * kinds + np.random.default_rng(0).normal(size=(12, 16)).astype(np.float32)
    dog, cat = [5, 6, 7], [8, 9]
    neighbours = Neighbours.of(features, {row: [dog if row < 6 else cat] for row in range(12)})
    tokens = padded([cat, dog, [10]])[None].repeat(2, axis=0)  # (2, 3, 12)
    new = np.stack([10 * kinds[0], 10 * kinds[-1]])
    cats, dogs, others = neighbours.expected_cider(new, tokens).T
    assert dogs[0] > 5 * cats[0] and cats[1] > 2 * dogs[1] and not others.any()


def test_the_order_is_by_what_is_expected_and_by_probability():
    vocabulary = Vocabulary([*SPECIAL_TOKENS, "dog", "cat", "cow"])
    tokens = padded([[4], [5], [6]], 3)[None]  # (1, 3, 3)

    class Made:
        expected_cider = staticmethod(lambda features, tokens: np.array([[0.1, 0.5, 0.4]]))

    def order(*scores):
        beams = Beams(tokens, np.array([scores]), np.zeros(tokens.shape))
        found = to_captions(rank(beams, None, Made, 1), vocabulary)[0]
        expected = dict(zip(("dog", "cat", "cow"), (0.1, 0.5, 0.4), strict=True))
        assert all(caption.expected_cider == expected[caption.text] for caption in found)
        return [caption.text for caption in found]

    assert order(-2, -2, -2) == ["cat", "cow", "dog"]
    # Two tokens each, END among them: what counts is half of the log-probability.
    assert order(-2, -2, -2 + 2 * 0.11 / WEIGHT) == ["cow", "cat", "dog"]
    assert order(-2, -2, -2 + 2 * 0.09 / WEIGHT) == ["cat", "cow", "dog"]
    assert order(-2, -np.inf, -2) == ["cow", "dog"]  # there is no such caption


def test_few_photos_constant_features_and_words_beyond_its_keys():
    features = np.zeros((4, 8), np.float32)
    features[:, 0] = range(4)
    lines = {0: [[4]], 2: [[2**16, 2**16 - 1]], 3: [[2**17, 2**16 - 1]]}
    neighbours = Neighbours.of(features, lines)
    assert neighbours.check() is neighbours
    assert NEAREST > len(neighbours.vectors) == 3
    pair = [UNKNOWN, 2**16 - 1, PADDING, PADDING]
    assert pair in neighbours.grams.tolist()  # of the rarest words all are alike
    said = padded([[2**18, 2**16 - 1], [5], [2**16 - 1]])
    rare, none, known = neighbours.expected_cider(features[3:], said[None])[0]
    assert rare > known > none == 0


@pytest.mark.parametrize("config", [CONFIG, CONFIGS["updown"]], ids=["pooled", "grid"])
def test_a_captioner_s_beam_is_in_that_order(config, tmp_path):
    captioner, features = untrained(config), random_features(9, config)
    captioner.neighbours = Neighbours.of(features, some_captions(9))
    captioner.save(tmp_path / "m.h5")
    loaded = Captioner.load(tmp_path / "m.h5")
    for name, array in captioner.neighbours.arrays().items():
        np.testing.assert_array_equal(getattr(loaded.neighbours, name), array)
    found = loaded.decode(features, 6)
    assert len(loaded.decode(features)[0]) == loaded.beam_size == NEIGHBOURS_BEAM
    loaded.forget_neighbours()
    plain = loaded.decode(features, 6)
    assert len(loaded.decode(features)[0]) == 1
    assert plain[0][0].expected_cider is None
    unranked = [[c._replace(expected_cider=None) for c in beam] for beam in found]
    assert [sorted(beam) for beam in unranked] == [sorted(beam) for beam in plain]
    assert unranked != plain
    ids = np.array([padded([loaded.vocabulary.encode(c.text)[1:-1] for c in b]) for b in found])
    expected = captioner.neighbours.expected_cider(features, ids)
    np.testing.assert_allclose([[c.expected_cider for c in beam] for beam in found], expected)
    # At the longest no END follows.
    lengths = [[min(len(c.text.split()) + 1, config.max_length) for c in beam] for beam in found]
    scores = np.array([[c.log_probability for c in beam] for beam in found])
    assert (np.diff(expected + WEIGHT * scores / np.power(lengths, 0.8)) <= 0).all()
    other = untrained(CONFIG)
    other.neighbours = Neighbours.of(random_features(9)[:, 1:], some_captions(9))
    other.save(tmp_path / "other.h5")
    with pytest.raises(InputError, match="its neighbours' features are of"):
        Captioner.load(tmp_path / "other.h5")


@pytest.mark.long
def test_the_scripts_add_it_use_it_and_leave_it_out(demo, tmp_path, no_java):
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
