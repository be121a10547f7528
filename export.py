"""Write a captioner as one .onnx file, which needs ONNX Runtime and no TensorFlow: the first
caption comes several seconds earlier. The CNN, the decoder and the beam search are in it, with the
vocabulary, the neighbours and the calibration. Matrices are stored as float16.

Before the file is kept it captions the ten photos in data/examples: the captions must be those of
the .h5. Where float16 changes one, all is stored as float32. Of other photos a few captions may
differ, where two were almost equally probable. The file only captions photos. Keep the .h5: it
alone can be trained, fine-tuned, calibrated and evaluated.

  pip install -r requirements-export.txt
  python export.py --model_path models/caption_model.h5       # models/caption_model.onnx
  python generate_caption.py --model_path models/caption_model.onnx --image_path x.jpg"""

import argparse
import copy
from pathlib import Path

import numpy as np

from captioning import cli
from captioning.files import (
    ROOT,
    InputError,
    atomic_path,
    check_writable,
    is_onnx,
    one_line,
    sha256,
)
from captioning.images import list_images, load_image

EXAMPLES = ROOT / "data" / "examples"  # photos whose captions are compared
BEAM_SIZES = (1, 3)  # of the comparison, besides the captioner's own
TOLERANCE = 0.1  # of a caption's log-probability


def parse_arguments() -> argparse.Namespace:
    """The command line's options, each with its default and its reason."""
    parser = cli.parser(__doc__)
    add, why = parser.add_argument, "the .h5 to convert"
    add("--model_path", type=Path, default=cli.TRAINED, metavar="FILE", help=why)
    cli.add_weights_option(parser)
    why = "what to write (default: beside the model, under its name)"
    add("--output", type=Path, metavar="FILE", help=why)
    cli.add_overwrite_option(parser)
    return parser.parse_args()


def main() -> None:
    """Convert, compare, and only then keep the file."""
    args = parse_arguments()
    output = args.output or args.model_path.with_suffix(".onnx")
    path, name = one_line(args.model_path), one_line(output)
    if is_onnx(args.model_path):
        raise InputError(f"{path} is an .onnx already: name the .h5 by --model_path.")
    if not is_onnx(output):
        raise InputError(f"--output {name}: its name must end in .onnx")
    check_writable(output)
    if output.exists() and not args.overwrite:
        raise InputError(f"{name} is there already. Give --overwrite, or name another --output.")
    cli.need("exporting", "-r requirements-export.txt", "tensorflow", "tf2onnx")
    cli.load_tensorflow()
    import tensorflow as tf

    from captioning.onnx_export import convert
    from model import Captioner

    tf.config.set_visible_devices([], "GPU")  # for which the graph would have nodes of its own
    captioner = Captioner.load_h5(args.model_path, args.weights)
    cli.log(f"converting {path} with {captioner.encoder.name}: half a minute, or more")
    content = choose_precision(convert(captioner), captioner, sha256(args.model_path))
    with atomic_path(output) as temporary:
        temporary.write_bytes(content)
    cli.log(f"wrote {name}, {len(content) / 1e6:.1f} MB")
    cli.log(f"next: python generate_caption.py --model_path {name} --image_path x.jpg")


def choose_precision(model, captioner, source: str) -> bytes:
    """The content of a file that says of the example photos what the captioner says of them.

    `source` is the hash of the captioner's own file. Raises InputError if neither float16 nor
    float32 will do.
    """
    from captioning.onnx_captioner import OnnxCaptioner
    from captioning.onnx_export import serialize

    photos = list_images(EXAMPLES)
    pixels = np.stack([load_image(photo, captioner.config.photo_size) for photo in photos])
    beam_sizes = sorted({*BEAM_SIZES, captioner.beam_size})

    def best(by) -> list:  # captions, of each beam size and photo
        return [beam[0] for size in beam_sizes for beam in by.decode_photos(pixels, size)]

    expected = best(captioner)
    for half in (True, False):
        content = serialize(copy.deepcopy(model), captioner, half, source)
        same = sum(map(alike, expected, best(OnnxCaptioner.parse(content))))
        cli.log(f"float{16 if half else 32}: {same} of {len(expected)} captions are the .h5's")
        if same == len(expected):
            return content
    raise InputError("no file is written: with other packages (constraints.txt) it may be the same")


def alike(caption, other) -> bool:
    """Whether two captions are one, but for the rounding of floats."""
    near = abs(caption.log_probability - other.log_probability) < TOLERANCE
    return near and caption.text == other.text


if __name__ == "__main__":
    cli.run(main)
