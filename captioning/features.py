"""Features of many images, in shards that survive a stopped run.

A shard is a few hundred images, written as one file named by everything its content depends on:
encoder, weights, the bytes of the images. What a stopped run finished is found again by that name.
A batch never crosses shards, so it does not matter which process or machine makes a shard.
"""

import contextlib
import functools
import hashlib
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from captioning import cli
from captioning.encoders import GRID_CELLS, Encoder
from captioning.files import InputError, atomic_path, load_pickle, one_line, sha256
from captioning.images import READING, try_load_image
from captioning.parallel import everywhere, limit_threads, run_tasks, threads_each, useful_jobs

SHARD_SIZE = 256  # images; at most so many are done again after a stop, by each process
MIN_VARIANCE = 0.1  # of one float of the features, as a share of the floats' mean variance


def hash_files(paths: list[Path]) -> list[str]:
    """The SHA-256 of each file; of one that cannot be read its name, which is no hash."""

    def content(path: Path) -> str:
        try:
            return sha256(path)
        except OSError:
            return f"unread {path}"

    with ThreadPoolExecutor() as pool:
        return list(pool.map(content, paths))


def shard_files(encoder: Encoder, hashes: list[str], work_dir: Path) -> list[Path]:
    """The file of each shard of `SHARD_SIZE` images, by the hashes of theirs."""
    made_by = (encoder.name, encoder.weights_hash, encoder.kind, encoder.precision)
    made_by += (str(encoder.photo_size), str(READING), str(encoder.features_shape))
    files = []
    for start in range(0, len(hashes), SHARD_SIZE):
        parts = "\0".join([*made_by, *hashes[start : start + SHARD_SIZE]])
        digest = hashlib.sha256(parts.encode(errors="surrogateescape")).hexdigest()
        files.append(work_dir / f"{digest}.npz")
    return files


def extract_features(
    encoder: Encoder,
    paths: list[Path],
    files: list[Path],
    batch_size: int,
    n_jobs: int = 1,
    dask: str | None = None,
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Encode every image that no shard file holds yet, and put the shards together.

    `files` are those of `shard_files`. The work is done by `n_jobs` processes, or by the workers of
    the Dask scheduler at the address `dask`. Returns features (M, *encoder.features_shape) of the M
    readable images in order, memory-mapped from a file beside the shards, hashes of their pixels
    (M,) uint64, and every image's error, or "" when it was readable. Raises InputError if a shard
    cannot be written, or the cluster cannot do its work.
    """
    shards_paths = [paths[i : i + SHARD_SIZE] for i in range(0, len(paths), SHARD_SIZE)]
    each = zip(files, shards_paths, strict=True)
    missing = {file: of_shard for file, of_shard in each if not _is_done(file, of_shard)}
    n_jobs = useful_jobs(n_jobs, len(missing))
    with cli.progress(len(paths), "image", encoder.name) as bar:
        bar.initial = len(paths) - sum(map(len, missing.values()))  # not part of this run's rate
        bar.update(bar.initial)
        parallel = dask is not None or n_jobs > 1
        if parallel:
            shards = parallel_shards(encoder, missing, batch_size, n_jobs, dask)
        else:
            shards = (
                (file, *encode_shard(encoder, shard_paths, batch_size, bar.update))
                for file, shard_paths in missing.items()
            )
        for file, features, hashes, errors in shards:
            with atomic_path(file) as path:
                np.savez(path, features=features, hashes=hashes, errors=np.array(errors))
            if parallel:
                bar.update(len(errors))
    return put_together(files, encoder)


def put_together(files: list[Path], encoder: Encoder) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """All shards' features (M, *features_shape), mapped from one file, hashes and errors."""
    errors = [error for file in files for error in _read_shard(file, "errors").tolist()]
    hashes = np.concatenate([_read_shard(file, "hashes") for file in files])
    shape = (errors.count(""), *encoder.features_shape)
    blocks = (_read_shard(file, "features") for file in files)
    array = _write_array(files[0].parent / "features.npy", shape, encoder.dtype, blocks)
    return array, hashes, errors


def _is_done(file: Path, paths: list[Path]) -> bool:
    """Whether a shard is there, and whatever could not be read for it still cannot."""
    if not file.is_file():
        return False
    errors = _read_shard(file, "errors")
    return not any(e and not try_load_image(p)[1] for e, p in zip(errors, paths, strict=True))


def merge(target: Path, parts: list[np.ndarray], rows: list[tuple[int, int]]) -> np.ndarray:
    """An array, mapped from `target`, of rows that are named by a part and a place in it."""
    shape, dtype = (len(rows), *parts[0].shape[1:]), parts[0].dtype
    return _write_array(target, shape, dtype, (parts[part][row] for part, row in rows))


def _write_array(target: Path, shape: tuple, dtype: np.dtype, blocks: Iterable) -> np.ndarray:
    """An array that does not fit into memory, from its rows in order; mapped from `target`."""
    header = {"shape": shape, "fortran_order": False, "descr": dtype.str}
    # Written, not mapped: on a full disk a write fails with a message, a mapped page with a signal.
    with atomic_path(target) as path, path.open("wb") as out:
        np.lib.format.write_array_header_1_0(out, header)
        for block in blocks:
            out.write(np.ascontiguousarray(block).data)
    return np.load(target, mmap_mode="r")


def remove_shards(folder: Path) -> None:
    """Remove what `extract_features` wrote, and the folder where nothing else is in it."""
    arrays = [folder / "features.npy", folder / "merged.npy"]
    for path in [*folder.glob("[0-9a-f]" * 64 + ".npz"), *arrays]:
        path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        folder.rmdir()


def _read_shard(file: Path, name: str) -> np.ndarray:
    try:
        with np.load(file) as arrays:
            return arrays[name]
    except (ValueError, KeyError, EOFError, zlib.error, zipfile.BadZipFile) as error:
        fix = "Remove it and give the same command again."
        raise InputError(f"{file} is damaged ({one_line(error)}). {fix}") from error


def encode_shard(
    encoder: Encoder, paths: list[Path], batch_size: int, done: Callable = lambda count: None
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Of the M readable images features (M, *features_shape) and hashes of pixels (M,), all errors.

    An image that is readable has the error "". Raises InputError where features are not finite.
    """
    features = [np.empty((0, *encoder.features_shape), encoder.dtype)]
    errors, hashes, batch = [], [], []

    def load(path: Path) -> tuple[np.ndarray | None, int, str]:
        pixels, error = try_load_image(path, size=encoder.photo_size)
        digest = b"" if error else hashlib.sha256(pixels).digest()
        return pixels, int.from_bytes(digest[:8]), error

    with ThreadPoolExecutor() as pool:  # reading, resizing and hashing overlap the network
        for pixels, pixels_hash, error in pool.map(load, paths):
            errors.append(error)
            if not error:
                batch.append(pixels)
                hashes.append(pixels_hash)
            if len(batch) == batch_size or (len(errors) == len(paths) and batch):
                features.append(finite(encoder.encode(np.stack(batch))))  # (batch_size, …)
                batch = []
            done(1)
    return np.concatenate(features), np.array(hashes, np.uint64), errors


def parallel_shards(
    encoder: Encoder, shards: dict[Path, list[Path]], batch_size: int, n_jobs: int, dask: str | None
) -> Iterator[tuple[Path, np.ndarray, np.ndarray, list[str]]]:
    """Shards as they are finished, as `encode_shard` gives them: by processes, or by a cluster.

    Only the images' paths go out and features come back: every worker needs the repository, the
    images under the same paths, and the encoder's weights. Raises InputError if no cluster answers,
    or its workers lack something or keep dying.
    """
    threads = threads_each(n_jobs, dask)
    weights = everywhere(encoder.weights)
    same = (encoder.name, weights, encoder.kind, encoder.photo_size, encoder.precision)
    same += (encoder.weights_hash, threads)
    tasks = [
        (file, [path.absolute() for path in paths], same, batch_size)
        for file, paths in shards.items()
    ]
    for file, features, hashes, errors in run_tasks(_worker_shard, tasks, n_jobs, dask):
        named = zip(shards[file], errors, strict=True)  # as one process would name them
        errors = [e.replace(str(p.absolute()), str(p), 1) for p, e in named]
        yield file, features, hashes, errors


def _worker_shard(file: Path, paths: list[Path], encoder: tuple, batch_size: int) -> tuple:
    """A shard in a worker process, which builds its encoder once."""
    return file, *encode_shard(_worker_encoder(*encoder), paths, batch_size)


@functools.lru_cache(maxsize=1)
def _worker_encoder(
    name: str,
    weights: str,
    kind: str,
    photo_size: int,
    precision: str,
    weights_hash: str,
    threads: int,
) -> Encoder:
    cli.load_tensorflow(precision)
    limit_threads(threads)
    encoder = Encoder(name, weights, kind, photo_size, precision)
    if encoder.weights_hash != weights_hash:
        raise InputError(f"a worker has other weights of {name}: give all machines the same file.")
    return encoder


def all_photos(parts: list[np.ndarray | None]) -> np.ndarray | None:
    """The hashes of several lists of photos, each once, (N,) uint64; None where a list is."""
    unknown = any(part is None for part in parts)
    return None if unknown else np.unique(np.concatenate(parts))


def trained_on(photos: np.ndarray | None, features: dict, pairs: list) -> set[int]:
    """The rows among (row, caption) pairs whose photos are among a captioner's training `photos`.

    `features` is the content of features.pkl, `photos` (N,) uint64, None where they are not known.
    """
    if photos is None:
        return set()
    rows = np.unique([row for row, _ in pairs])
    return set(rows[np.isin(features["photos"][rows], photos)].tolist())


def finite(features: np.ndarray) -> np.ndarray:
    """The same features, as an array; raises InputError if one is NaN or infinite."""
    features = np.asarray(features)
    if not np.isfinite(features).all():
        raise InputError(
            "features that are NaN or infinite: features.pkl is damaged, or the CNN's weights are. "
            "Run preprocess.py again, with other --weights if it says the same."
        )
    return features


def floored(variance: np.ndarray) -> np.ndarray:
    """Each float's variance (F,), raised to a share of their mean where it is less.

    It caps the scaling of near-constant features: they say little about these photos.
    """
    return np.maximum(variance, MIN_VARIANCE * variance.mean())


def load_features(folder: Path) -> dict:
    """The fields of features.pkl, as in data/README.md; raises InputError if they are not so."""
    path = folder / "features.pkl"
    texts = dict.fromkeys(("kind", "encoder", "weights_hash", "fingerprint"), str)
    fields = {"features": np.ndarray, "image_ids": list, "unreadable": dict}
    fields |= {"files": list, "reading": int, "photo_size": int, "photos": np.ndarray}
    content = load_pickle(path, fields | texts)
    array, image_ids = content["features"], content["image_ids"]
    # Of each image a vector, or a grid's cells, of which there were more once.
    dtype = {(): np.float32, (GRID_CELLS,): np.float16}.get(array.shape[1:-1])
    if array.ndim < 2 or array.dtype != dtype:
        raise InputError(f"{path} is not what preprocess.py writes (features). Run it again.")
    if len(image_ids) != len(array):
        counts = f"{len(array)} features of {len(image_ids)} images"
        raise InputError(f"{path} has {counts}. Run preprocess.py again.")
    return content
