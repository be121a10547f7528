"""Caption photos with a trained model."""

import argparse
import csv
import json
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

import cli
from encoders import list_images, try_load_image
from files import InputError

TRAINED = Path("models/caption_model.h5")  # train.py's default
INCLUDED = Path(__file__).parent / "models" / "flickr8k_captioner.h5"
FORMATS = ("tsv", "jsonl", "csv", "coco")
TSV_ESCAPES = str.maketrans({"\\": r"\\", "\t": r"\t", "\n": r"\n", "\r": r"\r"})

DESCRIPTION = """\
Caption photos: one line each on stdout, everything else on stderr.

  python generate_caption.py --image_path x.jpg
  python generate_caption.py --image_path photos/ --format jsonl > captions.jsonl
  python generate_caption.py --image_path photos/ x.jpg --save_figure captions.png

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
    add("--model_path", type=Path, metavar="FILE", help="an .h5 from train.py (default: see above)")
    add(
        "--weights",
        default="imagenet",
        metavar="imagenet|FILE|random",
        help="the CNN's weights, the same as given to preprocess.py",
    )
    add(
        "--format",
        choices=FORMATS,
        default="tsv",
        help="tsv: path, tab, caption (tabs, newlines and backslashes in paths escaped); jsonl: an "
        "object a line; csv: with a header; coco: one JSON list of image_id (the file name) and "
        "caption, as the COCO scorers read it",
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
    return args


def main() -> None:
    """Caption every image named, one line each."""
    args = parse_arguments()
    paths = list(expand(args.image_path))

    cli.load_tensorflow()
    from model import Captioner

    captioner = Captioner.load(args.model_path or default_model(), args.weights)
    write = Writer(args.format, args.num_captions)
    done = []
    for path, beam in caption_files(captioner, paths, args):
        write(path, beam[: args.num_captions])
        done.append((path, [caption for caption, _ in beam[: args.num_captions]]))
    write.close()
    if not done:
        raise InputError(f"none of the {len(paths)} files could be captioned.")
    if len(paths) > 1:
        cli.say(f"{len(done)} captioned, {len(paths) - len(done)} skipped")
    if args.save_figure:
        from figures import draw_captions

        draw_captions(done, args.save_figure)
        cli.say(f"drew {args.save_figure}")


def default_model() -> Path:
    """The user's own model where there is one, otherwise the included one; says which."""
    path = TRAINED if TRAINED.is_file() else INCLUDED
    cli.say(f"captions by {path}{' (included)' if path == INCLUDED else ''}")
    return path


def expand(arguments: list[str]) -> Iterator[Path]:
    """The files named, and the images in the folders named."""
    for argument in arguments:
        path = Path(argument)
        if not path.is_dir():
            yield path
            continue
        images = list_images(path)
        if not images:
            cli.say(f"no images in {path}: it has no file named like .jpg or .png")
        yield from images


def caption_files(captioner, paths: list[Path], args) -> Iterator[tuple[Path, list]]:
    """Caption the readable images, in order, each with its beam; name the others on stderr."""
    with ThreadPoolExecutor() as pool, cli.progress(len(paths), "image") as bar:
        for start in range(0, len(paths), args.batch_size):
            chunk = paths[start : start + args.batch_size]
            readable, batch = [], []
            for path, (pixels, error) in zip(chunk, pool.map(try_load_image, chunk), strict=True):
                if error:
                    cli.say(f"skipped: {error}")
                else:
                    readable.append(path)
                    batch.append(pixels)  # (224, 224, 3)
            if batch:
                features = captioner.encoder.encode(np.stack(batch))  # (B, feature_size)
                beams = captioner.decode(features, args.beam_size, args.length_penalty)
                yield from zip(readable, beams, strict=True)
            bar.update(len(chunk))


class Writer:
    """Prints captions as they come, in one of `FORMATS`; with their scores when there are several.

    A score is the natural logarithm of the caption's probability.
    """

    def __init__(self, form: str, num_captions: int):
        self.form = form
        self.scored = num_captions > 1
        self.found: list[dict] = []  # COCO's format is one list, written at the end
        self.table = csv.writer(sys.stdout, lineterminator="\n")
        if form == "csv":
            self.table.writerow(["image_path", "caption", *["log_probability"] * self.scored])

    def __call__(self, path: Path, captions: list[tuple[str, float]]) -> None:
        """Print the captions of one image."""
        for caption, score in captions:
            rounded = [round(score, 4)] if self.scored else []
            if self.form == "tsv":
                name = os.fspath(path).translate(TSV_ESCAPES)
                print(name, caption, *rounded, sep="\t")
            elif self.form == "csv":
                self.table.writerow([path, caption, *rounded])
            elif self.form == "jsonl":
                line = {"image_path": os.fspath(path), "caption": caption}
                if rounded:
                    line["log_probability"] = rounded[0]
                print(json.dumps(line, ensure_ascii=False))
            else:
                self.found.append({"image_id": path.name, "caption": caption})
        sys.stdout.flush()

    def close(self) -> None:
        """Print what could not be printed before all was there."""
        if self.found:
            print(json.dumps(self.found, ensure_ascii=False, indent=1))


if __name__ == "__main__":
    cli.run(main)
