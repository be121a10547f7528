"""Several captioners in one file: the mean of their logits, however it is asked for."""

import dataclasses
import shutil

import keras
import numpy as np
import pytest
from helpers import CONFIG, CONFIGS, WORDS, look_somewhere, random_features, run_here, untrained

from captioning.captions import Vocabulary
from captioning.files import InputError
from ensemble import check, ensemble
from model import Captioner, count_parameters


def test_logits_are_the_members_mean(tmp_path):
    """From the file too, with our loader and with Keras', and in half of its bytes."""
    seeds = [{"seed": seed} for seed in range(3)]
    captioners = [untrained(dataclasses.replace(CONFIG, training=s), **s) for s in seeds]
    whole = ensemble(captioners)
    features = random_features(6)
    tokens = np.random.default_rng(0).integers(4, len(WORDS), (6, 5)).astype(np.int32)
    each = [c.decoder.network([features, tokens]) for c in captioners]  # (B, T, V)
    expected = np.mean(each, axis=0)
    assert np.abs(expected - each[0]).max() > 0.1  # they are not of one mind
    state = whole.decoder.init_state(features)
    for position in range(tokens.shape[1]):
        logits, state = whole.decoder.step(tokens[:, position], state)
        np.testing.assert_allclose(logits, expected[:, position], atol=1e-4)

    sizes = []
    for half, tolerance in ((True, 0.05), (False, 1e-4)):
        path = tmp_path / "m.h5"
        whole.save(path, half)
        sizes.append(path.stat().st_size)
        loaded = Captioner.load(path)
        assert loaded.config == whole.config
        assert loaded.config.training == {"members": seeds}
        for network in loaded.decoder.network, keras.models.load_model(path, compile=False):
            np.testing.assert_allclose(network([features, tokens]), expected, atol=tolerance)
    saved = 2 * count_parameters(whole.config)
    assert sizes[1] - sizes[0] == pytest.approx(saved, rel=0.2)


def test_it_knows_the_training_photos_of_all_members_or_of_none():
    members = [untrained(seed=seed) for seed in range(2)]
    assert ensemble(members).photos is None
    members[0].photos = np.array([1, 2], np.uint64)
    assert ensemble(members).photos is None
    members[1].photos = np.array([2, 2**63], np.uint64)
    assert ensemble(members).photos.tolist() == [1, 2, 2**63]


def test_attention_is_the_members_mean():
    config = CONFIGS["updown"]
    members = [untrained(config, seed) for seed in (3, 4)]
    for member in members:
        look_somewhere(member)
    features, tokens = random_features(2, config), np.full(2, 5)

    def looked(decoder):
        _, state = decoder.step(tokens, decoder.init_state(features))
        return decoder.attention(state)  # (2, cells)

    each = [looked(member.decoder) for member in members]
    assert np.ptp(each, axis=0).max() > 0.01
    together = looked(ensemble(members).decoder)
    np.testing.assert_allclose(together, np.mean(each, axis=0), atol=1e-6)


def test_what_does_not_fit_together_is_named():
    first, other = untrained(seed=0), untrained(seed=1)
    check("b.h5", other, first, "a.h5")
    words = [*WORDS[:-1], "else"]
    with pytest.raises(InputError, match=r"b\.h5 differs from a\.h5 in vocabulary: "):
        check("b.h5", Captioner(other.decoder, Vocabulary(words), CONFIG), first, "a.h5")
    for name, value in (("units", 8), ("weights_hash", "other"), ("features", "layers")):
        config = dataclasses.replace(CONFIG, **{name: value})
        with pytest.raises(InputError, match=rf"b\.h5 differs from a\.h5 in {name}: "):
            check("b.h5", Captioner(other.decoder, other.vocabulary, config), first, "a.h5")


@pytest.mark.long
def test_the_script_writes_what_captions_photos(demo, tmp_path):
    model, path = demo / "models" / "caption_model.h5", tmp_path / "twice.h5"
    again, bad = tmp_path / "again.h5", tmp_path / "bad.h5"
    shutil.copy(model, again)
    run_here("ensemble.py", model, again, "--model_path", path)
    photo = next((demo / "dataset" / "Images").glob("*.jpg"))
    said = [
        run_here("generate_caption.py", "--image_path", photo, "--model_path", each).stdout
        for each in (model, path)
    ]
    assert said[0] == said[1] != ""  # twice the same is the same
    for command, message in (
        (("ensemble.py", model), "two or more captioners, each of them once"),
        (("ensemble.py", model, model), "two or more captioners, each of them once"),
        (("ensemble.py", model, path), "twice.h5 is an ensemble itself"),
        (("finetune.py", path, "--data_dir", demo / "data"), "Fine-tune its members, then put"),
    ):
        assert message in run_here(*command, "--model_path", bad, code=1).stderr
    assert not bad.exists()
