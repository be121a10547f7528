"""Score a captioner by pycocoevalcap: BLEU-1..4, ROUGE-L, CIDEr, and METEOR where Java is.

Beside the model stand: the best constant caption; the model given other images' features (does
it look at the picture?); one human caption against the others, and the model against the same.

Reads   MODEL_PATH, DATA_DIR/features.pkl and DATA_DIR/captions.pkl.
Writes  OUTPUT_DIR/captions.json, scores.json and gallery.png; the table goes to stdout. Of a
        calibrated captioner also coverage.png: the scores of the captions of which it is surest.

  python evaluate.py                                   # dev split
  python evaluate.py --split test --beam_size 3        # once, with what was chosen on dev

Dev photos choose the epoch and the options, so a final figure is one of the test split."""

import json
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np

from captioning import cli
from captioning.captioner import DECODING_BATCH
from captioning.captions import SPLITS, as_written, load_captions
from captioning.confidence import report, table
from captioning.features import load_features, trained_on
from captioning.files import InputError, atomic_path, check_h5, check_writable, sha256

TABLE = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "METEOR", "ROUGE-L", "CIDEr")
GALLERY_IMAGES = 4  # of the best, the typical and the worst each
FEW_IMAGES = 100  # of which scores say little

SUMMARY = """\
model: loss {loss_per_token:.4f} per token, {distinct_captions} distinct captions of {images}, \
{copied_from_training:.1%} copied from training, {words_used} words used, \
{mean_length:.1f} words each
constant: "{constant_caption}"
{split} split, {images} images, beam size {beam_size}, length penalty {length_penalty}, \
decoded in {decoding_seconds:.2f} s"""


def parse_arguments():
    """The command line's options, each with its default and its reason."""
    parser = cli.parser(__doc__)
    add = parser.add_argument
    cli.add_model_option(parser)
    add("--data_dir", type=Path, default="data", help="where the two pickles are")
    add("--split", choices=SPLITS, default="dev", help="which images to caption")
    cli.add_decoding_options(parser)
    why = "leave out photos that the model was trained on: on these its scores are too high"
    add("--exclude_trained", action="store_true", help=why)
    add("--output_dir", type=Path, default="results", help="where the results go")
    add("--images_dir", type=Path, default="data/flickr8k/Images", help="photos for the gallery")
    add("--seed", type=cli.seed, default=0, help="of which other image's features are given")
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
    said, seconds = decode(captioner, images, args)
    captions = {i: caption.text for i, caption in zip(image_ids, said, strict=True)}

    scorer = Scorer()
    references = {i: text["captions"][i] for i in image_ids}
    training = {i: text["captions"][i] for i in text["splits"]["train"]}
    results, each = score_rows(scorer, captions, references, training, args.seed)
    batches = CaptionBatches(features["features"], pairs, captioner.vocabulary, batch_size=64)
    confidence = np.array([caption.confidence for caption in said])  # (N,)
    if captioner.calibration:
        results["confidence"] = report(confidence, each)
    results["model"]["loss_per_token"] = loss_per_token(captioner.decoder.network, batches)
    results["protocol"]["notes"] += trained_notes(captioner, seen, args.exclude_trained)
    results["protocol"] |= {
        "trained_on": None if captioner.photos is None else len(seen),
        "split": args.split,
        "decoding": decoding(captioner, args),
        "decoding_seconds": round(seconds, 3),
        "encoder": captioner.config.encoder,
        "model_sha256": sha256(model_path),
        "versions": {name: version(name) for name in ("pycocoevalcap", "tensorflow", "numpy")},
    }
    write_results(args.output_dir, captions, results)
    print_table(results)
    if captioner.calibration:
        print(table(results["confidence"]))
        if args.split == "dev":
            cli.log("note: dev's first half calibrated it: see calibrate.py for the other half.")
        draw_confidence(args.output_dir, confidence, each)
    draw_gallery(args, captions, references, each)


def decoding(captioner, args) -> dict:
    """What captions depend on besides the model."""
    neighbours = captioner.neighbours is not None and args.beam_size > 1
    own = {"beam_size": args.beam_size, "length_penalty": args.length_penalty}
    return own | {"neighbours": neighbours}


def decode(captioner, images: np.ndarray, args) -> tuple[list, float]:
    """A `Caption` for each of images (N, …), and the seconds that they took without tracing."""
    for count in {min(len(images), DECODING_BATCH), len(images) % DECODING_BATCH} - {0}:
        captioner.caption_features(images[:count], args.beam_size)  # both sizes are traced here
    started = time.perf_counter()
    captions = [beam[0] for beam in captioner.decode(images, args.beam_size, args.length_penalty)]
    return captions, time.perf_counter() - started


def score_rows(scorer, captions, references, training, seed: int) -> tuple[dict, np.ndarray]:
    """Scores of the model and the rows beside it, with a "protocol"; each model caption's CIDEr.

    By image id come the model's captions, their references, and the training split's human ones;
    `seed` decides whose features are given to whom.
    """
    from captioning.scoring import constant_caption

    image_ids = list(captions)
    scores, each = scorer.score(captions, references)
    rows = {"model": scores | statistics(captions, training)}
    constant = constant_caption(training)
    rows["constant"] = scorer.score(dict.fromkeys(image_ids, constant), references)[0]
    if len(image_ids) > 1:
        # A random derangement: each image gets the caption of the next in a random circle.
        circle = np.random.default_rng(seed).permutation(image_ids).tolist()
        others = dict(zip(circle, circle[1:] + circle[:1], strict=True))
        shuffled = {image_id: captions[others[image_id]] for image_id in image_ids}
        rows["shuffled"] = scorer.score(shuffled, references)[0]
    rest = {i: lines[1:] for i, lines in references.items() if len(lines) > 1}
    if rest:
        rows["human"] = scorer.score({i: references[i][0] for i in rest}, rest)[0]
        same = {i: captions[i] for i in rest}
        rows["model, same references as human"] = scorer.score(same, rest)[0]
    rows["protocol"] = {
        "images": len(image_ids),
        "references_per_image": sorted({len(lines) for lines in references.values()}),
        "tokenizer": "captions.tokenize, for candidates and references; no start, no end; "
        "characters for words in scripts without spaces",
        "constant_caption": constant,
        "human": "the first caption of each image against its others",
        "notes": notes(len(image_ids), len(rest), scorer.without_meteor),
        "seed": seed,
    }
    return rows, each


def notes(images: int, several: int, without_meteor: str) -> list[str]:
    """Where scores say little: of few images, `several` of which have more than one reference."""
    found = []
    if without_meteor:
        found.append(f"no METEOR: {without_meteor}; the other scores stand.")
    if images < FEW_IMAGES:
        found.append(f"{images} images are few: scores vary much by chance.")
    if several < images:
        found.append(
            f"{images - several} of {images} images have a single reference: scores are lower than "
            f"with several, and the human rows are of the {several} others."
        )
    return found


def trained_notes(captioner, seen: set[int], excluded: bool) -> list[str]:
    """What to know of photos that were trained on, and scored or left out."""
    if captioner.photos is None:
        return ["training photos not recorded: some of these images may be among them."]
    if not seen:
        return []
    what = "left out" if excluded else "scores are too high. Leave them out: --exclude_trained"
    return [f"{len(seen)} of these images are in the model's training set: {what}."]


def statistics(captions: dict[str, str], training: dict[str, list[str]]) -> dict[str, float]:
    """What the captions are like: variety, copies of training captions, length in words."""
    known = {line for lines in training.values() for line in lines}
    said = list(captions.values())
    return {
        "distinct_captions": len(set(said)),
        "copied_from_training": sum(caption in known for caption in said) / len(said),
        "words_used": len({word for caption in said for word in caption.split()}),
        "mean_length": sum(len(caption.split()) for caption in said) / len(said),
    }


def write_results(output_dir: Path, captions: dict[str, str], results: dict[str, dict]) -> None:
    """Write captions.json, as the COCO scorers read it, and scores.json."""
    lines = [{"image_id": image_id, "caption": text} for image_id, text in captions.items()]
    for name, content in (("captions.json", lines), ("scores.json", results)):
        with atomic_path(output_dir / name) as path:
            path.write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")
    print(f"wrote {output_dir / 'captions.json'} and {output_dir / 'scores.json'}")


def print_table(results: dict[str, dict]) -> None:
    """Print a row of scores each, and what the model's captions are like."""
    model, protocol = results["model"], results["protocol"]
    shown = [name for name in TABLE if name in model]
    rows = [name for name in results if name not in ("protocol", "confidence")]
    width = max(map(len, rows)) + 2
    print(" " * width + "".join(f"{name:>9}" for name in shown))
    for row in rows:
        print(f"{row:<{width}}" + "".join(f"{results[row][name]:>9.3f}" for name in shown))
    constant = {"constant_caption": as_written(protocol["constant_caption"])}
    print(SUMMARY.format_map(model | protocol | protocol["decoding"] | constant))
    for note in protocol["notes"]:
        cli.log(f"note: {note}")
    if protocol["split"] == "dev":
        print("dev chose the epoch and the options: the final figure is --split test")


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
