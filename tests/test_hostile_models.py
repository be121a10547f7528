"""Model files from strangers: refused in one line and in little memory, their code never run."""

import dataclasses
import json
import os
from unittest import mock

import h5py
import numpy as np
import pytest
from helpers import CONFIG, CONFIGS, WORDS, PeakMemory, random_features, run_here, untrained

from captioning.files import InputError
from captioning.neighbours import Neighbours
from model import Captioner, count_parameters

KERNEL, SHAPE = "model_weights/logits/logits/kernel", (CONFIG.merge_units, len(WORDS))
GROUP, VOCABULARY = "captioner", "captioner/vocabulary"


@pytest.fixture(scope="module")
def content(tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("whole") / "m.h5"
    untrained().save(path)
    return path.read_bytes()


@pytest.fixture
def model(content, tmp_path):
    """A small captioner's file, to be spoilt."""
    (tmp_path / "m.h5").write_bytes(content)
    return tmp_path / "m.h5"


def claim(**changes):
    """Change the file's few numbers."""

    def spoil(file):
        config = json.loads(file[GROUP].attrs["config"]) | changes
        file[GROUP].attrs["config"] = json.dumps(config)

    return spoil


def says(content):
    """Write something else for all of the numbers."""
    return lambda file: file[GROUP].attrs.__setitem__("config", content)


def array(place: str, *shape_and_type, **options):
    """Put another array in an array's place."""

    def spoil(file):
        del file[place]
        file.create_dataset(place, *shape_and_type, **options)

    return spoil


def link(place: str, target):
    """Let the place be found elsewhere: in another file, perhaps one that only its owner may read,
    in a pipe, which would be waited on, or in a circle.
    """

    def spoil(file):
        del file[place]
        file[place] = target
        os.mkfifo("pipe")

    return spoil


def virtual(file):
    layout = h5py.VirtualLayout(SHAPE, "f4")
    layout[:] = h5py.VirtualSource("/etc/passwd", "x", SHAPE)
    del file[KERNEL]
    file.create_virtual_dataset(KERNEL, layout)


def put(name, content):
    """What most files have not: photos' hashes, neighbours, a calibration."""
    return lambda file: file[GROUP].__setitem__(name, content)


def neighbours(name, change):
    """Neighbours, one of whose arrays is changed."""

    def spoil(file):
        captions = {row: [[4 + row // 2, 8], [6]] for row in range(4)}  # two have each 4 and 5
        made = Neighbours.of(random_features(4), captions)
        for known, array in made.arrays().items():
            file[f"{GROUP}/neighbours/{known}"] = change(array) if known == name else array

    return spoil


def word(text):
    """The last word is that text."""
    return array(VOCABULARY, data=np.array([each.encode() for each in [*WORDS[:-1], text]]))


def group_for_array(file):
    del file[KERNEL]
    file.create_group(KERNEL)


HUGE, ELSEWHERE = (10**5, 10**5), [("/etc/passwd", 0, 4 * SHAPE[0] * SHAPE[1])]
TWICE = np.array([*WORDS[:-1], WORDS[-2]], "S")
NOT_PLAIN = "is not a plain array"
CRAFTED = {
    "100 million units": (claim(units=10**8), "units is 100000000, not between"),
    "units that are not there": (claim(units=2**14), "too small for its"),
    "vocabulary that is not there": (claim(vocabulary_size=2**20), "44 words for 1048576"),
    "captions of a million words": (claim(max_length=10**6), "max_length is 1000000"),
    "no units": (claim(units=0), "units is 0"),
    "units of text": (claim(units="8"), "units is '8', not of type int"),
    "units that are true": (claim(units=True), "not of type int"),
    "not a number": (claim(dropout=float("nan")), "dropout is nan"),
    "another encoder": (claim(encoder="os.system"), "its encoder is 'os.system'"),
    "a decoder of before": (claim(decoder="attention"), "then python train.py --decoder updown"),
    "an unknown field": (claim(code="x"), "should not have, code"),
    "a field that is missing": (says("{}"), "lacks, or should not have, encoder, feature_size"),
    "a weight that is NaN": (array(KERNEL, data=np.full(SHAPE, np.nan, "f2")), "kernel is NaN"),
    "an infinite weight": (array(KERNEL, data=np.full(SHAPE, np.inf, "f4")), "kernel is NaN or"),
    "config of lists": (says("[" * 5000), "is not a captioner"),
    "config of many": (says(["{}"] * 9), "config is an array"),
    "kernel elsewhere": (link(KERNEL, h5py.ExternalLink("/etc/passwd", "/x")), "kernel is a link"),
    "kernel in a pipe": (link(KERNEL, h5py.ExternalLink("pipe", "/x")), "kernel is a link"),
    "kernel in a circle": (link(KERNEL, h5py.SoftLink(f"/{KERNEL}")), "kernel is a link"),
    "group elsewhere": (link(GROUP, h5py.ExternalLink("/dev/zero", "/x")), "captioner is a link"),
    "group in a pipe": (link(GROUP, h5py.ExternalLink("pipe", "/x")), "captioner is a link"),
    "external storage": (array(KERNEL, SHAPE, "f4", external=ELSEWHERE), NOT_PLAIN),
    "virtual": (virtual, NOT_PLAIN),
    "compressed": (array(KERNEL, SHAPE, "f4", compression="gzip"), NOT_PLAIN),
    "large, of no chunks": (array(KERNEL, HUGE, "f4", chunks=(9, 9)), NOT_PLAIN),
    "unwritten": (array(KERNEL, HUGE, "f4"), NOT_PLAIN),
    "another shape": (array(KERNEL, data=np.zeros(SHAPE[::-1], "f4")), "logits/kernel is"),
    "another type": (array(KERNEL, data=np.zeros(SHAPE, "f8")), "float64"),
    "a group for an array": (group_for_array, NOT_PLAIN),
    "photos elsewhere": (put("photos", h5py.ExternalLink("/etc/passwd", "/x")), "photos is a link"),
    "photos of floats": (put("photos", np.ones(3)), "its training photos are not hashes"),
    "a neighbour that is not there": (
        neighbours("vectors", lambda a: a[:2]),
        "do not fit together",
    ),
    "neighbours of text": (neighbours("grams", lambda a: a.astype("S")), "do not fit together"),
    "no neighbours": (neighbours("vectors", lambda a: a[:0]), "do not fit together"),
    "neighbours that are NaN": (
        neighbours("weights", lambda a: a * np.float16("nan")),
        "NaN or infinite",
    ),
    "n-grams of 11 photos of 4": (
        neighbours("photos", lambda a: a + np.uint32(9)),
        "of so many photos",
    ),
    "n-grams that are not counted": (neighbours("grams", lambda a: a[:2]), "do not fit together"),
    "n-grams that are not there": (neighbours("ids", lambda a: a + np.uint16(9)), "so many photos"),
    "an n-gram twice": (neighbours("grams", lambda a: a[[0, 0, *range(2, len(a))]]), "different"),
    "an n-gram of nothing": (neighbours("grams", lambda a: a & ~a), "are not of words"),
    "n-grams with gaps": (neighbours("grams", lambda a: a[:, [0, 3, 1, 2]]), "or have gaps"),
    "vectors that are too long": (
        neighbours("vectors", lambda a: a * np.float16(99)),
        "are longer than 1",
    ),
    "weights that are too large": (
        neighbours("weights", lambda a: a + np.float16(9e3)),
        "weights not 0 to 1",
    ),
    "n-grams beyond the end": (
        neighbours("starts", lambda a: a * np.uint32(9)),
        "do not begin where others end",
    ),
    "n-grams backwards": (
        neighbours("starts", lambda a: a[[0, 2, 1, 3, 4]]),
        "do not begin where others end",
    ),
    "neighbours elsewhere": (
        put("neighbours", h5py.ExternalLink("/etc/passwd", "/x")),
        "is a link",
    ),
    "a calibration of text": (put("calibration", np.full(3, b"x")), "not of three numbers"),
    "a calibration that is NaN": (put("calibration", np.full(3, np.nan)), "not of three numbers"),
    "words without end": (array(VOCABULARY, 10**8, "S1000"), NOT_PLAIN),
    "words of any length": (array(VOCABULARY, data=WORDS, dtype=h5py.string_dtype()), NOT_PLAIN),
    "words that are numbers": (array(VOCABULARY, data=np.arange(44)), "not strings"),
    "no special words": (array(VOCABULARY, data=np.array([*WORDS[1:], "x"], "S")), "begin with"),
    "a word twice": (array(VOCABULARY, data=TWICE), "a word twice"),
    "an escape sequence": (word("\x1b[2J"), r"'\\x1b\[2J' is not of visible characters"),
    "a word with a tab": (word("a\tb"), "is not of visible characters"),
    "a word with a space": (word("a b"), "'a b' is not of visible characters"),
    "a word with none": (word("\u200d"), "is not of visible characters"),
    "a word without end": (word("x" * 101), "is longer than 100 characters"),
    "words not in UTF-8": (array(VOCABULARY, data=np.array([b"\xff"] * 44)), "is not a captioner"),
}


@pytest.mark.parametrize(("spoil", "message"), CRAFTED.values(), ids=CRAFTED)
def test_a_crafted_file_is_refused_in_one_line_and_little_memory(
    model, monkeypatch, spoil, message
):
    monkeypatch.chdir(model.parent)
    with h5py.File(model, "r+") as file:
        spoil(file)
    with PeakMemory() as memory, pytest.raises(InputError, match=message) as error:
        Captioner.load(model)
    assert str(error.value).isprintable()
    assert str(model) in str(error.value)
    assert memory.taken < 300


def test_what_was_only_counted_is_never_made():
    """Nor with the next network, for which Keras makes all variables that it has put off."""
    config = dataclasses.replace(CONFIG, units=2**13)  # a gigabyte
    with PeakMemory() as memory:
        assert count_parameters(config) > 2**28
        untrained(CONFIGS["updown"])
    assert memory.taken < 300


def test_a_fault_of_our_own_is_not_the_file_s(model, monkeypatch):
    parts = "captioning.captioner"
    for place in (f"{parts}.Vocabulary", f"{parts}.CaptionerConfig.parse", "model.build_decoder"):
        for error in (KeyError("a bug"), ValueError("a bug"), TypeError("a bug")):
            with monkeypatch.context() as patch:
                patch.setattr(place, mock.Mock(side_effect=error))
                with pytest.raises(type(error), match="a bug"):
                    Captioner.load(model)


@pytest.mark.parametrize("keep", [0, 7, 2000, -1000])
def test_truncated_files_are_refused(model, keep):
    model.write_bytes(model.read_bytes()[:keep])
    done = run_here("generate_caption.py", "--image_path", "x", "--model_path", model, code=1)
    assert done.stderr.startswith(f"error: {model} is not a captioner")
    assert len(done.stderr.splitlines()) == 1


def test_the_architecture_in_the_file_is_never_built(model, tmp_path):
    """A Lambda layer, or an unknown class, in Keras' part of the file says nothing to us."""
    flag = tmp_path / "ran"
    with h5py.File(model, "r+") as file:
        config = json.loads(file.attrs["model_config"])
        code = f"import pathlib; pathlib.Path({str(flag)!r}).touch()"
        layer = {"class_name": "Lambda", "config": {"function": code, "name": "logits"}}
        config["config"]["layers"] += [layer, {"class_name": "Unknown", "config": {}}]
        file.attrs["model_config"] = json.dumps(config)
    loaded, saved = (c.decoder.network.get_weights() for c in (Captioner.load(model), untrained()))
    for ours, theirs in zip(loaded, saved, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert not flag.exists()
