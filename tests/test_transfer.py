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
from helpers import CONFIG, EACH, ROOT, WORDS, random_batches, random_features, run_here, untrained

from captioning.captions import PADDING, UNKNOWN
from captioning.cli import INCLUDED
from captioning.encoders import LITE0_WEIGHTS
from captioning.files import save_pickle
from data.sample import COLOURS, SHAPES, write_sample
from ensemble import ensemble
from model import Captioner, build_decoder
from train import extend, logit_offset, start_from

NEW = ["new", "newer"]


def extended(start: Captioner, words: list[str], log_frequencies=None) -> Captioner:
    """What train.py --init_from makes of `start`, untrained."""
    keras.utils.set_random_seed(9)
    vocabulary, config = extend(start, {"vocabulary": words, "max_length": 5}, {"why": "a test"})
    decoder = build_decoder(config, log_frequencies)
    start_from(decoder, start.decoder.members[0], random_batches(config=config))
    return Captioner(decoder, vocabulary, config)


def test_new_words_come_after_the_old_ones():
    start = untrained()
    vocabulary, config = extend(start, {"vocabulary": ["new", WORDS[4]], "max_length": 5}, {})
    assert vocabulary.words == [*WORDS, "new"]
    assert (config.vocabulary_size, config.max_length) == (len(WORDS) + 1, CONFIG.max_length)
    _, config = extend(start, {"vocabulary": WORDS[4:], "max_length": 11}, {"epochs": 3})
    assert (config.vocabulary_size, config.max_length) == (len(WORDS), 11)
    assert config.training == {"epochs": 3, "start": start.config.training}


@EACH
def test_without_new_words_and_training_it_says_the_same(config):
    start, other = untrained(config), untrained(config, seed=1)
    features = random_features(20, config, seed=5)
    for before in (start, ensemble([start, other])):  # of which the first member is taken
        after = extended(before, WORDS)
        arrays = [captioner.decoder.network.get_weights() for captioner in (after, start)]
        for array, wanted in zip(*arrays, strict=True):
            np.testing.assert_array_equal(array, wanted)
        assert after.decode(features, 3) == start.decode(features, 3)


@EACH
def test_the_weights_of_new_words_are_random(config):
    """Those of known words are their own: see test_decoders.py."""
    decoder = extended(untrained(config), [WORDS[-1], *NEW]).decoder
    for fresh in decoder.embedding.get_weights()[0][-2:], decoder.logits.get_weights()[0][:, -2:]:
        assert fresh.std() > 0.01


@pytest.mark.parametrize("level", [-6, 0, 6])
def test_new_words_are_as_probable_as_they_are_common(level):
    """Wherever training has left the logits, of which the softmax sees only the differences."""
    start = untrained()
    kernel, bias = start.decoder.logits.get_weights()
    start.decoder.logits.set_weights([kernel, bias + level])
    share = 1e-4
    after = extended(start, NEW, np.full(len(WORDS) + len(NEW), np.log(share))).decoder
    kernel, bias = after.logits.get_weights()
    kernel[:, -2:] = 0  # drawn at random, they are more and less probable than that
    after.logits.set_weights([kernel, bias])
    batches = random_batches(seed=None)
    features, tokens = batches.features[batches.rows], batches.ids[:, :-1]
    probabilities = keras.ops.softmax(after.network([features, tokens])).numpy()  # (B, T, V)
    means = probabilities[batches.ids[:, 1:] != PADDING].mean(axis=0)
    np.testing.assert_allclose(means[-2:], share, rtol=0.01)


def test_the_old_network_reads_new_words_as_unknown():
    """Where the offset is measured, on the new captions."""
    decoder = untrained().decoder
    offsets = []
    for replaced in (UNKNOWN, len(WORDS), len(WORDS) + 1):
        batches = random_batches(seed=None)
        batches.ids[batches.ids == 4] = replaced
        offsets.append(logit_offset(decoder, batches))
    assert offsets[0] == offsets[1] == offsets[2]


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
    assert f"{len(before.vocabulary) - 4:,} words known, 0 new" in done.stderr
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


START = pytest.mark.parametrize(
    "command", [("train.py", "--init_from"), ("finetune.py",)], ids=["train", "finetune"]
)


@START
def test_what_a_start_leaves_no_choice_of_is_refused(command, tmp_path):
    start = tmp_path / "start.h5"
    start.write_bytes(b"trained")
    for more in ("--units", 8), ("--decoder", "merge"), ("--dropout", 0):
        assert more[0] in run_here(*command, start, *more, code=2).stderr.splitlines()[-1]
    same = tmp_path / "." / "start.h5"
    done = run_here(*command, start, "--model_path", same, code=1)
    assert "would be overwritten: name another file by --model_path" in done.stderr
    assert start.read_bytes() == b"trained"


@START
def test_other_features_are_refused(command, small, tmp_path):
    untrained().save(tmp_path / "other.h5")
    options = ("--data_dir", small / "data", "--model_path", tmp_path / "m.h5")
    done = run_here(*command, tmp_path / "other.h5", *options, code=1)
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
    assert f"{known - 4:,} words known, " in started.stderr
    captions = [done.stdout for command, done in said.items() if "generate_caption" in command]
    assert len(captions) == 2  # from nothing, and from the included captioner
    words = {word for name in (*COLOURS, *SHAPES) for word in (name, f"{name}s")}
    for lines in captions:
        rows = [line.split("\t") for line in lines.splitlines()]
        assert len(rows) == 40
        assert sum(bool(words & set(caption.split())) for _, caption in rows) > 30
