"""Stepwise decoding with carried state, batched over images and captions: one compiled loop.

The loop knows no network. It is given a function from (tokens, state) to the logits of the next
token and the next state, so the tests can drive it with a table.
"""

from collections.abc import Callable

import tensorflow as tf

from captioning.beams import Beams
from captioning.captions import END, PADDING, START

NEG_INF = float("-inf")


def beam_search(
    step: Callable,
    state,
    batch_size,
    beam_size,
    max_length: int,
    length_penalty: float,
    attended: Callable = lambda state: None,
) -> Beams:
    """The most probable captions of B images; greedy decoding is a beam of 1.

    Each step extends every open hypothesis by every word and keeps the K best of all by their
    summed log-probability. Finished ones stay as they are and compete. At `max_length` words a
    hypothesis ends as it stands.

    Args:
        step: (tokens (B * K,) int32, state) -> (logits (B * K, V), next state).
        state: nested tensors (B * K, …), one row per hypothesis.
        batch_size, beam_size, max_length: B, K, and words in a caption, at most; the first two may
            be tensors.
        length_penalty: the final ranking is by the summed log-probability divided by (the number
            of tokens, END included) ** length_penalty: 0 ranks by probability, 1 by the mean.
        attended: next state -> how much that step looked at each cell (B * K, cells), or None.

    Where there are fewer than K captions at all (a tiny vocabulary), the rest of the beam has the
    score -inf.
    """
    first_rows = tf.range(batch_size)[:, None] * beam_size  # (B, 1), of each image's hypotheses

    def choose(position, log_probs, scores):
        vocabulary_size = log_probs.shape[-1]
        totals = tf.reshape(scores[:, None] + log_probs, [batch_size, -1])  # (B, K * V)
        scores, best = tf.math.top_k(totals, beam_size)  # (B, K)
        parents, tokens = first_rows + best // vocabulary_size, best % vocabulary_size
        return [tf.reshape(each, [-1]) for each in (parents, tokens, scores)]  # (B * K,) each

    # One hypothesis per image to begin with: equal ones would fill the beam with copies.
    start = tf.where(tf.range(beam_size) == 0, 0.0, NEG_INF)  # (K,)
    start = tf.tile(start, [batch_size])  # (B * K,)
    scores, sequences = _decode(step, state, start, max_length, choose, attended)
    scores, tokens, *others = [
        tf.reshape(each, [batch_size, beam_size, *each.shape[1:]]) for each in (scores, *sequences)
    ]
    lengths = tf.reduce_sum(tf.cast(tokens != PADDING, tf.float32), axis=2)  # (B, K), with END
    ranking = scores / tf.maximum(lengths, 1.0) ** length_penalty
    order = tf.argsort(ranking, axis=1, direction="DESCENDING", stable=True)
    ranked = [tf.gather(each, order, batch_dims=1) for each in (tokens, scores, *others)]
    return Beams(*ranked)


def sample_captions(step: Callable, state, width: int, max_length: int, seed) -> tf.Tensor:
    """Captions drawn at random, each word with its probability.

    As for `beam_search`, but `state` has W = `width` rows, one for each caption. The same `seed`,
    (2,) int32, draws the same captions: tokens (W, max_length) int32, END and PADDING after them.
    """

    def choose(position, log_probs, scores):
        place = tf.stack([seed[0], seed[1] + position])
        drawn = tf.random.stateless_categorical(log_probs, 1, place, tf.int32)  # (W, 1)
        # Of NaN the draw is V, no id. The next update's loss is NaN too and ends the training.
        drawn = tf.minimum(drawn[:, 0], log_probs.shape[-1] - 1)
        return tf.range(width), drawn, scores

    _, (tokens, _) = _decode(step, state, tf.zeros([width]), max_length, choose)
    return tokens


def _decode(
    step: Callable,
    state,
    scores,
    max_length: int,
    choose: Callable,
    attended: Callable = lambda state: None,
):
    """Extend W sequences word by word until all have ended or have `max_length` words.

    `choose` takes the position, log_probs (W, V) and scores (W,), and gives each new row's parent
    row, token and score, (W,) each. Returns scores (W,) and sequences (W, max_length, …): tokens
    int32, their log-probabilities, and where they looked, if `attended` tells.
    """
    width = tf.shape(scores)[0]

    def keep_going(position, last, sequences, scores, finished, state):
        return (position < max_length) & ~tf.reduce_all(finished)

    def extend(position, last, sequences, scores, finished, state):
        logits, state = step(last, state)  # (W, V)
        ids = tf.range(logits.shape[-1])  # (V,)
        # The ids below END are padding, unknown and start, which are never produced; nor is an END
        # before the first word: an empty caption says nothing.
        forbidden = (ids < END) | ((ids == END) & (position == 0))
        log_probs = tf.where(forbidden, NEG_INF, tf.nn.log_softmax(logits))
        # A finished sequence continues with PADDING alone, at no cost.
        finished_row = tf.where(ids == PADDING, 0.0, NEG_INF)
        log_probs = tf.where(finished[:, None], finished_row, log_probs)
        parents, tokens, scores = choose(position, log_probs, scores)  # (W,) each
        state = tf.nest.map_structure(lambda tensor: tf.gather(tensor, parents), state)
        log_probs = tf.gather_nd(log_probs, tf.stack([parents, tokens], axis=1))  # (W,)
        column = tf.range(max_length) == position  # (max_length,)

        def append(sequence, value):  # (W, max_length, …), (W, …)
            here = tf.reshape(column, [-1] + [1] * (len(value.shape) - 1))
            return tf.where(here, value[:, None], tf.gather(sequence, parents))

        sequences = [*map(append, sequences, recorded(tokens, log_probs, state))]
        finished = tf.gather(finished, parents) | (tokens == END)
        return position + 1, tokens, sequences, scores, finished, state

    def recorded(tokens, log_probs, state):
        cells = attended(state)
        return [tokens, log_probs] + [cells] * (cells is not None)

    last = tf.fill([width], START)
    each = recorded(tf.fill([width], PADDING), tf.zeros([width]), state)
    sequences = [tf.repeat(tf.zeros_like(value)[:, None], max_length, axis=1) for value in each]
    start = (tf.constant(0), last, sequences, scores, tf.zeros([width], tf.bool), state)
    _, _, sequences, scores, _, _ = tf.while_loop(keep_going, extend, start)
    return scores, sequences
