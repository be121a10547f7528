"""A trained captioner as the start on other data: what it knows stays, what is new comes behind."""

import dataclasses
import shlex
import shutil

import joblib
import keras
import numpy as np
import pytest
from helpers import (
    CONFIG,
    ROOT,
    WORDS,
    random_batches,
    random_features,
    run_here,
    run_script,
    untrained,
)

from captioning.captions import PADDING, UNKNOWN
from captioning.cli import INCLUDED_H5
from captioning.lite import LITES, weights_file
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


@pytest.mark.long
def test_without_new_words_and_training_it_says_the_same():
    start, other = untrained(), untrained(seed=1)
    features = random_features(20, seed=5)
    for before in (start, ensemble([start, other])):  # of which the first member is taken
        after = extended(before, WORDS)
        arrays = [captioner.decoder.network.get_weights() for captioner in (after, start)]
        for array, wanted in zip(*arrays, strict=True):
            np.testing.assert_array_equal(array, wanted)
        assert after.decode(features, 3) == start.decode(features, 3)


@pytest.mark.parametrize("level", [-6, 6])
def test_new_words_are_as_probable_as_they_are_common(level):
    """Wherever training has left the logits, of which the softmax sees only the differences."""
    start = untrained()
    kernel, bias = start.decoder.logits.get_weights()
    start.decoder.logits.set_weights([kernel, bias + level])
    share = 1e-4
    after = extended(start, NEW, np.full(len(WORDS) + len(NEW), np.log(share))).decoder
    kernel, bias = after.logits.get_weights()
    assert kernel[:, -2:].std() > 0.01
    assert after.embedding.get_weights()[0][-2:].std() > 0.01
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


def train_photos(small) -> list[str]:
    return joblib.load(small / "data" / "captions.pkl")["splits"]["train"]


@pytest.mark.long
def test_an_ensemble_s_first_member_is_the_start_on_other_data(small, tmp_path):
    features = joblib.load(small / "data" / "features.pkl", mmap_mode="r")
    sizes = {"feature_size": 1280, "weights_hash": features["weights_hash"]}
    before, path = untrained(dataclasses.replace(CONFIG, **sizes)), tmp_path / "m.h5"
    before.photos = np.array([7], np.uint64)
    ensemble([before, before]).save(tmp_path / "two.h5")
    command = ["train.py", "--data_dir", small / "data", "--init_from", tmp_path / "two.h5"]
    command += ["--epochs", 1, "--batch_size", 240, "--model_path", path]
    done = run_here(*command)
    words = joblib.load(small / "data" / "captions.pkl")["vocabulary"][4:]
    assert "two.h5 is an ensemble: starting from the first of its 2." in done.stderr
    assert f"40 words known, {len(words)} new" in done.stderr
    after = Captioner.load(path)
    assert after.vocabulary.words == [*WORDS, *words]
    assert after.config.training["start"] == {"members": [{}, {}]}
    assert 7 in after.photos and len(after.photos) == 1 + len(train_photos(small))
    assert "nothing is left to do" in run_here(*command, "--resume").stderr


@pytest.mark.parametrize(
    "command", [("train.py", "--init_from"), ("finetune.py",)], ids=["train", "finetune"]
)
def test_what_does_not_fit_the_start_is_refused(command, small, tmp_path):
    start, path = tmp_path / "start.h5", tmp_path / "m.h5"
    untrained().save(start)
    before = start.read_bytes()
    for more in ("--units", 8), ("--decoder", "merge"), ("--dropout", 0):
        assert more[0] in run_here(*command, start, *more, code=2).stderr.splitlines()[-1]
    same = tmp_path / "." / "start.h5"
    done = run_here(*command, start, "--model_path", same, "--overwrite", code=1)
    assert "would be overwritten: name another file by --model_path" in done.stderr
    options = ("--data_dir", small / "data", "--model_path", path)
    done = run_here(*command, start, *options, code=1)
    assert "the captioner takes pooled (12,). Run preprocess.py with" in done.stderr
    assert start.read_bytes() == before
    assert not path.exists()


@pytest.mark.long
def test_your_own_data_as_the_readme_says(tmp_path):
    """Its commands, one after the other, on drawn photos and a CSV of two columns."""
    mine = tmp_path / "data" / "mine"
    shutil.copytree(ROOT / "captioning", tmp_path / "captioning")
    (tmp_path / "models").mkdir()
    for path in (*ROOT.glob("*.py"), *map(weights_file, LITES), INCLUDED_H5):
        shutil.copy(path, tmp_path / path.relative_to(ROOT))
    write_sample(mine, scenes=40, seed=4)
    (mine / "captions.txt").rename(mine / "captions.csv")
    for path in mine.glob("*.txt"):  # the split lists
        path.unlink()

    fenced = ""
    for page, title in (("README.md", "Your own data"), ("docs/training.md", "Your own photos")):
        section = (ROOT / page).read_text().split(f"\n## {title}\n")[1].split("\n## ")[0]
        commands = "\n".join([*section.split("\n```\n")[1::2], ""])
        fenced += commands.replace("mine.h5", f"{page[:4]}.h5")
    photos = "python generate_caption.py --image_path data/mine/Images --model_path models/mine2.h5"
    fenced += f"{photos}\n"
    words = {word for name in (*COLOURS, *SHAPES) for word in (name, f"{name}s")}
    captioned, told = 0, ""
    for command in fenced.splitlines():
        if not command.startswith("python "):  # the picture of the folder
            continue
        _, *arguments = shlex.split(command, comments=True)
        if arguments[0] == "evaluate.py":  # takes Java and a minute
            continue
        done = run_script(*arguments, cwd=tmp_path)
        told += done.stderr
        if arguments[0] == "generate_caption.py":  # from nothing, and from the included captioner
            captions = [line.split("\t")[1] for line in done.stdout.splitlines()]
            assert len(captions) == 40
            assert sum(bool(words & set(caption.split())) for caption in captions) > 30
            captioned += 1
    assert captioned == 2
    assert f"{len(Captioner.load(INCLUDED_H5).vocabulary) - 4:,} words known, " in told
