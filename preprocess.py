"""Extract image features with a frozen CNN and tokenize the captions.

Reads   from DATASET_DIR: Images/; captions.txt, Flickr8k.token.txt, a Karpathy dataset_*.json or a
        CSV image,caption; and Flickr_8k.{train,dev,test}Images.txt, or the split is random.
Writes  OUTPUT_DIR/features.pkl and OUTPUT_DIR/captions.pkl (data/README.md: every field).

  python preprocess.py
  python preprocess.py --encoder efficientnet_lite0          # weights included, no download
  python preprocess.py --encoder resnet50 --features layers  # any CNN of Keras Applications
  python preprocess.py --weights vgg16_weights_tf_dim_ordering_tf_kernels.h5   # no network

A stopped run continues where it was when the same command is given again."""

import argparse
import hashlib
import json
import os
import unicodedata
from collections import defaultdict
from itertools import chain, count
from pathlib import Path

import numpy as np

from captioning import cli
from captioning.caption_files import Columns
from captioning.captions import SPECIAL_TOKENS, SPLITS, Vocabulary
from captioning.dataset import (
    check_splits,
    content_hash,
    find_dataset,
    random_splits,
    read_captions,
    read_split_lists,
)
from captioning.encoders import ENCODERS, KINDS, Encoder
from captioning.features import (
    extract_features,
    hash_files,
    load_features,
    merge,
    remove_shards,
    shard_files,
)
from captioning.files import InputError, is_file, one_line, save_pickle
from captioning.images import READING, is_image, typical_side
from captioning.parallel import add_worker_options


def parse_arguments() -> argparse.Namespace:
    """The command line's options, each with its default and its reason."""
    parser = cli.parser(__doc__)
    add, positive = parser.add_argument, cli.positive_int
    add("--dataset_dir", type=Path, default="data/flickr8k", help="photos, captions, split lists")
    add("--images_dir", type=Path, help="the photos, when not in DATASET_DIR/Images")
    why = "the captions, when not in DATASET_DIR: files of any form in data/README.md, or the "
    why += "folder of the photos, where each has a text file beside it"
    add("--captions_file", type=Path, nargs="+", metavar="FILE", help=why)
    why = "what the captions file calls the images' names, and the captions, where it is none of "
    why += "the usual words"
    add("--image_column", metavar="NAME", help=why)
    add("--caption_column", metavar="NAME", help="see --image_column")
    for split in SPLITS:
        why = f"a file with the name of a {split} image a line; see data/README.md"
        add(f"--{split}_list", type=Path, metavar="FILE", help=why)
    add("--splits_dir", type=Path, help="the split lists, when not in DATASET_DIR")
    add("--output_dir", type=Path, default="data", help="where the two pickles go")
    why = "the frozen CNN: " + ", ".join(ENCODERS)
    add("--encoder", choices=ENCODERS, default="vgg16", metavar="NAME", help=why)
    why = "pooled: one vector; layers: of more layers, for better captions; grid: for updown"
    add("--features", choices=KINDS, default="pooled", help=why)
    cli.add_weights_option(parser)
    why = "reduce photos to N × N first, as those of a captioner to start from were (default: the "
    why += "size that the CNN sees, or the photos' own where that is smaller)"
    add("--photo_size", type=positive, metavar="N", help=why)
    why = (
        "bfloat16 makes VGG16 1.8 times as fast, EfficientNet-Lite 1.1, on processors that have it "
    )
    why += "(AMX, AVX-512 BF16); features differ a little (docs/preprocessing.md)"
    add("--precision", choices=cli.PRECISIONS, default=cli.PRECISIONS[0], help=why)
    why = "words seen less often in training become <unk>: too rare to learn"
    add("--min_word_count", type=positive, default=3, metavar="N", help=why)
    add("--captions_per_image", type=positive, metavar="N", help="only the last N of each image")
    add("--batch_size", type=positive, default=16, help="images per pass; more is hardly faster")
    why = "processes that share the cores, 1 GB each or more of large CNNs; one alone leaves some "
    why += "idle"
    add_worker_options(parser, why)
    add("--limit", type=positive, metavar="N", help="the first N images of each split, for a trial")
    add("--seed", type=cli.seed, default=0, help="of a random split, where there are no lists")
    add("--allow_missing", action="store_true", help="continue without images that are not there")
    return parser.parse_args()


def main() -> None:
    """Read, check, extract, count, write; nothing is written before everything is checked."""
    args = parse_arguments()
    images_dir, files = find_dataset(args.dataset_dir, args.images_dir, args.captions_file)
    cli.log(f"captions: {', '.join(map(str, files))}; photos: {images_dir}")
    columns = Columns(args.image_column, args.caption_column)
    lists = {split: getattr(args, f"{split}_list") for split in SPLITS}
    lists = {split: path for split, path in lists.items() if path}
    if lists and args.splits_dir:
        raise InputError("--splits_dir and --train_list name two splits: leave out one.")
    captions, splits = read_captions(files, images_dir, columns, with_splits=not lists)
    captions_sha256 = content_hash(files)
    captions, splits, source = choose_splits(args, lists, images_dir, captions, splits)
    splits = {split: image_ids[: args.limit] for split, image_ids in splits.items()}
    splits = drop_missing(splits, images_dir, args.allow_missing)
    wanted = set(chain(*splits.values()))
    images = set(filter(is_image, names_below(images_dir)))
    unused = len(images - wanted)

    features, is_new = features_of(args, images_dir, sorted(wanted))
    readable = set(features["image_ids"])
    splits = {split: [i for i in ids if i in readable] for split, ids in splits.items()}
    if not splits["train"]:
        raise InputError("no training image could be read; nothing was written.")
    text = text_of(args, captions, splits)
    names = ("min_word_count", "captions_per_image", "limit", "seed")
    text["settings"] = {
        "captions_file": ", ".join(file.name for file in files),
        "captions_sha256": captions_sha256,
        "splits": source,
        **{name: getattr(args, name) for name in names},
    }
    if is_new:
        save_pickle(features, args.output_dir / "features.pkl")
    save_pickle(text, args.output_dir / "captions.pkl")
    report(text, features, unused)
    del features  # mapped from a file there, which Windows would not remove
    remove_shards(args.output_dir / "shards")
    print(f"wrote {args.output_dir / 'features.pkl'} and {args.output_dir / 'captions.pkl'}")
    print(f"next: python train.py --data_dir {args.output_dir}")


def choose_splits(args, lists: dict, images_dir: Path, captions, splits) -> tuple[dict, dict, str]:
    """Captions and splits, by the names of the files, and where the splits are from.

    Splits are the captions file's own, those of the official lists, or random ones.
    """
    source = "captions file"
    if lists:
        splits, source = read_split_lists(args.dataset_dir, lists), "lists"
    elif splits is None or args.splits_dir:
        splits, source = read_split_lists(args.splits_dir or args.dataset_dir), "lists"
    if splits is None and args.splits_dir:
        raise InputError(f"{args.splits_dir} has no list named like Flickr_8k.trainImages.txt.")
    names = names_of_files(images_dir, {*captions, *chain(*(splits or {}).values())})
    by_name = defaultdict(list)
    for image_id, lines in captions.items():
        by_name[names[image_id]] += lines
    captions = dict(by_name)
    if splits is None:
        splits, source = random_splits(captions, args.seed), "random"
    else:
        splits = {s: list(dict.fromkeys(names[i] for i in ids)) for s, ids in splits.items()}
    check_splits(splits, captions)
    return captions, splits, source


def names_of_files(images_dir: Path, image_ids: set[str]) -> dict[str, str]:
    """The name of each image's file: macOS writes é in another form than captions do.

    Only where a single file is meant. An image that is not there keeps its id.
    """
    absent = [i for i in image_ids if not is_file(images_dir / i)]
    forms = defaultdict(list)
    for name in names_below(images_dir) if absent else ():
        forms[unicodedata.normalize("NFC", name)].append(name)
    names = {i: i for i in image_ids}
    for i in absent:
        same = forms[unicodedata.normalize("NFC", i)]
        names[i] = same[0] if len(same) == 1 else i
    return names


def names_below(folder: Path) -> list[str]:
    """The paths of all that is in `folder`, from there on."""
    return [path.relative_to(folder).as_posix() for path in folder.rglob("*")]


def drop_missing(splits, images_dir: Path, allow_missing: bool) -> dict[str, list[str]]:
    """Leave out images that are not there; raises InputError where all are, or some must be."""
    wanted = list(chain(*splits.values()))
    missing = {i for i in wanted if not is_file(images_dir / i)}
    named = [one_line(image_id) for image_id in sorted(missing)]
    if missing and not allow_missing:
        named = did_you_mean(named, images_dir)
    some = ", ".join(named[:3]) + (", …" if len(missing) > 3 else "")
    if len(missing) == len(wanted):
        raise InputError(
            f"none of the {len(wanted)} captioned images is in {images_dir} ({some}). Name the "
            f"photos' folder with --images_dir."
        )
    if missing and not allow_missing:
        raise InputError(
            f"{len(missing)} of {len(wanted)} images are not in {images_dir}: {some}\n"
            f"Add them, or continue without them: --allow_missing"
        )
    for name in named:
        cli.log(f"missing, left out: {name}")
    return {split: [i for i in ids if i not in missing] for split, ids in splits.items()}


def did_you_mean(names: list[str], images_dir: Path) -> list[str]:
    """The names, with those of files that differ in case, suffix or the kind of slash alone."""

    def key(name: str) -> str:
        return os.path.splitext(name.replace("\\", "/"))[0].casefold()  # noqa: PTH122 - also of "."

    known = {key(name): name for name in names_below(images_dir)}
    hints = [known.get(key(name)) for name in names]
    return [f"{n} (did you mean {h}?)" if h else n for n, h in zip(names, hints, strict=True)]


def features_of(args, images_dir: Path, image_ids: list[str]) -> tuple[dict, bool]:
    """The content of features.pkl, and whether it is new.

    Images whose bytes features.pkl knows are not encoded again. Those that could not be read are
    tried again each time: a network drive may be back.
    """
    if args.weights == "random":
        cli.log("WARNING: --weights random is for tests: such features are meaningless.")
    cli.load_tensorflow(args.precision)
    encoder = Encoder(args.encoder, args.weights, args.features, precision=args.precision)
    paths = [images_dir / image_id for image_id in image_ids]
    side = args.photo_size or typical_side(paths) or encoder.image_size
    encoder.photo_size = min(side, encoder.image_size)
    hashes, work_dir = hash_files(paths), args.output_dir / "shards"
    old = old_features(args.output_dir, encoder)
    known = {content: row for row, content in enumerate(old["files"])} if old else {}
    todo = [n for n, content in enumerate(hashes) if content not in known]
    array, photos, errors = None, np.empty(0, np.uint64), []
    if todo:
        files = shard_files(encoder, [hashes[n] for n in todo], work_dir)
        wanted = [paths[n] for n in todo]
        array, photos, errors = extract_features(
            encoder, wanted, files, args.batch_size, args.n_jobs, args.dask
        )
    unreadable = {image_ids[n]: error for n, error in zip(todo, errors, strict=True) if error}
    for error in unreadable.values():
        cli.log(f"skipped: {error}")
    readable = [n for n, image_id in enumerate(image_ids) if image_id not in unreadable]
    content = {
        "image_ids": [image_ids[n] for n in readable],
        "kind": encoder.kind,
        "encoder": encoder.name,
        "weights_hash": encoder.weights_hash,
        "photo_size": encoder.photo_size,
        "reading": READING,
        "files": [hashes[n] for n in readable],
        "unreadable": unreadable,
    }
    if encoder.precision != cli.PRECISIONS[0]:  # files of before have float32 and do not say so
        content["precision"] = encoder.precision
    identity = json.dumps(content | {"unreadable": sorted(unreadable)})  # errors hold paths
    fingerprint = hashlib.sha256(identity.encode()).hexdigest()
    if old and old["fingerprint"] == fingerprint:
        cli.log(f"features.pkl is up to date: the {len(readable)} images are unchanged.")
        return old, False
    if old:
        new = count()  # the rows of what was extracted, in the same order
        rows = [(0, known[h]) if h in known else (1, next(new)) for h in content["files"]]
        array = merge(work_dir / "merged.npy", [old["features"], array], rows)
        hashes_of = [old["photos"], photos]
        photos = np.array([hashes_of[part][row] for part, row in rows], np.uint64)
    content |= {"features": array, "photos": photos, "fingerprint": fingerprint}
    return content, True


def old_features(folder: Path, encoder: Encoder) -> dict | None:
    """The content of features.pkl, if it is there, whole, and of this encoder."""
    try:
        old = load_features(folder)
    except InputError:
        return None
    made_by = (encoder.name, encoder.weights_hash, encoder.kind, encoder.photo_size, READING)
    names = ("encoder", "weights_hash", "kind", "photo_size", "reading")
    alike = tuple(old[name] for name in names) == made_by
    return old if alike and old.get("precision", cli.PRECISIONS[0]) == encoder.precision else None


def text_of(args, captions: dict[str, list[str]], splits: dict[str, list[str]]) -> dict:
    """The content of captions.pkl; raises InputError where no word is frequent enough."""
    keep = args.captions_per_image or 0  # 0: all
    captions = {i: captions[i][-keep:] for i in chain(*splits.values())}
    training = [caption for i in splits["train"] for caption in captions[i]]
    vocabulary = Vocabulary.from_captions(training, args.min_word_count)
    if len(vocabulary) == len(SPECIAL_TOKENS):
        raise InputError(f"no word is seen {args.min_word_count} times: lower --min_word_count.")
    return {
        "vocabulary": vocabulary.words,
        "captions": captions,
        "splits": splits,
        "max_length": max(len(caption.split()) for caption in training),
    }


def report(text: dict, features: dict, unused: int) -> None:
    """Print what was made: images, captions and unknown words per split, vocabulary, lengths."""
    known = set(text["vocabulary"])
    row = "{:<8}{:>8}{:>10}{:>10}{:>9}{:>9}".format
    print(row("split", "images", "captions", "tokens", "unknown", "longest"))
    for split, image_ids in text["splits"].items():
        lines = [caption.split() for i in image_ids for caption in text["captions"][i]]
        tokens = [token for line in lines for token in line]
        unknown = sum(token not in known for token in tokens)
        share = f"{unknown / len(tokens):.2%}" if tokens else "-"
        longest = max(map(len, lines), default=0)
        print(row(split, len(image_ids), len(lines), len(tokens), share, longest))
    source = text["settings"]["splits"]
    print(f"vocabulary: {len(known)} entries, four of them special; splits: {source}")
    print(
        f"images: {len(features['image_ids'])} with features, {len(features['unreadable'])} "
        f"unreadable and skipped; {unused} in the folder unused (no caption, or in no split)"
    )


if __name__ == "__main__":
    cli.run(main, "The same command continues where it was.")
