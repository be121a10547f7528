"""What the command-line scripts share: how they explain themselves and how they end."""

import argparse
import contextlib
import ctypes
import os
import sys
from collections.abc import Callable
from pathlib import Path

from tqdm import tqdm

from captioning.files import InputError, one_line

LENGTH_PENALTY = 0.8  # default of beam search, chosen on Flickr8k's dev split
DONE, FAILED, INTERRUPTED = 0, 1, 130  # exit codes; argparse itself ends wrong use with 2


class _Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Show every default, and leave the examples in the description as they are written."""

    def _get_help_string(self, action):
        return action.help if action.default in (None, False) else super()._get_help_string(action)


def parser(description: str) -> argparse.ArgumentParser:
    """An argument parser whose `--help` shows the defaults; `description` is the script's own."""
    return argparse.ArgumentParser(description=description, formatter_class=_Formatter)


def positive_int(text: str) -> int:
    """An argparse type: a whole number from 1 up."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not 1 or more")
    return value


def seed(text: str) -> int:
    """An argparse type: a whole number from 0 up, as the random generators take it."""
    value = int(text)
    if not 0 <= value < 2**32:
        raise argparse.ArgumentTypeError(f"{value} is not between 0 and {2**32 - 1}")
    return value


def positive_float(text: str) -> float:
    """An argparse type: a number above 0."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{value} is not above 0")
    return value


def fraction(text: str) -> float:
    """An argparse type: a share, from 0 to below 1."""
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not from 0 to below 1")
    return value


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of which captioner is used, and on which CNN."""
    parser.add_argument(
        "--model_path",
        type=Path,
        metavar="FILE",
        help="an .h5 from train.py (default: see above)",
    )
    parser.add_argument(
        "--weights",
        default="imagenet",
        metavar="imagenet|FILE|random",
        help="the CNN's weights, the same as given to preprocess.py",
    )


def add_decoding_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of beam search."""
    parser.add_argument(
        "--beam_size",
        type=positive_int,
        default=1,
        metavar="K",
        help="hypotheses kept at each step; 1 is greedy decoding, 3 to 5 finds better captions",
    )
    parser.add_argument(
        "--length_penalty",
        type=float,
        default=LENGTH_PENALTY,
        help="of a beam's final ranking, by log-probability / length ** penalty: 0 favours short "
        "captions, 1 long ones",
    )


def say(message: str) -> None:
    """Print to stderr: stdout is for what other programs read."""
    lines = message.split("\n")  # file names in them may hold what commands a terminal
    print(*[one_line(line, 2000) for line in lines], sep="\n", file=sys.stderr, flush=True)


def progress(total: int, unit: str, title: str | None = None, leave: bool = True) -> tqdm:
    """A tqdm bar with rate and remaining time; without a terminal, a plain line now and then."""
    if sys.stderr.isatty():
        return tqdm(total=total, unit=unit, desc=title, leave=leave, dynamic_ncols=True)
    plain = "{desc}: {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}]\n"
    pause = {"mininterval": 30, "delay": 30}  # seconds; short work shows no line at all
    return tqdm(total=total, unit=unit, desc=title or unit, bar_format=plain, **pause)


def load_tensorflow() -> None:
    """Import TensorFlow without its start-up notes, which no setting of its own silences."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.stderr.flush()
    stderr = os.dup(2)
    try:
        with open(os.devnull, "w") as nowhere:  # noqa: PTH123 - a device, not a path of ours
            os.dup2(nowhere.fileno(), 2)  # the notes come from C++, below sys.stderr
        import tensorflow  # noqa: F401
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)


def share_one_heap() -> None:
    """Keep glibc from giving every thread a heap of its own; to be called before TensorFlow starts.

    What one thread frees the others cannot use: training would take 0.1 GB more, and be no faster.
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL("libc.so.6").mallopt(-8, 1)  # M_ARENA_MAX


def run(main: Callable[[], int | None], go_on: str = "") -> None:
    """Run a script's `main` and exit.

    Codes: 0 done, 1 nothing could be done or a fault, 2 wrong use, 130 stopped by Ctrl-C, when
    `go_on` tells how to take up the work again.
    """
    for stream in (sys.stdout, sys.stderr):  # file names may be in any encoding
        stream.reconfigure(encoding="utf-8", errors="surrogateescape")
    try:
        code = main() or DONE
        sys.stdout.flush()
    except InputError as error:
        code = FAILED
        say(f"error: {error}")
    except KeyboardInterrupt:
        code = INTERRUPTED
        say(f"stopped. {go_on}".rstrip())
    except BrokenPipeError:  # `| head` closed our stdout: nobody is left to be told
        code = FAILED
    except OSError as error:  # a full disk behind stdout, a folder that may not be read
        code = FAILED
        say(f"error: {error}")
    if code == FAILED:  # what stdout still holds would fail again, with a traceback
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)
