"""The Up-Down decoder: what it drops of a photo, and that its LSTMs are Keras' own."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import CONFIGS, compiled, random_features, untrained

from captioning.updown import UpDownCell


def test_the_mean_misses_what_the_cells_miss():
    """Of another mask, or none, it would give away what is hidden in the cells."""
    captioner = untrained(CONFIGS["updown"])
    decoder, network = captioner.decoder, compiled(captioner.decoder)
    seen = keras.Model(network.inputs, [decoder.cells.input, decoder.image.input])
    look = tf.function(lambda *x: seen(x, training=True), jit_compile=True)
    cells, mean = look(random_features(30, captioner.config), np.full((30, 1), 5))
    gone = cells.numpy() == 0  # (B, cells, feature_size)
    assert gone.mean() == pytest.approx(0.5, abs=0.1)
    assert (gone == gone[:, :1]).all()  # the same floats of all cells of a photo
    assert (gone[1:] != gone[:-1]).any()
    np.testing.assert_allclose(mean, cells.numpy().mean(axis=1, keepdims=True), atol=1e-6)


def test_one_step_is_the_paper_s():
    """Two LSTMs of Keras, and additive attention in between; none of its parts is idle."""
    keras.utils.set_random_seed(0)
    cell = UpDownCell(5)
    gates, keys, cells = (tf.random.normal(shape) for shape in ((3, 20), (3, 4, 7), (3, 4, 6)))
    states = [tf.random.normal((3, 5)) for _ in range(4)]
    cell.build([x.shape for x in (gates, keys, cells)])
    cell.second_bias.assign(tf.random.normal((20,)))
    (hidden, attended, weights), after = cell((gates, keys, cells), states)

    # The gates are their words' product already: an identity in Keras' kernel passes them on.
    kernel = np.concatenate([np.eye(20), cell.first_kernel[5:]])
    own = keras.layers.LSTMCell(5, bias_initializer="zeros", unit_forget_bias=False)
    own.build((3, 25))
    own.set_weights([kernel, cell.first_kernel[:5], np.zeros(20)])
    _, first = own(tf.concat([gates, states[2]], 1), states[:2])
    scores = np.exp(np.tanh(keys + (first[0] @ cell.query_kernel)[:, None]) @ cell.score[:, None])
    chosen = scores / scores.sum(axis=1, keepdims=True)  # (3, 4, 1)
    np.testing.assert_allclose(weights, chosen[..., 0], atol=1e-5)
    np.testing.assert_allclose(attended, np.sum(chosen * cells, axis=1), atol=1e-5)
    own = keras.layers.LSTMCell(5)
    own.build((3, 11))
    own.set_weights([cell.second_kernel[:11], cell.second_kernel[11:], cell.second_bias])
    _, second = own(tf.concat([attended, first[0]], 1), states[2:])
    for array, wanted in zip(after, (*first, *second), strict=True):
        np.testing.assert_allclose(array, wanted, atol=1e-5)
    np.testing.assert_allclose(hidden, second[0], atol=1e-5)


def test_the_output_layer_reads_state_mean_photo_and_what_was_attended_to():
    captioner = untrained(CONFIGS["updown"])
    decoder = captioner.decoder
    parts = [decoder.recurrence.output, decoder.image.output, decoder.merge.output]
    seen = keras.Model(decoder.network.inputs, parts)
    (hidden, attended, _), image, merged = seen(
        [random_features(3, captioner.config), np.full((3, 4), 5)]
    )
    np.testing.assert_allclose(merged, hidden + attended + image, atol=1e-6)
    assert all(np.ptp(part) > 0.01 for part in (hidden, attended, image))
