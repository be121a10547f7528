"""Caption photos: one line each on stdout, everything else on stderr.

  python generate_caption.py --image_path x.jpg
  python generate_caption.py --image_path photos/ --format jsonl --output captions.jsonl
  python generate_caption.py --image_path photos/ --sidecar     # photos/x.jpg -> photos/x.txt
  python generate_caption.py --image_path photos/ --recursive --format coco --output captions.json
  python generate_caption.py --image_path photos/ x.jpg --save_figure captions.png
  python generate_caption.py --image_path photos/ --min_confidence 0.4   # those that are sure

Captions are written batch by batch; those for --output wait in FILE.partial until all are done. A
stopped run loses a few batches, with --n_jobs a few hundred photos; the same command with --resume
continues. A file that is not a readable image is named and skipped; the exit code is 0 unless no
image could be captioned."""

import argparse
import errno
import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from captioning import cli
from captioning.caption_photos import Job, caption_in_parallel, caption_photos, load_captioner
from captioning.confidence import GOOD
from captioning.files import InputError, check_writable, is_onnx, one_line, sha256
from captioning.outputs import FORMATS, TEXT, OutputFile, Sidecars, Stream
from captioning.parallel import add_worker_options, useful_jobs
from captioning.photo_list import coco_id, list_photos


def parse_arguments() -> argparse.Namespace:
    """The command line's options, each with its default and its reason."""
    parser = cli.parser(__doc__)
    add, count = parser.add_argument, cli.positive_int
    why = "photos, folders whose photos are all captioned, or patterns as 'photos/**/*.jpg'; each "
    why += "photo once"
    add("--image_path", nargs="+", required=True, metavar="FILE_OR_FOLDER", help=why)
    add("--recursive", action="store_true", help="also the photos in the folders' folders")
    cli.add_model_option(parser)
    cli.add_weights_option(parser)
    why = "tsv: path, tab, caption; jsonl: an object a line; csv; coco: a list for COCO's scorers"
    add("--format", choices=FORMATS, default="tsv", help=why)
    place = parser.add_mutually_exclusive_group()
    place.add_argument("--output", type=Path, metavar="FILE", help="write there, not to stdout")
    why = "write each to a file beside its photo, x.txt for x.jpg; those that have text stay"
    place.add_argument("--sidecar", action="store_true", help=why)
    again = parser.add_mutually_exclusive_group()
    why = "continue FILE.partial of a run that was stopped; give the options of before"
    again.add_argument("--resume", action="store_true", help=why)
    cli.add_overwrite_option(again)
    cli.add_decoding_options(parser)
    why = "the N best of the beam (N <= K), best first, each with the logarithm of its "
    why += "probability; where neighbours choose, that is not the order"
    add("--num_captions", type=cli.beam_size, default=1, metavar="N", help=why)
    why = "skip photos of whose caption it is less sure: of all with a confidence of 0.6, 60 %% "
    why += f"agree well with people's (CIDEr of {GOOD} or more)"
    add("--min_confidence", type=cli.fraction, metavar="P", help=why)
    why = "draw the photos with their captions"
    add("--save_figure", type=cli.picture, metavar="FILE", help=why)
    add("--batch_size", type=count, default=16, help="photos per pass; more is hardly faster")
    why = "processes that share the cores, each with a captioner of its own: for hundreds of photos"
    add_worker_options(parser, why)
    args = parser.parse_args()
    if args.beam_size and args.num_captions > args.beam_size:
        parser.error(f"--num_captions {args.num_captions} needs --beam_size {args.num_captions}")
    if args.num_captions > 1 and args.format == "coco":
        parser.error("--format coco takes one caption per image; use jsonl for several")
    if args.sidecar and (args.num_captions > 1 or args.format != "tsv"):
        parser.error("--sidecar writes one plain caption per image: no --num_captions, no --format")
    if args.resume and not (args.output or args.sidecar):
        parser.error("--resume needs the --output FILE, or --sidecar, of the run that was stopped")
    if args.resume and args.save_figure:
        parser.error("--save_figure would show only what --resume adds: give one of them")
    return args


def main() -> None:
    """Caption every image named, one line each."""
    args = parse_arguments()
    args.model_path = args.model_path or cli.default_model()
    if args.dask or args.n_jobs > 1:
        cli.need("--n_jobs, or --dask,", "joblib", "joblib")
    photos = list_photos(args.image_path, args.recursive)
    if args.format == "coco":
        photos = {photo: coco_id(image_id) for photo, image_id in photos.items()}
    long = [photo for photo in photos if args.sidecar and has_long_name(photo.with_suffix(".txt"))]
    for photo in long:
        cli.log(f"skipped: {photo}: the name of its text file would be too long")
        del photos[photo]
    check_targets(args, photos)
    output = open_output(args)
    missing = output.open(photos)
    before = len(photos) - len(missing)
    if before:
        cli.log(f"{before} of {len(photos)} are captioned already")
    captioned, shown = 0, []
    for photo, beam in caption_files(missing, args) if missing else ():
        captions = beam[: args.num_captions]
        output.write(photo, captions)
        captioned += 1
        if args.save_figure:
            shown.append((photo, [to_line(caption) for caption in captions]))
    if not captioned + before:
        surely = "" if args.min_confidence is None else f" with confidence {args.min_confidence}"
        count = len(photos) + len(long)
        raise InputError(f"none of the {count} files could be captioned{surely}.")
    output.close()
    if len(photos) > 1:
        cli.log(f"{captioned} captioned, {len(missing) - captioned + len(long)} skipped")
    if args.save_figure:
        from captioning.plots import draw_captions

        draw_captions(shown, args.save_figure)
        cli.log(f"drew {args.save_figure}")


def check_targets(args, photos: dict[Path, str | int]) -> None:
    """Raises InputError where a file could not be written, or would replace a photo.

    Also if two photos would be one for COCO's scorers.
    """
    real = {os.path.realpath(photo) for photo in photos}
    for option, target in (("output", args.output), ("save_figure", args.save_figure)):
        if target and os.path.realpath(target) in real:
            raise InputError(f"--{option} {one_line(target)} is one of the photos: name another.")
    if args.save_figure:
        cli.need("--save_figure", "matplotlib", "matplotlib")
        check_writable(args.save_figure)
    if sys.stdout is None and not (args.output or args.sidecar):
        raise InputError("stdout is closed: give --output FILE, or --sidecar.")
    if args.format == "coco":
        photo_of: dict[str | int, Path] = {}
        for photo, image_id in photos.items():
            other = photo_of.setdefault(image_id, photo)
            if other != photo:
                names = f"{one_line(other)} and {one_line(photo)}"
                raise InputError(f"{names} have one image_id: caption them in two runs.")


def open_output(args) -> Stream | OutputFile | Sidecars:
    """Where the captions go."""
    if args.sidecar:
        return Sidecars(args.overwrite)
    if args.output is None:
        return Stream(args.format, args.num_captions)
    if args.output.is_dir():
        raise InputError(f"--output {args.output} is a folder: name a file.")
    if args.output.exists() and not args.output.is_file():  # a pipe, or a device
        return Stream(args.format, args.num_captions, args.output.open("w", newline="", **TEXT))
    check_writable(args.output.with_name(args.output.name + ".partial"))
    names = ("weights", "beam_size", "length_penalty", "no_neighbours", "min_confidence")
    settings = {name: getattr(args, name) for name in names}
    if args.model_path.is_file():
        settings["model"] = sha256(args.model_path)
    replace = "resume" if args.resume else "overwrite" if args.overwrite else ""
    return OutputFile(args.output, args.format, args.num_captions, settings, replace)


def has_long_name(path: Path) -> bool:
    """Whether the file system takes no such name."""
    try:
        path.lstat()
    except OSError as error:
        return error.errno == errno.ENAMETOOLONG
    return False


def caption_files(photos: list[Path], args) -> Iterator[tuple[Path, list]]:
    """Caption the readable images, in order, each with its beam; name the others on stderr.

    Raises InputError if a confidence is asked for that the captioner does not know.
    """
    source = ("model", "Captioner")
    if is_onnx(args.model_path):
        cli.need("an .onnx", "-r requirements-caption.txt", "onnxruntime", "onnx")
        source = ("captioning.onnx_captioner", "OnnxCaptioner")
    options = (args.beam_size or 0, args.length_penalty, args.batch_size)
    job = Job(source, str(args.model_path), args.weights, True, *options)
    captioner = load_captioner(job)
    calibrated = captioner.calibration is not None
    if args.no_neighbours:
        captioner.forget_neighbours()
    if args.min_confidence is not None and captioner.calibration is None:
        name = one_line(args.model_path)
        fix = f"Calibrate {name}: python calibrate.py {name}"
        if is_onnx(args.model_path):
            fix = "Calibrate the .h5 that it was made from (calibrate.py), and export it again"
        fix = "Leave out --no_neighbours" if calibrated else fix
        raise InputError(f"--min_confidence: no confidence is known. {fix}")
    size = args.beam_size or max(captioner.beam_size, args.num_captions)
    job = job._replace(beam_size=size, neighbours=not args.no_neighbours)
    n_jobs = useful_jobs(args.n_jobs, math.ceil(len(photos) / args.batch_size))
    if args.dask or n_jobs > 1:
        found = caption_in_parallel(photos, job, n_jobs, args.dask)
    else:
        found = caption_photos(captioner, photos, job)
    with cli.progress(len(photos), "image") as bar:
        for each in found:
            bar.update()
            if each.error:
                cli.log(f"skipped: {each.error}")
            elif is_sure(each.photo, each.beam[0].confidence, args.min_confidence):
                yield each.photo, each.beam


def to_line(caption) -> str:
    """A `Caption` as a picture shows it."""
    sure = "" if caption.confidence is None else f" ({caption.confidence:.0%} sure)"
    return caption.sentence + sure


def is_sure(photo: Path, confidence: float | None, least: float | None) -> bool:
    """Whether a photo's caption is to be written; names the photo otherwise."""
    if least is None or confidence >= least:
        return True
    cli.log(f"skipped: {one_line(photo)}: confidence {confidence:.2f}")
    return False


if __name__ == "__main__":
    cli.run(main, "With --output or --sidecar, the same command with --resume continues.")
