"""The network, its loss, its training and its file: properties that hold whatever the weights."""

import dataclasses
from itertools import chain, combinations

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf

import model
from captioning import acceleration
from captioning.acceleration import accelerate
from captioning.batches import CaptionBatches, choose_widths
from captioning.captions import END, PADDING, SPECIAL_TOKENS, START, UNKNOWN, Vocabulary
from captioning.files import InputError
from captioning.networks import CaptionerConfig, build_captioner, standardize
from captioning.training import EpochLog, compile_for_training
from model import Captioner

WORDS = [*SPECIAL_TOKENS, *(f"w{i}" for i in range(40))]
CONFIG = CaptionerConfig(
    feature_size=12,
    vocabulary_size=len(WORDS),
    max_length=9,
    encoder="efficientnet_lite0",
    weights_hash="-",
    embedding_size=16,
    units=16,
    merge_units=16,
)
CONFIGS = {
    "merge": CONFIG,
    "wide merge": dataclasses.replace(CONFIG, merge_units=24, features="layers"),
    "attention": dataclasses.replace(CONFIG, decoder="attention", features="grid"),
}
EACH = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


def random_features(count: int, config=CONFIG, seed=0) -> np.ndarray:
    """Of `count` images, in the form that the decoder takes."""
    features = np.random.default_rng(seed).normal(size=(count, *config.features_shape))
    return features.astype(np.float16 if config.decoder == "attention" else np.float32)


def random_batches(
    count=50, batch_size=8, seed: int | None = 0, words=40, config=CONFIG
) -> CaptionBatches:
    """Random captions of 1 to 9 words, common words more often, of 10 random images."""
    features = random_features(10, config)
    random = np.random.default_rng(0)
    shares = 1 / np.arange(1, words + 1)
    captions = []
    for _ in range(count):
        drawn = random.choice(words, random.integers(1, 10), p=shares / shares.sum())
        captions.append((int(random.integers(10)), " ".join(f"w{i}" for i in drawn)))
    return CaptionBatches(features, captions, Vocabulary(WORDS), batch_size, seed)


def token_losses(network, features, ids) -> np.ndarray:
    """Cross-entropy at every target of whole captions, by numpy: (B, T), padding included."""
    logits = network([features, ids[:, :-1]]).numpy().astype(np.float64)  # (B, T, V)
    logits -= logits.max(-1, keepdims=True)
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return -np.take_along_axis(log_probs, ids[:, 1:, None].astype(int), -1)[..., 0]


@pytest.mark.parametrize(
    ("patience", "kept", "finished"), [(2, 2, True), (3, 2, False), (None, 4, False)]
)
def test_the_epoch_that_is_kept_and_when_to_stop(patience, kept, finished, tmp_path):
    """The best one and its patience; with neither, the last, and on to the end."""
    log = EpochLog(None, None, tmp_path / "m.h5", 6, patience)
    losses = [3.0, 2.8, 2.9, 2.9]
    log.rows = [
        {"epoch": epoch, "train_loss": 1.0, "dev_loss": loss}
        for epoch, loss in enumerate(losses, 1)
    ]
    assert (log.kept()["epoch"], log.finished()) == (kept, finished)
    log.epochs = 4
    assert log.finished()


def test_parameter_counts():
    """Every layer of the network at its default sizes on VGG16 features."""
    config = dataclasses.replace(
        CONFIG,
        feature_size=4096,
        vocabulary_size=3490,
        embedding_size=256,
        units=256,
        merge_units=256,
    )
    network = build_captioner(config)
    counts = {layer.name: layer.count_params() for layer in network.layers if layer.weights}
    assert counts == {
        "image_standard": 2 * 4096,  # means and variances
        "image": 4096 * 256 + 256,
        "embedding": 3490 * 256,
        "lstm": 4 * (256 * 256 + 256 * 256 + 256),  # four gates
        "merged": 256 * 256 + 256,
        "logits": 256 * 3490 + 3490,
    }
    assert network.count_params() == 3_438_498


def test_first_loss_is_the_unigram_entropy():
    """Before training the network knows how common each word is, and no more."""
    batches = random_batches(2000)
    keras.utils.set_random_seed(0)
    # Of the usual width: in a narrow network even random weights say much.
    network = build_captioner(dataclasses.replace(CONFIG, units=256), batches.log_frequencies())
    targets = batches.ids[:, 1:][batches.ids[:, 1:] != PADDING]
    shares = np.bincount(targets) / len(targets)
    entropy = -(shares[shares > 0] * np.log(shares[shares > 0])).sum()
    losses = token_losses(network, batches.features[batches.rows], batches.ids)
    loss = losses[batches.ids[:, 1:] != PADDING].mean()
    assert loss == pytest.approx(entropy, abs=0.1)
    assert entropy < np.log(len(WORDS)) - 0.3  # log V would fail


@EACH
def test_whole_captions_equal_prefixes(config):
    """One pass over whole captions: loss and gradients of all prefixes, each a sample."""
    keras.utils.set_random_seed(1)
    network = build_captioner(config)
    batches = random_batches(count=8, config=config)
    features, ids = batches.features[batches.rows], batches.ids
    compile_for_training(network, 1e-3)
    (whole_inputs, targets, weights) = (
        (features, ids[:, :-1]),
        ids[:, 1:],
        batches.weight * (ids[:, 1:] != PADDING),
    )

    with tf.GradientTape() as tape:
        whole = network.compute_loss(
            whole_inputs, targets, network(list(whole_inputs)), weights, training=False
        )
    gradients = tape.gradient(whole, network.trainable_variables)

    total, count = 0.0, np.count_nonzero(weights)
    sums = [np.zeros(variable.shape) for variable in network.trainable_variables]
    for row, line in zip(features, ids, strict=True):
        for end in range(1, np.count_nonzero(line)):  # the prefix before each target
            with tf.GradientTape() as tape:
                logits = network([row[None], line[None, :end]])[0, -1]  # (V,)
                loss = -tf.nn.log_softmax(logits)[line[end]]
            total += float(loss)
            for i, gradient in enumerate(tape.gradient(loss, network.trainable_variables)):
                sums[i] += tf.convert_to_tensor(gradient).numpy()
    assert float(whole) == pytest.approx(total / count, rel=1e-5)
    for gradient, expected in zip(gradients, sums, strict=True):
        gradient = tf.convert_to_tensor(gradient).numpy()
        np.testing.assert_allclose(gradient, expected / count, rtol=1e-3, atol=1e-6)


@EACH
def test_overfits_one_batch(config):
    """Eight captions of eight different images can be learnt by heart."""
    keras.utils.set_random_seed(2)
    config = dataclasses.replace(config, dropout=0.0)
    features = random_features(8, config)
    texts = [" ".join(f"w{(5 * i + j * (i + 1)) % 40}" for j in range(3 + i % 4)) for i in range(8)]
    vocabulary = Vocabulary(WORDS)
    batches = CaptionBatches(features, list(enumerate(texts)), vocabulary, 8, seed=0)
    network = build_captioner(config)
    compile_for_training(network, 1e-2)
    batch = next(iter(batches))
    for _ in range(150):
        network.reset_metrics()
        result = network.train_on_batch(*batch, return_dict=True)
    assert result["loss"] < 0.02
    assert Captioner(network, vocabulary, config).caption_features(features) == texts


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
    for (features, inputs), targets, weights in batches:
        assert len(features) == len(inputs)
        np.testing.assert_array_equal(inputs[:, 1:], targets[:, :-1])
        captions = inputs[:, 0] != PADDING  # not the empty ones
        assert (inputs[captions, 0] == START).all() and not weights[~captions].any()
        np.testing.assert_array_equal(weights > 0, targets != PADDING)
        assert set(np.unique(weights)) <= {0, batches.weight}
        assert ((targets == END).sum(axis=1) == captions).all()
        assert inputs.shape[1] + 1 in batches.widths


def test_the_widths_cost_least(monkeypatch):
    """Against every choice of widths, for a few lengths: tokens of padding and their number."""
    lengths = np.random.default_rng(7).integers(2, 10, 60)
    lengths = np.concatenate([lengths, [0, 0, 15]])  # empty captions need no width of their own
    for cost in (0, 5, 20, 1000):
        monkeypatch.setattr("captioning.batches.WIDTH_COST", cost)

        def price(widths, cost=cost):
            padded = sum(min(w for w in widths if w >= n) for n in lengths[lengths > 0])
            return padded + cost * len(widths)

        shorter = set(lengths.tolist()) - {0, 15}
        choices = chain(*(combinations(sorted(shorter), n) for n in range(len(shorter) + 1)))
        assert price(choose_widths(lengths)) == min(price((*some, 15)) for some in choices)
        assert choose_widths(lengths)[-1] == 15


def test_dropout_under_xla():
    """The trainer's dropout drops the share it should, differently at every step."""
    layer = keras.layers.Dropout(0.3, seed=1)
    network = keras.Sequential([keras.Input((1000,)), layer])
    assert accelerate(network)
    step = tf.function(lambda ones: network(ones, training=True), jit_compile=True)
    first, second = (step(tf.ones((20, 1000))).numpy() for _ in range(2))
    assert np.mean(first == 0) == pytest.approx(0.3, abs=0.02)
    np.testing.assert_allclose(first[first > 0], 1 / 0.7, rtol=1e-6)
    assert np.mean((first == 0) == (second == 0)) == pytest.approx(0.3**2 + 0.7**2, abs=0.02)
    np.testing.assert_array_equal(network(tf.ones((20, 1000))), 1)  # not when captioning


def test_dropout_shared_by_all_cells_under_xla():
    layer = keras.layers.Dropout(0.3, (None, 1, None), seed=1)
    network = keras.Sequential([keras.Input((5, 400)), layer])
    assert accelerate(network)
    step = tf.function(lambda ones: network(ones, training=True), jit_compile=True)
    dropped = step(tf.ones((20, 5, 400))).numpy() == 0
    assert (dropped == dropped[:, :1]).all()
    assert dropped.mean() == pytest.approx(0.3, abs=0.03)
    assert (dropped[0] != dropped[1]).any()


def test_token_loss_weighs_every_token_the_same():
    """Over batches of unequal lengths, the epoch's figure is the mean over all tokens."""
    keras.utils.set_random_seed(3)
    network = build_captioner(CONFIG)
    compile_for_training(network, 1e-3)
    batches = random_batches(seed=None)
    losses = token_losses(network, batches.features[batches.rows], batches.ids)
    expected = losses[batches.ids[:, 1:] != PADDING]
    assert len(expected) == batches.tokens
    loss = network.evaluate(batches.dataset(), verbose=0)
    assert loss == pytest.approx(expected.mean(), rel=1e-5)


def test_large_products_give_the_layer_s_own_numbers(monkeypatch):
    """The trainer's pass through the LSTM: the same states and the same four gradients."""
    passes = []
    own = acceleration.lstm
    monkeypatch.setattr(acceleration, "lstm", lambda *args: passes.append(1) or own(*args))
    keras.utils.set_random_seed(5)
    layer = keras.layers.LSTM(6, return_sequences=True, bias_initializer="normal")
    inputs = tf.random.normal((3, 7, 5))
    upstream = tf.random.normal((3, 7, 6))  # differs at every step: none may be lost

    def states_and_gradients():
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            states = layer(inputs)
        arguments = [inputs, *(weight.value for weight in layer.weights)]
        return [states, *tape.gradient(states, arguments, upstream)]

    layer.build(inputs.shape)
    expected = tf.function(states_and_gradients)()
    assert not passes
    accelerate(keras.Sequential([layer]))
    found = tf.function(states_and_gradients)()
    assert passes
    for array, wanted in zip(found, expected, strict=True):
        np.testing.assert_allclose(array, wanted, rtol=1e-4, atol=1e-6)


@EACH
def test_greedy_equals_an_argmax_loop_over_the_full_forward_pass(config, monkeypatch):
    """The stepwise decoder, batched, against the plain definition, one image at a time."""
    monkeypatch.setattr(model, "DECODING_BATCH", 16)  # three batches, the last one smaller
    network = build_captioner(config)
    random = np.random.default_rng(6)  # large weights and a likely end, so that captions differ
    scale, end = (1, 10) if config.decoder == "merge" else (0.5, 40)
    network.set_weights(
        [scale * random.normal(size=array.shape) for array in network.get_weights()]
    )
    standardize(network, random_features(100, config), list(range(100)))
    embedding, logits = network.get_layer("embedding"), network.get_layer("logits")
    embedding.set_weights([3 * embedding.get_weights()[0]])
    kernel, bias = logits.get_weights()
    logits.set_weights([kernel, bias + end * np.eye(len(WORDS))[END]])
    captioner = Captioner(network, Vocabulary(WORDS), config)
    features = random_features(40, config, seed=1)
    expected = []
    for row in features:
        ids = [START]
        while len(ids) <= CONFIG.max_length and ids[-1] != END:
            logits = network([row[None], np.array([ids])]).numpy()[0, -1]  # (V,)
            logits[[PADDING, UNKNOWN, START]] = -np.inf
            ids.append(int(logits.argmax()))
        expected.append(captioner.vocabulary.decode(ids))
    captions = captioner.caption_features(features)
    assert captions == expected
    assert len(set(captions)) > 5
    lengths = {len(caption.split()) for caption in captions}
    assert CONFIG.max_length in lengths  # some are cut
    assert len(lengths) > 1  # and others end by themselves


@EACH
def test_save_and_load(config, tmp_path):
    keras.utils.set_random_seed(7)
    words = [*SPECIAL_TOKENS, "dog", "'s", "größe", "كلب"]
    config = dataclasses.replace(config, vocabulary_size=len(words), training={"epochs": 3})
    captioner = Captioner(build_captioner(config), Vocabulary(words), config)
    captioner.save(tmp_path / "m.h5")
    features = random_features(20, config)
    tokens = np.random.default_rng(4).integers(0, len(words), (20, 5))
    logits = captioner.network([features, tokens]).numpy()

    loaded = Captioner.load(tmp_path / "m.h5")
    assert loaded.config == config
    assert loaded.vocabulary.words == words
    np.testing.assert_array_equal(loaded.network([features, tokens]).numpy(), logits)
    assert loaded.caption_features(features) == captioner.caption_features(features)

    plain = keras.models.load_model(tmp_path / "m.h5")  # as any Keras user would
    np.testing.assert_array_equal(plain([features, tokens]).numpy(), logits)


def test_a_vocabulary_beyond_an_attribute_s_limit_is_kept(tmp_path):
    """HDF5 attributes stop at 64 kB; 20,000 words take more."""
    words = [*SPECIAL_TOKENS, *(f"word{i:05d}" for i in range(20_000))]
    config = dataclasses.replace(CONFIG, vocabulary_size=len(words), embedding_size=2, units=2)
    Captioner(build_captioner(config), Vocabulary(words), config).save(tmp_path / "m.h5")
    assert Captioner.load(tmp_path / "m.h5").vocabulary.words == words


def test_what_is_no_captioner_is_refused(tmp_path):
    captioner = Captioner(build_captioner(CONFIG), Vocabulary(WORDS), CONFIG)
    path = tmp_path / "m.h5"
    with pytest.raises(InputError, match="no such model"):
        Captioner.load(path)
    path.write_text("not HDF5")
    with pytest.raises(InputError, match=r"m\.h5 is not a captioner"):
        Captioner.load(path)
    captioner.network.save(path)
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
