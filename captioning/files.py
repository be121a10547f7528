"""Reading and writing files so that nothing is half written and every fault names its fix."""

import contextlib
import functools
import glob
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent  # of the repository
ABANDONED = 3600  # seconds without a change, after which a temporary file is a killed run's


class InputError(Exception):
    """What the user gave cannot be used; the message names the file and the fix."""


def is_file(path: str | Path) -> bool:
    """Whether `path` is, or leads to, a regular file: no pipe or device that would be waited on."""
    return os.path.isfile(path)  # noqa: PTH113 - Path.is_file raises for names that are too long


def one_line(text: object, limit: int = 300) -> str:
    """A name or message from elsewhere, fit for a line of ours.

    Control characters would break the line or command the terminal; they are escaped.
    """
    text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(text)[: limit + 1])
    return text if len(text) <= limit else text[:limit] + "…"


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
        prefix, suffix = f".{path.stem}-", f".partial{path.suffix}"
        _sweep(path.parent, suffix, time.time() // ABANDONED)
        handle, name = tempfile.mkstemp(suffix=suffix, prefix=prefix, dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())  # mkstemp's 0600 would hide the file from colleagues
        temporary.replace(path)
    except OSError as error:
        raise InputError(
            f"cannot write {one_line(path)}: {error.strerror or one_line(error)}. "
            f"Free space, or name another place."
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


@functools.lru_cache(maxsize=16)  # once an hour: who writes many files would search for each
def _sweep(folder: Path, suffix: str, hour: float) -> None:
    """Remove what killed runs left in `folder`."""
    for left in folder.glob(f".*-????????{glob.escape(suffix)}"):
        with contextlib.suppress(FileNotFoundError):  # another process was faster
            if time.time() - left.stat().st_mtime > ABANDONED:
                left.unlink()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
