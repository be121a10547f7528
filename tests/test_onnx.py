"""A captioner as an .onnx: it finds what the .h5 finds, without TensorFlow, or is not written."""

import dataclasses
import os
import shutil
import sys

import numpy as np
import pytest
from helpers import (
    CONFIGS,
    EXAMPLES,
    ROOT,
    look_somewhere,
    photographing,
    random_features,
    run_here,
    run_script,
    tiny_photos,
    untrained,
)

import export
from captioning.cli import INCLUDED, INCLUDED_H5
from captioning.confidence import Calibration
from captioning.encoders import Encoder
from captioning.files import InputError
from captioning.neighbours import Neighbours
from captioning.onnx_captioner import OnnxCaptioner
from captioning.onnx_export import convert, serialize
from ensemble import ensemble
from model import Captioner


def exported(captioner, half: bool = False) -> OnnxCaptioner:
    return OnnxCaptioner.parse(serialize(convert(captioner), captioner, half))


def check_same(captioner, other, beam_size: int, count: int = 7, penalty: float = 0.8) -> None:
    """What they find of random photos is equal, but for the rounding of floats."""
    photos = tiny_photos(count)
    expected, features = captioner.search(photos, beam_size, penalty)
    found, other_features = other.search(photos, beam_size, penalty)
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    for name in ("scores", "log_probs", "attention"):
        pair = getattr(found, name), getattr(expected, name)
        assert (pair[0] is None) == (pair[1] is None)
        if pair[0] is not None:
            np.testing.assert_allclose(*pair, atol=2e-4)
    mean = features.mean(1, dtype=np.float32) if features.ndim == 3 else features
    np.testing.assert_allclose(other_features, mean, atol=1e-3)
    texts = [
        [[caption.text for caption in beam] for beam in c.decode_photos(photos, beam_size, penalty)]
        for c in (captioner, other)
    ]
    assert texts[0] == texts[1]


@pytest.fixture(scope="module")
def attentive() -> Captioner:
    """An Up-Down captioner whose words look somewhere, with neighbours and a calibration."""
    captioner = photographing(untrained(CONFIGS["updown"], seed=3))
    look_somewhere(captioner)
    lines = {row: [[4 + row, 5, 6], [7, 4 + row]] for row in range(9)}
    captioner.neighbours = Neighbours.of(random_features(9, captioner.config), lines)
    captioner.calibration = Calibration(0.1, 0.2, 0.3)
    return captioner


@pytest.fixture(scope="module")
def attentive_onnx(attentive) -> OnnxCaptioner:
    return exported(attentive)


def test_it_finds_what_the_h5_finds(attentive, attentive_onnx):
    for beam_size, count, penalty in ((1, 1, 0.8), (1, 7, 0.8), (3, 1, 0.0), (10, 7, 1.2)):
        check_same(attentive, attentive_onnx, beam_size, count, penalty)
    assert attentive_onnx.config == attentive.config
    assert attentive_onnx.vocabulary.words == attentive.vocabulary.words
    assert attentive_onnx.beam_size == attentive.beam_size == 10


def test_it_ranks_and_is_sure_as_the_h5(attentive, attentive_onnx):
    photos = tiny_photos(5)
    for beam, expected in zip(
        attentive_onnx.decode_photos(photos), attentive.decode_photos(photos), strict=True
    ):
        assert [caption.text for caption in beam] == [caption.text for caption in expected]
        for name in ("log_probability", "expected_cider", "confidence"):
            values = [[getattr(caption, name) for caption in each] for each in (beam, expected)]
            np.testing.assert_allclose(*values, atol=1e-2)
    for photo in photos:
        (captions, words, *grounds), (others, other_words, *others_grounds) = (
            each.explain(photo) for each in (attentive_onnx, attentive)
        )
        assert (captions[0].text, words) == (others[0].text, other_words)
        for pair in zip(grounds, others_grounds, strict=True):
            np.testing.assert_allclose(*pair, atol=1e-3)
    plain = dataclasses.replace(attentive_onnx)
    plain.forget_neighbours()
    assert plain.beam_size == 1
    assert plain.decode_photos(photos)[0][0].expected_cider is None


@pytest.mark.long
@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("half", [False, True])
def test_every_decoder_can_be_exported(name, half):
    captioner = photographing(untrained(CONFIGS[name], seed=1))
    other = exported(captioner, half)
    for beam_size in (1, 4):
        if half:  # weights are others
            photos = tiny_photos(30)
            pair = [c.search(photos, beam_size, 0.8)[0].scores for c in (captioner, other)]
            np.testing.assert_allclose(*pair, atol=0.1)
        else:
            check_same(captioner, other, beam_size)


@pytest.mark.long
def test_an_ensemble_can_be_exported():
    members = [untrained(CONFIGS["updown"], seed=seed) for seed in (1, 2)]
    captioner = photographing(ensemble(members))
    check_same(captioner, exported(captioner), 4)


# -- export.py -------------------------------------------------------------------------------------


@pytest.mark.long
def test_the_script_exports_what_train_py_wrote(demo, tmp_path):
    model, photos = demo / "models" / "caption_model.h5", demo / "dataset" / "Images"
    path = tmp_path / "m.onnx"
    told = run_here("export.py", "--model_path", model, "--output", path).stderr
    assert "float16: 20 of 20 captions are the .h5's" in told
    said = [
        run_here("generate_caption.py", "--image_path", photos, "--model_path", each).stdout
        for each in (model, path)
    ]
    lines = [[line.split("\t")[1] for line in text.splitlines()] for text in said]
    assert len({*lines[0]}) > 20
    same = sum(map(str.__eq__, *lines))
    assert same >= 0.99 * len(lines[0])
    assert path.stat().st_size < 0.6 * (
        model.stat().st_size + (ROOT / "models" / "efficientnet_lite0.h5").stat().st_size
    )
    again = run_here("export.py", "--model_path", model, "--output", path, code=1)
    assert "m.onnx is there already. Give --overwrite" in again.stderr


@pytest.mark.long
def test_float32_is_kept_where_float16_says_something_else(attentive, monkeypatch, capsys):
    """And if that does as well, there is no content."""
    monkeypatch.setattr(export, "load_image", lambda path, size: tiny_photos(1)[0])
    model, parse = convert(attentive), OnnxCaptioner.parse
    asked: list[bytes] = []

    def spoilt(bad: int, fault):
        """As `parse`, but the first so many captioners have a fault."""

        def read(content):
            asked.append(content)
            captioner = parse(content)
            if len(asked) <= bad:
                fault(captioner)
            return captioner

        return read

    def other_words(captioner):
        captioner.vocabulary.words[4:] = reversed(captioner.vocabulary.words[4:])

    def other_scores(captioner):
        search = captioner.search
        captioner.search = lambda *a: (
            search(*a)[0]._replace(scores=search(*a)[0].scores - 1),
            None,
        )
        captioner.neighbours = captioner.calibration = None

    for fault in (other_words, other_scores):
        asked.clear()
        monkeypatch.setattr(OnnxCaptioner, "parse", spoilt(1, fault))
        assert export.choose_precision(model, attentive, "-") == asked[1]
        assert len(asked[0]) < len(asked[1])
        assert "float16: 0 of " in capsys.readouterr().err
    asked.clear()
    monkeypatch.setattr(OnnxCaptioner, "parse", spoilt(2, other_words))
    with pytest.raises(InputError, match="no file is written"):
        export.choose_precision(model, attentive, "-")


@pytest.mark.long
@pytest.mark.parametrize("name", ["resnet50v2", "efficientnetb0", "convnexttiny"])
def test_cnns_can_be_exported_but_convnext(name):
    encoder = Encoder(name, "random", "layers")
    sizes = {"feature_size": encoder.features_shape[-1], "photo_size": encoder.photo_size}
    captioner = untrained(dataclasses.replace(CONFIGS["merge"], features="layers", **sizes))
    captioner.encoder = encoder
    if name == "convnexttiny":
        with pytest.raises(InputError, match=r"ONNX has no counterpart of .* another --encoder"):
            convert(captioner)
        return
    shape = (2, encoder.photo_size, encoder.photo_size, 3)
    photos = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    pair = [each.search(photos, 2, 0.8)[1] for each in (captioner, exported(captioner))]
    np.testing.assert_allclose(*pair, atol=2e-3 * np.std(pair[0]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--model_path", INCLUDED), "is an .onnx already: name the .h5"),
        (("--model_path", INCLUDED_H5, "--output", "x.h5"), "x.h5: its name must end in .onnx"),
        (("--model_path", INCLUDED_H5), "is there already. Give --overwrite, or name another"),
        (("--model_path", "none.h5", "--output", "x.onnx"), "none.h5: no such model"),
    ],
)
def test_what_cannot_be_exported_is_told_in_a_line(arguments, message):
    (told,) = run_here("export.py", *arguments, code=1).stderr.splitlines()
    assert message in told
    assert not (ROOT / "x.onnx").exists()


def test_a_missing_converter_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "tf2onnx", None)
    command = ("export.py", "--model_path", INCLUDED_H5, "--output", tmp_path / "x.onnx")
    (told,) = run_here(*command, code=1).stderr.splitlines()
    assert told.endswith("needs tf2onnx: pip install -r requirements-export.txt")


# -- in place of an .h5 ----------------------------------------------------------------------------


@pytest.mark.long
def test_both_are_loaded_by_their_names(tmp_path):
    assert isinstance(Captioner.load(INCLUDED), OnnxCaptioner)
    path = shutil.copy(INCLUDED, tmp_path / "M.ONNX")
    command = ("generate_caption.py", "--image_path", EXAMPLES / "donna.jpg", "--model_path")
    said = [run_here(*command, each).stdout for each in (path, INCLUDED)]
    assert said[0] == said[1] != ""


@pytest.mark.parametrize(
    "arguments",
    [
        ("train.py", "--model_path", "x.h5", "--init_from", INCLUDED),
        ("finetune.py", INCLUDED, "--model_path", "x.h5"),
        ("ensemble.py", INCLUDED, INCLUDED_H5, "--model_path", "x.h5"),
        ("calibrate.py", INCLUDED),
        ("evaluate.py", "--model_path", INCLUDED, "--output_dir", "x"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_what_needs_more_than_captions_asks_for_the_h5_before_the_data(arguments, tmp_path):
    arguments = [tmp_path / each if str(each).startswith("x") else each for each in arguments]
    told = run_here(*arguments, code=1).stderr.splitlines()[-1]
    assert "flickr8k_captioner.onnx only captions photos: name the .h5" in told


def test_beams_and_photos_that_there_are_not(attentive, attentive_onnx):
    for captioner in (attentive, attentive_onnx):
        assert captioner.decode_photos(tiny_photos(0)) == []
        for size in (0, 101):
            with pytest.raises(InputError, match=f"a beam of {size}: choose between 1 and 100"):
                captioner.decode_photos(tiny_photos(1), size)


@pytest.mark.long
def test_features_that_are_not_numbers_are_told():
    captioner = photographing(untrained(CONFIGS["merge"]))
    captioner.encoder.network.layers[-1].bias.assign([np.nan] * 12)
    for each in (captioner, exported(captioner)):
        with pytest.raises(InputError, match="NaN or infinite"):
            each.decode_photos(tiny_photos(2), 2)


@pytest.mark.long
def test_confidence_of_an_onnx_is_calibrated_in_the_h5(attentive, tmp_path):
    captioner = dataclasses.replace(attentive, calibration=None, neighbours=None)
    captioner.encoder = attentive.encoder
    path = tmp_path / "m.onnx"
    path.write_bytes(serialize(convert(captioner), captioner, half=False))
    command = ("generate_caption.py", "--image_path", EXAMPLES / "donna.jpg", "--model_path", path)
    assert run_here(*command).stdout
    told = run_here(*command, "--min_confidence", 0.5, code=1).stderr
    assert "Calibrate the .h5 that it was made from (calibrate.py), and export it again" in told


# -- without TensorFlow ----------------------------------------------------------------------------

ALONE = """
import runpy, sys
sys.modules |= dict.fromkeys({missing})  # as if they were not installed
sys.argv = {arguments}
runpy.run_path(sys.argv[0], run_name="__main__")
"""
# All that requirements-caption.txt does not have.
MISSING = ("tensorflow", "keras", "h5py", "matplotlib", "sklearn", "scipy", "joblib")


def run_alone(*arguments, missing=MISSING, code=0, **options):
    program = ALONE.format(missing=[*missing], arguments=[*map(str, arguments)])
    return run_script("-c", program, code=code, **options)


def test_photos_are_captioned_without_tensorflow(said, tmp_path):
    env = os.environ | {"TMPDIR": str(tmp_path)}
    done = run_alone("generate_caption.py", "--image_path", EXAMPLES / "donna.jpg", env=env)
    assert not list(
        tmp_path.iterdir()
    )  # where ONNX Runtime's telemetry keeps this machine's number
    assert done.stdout == f"{EXAMPLES / 'donna.jpg'}\t{said['donna.jpg']}\n"
    assert done.stderr == f"captions by {INCLUDED} (included)\n"


def test_what_is_missing_is_named():
    photo = EXAMPLES / "donna.jpg"
    for more, missing, package in (
        (("--model_path", INCLUDED_H5), MISSING, "tensorflow"),
        (("--save_figure", "x.png"), MISSING, "matplotlib"),
        ((), ("onnxruntime",), "onnxruntime"),
    ):
        command = ("generate_caption.py", "--image_path", photo, *more)
        told = run_alone(*command, missing=missing, code=1).stderr.splitlines()[-1]
        assert f"needs {package}: pip install " in told
    told = run_alone("evaluate.py", code=1).stderr.splitlines()[-1]
    assert told == "error: evaluate.py needs joblib: pip install -r requirements.txt"
