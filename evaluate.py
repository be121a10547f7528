"""Score a captioner by pycocoevalcap: BLEU-1..4, ROUGE-L, CIDEr, and METEOR where Java is.

Beside the model stand: the best constant caption; the model given other images' features (does
it look at the picture?); one human caption against the others, and the model against the same.

Each score has its 95 % interval over photos: with 1,000 of them CIDEr's is about .04 either way.
Two systems are told apart by compare.py, on the same photos, better than by their intervals.

Reads   MODEL_PATH, DATA_DIR/features.pkl and DATA_DIR/captions.pkl.
Writes  OUTPUT_DIR/scores.json, per_photo.csv, captions.json and gallery.png; the table goes to
        stdout. Of a calibrated captioner also coverage.png: what its surest captions score.

  python evaluate.py                                   # dev split
  python evaluate.py --split test --beam_size 3        # once, with what was chosen on dev
  python evaluate.py --ranking 200                     # also recall, of 200 photos and captions

Dev photos choose the epoch and the options, so a final figure is one of the test split. To cite a
figure give the split, its interval, and from the protocol in scores.json the decoding, the data's
hashes and the versions: CIDEr .662 (95 % .624 to .703), Flickr8k dev, beam 10, pycocoevalcap 1.2.
"""

import hashlib
import json
import time
from importlib.metadata import PackageNotFoundError, version
from math import nan
from pathlib import Path

import numpy as np

from captioning import cli
from captioning.captioner import DECODING_BATCH
from captioning.captions import SPLITS, as_written, load_captions
from captioning.confidence import report, table
from captioning.features import load_features, trained_on
from captioning.files import InputError, check_h5, check_writable, sha256
from captioning.results import write_results

TABLE = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "METEOR", "ROUGE-L", "CIDEr")
GALLERY_IMAGES = 4  # of the best, the typical and the worst each
PER_PHOTO = ("CIDEr", "BLEU-4", "ROUGE-L")  # the scores in per_photo.csv
RANKED = 1000  # photos and as many captions, of a larger split the first
VERSIONS = ("pycocoevalcap", "scipy", "tensorflow", "numpy")

SUMMARY = """\
model: loss {loss_per_token:.4f} per token, {distinct_captions} distinct captions of {images}, \
{copied_from_training:.1%} copied from training, {words_used} words used, \
{mean_length:.1f} words each
constant: "{constant_caption}"
{split} split, {images} images, beam size {beam_size}, length penalty {length_penalty}, \
decoded in {decoding_seconds:.2f} s"""
RANKING = "{wanted} for {other}: R@1 {R1:.1%}, R@5 {R5:.1%}, R@10 {R10:.1%}, median {median_rank:g}"
OTHER = {"captions": "photos", "photos": "captions"}


def parse_arguments():
    """The command line's options, each with its default and its reason."""
    parser = cli.parser(__doc__)
    add = parser.add_argument
    cli.add_model_option(parser, cli.INCLUDED_H5)
    add("--data_dir", type=Path, default="data", help="where the two pickles are")
    add("--split", choices=SPLITS, default="dev", help="which images to caption")
    cli.add_decoding_options(parser)
    why = "leave out photos that the model was trained on: on these its scores are too high"
    add("--exclude_trained", action="store_true", help=why)
    why = f"also rank captions for photos and photos for captions, N of each (default: {RANKED}); "
    why += "1,000 take a merge network 4 minutes on two cores, Up-Down 14; 200 take 10 s and 36 s"
    add("--ranking", type=cli.positive_int, nargs="?", const=RANKED, metavar="N", help=why)
    add("--output_dir", type=Path, default="results", help="where the results go")
    add("--images_dir", type=Path, default="data/flickr8k/Images", help="photos for the gallery")
    add(
        "--seed",
        type=cli.seed,
        default=0,
        help="of whose features are given to whom, and resamples",
    )
    return parser.parse_args()


def main() -> None:
    """Caption the split, score all rows, write the results."""
    args = parse_arguments()
    model_path = args.model_path or cli.default_model(cli.INCLUDED_H5)
    check_h5(model_path)
    check_writable(args.output_dir / "scores.json")
    features, text = load_features(args.data_dir), load_captions(args.data_dir)
    if not text["splits"][args.split]:
        raise InputError(f"the {args.split} split is empty: choose another with --split.")

    cli.load_tensorflow()
    from captioning.baselines import score_rows
    from captioning.batches import CaptionBatches, caption_rows
    from captioning.scoring import Scorer
    from captioning.training import loss_per_token
    from model import Captioner

    captioner = Captioner.load_h5(model_path)
    captioner.check_features(features)
    if args.no_neighbours:
        captioner.forget_neighbours()
    args.beam_size = args.beam_size or captioner.beam_size
    pairs = caption_rows(args.split, text, features)
    seen = trained_on(captioner.photos, features, pairs)
    if args.exclude_trained:
        pairs = [(row, caption) for row, caption in pairs if row not in seen]
    rows = list(dict.fromkeys(row for row, _ in pairs))  # one per image, in the split's order
    if not rows:
        raise InputError("the model was trained on all of these photos: nothing is left.")
    image_ids, images = [features["image_ids"][row] for row in rows], features["features"][rows]
    captions, seconds = decode(captioner, images, args)
    said = dict(zip(image_ids, captions, strict=True))

    references = {i: text["captions"][i] for i in image_ids}
    training = {i: text["captions"][i] for i in text["splits"]["train"]}
    texts = {image_id: caption.text for image_id, caption in said.items()}
    results, measures = score_rows(Scorer(), texts, references, training, args.seed)
    batches = CaptionBatches(features["features"], pairs, captioner.vocabulary, batch_size=64)
    confidence, cider = np.array([c.confidence for c in captions]), measures["CIDEr"].each  # (N,)
    if captioner.calibration:
        results["confidence"] = report(confidence, cider)
    results["model"]["loss_per_token"] = loss_per_token(captioner.decoder.network, batches)
    results["protocol"]["notes"] += trained_notes(captioner, seen, args.exclude_trained)
    results["protocol"] |= protocol(captioner, args, text, features, references)
    results["protocol"] |= {
        "trained_on": None if captioner.photos is None else len(seen),
        "decoding_seconds": round(seconds, 3),
        "model_sha256": sha256(model_path),
    }
    if args.ranking:
        results["ranking"] = rank(captioner, images, references, args)
    each = {name: measures[name].each for name in PER_PHOTO}
    write_results(args.output_dir, said, references, each, results)
    print_table(results)
    if captioner.calibration:
        print(table(results["confidence"]))
        if args.split == "dev":
            cli.log("note: dev's first half may have calibrated it; calibrate.py scores the other.")
        draw_confidence(args.output_dir, confidence, cider)
    draw_gallery(args, texts, references, cider)


def protocol(captioner, args, text: dict, features: dict, references: dict) -> dict:
    """What the scores are of: the photos and human captions, how captions were found, versions.

    Results with the same "references_sha256" are of the same photos and human captions.
    """
    lines = json.dumps(sorted(references.items()), ensure_ascii=False)
    digest = hashlib.sha256(lines.encode("utf-8", "surrogateescape")).hexdigest()
    neighbours = captioner.neighbours is not None and args.beam_size > 1
    own = {"beam_size": args.beam_size, "length_penalty": args.length_penalty}
    return {
        "split": args.split,
        "references_sha256": digest,
        "data": text["settings"] | {"features": features["fingerprint"]},
        "decoding": own | {"neighbours": neighbours},
        "encoder": captioner.config.encoder,
        "scst": scst_variant(captioner.config.training),
        "versions": {name: version_of(name) for name in VERSIONS},
    }


def version_of(package: str) -> str | None:
    """Of an installed package; None where another one, such as tensorflow-cpu, has its modules."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def scst_variant(training: dict) -> str | list | None:
    """How a captioner was fine-tuned on CIDEr, in SacreEOS' words; None where it was not.

    Of an ensemble it is a list. Files of before say only that they were fine-tuned.
    """
    if members := training.get("members"):
        return [scst_variant(member) for member in members]
    tuned = any("cider" in name for name in training.get("kept", {}))
    return training.get("scst", "not recorded" if tuned else None)


def decode(captioner, images: np.ndarray, args) -> tuple[list, float]:
    """A `Caption` for each of images (N, …), and the seconds that they took without tracing."""
    for count in {min(len(images), DECODING_BATCH), len(images) % DECODING_BATCH} - {0}:
        captioner.caption_features(images[:count], args.beam_size)  # both sizes are traced here
    started = time.perf_counter()
    captions = [beam[0] for beam in captioner.decode(images, args.beam_size, args.length_penalty)]
    return captions, time.perf_counter() - started


def rank(captioner, images: np.ndarray, references: dict[str, list[str]], args) -> dict:
    """Recall and median rank of N photos (N, …), and of the first human caption of each."""
    from captioning.baselines import with_intervals
    from captioning.ranking import log_probabilities, ranks, recalls

    lines = [lines[0] for lines in references.values()][: args.ranking]
    ids, started = [captioner.vocabulary.encode(line) for line in lines], time.perf_counter()
    with cli.progress(len(ids) ** 2, "pairs", "ranking") as bar:
        found = log_probabilities(captioner.decoder, images[: len(ids)], ids, bar.update)
    seconds = round(time.perf_counter() - started, 1)
    rows = {"images": len(ids), "seconds": seconds, "caption": "the first of each image"}
    for wanted, places in ranks(found).items():  # (N,) each
        recall = with_intervals(recalls(places), args.seed)
        rows[wanted] = recall | {"median_rank": float(np.median(places))}
    return rows


def trained_notes(captioner, seen: set[int], excluded: bool) -> list[str]:
    """What to know of photos that were trained on, and scored or left out."""
    if captioner.photos is None:
        return ["training photos not recorded: some of these images may be among them."]
    if not seen:
        return []
    what = "left out" if excluded else "scores are too high. Leave them out: --exclude_trained"
    return [f"{len(seen)} of these images are in the model's training set: {what}."]


def print_table(results: dict[str, dict]) -> None:
    """Print a row of scores each, and what the model's captions are like."""
    model, protocol = results["model"], results["protocol"]
    shown = [name for name in TABLE if name in model]
    rows = [name for name in results if name not in ("protocol", "confidence", "ranking")]
    width = max(map(len, rows)) + 2
    print(" " * width + "".join(f"{name:>9}" for name in shown))
    for row in rows:
        print(f"{row:<{width}}" + "".join(f"{results[row].get(name, nan):>9.3f}" for name in shown))
        if row == "model":
            print_intervals(model["intervals"], shown, width)
    constant = {"constant_caption": as_written(protocol["constant_caption"])}
    print(SUMMARY.format_map(model | protocol | protocol["decoding"] | constant))
    for note in protocol["notes"]:
        cli.log(f"note: {note}")
    if ranking := results.get("ranking"):
        print(f"ranking, {ranking['images']} photos and captions, {ranking['seconds']} s:")
        for wanted in ("captions", "photos"):
            values = {name.replace("@", ""): value for name, value in ranking[wanted].items()}
            print(RANKING.format(wanted=wanted, other=OTHER[wanted], **values))
    if protocol["split"] == "dev":
        print("dev chose the epoch and the options: the final figure is --split test")


def print_intervals(intervals: dict, shown: list[str], width: int) -> None:
    """Two lines below a row: from where to where its scores may be by chance."""
    for name, end in (("  95 % from", 0), ("  95 % to", 1)):
        each = ("–" if intervals[s] is None else f"{intervals[s][end]:.3f}" for s in shown)
        print(f"{name:<{width}}" + "".join(f"{value:>9}" for value in each))


def draw_confidence(output_dir: Path, confidence: np.ndarray, cider: np.ndarray) -> None:
    """Draw how CIDEr grows with confidence, both (N,)."""
    from captioning.plots import draw_coverage

    draw_coverage(confidence, cider, output_dir / "coverage.png")
    print(f"wrote {output_dir / 'coverage.png'}: CIDEr of the surest captions, and calibration")


def draw_gallery(args, captions: dict[str, str], references, each: np.ndarray) -> None:
    """Draw the best, the typical and the worst captions by CIDEr, where the photos are."""
    order, image_ids, n = np.argsort(-each, kind="stable"), list(captions), GALLERY_IMAGES
    middle = max(0, (len(order) - n) // 2)
    items = []
    # In a small split none twice.
    for i in dict.fromkeys([*order[:n], *order[middle : middle + n], *order[-n:]]):
        image_id = image_ids[i]
        said, human = as_written(captions[image_id]), as_written(references[image_id][0])
        lines = [f"{each[i]:.2f}: {said}", f"({human})"]
        items.append((args.images_dir / image_id, lines))
    missing = next((path for path, _ in items if not path.is_file()), None)
    if missing is not None:
        cli.log(f"no gallery: {missing} is not there. Name the photos' folder with --images_dir.")
        return
    from captioning.plots import draw_captions

    target = args.output_dir / "gallery.png"
    draw_captions(items, target)
    print(f"wrote {target}: best, typical and worst by CIDEr")


if __name__ == "__main__":
    cli.run(main)
