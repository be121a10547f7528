"""A captioner as an .onnx: it finds what the .h5 finds, without TensorFlow, or is not written."""

import dataclasses
import shutil
from pathlib import Path

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
from captioning.files import InputError
from captioning.neighbours import Neighbours
from captioning.onnx_captioner import OnnxCaptioner
from captioning.onnx_file import complete
from ensemble import ensemble
from model import DECODERS, Captioner


def exported(captioner, half: bool = False) -> OnnxCaptioner:
    return OnnxCaptioner.parse(complete(export.convert(captioner), captioner, half))


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
    assert {*CONFIGS} >= {*DECODERS}


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


def test_float32_is_kept_where_float16_says_something_else(attentive, monkeypatch, capsys):
    """And if that does as well, there is no content."""
    monkeypatch.setattr(export, "load_image", lambda path, size: tiny_photos(1)[0])
    model = export.convert(attentive)
    good, asked = OnnxCaptioner.parse, []

    def parse(content, bad):
        asked.append(content)
        captioner = good(content)
        if len(asked) in bad:
            captioner.vocabulary.words[4:] = reversed(captioner.vocabulary.words[4:])
        return captioner

    monkeypatch.setattr(OnnxCaptioner, "parse", lambda content: parse(content, bad=[1]))
    content = export.checked(model, attentive, "-")
    assert content == asked[1]
    assert len(asked[0]) < len(asked[1])
    assert "float16: 0 of 30" in capsys.readouterr().err
    asked.clear()
    monkeypatch.setattr(OnnxCaptioner, "parse", lambda content: parse(content, bad=[1, 2]))
    with pytest.raises(InputError, match="no file is written"):
        export.checked(model, attentive, "-")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--model_path", INCLUDED), "an .onnx is made of an .h5"),
        (("--model_path", INCLUDED_H5, "--output", "x.h5"), "an .onnx is made of an .h5"),
        (("--model_path", INCLUDED_H5), "is there already. Give --overwrite, or name another"),
        (("--model_path", "none.h5", "--output", "x.onnx"), "none.h5: no such model"),
    ],
)
def test_what_cannot_be_exported_is_told_in_a_line(arguments, message):
    told = run_here("export.py", *arguments, code=1).stderr
    assert message in told.splitlines()[-1]
    assert not (ROOT / "x.onnx").exists()


def test_a_missing_converter_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    command = ("export.py", "--model_path", INCLUDED_H5, "--output", tmp_path / "x.onnx")
    told = run_here(*command, code=1).stderr
    assert "tf2onnx and onnx and onnxruntime: pip install -r requirements-export.txt" in told


# -- without TensorFlow ----------------------------------------------------------------------------

ALONE = """
import runpy, sys
sys.modules |= dict.fromkeys({missing})  # as if they were not installed
sys.argv = {arguments}
runpy.run_path(sys.argv[0], run_name="__main__")
"""
# All that requirements-caption.txt does not have, and the onnx package: the file is known.
MISSING = ("tensorflow", "keras", "h5py", "matplotlib", "sklearn", "scipy", "joblib", "onnx")


def run_alone(*arguments, missing=MISSING, code=0):
    program = ALONE.format(missing=[*missing], arguments=[*map(str, arguments)])
    return run_script("-c", program, code=code)


def test_photos_are_captioned_without_tensorflow(said):
    done = run_alone("generate_caption.py", "--image_path", EXAMPLES)
    lines = dict(line.split("\t") for line in done.stdout.splitlines())
    assert {Path(path).name: caption for path, caption in lines.items()} == said


def test_what_needs_tensorflow_says_so(tmp_path):
    photo = EXAMPLES / "donna.jpg"
    for arguments, message in (
        (("generate_caption.py", "--image_path", photo, "--model_path", INCLUDED_H5), "tensorflow"),
        (("generate_caption.py", "--image_path", photo, "--save_figure", "x.png"), "matplotlib"),
    ):
        told = run_alone(*arguments, code=1).stderr.splitlines()[-1]
        assert f"needs {message}: pip install" in told
    other = shutil.copy(INCLUDED, tmp_path / "other.onnx")
    with other.open("ab") as file:  # another hash
        file.write(b"\0")
    command = ("generate_caption.py", "--image_path", photo, "--model_path", other)
    told = run_alone(*command, code=1).stderr.splitlines()[-1]
    assert told.endswith("needs onnx: pip install onnx")
    command = ("generate_caption.py", "--image_path", photo)
    told = run_alone(*command, missing=("onnxruntime",), code=1).stderr.splitlines()[-1]
    assert told.endswith("needs onnxruntime: pip install onnxruntime")
