"""Captioning as ranking, as Flickr8k's authors mean it (Hodosh et al. 2013).

For each photo, captions are ordered by how well they fit it, and for each caption, photos. No
scorer has to judge a sentence: what counts is the place of the one that a person wrote of it.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from scipy.special import logsumexp
from scipy.stats import rankdata

from captioning.captions import END, START
from captioning.features import finite
from captioning.scoring import Measure, mean_of

BLOCK = 1000  # captions whose words are in one tree
ROWS = 2048  # states of the decoder at once: of Up-Down 110 kB each
RECALL_AT = (1, 5, 10)


class Level(NamedTuple):
    """The words at one position of a tree of captions: E edges from the words before them."""

    parents: np.ndarray  # (E,), places among the words before that go on
    tokens: np.ndarray  # (E,) int32
    open: np.ndarray  # (O,), places in the two above of the words that go on themselves


class Tree(NamedTuple):
    """Captions with what they begin with alike in common, so that it is computed once."""

    levels: list[Level]
    ends: list[tuple[int, int]]  # of each caption, the level of its last token and its place there

    @classmethod
    def of(cls, captions: list[list[int]]) -> "Tree":
        """Of captions' ids, from START on; END, where it is not the last, is not among them."""
        parents, tokens, ends = [], [], []
        places: dict[tuple, int] = {}  # of what a caption begins with, in its level
        for ids in captions:
            for depth in range(1, len(ids)):
                if depth > len(tokens):
                    parents.append([])
                    tokens.append([])
                prefix = tuple(ids[: depth + 1])
                if prefix not in places:
                    places[prefix] = len(tokens[depth - 1])
                    tokens[depth - 1].append(ids[depth])
                    parents[depth - 1].append(places.get(prefix[:-1], 0))
            ends.append((len(ids) - 2, places[tuple(ids)]))
        levels, before = [], np.zeros(1, int)
        for above, now in zip(parents, tokens, strict=True):
            now = np.array(now, np.int32)
            levels.append(Level(np.searchsorted(before, above), now, np.flatnonzero(now != END)))
            before = levels[-1].open
        return cls(levels, ends)


def log_probabilities(
    decoder, features: np.ndarray, captions: list[list[int]], progress: Callable = lambda count: 0
) -> np.ndarray:
    """How probable the decoder finds each of C captions for each of N photos.

    Args:
        decoder: any `Decoder`, or an `Ensemble`.
        features: (N, *features_shape), may be memory-mapped.
        captions: ids as `Vocabulary.encode` gives them.
        progress: called with the number of pairs that are done, now and then.

    Returns natural logarithms (N, C). Of a caption that is longer than the decoder's longest, the
    first words count. Raises InputError if a feature is NaN or infinite.
    """
    longest = decoder.config.max_length
    captions = [ids if len(ids) <= longest + 2 else ids[: longest + 1] for ids in captions]
    found = np.zeros((len(features), len(captions)), np.float32)
    step = tf.function(_advance, reduce_retracing=True)
    order = sorted(range(len(captions)), key=captions.__getitem__)  # so that beginnings meet
    for start in range(0, len(order), BLOCK):
        block = order[start : start + BLOCK]
        tree = Tree.of([captions[i] for i in block])
        photos = max(1, ROWS // max(1, *(len(level.open) for level in tree.levels)))
        for first in range(0, len(features), photos):
            batch = finite(features[first : first + photos])
            found[first : first + len(batch), block] = _block(decoder, step, batch, tree)
            progress(len(batch) * len(block))
    return found


def _block(decoder, step, features: np.ndarray, tree: Tree) -> np.ndarray:
    """The same of P photos and one tree's captions: (P, captions)."""
    photos = len(features)
    state, tokens = decoder.init_state(features), np.full(photos, START, np.int32)
    sums, each = np.zeros((photos, 1), np.float32), []
    kept = np.arange(photos)  # rows of the state that go on: photo by photo, tokens within
    for parents, words, goes_on in tree.levels:
        first = np.arange(photos)[:, None] * sums.shape[1]  # (P, 1), each photo's first row
        rows = (first + parents).ravel()  # (P * E,)
        state, log_probs = step(
            decoder, state, *map(tf.constant, (kept, tokens, rows, np.tile(words, photos)))
        )
        each.append(sums[:, parents] + log_probs.numpy().reshape(photos, -1))  # (P, E)
        sums, tokens = each[-1][:, goes_on], np.tile(words[goes_on], photos)
        kept = (first + parents[goes_on]).ravel()  # (P * O,)
    return np.stack([each[level][:, place] for level, place in tree.ends], axis=1)


def _advance(decoder, state, kept, tokens, rows, words):
    """One word on for rows `kept` (W,) of the state, by tokens (W,): log-probabilities (P * E,).

    These are of `words` (P * E,), each after the one in its row of `rows`.
    """
    state = tf.nest.map_structure(lambda part: tf.gather(part, kept), state)
    logits, state = decoder.step(tokens, state)  # (W, V)
    normalizers = tf.reduce_logsumexp(logits, axis=1)  # (W,)
    chosen = tf.gather_nd(logits, tf.stack([rows, tf.cast(words, rows.dtype)], axis=1))
    return state, chosen - tf.gather(normalizers, rows)


def ranks(log_probs: np.ndarray) -> dict[str, np.ndarray]:
    """Of (N, N), the i-th caption being the i-th photo's: the rank of what belongs together.

    "captions": of each photo's own caption among all, (N,); "photos": of each caption's own photo.
    Pairs are ordered by log p(caption | photo) less the log of its mean over the photos: otherwise
    common captions would come first everywhere. Of equals a rank is the mean: a caption that two
    photos share has no rank 1.
    """
    photos = len(log_probs)
    scores = log_probs - (logsumexp(log_probs, axis=0) - np.log(photos))  # (N, N)
    scores = np.round(scores, 4)  # what float32 rounds off would put equals into an order
    own = np.arange(photos)
    return {
        "captions": rankdata(-scores, axis=1)[own, own],
        "photos": rankdata(-scores, axis=0)[own, own],
    }


def recalls(ranks: np.ndarray) -> dict[str, Measure]:
    """The share of N ranks that are 1, up to 5, and up to 10."""
    return {f"R@{k}": mean_of((ranks <= k).astype(float)) for k in RECALL_AT}
