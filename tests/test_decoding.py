"""Beam search against a plain reference and brute force; the frequencies of samples."""

import numpy as np
import pytest
import tensorflow as tf
from helpers import random_features, untrained

import model
from captioning.beams import Beams
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
    logits[:, 0, START, END] += 2.0  # nor is nothing at all
    return (logits - np.log(np.exp(logits).sum(-1, keepdims=True))).astype(np.float32)


def search(tables: np.ndarray, beam_size: int, length_penalty: float = 0.0) -> Beams:
    """Run the real beam search on the fake model: arrays. Each step "looks" at what it has read."""
    images = len(tables)
    offsets = np.random.default_rng(9).normal(size=(*tables.shape[:3], 1))
    table = tf.constant(tables + offsets, tf.float32)  # logits, which a step may shift at will

    def step(tokens, state):
        image, position, _ = state
        logits = tf.gather_nd(table, tf.stack([image, position, tokens], 1))
        return logits, (image, position + 1, tf.stack([position, tokens], 1))

    @tf.function
    def compiled(beam_size):
        image = tf.repeat(tf.range(images), beam_size)
        state = (image, tf.zeros_like(image), tf.zeros([tf.shape(image)[0], 2], tf.int32))
        sizes = images, beam_size, MAX_LENGTH, length_penalty
        return beam_search(step, state, *sizes, attended=lambda state: state[2])

    return Beams(
        *(part if part is None else part.numpy() for part in compiled(tf.constant(beam_size)))
    )


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
            for word in (END, *WORDS)[not tokens :]:
                grown.append(((*tokens, word), score + float(table[position, last, word])))
        beam = sorted(grown, key=lambda entry: -entry[1])[:beam_size]
    return beam


ALL = sum(len(WORDS) ** n for n in range(1, MAX_LENGTH + 1))  # captions that there are


@pytest.mark.parametrize("length_penalty", [0.0, 0.7])
@pytest.mark.parametrize(("beam_size", "images"), [(1, 1000), (3, 1000), (5, 1000), (ALL, 20)])
def test_equals_a_plain_beam_and_of_all_captions_brute_force(beam_size, images, length_penalty):
    tables = random_tables(images, seed=1)
    found = search(tables, beam_size, length_penalty)
    for table, lines, line_scores in zip(tables, found.tokens, found.scores, strict=True):
        beam = reference_beam(table, beam_size)
        beam.sort(key=lambda entry: -entry[1] / len(entry[0]) ** length_penalty)
        captions, true = zip(*beam, strict=True)
        kept = np.isfinite(line_scores)  # fewer captions than the beam is wide are no captions
        padded = [[*caption, *[PADDING] * (MAX_LENGTH - len(caption))] for caption in captions]
        np.testing.assert_array_equal(lines[kept], padded)  # nothing else is ever said
        np.testing.assert_allclose(line_scores[kept], true, rtol=1e-4)


@pytest.mark.parametrize("beam_size", [1, 4])
def test_each_token_has_its_probability_and_where_its_step_looked(beam_size):
    tables = random_tables(50, seed=2)
    found = search(tables, beam_size)
    kept = np.isfinite(found.scores)
    np.testing.assert_allclose(found.log_probs.sum(2)[kept], found.scores[kept], atol=1e-5)
    image, _, _ = np.indices(found.tokens.shape)
    before = np.pad(found.tokens, [(0, 0), (0, 0), (1, 0)], constant_values=START)[..., :-1]
    places = np.broadcast_to(np.arange(MAX_LENGTH), before.shape)
    words = found.tokens != PADDING
    expected = tables[image, places, before, found.tokens]
    np.testing.assert_allclose(found.log_probs[words], expected[words], atol=1e-5)
    assert not found.log_probs[~words & kept[..., None]].any()
    looked = np.stack([places, before], axis=-1)
    np.testing.assert_array_equal(found.attention[words], looked[words])


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
    for place, before in ((0, START), (1, 4), (2, 5)):
        allowed = [END, *WORDS][place == 0 :]  # a first word there is
        met = lines if place == 0 else lines[lines[:, place - 1] == before]
        shares = np.bincount(met[:, place], minlength=VOCABULARY_SIZE)[allowed] / len(met)
        expected = np.exp(table[before, allowed]) / np.exp(table[before, allowed]).sum()
        np.testing.assert_allclose(shares, expected, atol=4 * np.sqrt(0.25 / len(met)))
    ended = np.cumsum(lines == END, axis=1) - (lines == END)  # behind an END
    np.testing.assert_array_equal(lines == PADDING, ended > 0)
    np.testing.assert_array_equal(lines, draw(1, 2))
    assert (lines != draw(1, 3)).any()


def test_a_caption_does_not_depend_on_its_batch(monkeypatch):
    monkeypatch.setattr(model, "DECODING_BATCH", 16)  # three batches, the last one smaller
    captioner, features = untrained(), random_features(40)
    together = captioner.decode(features, beam_size=3)
    assert len({beam[0][0] for beam in together}) > 5
    for number in (0, 7, 39):
        alone = captioner.decode(features[number : number + 1], beam_size=3)[0]
        assert [caption.text for caption in alone] == [c.text for c in together[number]]
        scores = [[c.log_probability for c in beam] for beam in (alone, together[number])]
        np.testing.assert_allclose(*scores, atol=1e-4)
