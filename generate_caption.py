"""Caption photos with a trained model."""

import argparse
import csv
import json
import os
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

import cli
from encoders import list_images, try_load_image
from files import InputError

FORMATS = ("tsv", "jsonl", "csv", "coco")
TSV_ESCAPES = str.maketrans({"\\": r"\\", "\t": r"\t", "\n": r"\n", "\r": r"\r"})

DESCRIPTION = """\
Caption photos: one line each on stdout, everything else on stderr.

  python generate_caption.py --image_path x.jpg
  python generate_caption.py --image_path photos/ --format jsonl > captions.jsonl
  python generate_caption.py --image_path photos/ x.jpg --save_figure captions.png

Needs the model's .h5 and the weights of the CNN it was trained with, nothing else. A file that is
not a readable image is named and skipped; the exit code is 0 unless no image could be captioned."""


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
    add("--model_path", type=Path, default="models/caption_model.h5", help="from train.py")
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
    add("--save_figure", type=Path, metavar="FILE", help="draw the photos with their captions")
    add(
        "--batch_size",
        type=cli.positive_int,
        default=32,
        help="photos per pass of the CNN; more takes more memory and is hardly faster",
    )
    return parser.parse_args()


def main() -> None:
    """Caption every image named, one line each."""
    args = parse_arguments()
    paths = list(expand(args.image_path))

    cli.load_tensorflow()
    from model import Captioner

    captioner = Captioner.load(args.model_path, args.weights)
    done = []
    captions = caption_files(captioner, paths, args.batch_size)
    for path, caption in write_captions(captions, args.format):
        done.append((path, caption))
    if not done:
        raise InputError(f"none of the {len(paths)} files could be captioned.")
    if len(paths) > 1:
        cli.say(f"{len(done)} captioned, {len(paths) - len(done)} skipped")
    if args.save_figure:
        from figures import draw_captions

        draw_captions([(path, [caption]) for path, caption in done], args.save_figure)
        cli.say(f"drew {args.save_figure}")


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


def caption_files(captioner, paths: list[Path], batch_size: int) -> Iterator[tuple[Path, str]]:
    """Caption the readable images, in order; name the others on stderr."""
    bar = cli.progress(len(paths), "image")
    with ThreadPoolExecutor() as pool, bar:
        for start in range(0, len(paths), batch_size):
            chunk = paths[start : start + batch_size]
            readable, batch = [], []
            for path, (pixels, error) in zip(chunk, pool.map(try_load_image, chunk), strict=True):
                if error:
                    cli.say(f"skipped: {error}")
                else:
                    readable.append(path)
                    batch.append(pixels)  # (224, 224, 3)
            if batch:
                features = captioner.encoder.encode(np.stack(batch))  # (B, feature_size)
                yield from zip(readable, captioner.caption_features(features), strict=True)
            bar.update(len(chunk))


def write_captions(captions: Iterable[tuple[Path, str]], form: str) -> Iterator[tuple[Path, str]]:
    """Print each caption as it comes, in one of `FORMATS`, and pass it on."""
    table = csv.writer(sys.stdout, lineterminator="\n")
    found = []
    if form == "csv":
        table.writerow(("image_path", "caption"))
    for path, caption in captions:
        found.append({"image_id": path.name, "caption": caption})
        if form == "tsv":
            print(f"{str(path).translate(TSV_ESCAPES)}\t{caption}")
        elif form == "jsonl":
            line = {"image_path": os.fspath(path), "caption": caption}
            print(json.dumps(line, ensure_ascii=False))
        elif form == "csv":
            table.writerow((path, caption))
        sys.stdout.flush()
        yield path, caption
    if form == "coco" and found:
        print(json.dumps(found, ensure_ascii=False, indent=1))


if __name__ == "__main__":
    sys.exit(cli.run(main))
