"""Fine-tuning on CIDEr: the score, the samples, their weights, and that it learns."""

import dataclasses
import itertools
from unittest import mock

import numpy as np
import pytest
from helpers import CONFIG, options, random_features, run_here, untrained

import finetune
from captioning.captions import END, PADDING, START
from captioning.cider import CiderD
from finetune import MAX_WORDS, SAMPLES, WIDTH_STEP, prepare_for_scst
from model import Captioner


def test_cider_d_is_that_of_the_standard_scorer():
    from pycocoevalcap.cider.cider import Cider

    random, words = np.random.default_rng(0), [f"w{i}" for i in range(12)]
    references, candidates = [], []
    for _ in range(30):  # of a few words each, so that images share n-grams; some repeat words
        lines = [" ".join(random.choice(words, random.integers(1, 12))) for _ in range(5)]
        references.append(lines[:4])
        candidates.append(lines[4])
    candidates[:3] = references[0][0], "w1 w1 w1 w1 w1 w1", "unheard of words"
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
    captioner, path, batch_size=3, dev=CAPTIONS, update=False, look=lambda: None, **changes
) -> list:
    """What each update of a fine-tuning gets, and what `look` then sees: it is not applied."""
    seen, apply = [], captioner.decoder.network.train_on_batch

    def train_on_batch(inputs, targets, weights):
        seen.append((*inputs, targets, weights, look()))
        return apply(inputs, targets, weights) if update else 0.0

    features, given = random_features(10, captioner.config), options(path, **changes)
    with mock.patch.object(captioner.decoder.network, "train_on_batch", train_on_batch):
        finetune.finetune(captioner, features, CAPTIONS, dev, batch_size, given)
    return seen


def test_one_dev_photo_has_a_score():
    corpus = [[["a", "dog", "runs"]], [["a", "cat", "sits"]], [["a", "man", "sits", "down"]]]
    alone, weighed = CiderD(corpus[:1]), CiderD(corpus[:1], corpus)
    assert alone.score(0, ["a", "dog", "runs"]) == 0
    assert weighed.score(0, ["a", "dog", "runs"]) > weighed.score(0, ["a", "dog", "sits"]) > 0


@pytest.mark.long
def test_only_what_samples_can_teach_is_trained(tmp_path):
    captioner = prepare_for_scst(untrained(), {})
    decoder = captioner.decoder
    before = decoder.network.get_weights()
    updates(captioner, tmp_path / "m.h5", batch_size=8, update=True)
    pairs = zip(decoder.network.weights, before, strict=True)
    kept = {id(weights) for weights, old in pairs if np.array_equal(weights.numpy(), old)}
    standardizers = [made.standardizer for made in decoder.feature_inputs.values()]
    layers = [decoder.embedding, decoder.logits, *standardizers]
    assert kept == {id(weights) for layer in layers for weights in layer.weights}


def test_samples_weigh_as_much_as_they_are_better_than_the_others(tmp_path):
    captioner, features = prepare_for_scst(untrained(), {}), random_features(10)
    scorer = CiderD([[[*line.split(), "<end>"] for line in lines] for lines in CAPTIONS.values()])
    seen, worth = [], 0
    for images, inputs, targets, weights, _ in updates(captioner, tmp_path / "m.h5"):
        assert len(images) == len(inputs) == 3 * SAMPLES
        assert targets.shape[1] % WIDTH_STEP == 0 < targets.shape[1] <= MAX_WORDS
        np.testing.assert_array_equal(inputs[:, 1:], targets[:, :-1])
        assert (inputs[:, 0] == START).all()
        assert not weights[targets == PADDING].any()
        for first in range(0, 3 * SAMPLES, SAMPLES):
            own = slice(first, first + SAMPLES)
            (row,) = np.flatnonzero((features == images[first]).all(axis=1))
            assert (images[own] == images[first]).all()
            seen.append(int(row))
            rewards = []
            for line in targets[own]:
                end = ["<end>"] * (END in line)
                said = [*captioner.vocabulary.decode(line).split(), *end]
                rewards.append(scorer.score(list(CAPTIONS).index(row), said))
            for i, (reward, line) in enumerate(zip(rewards, targets[own], strict=True)):
                others = np.mean(rewards[:i] + rewards[i + 1 :])
                expected = (reward - others) / (3 * SAMPLES)
                np.testing.assert_allclose(weights[own][i][line != PADDING], expected, atol=1e-6)
                worth += abs(expected) > 0.01
    assert worth > 5
    assert set(seen) == set(seen[:8]) == set(CAPTIONS)  # each once, and one more in the last batch
    assert len(seen) == 9


def test_an_update_misses_what_its_samples_missed(tmp_path, monkeypatch):
    """Both begin with the same random state, another one each time; see test_decoders.py."""
    captioner = prepare_for_scst(untrained(), {})
    begun, make_sampler = [], finetune.sampler

    def state():
        dropouts = captioner.decoder.dropouts.values()
        return [layer.seed_generator.state.numpy().tolist() for layer in dropouts]

    def sampler(*arguments):
        sample = make_sampler(*arguments)
        return lambda *batch: begun.append(state()) or sample(*batch)

    monkeypatch.setattr(finetune, "sampler", sampler)
    steps = updates(captioner, tmp_path / "m.h5", look=state)
    assert [seen for *_, seen in steps] == begun
    assert len(begun) == len(set(map(str, begun))) == 3


@pytest.mark.long
def test_samples_depend_on_the_seed_and_the_epoch_alone(tmp_path):
    def drawn(name, **changes):
        """Of each epoch, the photos in its order, and the first words of their samples."""
        captioner = prepare_for_scst(untrained(), {})
        captioner.decoder.seed_dropouts(ord(name[0]))  # whatever has been before
        steps = updates(captioner, tmp_path / name, 8, **changes)
        return [(str(images), targets[:, :4].tolist()) for images, _, targets, *_ in steps]

    first = drawn("a.h5", seed=4, epochs=2)
    assert drawn("b.h5", seed=4, epochs=2) == first
    orders, samples = zip(*first, *drawn("c.h5", seed=5), strict=True)
    assert len(set(orders)) == 3
    for one, other in itertools.combinations(samples, 2):
        assert np.mean(np.equal(one, other)) < 0.1  # as often as chance has it


@pytest.mark.long
def test_fine_tuning_raises_cider_and_keeps_the_best_epoch(tmp_path, capsys):
    def tune(captioner, name, **changes):
        given = options(tmp_path / name, **changes)
        return finetune.finetune(captioner, features, CAPTIONS, CAPTIONS, 4, given)

    features, rows = random_features(10), list(CAPTIONS)
    start = untrained(dataclasses.replace(CONFIG, dropout=0.0))  # that may learn words, too
    record = tune(start, "m.h5", epochs=40, learning_rate=2e-2, patience=40)
    assert record.rows[-1]["train_cider"] > 3 * record.rows[0]["train_cider"]
    kept = Captioner.load(tmp_path / "m.h5")
    captions = kept.caption_features(features[rows])
    scorer = CiderD([[line.split() for line in lines] for lines in CAPTIONS.values()])
    scores = [scorer.score(i, caption.split()) for i, caption in enumerate(captions)]
    assert np.mean(scores) == pytest.approx(record.best()["dev_cider"])
    assert "no epoch improved" not in capsys.readouterr().err

    record = tune(kept, "n.h5", epochs=1, learning_rate=10.0)  # too large a step
    err = capsys.readouterr().err
    assert f"before fine-tuning: dev cider {np.mean(scores):.4f}" in err
    assert record.best()["dev_cider"] < np.mean(scores) / 2
    assert "no epoch improved on the start" in err


def test_without_dev_photos_the_last_epoch_is_kept(tmp_path, capsys):
    captioner = prepare_for_scst(untrained(), {})
    updates(captioner, tmp_path / "m.h5", batch_size=8, dev={}, epochs=2, patience=1)
    kept = Captioner.load(tmp_path / "m.h5").config.training["kept"]
    assert (kept["epoch"], kept["dev_cider"]) == (2, None)
    assert "before fine-tuning" not in capsys.readouterr().err


@pytest.mark.long
def test_the_script_takes_the_options_of_train(small, tmp_path):
    start, path = tmp_path / "start.h5", tmp_path / "m.h5"
    given = {"epochs": 2, "batch_size": 240, "weight_decay": 0.01, "seed": 3, "patience": 2}
    common = [part for name, value in given.items() for part in (f"--{name}", value)]
    common += ["--learning_rate", 1e-3, "--data_dir", small / "data"]
    sizes = ("--units", 16, "--embedding_size", 16)
    run_here("train.py", *common, *sizes, "--model_path", start)
    command = ("finetune.py", start, *common, "--model_path", path)
    done = run_here(*command)
    assert "before fine-tuning: dev cider " in done.stderr
    assert done.stdout.count("  dev cider ") == 2
    before, after = map(Captioner.load, (start, path))
    assert len(before.photos) == 48  # of 60 scenes
    np.testing.assert_array_equal(after.photos, before.photos)
    trained, tuned = before.config.training, after.config.training
    assert trained.items() >= given.items()
    assert tuned.items() >= given.items()
    assert trained["data"] == tuned["data"]
    assert tuned["start"] == trained
    resumed = run_here(*command, "--resume")
    assert "epochs finished: 2; nothing is left to do." in resumed.stderr
