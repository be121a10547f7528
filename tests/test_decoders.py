"""What holds for every decoder of the registry; docs/decoders.md runs it on another one."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import EACH, WORDS, compiled, random_batches, random_features, untrained

from captioning import cli
from captioning.decoder import LSTM, Dropout
from finetune import prepare_for_scst
from model import DECODERS, Captioner, build_decoder, count_parameters


def random_tokens(count: int, length: int = 6) -> np.ndarray:
    return np.random.default_rng(4).integers(0, len(WORDS), (count, length)).astype(np.int32)


def test_the_command_line_offers_the_registry():
    """Told without importing TensorFlow, so by a list of its own."""
    assert tuple(DECODERS) == cli.DECODER_NAMES


@EACH
def test_causal(config):
    """A later token changes no earlier logits; each token, and the photo, changes those after."""
    network = untrained(config).decoder.network
    features, tokens = random_features(5, config), random_tokens(5)
    before = network([features, tokens]).numpy()
    others = network([features[::-1], tokens]).numpy()
    assert (np.abs(others - before).max(axis=(0, 2)) > 1e-3).all()
    for place in range(tokens.shape[1]):
        changed = tokens.copy()
        changed[:, place] = (changed[:, place] + 1) % len(WORDS)
        after = network([features, changed]).numpy()
        np.testing.assert_allclose(after[:, :place], before[:, :place], atol=1e-5)
        assert np.abs(after[:, place:] - before[:, place:]).max() > 1e-3


@EACH
def test_step_by_step_equals_whole_captions(config):
    decoder = untrained(config).decoder
    features, tokens = random_features(5, config), random_tokens(5)
    whole = decoder.network([features, tokens]).numpy()  # (B, T, V)
    state = decoder.init_state(features)
    assert all(len(tensor) == 5 for tensor in tf.nest.flatten(state))
    for place in range(tokens.shape[1]):
        shapes = tf.nest.map_structure(lambda tensor: tensor.shape, state)
        logits, state = decoder.step(tokens[:, place], state)
        np.testing.assert_allclose(logits, whole[:, place], atol=1e-4)
        assert shapes == tf.nest.map_structure(lambda tensor: tensor.shape, state)


@EACH
def test_gradients_of_whole_captions_equal_those_of_prefixes(config):
    """One pass over whole captions, compiled as in training, and all prefixes as samples."""
    decoder = untrained(config, seed=1).decoder
    network = compiled(decoder)
    batches = random_batches(count=8, config=config)
    features, ids = batches.features[batches.rows], batches.ids
    inputs, targets = [features, ids[:, :-1]], ids[:, 1:]
    weights = batches.weight * (targets != 0)
    variables = network.trainable_variables

    @tf.function(jit_compile=True)
    def whole_captions():
        with tf.GradientTape() as tape:
            loss = network.compute_loss(inputs, targets, network(inputs), weights, training=False)
        return loss, tape.gradient(loss, variables)

    whole, gradients = whole_captions()
    with tf.GradientTape() as tape:
        losses = []
        for row, line in zip(features, ids, strict=True):
            for end in range(1, np.count_nonzero(line)):  # the prefix before each target
                logits = network([row[None], line[None, :end]])[0, -1]  # (V,)
                losses.append(-tf.nn.log_softmax(logits)[line[end]])
        mean = tf.reduce_mean(losses)
    assert float(whole) == pytest.approx(float(mean), rel=1e-5)
    for pair in zip(gradients, tape.gradient(mean, variables), strict=True):
        np.testing.assert_allclose(*map(tf.convert_to_tensor, pair), rtol=2e-3, atol=2e-6)


@EACH
def test_a_file_gives_the_same_network_and_keras_reads_it_too(config, tmp_path):
    words = [*WORDS[:-4], "dog", "'s", "größe", "كلب"]
    config = dataclasses.replace(config, training={"epochs": 3})
    captioner = untrained(config, words=words)
    captioner.save(tmp_path / "m.h5")
    features, tokens = random_features(20, config), random_tokens(20)
    logits = captioner.decoder.network([features, tokens]).numpy()
    untrained(config)  # names that Keras numbers have moved on
    loaded = Captioner.load(tmp_path / "m.h5")
    assert (loaded.config, loaded.vocabulary.words) == (config, words)
    np.testing.assert_array_equal(loaded.decoder.network([features, tokens]).numpy(), logits)
    assert loaded.caption_features(features) == captioner.caption_features(features)
    plain = keras.models.load_model(tmp_path / "m.h5")  # as any Keras user would
    np.testing.assert_allclose(plain([features, tokens]).numpy(), logits, atol=1e-6)
    assert not any(isinstance(layer, LSTM | Dropout) for layer in plain.layers)  # Keras' own


@EACH
def test_parameters_are_counted_without_building(config):
    for changes in {}, {"units": 8, "embedding_size": 12, "feature_size": 11, "members": 2}:
        config = dataclasses.replace(config, **changes)
        assert count_parameters(config) == build_decoder(config).network.count_params()


@EACH
def test_an_ensemble_of_equals_is_its_member(config):
    alone = untrained(config).decoder
    ensemble = build_decoder(dataclasses.replace(config, members=2))
    for member in ensemble.members:
        member.copy_pretrained(alone)
    features, tokens = random_features(4, config), random_tokens(4)
    expected = alone.network([features, tokens]).numpy()
    np.testing.assert_allclose(ensemble.network([features, tokens]), expected, atol=1e-5)
    logits, state = ensemble.step(tokens[:, 0], ensemble.init_state(features))
    np.testing.assert_allclose(logits, expected[:, 0], atol=1e-4)
    _, own = alone.step(tokens[:, 0], alone.init_state(features))
    looked = [alone.attention(own), ensemble.attention(state)]
    assert (looked[0] is None) == (looked[1] is None)
    if looked[0] is not None:
        np.testing.assert_allclose(*looked, atol=1e-5)
        np.testing.assert_allclose(tf.reduce_sum(looked[0], axis=-1), 1, atol=1e-5)


@EACH
@pytest.mark.parametrize("xla", [True, False], ids=["xla", "plain"])
def test_samples_and_update_miss_the_same_features(config, xla):
    """Features alone, whatever the training dropped: what the sampler would say next, and what
    the update thinks that it would."""
    captioner = prepare_for_scst(untrained(dataclasses.replace(config, dropout=0.0)), {})
    assert captioner.config.dropout == 0.0  # of a further training
    decoder, network = captioner.decoder, compiled(captioner.decoder)
    if not xla:  # as on a GPU
        for dropout in decoder.dropouts.values():
            dropout.rng_alg = "philox"
    features, tokens = random_features(6, config), random_tokens(6)
    begin = tf.function(lambda x: decoder.init_state(x, training=True), jit_compile=xla)
    update = tf.function(lambda *x: network(x, training=True), jit_compile=xla)
    for seed in (1, 2):
        decoder.seed_dropouts(seed)
        state = begin(features)
        decoder.seed_dropouts(seed)
        expected = update(features, tokens)  # (B, T, V)
        for place in range(tokens.shape[1]):
            logits, state = decoder.step(tokens[:, place], state)
            np.testing.assert_allclose(logits, expected[:, place], atol=1e-4)
        assert np.abs(network([features, tokens]) - expected).max() > 0.01  # nothing hidden
    again = update(features, tokens)  # drawn anew
    assert np.abs(again - expected).max() > 0.01


@EACH
def test_known_words_are_copied_into_a_larger_vocabulary(config):
    """The logits of known words stay, whatever is new."""
    pretrained = untrained(config).decoder
    larger = build_decoder(dataclasses.replace(config, vocabulary_size=len(WORDS) + 3))
    larger.copy_pretrained(pretrained)
    features, tokens = random_features(4, config), random_tokens(4)
    logits = larger.network([features, tokens]).numpy()[..., : len(WORDS)]
    np.testing.assert_allclose(logits, pretrained.network([features, tokens]), atol=1e-5)
