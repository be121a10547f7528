"""Caption photos with a trained model."""

import argparse
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from captioning import cli
from captioning.files import InputError
from captioning.images import list_images, try_load_image
from captioning.outputs import FORMATS, Lines, Sidecars

DESCRIPTION = """\
Caption photos: one line each on stdout, everything else on stderr.

  python generate_caption.py --image_path x.jpg
  python generate_caption.py --image_path photos/ --format jsonl --output captions.jsonl
  python generate_caption.py --image_path photos/ --sidecar     # photos/x.jpg -> photos/x.txt
  python generate_caption.py --image_path photos/ x.jpg --save_figure captions.png

Every caption is written as soon as its batch is done. A stopped run loses one batch at most: the
same command with --resume goes on, and ends with the file of an undisturbed run.

Without --model_path, models/caption_model.h5 is taken (from train.py) where it exists, otherwise
the captioner that is included, models/flickr8k_captioner.h5. Needs the model's .h5 and the weights
of the CNN it was trained with, nothing else. A file that is not a readable image is named and
skipped; the exit code is 0 unless no image could be captioned."""


def parse_arguments() -> argparse.Namespace:
    """The command line's options, each with its default and its reason."""
    parser = cli.parser(DESCRIPTION)
    add = parser.add_argument
    add(
        "--image_path",
        nargs="+",
        required=True,
        metavar="FILE_OR_FOLDER",
        help="photos, or folders whose photos are all captioned",
    )
    cli.add_model_options(parser)
    add(
        "--format",
        choices=FORMATS,
        default="tsv",
        help="tsv: path, tab, caption (tabs, newlines and backslashes in paths escaped); jsonl: an "
        "object a line; csv: with a header; coco: one JSON list of image_id (the file name) and "
        "caption, as the COCO scorers read it",
    )
    place = parser.add_mutually_exclusive_group()
    place.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="write there instead of to stdout; what the file holds is never replaced",
    )
    place.add_argument(
        "--sidecar",
        action="store_true",
        help="write each caption into a file of its own beside the photo, x.txt for x.jpg, as "
        "training data for image generators has it; replaces those that are there",
    )
    add(
        "--resume",
        action="store_true",
        help="leave out the photos that FILE, or a file beside them, has a caption of already; "
        "give the options of before",
    )
    cli.add_decoding_options(parser)
    add(
        "--num_captions",
        type=cli.positive_int,
        default=1,
        metavar="N",
        help="the N best of the beam (N <= K), each with the logarithm of its probability",
    )
    add("--save_figure", type=Path, metavar="FILE", help="draw the photos with their captions")
    add(
        "--batch_size",
        type=cli.positive_int,
        default=16,
        help="photos per pass of the CNN; more takes more memory and is hardly faster",
    )
    args = parser.parse_args()
    if args.num_captions > args.beam_size:
        parser.error(f"--num_captions {args.num_captions} needs --beam_size {args.num_captions}")
    if args.num_captions > 1 and args.format == "coco":
        parser.error("--format coco takes one caption an image; use jsonl for several")
    if args.sidecar and (args.num_captions > 1 or args.format != "tsv"):
        parser.error("--sidecar writes one plain caption an image: no --num_captions, no --format")
    if args.resume and not (args.output or args.sidecar):
        parser.error("--resume needs the --output FILE, or --sidecar, of the run that was stopped")
    if args.resume and args.save_figure:
        parser.error("--save_figure would show only what --resume adds: give one of them")
    return args


def main() -> None:
    """Caption every image named, one line each."""
    args = parse_arguments()
    photos = list(expand(args.image_path))
    output = Sidecars() if args.sidecar else Lines(args.format, args.num_captions, args.output)
    missing = output.open(photos, args.resume)
    before = missing.count(False)
    if before:
        cli.log(f"{before} of {len(photos)} are captioned already")
    captioned, shown, most = 0, [], 0  # to be drawn, and how many of them
    if args.save_figure:
        from captioning.plots import MAX_IMAGES as most
        from captioning.plots import draw_captions
    if any(missing):
        for photo, beam in caption_files(photos, missing, args):
            captions = beam[: args.num_captions]
            output.write(photo, captions)
            captioned += 1
            if len(shown) < most:
                shown.append((photo, [caption for caption, _ in captions]))
    output.close()
    if not captioned + before:
        raise InputError(f"none of the {len(photos)} files could be captioned.")
    if len(photos) > 1:
        cli.log(f"{captioned} captioned, {sum(missing) - captioned} skipped")
    if args.save_figure:
        draw_captions(shown, args.save_figure)
        cli.log(f"drew {args.save_figure}")


def expand(arguments: list[str]) -> Iterator[Path]:
    """The files named, and the images in the folders named."""
    for argument in arguments:
        path = Path(argument)
        if not path.is_dir():
            yield path
            continue
        images = list_images(path)
        if not images:
            cli.log(f"no images in {path}: it has no file named like .jpg or .png")
        yield from images


def caption_files(photos: list[Path], missing: list[bool], args) -> Iterator[tuple[Path, list]]:
    """Caption the readable images, in order, each with its beam; name the others on stderr.

    Args:
        photos: in batches of `args.batch_size`, whatever of them is done already.
        missing: of each, whether it is still to be captioned.
    """
    cli.load_tensorflow()
    from model import Captioner

    captioner = Captioner.load(args.model_path or cli.default_model(), args.weights)
    last = max((i for i, left in enumerate(missing) if not left), default=-1)
    with ThreadPoolExecutor() as pool, cli.progress(sum(missing), "image") as bar:
        for start in range(0, len(photos), args.batch_size):
            chunk = range(start, min(start + args.batch_size, len(photos)))
            wanted = [i for i in chunk if missing[i]]
            # The batch that was stopped at is done again as a whole: in another company a photo's
            # numbers may differ in their last digits.
            read = chunk if wanted and last in chunk else wanted
            readable, batch = [], []
            loaded = pool.map(try_load_image, [photos[i] for i in read])
            for i, (pixels, error) in zip(read, loaded, strict=True):
                if error:
                    cli.log(f"skipped: {error}")
                else:
                    readable.append(i)
                    batch.append(pixels)  # (224, 224, 3)
            if batch:
                features = captioner.encoder.encode(np.stack(batch))  # (B, *features_shape)
                beams = captioner.decode(features, args.beam_size, args.length_penalty)
                for i, beam in zip(readable, beams, strict=True):
                    if missing[i]:
                        yield photos[i], beam
            bar.update(len(wanted))


if __name__ == "__main__":
    cli.run(main, "With --output or --sidecar, the same command with --resume goes on.")
