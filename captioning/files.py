"""Reading and writing files so that nothing is half written and every error names its fix."""

import contextlib
import functools
import hashlib
import os
import secrets
import shutil
import tempfile
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


def is_onnx(path: str | Path) -> bool:
    """Whether a captioner's file is an .onnx, by its name; otherwise it is an .h5."""
    return Path(path).suffix.lower() == ".onnx"


def check_h5(path: str | Path) -> None:
    """Raises InputError if a captioner's file is an .onnx, where more than captions is needed."""
    if is_onnx(path):
        name = one_line(path)
        raise InputError(f"{name} only captions photos: name the .h5 that it was made from.")


def one_line(text: object, limit: int = 300) -> str:
    """Text from elsewhere, escaped: it might break the line or control the terminal."""
    text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(text)[: limit + 1])
    return text if len(text) <= limit else text[:limit] + "…"


def sha256(path: str | Path) -> str:
    """The hash of a file's content, as hexadecimal digits."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; it replaces `path` when the block succeeds.

    A fault or a kill leaves the old file whole. Where `path` is a link, what it leads to is
    replaced; an old file's permissions stay. Raises InputError if the folder cannot be created or
    written, or the disk is full.
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
        raise _cannot_write(path, error) from error
    finally:
        with contextlib.suppress(OSError):  # a folder that cannot be read holds no file of ours
            temporary.unlink(missing_ok=True)


@functools.lru_cache(maxsize=64)  # once for each folder: it may hold a file for each photo
def _remove_abandoned(folder: Path) -> None:
    for left in folder.glob(".partial-????????*"):
        with contextlib.suppress(OSError):  # gone already, or not ours to remove
            if time.time() - left.stat().st_mtime > ABANDONED:
                left.unlink()


def check_writable(path: str | Path) -> None:
    """Raises InputError if `atomic_path` could not write there: known before the work is done."""
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise InputError(f"{one_line(path)} is a folder: name a file.")
    try:
        with contextlib.suppress(FileNotFoundError):
            target.lstat()  # fails if the name is too long
        # Its folder may be made later, in the nearest one that there is.
        with tempfile.TemporaryFile(dir=next(p for p in target.parents if p.exists())):
            pass
    except OSError as error:
        raise _cannot_write(path, error) from error


def _cannot_write(path: str | Path, error: OSError) -> InputError:
    return InputError(
        f"cannot write {one_line(path)}: {error.strerror or one_line(error)}. "
        f"Free space, or name another place."
    )


def save_pickle(value: dict, path: str | Path) -> None:
    """Write `value` with joblib, uncompressed, so that its arrays can be memory-mapped."""
    import joblib  # here, for it takes longer than the rest of --help

    with atomic_path(path) as temporary:
        joblib.dump(value, temporary)


def load_pickle(path: Path, fields: dict[str, type]) -> dict:
    """Read a dict that preprocess.py wrote, its arrays memory-mapped read-only.

    Unpickling runs what a file says: trust these working files like code. Raises InputError if the
    file is missing or broken, or lacks one of `fields` in the right type.
    """
    import joblib

    if not is_file(path):
        raise InputError(f"{path} is missing. Run preprocess.py first, or name its folder.")
    try:
        value = joblib.load(path, mmap_mode="r")
    except Exception as error:  # unpickling can raise anything at all
        reason = one_line(error)
        raise InputError(f"{path} cannot be read ({reason}). Run preprocess.py again.") from error
    found = value if isinstance(value, dict) else {}
    wrong = ", ".join(n for n, kind in fields.items() if not isinstance(found.get(n), kind))
    if wrong:
        raise InputError(f"{path} is not what preprocess.py writes ({wrong}). Run it again.")
    return value
