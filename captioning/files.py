"""Reading and writing files so that nothing is half written and every error names its fix."""

import contextlib
import functools
import hashlib
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent  # of the repository
ABANDONED = 3600  # seconds without a change after which a temporary file is a killed run's


class InputError(Exception):
    """What the user gave cannot be used; the message names the file and the fix."""


def is_file(path: str | Path) -> bool:
    """Whether `path` is, or leads to, a regular file: no pipe or device to be waited on."""
    return os.path.isfile(path)  # noqa: PTH113 - Path.is_file raises for names that are too long


def one_line(text: object, limit: int = 300) -> str:
    """A name or message from elsewhere, fit for one line of ours.

    Control characters would break the line or command the terminal, so they are escaped.
    """
    text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(text)[: limit + 1])
    return text if len(text) <= limit else text[:limit] + "…"


def sha256(path: str | Path) -> str:
    """The hash of a file's content, as hexadecimal digits."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; it replaces `path` when the block succeeds.

    A fault inside the block, or a kill at any moment, leaves the old file whole. Where `path` is a
    link, what it leads to is replaced; an old file's permissions stay.

    Raises:
        InputError: the folder cannot be created or written, or the disk is full.
    """
    target = Path(os.path.realpath(path))
    # A short name fits where a long target's does. The suffix stays last: Keras, NumPy and
    # matplotlib choose the format by it.
    temporary = target.with_name(f".partial-{secrets.token_hex(4)}{target.suffix}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(target.parent)
        temporary.open("x").close()
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        if target.exists():
            shutil.copymode(target, temporary)
        temporary.replace(target)
    except OSError as error:
        raise InputError(
            f"cannot write {one_line(path)}: {error.strerror or one_line(error)}. "
            f"Free space, or name another place."
        ) from error
    finally:
        with contextlib.suppress(OSError):  # a folder that cannot be read holds no file of ours
            temporary.unlink(missing_ok=True)


@functools.lru_cache(maxsize=64)  # once for each folder: it may hold a file for each photo
def _remove_abandoned(folder: Path) -> None:
    """Remove what killed runs left in `folder`."""
    for left in folder.glob(".partial-????????*"):
        with contextlib.suppress(OSError):  # gone already, or not ours to remove
            if time.time() - left.stat().st_mtime > ABANDONED:
                left.unlink()


def save_pickle(value: dict, path: str | Path) -> None:
    """Write `value` with joblib, uncompressed, so that its arrays can be memory-mapped."""
    import joblib  # here, for it takes longer than the rest of --help

    with atomic_path(path) as temporary:
        joblib.dump(value, temporary)


def load_pickle(path: Path, fields: dict[str, type]) -> dict:
    """Read a dict that preprocess.py wrote, its arrays memory-mapped read-only.

    Unpickling runs what a file says: these are working files, to be trusted like code. What is
    checked here is that they are whole and of this project.

    Args:
        path: the file.
        fields: the keys that it must have, with the type of each value.

    Raises:
        InputError: the file is missing, or not what preprocess.py writes.
    """
    import joblib

    if not is_file(path):
        raise InputError(f"{path} is missing. Run preprocess.py first, or name its folder.")
    try:
        value = joblib.load(path, mmap_mode="r")
    except Exception as error:  # unpickling can raise anything at all
        raise InputError(
            f"{path} cannot be read ({one_line(error)}). Run preprocess.py again."
        ) from error
    found = value if isinstance(value, dict) else {}
    wrong = [name for name, kind in fields.items() if not isinstance(found.get(name), kind)]
    if wrong:
        raise InputError(
            f"{path} is not what preprocess.py writes ({', '.join(wrong)}). Run it again."
        )
    return value
