"""Beam search against brute force, a plain reference and greedy decoding; samples' frequencies."""

import itertools

import joblib
import numpy as np
import pytest
import tensorflow as tf

from captioning.captions import END, PADDING, START, UNKNOWN
from captioning.decoding import beam_search, sample_captions

WORDS = (4, 5, 6)
VOCABULARY_SIZE = 7
MAX_LENGTH = 4  # words


def random_tables(images: int, seed: int, sharpness: float = 1.0) -> np.ndarray:
    """A fake model: log-probabilities (image, position, last token, next token)."""
    logits = np.random.default_rng(seed).normal(
        scale=sharpness, size=(images, MAX_LENGTH, VOCABULARY_SIZE, VOCABULARY_SIZE)
    )
    logits[..., [PADDING, UNKNOWN, START]] += 2.0  # tempting, and never to be said
    return (logits - np.log(np.exp(logits).sum(-1, keepdims=True))).astype(np.float32)


def search(tables: np.ndarray, beam_size: int, length_penalty: float = 0.0):
    """Run the real beam search on the fake model: tokens and scores as numpy arrays."""
    images = len(tables)
    offsets = np.random.default_rng(9).normal(size=(*tables.shape[:3], 1))
    table = tf.constant(tables + offsets, tf.float32)  # logits, which a step may shift at will

    def step(tokens, state):
        image, position = state
        return tf.gather_nd(table, tf.stack([image, position, tokens], 1)), (image, position + 1)

    @tf.function
    def compiled():
        image = tf.repeat(tf.range(images), beam_size)
        state = (image, tf.zeros_like(image))
        return beam_search(step, state, images, beam_size, MAX_LENGTH, length_penalty)

    tokens, scores = compiled()
    return tokens.numpy(), scores.numpy()


def log_probability(table: np.ndarray, tokens) -> float:
    """The sum over a caption's tokens, END included where there is one."""
    last = (START, *tokens[:-1])
    return float(sum(table[i, a, b] for i, (a, b) in enumerate(zip(last, tokens, strict=True))))


def words_of(line) -> tuple[int, ...]:
    return tuple(int(token) for token in line if token != PADDING)


ALL_CAPTIONS = [
    (*words, END) for n in range(MAX_LENGTH) for words in itertools.product(WORDS, repeat=n)
] + list(itertools.product(WORDS, repeat=MAX_LENGTH))


@pytest.mark.parametrize("length_penalty", [0.0, 0.7, 1.0])
def test_a_beam_that_holds_every_prefix_equals_brute_force(length_penalty):
    tables = random_tables(images=20, seed=0)
    tokens, scores = search(tables, len(ALL_CAPTIONS), length_penalty)
    for table, lines, line_scores in zip(tables, tokens, scores, strict=True):
        truth = {caption: log_probability(table, caption) for caption in ALL_CAPTIONS}
        ranked = sorted(truth, key=lambda c: -truth[c] / len(c) ** length_penalty)
        assert {words_of(line) for line in lines} == set(truth)
        np.testing.assert_allclose(
            line_scores, [truth[words_of(line)] for line in lines], rtol=1e-5
        )
        assert words_of(lines[0]) == ranked[0]
        rank = [truth[words_of(line)] / len(words_of(line)) ** length_penalty for line in lines]
        assert (np.diff(rank) <= 1e-5).all()


def reference_beam(table: np.ndarray, beam_size: int) -> list[tuple[tuple[int, ...], float]]:
    """Beam search as a textbook has it: lists of (tokens, score), sorted at each step."""
    beam = [((), 0.0)]
    for position in range(MAX_LENGTH):
        grown = []
        for tokens, score in beam:
            if tokens and tokens[-1] == END:
                grown.append((tokens, score))
                continue
            last = tokens[-1] if tokens else START
            for word in (END, *WORDS):
                grown.append(((*tokens, word), score + float(table[position, last, word])))
        beam = sorted(grown, key=lambda entry: -entry[1])[:beam_size]
    return beam


@pytest.mark.parametrize("beam_size", [1, 2, 3, 5])
def test_equals_a_plain_beam_on_a_thousand_tables(beam_size):
    tables = random_tables(images=1000, seed=1)
    tokens, scores = search(tables, beam_size)
    for table, lines, line_scores in zip(tables, tokens, scores, strict=True):
        captions, true = zip(*reference_beam(table, beam_size), strict=True)
        kept = np.isfinite(line_scores)  # fewer captions than the beam is wide are no captions
        padded = [[*caption, *[PADDING] * (MAX_LENGTH - len(caption))] for caption in captions]
        np.testing.assert_array_equal(lines[kept], padded)  # nothing else is ever said
        np.testing.assert_allclose(line_scores[kept], true, rtol=1e-4)


def test_words_are_drawn_with_their_probabilities():
    """From a table of what follows what: shares of 20,000 captions, and never a special token."""
    count = 20_000
    table = np.random.default_rng(1).normal(size=(VOCABULARY_SIZE, VOCABULARY_SIZE))
    logits = tf.constant(table, tf.float32)

    def draw(*seed):
        def step(tokens, state):
            return tf.gather(logits, tokens), state

        return sample_captions(step, (tf.zeros([count]),), count, 3, tf.constant(seed)).numpy()

    lines = draw(1, 2)
    assert not np.isin(lines, [UNKNOWN, START]).any()
    allowed = [END, *WORDS]
    for place, before in ((0, START), (1, 4), (2, 5)):
        met = lines if place == 0 else lines[lines[:, place - 1] == before]
        shares = np.bincount(met[:, place], minlength=VOCABULARY_SIZE)[allowed] / len(met)
        expected = np.exp(table[before, allowed]) / np.exp(table[before, allowed]).sum()
        np.testing.assert_allclose(shares, expected, atol=4 * np.sqrt(0.25 / len(met)))
    ended = np.cumsum(lines == END, axis=1) - (lines == END)  # behind an END
    np.testing.assert_array_equal(lines == PADDING, ended > 0)
    np.testing.assert_array_equal(lines, draw(1, 2))
    assert (lines != draw(1, 3)).any()


def test_wider_beams_find_more_probable_captions_on_dev(demo, captioner):
    features = joblib.load(demo / "data" / "features.pkl")
    dev = joblib.load(demo / "data" / "captions.pkl")["splits"]["dev"]
    rows = [features["image_ids"].index(scene) for scene in dev]
    matrix = features["features"][rows]
    best = {k: captioner.decode(matrix, k, length_penalty=0.0) for k in (1, 3, 5)}
    scores = {k: np.array([beam[0][1] for beam in beams]) for k, beams in best.items()}
    assert scores[1].mean() < scores[3].mean() <= scores[5].mean() + 1e-6
    for k in (3, 5):  # a beam may prune greedy's prefix, but seldom does
        assert (scores[k] < scores[1] - 1e-4).mean() <= 0.05
    assert all(len({caption for caption, _ in beam}) == 5 for beam in best[5])


def test_a_caption_does_not_depend_on_its_batch(demo, captioner):
    features = joblib.load(demo / "data" / "features.pkl")["features"][:40]
    together = captioner.decode(features, beam_size=3)
    for number in (0, 7, 39):
        alone = captioner.decode(features[number : number + 1], beam_size=3)[0]
        assert [caption for caption, _ in alone] == [caption for caption, _ in together[number]]
        scores = [[score for _, score in beam] for beam in (alone, together[number])]
        np.testing.assert_allclose(*scores, atol=1e-4)
