"""What several tests need: the sample set, small and large, Flickr8k where it is, a page."""

import os
import shutil
import signal
import urllib.request
from pathlib import Path

import numpy as np
import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from helpers import CONFIGS, EXAMPLES, ROOT, photographing, run_here, serving, untrained

from captioning.cli import INCLUDED

# A shell that starts the tests in the background has all that they start ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Flickr8k cannot be shipped: it is looked for here, or beside the repository.
FLICKR8K = Path(os.environ.get("FLICKR8K_DIR", ROOT.parent / "shared" / "flickr8k"))


@pytest.fixture
def no_java(monkeypatch):
    """No METEOR, which takes seconds to start."""
    monkeypatch.setattr(shutil, "which", lambda name: None)


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    """Intervals take a fraction of their time; tests/test_significance.py asks for more."""
    monkeypatch.setattr("captioning.significance.RESAMPLES", 199)


@pytest.fixture(scope="session")
def flickr8k() -> Path:
    if not (FLICKR8K / "captions.txt").is_file():
        pytest.skip(f"Flickr8k is not in {FLICKR8K}; set FLICKR8K_DIR to run this on it")
    return FLICKR8K


def preprocessed(folder: Path, *sample_options) -> Path:
    """A sample set in dataset/, its pickles in data/."""
    run_here("data/sample.py", "--output_dir", folder / "dataset", *sample_options)
    arguments = ("--dataset_dir", folder / "dataset", "--output_dir", folder / "data")
    run_here("preprocess.py", *arguments, "--encoder", "efficientnet_lite0")
    return folder


@pytest.fixture(scope="session")
def demo(tmp_path_factory) -> Path:
    """What `make demo` makes, its network smaller and faster: dataset/, data/, models/."""
    folder = preprocessed(tmp_path_factory.mktemp("demo"))
    model = ("--model_path", folder / "models" / "caption_model.h5", "--units", 128)
    steps = ("--epochs", 12, "--learning_rate", 2e-3)
    run_here("train.py", "--data_dir", folder / "data", *model, *steps)
    return folder


@pytest.fixture(scope="session")
def small(tmp_path_factory) -> Path:
    """A sample set that a training passes in a blink: dataset/, data/."""
    return preprocessed(tmp_path_factory.mktemp("small"), "--scenes", 60, "--seed", 2)


@pytest.fixture(scope="session")
def captioner(demo):
    from model import Captioner

    return Captioner.load(demo / "models" / "caption_model.h5")


@pytest.fixture(scope="session")
def page():
    pytest.importorskip("gradio", reason="Gradio is not installed (requirements-app.txt)")
    with serving("--model_path", INCLUDED) as url:
        yield url


@pytest.fixture(scope="session")
def said():
    """What generate_caption.py says of the examples."""
    options = ("--model_path", INCLUDED)
    done = run_here("generate_caption.py", "--image_path", EXAMPLES, *options)
    lines = dict(line.split("\t") for line in done.stdout.splitlines())
    return {path.rsplit("/")[-1]: caption for path, caption in lines.items()}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Keras' folder of weights, empty, on a machine without a network."""
    monkeypatch.setattr("keras.src.backend.config._KERAS_DIR", str(tmp_path / "keras"))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    urllib.request.install_opener(None)  # one that was used already keeps its proxies
    (tmp_path / "keras" / "models").mkdir(parents=True)
    yield tmp_path / "keras" / "models"
    urllib.request.install_opener(None)


@pytest.fixture(scope="session")
def onnx_content() -> bytes:
    """The .onnx of a small captioner with neighbours."""
    from captioning.neighbours import Neighbours
    from captioning.onnx_export import convert, serialize

    captioner = photographing(untrained(CONFIGS["merge"]))
    captions = {row: [[4 + row // 2, 8], [6]] for row in range(4)}
    features = np.random.default_rng(0).normal(size=(4, 12)).astype(np.float32)
    captioner.neighbours = Neighbours.of(features, captions)
    return serialize(convert(captioner), captioner, half=False)


@pytest.fixture
def onnx_model(onnx_content):
    """The same, parsed, to be spoilt."""
    import onnx

    return onnx.load_model_from_string(onnx_content)
