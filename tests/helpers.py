"""What several tests need: the real scripts, small captioners, made features and captions."""

import contextlib
import dataclasses
import io
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
import tensorflow as tf
from PIL import Image

from captioning.batches import CaptionBatches
from captioning.captions import SPECIAL_TOKENS, Vocabulary
from captioning.files import ROOT, InputError
from captioning.onnx_captioner import OnnxCaptioner
from captioning.training import Options, compile_for_training
from model import DECODERS, Captioner, CaptionerConfig, build_decoder

EXAMPLES = ROOT / "data" / "examples"
PATIENCE = 600  # seconds for what takes one or two on a machine that has nothing else to do


def run_script(*arguments, code: int = 0, **options) -> subprocess.CompletedProcess:
    """Run one of the repository's scripts as a user would; its exit code must be `code`."""
    command = [sys.executable, *map(str, arguments)]
    options = {"cwd": ROOT, "timeout": PATIENCE} | options
    done = subprocess.run(command, capture_output=True, text=True, **options)
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
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) / 1024


@contextlib.contextmanager
def serving(*arguments, stop=signal.SIGINT, env=None):
    """The script itself, at a free port, stopped in the end: its address."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "app.py", "--port", str(port), *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, cwd=ROOT, env=env, **pipes)
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
SIZES = {"embedding_size": 16, "units": 16, "merge_units": 16}
CONFIG = CaptionerConfig(12, len(WORDS), 9, "efficientnet_lite0", weights_hash="-", **SIZES)
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


class TinyEncoder:
    """In a CNN's place: of photos of 12 × 12 pixels, features as `config` has them."""

    image_size, name = 12, "tiny"

    def __init__(self, config):
        self.grid = config.features == "grid"
        self.dtype = np.dtype(np.float16 if self.grid else np.float32)
        self.network = keras.Sequential(
            [keras.Input((36, 12)), keras.layers.Dense(12, kernel_initializer="identity")]
        )
        self.shift = tf.constant([2.0] * 12)  # beside the weights, as some CNNs have it

    def run(self, pixels):
        cells = tf.reshape(tf.cast(pixels, tf.float32) / 64, [-1, 36, 12]) - self.shift
        cells = self.network(cells)  # (B, 36, 12)
        return cells if self.grid else tf.reduce_mean(cells, axis=1)

    def encode(self, pixels):
        return self.run(pixels).numpy().astype(self.dtype)


def photographing(captioner) -> Captioner:
    """The captioner, with a `TinyEncoder`."""
    config = dataclasses.replace(captioner.config, photo_size=TinyEncoder.image_size)
    captioner = dataclasses.replace(captioner, config=config)
    captioner.encoder = TinyEncoder(config)
    return captioner


def tiny_photos(count: int) -> np.ndarray:
    """Random photos (count, 12, 12, 3) uint8."""
    return np.random.default_rng(0).integers(0, 256, (count, 12, 12, 3)).astype(np.uint8)


def look_somewhere(captioner) -> None:
    """Make its words choose cells; those of an untrained decoder look everywhere alike."""
    score = captioner.decoder.recurrence.cell.score
    score.assign(100 * score)


def options(path="m.h5", epochs=1, learning_rate=1e-3, **more) -> Options:
    return Options(Path(path), epochs, learning_rate, **more)


def compiled(decoder):
    """The decoder's network, compiled as for a training at a constant learning rate."""
    compile_for_training(decoder, options(), steps=10**9)
    return decoder.network


def random_features(count: int, config=CONFIG, seed=0) -> np.ndarray:
    """Of `count` images, in the form that the decoder takes."""
    features = np.random.default_rng(seed).normal(size=(count, *config.features_shape))
    return features.astype(np.float16 if config.features == "grid" else np.float32)


def random_batches(count=50, seed: int | None = 0, config=CONFIG) -> CaptionBatches:
    """Random captions of 1 to 9 words, common words more often, of 10 random images."""
    random = np.random.default_rng(0)
    shares = 1 / np.arange(1, 41)
    captions = []
    for _ in range(count):
        drawn = random.choice(WORDS[4:], random.integers(1, 10), p=shares / shares.sum())
        captions.append((int(random.integers(10)), " ".join(drawn)))
    return CaptionBatches(random_features(10, config), captions, Vocabulary(WORDS), 8, seed)


def token_losses(network, features, ids) -> np.ndarray:
    """Cross-entropy at every target of whole captions, by numpy: (B, T), padding included."""
    logits = network([features, ids[:, :-1]]).numpy().astype(np.float64)  # (B, T, V)
    logits -= logits.max(-1, keepdims=True)
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return -np.take_along_axis(log_probs, ids[:, 1:, None].astype(int), -1)[..., 0]


@contextlib.contextmanager
def files_up_to(size: int):
    """A full disk, nearly: no file of this process grows beyond `size` bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def cells_of(maps: np.ndarray) -> np.ndarray:
    """Maps (B, S, S, C) as the averages of 6 × 6 cells, row by row: (B, 36, C)."""
    side = maps.shape[1]
    windows = [slice(i * side // 6, -(-(i + 1) * side // 6)) for i in range(6)]
    cells = [maps[:, rows, columns].mean(axis=(1, 2)) for rows in windows for columns in windows]
    return np.stack(cells, axis=1)


def of_length_1(parts) -> np.ndarray:
    """Arrays (..., C), each vector scaled to length 1, side by side."""
    return np.concatenate([x / np.linalg.norm(x, axis=-1, keepdims=True) for x in parts], axis=-1)


def colours_of(path: str | Path) -> Counter:
    """How many pixels of a picture have each colour."""
    with Image.open(path) as picture:
        return Counter({c: n for n, c in picture.convert("RGB").getcolors(1 << 24)})


def shows(picture: str | Path, photo: str | Path) -> bool:
    """Whether the most frequent colour of a drawn scene fills a part of the picture."""
    ((colour, _),) = colours_of(photo).most_common(1)
    return colours_of(picture)[colour] > 1000  # pixels


def check_refused(model, path: Path, message: str) -> None:
    """An .onnx is refused with a message of one line, and in little memory."""
    path.write_bytes(model.SerializeToString())
    with PeakMemory() as memory, pytest.raises(InputError, match=message) as error:
        OnnxCaptioner.load(path)
    assert str(error.value).isprintable()
    assert str(path) in str(error.value)
    assert memory.taken < 300
