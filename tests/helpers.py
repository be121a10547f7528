"""What several tests need: the real scripts, small captioners, made features and captions."""

import contextlib
import csv
import dataclasses
import io
import os
import resource
import runpy
import signal
import socket
import subprocess
import sys
from collections import Counter
from pathlib import Path
from unittest import mock

import keras
import numpy as np
import pytest
from PIL import Image

from captioning.batches import CaptionBatches
from captioning.captions import SPECIAL_TOKENS, Vocabulary
from captioning.files import ROOT
from captioning.training import Options, compile_for_training
from model import DECODERS, Captioner, CaptionerConfig, build_decoder

# Flickr8k cannot be shipped: tests on it look here, or beside the repository.
FLICKR8K = Path(os.environ.get("FLICKR8K_DIR", ROOT.parent / "shared" / "flickr8k"))
EXAMPLES = ROOT / "data" / "examples"
PATIENCE = 600  # seconds for what takes one or two on a machine that has nothing else to do


def run_script(*arguments, code: int = 0, **options) -> subprocess.CompletedProcess:
    """Run one of the repository's scripts as a user would; its exit code must be `code`."""
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=options.pop("cwd", ROOT),
        capture_output=True,
        text=True,
        timeout=600,
        **options,
    )
    assert done.returncode == code, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr, done.stderr
    return done


def run_here(*arguments, code: int = 0) -> subprocess.CompletedProcess:
    """The same within this process, where TensorFlow is loaded: spares what a process costs."""
    out, err = (io.TextIOWrapper(io.BytesIO(), write_through=True) for _ in range(2))
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        contextlib.chdir(ROOT),
        mock.patch.object(sys, "argv", list(map(str, arguments))),
        pytest.raises(SystemExit) as ended,
    ):
        runpy.run_path(str(arguments[0]), run_name="__main__")
    stdout, stderr = (stream.buffer.getvalue().decode(errors="replace") for stream in (out, err))
    assert ended.value.code == code, f"exit code {ended.value.code}\n{stdout}\n{stderr}"
    return subprocess.CompletedProcess(arguments, code, stdout, stderr)


class PeakMemory:
    """Measures, in MB, by how much a block raises this process' greatest resident memory."""

    def __enter__(self):
        Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
        self.before = self.peak()
        return self

    def __exit__(self, *_):
        self.taken = self.peak() - self.before

    @staticmethod
    def peak() -> float:
        """The process' greatest resident memory; unlike rusage's, not that of who started it."""
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) / 1024


@contextlib.contextmanager
def serving(*arguments, stop=signal.SIGINT, env=None):
    """The script itself, at a free port, stopped in the end: its address."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "app.py", "--port", port, *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(list(map(str, command)), cwd=ROOT, env=env, **pipes)
    lines = []
    try:
        for line in process.stderr:
            lines.append(line)
            if line.startswith("listening on"):
                break
        else:
            pytest.fail(f"it did not start:\n{''.join(lines)}")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.send_signal(stop)
        _, err = process.communicate(timeout=PATIENCE)
    assert err.endswith("stopped.\n"), err
    assert process.returncode == 130


# -- small captioners ------------------------------------------------------------------------------

WORDS = [*SPECIAL_TOKENS, *(f"w{i}" for i in range(40))]
CONFIG = CaptionerConfig(
    feature_size=12,
    vocabulary_size=len(WORDS),
    max_length=9,
    encoder="efficientnet_lite0",
    weights_hash="-",
    embedding_size=16,
    units=16,
    merge_units=16,
)
CONFIGS = {
    name: dataclasses.replace(CONFIG, decoder=name, features=decoder.kinds[0])
    for name, decoder in DECODERS.items()
}
CONFIGS["wide merge"] = dataclasses.replace(CONFIG, merge_units=24, features="layers")
EACH = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


def untrained(config=CONFIG, seed=0, words=WORDS) -> Captioner:
    """A captioner with random weights and the moments of random features."""
    keras.utils.set_random_seed(seed)
    decoder = build_decoder(config)
    decoder.standardize(random_features(20, config, seed), list(range(20)))
    return Captioner(decoder, Vocabulary(words), config)


def options(path="m.h5", epochs=1, learning_rate=1e-3, **more) -> Options:
    """How to train, where it matters little."""
    return Options(Path(path), epochs, learning_rate, **more)


def compiled(decoder, learning_rate=1e-3):
    """The decoder's network, compiled as for a training at a constant learning rate."""
    compile_for_training(decoder, options(learning_rate=learning_rate), steps=10**9)
    return decoder.network


def random_features(count: int, config=CONFIG, seed=0) -> np.ndarray:
    """Of `count` images, in the form that the decoder takes."""
    features = np.random.default_rng(seed).normal(size=(count, *config.features_shape))
    return features.astype(np.float16 if config.features == "grid" else np.float32)


def random_batches(
    count=50, batch_size=8, seed: int | None = 0, words=40, config=CONFIG
) -> CaptionBatches:
    """Random captions of 1 to 9 words, common words more often, of 10 random images."""
    features = random_features(10, config)
    random = np.random.default_rng(0)
    shares = 1 / np.arange(1, words + 1)
    captions = []
    for _ in range(count):
        drawn = random.choice(words, random.integers(1, 10), p=shares / shares.sum())
        captions.append((int(random.integers(10)), " ".join(f"w{i}" for i in drawn)))
    return CaptionBatches(features, captions, Vocabulary(WORDS), batch_size, seed)


def token_losses(network, features, ids) -> np.ndarray:
    """Cross-entropy at every target of whole captions, by numpy: (B, T), padding included."""
    logits = network([features, ids[:, :-1]]).numpy().astype(np.float64)  # (B, T, V)
    logits -= logits.max(-1, keepdims=True)
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return -np.take_along_axis(log_probs, ids[:, 1:, None].astype(int), -1)[..., 0]


# -- runs that are stopped -------------------------------------------------------------------------


def trained(folder: Path) -> tuple:
    """All that a training leaves, but for the seconds that it took."""
    with np.load(folder / "m.checkpoint.npz") as arrays:
        state = {name: arrays[name] for name in arrays if name.startswith("array")}
    with (folder / "m.csv").open() as file:
        history = [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]
    return state, history, (folder / "m.h5").read_bytes()


def with_files_up_to(size: int):
    """For a child process: a file that grows beyond `size` bytes is a disk that is full."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def share_right(captions: list[str], truths: list[str]) -> float:
    """The share of captions that name exactly the true colour and the true shape of a scene."""
    from data.sample import colour_and_shape

    pairs = zip(captions, truths, strict=True)
    return float(np.mean([colour_and_shape(c) == colour_and_shape(t) for c, t in pairs]))


def colours_of(path: str | Path) -> Counter:
    """How many pixels of a picture have each colour."""
    with Image.open(path) as picture:
        return Counter({c: n for n, c in picture.convert("RGB").getcolors(1 << 24)})


def shows(picture: str | Path, photo: str | Path) -> bool:
    """Whether the most frequent colour of a drawn scene fills a part of the picture."""
    return colours_of(picture)[colours_of(photo).most_common(1)[0][0]] > 1000  # pixels
