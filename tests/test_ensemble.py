"""Several captioners in one file: the mean of their logits, however it is asked for."""

import dataclasses
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import run_here
from test_model import CONFIG, EACH, WORDS, random_features

from captioning.captions import Vocabulary
from captioning.files import InputError
from captioning.networks import build_captioner, first_state, next_word, standardize
from ensemble import check, ensemble
from model import Captioner

MEMBERS = 3


def members_of(config, count=MEMBERS) -> list[Captioner]:
    """Captioners of other seeds, and of training photos with other moments."""
    captioners = []
    for seed in range(count):
        keras.utils.set_random_seed(seed)
        network = build_captioner(config)
        standardize(network, random_features(20, config, seed), list(range(20)))
        own = dataclasses.replace(config, training={"seed": seed})
        captioners.append(Captioner(network, Vocabulary(WORDS), own))
    return captioners


@EACH
def test_logits_are_the_members_mean(config, tmp_path):
    """Whole captions, word by word, and from the file, with our loader and with Keras'."""
    captioners = members_of(config)
    whole = ensemble(captioners)
    features = random_features(6, whole.config)
    tokens = np.random.default_rng(0).integers(4, len(WORDS), (6, 5)).astype(np.int32)
    each = [c.network([features, tokens]) for c in captioners]  # (B, T, V)
    expected = np.mean(each, axis=0)
    assert np.abs(expected - each[0]).max() > 0.1  # they are not of one mind
    np.testing.assert_allclose(whole.network([features, tokens]), expected, atol=1e-4)

    state = first_state(whole.network, features, 1)
    for position in range(tokens.shape[1]):
        log_probs, state = next_word(whole.network, tokens[:, position], state)
        own = tf.nn.log_softmax(expected[:, position])
        np.testing.assert_allclose(log_probs, own, atol=1e-4)

    whole.save(tmp_path / "whole.h5")
    whole.save(tmp_path / "half.h5", half=True)
    sizes = [(tmp_path / name).stat().st_size for name in ("half.h5", "whole.h5")]
    saved = 2 * whole.config.count_parameters()
    assert sizes[1] - sizes[0] == pytest.approx(saved, rel=0.2)
    for name, tolerance in (("whole.h5", 1e-4), ("half.h5", 0.05)):
        loaded = Captioner.load(tmp_path / name)
        assert loaded.config == whole.config
        np.testing.assert_allclose(loaded.network([features, tokens]), expected, atol=tolerance)
        by_keras = keras.models.load_model(tmp_path / name, compile=False)
        np.testing.assert_allclose(by_keras([features, tokens]), expected, atol=tolerance)
    assert loaded.config.training == {"members": [{"seed": seed} for seed in range(MEMBERS)]}
    assert loaded.config.count_parameters() == loaded.network.count_params()
    captions = loaded.caption_features(features, beam_size=3)
    assert captions == whole.caption_features(features, beam_size=3)


def test_what_does_not_fit_together_is_named():
    first, other = members_of(CONFIG, 2)
    check("b.h5", other, first, "a.h5")
    with pytest.raises(InputError, match=r"b\.h5 is an ensemble itself"):
        check("b.h5", ensemble([first, other]), first, "a.h5")
    words = [*WORDS[:-1], "else"]
    with pytest.raises(InputError, match=r"b\.h5 differs from a\.h5 in vocabulary: "):
        check("b.h5", Captioner(other.network, Vocabulary(words), other.config), first, "a.h5")
    for name, value in (("units", 8), ("weights_hash", "other"), ("features", "layers")):
        config = dataclasses.replace(other.config, **{name: value})
        with pytest.raises(InputError, match=rf"b\.h5 differs from a\.h5 in {name}: "):
            check("b.h5", Captioner(other.network, other.vocabulary, config), first, "a.h5")


def test_the_script_writes_what_captions_photos_and_can_be_evaluated(demo, tmp_path):
    model, path = demo / "models" / "caption_model.h5", tmp_path / "twice.h5"
    again = tmp_path / "again.h5"
    shutil.copy(model, again)
    run_here("ensemble.py", model, again, "--model_path", path)
    for named in ((model,), (model, model)):
        refused = run_here("ensemble.py", *named, "--model_path", tmp_path / "x.h5", code=1)
        assert "two or more captioners, each of them once" in refused.stderr
    photo = next((demo / "dataset" / "Images").glob("*.jpg"))
    said = [
        run_here("generate_caption.py", "--image_path", photo, "--model_path", each).stdout
        for each in (model, path)
    ]
    assert said[0] == said[1] != ""  # twice the same is the same
    failed = run_here("ensemble.py", model, path, "--model_path", tmp_path / "x.h5", code=1)
    assert "is an ensemble itself" in failed.stderr
    assert not (tmp_path / "x.h5").exists()
    arguments = ("--finetune_cider", path, "--data_dir", demo / "data")
    failed = run_here("train.py", *arguments, "--model_path", tmp_path / "y.h5", code=1)
    assert "Fine-tune its members, then put those together" in failed.stderr
