"""Features of many images, in shards that survive a stopped run.

A shard is a few hundred images, written as one file named by everything its content depends on.
What a stopped run finished is found again by that name and never redone; a shard of another
encoder, other weights, another list of images or changed files has another name.
"""

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

import cli
from encoders import Encoder, try_load_image
from files import atomic_path

SHARD_SIZE = 256  # images; at most so many are done again after a stop


def shard_files(encoder: Encoder, paths: list[Path], work_dir: Path) -> list[Path]:
    """The file of each shard of `SHARD_SIZE` paths; those missing are still to be done."""
    files = []
    for start in range(0, len(paths), SHARD_SIZE):
        digest = hashlib.sha256(f"{encoder.name} {encoder.weights_hash}".encode())
        for path in paths[start : start + SHARD_SIZE]:
            state = path.stat()
            digest.update(f"\0{path.name}\0{state.st_size} {state.st_mtime_ns}".encode())
        files.append(work_dir / f"{digest.hexdigest()}.npz")
    return files


def extract_features(
    encoder: Encoder, paths: list[Path], files: list[Path], batch_size: int
) -> tuple[np.ndarray, list[str]]:
    """Encode every image that no shard file holds yet, and put the shards together.

    Args:
        encoder: the frozen CNN.
        paths: N image files.
        files: their shards' files, from `shard_files`.
        batch_size: images per pass of the network.

    Returns:
        Features (M, feature_size) float32 of the M readable images in order, memory-mapped from a
        file beside the shards, and for each of the N images its error, or "" when it was readable.
    """
    with cli.progress(len(paths), "image", encoder.name) as bar:
        for shard, file in enumerate(files):
            shard_paths = paths[shard * SHARD_SIZE : (shard + 1) * SHARD_SIZE]
            if file.is_file():
                bar.initial += len(shard_paths)  # done earlier: not part of this run's rate
                bar.update(len(shard_paths))
            else:
                _extract_shard(encoder, shard_paths, file, batch_size, bar.update)
    shape = (len(paths), encoder.feature_size)
    target = files[0].parent / "features.npy"
    features = np.lib.format.open_memmap(target, mode="w+", dtype=np.float32, shape=shape)
    errors: list[str] = []
    end = 0
    for file in files:
        with np.load(file) as arrays:
            start, end = end, end + len(arrays["features"])
            features[start:end] = arrays["features"]
            errors += arrays["errors"].tolist()
    return features[:end], errors


def _extract_shard(
    encoder: Encoder, paths: list[Path], file: Path, batch_size: int, done: Callable[[int], object]
) -> None:
    features = [np.empty((0, encoder.feature_size), np.float32)]
    errors, batch = [], []
    with ThreadPoolExecutor() as pool:  # reading and resizing overlap the network
        for pixels, error in pool.map(try_load_image, paths):
            errors.append(error)
            if not error:
                batch.append(pixels)
            if len(batch) == batch_size or (len(errors) == len(paths) and batch):
                features.append(encoder.encode(np.stack(batch)))  # (batch_size, feature_size)
                batch = []
            done(1)
    with atomic_path(file) as path:
        np.savez(path, features=np.concatenate(features), errors=np.array(errors))
