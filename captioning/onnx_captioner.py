"""The captioner of an .onnx file, which export.py writes: by ONNX Runtime, without TensorFlow.

The file holds the CNN, the decoder and the beam search as one graph (data/README.md). The included
one is known by its hash. Any other may be a stranger's: `onnx_file.check` looks at it first.
"""

import contextlib
import hashlib
import io
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from captioning import cli
from captioning.beams import Beams
from captioning.captioner import BaseCaptioner, described
from captioning.captions import Vocabulary
from captioning.confidence import Calibration
from captioning.config import LIMITS, CaptionerConfig
from captioning.encoders import enlarge
from captioning.features import finite
from captioning.files import InputError, is_file, one_line
from captioning.neighbours import TYPES, Neighbours

try:
    import onnxruntime
except ImportError as error:
    raise InputError("an .onnx needs onnxruntime: pip install onnxruntime") from error

FORMAT_VERSION = 1  # of inputs, outputs and metadata
# Of cli.INCLUDED.
INCLUDED_SHA256 = "602f6e8856a321d766e2257560ff1fa5867711b22b0aba069a9eb99f00fe846d"
MAX_BYTES = 2**31  # of a file, as of any protobuf message
BYTES, IDS, FLOATS = "tensor(uint8)", "tensor(int32)", "tensor(float)"  # as ONNX Runtime says
INPUTS = {"pixels": BYTES, "beam_size": IDS, "length_penalty": FLOATS}
OUTPUTS = {"tokens": IDS, "scores": FLOATS, "log_probs": FLOATS, "features": FLOATS}
ATTENTION = {"attention": FLOATS}  # an output where the decoder has it
NEIGHBOURS = [f"neighbours_{name}" for name in TYPES]  # outputs that are constants, if any
SIDES = range(1, LIMITS["photo_size"] + 1)  # of `pixels`
SILENT = 4  # of ONNX Runtime's log levels: what fails is raised as well


@dataclass(eq=False)
class OnnxCaptioner(BaseCaptioner):
    """Photos in, sentences out, in under a second from the start.

    It has the methods of `model.Captioner` but for those that take features; it cannot be trained.

    >>> OnnxCaptioner.load("models/flickr8k_captioner.onnx").caption("x.jpg")  # doctest: +SKIP
    'a dog runs through the grass'
    """

    session: onnxruntime.InferenceSession
    vocabulary: Vocabulary
    config: CaptionerConfig
    neighbours: Neighbours | None = None
    calibration: Calibration | None = None

    @classmethod
    def load(cls, path: str | Path, weights: str = "imagenet") -> "OnnxCaptioner":
        """Read what export.py wrote; docs/security.md says what a file from elsewhere can do.

        Raises InputError if the file is missing or is no captioner, or if other `weights` of the
        CNN are asked for than those in it.
        """
        name = one_line(path)
        if weights != "imagenet":
            raise InputError(f"--weights {one_line(weights)}: {name} has the CNN's weights in it.")
        if not is_file(path):
            raise InputError(f"{name}: no such model. Write one with export.py, or name yours.")
        if Path(path).stat().st_size > MAX_BYTES:
            raise InputError(f"{name} is larger than 2 GB: it is no captioner.")
        content = Path(path).read_bytes()
        known = hashlib.sha256(content).hexdigest() == INCLUDED_SHA256
        if not known:
            cli.need("any .onnx but the included one", "onnx", "onnx")
        try:
            return cls.parse(content, known)
        except (InputError, ValueError, LookupError, TypeError, RecursionError) as error:
            raise InputError(
                f"{name} is not a captioner that export.py wrote ({one_line(error)}). Export one, "
                f"or name another file."
            ) from error

    @classmethod
    def parse(cls, content: bytes, known: bool = False) -> "OnnxCaptioner":
        """Of a file's content, which is checked first unless it is `known` to be harmless.

        Raises what `load` makes an InputError of where it is not ours.
        """
        if not known:
            from captioning.onnx_file import check

            check(content)
        session = open_session(content)
        check_graph(session)
        said = session.get_modelmeta().custom_metadata_map
        if said.get("format_version") != str(FORMAT_VERSION):
            raise ValueError(f"format {said.get('format_version')}, not {FORMAT_VERSION}")
        neighbours = calibration = None
        shapes = {each.name: each.shape for each in session.get_outputs()}
        if NEIGHBOURS[0] in shapes:
            neighbours = Neighbours(*constants(session, NEIGHBOURS)).check()
        if "calibration" in said:
            calibration = Calibration.parse(json.loads(said["calibration"]))
        words, description = json.loads(said["vocabulary"]), json.loads(said["config"])
        vocabulary, config = described(words, description, neighbours)
        if (shapes["tokens"][2:], shapes["features"][1:]) != (
            [config.max_length],
            [config.feature_size],
        ):
            raise ValueError("its graph is not of the sizes in its config")
        return cls(session, vocabulary, config, neighbours, calibration)

    def search(self, pixels: np.ndarray, beam_size: int, length_penalty: float):
        side = side_of(self.session)
        if side != pixels.shape[1]:
            pixels = np.stack([enlarge(photo, side) for photo in pixels])
        outputs = {each.name for each in self.session.get_outputs()}
        names = [name for name in Beams._fields if name in outputs]
        values = pixels, beam_size, length_penalty
        features, *found = run(self.session, ["features", *names], *values)
        beams = Beams(*found)
        # A file may lie: of whatever else it gives, nothing would be right.
        shape = (len(pixels), beam_size, self.config.max_length)
        shapes = [shape, shape[:2], shape, (*shape, *self.config.features_shape[:-1])]
        if [part.shape for part in found] != shapes[: len(found)]:
            raise InputError("the .onnx gives other arrays than it says: export it again.")
        if (beams.tokens < 0).any() or (beams.tokens >= len(self.vocabulary)).any():
            raise InputError("the .onnx says words that it does not have: export it again.")
        return beams, finite(features)


def check_graph(session: onnxruntime.InferenceSession) -> None:
    """Raises ValueError if inputs or outputs are not those of a captioner."""
    inputs = {each.name: each.type for each in session.get_inputs()}
    outputs = {each.name: each.type for each in session.get_outputs()}
    if inputs != INPUTS:
        raise ValueError(f"its inputs are not {', '.join(INPUTS)}")
    constant = [outputs.pop(name) for name in NEIGHBOURS if name in outputs]
    if outputs not in (OUTPUTS, OUTPUTS | ATTENTION) or len(constant) not in (0, len(NEIGHBOURS)):
        raise ValueError(f"its outputs are not {', '.join(OUTPUTS)}")
    shape, side = session.get_inputs()[0].shape, side_of(session)
    if shape[1:] != [side, side, 3] or side not in SIDES:
        raise ValueError(f"its pixels are {shape}, not (B, S, S, 3), S up to {SIDES[-1]}")


def side_of(session: onnxruntime.InferenceSession) -> int:
    """The side, in pixels, of the photos that the CNN takes."""
    return session.get_inputs()[0].shape[1]


def constants(session: onnxruntime.InferenceSession, names: list[str]) -> list[np.ndarray]:
    """Outputs that are the same for all photos."""
    # Of no photo at all, ONNX Runtime 1.20 crashes.
    blank = np.zeros((1, side_of(session), side_of(session), 3), np.uint8)
    return run(session, names, blank, beam_size=1, length_penalty=1)


def open_session(content: bytes, **settings) -> onnxruntime.InferenceSession:
    """ONNX Runtime's session, with `settings` of its options; raises InputError if it has none."""
    options = onnxruntime.SessionOptions()
    for name, value in ({"log_severity_level": SILENT} | settings).items():
        setattr(options, name, value)
    providers = ["CPUExecutionProvider"]
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # where it says that it tries again
            return onnxruntime.InferenceSession(content, options, providers)
    except Exception as error:  # its errors have no other class in common
        raise InputError(f"ONNX Runtime: {one_line(error)}") from error


def run(session, outputs: list[str], pixels: np.ndarray, beam_size: int, length_penalty: float):
    """The named outputs of a session; raises InputError if it fails."""
    values = pixels, np.array(beam_size, np.int32), np.array(length_penalty, np.float32)
    try:
        return session.run(outputs, dict(zip(INPUTS, values, strict=True)))
    except Exception as error:
        raise InputError(f"ONNX Runtime: {one_line(error)}") from error
