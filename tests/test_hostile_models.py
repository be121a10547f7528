"""Model files from strangers: refused in a moment and in little memory, their code never run."""

import json
import os
import time

import h5py
import numpy as np
import pytest
from helpers import CONFIG, WORDS, PeakMemory, random_features, run_script, untrained

from captioning.files import InputError
from model import Captioner

SHAPE = (CONFIG.merge_units, len(WORDS))  # of the output layer's kernel
SECONDS, MEGABYTES = 10, 1000  # all that a refusal may take


@pytest.fixture
def model(tmp_path):
    """A small captioner's file, to be spoilt."""
    path = tmp_path / "m.h5"
    untrained().save(path)
    Captioner.load(path)
    return path


def claim(**changes):
    """Change the file's few numbers."""

    def spoil(file):
        config = json.loads(file["captioner"].attrs["config"]) | changes
        file["captioner"].attrs["config"] = json.dumps(config)

    return spoil


def array(place: str, make):
    """Put something else in an array's place."""

    def spoil(file):
        del file[place]
        make(file, place)

    return spoil


def external_storage(file, place):
    """Numbers from another file, such as one that only its owner may read."""
    size = 4 * SHAPE[0] * SHAPE[1]
    file.create_dataset(place, SHAPE, "f4", external=[("/etc/passwd", 0, size)])


def virtual(file, place):
    layout = h5py.VirtualLayout(SHAPE, "f4")
    layout[:] = h5py.VirtualSource("/etc/passwd", "x", SHAPE)
    file.create_virtual_dataset(place, layout)


def pipe(file) -> str:
    path = f"{file.filename}.pipe"
    os.mkfifo(path)
    return path


KERNEL = "model_weights/logits/logits/kernel"
TEXT = h5py.string_dtype()
CRAFTED = {
    "100 million units": (claim(units=10**8), "units is 100000000, not between"),
    "units that fit but are not there": (claim(units=2**14), "too small for its"),
    "a vocabulary that is not there": (claim(vocabulary_size=2**20), "44 words for 1048576"),
    "captions of a million words": (claim(max_length=10**6), "max_length is 1000000"),
    "no units": (claim(units=0), "units is 0"),
    "units of text": (claim(units="8"), "units is '8', not of type int"),
    "units that are true": (claim(units=True), "not of type int"),
    "not a number": (claim(dropout=float("nan")), "dropout is nan"),
    "another encoder": (claim(encoder="os.system"), "its encoder is 'os.system'"),
    "an unknown field": (claim(code="x"), "unexpected keyword argument 'code'"),
    "config of lists": (
        lambda f: f["captioner"].attrs.__setitem__("config", "[" * 5000),
        "is not a captioner",
    ),
    "config of many": (
        lambda f: f["captioner"].attrs.__setitem__("config", ["{}"] * 9),
        "config is an array",
    ),
    "external link": (
        array(KERNEL, lambda f, p: f.__setitem__(p, h5py.ExternalLink("/etc/passwd", "/x"))),
        "kernel is a link",
    ),
    "external link to a whole group": (
        array("captioner", lambda f, p: f.__setitem__(p, h5py.ExternalLink("/dev/zero", "/x"))),
        "captioner is a link",
    ),
    "external link to a pipe, which would be waited on": (
        array(KERNEL, lambda f, p: f.__setitem__(p, h5py.ExternalLink(pipe(f), "/x"))),
        "kernel is a link",
    ),
    "group linked to a pipe": (
        array("captioner", lambda f, p: f.__setitem__(p, h5py.ExternalLink(pipe(f), "/x"))),
        "captioner is a link",
    ),
    "soft link in a circle": (
        array(KERNEL, lambda f, p: f.__setitem__(p, h5py.SoftLink(f"/{KERNEL}"))),
        "kernel is a link",
    ),
    "external storage": (array(KERNEL, external_storage), "not a plain array"),
    "virtual": (array(KERNEL, virtual), "not a plain array"),
    "compressed": (
        array(KERNEL, lambda f, p: f.create_dataset(p, SHAPE, "f4", compression="gzip")),
        "not a plain array",
    ),
    "a large array of nothing": (
        array(KERNEL, lambda f, p: f.create_dataset(p, (10**5, 10**5), "f4", chunks=(9, 9))),
        "not a plain array",
    ),
    "unwritten": (
        array(KERNEL, lambda f, p: f.create_dataset(p, (10**5, 10**5), "f4")),
        "not a plain array",
    ),
    "another shape": (
        array(KERNEL, lambda f, p: f.create_dataset(p, data=np.zeros(SHAPE[::-1], "f4"))),
        "logits/kernel is",
    ),
    "another type": (
        array(KERNEL, lambda f, p: f.create_dataset(p, data=np.zeros(SHAPE, "f8"))),
        "float64",
    ),
    "a group for an array": (array(KERNEL, lambda f, p: f.create_group(p)), "not a plain array"),
    "words without end": (
        array("captioner/vocabulary", lambda f, p: f.create_dataset(p, (10**8,), "S1000")),
        "not a plain array",
    ),
    "words of any length": (
        array("captioner/vocabulary", lambda f, p: f.create_dataset(p, data=WORDS, dtype=TEXT)),
        "not a plain array",
    ),
    "words that are numbers": (
        array("captioner/vocabulary", lambda f, p: f.create_dataset(p, data=np.arange(44))),
        "not strings",
    ),
    "words twice": (
        array(
            "captioner/vocabulary",
            lambda f, p: f.create_dataset(p, data=np.array([*WORDS[:-1], WORDS[-2]], "S")),
        ),
        "a word twice",
    ),
    "words not in UTF-8": (
        array(
            "captioner/vocabulary", lambda f, p: f.create_dataset(p, data=np.array([b"\xff"] * 44))
        ),
        "is not a captioner",
    ),
}


@pytest.mark.parametrize("name", CRAFTED)
def test_crafted_files_are_refused_in_one_line(model, name):
    spoil, message = CRAFTED[name]
    with h5py.File(model, "r+") as file:
        spoil(file)
    started = time.monotonic()
    with PeakMemory() as memory, pytest.raises(InputError, match=message) as error:
        Captioner.load(model)
    assert time.monotonic() - started < SECONDS
    assert str(error.value).isprintable()
    assert memory.taken < 300
    assert str(model) in str(error.value)


@pytest.mark.parametrize("keep", [0, 7, 2000, -1000])
def test_truncated_files_are_refused(model, keep):
    model.write_bytes(model.read_bytes()[:keep])
    with pytest.raises(InputError, match="is not a captioner"):
        Captioner.load(model)


def test_the_architecture_in_the_file_is_never_built(model, tmp_path):
    """A Lambda layer, or an unknown class, in Keras' part of the file says nothing to us."""
    flag = tmp_path / "ran"
    with h5py.File(model, "r+") as file:
        config = json.loads(file.attrs["model_config"])
        code = f"import pathlib; pathlib.Path({str(flag)!r}).touch()"
        layer = {"class_name": "Lambda", "config": {"function": code, "name": "logits"}}
        config["config"]["layers"] += [layer, {"class_name": "Unknown", "config": {}}]
        file.attrs["model_config"] = json.dumps(config)
    features = random_features(3)
    assert Captioner.load(model).decode(features) == untrained().decode(features)
    assert not flag.exists()


def test_the_command_refuses_them_too(model):
    with h5py.File(model, "r+") as file:
        CRAFTED["100 million units"][0](file)
    code = (
        "import runpy, sys; del sys.argv[0]\n"
        "try: runpy.run_path('generate_caption.py', run_name='__main__')\n"
        "finally: print(open('/proc/self/status').read().split('VmHWM:')[1], file=sys.stderr)"
    )
    started = time.monotonic()
    arguments = ("generate_caption.py", "--image_path", "x", "--model_path", model)
    done = run_script("-c", code, *arguments, code=1)
    assert done.stderr.startswith(f"error: {model} is not a captioner")
    assert time.monotonic() - started < SECONDS
    peak, unit, *_ = done.stderr.splitlines()[1].split()  # right after the error
    assert unit == "kB" and int(peak) / 1024 < MEGABYTES
