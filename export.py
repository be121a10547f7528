"""Write a captioner as one .onnx file, which captions photos in under a second from the start, on
any machine that has ONNX Runtime. Photos go in as pixels: the CNN, the decoder and the beam search
are in it, with the vocabulary, the neighbours and the confidence. Matrices are stored as float16
where the captions of the photos in data/examples stay the same.

The file is tried on these photos before it is kept: their captions must be those of the .h5. It
cannot be trained further, fine-tuned or scored by evaluate.py: keep the .h5 for that.

  pip install -r requirements-export.txt
  python export.py --model_path models/caption_model.h5       # models/caption_model.onnx
  python generate_caption.py --model_path models/caption_model.onnx --image_path x.jpg"""

import argparse
import copy
import logging
from pathlib import Path

import numpy as np

from captioning import cli
from captioning.files import ROOT, InputError, atomic_path, check_writable, one_line, sha256
from captioning.images import list_images, load_image

OPSET = 18  # of ONNX's operators, the last one that tf2onnx knows
BEAM_SIZES = (1, 3)  # in which captions are compared, besides the captioner's own


def parse_arguments() -> argparse.Namespace:
    """The command line's options, each with its default and its reason."""
    parser = cli.parser(__doc__)
    cli.add_model_option(parser)
    cli.add_weights_option(parser)
    why = "what to write (default: beside the model, under its name)"
    parser.add_argument("--output", type=Path, metavar="FILE", help=why)
    cli.add_overwrite_option(parser)
    return parser.parse_args()


def main() -> None:
    """Convert, compare, and only then keep the file."""
    args = parse_arguments()
    path = args.model_path or cli.default_model(cli.INCLUDED_H5)
    output = args.output or path.with_suffix(".onnx")
    if path.suffix == ".onnx" or output.suffix != ".onnx":
        raise InputError(f"an .onnx is made of an .h5, not {one_line(output)} of {one_line(path)}.")
    check_writable(output)
    if output.exists() and not args.overwrite:
        raise InputError(f"{output} is there already. Give --overwrite, or name another --output.")
    cli.need("exporting", "-r requirements-export.txt", "tf2onnx", "onnx", "onnxruntime")
    cli.load_tensorflow()
    import tensorflow as tf

    from model import Captioner

    tf.config.set_visible_devices([], "GPU")  # for which the graph would have nodes of its own
    captioner = Captioner.load_h5(path, args.weights)
    cli.log(f"converting {path} with {captioner.encoder.name}: half a minute, or more")
    try:
        model = convert(captioner)
    except Exception as error:  # of a decoder with operations that have no counterpart
        raise InputError(f"{path} cannot be converted to ONNX: {one_line(error)}") from error
    content = checked(model, captioner, sha256(path))
    with atomic_path(output) as temporary:
        temporary.write_bytes(content)
    cli.log(f"wrote {output}, {len(content) / 1e6:.1f} MB")
    cli.log(f"next: python generate_caption.py --model_path {output} --image_path x.jpg")


def convert(captioner):
    """The captioner as an `onnx.ModelProto`: from pixels to what a beam search finds.

    Raises InputError where an operation has no counterpart.
    """
    import keras
    import tensorflow as tf
    import tf2onnx

    from captioning.onnx_file import folded, put_values

    encoder = captioner.encoder
    variables = [*encoder.network.weights, *captioner.decoder.network.weights]

    # The weights are inputs, until all is converted. As constants they would be copied again and
    # again, VGG16's to more than the memory of most machines.
    @tf.function
    def run(pixels, beam_size, length_penalty, *weights):
        with keras.StatelessScope(zip(variables, weights, strict=True)):
            features = encoder.run(pixels)  # (B, *features_shape)
            features = tf.cast(tf.cast(features, encoder.dtype), tf.float32)  # as `encode` rounds
            beams = captioner.beam_search(features, beam_size, length_penalty)._asdict()
        grid = len(features.shape) == 3  # of which the neighbours take the mean alone
        beams["features"] = tf.reduce_mean(features, axis=1) if grid else features  # (B, F)
        return {name: part for name, part in beams.items() if part is not None}

    side = encoder.image_size
    signature = [
        tf.TensorSpec((None, side, side, 3), tf.uint8, "pixels"),
        tf.TensorSpec((), tf.int32, "beam_size"),
        tf.TensorSpec((), tf.float32, "length_penalty"),
    ]
    values = {f"weights_{number}": variable.numpy() for number, variable in enumerate(variables)}
    signature += [tf.TensorSpec(array.shape, array.dtype, name) for name, array in values.items()]
    logging.getLogger("tf2onnx").setLevel(logging.CRITICAL)  # what fails is told below
    model, _ = tf2onnx.convert.from_function(run, signature, opset=OPSET)
    # Constants that the CNN's layers hold beside their weights have become inputs, too.
    captured = run.get_concrete_function(*signature).graph.captures
    put_values(model.graph, values | {inside.name: each.numpy() for each, inside in captured})
    return folded(model)


def checked(model, captioner, source: str) -> bytes:
    """The file's content, which says of the example photos what the captioner says of them.

    Raises InputError if it does not.
    """
    from captioning.onnx_captioner import OnnxCaptioner
    from captioning.onnx_file import complete

    size = captioner.config.photo_size
    photos = list_images(ROOT / "data" / "examples")
    pixels = np.stack([load_image(photo, size) for photo in photos])  # (B, S, S, 3)
    beam_sizes = sorted({*BEAM_SIZES, captioner.beam_size})

    def said(by) -> list[str]:
        return [beam[0].text for k in beam_sizes for beam in by.decode_photos(pixels, k)]

    expected = said(captioner)
    for half in (True, False):
        content = complete(copy.deepcopy(model), captioner, half, source)
        found = said(OnnxCaptioner.parse(content))
        same = sum(map(str.__eq__, expected, found))
        cli.log(f"float{16 if half else 32}: {same} of {len(expected)} captions are the .h5's")
        if same == len(expected):
            return content
    raise InputError("the captions are not those of the .h5: no file is written.")


if __name__ == "__main__":
    cli.run(main)
