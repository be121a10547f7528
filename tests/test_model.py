"""The network, its loss, its batches and its file: properties that hold whatever the weights."""

import dataclasses
from itertools import chain

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import CONFIG, WORDS, random_batches, token_losses, untrained

from captioning.batches import WIDTH_STEP
from captioning.captions import END, PADDING, SPECIAL_TOKENS, START, Vocabulary
from captioning.decoder import LSTM, Dropout
from captioning.files import InputError
from captioning.training import loss_per_token
from model import Captioner, build_decoder

# -- the network and its loss ----------------------------------------------------------------------


def test_the_first_guess_is_how_common_each_word_is():
    batches = random_batches()
    _, bias = build_decoder(CONFIG, batches.log_frequencies()).logits.get_weights()
    targets = batches.ids[:, 1:]
    shares = np.bincount(targets[targets != PADDING], minlength=len(WORDS)) / batches.tokens
    np.testing.assert_allclose(np.exp(bias), shares, atol=0.01)


def test_token_loss_weighs_every_token_the_same():
    """Over batches of unequal lengths, the epoch's figure is the mean over all tokens."""
    network, batches = untrained().decoder.network, random_batches(seed=None)
    losses = token_losses(network, batches.features[batches.rows], batches.ids)
    expected = losses[batches.ids[:, 1:] != PADDING]
    assert len(expected) == batches.tokens
    assert loss_per_token(network, batches) == pytest.approx(expected.mean(), rel=1e-5)


# -- layers ----------------------------------------------------------------------------------------


XLA = pytest.mark.parametrize("xla", [True, False], ids=["xla", "plain"])


@XLA
def test_dropout(xla):
    """It drops the share that it should, the same floats of all cells, others at every step."""
    layer = Dropout(0.3, (None, 1, None), seed=1)
    layer.rng_alg = "threefry" if xla else "philox"
    step = tf.function(lambda ones: layer(ones, training=True), jit_compile=xla)
    ones = tf.ones((20, 5, 800))  # photos, cells, floats
    first, second = (step(ones).numpy() for _ in range(2))
    np.testing.assert_allclose(first[first > 0], 1 / 0.7, rtol=1e-6)
    first, second = first == 0, second == 0
    assert first.mean() == pytest.approx(0.3, abs=0.02)
    assert (first[:, 1:] == first[:, :-1]).all()
    independent = pytest.approx(0.3**2 + 0.7**2, abs=0.02)
    assert (first == second).mean() == independent
    assert (first[1:] == first[:-1]).mean() == independent
    np.testing.assert_array_equal(layer(ones), ones)


@XLA
def test_dropout_is_drawn_for_each_caption_and_word(xla):
    layer = Dropout(0.3, seed=1)
    layer.rng_alg = "threefry" if xla else "philox"
    step = tf.function(lambda ones: layer(ones, training=True), jit_compile=xla)
    gone = step(tf.ones((20, 5, 800))).numpy() == 0  # captions, words, floats
    for one, other in ((gone[1:], gone[:-1]), (gone[:, 1:], gone[:, :-1])):
        assert (one == other).mean() == pytest.approx(0.3**2 + 0.7**2, abs=0.02)


@XLA
def test_the_lstm_gives_the_numbers_of_keras_own(xla):
    """The same states and the same four gradients."""
    keras.utils.set_random_seed(5)
    keras_own = keras.layers.LSTM(6, return_sequences=True, bias_initializer="normal")
    ours = LSTM(6, return_sequences=True)
    inputs = tf.random.normal((3, 7, 5))
    upstream = tf.random.normal((3, 7, 6))  # differs at every step: none may be lost
    results = []
    for layer in (keras_own, ours):
        layer.build(inputs.shape)
        layer.set_weights(keras_own.get_weights())

        @tf.function(jit_compile=xla)
        def states_and_gradients(layer=layer):
            with tf.GradientTape() as tape:
                tape.watch(inputs)
                states = layer(inputs)
            arguments = [inputs, *(weight.value for weight in layer.weights)]
            return [states, *tape.gradient(states, arguments, upstream)]

        results.append(states_and_gradients())
    for array, wanted in zip(*results, strict=True):
        np.testing.assert_allclose(array, wanted, rtol=1e-4, atol=1e-6)


# -- batches ---------------------------------------------------------------------------------------


def test_every_caption_once_an_epoch_in_an_order_of_seed_and_epoch():
    batches, again = random_batches(seed=5), random_batches(seed=5)
    first = [batch.tolist() for batch in batches.order()]
    assert sorted(chain(*first)) == list(range(56))  # the last six are empty: 7 full batches
    assert (batches.lengths[50:] == 0).all()
    assert first == [batch.tolist() for batch in again.order()]
    batches.epoch = 1
    assert first != [batch.tolist() for batch in batches.order()]
    widths = [batches.lengths[batch] for batch in batches.order()]
    # Bucketed: the batches' widths add up to little more than they must.
    assert sum(width.max() * len(width) for width in widths) < 1.15 * batches.lengths.sum()


def test_batches_are_inputs_targets_and_weights_one_step_apart():
    batches = random_batches(seed=5)
    for rows, ((features, inputs), targets, weights) in zip(batches.order(), batches, strict=True):
        np.testing.assert_array_equal(features, batches.features[batches.rows[rows]])
        np.testing.assert_array_equal(inputs[:, 1:], targets[:, :-1])
        captions = inputs[:, 0] != PADDING  # not the empty ones
        assert (inputs[captions, 0] == START).all() and not weights[~captions].any()
        np.testing.assert_array_equal(weights, (targets != PADDING) * batches.weight)
        assert ((targets == END).sum(axis=1) == captions).all()
        spare = inputs.shape[1] + 1 - batches.lengths[rows].max()
        assert (inputs.shape[1] + 1) % WIDTH_STEP == 0 <= spare < WIDTH_STEP


# -- the file --------------------------------------------------------------------------------------


def test_a_vocabulary_beyond_an_attribute_s_limit_is_kept(tmp_path):
    """HDF5 attributes stop at 64 kB; 20,000 words take more."""
    words = [*SPECIAL_TOKENS, *(f"word{i:05d}" for i in range(20_000))]
    config = dataclasses.replace(CONFIG, vocabulary_size=len(words), embedding_size=2, units=2)
    Captioner(build_decoder(config), Vocabulary(words), config).save(tmp_path / "m.h5")
    assert Captioner.load(tmp_path / "m.h5").vocabulary.words == words


def test_what_another_program_wrote_is_refused(tmp_path):
    """Other things that are no captioner: see test_hostile_models.py."""
    captioner, path = untrained(), tmp_path / "m.h5"
    captioner.decoder.network.save(path)
    with pytest.raises(InputError, match=r"m\.h5 is not a captioner .*captioner is missing"):
        Captioner.load(path)
    captioner.save(path)
    with h5py.File(path, "r+") as file:
        file["captioner"].attrs["format_version"] = 99
    with pytest.raises(InputError, match="format 99, not 6"):
        Captioner.load(path)
