"""Reading and writing files so that nothing is half written and every fault names its fix."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import joblib


class InputError(Exception):
    """What the user gave cannot be used; the message names the file and the fix."""


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; it takes `path`'s place when the block succeeds.

    A fault inside the block, or a kill at any moment, leaves the old file whole.

    Raises:
        InputError: the folder cannot be created or written, or the disk is full.
    """
    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # The suffix stays last: Keras and matplotlib choose the format by it.
        handle, name = tempfile.mkstemp(
            suffix=path.suffix, prefix=f".{path.stem}-", dir=path.parent
        )
        os.close(handle)
        temporary = Path(name)
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())  # mkstemp's 0600 would hide the file from colleagues
        temporary.replace(path)
    except OSError as error:
        raise InputError(
            f"cannot write {path}: {error.strerror or error}. Free space, or name another place."
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def save_pickle(value: dict, path: str | Path) -> None:
    """Write `value` with joblib, uncompressed, so that its arrays can be memory-mapped."""
    with atomic_path(path) as temporary:
        joblib.dump(value, temporary)


def load_pickle(path: str | Path, keys: set[str]) -> dict:
    """Read a dict written by `save_pickle`, its arrays memory-mapped read-only.

    Unpickling runs what the file says: these are working files, to be trusted like code.

    Raises:
        InputError: the file is missing, is no such pickle, or lacks one of `keys`.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} is missing. Run preprocess.py first, or name its folder.")
    try:
        value = joblib.load(path, mmap_mode="r")
    except Exception as error:  # unpickling can raise anything at all
        raise InputError(f"{path} cannot be read ({error}). Run preprocess.py again.") from error
    if not isinstance(value, dict) or not keys <= value.keys():
        raise InputError(f"{path} lacks {', '.join(sorted(keys))}. Run preprocess.py again.")
    return value
