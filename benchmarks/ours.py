"""The repository's own figures: python benchmarks/ours.py TASK FOLDER (see speed.py)."""

import csv
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import workload

from captioning import cli
from captioning.captions import LENGTH_PENALTY
from captioning.files import is_onnx

TURNS = 3
PASS = 16  # images per pass of the network, as preprocess.py has it
BARE_IMAGES = {"vgg16": 64, "efficientnet_lite0": 512}
CAPTIONED_IMAGES = 128
EXTRACTED_IMAGES = {"vgg16": 256, "efficientnet_lite0": workload.PHOTOS}


def train(folder: Path) -> None:
    """An epoch of the merge network; `caption` takes what it leaves."""
    captioner = workload.captioner("vgg16", "-", workload.FEATURE_SIZE)
    path = folder / "caption_model.h5"
    epoch(captioner, workload.features(folder), path, learning_rate=1.5e-3)


def updown(folder: Path) -> None:
    """An epoch of Up-Down."""
    captioner = workload.captioner("efficientnet_lite0", "-", workload.CELL_SIZE, **workload.UPDOWN)
    path, options = folder / "updown_model.h5", {"learning_rate": 1e-3, "weight_decay": 0.05}
    epoch(captioner, workload.cells(folder), path, workload.UPDOWN_SHARE, **options)


def epoch(captioner, features: np.ndarray, path: Path, share: float = 1.0, **options) -> None:
    """Report the seconds of an epoch as train.py does it, from a share of the captions.

    It is the second one, which has no tracing and compiling in it.
    """
    from captioning.batches import CaptionBatches
    from captioning.training import Options, fit

    captions, size = workload.captions(share), workload.BATCH_SIZE
    batches = CaptionBatches(features, captions, captioner.vocabulary, size, seed=0)
    fit(captioner, batches, None, Options(path, epochs=2, **options))
    with path.with_suffix(".csv").open() as file:
        epochs = [float(row["seconds"]) for row in csv.DictReader(file)]
    workload.report(seconds=epochs[1] / share)


def caption(folder: Path) -> None:
    """Captions per second from features, with the network that `train` left."""
    from model import Captioner

    captioner = Captioner.load(folder / "caption_model.h5")
    features = np.array(workload.features(folder)[:1024])

    def run(batch_size: int, count: int, beam_size: int) -> list[str]:
        parts = np.split(features[:count], range(batch_size, count, batch_size))
        return [s for part in parts for s in captioner.caption_features(part, beam_size)]

    figures = {}
    for name, batch_size, count, beam_size in (
        ("greedy_1", 1, 128, 1),  # one by one
        ("greedy_256", 256, 1024, 1),
        ("beam_3", 256, 1024, 3),
    ):
        run(batch_size, count, beam_size)  # traced here
        times = [seconds(run, batch_size, count, beam_size) for _ in range(TURNS)]
        figures[name] = count / statistics.median(times)
    workload.report(**figures)


def extract(folder: Path, name: str) -> None:
    """Images per second: from files to features, and the bare network, turn by turn."""
    from captioning.encoders import Encoder
    from captioning.features import extract_features, hash_files, shard_files
    from captioning.images import load_image

    encoder = Encoder(name, "random" if name == "vgg16" else "imagenet")
    paths = workload.photos(folder)[: EXTRACTED_IMAGES[name]]
    pixels = np.stack([load_image(path) for path in paths[: BARE_IMAGES[name]]])
    encoder.encode(pixels[:PASS])  # traced here

    def from_files():
        with tempfile.TemporaryDirectory(dir=folder) as shards:
            files = shard_files(encoder, hash_files(paths), Path(shards))
            extract_features(encoder, paths, files, PASS)

    def bare():
        for start in range(0, len(pixels), PASS):
            encoder.encode(pixels[start : start + PASS])

    rates = [(len(paths) / seconds(from_files), len(pixels) / seconds(bare)) for _ in range(TURNS)]
    ratio = statistics.median(ours / ceiling for ours, ceiling in rates)
    ours, ceiling = map(statistics.median, zip(*rates, strict=True))
    workload.report(ours=ours, bare=ceiling, ratio=ratio)


def photos(folder: Path, path: Path, whole: bool) -> None:
    """Seconds a photo by one of the included captioner's files: from pixels, PASS at once.

    Of captions as they are by default if `whole`; else of a greedy search, mostly the CNN's.
    """
    from captioning.images import load_image

    if is_onnx(path):
        from captioning.onnx_captioner import OnnxCaptioner as Captioner  # without TensorFlow
    else:
        cli.load_tensorflow()
        from model import Captioner

    captioner = Captioner.load(path)
    paths, size = workload.photos(folder)[:CAPTIONED_IMAGES], captioner.config.photo_size
    pixels = np.stack([load_image(path, size) for path in paths])

    def run(count: int) -> None:
        for start in range(0, count, PASS):
            batch = pixels[start : start + PASS]
            captioner.decode_photos(batch) if whole else captioner.search(batch, 1, LENGTH_PENALTY)

    run(PASS)  # traced here
    times = [seconds(run, len(pixels)) for _ in range(TURNS)]
    workload.report(seconds=statistics.median(times) / len(pixels))


def model(folder: Path) -> None:
    """Write an untrained captioner of EfficientNet-Lite0: one photo takes as long with it."""
    from captioning.encoders import Encoder

    encoder = Encoder("efficientnet_lite0")
    captioner = workload.captioner(encoder.name, encoder.weights_hash, 1280)
    captioner.save(folder / "lite0_model.h5")
    workload.report()


def seconds(run, *arguments) -> float:
    """How long a call takes."""
    start = time.perf_counter()
    run(*arguments)
    return time.perf_counter() - start


if __name__ == "__main__":
    task, folder = sys.argv[1], Path(sys.argv[2])
    what, _, kind = task.partition("_")
    if what in ("photos", "search"):
        path = cli.INCLUDED.with_suffix(f".{kind}")
        photos(folder, path, whole=what == "photos")
        sys.exit()
    cli.load_tensorflow()
    import keras

    keras.utils.set_random_seed(0)
    if task.startswith("extract_"):
        extract(folder, task.removeprefix("extract_"))
    else:
        {"train": train, "updown": updown, "caption": caption, "model": model}[task](folder)
