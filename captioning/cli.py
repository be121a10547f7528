"""What the command-line scripts share: how they explain themselves and how they end."""

import argparse
import contextlib
import ctypes
import faulthandler
import importlib.util
import logging
import math
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

from tqdm import tqdm

from captioning.captions import LENGTH_PENALTY, MAX_BEAM_SIZE
from captioning.files import ROOT, InputError, check_h5, check_writable, one_line

TRAINED = Path("models/caption_model.h5")  # train.py's default
INCLUDED = ROOT / "models" / "flickr8k_captioner.onnx"  # what captions photos
INCLUDED_H5 = INCLUDED.with_suffix(".h5")  # the same, for what needs TensorFlow anyway
# Those of model.DECODERS, for --help, which does not import TensorFlow.
DECODER_NAMES = ("merge", "updown")
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".pdf", ".svg", ".webp")
PRECISIONS = ("float32", "bfloat16")
ONEDNN_MODE = "TF_SET_ONEDNN_FPMATH_MODE"  # the environment's name for it
CPU_INFO = Path("/proc/cpuinfo")
BFLOAT16_FLAGS = {"amx_bf16", "avx512_bf16"}  # on others oneDNN computes in float32
# Of glibc's malloc.h. One heap, from which all buffers come and which is never given back: a
# training step's would be, after each, and the system would clear their pages before the next.
MALLOC = ((-8, 1), (-4, 0), (-1, -1))  # M_ARENA_MAX, M_MMAP_MAX, M_TRIM_THRESHOLD (-1: never)
DONE, FAILED, INTERRUPTED = 0, 1, 130  # exit codes; argparse itself ends wrong use with 2


REPLACED = """\
What a script computes is replaced: pickles, results, pictures, histories. What may have been edited
or cannot be had again is not, unless --overwrite is given: trained models, files of captions."""


class _Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Show every default, and leave the examples in the description as they are written."""

    def _get_help_string(self, action):
        hidden = action.default is None or action.default is False  # 0 is shown
        return action.help if hidden else super()._get_help_string(action)


def parser(description: str) -> argparse.ArgumentParser:
    """An argument parser whose `--help` shows the defaults; `description` is the script's own."""
    return argparse.ArgumentParser(
        description=description, epilog=REPLACED, formatter_class=_Formatter
    )


def number(kind: type, allowed: Callable[[float], bool], wanted: str) -> Callable[[str], float]:
    """An argparse type: an int or a float of a range, which `wanted` names in the error."""

    def parse(text: str) -> float:
        value = kind(text)
        if not allowed(value):
            raise argparse.ArgumentTypeError(f"{text} is not {wanted}")
        return value

    parse.__name__ = kind.__name__  # in argparse's "invalid int value"
    return parse


positive_int = number(int, lambda value: value >= 1, "1 or more")
seed = number(int, lambda value: 0 <= value < 2**32, f"between 0 and {2**32 - 1}")
positive_float = number(float, lambda value: 0 < value < float("inf"), "above 0")
beam_size = number(int, lambda value: 1 <= value <= MAX_BEAM_SIZE, f"from 1 to {MAX_BEAM_SIZE}")
fraction = number(float, lambda value: 0 <= value < 1, "from 0 to below 1")
finite_number = number(float, math.isfinite, "a finite number")


def picture(text: str) -> Path:
    """An argparse type: a file to draw to, its suffix one of `PICTURE_SUFFIXES`."""
    path = Path(text)
    if path.suffix.lower() not in PICTURE_SUFFIXES:
        names = ", ".join(PICTURE_SUFFIXES)
        raise argparse.ArgumentTypeError(f"{text} is not a picture's name: it must end in {names}")
    return path


def add_model_option(parser: argparse.ArgumentParser, included: Path = INCLUDED) -> None:
    """Add the option of which captioner is used; without it, `default_model(included)` chooses."""
    either = included == INCLUDED
    why = f"a captioner, {'.onnx or .h5' if either else '.h5'} (default: {TRAINED}"
    why += f"{', or .onnx,' if either else ''} where it exists, otherwise the included one)"
    parser.add_argument("--model_path", type=Path, metavar="FILE", help=why)


def add_weights_option(parser: argparse.ArgumentParser) -> None:
    """Add the option of the CNN's weights."""
    why = "the CNN's: imagenet (which Keras downloads once; EfficientNet-Lite's are included), "
    why += "the file that it downloads, or random (tests only); in captioning as in preprocess.py. "
    why += "An .onnx has its own"
    parser.add_argument("--weights", default="imagenet", metavar="imagenet|FILE|random", help=why)


def add_overwrite_option(parser) -> None:
    """Add what allows to replace what cannot be had again, or may have been edited."""
    parser.add_argument("--overwrite", action="store_true", help="replace what is there already")


def add_training_options(
    parser: argparse.ArgumentParser, epochs: int, batch_size: int, learning_rate: float, batch: str
) -> None:
    """Add what train.py and finetune.py share: defaults of one, and what its `batch` is made of."""
    add = parser.add_argument
    add("--data_dir", type=Path, default="data", help="where the two pickles are")
    add("--epochs", type=positive_int, default=epochs, help="passes over the data, at most")
    add("--batch_size", type=positive_int, default=batch_size, help=batch)
    why = "Adam's step size at the start; it falls to 0 over the epochs, along half a cosine"
    add("--learning_rate", type=positive_float, default=learning_rate, help=why)
    why = "share, times the step size, that a step takes from each weight of a matrix"
    add("--weight_decay", type=fraction, default=0.0, help=why)
    why = "stop after so many epochs without a better dev loss, or CIDEr; not with --keep last"
    add("--patience", type=positive_int, default=3, help=why)
    why = "what MODEL_PATH ends with: the best epoch on dev, or the last, whose captions are often "
    why += "better"
    add("--keep", choices=("best", "last"), default="best", help=why)
    add("--seed", type=seed, default=0, help="of everything random")
    again = parser.add_mutually_exclusive_group()
    why = "continue after the last finished epoch"
    again.add_argument("--resume", action="store_true", help=why)
    add_overwrite_option(again)
    add("--tensorboard", type=Path, metavar="DIR", help="figures for: tensorboard --logdir DIR")


def check_model_path(path: Path, replace: bool) -> None:
    """Raises InputError if `path` is not named .h5, cannot be written, or must not be replaced."""
    if path.suffix != ".h5":
        raise InputError(f"--model_path {path}: its name must end in .h5")
    check_writable(path)
    if path.exists() and not replace:
        raise InputError(
            f"{path} is there already. Give --overwrite, or name another --model_path."
        )


def check_training(args: argparse.Namespace, start: Path | None) -> None:
    """Raises InputError where a training, from the model `start` if any, cannot write its files."""
    if start is not None:
        check_h5(start)
    check_model_path(args.model_path, args.overwrite or args.resume)
    check_writable(args.model_path.with_suffix(".checkpoint.npz"))  # the longest of its names
    if start is not None and start.resolve() == args.model_path.resolve():
        raise InputError(f"{start} would be overwritten: name another file by --model_path.")
    if folder := args.tensorboard:
        need("--tensorboard", "tensorboard", "tensorboard")
        check_writable(folder / "events")


def add_decoding_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of beam search."""
    add = parser.add_argument
    why = "hypotheses kept at each step; 1 is greedy decoding, more find better captions "
    why += "(default: 10 where the captioner has neighbours to choose by, else 1)"
    add("--beam_size", type=beam_size, metavar="K", help=why)
    why = "ranks a beam by log-probability / length ** penalty: 0 favours short captions, 1 long"
    add("--length_penalty", type=finite_number, default=LENGTH_PENALTY, help=why)
    why = "keep a beam's order by probability where the captioner has neighbours; no confidence"
    add("--no_neighbours", action="store_true", help=why)


def default_model(included: Path = INCLUDED) -> Path:
    """The user's own model where there is one, otherwise the included one; says which.

    It is an .h5, or where the included one is an .onnx it may be one as well.
    """
    own = (TRAINED, TRAINED.with_suffix(included.suffix))
    path = next(filter(Path.is_file, own), included)
    log(f"captions by {path}{' (included)' if path == included else ''}")
    return path


def need(purpose: str, requirements: str, *packages: str) -> None:
    """Raises InputError, with the command that mends it, if one of the packages is missing."""
    if missing := [name for name in packages if importlib.util.find_spec(name) is None]:
        names = " and ".join(missing)
        raise InputError(f"{purpose} needs {names}: pip install {requirements}")


def log(message: str) -> None:
    """Print to stderr: stdout is for what other programs read."""
    lines = message.split("\n")  # file names in them may hold escape sequences
    print(*[one_line(line, 2000) for line in lines], sep="\n", file=sys.stderr, flush=True)


def progress(total: int, unit: str, title: str | None = None, leave: bool = True) -> tqdm:
    """A tqdm bar with rate and remaining time; without a terminal, a plain line now and then."""
    options = {"total": total, "unit": unit, "unit_scale": unit == "B"}
    if sys.stderr.isatty():
        return tqdm(desc=title, leave=leave, dynamic_ncols=True, **options)
    plain = "{desc}: {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}]\n"
    # Seconds; short work shows no line at all.
    return tqdm(desc=title or unit, bar_format=plain, mininterval=30, delay=30, **options)


def load_tensorflow(precision: str = PRECISIONS[0]) -> None:
    """Import TensorFlow and Keras, as this repository needs them: another project's settings go.

    `precision` is one of `PRECISIONS`: with bfloat16 oneDNN rounds what it multiplies, in products
    and convolutions, and adds up in float32. Raises InputError where the processor has none.

    TensorFlow's start-up notes, which no setting of its own silences, show if the import fails. On
    Linux freed memory is kept for the next buffers (`MALLOC`), which makes training faster.
    """
    with contextlib.suppress(OSError, TypeError, AttributeError):  # another system's C library
        for option, value in MALLOC:
            ctypes.CDLL(None).mallopt(option, value)
    mode = None
    if precision == "bfloat16":
        check_bfloat16()
        mode = "BF16"
    if "tensorflow" in sys.modules and os.environ.get(ONEDNN_MODE) != mode:
        # A worker's earlier task, say: the mode is read once, at the first product.
        raise InputError(
            f"TensorFlow was loaded with another --precision: not {precision} as well. "
            "Restart the program, or the Dask workers."
        )
    os.environ.pop(ONEDNN_MODE, None)
    if mode:
        os.environ[ONEDNN_MODE] = mode
    os.environ["KERAS_BACKEND"] = "tensorflow"
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with contextlib.nullcontext() if "tensorflow" in sys.modules else _kept_stderr():
        import tensorflow  # noqa: F401
    import keras

    keras.config.set_floatx("float32")
    keras.config.set_dtype_policy("float32")
    keras.config.set_image_data_format("channels_last")
    # Keras calls HDF5 "legacy" at every save; here it is the format asked for.
    logging.getLogger("absl").setLevel(logging.ERROR)


def check_bfloat16() -> None:
    """Raises InputError unless the processor is known to multiply bfloat16."""
    known: set[str] = set()
    with contextlib.suppress(OSError):  # no Linux
        known = {*CPU_INFO.read_text().split()}
    if not known & BFLOAT16_FLAGS:
        raise InputError(
            f"--precision bfloat16: this processor has none of {', '.join(sorted(BFLOAT16_FLAGS))} "
            f"in {CPU_INFO}: leave the option out."
        )


@contextlib.contextmanager
def _kept_stderr() -> Iterator[None]:
    """Keep back what is written to stderr, also by C++, below sys.stderr; show it on a failure."""
    try:
        stderr = os.dup(2)
    except OSError:  # closed
        yield
        return
    faulthandler.enable(stderr)  # a crash is shown all the same
    failed = True
    with tempfile.TemporaryFile() as notes:
        os.dup2(notes.fileno(), 2)
        try:
            yield
            failed = False
        finally:
            os.dup2(stderr, 2)
            faulthandler.enable(2)
            os.close(stderr)
            if failed:
                notes.seek(0)
                os.write(2, notes.read())


def run(main: Callable[[], None], resume: str = "") -> None:
    """Run a script's `main` and exit; `resume` tells how to continue after Ctrl-C."""
    warnings.filterwarnings("ignore", module="PIL")  # of photos that it can read
    if sys.stderr is None:  # no console, or closed
        sys.stderr = open(os.devnull, "w")  # noqa: PTH123, SIM115 - to the end of the process
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # not in a notebook
            stream.reconfigure(encoding="utf-8", errors="surrogateescape")  # of names of files
    code = FAILED
    try:
        main()
        if sys.stdout is not None:
            sys.stdout.flush()
        code = DONE
    except KeyboardInterrupt:
        code = INTERRUPTED
        log(f"stopped. {resume}".rstrip())
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if not package or importlib.util.find_spec(package) is not None:
            raise  # it is there, but not as it should be
        log(f"error: {Path(sys.argv[0]).name} needs {package}: pip install -r requirements.txt")
    except BrokenPipeError:  # the reader closed our stdout, as `| head` does
        pass
    except (InputError, OSError) as error:  # OSError: a full disk, a folder that may not be read
        log(f"error: {error}")
    if code == FAILED and sys.stdout is sys.__stdout__ is not None:
        try:
            sys.stdout.flush()
        except OSError:  # at the end Python would flush it again, with a traceback
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)
