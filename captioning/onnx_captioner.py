"""The captioner of an .onnx file, which export.py writes: by ONNX Runtime, without TensorFlow.

The file holds the CNN, the decoder and the beam search as one graph (data/README.md). The included
one is known by its hash. Any other may be a stranger's: onnx_check.py looks at it first.
"""

import contextlib
import hashlib
import io
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from captioning.beams import Beams
from captioning.captioner import (
    BaseCaptioner,
    check_beam_size,
    check_neighbours,
    parse_description,
)
from captioning.captions import END, Vocabulary
from captioning.confidence import Calibration
from captioning.config import LIMITS, CaptionerConfig
from captioning.encoders import enlarge
from captioning.files import InputError, is_file, one_line
from captioning.neighbours import TYPES, Neighbours
from captioning.parallel import cores

FORMAT_VERSION = 1  # of inputs, outputs and metadata
# Of models/flickr8k_captioner.onnx: whoever replaces it writes its new one here.
INCLUDED_SHA256 = "602f6e8856a321d766e2257560ff1fa5867711b22b0aba069a9eb99f00fe846d"
MAX_BYTES = 2**30  # of a file; with VGG16 in float32 it has 0.6 GB
BYTES, IDS, FLOATS = "tensor(uint8)", "tensor(int32)", "tensor(float)"  # as ONNX Runtime says
INPUTS = {"pixels": BYTES, "beam_size": IDS, "length_penalty": FLOATS}
FOUND = {"tokens": IDS, "scores": FLOATS, "log_probs": FLOATS}  # outputs
ATTENTION = {"attention": FLOATS}  # one more, where the decoder has it
FEATURES = {"features": FLOATS}
NEIGHBOURS = {  # outputs that are constants, where there are neighbours
    f"neighbours_{name}": FLOATS if kind == "float32" else f"tensor({kind})"
    for name, kind in TYPES.items()
}
SIDES = range(1, LIMITS["photo_size"] + 1)  # of `pixels`
SILENT = 4  # of ONNX Runtime's log levels: what fails is raised as well
ROUNDING = 1e-3  # by which the logarithm of a probability may be above 0


@dataclass(eq=False)
class OnnxCaptioner(BaseCaptioner):
    """Photos in, sentences out, in under a second from the start.

    It has the methods of `model.Captioner` but for those that take features; it cannot be trained.

    >>> OnnxCaptioner.load("models/flickr8k_captioner.onnx").caption("x.jpg")  # doctest: +SKIP
    'a dog runs through the grass'
    """

    session: Any  # an `onnxruntime.InferenceSession`
    vocabulary: Vocabulary
    config: CaptionerConfig
    neighbours: Neighbours | None = None
    calibration: Calibration | None = None

    @classmethod
    def load(cls, path: str | Path, weights: str = "imagenet", threads: int = 0) -> "OnnxCaptioner":
        """Read what export.py wrote; docs/security.md says what a file from elsewhere can do.

        It computes by so many threads; 0 is one for each core that it may use. Raises InputError if
        the file is missing or is no captioner, or if other `weights` of the CNN are asked for than
        those in it.
        """
        name = one_line(path)
        if weights != "imagenet":
            raise InputError(f"{name} has the CNN's weights in it: leave out --weights.")
        if not is_file(path):
            raise InputError(f"{name}: no such model. Write one with export.py, or name yours.")
        if Path(path).stat().st_size > MAX_BYTES:
            raise InputError(f"{name} has more than 1 GB: it is no captioner.")
        content = Path(path).read_bytes()
        known = hashlib.sha256(content).hexdigest() == INCLUDED_SHA256
        try:
            return cls.parse(content, known, threads)
        except (InputError, ValueError, LookupError, TypeError, RecursionError) as error:
            raise InputError(
                f"{name} is not a captioner that export.py wrote ({one_line(error)}). Export one, "
                f"or name another file."
            ) from error

    @classmethod
    def parse(cls, content: bytes, known: bool = False, threads: int = 0) -> "OnnxCaptioner":
        """Of a file's content, which is checked first unless it is `known` to be harmless.

        Raises what `load` makes an InputError of where it is not ours.
        """
        if not known:
            from captioning.onnx_check import check

            content = check(content)
        session = open_session(content, **({"intra_op_num_threads": threads} if threads else {}))
        metadata = session.get_modelmeta().custom_metadata_map
        if metadata.get("format_version") != str(FORMAT_VERSION):
            raise ValueError(f"format {metadata.get('format_version')}, not {FORMAT_VERSION}")
        parts = (json.loads(metadata[name]) for name in ("vocabulary", "config"))
        vocabulary, config = parse_description(*parts)
        check_graph(session, config)
        neighbours = calibration = None
        if "calibration" in metadata:
            calibration = Calibration.parse(json.loads(metadata["calibration"]))
        if NEIGHBOURS.keys() <= types(session.get_outputs()).keys():
            neighbours = Neighbours(*constants(session, [*NEIGHBOURS])).check()
            check_neighbours(neighbours, config)
        return cls(session, vocabulary, config, neighbours, calibration)

    def search(
        self, pixels: np.ndarray, beam_size: int, length_penalty: float
    ) -> tuple[Beams, np.ndarray]:
        check_beam_size(beam_size)
        side = side_of(self.session)
        if side != pixels.shape[1]:
            pixels = np.stack([enlarge(photo, side) for photo in pixels])
        outputs = types(self.session.get_outputs())
        names = [*FOUND, *(ATTENTION.keys() & outputs), *FEATURES]
        *found, features = run(self.session, names, pixels, beam_size, length_penalty)
        beams = Beams(*found)
        check_found(beams, features, (len(pixels), beam_size), self.config)
        return beams, features


def types(values: list) -> dict[str, str]:
    """Of a session's inputs, or outputs, the type of each."""
    return {value.name: value.type for value in values}


def check_graph(session, config: CaptionerConfig) -> None:
    """Raises ValueError if inputs or outputs are not those of the captioner in `config`."""
    outputs, grid = types(session.get_outputs()), config.features == "grid"
    possible = [FOUND | FEATURES, FOUND | FEATURES | ATTENTION][: 1 + grid]
    if types(session.get_inputs()) != INPUTS:
        raise ValueError(f"its inputs are not {', '.join(INPUTS)}")
    if not any(outputs in (known, known | NEIGHBOURS) for known in possible):
        raise ValueError(f"its outputs are not {', '.join(FOUND | FEATURES)}")
    shape, side = session.get_inputs()[0].shape, side_of(session)
    if shape[1:] != [side, side, 3] or side not in SIDES:
        raise ValueError(f"its pixels are {shape}, not (B, S, S, 3), S up to {SIDES[-1]}")


def side_of(session) -> int:
    """The side, in pixels, of the photos that the CNN takes."""
    return session.get_inputs()[0].shape[1]


def check_found(
    beams: Beams, features: np.ndarray, sizes: tuple[int, int], config: CaptionerConfig
) -> None:
    """Raises InputError if a graph, which may say anything, gives other things than captions.

    `sizes` are those of the batch and of the beam.
    """
    shape = *sizes, config.max_length
    shapes = [shape, shape[:2], shape, (*shape, *config.features_shape[:-1])]
    ours = [part.shape for part in beams if part is not None]
    if ours != shapes[: len(ours)] or features.shape != (sizes[0], config.feature_size):
        raise InputError("the .onnx gives arrays of other shapes than captions: export it again.")
    if not np.isfinite(features).all():
        raise InputError("the .onnx gives features that are NaN or infinite: export it again.")
    tokens, first = beams.tokens, beams.tokens[:, 0, 0]
    if (tokens < 0).any() or (tokens >= config.vocabulary_size).any() or (first <= END).any():
        raise InputError("the .onnx says words that it does not have: export it again.")
    if not all((part <= ROUNDING).all() for part in (beams.scores, beams.log_probs)):  # nor NaN
        raise InputError("the .onnx says what is no probability: export it again.")


def constants(session, names: list[str]) -> list[np.ndarray]:
    """Outputs that are the same for all photos."""
    # Of no photo at all, ONNX Runtime 1.20 crashes.
    blank = np.zeros((1, side_of(session), side_of(session), 3), np.uint8)
    return run(session, names, blank, beam_size=1, length_penalty=1)


def load_runtime():
    """ONNX Runtime, which from version 1.29 on would tell its makers how it is used."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # read once, when it is imported
    import onnxruntime

    onnxruntime.disable_telemetry_events()  # on Windows the variable is not read
    return onnxruntime


def open_session(content: bytes, **settings):
    """ONNX Runtime's session, with `settings` of its options; raises InputError if it has none."""
    onnxruntime = load_runtime()
    options = onnxruntime.SessionOptions()
    # The content says what it is: else it could be read in ONNX Runtime's own format as well.
    options.add_session_config_entry("session.load_model_format", "ONNX")
    # Those that this process may use; left to itself, it would bind threads to any core.
    for name, value in (
        {"log_severity_level": SILENT, "intra_op_num_threads": cores()} | settings
    ).items():
        setattr(options, name, value)
    providers = ["CPUExecutionProvider"]
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # where it says that it tries again
            return onnxruntime.InferenceSession(content, options, providers)
    except Exception as error:  # its errors have no other class in common
        raise InputError(f"ONNX Runtime: {one_line(error)}") from error


def run(
    session,
    outputs: list[str],
    pixels: np.ndarray,
    beam_size: int,
    length_penalty: float,
) -> list[np.ndarray]:
    """The named outputs for pixels (B, S, S, 3); raises InputError if that fails."""
    values = pixels, np.array(beam_size, np.int32), np.array(length_penalty, np.float32)
    try:
        return session.run(outputs, dict(zip(INPUTS, values, strict=True)))
    except Exception as error:  # of memory, mostly
        raise InputError(
            f"ONNX Runtime: {one_line(error)}. Take a smaller beam, or fewer photos at once."
        ) from error
