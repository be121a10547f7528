"""The repository's own figures: python benchmarks/ours.py TASK FOLDER (see speed.py)."""

import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import workload

from captioning import cli

ROUNDS = 3
PASS = 16  # images per pass of the network, as preprocess.py has it
BARE_IMAGES = {"vgg16": 64, "efficientnet_lite0": 512}
EXTRACTED_IMAGES = {"vgg16": 256, "efficientnet_lite0": workload.PHOTOS}


def captioner_and_batches(folder: Path, batches_class, share: float = 1.0):
    """An untrained captioner of the full size and the training batches."""
    import keras

    from captioning.captions import Vocabulary
    from captioning.networks import CaptionerConfig, build_captioner
    from model import Captioner

    keras.utils.set_random_seed(0)
    vocabulary = Vocabulary(workload.words())
    config = CaptionerConfig(
        feature_size=workload.FEATURE_SIZE,
        vocabulary_size=len(vocabulary),
        max_length=workload.FIRST_LENGTH + len(workload.LENGTHS) - 1,
        encoder="vgg16",
        weights_hash="-",
    )
    batches = batches_class(
        workload.features(folder), workload.captions(share), vocabulary, workload.BATCH_SIZE, 0
    )
    network = build_captioner(config, batches.log_frequencies())
    return Captioner(network, vocabulary, config), batches


def train(folder: Path, batches_class=None, share: float = 1.0) -> None:
    """Two epochs as train.py does them; the second has no tracing in it."""
    import csv

    from captioning.batches import CaptionBatches
    from captioning.training import EpochLog, fit

    captioner, batches = captioner_and_batches(folder, batches_class or CaptionBatches, share)
    path = folder / "caption_model.h5"
    fit(EpochLog(captioner, batches, path, epochs=2, patience=3), None, 1.5e-3, 0.0)
    with path.with_suffix(".csv").open() as file:
        seconds = [float(row["seconds"]) for row in csv.DictReader(file)]
    workload.report(seconds=seconds[-1] / share, first_seconds=seconds[0])


def train_unbucketed(folder: Path) -> None:
    """The same, but every batch is as wide as the longest of 64 captions drawn at random."""
    from captioning.batches import CaptionBatches

    class RandomBatches(CaptionBatches):
        def order(self):
            random = np.random.default_rng((self.seed, self.epoch))
            return random.permutation(len(self.rows)).reshape(-1, self.batch_size)

    train(folder, RandomBatches, share=1 / 3)


def caption(folder: Path) -> None:
    """Captions per second from features, with the network that `train` left."""
    from model import Captioner

    captioner = Captioner.load(folder / "caption_model.h5")
    features = np.array(workload.features(folder)[:1024])
    figures = {}
    for name, batch_size, count, beam_size in (
        ("greedy_1", 1, 128, 1),
        ("greedy_256", 256, 1024, 1),
        ("beam_3", 256, 1024, 3),
    ):

        def run(count=count, batch_size=batch_size, beam_size=beam_size):
            starts = range(0, count, batch_size)
            return [
                sentence
                for start in starts
                for sentence in captioner.caption_features(
                    features[start : start + batch_size], beam_size
                )
            ]

        sentences = run()  # traced here, and the words counted
        figures[name] = count / median_seconds(run)
        figures[f"{name}_words"] = sum(len(s.split()) for s in sentences) / count
    workload.report(**figures)


def extract(folder: Path, name: str) -> None:
    """Images per second: from files to features, and the bare network, turn by turn."""
    from captioning.encoders import Encoder, load_image
    from captioning.features import extract_features, shard_files

    encoder = Encoder(name, "random" if name == "vgg16" else "imagenet")
    paths = workload.photos(folder)[: EXTRACTED_IMAGES[name]]
    pixels = np.stack([load_image(path) for path in paths[: BARE_IMAGES[name]]])
    encoder.encode(pixels[:PASS])  # traced here

    def from_files():
        shards = Path(tempfile.mkdtemp(dir=folder))
        extract_features(encoder, paths, shard_files(encoder, paths, shards), PASS)
        shutil.rmtree(shards)

    def bare():
        for start in range(0, len(pixels), PASS):
            encoder.encode(pixels[start : start + PASS])

    rates = [
        (len(paths) / median_seconds(from_files, 1), len(pixels) / median_seconds(bare, 1))
        for _ in range(ROUNDS)
    ]
    ratio = statistics.median(ours / ceiling for ours, ceiling in rates)
    ours, ceiling = (statistics.median(column) for column in zip(*rates, strict=True))
    workload.report(ours=ours, bare=ceiling, ratio=ratio)


def median_seconds(run, rounds: int = ROUNDS) -> float:
    """The median time of several runs."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


if __name__ == "__main__":
    task, folder = sys.argv[1], Path(sys.argv[2])
    if task.startswith("train"):
        cli.share_one_heap()  # as train.py does
    cli.load_tensorflow()
    if task.startswith("extract_"):
        extract(folder, task.removeprefix("extract_"))
    else:
        {"train": train, "train_unbucketed": train_unbucketed, "caption": caption}[task](folder)
