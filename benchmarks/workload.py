"""What the speed measurements work on: captions as long as real ones, features, photos.

Nothing here needs a download: lengths and sizes are Flickr8k's, the content is random, which the
time does not depend on. The same for every contestant.
"""

import json
import resource
import sys
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from captioning.captions import SPECIAL_TOKENS, Vocabulary

IMAGES = 6000  # with five captions each
FEATURE_SIZE = 4096  # VGG16's
VOCABULARY_SIZE = 3490  # of the words seen three times in Flickr8k's training captions
EMBEDDING_SIZE = UNITS = 256
BATCH_SIZE = 64  # captions
# Up-Down: its sizes, on EfficientNet-Lite0's cells.
CELLS, CELL_SIZE = 36, 1904
UPDOWN = {"decoder": "updown", "features": "grid", "units": 512, "merge_units": 512}
UPDOWN_SHARE = 1 / 10  # of the captions, of which an epoch is measured
PHOTOS = 1024
# How many of Flickr8k's 30,000 training captions have 2, 3, 4 … 36 words.
LENGTHS = (15, 126, 346, 862, 1958, 2537, 2929, 3318, 3320, 3131, 2777, 2321, 1848, 1329, 976, 662)
LENGTHS += (513, 365, 204, 136, 110, 74, 52, 33, 20, 11, 7, 9, 4, 3, 1, 2, 0, 0, 1)
FIRST_LENGTH = 2


def vocabulary() -> Vocabulary:
    """One of the size of Flickr8k's."""
    count = VOCABULARY_SIZE - len(SPECIAL_TOKENS)
    return Vocabulary([*SPECIAL_TOKENS, *(f"word{i}" for i in range(count))])


def captioner(encoder: str, weights_hash: str, feature_size: int, **sizes):
    """An untrained captioner of the full size, or of other `sizes`."""
    from model import Captioner, CaptionerConfig, build_decoder

    longest = FIRST_LENGTH + len(LENGTHS) - 1
    config = CaptionerConfig(feature_size, VOCABULARY_SIZE, longest, encoder, weights_hash, **sizes)
    return Captioner(build_decoder(config), vocabulary(), config)


def captions(share: float = 1.0) -> list[tuple[int, str]]:
    """30,000 captions of random words (by Zipf's law) as (image, caption), or a share of them."""
    random = np.random.default_rng(0)
    lengths = np.repeat(np.arange(FIRST_LENGTH, FIRST_LENGTH + len(LENGTHS)), LENGTHS)
    random.shuffle(lengths)
    common = np.array(vocabulary().words[len(SPECIAL_TOKENS) :])
    shares = 1 / np.arange(1, len(common) + 1)
    drawn = random.choice(common, lengths.sum(), p=shares / shares.sum())
    lines = [" ".join(line) for line in np.split(drawn, lengths.cumsum()[:-1])]
    return [(i % IMAGES, line) for i, line in enumerate(lines)][: int(share * len(lines))]


def features(folder: Path) -> np.ndarray:
    """(IMAGES, FEATURE_SIZE) float32, half of them 0 as after a ReLU; memory-mapped."""
    return drawn(folder / "features.npy", (IMAGES, FEATURE_SIZE), np.float32)


def cells(folder: Path) -> np.ndarray:
    """(IMAGES, CELLS, CELL_SIZE) float16, as `features`: a grid's."""
    return drawn(folder / "cells.npy", (IMAGES, CELLS, CELL_SIZE), np.float16)


def drawn(path: Path, shape: tuple[int, ...], dtype) -> np.ndarray:
    """Random numbers of at least 0, made once."""
    if not path.is_file():
        random = np.random.default_rng(1)
        partial = path.with_suffix(".partial")  # a run that is stopped leaves no half of it
        values = np.lib.format.open_memmap(partial, "w+", dtype, shape)
        for row in values:
            row[:] = np.maximum(random.standard_normal(row.shape, np.float32), 0)
        partial.replace(path)
    return np.load(path, mmap_mode="r")


def photos(folder: Path) -> list[Path]:
    """PHOTOS JPEG files of 224 × 224 with a photo's share of detail (about 20 kB each)."""
    paths = [folder / "photos" / f"{i:04d}.jpg" for i in range(PHOTOS)]
    paths[0].parent.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(2)
    for path in paths:
        scene = Image.fromarray(random.integers(0, 256, (14, 14, 3), np.uint8))
        scene = np.asarray(scene.resize((224, 224), Image.Resampling.BICUBIC), np.float32)
        grain = random.normal(0, 6, (224, 224, 1))
        if not path.is_file():
            Image.fromarray(np.clip(scene + grain, 0, 255).astype(np.uint8)).save(path, quality=90)
    return paths


def report(**figures) -> None:
    """Print a process' figures, and its peak memory, for speed.py."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"peak_mb": round(peak), **figures}))
