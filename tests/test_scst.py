"""Fine-tuning on CIDEr: the score, the samples, their weights, and that it learns."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf
from test_model import CONFIG, EACH, WORDS, random_features

from captioning.captions import END, PADDING, SPECIAL_TOKENS, START, UNKNOWN, Vocabulary
from captioning.decoding import draw_captions
from captioning.networks import build_captioner, next_word, standardize
from captioning.scst import (
    HIDDEN,
    MAX_WORDS,
    SAMPLES,
    WIDTH_STEP,
    CiderD,
    CiderLog,
    SampledBatches,
    policy,
)
from captioning.training import compile_for_training, fit
from model import Captioner


def random_captions(random, images: int, each: int) -> list[list[str]]:
    """Captions of a few words each, so that images share n-grams; some repeat words."""
    words = [f"w{i}" for i in range(12)]
    return [
        [" ".join(random.choice(words, random.integers(1, 12))) for _ in range(each)]
        for _ in range(images)
    ]


def test_cider_d_is_that_of_the_standard_scorer():
    from pycocoevalcap.cider.cider import Cider

    random = np.random.default_rng(0)
    references = random_captions(random, images=30, each=4)
    candidates = [lines[0] for lines in random_captions(random, images=30, each=1)]
    candidates[0] = references[0][0]  # word for word
    candidates[1] = "w1 w1 w1 w1 w1 w1"  # clipped
    candidates[2] = "unheard of words"
    candidates[3] = "w3"  # no bigram
    _, expected = Cider().compute_score(
        dict(enumerate(references)), {i: [line] for i, line in enumerate(candidates)}
    )
    scorer = CiderD([[line.split() for line in lines] for lines in references])
    found = [scorer.score(i, line.split()) for i, line in enumerate(candidates)]
    np.testing.assert_allclose(found, expected, atol=1e-12)
    assert found[2] == 0 < found[1] < found[0]


def test_words_are_drawn_with_their_probabilities():
    """From a table of what follows what: shares of 20,000 captions, and never a special token."""
    vocabulary_size, count = 7, 20_000
    table = np.random.default_rng(1).normal(size=(vocabulary_size, vocabulary_size))
    table = tf.constant(table, tf.float32)

    def draw(seed):
        return draw_captions(
            lambda tokens, state: (tf.nn.log_softmax(tf.gather(table, tokens)), state),
            (tf.zeros([count]),),
            count,
            3,
            tf.constant(seed),
        ).numpy()

    lines = draw([1, 2])
    assert not np.isin(lines, [UNKNOWN, START]).any()
    allowed = np.delete(np.arange(vocabulary_size), [PADDING, UNKNOWN, START])
    for place, before in ((0, START), (1, 4), (2, 5)):
        met = lines if place == 0 else lines[lines[:, place - 1] == before]
        shares = np.bincount(met[:, place], minlength=vocabulary_size)[allowed] / len(met)
        logits = table.numpy()[before, allowed]
        expected = np.exp(logits) / np.exp(logits).sum()
        np.testing.assert_allclose(shares, expected, atol=4 * np.sqrt(0.25 / len(met)))
    ended = np.cumsum(lines == END, axis=1) - (lines == END)  # behind an END
    np.testing.assert_array_equal(lines == PADDING, ended > 0)
    np.testing.assert_array_equal(lines, draw([1, 2]))
    assert (lines != draw([1, 3])).any()


@pytest.fixture
def photos() -> tuple[np.ndarray, dict[int, list[str]]]:
    """Features of ten photos, and captions of eight: each has two words of its own."""
    captions = {row: [f"w{row} w{row + 10}", f"w0 w{row} w{row + 10}"] for row in range(1, 9)}
    return random_features(10), captions


def captioner_of(photos, dropout=0.0, config=CONFIG) -> Captioner:
    keras.utils.set_random_seed(0)
    config = dataclasses.replace(config, dropout=dropout)
    network = build_captioner(config)
    standardize(network, photos[0], list(photos[1]))
    compile_for_training(network, 1e-3)
    return Captioner(network, Vocabulary(WORDS), config)


@EACH
def test_samples_and_step_miss_the_same_features(photos, config):
    """What the sampler would say next, and what the training step thinks that it would."""
    features = random_features(10, config)
    trained = captioner_of((features, photos[1]), dropout=0.5, config=config)
    captioner = policy(trained, {"why": "a test"})
    network = captioner.network
    compile_for_training(network, 1e-3)
    batches = SampledBatches(captioner, features, photos[1], photos_per_batch=2, seed=0)
    begun = []
    batches._begin = lambda features, begin=batches._begin: (
        begun.append(begin(features)) or begun[0]
    )
    (repeated, inputs), targets, _ = next(iter(batches))
    (state,) = begun  # that the samples were drawn from
    step = tf.function(lambda *x: network(x, training=True), jit_compile=True)
    expected = tf.nn.log_softmax(step(repeated, inputs))  # (W, T, V)
    for position in range(targets.shape[1]):
        log_probs, state = next_word(network, inputs[:, position], state)
        np.testing.assert_allclose(log_probs, expected[:, position], atol=1e-4)
    whole = tf.nn.log_softmax(network([repeated, inputs]))  # nothing hidden
    assert np.abs(whole - expected).max() > 0.01


def test_features_are_hidden_whatever_the_training_dropped(photos):
    for dropout in (0.0, 0.5):
        network = policy(captioner_of(photos, dropout), {}).network
        rates = {layer.name: layer.rate for layer in network.layers if hasattr(layer, "rate")}
        assert rates == {"image_dropout": HIDDEN, "word_dropout": 0, "merged_dropout": 0}


def test_only_what_samples_can_teach_is_trained(photos):
    captioner = policy(captioner_of(photos, dropout=0.5), {})
    before = captioner.network.get_weights()
    batches = SampledBatches(captioner, *photos, photos_per_batch=4, seed=0)
    compile_for_training(captioner.network, 1e-3)
    captioner.network.fit(batches.dataset(), verbose=0, shuffle=False)
    kept = {
        variable.path
        for variable, old in zip(captioner.network.weights, before, strict=True)
        if np.array_equal(variable.numpy(), old)
    }
    assert {path.split("/")[0] for path in kept} == {"embedding", "logits", "image_standard"}


def test_samples_weigh_as_much_as_they_are_better_than_the_others(photos):
    captioner = captioner_of(photos)
    batches = SampledBatches(captioner, *photos, photos_per_batch=3, seed=4)
    assert len(batches) == 3
    seen = []
    for (features, inputs), targets, weights in batches:
        assert len(features) == len(inputs) == 3 * SAMPLES
        assert targets.shape[1] % WIDTH_STEP == 0
        assert targets.shape[1] <= MAX_WORDS
        np.testing.assert_array_equal(inputs[:, 1:], targets[:, :-1])
        assert (inputs[:, 0] == START).all()
        assert not weights[targets == PADDING].any()
        for photo in range(3):
            own = slice(photo * SAMPLES, (photo + 1) * SAMPLES)
            row = next(r for r in photos[1] if np.array_equal(photos[0][r], features[own][0]))
            assert (features[own] == features[own][0]).all()
            seen.append(row)
            rewards = [
                batches.scorer.score(
                    list(photos[1]).index(row),
                    [
                        *captioner.vocabulary.decode(line).split(),
                        *(["<end>"] if END in line else []),
                    ],
                )
                for line in targets[own]
            ]
            for i, reward in enumerate(rewards):
                others = np.mean(rewards[:i] + rewards[i + 1 :])
                expected = (reward - others) / (3 * SAMPLES)
                np.testing.assert_allclose(weights[own][i, 0], expected, atol=1e-6)
    assert set(seen) == set(photos[1])  # all, the last batch filled up with one again


def test_an_epoch_draws_what_seed_and_epoch_say(photos):
    captioner = captioner_of(photos)
    first, second = (SampledBatches(captioner, *photos, 8, seed=4) for _ in range(2))
    drawn = [next(iter(batches))[1] for batches in (first, second)]
    np.testing.assert_array_equal(*drawn)
    second.epoch = 1
    later = next(iter(second))[1]
    assert drawn[0].shape != later.shape or (drawn[0] != later).any()


@pytest.mark.long
def test_fine_tuning_raises_cider_and_keeps_the_best_epoch(photos, tmp_path, capsys):
    captioner = captioner_of(photos)
    batches = SampledBatches(captioner, *photos, photos_per_batch=4, seed=0)
    path = tmp_path / "m.h5"
    log = CiderLog(captioner, batches, path, 40, 40, features=photos[0], photos=photos[1])
    fit(log, None, learning_rate=2e-2, weight_decay=0.0)
    first, last = log.rows[0], log.rows[-1]
    assert last["train_cider"] > 3 * first["train_cider"]
    assert log.kept()["dev_cider"] == max(row["dev_cider"] for row in log.rows)
    kept = Captioner.load(path)
    captions = kept.caption_features(photos[0][list(photos[1])])
    scores = [log.scorer.score(i, caption.split()) for i, caption in enumerate(captions)]
    assert np.mean(scores) == pytest.approx(log.kept()["dev_cider"])
    assert kept.config.training["kept"]["epoch"] == log.kept()["epoch"]
    assert SPECIAL_TOKENS[UNKNOWN] not in " ".join(captions)
    assert "no epoch is better" not in capsys.readouterr().err

    batches = SampledBatches(kept, *photos, photos_per_batch=4, seed=0)
    log = CiderLog(kept, batches, tmp_path / "n.h5", 1, 1, features=photos[0], photos=photos[1])
    assert log.before == pytest.approx(np.mean(scores))
    fit(log, None, learning_rate=10.0, weight_decay=0.0)  # too large a step
    assert log.kept()["dev_cider"] < log.before / 2
    assert "no epoch is better" in capsys.readouterr().err
    log.rows = [log.rows[0] | {"dev_cider": log.before + 1}, *log.rows]
    log.patience = None  # the last is kept, though the first was better
    log.close()
    assert "no epoch is better" not in capsys.readouterr().err
