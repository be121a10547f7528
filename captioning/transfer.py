"""Starting from a trained captioner, on other data with other words."""

import itertools
import math
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from captioning import cli
from captioning.batches import CaptionBatches
from captioning.captions import UNKNOWN, Vocabulary
from captioning.networks import CaptionerConfig, members
from model import Captioner

BY_WORD = ("embedding", "logits")  # layers whose arrays have a row or a column for each word
LEVEL_BATCHES = 16  # of captions, on which the level of the known words' logits is measured


def extend(vocabulary: Vocabulary, words: list[str]) -> Vocabulary:
    """`vocabulary` with those of `words` that it does not know behind its own."""
    return Vocabulary([*vocabulary.words, *(word for word in words if word not in vocabulary.ids)])


def load_start(
    path: Path, features: dict, text: dict, training: dict
) -> tuple[Captioner, Vocabulary, CaptionerConfig]:
    """The captioner to start from, and the vocabulary and the sizes of the one that starts there.

    Args:
        path: its .h5; an ensemble gives its first member.
        features: the content of features.pkl.
        text: the content of captions.pkl.
        training: what the new captioner's file says of its training, beside that of the start.

    Raises:
        InputError: it is no captioner, or takes other features.
    """
    start = Captioner.load(path)
    start.check_features(features)
    if start.config.members > 1:
        cli.say(f"{path} is an ensemble: starting from the first of its {start.config.members}.")
    vocabulary = extend(start.vocabulary, text["vocabulary"])
    known = len(start.vocabulary)
    cli.say(f"{path}: {known:,} words known, {len(vocabulary) - known:,} new")
    config = replace(
        start.config,
        vocabulary_size=len(vocabulary),
        max_length=max(start.config.max_length, text["max_length"]),
        members=1,
        training=training | {"start": start.config.training},
    )
    return start, vocabulary, config


def take_over(network: keras.Model, start: keras.Model, batches: CaptionBatches) -> None:
    """Put all that `start` knows into a new network of its sizes, which may know more words.

    Known words keep their vectors, output weights and biases: all were learnt together. New words
    have theirs from the new network, vectors and weights drawn at random, and the bias the
    logarithm of their share of the new captions; but moved to where the known ones' logits are.
    Training leaves those several nats too low or too high, for the softmax takes no notice, and
    beside low ones new words would be said all the time.

    The features' moments are kept as well: the weights behind them were learnt on features that
    were standardised so, and on others would see every photo distorted.

    Args:
        network: from `build_captioner`, of one member.
        start: trained; of an ensemble the first member is taken.
        batches: the new training captions.
    """
    first = members(start)[0]
    for layer in network.layers:
        known = first.get_layer(layer.name).get_weights()
        if layer.name in BY_WORD:
            known = [_extended(*arrays) for arrays in zip(known, layer.get_weights(), strict=True)]
        layer.set_weights(known)
    words = first.output_shape[-1]
    if words < network.output_shape[-1]:
        kernel, bias = network.get_layer("logits").get_weights()
        bias[words:] += _level(first, batches)
        network.get_layer("logits").set_weights([kernel, bias])


def _extended(known: np.ndarray, fresh: np.ndarray) -> np.ndarray:
    """`fresh` with `known` in its first places."""
    fresh[tuple(map(slice, known.shape))] = known
    return fresh


def _level(network: keras.Model, batches: CaptionBatches) -> float:
    """How far a constant logit lies above the logarithm of its word's mean probability."""
    words = network.output_shape[-1]
    partitions = []
    for (features, inputs), _, weights in itertools.islice(batches, LEVEL_BATCHES):
        inputs = np.where(inputs < words, inputs, UNKNOWN)  # (B, T)
        partition = tf.reduce_logsumexp(network([features, inputs]), axis=-1)  # (B, T)
        partitions.append(partition.numpy()[weights > 0])
    negative = -np.concatenate(partitions)  # (tokens,)
    return math.log(len(negative)) - float(np.logaddexp.reduce(negative))
