"""Several captioners in one file: the mean of their logits, however it is asked for."""

import dataclasses
import shutil

import keras
import numpy as np
import pytest
from helpers import CONFIG, EACH, WORDS, random_features, run_here, untrained

from captioning.captions import Vocabulary
from captioning.files import InputError
from ensemble import check, ensemble
from model import Captioner

MEMBERS = 3


@EACH
def test_logits_are_the_members_mean(config, tmp_path):
    """Whole captions, word by word, and from the file, with our loader and with Keras'."""
    seeds = [{"seed": seed} for seed in range(MEMBERS)]
    captioners = [untrained(dataclasses.replace(config, training=s), **s) for s in seeds]
    whole = ensemble(captioners)
    features = random_features(6, whole.config)
    tokens = np.random.default_rng(0).integers(4, len(WORDS), (6, 5)).astype(np.int32)
    each = [c.decoder.network([features, tokens]) for c in captioners]  # (B, T, V)
    expected = np.mean(each, axis=0)
    assert np.abs(expected - each[0]).max() > 0.1  # they are not of one mind
    np.testing.assert_allclose(whole.decoder.network([features, tokens]), expected, atol=1e-4)

    state = whole.decoder.init_state(features)
    for position in range(tokens.shape[1]):
        logits, state = whole.decoder.step(tokens[:, position], state)
        np.testing.assert_allclose(logits, expected[:, position], atol=1e-4)

    whole.save(tmp_path / "whole.h5")
    whole.save(tmp_path / "half.h5", half=True)
    sizes = [(tmp_path / name).stat().st_size for name in ("half.h5", "whole.h5")]
    saved = 2 * whole.config.count_parameters()
    assert sizes[1] - sizes[0] == pytest.approx(saved, rel=0.2)
    for name, tolerance in (("whole.h5", 1e-4), ("half.h5", 0.05)):
        loaded = Captioner.load(tmp_path / name)
        assert loaded.config == whole.config
        network = loaded.decoder.network
        np.testing.assert_allclose(network([features, tokens]), expected, atol=tolerance)
        by_keras = keras.models.load_model(tmp_path / name, compile=False)
        np.testing.assert_allclose(by_keras([features, tokens]), expected, atol=tolerance)
    assert loaded.config.training == {"members": seeds}
    captions = loaded.caption_features(features, beam_size=3)
    assert captions == whole.caption_features(features, beam_size=3)


def test_what_does_not_fit_together_is_named():
    first, other = untrained(seed=0), untrained(seed=1)
    check("b.h5", other, first, "a.h5")
    with pytest.raises(InputError, match=r"b\.h5 is an ensemble itself"):
        check("b.h5", ensemble([first, other]), first, "a.h5")
    words = [*WORDS[:-1], "else"]
    with pytest.raises(InputError, match=r"b\.h5 differs from a\.h5 in vocabulary: "):
        check("b.h5", Captioner(other.decoder, Vocabulary(words), CONFIG), first, "a.h5")
    for name, value in (("units", 8), ("weights_hash", "other"), ("features", "layers")):
        config = dataclasses.replace(CONFIG, **{name: value})
        with pytest.raises(InputError, match=rf"b\.h5 differs from a\.h5 in {name}: "):
            check("b.h5", Captioner(other.decoder, other.vocabulary, config), first, "a.h5")


def test_the_script_writes_what_captions_photos(demo, tmp_path):
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
    options = ("--data_dir", demo / "data", "--model_path", tmp_path / "y.h5")
    failed = run_here("finetune.py", path, *options, code=1)
    assert "Fine-tune its members, then put those together" in failed.stderr
