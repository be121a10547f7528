"""Fine-tuning on CIDEr: the score, the samples, their weights, and that it learns."""

import dataclasses
from unittest import mock

import numpy as np
import pytest
import tensorflow as tf
from helpers import (
    CONFIG,
    CONFIGS,
    EACH,
    options,
    random_features,
    run_here,
    untrained,
)

import finetune
from captioning import decoding
from captioning.captions import END, PADDING, SPECIAL_TOKENS, START, UNKNOWN
from captioning.scoring import CiderD
from finetune import FEATURE_DROPOUT, MAX_WORDS, SAMPLES, WIDTH_STEP, prepare_for_scst
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


# Of eight of ten photos: each has two words of its own.
CAPTIONS = {row: [f"w{row} w{row + 10}", f"w0 w{row} w{row + 10}"] for row in range(1, 9)}


def updates(
    captioner, path, batch_size=3, train=CAPTIONS, update=False, look=lambda: None, **changes
) -> list:
    """What each update of a fine-tuning gets, and what `look` then sees: it is not applied."""
    seen, apply = [], captioner.decoder.network.train_on_batch

    def train_on_batch(inputs, targets, weights):
        seen.append((*inputs, targets, weights, look()))
        return apply(inputs, targets, weights) if update else 0.0

    given = options(path, **changes)
    features = random_features(10, captioner.config)
    with mock.patch.object(captioner.decoder.network, "train_on_batch", train_on_batch):
        finetune.finetune(captioner, features, train, CAPTIONS, batch_size, given)
    return seen


@EACH
def test_only_features_are_dropped_whatever_the_training_dropped(config):
    for dropout in (0.0, 0.5):
        captioner = prepare_for_scst(untrained(dataclasses.replace(config, dropout=dropout)), {})
        assert captioner.config.dropout == dropout  # of a further training
        rates = {name: layer.rate for name, layer in captioner.decoder.dropouts.items()}
        features = set(captioner.decoder.feature_inputs)
        assert rates == {name: FEATURE_DROPOUT * (name in features) for name in rates}
        assert features < set(rates)


def test_only_what_samples_can_teach_is_trained(tmp_path):
    captioner = prepare_for_scst(untrained(), {})
    decoder = captioner.decoder
    before = decoder.network.get_weights()
    updates(captioner, tmp_path / "m.h5", update=True)
    pairs = zip(decoder.network.weights, before, strict=True)
    kept = {id(weights) for weights, old in pairs if np.array_equal(weights.numpy(), old)}
    standardizers = [made.standardizer for made in decoder.feature_inputs.values()]
    layers = [decoder.embedding, decoder.logits, *standardizers]
    assert kept == {id(weights) for layer in layers for weights in layer.weights}


def test_samples_weigh_as_much_as_they_are_better_than_the_others(tmp_path):
    captioner = prepare_for_scst(untrained(), {})
    features, rows = random_features(10), list(CAPTIONS)
    references = [[[*line.split(), "<end>"] for line in lines] for lines in CAPTIONS.values()]
    scorer = CiderD(references)
    seen, worth = [], 0
    steps = updates(captioner, tmp_path / "m.h5")
    assert len(steps) == 3
    for images, inputs, targets, weights, _ in steps:
        assert len(images) == len(inputs) == 3 * SAMPLES
        assert targets.shape[1] % WIDTH_STEP == 0
        assert targets.shape[1] <= MAX_WORDS
        np.testing.assert_array_equal(inputs[:, 1:], targets[:, :-1])
        assert (inputs[:, 0] == START).all()
        assert not weights[targets == PADDING].any()
        for photo in range(3):
            own = slice(photo * SAMPLES, (photo + 1) * SAMPLES)
            place = next(i for i, r in enumerate(rows) if (features[r] == images[own][0]).all())
            assert (images[own] == images[own][0]).all()
            seen.append(place)
            words = [captioner.vocabulary.decode(line).split() for line in targets[own]]
            ends = [["<end>"] * (END in line) for line in targets[own]]
            rewards = [scorer.score(place, [*a, *b]) for a, b in zip(words, ends, strict=True)]
            for i, reward in enumerate(rewards):
                others = np.mean(rewards[:i] + rewards[i + 1 :])
                expected = (reward - others) / (3 * SAMPLES)
                said = targets[own][i] != PADDING
                np.testing.assert_allclose(weights[own][i][said], expected, atol=1e-6)
                worth += abs(expected) > 0.01
    assert worth > 5
    # Every photo once, and one more in the last batch.
    assert set(seen) == set(range(8)) == set(seen[:8])


@pytest.mark.parametrize("config", [CONFIG, CONFIGS["attention"]], ids=["merge", "attention"])
def test_the_update_misses_what_the_samples_missed(config, tmp_path, monkeypatch):
    """The states that samples were drawn from, and the network as the update sees it."""
    captioner = prepare_for_scst(untrained(config), {})
    decoder, network = captioner.decoder, captioner.decoder.network
    begun, draw = [], decoding.sample_captions

    def sample_captions(step, state, *more):
        def keep(*tensors):
            begun.append(tf.nest.pack_sequence_as(state, tensors))

        tf.py_function(keep, tf.nest.flatten(state), [])
        return draw(step, state, *more)

    monkeypatch.setattr(decoding, "sample_captions", sample_captions)
    drawn = {name: layer.seed_generator.state for name, layer in decoder.dropouts.items()}
    look = lambda: {name: state.numpy() for name, state in drawn.items()}  # noqa: E731
    steps = updates(captioner, tmp_path / "m.h5", look=look)
    update = tf.function(
        lambda *x: network(x, training=True), jit_compile=network.jit_compile, reduce_retracing=True
    )
    for (images, inputs, _, _, seeds), state in zip(steps, begun, strict=True):
        for name, seed in seeds.items():
            drawn[name].assign(seed)
        expected = update(images, inputs).numpy()  # (W, T, V)
        for place in range(inputs.shape[1]):
            logits, state = decoder.step(inputs[:, place], state)
            np.testing.assert_allclose(logits, expected[:, place], atol=1e-4)
        assert np.abs(network([images, inputs]) - expected).max() > 0.01  # nothing hidden


def test_samples_depend_on_the_seed_and_the_epoch_alone(tmp_path):
    def drawn(name, photos=8, **changes):
        captioner = prepare_for_scst(untrained(), {})
        train = dict(list(CAPTIONS.items())[:photos])
        steps = updates(captioner, tmp_path / name, min(4, photos), train, **changes)
        return [(images.tolist(), targets.tolist()) for images, _, targets, _, _ in steps]

    first = drawn("a.h5", seed=4, epochs=2)  # of two batches
    np.random.seed(1)
    tf.random.set_seed(1)
    assert drawn("b.h5", seed=4, epochs=2) == first
    orders = [[images for images, _ in steps] for steps in (first[:2], first[2:])]
    orders.append([images for images, _ in drawn("c.h5", seed=5)])
    assert orders[0] != orders[1]
    assert orders[0] != orders[2]
    # Of one photo, which leaves no choice of an order:
    samples = drawn("d.h5", photos=1, seed=4, epochs=2) + drawn("e.h5", photos=1, seed=5)
    assert all(images == samples[0][0] for images, _ in samples)
    assert len({str(targets) for _, targets in samples}) == 3


@pytest.mark.long
def test_fine_tuning_raises_cider_and_keeps_the_best_epoch(tmp_path, capsys):
    def tune(captioner, name, **changes):
        given = options(tmp_path / name, **changes)
        return finetune.finetune(captioner, features, CAPTIONS, CAPTIONS, 4, given)

    features, rows = random_features(10), list(CAPTIONS)
    start = untrained(dataclasses.replace(CONFIG, dropout=0.0))  # that may learn words, too
    record = tune(start, "m.h5", epochs=40, learning_rate=2e-2, patience=40)
    first, last = record.rows[0], record.rows[-1]
    assert last["train_cider"] > 3 * first["train_cider"]
    assert record.best()["dev_cider"] == max(row["dev_cider"] for row in record.rows)
    kept = Captioner.load(tmp_path / "m.h5")
    captions = kept.caption_features(features[rows])
    scorer = CiderD([[line.split() for line in lines] for lines in CAPTIONS.values()])
    scores = [scorer.score(i, caption.split()) for i, caption in enumerate(captions)]
    assert np.mean(scores) == pytest.approx(record.best()["dev_cider"])
    assert kept.config.training["kept"]["epoch"] == record.best()["epoch"]
    assert SPECIAL_TOKENS[UNKNOWN] not in " ".join(captions)
    assert "no epoch improved" not in capsys.readouterr().err

    record = tune(kept, "n.h5", epochs=1, learning_rate=10.0)  # too large a step
    err = capsys.readouterr().err
    assert f"before fine-tuning: dev cider {np.mean(scores):.4f}" in err
    assert record.best()["dev_cider"] < np.mean(scores) / 2
    assert "no epoch improved on the start" in err


def test_without_dev_photos_the_last_epoch_is_kept(tmp_path, capsys):
    captioner = prepare_for_scst(untrained(), {})
    given = options(tmp_path / "m.h5", epochs=2, patience=1)
    record = finetune.finetune(captioner, random_features(10), CAPTIONS, {}, 8, given)
    assert record.best() is record.rows[1]
    assert [row["dev_cider"] for row in record.rows] == [None, None]
    assert np.isnan(finetune.greedy_cider(captioner, random_features(10), {})())
    assert "before fine-tuning" not in capsys.readouterr().err


# -- the script ------------------------------------------------------------------------------------


def test_the_former_option_of_train_names_the_script():
    done = run_here("train.py", "--finetune_cider", "models/x.h5", code=2)
    assert "python finetune.py models/x.h5" in done.stderr


@pytest.mark.long
def test_the_script_takes_the_options_of_train(small, tmp_path):
    data = ("--data_dir", small / "data")
    start, path = tmp_path / "start.h5", tmp_path / "m.h5"
    sizes = ("--units", 16, "--embedding_size", 16)
    given = {"epochs": 2, "batch_size": 16, "learning_rate": 1e-3, "weight_decay": 0.01, "seed": 3}
    common = [part for name, value in given.items() for part in (f"--{name}", value)]
    run_here("train.py", *data, *common, *sizes, "--patience", 2, "--model_path", start)
    command = ("finetune.py", start, *data, *common, "--patience", 2, "--model_path", path)
    done = run_here(*command)
    assert "before fine-tuning: dev cider " in done.stderr
    assert done.stdout.count("  dev cider ") == 2
    trained, tuned = (Captioner.load(each).config.training for each in (start, path))
    for record in (trained, tuned):
        assert {name: record[name] for name in given} == given
        assert record["patience"] == 2
    assert trained["data"] == tuned["data"]
    assert tuned["start"] == trained
    resumed = run_here(*command, "--resume")
    assert "epochs finished: 2; nothing is left to do." in resumed.stderr
    kept_last = run_here(*command, "--keep", "last")
    assert "starting anew; --resume would continue" in kept_last.stderr
    assert Captioner.load(path).config.training["patience"] is None
