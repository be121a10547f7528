"""The network, its loss, its batches and its file: properties that hold whatever the weights."""

import dataclasses
from itertools import chain

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import (
    CONFIG,
    EACH,
    WORDS,
    compiled,
    random_batches,
    random_features,
    run_script,
    token_losses,
    untrained,
)

import model
from captioning.batches import WIDTH_STEP, CaptionBatches
from captioning.captions import END, PADDING, SPECIAL_TOKENS, START, UNKNOWN, Vocabulary
from captioning.cli import INCLUDED
from captioning.decoder import LSTM, Dropout
from captioning.files import InputError
from captioning.training import loss_per_token
from model import Captioner, build_decoder

# -- the network and its loss ----------------------------------------------------------------------


def test_the_merge_network_has_the_parameters_of_the_paper_s():
    """At its default sizes on VGG16 features."""
    sizes = {"embedding_size": 256, "units": 256, "merge_units": 256}
    config = dataclasses.replace(CONFIG, feature_size=4096, vocabulary_size=3490, **sizes)
    moments, image, words = 2 * 4096, 4096 * 256 + 256, 3490 * 256
    lstm, merged, logits = 4 * (2 * 256 * 256 + 256), 256 * 256 + 256, 256 * 3490 + 3490
    assert config.count_parameters() == moments + image + words + lstm + merged + logits


def test_first_loss_is_the_unigram_entropy():
    """Before training the network knows how common each word is, and no more."""
    batches = random_batches(2000)
    keras.utils.set_random_seed(0)
    # Of the usual width: in a narrow network even random weights say much.
    config = dataclasses.replace(CONFIG, units=256, merge_units=256)
    network = build_decoder(config, batches.log_frequencies()).network
    targets = batches.ids[:, 1:][batches.ids[:, 1:] != PADDING]
    shares = np.bincount(targets) / len(targets)
    entropy = -(shares[shares > 0] * np.log(shares[shares > 0])).sum()
    losses = token_losses(network, batches.features[batches.rows], batches.ids)
    loss = losses[batches.ids[:, 1:] != PADDING].mean()
    assert loss == pytest.approx(entropy, abs=0.1)
    assert entropy < np.log(len(WORDS)) - 0.3  # log V would fail


def test_token_loss_weighs_every_token_the_same():
    """Over batches of unequal lengths, the epoch's figure is the mean over all tokens."""
    network = untrained().decoder.network
    batches = random_batches(seed=None)
    losses = token_losses(network, batches.features[batches.rows], batches.ids)
    expected = losses[batches.ids[:, 1:] != PADDING]
    assert len(expected) == batches.tokens
    assert loss_per_token(network, batches) == pytest.approx(expected.mean(), rel=1e-5)


@pytest.mark.long
@EACH
def test_overfits_one_batch(config):
    """Eight captions of eight different images can be learnt by heart."""
    captioner = untrained(dataclasses.replace(config, dropout=0.0), seed=2)
    features = random_features(8, config)
    texts = [" ".join(f"w{(5 * i + j * (i + 1)) % 40}" for j in range(3 + i % 4)) for i in range(8)]
    batches = CaptionBatches(features, list(enumerate(texts)), captioner.vocabulary, 8, seed=0)
    network = compiled(captioner.decoder, 1e-2)
    batch = next(iter(batches))
    for _ in range(150):
        network.reset_metrics()
        result = network.train_on_batch(*batch, return_dict=True)
    assert result["loss"] < 0.02
    assert captioner.caption_features(features) == texts


@EACH
def test_greedy_equals_an_argmax_loop_over_the_full_forward_pass(config, monkeypatch):
    """The stepwise decoder, batched, against the plain definition, one image at a time."""
    monkeypatch.setattr(model, "DECODING_BATCH", 16)  # three batches, the last one smaller
    captioner = untrained(config)
    decoder = captioner.decoder
    random = np.random.default_rng(6)  # large weights and a likely end, so that captions differ
    scale, end = (1, 10) if config.decoder == "merge" else (0.5, 40)
    arrays = decoder.network.get_weights()
    decoder.network.set_weights([scale * random.normal(size=array.shape) for array in arrays])
    decoder.standardize(random_features(100, config), list(range(100)))
    decoder.embedding.set_weights([3 * decoder.embedding.get_weights()[0]])
    kernel, bias = decoder.logits.get_weights()
    decoder.logits.set_weights([kernel, bias + end * np.eye(len(WORDS))[END]])
    whole = tf.function(lambda *x: decoder.network(x), reduce_retracing=True)
    features = random_features(40, config, seed=1)
    expected = []
    for row in features:
        ids = [START]
        while len(ids) <= CONFIG.max_length and ids[-1] != END:
            logits = whole(row[None], np.array([ids], np.int32)).numpy()[0, -1]  # (V,)
            logits[[PADDING, UNKNOWN, START]] = -np.inf
            ids.append(int(logits.argmax()))
        expected.append(captioner.vocabulary.decode(ids))
    captions = captioner.caption_features(features)
    assert captions == expected
    assert len(set(captions)) > 5
    lengths = {len(caption.split()) for caption in captions}
    assert CONFIG.max_length in lengths  # some are cut
    assert len(lengths) > 1  # and others end by themselves


# -- dropout ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("xla", [True, False], ids=["xla", "plain"])
@pytest.mark.parametrize("shared", [True, False], ids=["shared by all cells", "each by itself"])
def test_dropout(xla, shared):
    """It drops the share that it should, other floats at every step, and none in captioning."""
    layer = Dropout(0.3, (None, 1, None) if shared else None, seed=1)
    layer.rng_alg = "threefry" if xla else "philox"
    network = keras.Sequential([keras.Input((5, 800)), layer])
    step = tf.function(lambda ones: network(ones, training=True), jit_compile=xla)
    ones = tf.ones((20, 5, 800))
    first, second = (step(ones).numpy() for _ in range(2))
    np.testing.assert_allclose(first[first > 0], 1 / 0.7, rtol=1e-6)
    first, second = first == 0, second == 0
    assert first.mean() == pytest.approx(0.3, abs=0.02)
    independent = pytest.approx(0.3**2 + 0.7**2, abs=0.02)
    assert (first == second).mean() == independent
    assert (first[1:] == first[:-1]).mean() == independent  # photos
    assert (first[:, 1:] == first[:, :-1]).mean() == (1 if shared else independent)  # cells
    np.testing.assert_array_equal(network(ones), ones)


def test_a_file_is_loaded_with_keras_own_dropout_where_nothing_of_ours_is_known(tmp_path):
    captioner = untrained()
    captioner.save(tmp_path / "m.h5")
    code = (
        "import sys; sys.path = [place for place in sys.path if place]; import keras\n"
        "network = keras.models.load_model('m.h5', compile=False)\n"
        "kept = [l.rate for l in network.layers if type(l) is keras.layers.Dropout]\n"
        "print(sorted(kept), any('captioning' in name for name in sys.modules))"
    )
    done = run_script("-c", code, cwd=tmp_path)
    rates = sorted(dropout.rate for dropout in captioner.decoder.dropouts.values())
    assert done.stdout.strip() == f"{rates} False"


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
    for positions, ((features, inputs), targets, weights) in zip(
        batches.order(), batches, strict=True
    ):
        np.testing.assert_array_equal(features, batches.features[batches.rows[positions]])
        np.testing.assert_array_equal(inputs[:, 1:], targets[:, :-1])
        captions = inputs[:, 0] != PADDING  # not the empty ones
        assert (inputs[captions, 0] == START).all() and not weights[~captions].any()
        np.testing.assert_array_equal(weights, (targets != PADDING) * batches.weight)
        assert ((targets == END).sum(axis=1) == captions).all()
        width, longest = inputs.shape[1] + 1, batches.lengths[positions].max()
        assert width % WIDTH_STEP == 0 <= width - longest < WIDTH_STEP


# -- the file --------------------------------------------------------------------------------------


def test_the_included_captioner_loads():
    captioner = Captioner.load(INCLUDED)
    assert captioner.config.members == len(captioner.decoder.members) > 1
    assert captioner.decoder.network.count_params() == captioner.config.count_parameters()


def test_a_vocabulary_beyond_an_attribute_s_limit_is_kept(tmp_path):
    """HDF5 attributes stop at 64 kB; 20,000 words take more."""
    words = [*SPECIAL_TOKENS, *(f"word{i:05d}" for i in range(20_000))]
    config = dataclasses.replace(CONFIG, vocabulary_size=len(words), embedding_size=2, units=2)
    Captioner(build_decoder(config), Vocabulary(words), config).save(tmp_path / "m.h5")
    assert Captioner.load(tmp_path / "m.h5").vocabulary.words == words


def test_what_is_no_captioner_is_refused(tmp_path):
    captioner = untrained()
    path = tmp_path / "m.h5"
    with pytest.raises(InputError, match="no such model"):
        Captioner.load(path)
    path.write_text("not HDF5")
    with pytest.raises(InputError, match=r"m\.h5 is not a captioner"):
        Captioner.load(path)
    captioner.decoder.network.save(path)
    with pytest.raises(InputError, match="is not a captioner"):
        Captioner.load(path)
    captioner.save(path)
    with h5py.File(path, "r+") as file:
        file["captioner"].attrs["format_version"] = 99
    with pytest.raises(InputError, match="format 99"):
        Captioner.load(path)
    captioner.save(path)
    with h5py.File(path, "r+") as file:
        del file["captioner/vocabulary"]
        file["captioner"].create_dataset("vocabulary", data=np.array(WORDS[:-1], "S"))
    with pytest.raises(InputError, match="43 words for 44 outputs"):
        Captioner.load(path)


@pytest.mark.parametrize("xla", [True, False], ids=["xla", "plain"])
def test_the_lstm_gives_the_numbers_of_keras_own(xla):
    """The same states and the same four gradients."""
    keras.utils.set_random_seed(5)
    keras_own = keras.layers.LSTM(6, return_sequences=True, bias_initializer="normal")
    ours = LSTM(6, return_sequences=True)
    inputs = tf.random.normal((3, 7, 5))
    upstream = tf.random.normal((3, 7, 6))  # differs at every step: none may be lost
    for layer in (keras_own, ours):
        layer.build(inputs.shape)
    ours.set_weights(keras_own.get_weights())

    def states_and_gradients(layer):
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            states = layer(inputs)
        arguments = [inputs, *(weight.value for weight in layer.weights)]
        return [states, *tape.gradient(states, arguments, upstream)]

    expected, found = (
        tf.function(lambda layer=layer: states_and_gradients(layer), jit_compile=xla)()
        for layer in (keras_own, ours)
    )
    for array, wanted in zip(found, expected, strict=True):
        np.testing.assert_allclose(array, wanted, rtol=1e-4, atol=1e-6)
