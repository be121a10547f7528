"""A trained captioner as the start on other data: what it knows stays, what is new comes behind."""

import dataclasses
import shlex
import shutil
import subprocess
import sys

import joblib
import keras
import numpy as np
import pytest
from conftest import ROOT, run_here
from test_ensemble import members_of
from test_model import CONFIG, EACH, WORDS, random_batches, random_features

from captioning.captions import PADDING, SPECIAL_TOKENS, Vocabulary
from captioning.encoders import LITE0_WEIGHTS
from captioning.networks import build_captioner
from captioning.pickles import save_pickle
from captioning.transfer import extend, take_over
from data.sample import COLOURS, SHAPES, write_sample
from ensemble import ensemble
from generate_caption import INCLUDED
from model import Captioner

NEW = ["new", "newer"]


def extended(start: Captioner, words: list[str], log_frequencies=None) -> Captioner:
    """What train.py --init_from makes of `start`, untrained."""
    keras.utils.set_random_seed(9)
    vocabulary = extend(start.vocabulary, words)
    config = dataclasses.replace(start.config, vocabulary_size=len(vocabulary), members=1)
    network = build_captioner(config, log_frequencies)
    take_over(network, start.network, random_batches(config=config))
    return Captioner(network, vocabulary, config)


def test_new_words_come_behind_the_old_ones():
    known = Vocabulary([*SPECIAL_TOKENS, "a", "dog"])
    more = extend(known, [*SPECIAL_TOKENS, "cat", "a", "ball"])
    assert more.words == [*SPECIAL_TOKENS, "a", "dog", "cat", "ball"]
    assert extend(known, [*SPECIAL_TOKENS, "dog"]).words == known.words


@EACH
def test_without_new_words_and_training_it_says_the_same(config):
    start, other = members_of(config, 2)
    features = random_features(20, config, seed=5)
    for before in (start, ensemble([start, other])):  # of which the first member is taken
        after = extended(before, WORDS)
        for array, wanted in zip(
            after.network.get_weights(), start.network.get_weights(), strict=True
        ):
            np.testing.assert_array_equal(array, wanted)
        assert after.decode(features, 3) == start.decode(features, 3)


@EACH
def test_old_words_keep_their_places_and_their_weights(config):
    (start,) = members_of(config, 1)
    after = extended(start, [*SPECIAL_TOKENS, NEW[0], WORDS[-1], NEW[1]])
    assert after.vocabulary.words == [*WORDS, *NEW]
    for layer in start.network.layers:
        arrays = after.network.get_layer(layer.name).get_weights()
        for array, wanted in zip(arrays, layer.get_weights(), strict=True):
            np.testing.assert_array_equal(array[tuple(map(slice, wanted.shape))], wanted)
            assert (array.shape == wanted.shape) == (layer.name not in ("embedding", "logits"))
    (embedding,) = after.network.get_layer("embedding").get_weights()
    kernel, _ = after.network.get_layer("logits").get_weights()
    for fresh in (embedding[-2:], kernel[:, -2:]):
        assert fresh.std() > 0.01
    tokens = np.random.default_rng(0).integers(4, len(WORDS), (6, 5)).astype(np.int32)
    logits = [c.network([random_features(6, config), tokens]).numpy() for c in (start, after)]
    np.testing.assert_allclose(logits[1][..., :-2], logits[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("level", [-6, 0, 6])
def test_new_words_are_as_probable_as_they_are_common(level):
    """Wherever training has left the logits, of which the softmax sees only the differences."""
    (start,) = members_of(CONFIG, 1)
    kernel, bias = start.network.get_layer("logits").get_weights()
    start.network.get_layer("logits").set_weights([kernel, bias + level])
    share = 1e-4
    after = extended(start, NEW, np.full(len(WORDS) + len(NEW), np.log(share)))
    kernel, bias = after.network.get_layer("logits").get_weights()
    kernel[:, -2:] = 0  # drawn at random, they are more and less probable than that
    after.network.get_layer("logits").set_weights([kernel, bias])
    batches = random_batches(seed=None)
    features, tokens = batches.features[batches.rows], batches.ids[:, :-1]
    probabilities = keras.ops.softmax(after.network([features, tokens])).numpy()  # (B, T, V)
    means = probabilities[batches.ids[:, 1:] != PADDING].mean(axis=0)
    np.testing.assert_allclose(means[-2:], share, rtol=0.01)


@pytest.mark.long
def test_through_the_script(small, tmp_path):
    """Steps too small to count change nothing; the words of other data are counted."""
    sizes = ("--units", 24, "--merge_units", 16, "--embedding_size", 8, "--dropout", 0.25)
    start, path = tmp_path / "start.h5", tmp_path / "m.h5"
    data = ("--data_dir", small / "data", "--epochs", 1)
    run_here("train.py", *data, *sizes, "--model_path", start)
    options = ("--init_from", start, "--model_path", path)
    done = run_here("train.py", *data, *options, "--learning_rate", 1e-30)
    before, after = Captioner.load(start), Captioner.load(path)
    assert f"start.h5: {len(before.vocabulary)} words known, 0 new" in done.stderr
    ours = dataclasses.replace(after.config, training={})
    assert ours == dataclasses.replace(before.config, training={})
    assert after.config.training["start"] == before.config.training
    features = joblib.load(small / "data" / "features.pkl")["features"]
    assert after.caption_features(features) == before.caption_features(features)

    shutil.copytree(small / "data", tmp_path / "data")
    text = joblib.load(small / "data" / "captions.pkl")
    dropped = text["vocabulary"].pop()
    longest = text["max_length"] + 2
    text |= {"vocabulary": [*text["vocabulary"], *NEW], "max_length": longest}
    save_pickle(text, tmp_path / "data" / "captions.pkl")
    data = ("--data_dir", tmp_path / "data", "--epochs", 1)
    done = run_here("train.py", *data, *options)
    after = Captioner.load(path)
    assert ", 2 new" in done.stderr
    assert after.vocabulary.words == [*before.vocabulary.words, *NEW]
    assert dropped in after.vocabulary.ids
    assert after.config.max_length == longest
    resumed = run_here("train.py", *data, *options, "--resume")
    assert "nothing is left to do" in resumed.stderr

    shutil.copy(start, tmp_path / "again.h5")
    run_here("ensemble.py", start, tmp_path / "again.h5", "--model_path", tmp_path / "two.h5")
    options = ("--init_from", tmp_path / "two.h5", "--model_path", path)
    done = run_here("train.py", *data, *options)
    assert "two.h5 is an ensemble: starting from the first of its 2." in done.stderr
    both = {"members": [before.config.training] * 2}
    assert Captioner.load(path).config.training["start"] == both


@pytest.mark.parametrize("option", ["--init_from", "--finetune_cider"])
def test_what_a_start_leaves_no_choice_of_is_refused(small, tmp_path, option):
    start = tmp_path / "start.h5"
    start.write_bytes(b"trained")
    other = "--init_from" if option == "--finetune_cider" else "--finetune_cider"
    for more in (other, start), ("--units", 8), ("--decoder", "merge"), ("--dropout", 0):
        assert f"{more[0]}: " in run_here("train.py", option, start, *more, code=2).stderr
    same = tmp_path / "." / "start.h5"
    done = run_here("train.py", option, start, "--model_path", same, code=1)
    assert "would be overwritten: name another file by --model_path" in done.stderr
    assert start.read_bytes() == b"trained"


def test_other_features_are_refused(small, tmp_path):
    config = dataclasses.replace(CONFIG, feature_size=12)
    network = build_captioner(config, random_batches().log_frequencies())
    Captioner(network, Vocabulary(WORDS), config).save(tmp_path / "other.h5")
    options = ("--init_from", tmp_path / "other.h5", "--model_path", tmp_path / "m.h5")
    done = run_here("train.py", "--data_dir", small / "data", *options, code=1)
    assert "the captioner takes pooled (12,). Run preprocess.py with" in done.stderr
    assert not (tmp_path / "m.h5").exists()


# -- the README's own words ------------------------------------------------------------------------


def commands() -> list[str]:
    """The lines between fences in the README's section, but for the picture of the folder."""
    section = (ROOT / "README.md").read_text().split("\n## Your own data\n")[1].split("\n## ")[0]
    fenced = section.split("\n```\n")[1::2]
    lines = [line for block in fenced for line in block.splitlines()]
    return [line for line in lines if line.startswith("python ")]


@pytest.mark.long
def test_your_own_data_as_the_readme_says(tmp_path):
    """Its commands, one after the other, on drawn photos and a CSV of two columns."""
    copy = tmp_path / "copy"
    (copy / "models").mkdir(parents=True)
    (copy / "captioning").mkdir()
    for path in (*ROOT.glob("*.py"), *ROOT.glob("captioning/*.py"), LITE0_WEIGHTS, INCLUDED):
        shutil.copy(path, copy / path.relative_to(ROOT))
    mine = copy / "data" / "mine"
    write_sample(mine, scenes=40, seed=4)
    (mine / "captions.txt").rename(mine / "captions.csv")
    for path in mine.glob("*.txt"):  # the split lists
        path.unlink()
    assert (mine / "captions.csv").read_text().startswith("image,caption\n")

    said = {}
    for command in commands():
        _, *arguments = shlex.split(command, comments=True)
        done = subprocess.run(
            [sys.executable, *arguments], cwd=copy, capture_output=True, text=True, timeout=900
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        said[command] = done
    scripts = [shlex.split(command)[1] for command in said]
    assert scripts[:2] == ["preprocess.py", "train.py"]
    started = next(done for command, done in said.items() if "--init_from" in command)
    known = len(Captioner.load(INCLUDED).vocabulary)
    assert f"{known:,} words known, " in started.stderr
    captions = [done.stdout for command, done in said.items() if "generate_caption" in command]
    assert len(captions) == 2  # from nothing, and from the included captioner
    words = {word for name in (*COLOURS, *SHAPES) for word in (name, f"{name}s")}
    for lines in captions:
        rows = [line.split("\t") for line in lines.splitlines()]
        assert len(rows) == 40
        assert sum(bool(words & set(caption.split())) for _, caption in rows) > 30
