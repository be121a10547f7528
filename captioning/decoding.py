"""Stepwise decoding with carried state, batched over images and beams, compiled as one function.

The search knows no network: it is given a function from (tokens, state) to the log-probabilities
of the next token and the next state. So the tests can drive it with a table.
"""

from collections.abc import Callable

import tensorflow as tf

from captioning.captions import END, PADDING, START, UNKNOWN

NEVER = float("-inf")  # log-probability of what must not be said
NOT_SAID = [[PADDING], [UNKNOWN], [START]]


def beam_search(
    step: Callable, state, batch_size: int, beam_size: int, max_length: int, length_penalty: float
) -> tuple[tf.Tensor, tf.Tensor]:
    """The most probable captions of each image; greedy decoding is a beam of 1.

    Each step extends every open hypothesis by every word, and keeps the `beam_size` best of all
    by their summed log-probability; finished ones stay as they are and compete. Padding, unknown
    and start are never produced. At `max_length` words a hypothesis ends as it stands.

    Args:
        step: (tokens (B * K,) int32, state) -> (log-probabilities (B * K, V), next state).
        state: a nested structure of tensors (B * K, …), K = beam_size, a row per hypothesis.
        batch_size: B, images.
        beam_size: K, hypotheses per image.
        max_length: words in a caption, at most.
        length_penalty: the final ranking is by the summed log-probability divided by (the number
            of tokens, END included) ** length_penalty: 0 ranks by probability, 1 by the mean.

    Returns:
        tokens (B, K, max_length) int32, best first, END and PADDING behind the words, and
        scores (B, K) float32, the summed natural log-probabilities. Where there are fewer than K
        captions at all (a tiny vocabulary), the rest of the beam has the score -inf.
    """
    width, rows = batch_size * beam_size, tf.range(batch_size)[:, None]  # rows (B, 1)
    # One hypothesis an image to begin with: equal ones would fill the beam with copies.
    scores = tf.tile([[0.0] + [NEVER] * (beam_size - 1)], [batch_size, 1])  # (B, K)
    last = tf.fill([width], START)  # (B * K,)
    lines = tf.fill([batch_size, beam_size, max_length], PADDING)
    done = tf.zeros([batch_size, beam_size], tf.bool)
    position = tf.constant(0)

    def open_left(position, last, lines, scores, done, state):
        return (position < max_length) & ~tf.reduce_all(done)

    def extend(position, last, lines, scores, done, state):
        log_probs, state = step(last, state)  # (B * K, V)
        vocabulary_size = log_probs.shape[-1]
        log_probs = tf.where(_not_said(vocabulary_size), NEVER, log_probs)
        log_probs = tf.reshape(log_probs, [batch_size, beam_size, vocabulary_size])
        # A finished hypothesis goes on with PADDING alone, at no cost.
        stay = tf.one_hot(PADDING, vocabulary_size, 0.0, NEVER)  # (V,)
        log_probs = tf.where(done[:, :, None], stay, log_probs)
        totals = tf.reshape(scores[:, :, None] + log_probs, [batch_size, -1])  # (B, K * V)
        scores, best = tf.math.top_k(totals, beam_size)  # (B, K)
        parent, token = best // vocabulary_size, best % vocabulary_size  # (B, K)
        lines = tf.gather(lines, parent, batch_dims=1)  # (B, K, max_length)
        column = tf.one_hot(position, max_length, True, False, dtype=tf.bool)
        lines = tf.where(column, token[:, :, None], lines)
        done = tf.gather(done, parent, batch_dims=1) | (token == END)
        flat = tf.reshape(rows * beam_size + parent, [width])  # each hypothesis' parent row
        state = tf.nest.map_structure(lambda tensor: tf.gather(tensor, flat), state)
        return position + 1, tf.reshape(token, [width]), lines, scores, done, state

    start = (position, last, lines, scores, done, state)
    _, _, lines, scores, _, _ = tf.while_loop(open_left, extend, start)
    lengths = tf.reduce_sum(tf.cast(lines != PADDING, tf.float32), axis=2)  # (B, K), END included
    ranking = scores / tf.maximum(lengths, 1.0) ** length_penalty
    order = tf.argsort(ranking, axis=1, direction="DESCENDING", stable=True)
    return tf.gather(lines, order, batch_dims=1), tf.gather(scores, order, batch_dims=1)


def draw_captions(step: Callable, state, width: int, max_length: int, seed) -> tf.Tensor:
    """Captions drawn at random, each word with its probability.

    Args:
        step: as for `beam_search`.
        state: tensors (W, …), a row for each caption to be drawn.
        width: W.
        max_length: words in a caption, at most.
        seed: (2,) int32; the same one draws the same captions.

    Returns:
        Tokens (W, max_length) int32, END and PADDING behind the words.
    """
    start = (
        tf.constant(0),
        tf.fill([width], START),
        tf.fill([width, max_length], PADDING),
        tf.zeros([width], tf.bool),
        state,
    )

    def open_left(position, last, lines, done, state):
        return (position < max_length) & ~tf.reduce_all(done)

    def extend(position, last, lines, done, state):
        log_probs, state = step(last, state)  # (W, V)
        log_probs = tf.where(_not_said(log_probs.shape[-1]), NEVER, log_probs)
        place = tf.stack([seed[0], seed[1] + position])
        drawn = tf.random.stateless_categorical(log_probs, 1, place, tf.int32)  # (W, 1)
        token = tf.where(done, PADDING, drawn[:, 0])  # (W,)
        column = tf.one_hot(position, max_length, True, False, dtype=tf.bool)
        lines = tf.where(column, token[:, None], lines)
        return position + 1, token, lines, done | (token == END), state

    _, _, lines, _, _ = tf.while_loop(open_left, extend, start)
    return lines


def _not_said(vocabulary_size: int) -> tf.Tensor:
    """Which tokens are never produced, (vocabulary_size,) bool."""
    return tf.reduce_any(tf.range(vocabulary_size) == NOT_SAID, axis=0)
