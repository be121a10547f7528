"""Turn a folder of photos and a captions file into the two pickles that train.py reads."""

import argparse
import contextlib
import hashlib
import os
import shutil
from itertools import chain
from pathlib import Path

from captioning import cli
from captioning.captions import (
    CAPTION_FILES,
    IMAGE_FOLDERS,
    SPECIAL_TOKENS,
    SPLITS,
    Vocabulary,
    check_splits,
    random_splits,
    read_captions,
    read_split_lists,
)
from captioning.encoders import ENCODERS, KINDS
from captioning.features import extract_features, load_features, shard_files
from captioning.files import InputError, is_file, one_line, save_pickle, sha256
from captioning.images import list_images

DESCRIPTION = """\
Extract image features with a frozen CNN and tokenize the captions.

Reads   DATASET_DIR/Images/ and DATASET_DIR/captions.txt (or Flickr8k.token.txt, a Karpathy
        dataset_*.json, a CSV with the two columns image,caption), and the official split lists
        Flickr_8k.{train,dev,test}Images.txt where they are; without lists, a random split.
Writes  OUTPUT_DIR/features.pkl and OUTPUT_DIR/captions.pkl (data/README.md: every field).

  python preprocess.py
  python preprocess.py --encoder efficientnet_lite0          # weights included, no download
  python preprocess.py --weights vgg16_weights_tf_dim_ordering_tf_kernels.h5   # no network

A stopped run continues where it was when the same command is given again."""

FEATURES_HELP = """\
pooled: one vector per image; layers: with what earlier layers of the CNN see, which makes better
captions; grid: one vector for each of 7 × 7 cells, for train.py --decoder attention, forty times as
large: 900 MB for Flickr8k"""
N_JOBS_HELP = """\
processes that extract side by side and share the cores; each takes about 1 GB. One process uses all
cores, but not every step of its work can: try 2 on 8 cores or more"""


def parse_arguments() -> argparse.Namespace:
    """The command line's options, each with its default and its reason."""
    parser = cli.parser(DESCRIPTION)
    add, count = parser.add_argument, cli.positive_int
    add("--dataset_dir", type=Path, default="data/flickr8k", help="photos, captions, split lists")
    add("--images_dir", type=Path, help="the photos, when not in DATASET_DIR/Images")
    add("--captions_file", type=Path, help="the captions, when not in DATASET_DIR")
    add("--splits_dir", type=Path, help="the split lists, when not in DATASET_DIR")
    add("--output_dir", type=Path, default="data", help="where the two pickles go")
    add("--encoder", choices=ENCODERS, default="vgg16", help="the frozen CNN")
    add("--features", choices=KINDS, default="pooled", help=FEATURES_HELP)
    cli.add_weights_option(parser)
    why = "words seen less often in training become <unk>: too rare to learn"
    add("--min_word_count", type=count, default=3, metavar="N", help=why)
    why = "keep the last N captions of each image, in every split; all when not given"
    add("--captions_per_image", type=count, metavar="N", help=why)
    why = "images per pass of the CNN; more takes more memory and is hardly faster"
    add("--batch_size", type=count, default=16, metavar="N", help=why)
    workers = parser.add_mutually_exclusive_group()
    workers.add_argument("--n_jobs", type=count, default=1, metavar="N", help=N_JOBS_HELP)
    why = "extract on the workers of a Dask scheduler, tcp://HOST:8786 (docs/preprocessing.md)"
    workers.add_argument("--dask", metavar="ADDRESS", help=why)
    why = "use only the first N images of each split, for a quick trial"
    add("--limit", type=count, metavar="N", help=why)
    why = "of the random split, where there are no split lists"
    add("--seed", type=cli.seed, default=0, help=why)
    add("--allow_missing", action="store_true", help="continue without images that are not there")
    return parser.parse_args()


def main() -> None:
    """Read, check, extract, count, write; nothing is written before everything is checked."""
    args = parse_arguments()
    images_dir, captions_file = find_dataset(args)
    captions, splits = read_captions(captions_file)
    splits, source = choose_splits(args, captions, splits)
    if args.limit:
        splits = {split: image_ids[: args.limit] for split, image_ids in splits.items()}
    splits = drop_missing(splits, images_dir, args.allow_missing)
    wanted = set(chain(*splits.values()))
    unused = sum(path.name not in wanted for path in list_images(images_dir))

    features, is_new = features_of(args, images_dir, sorted(wanted))
    readable = set(features["image_ids"])
    splits = {split: [i for i in ids if i in readable] for split, ids in splits.items()}
    if not splits["train"]:
        raise InputError("no training image could be read; nothing was written.")
    text = text_of(args, captions, splits) | {"settings": settings(args, captions_file, source)}
    if is_new:
        save_pickle(features, args.output_dir / "features.pkl")
    save_pickle(text, args.output_dir / "captions.pkl")
    shutil.rmtree(args.output_dir / "shards", ignore_errors=True)
    report(text, features, unused)
    print(f"wrote {args.output_dir / 'features.pkl'} and {args.output_dir / 'captions.pkl'}")
    print(f"next: python train.py --data_dir {args.output_dir}")


def find_dataset(args) -> tuple[Path, Path]:
    """The images folder and the captions file, given or found under the names they come with.

    Raises:
        InputError: naming what is missing, and how to get or name it.
    """
    folder = args.dataset_dir
    if not folder.is_dir() and not (args.images_dir and args.captions_file):
        raise InputError(
            f"{folder}: no such folder. Fetch Flickr8k: python data/download.py; or name yours "
            f"with --dataset_dir (docs/preprocessing.md). Without any: make demo"
        )
    folders = [args.images_dir] if args.images_dir else [folder / name for name in IMAGE_FOLDERS]
    files = [args.captions_file] if args.captions_file else [folder / n for n in CAPTION_FILES]
    images_dir = next((folder for folder in folders if folder.is_dir()), None)
    captions_file = next((file for file in files if file.is_file()), None)
    if images_dir is None:
        raise InputError(
            f"{folders[0]}: no such folder. Name the photos' folder with --images_dir, or fetch "
            f"Flickr8k: python data/download.py"
        )
    if captions_file is None:
        raise InputError(f"{files[0]}: no such file. Name the captions with --captions_file.")
    return images_dir, captions_file


def choose_splits(args, captions, splits) -> tuple[dict[str, list[str]], str]:
    """The captions file's own splits, the official lists, or a random split; and which it was."""
    source = "captions file"
    if splits is None or args.splits_dir:
        folder = args.splits_dir or args.dataset_dir
        splits, source = read_split_lists(folder), "lists"
        if splits is None and args.splits_dir:
            raise InputError(f"{folder} has no list named like Flickr_8k.trainImages.txt.")
    if splits is None:
        splits, source = random_splits(captions, args.seed), "random"
    check_splits(splits, captions)
    return splits, source


def drop_missing(splits, images_dir: Path, allow_missing: bool) -> dict[str, list[str]]:
    """Leave out images whose files are not there, if that is allowed.

    Raises:
        InputError: images are missing and that is not allowed, or all are; or one is a link to
            somewhere else, which a captions file from elsewhere has no business to read.
    """
    wanted = [i for split in SPLITS for i in splits[split]]
    missing = {i for i in wanted if not is_file(images_dir / i)}
    folder = os.path.realpath(images_dir)
    for i in wanted:
        if i not in missing and not Path(os.path.realpath(images_dir / i)).is_relative_to(folder):
            raise InputError(
                f"{one_line(i)} is a link that leads out of {images_dir}. Put the photo there."
            )
    if not missing:
        return splits
    named = [one_line(image_id) for image_id in sorted(missing)]
    some = ", ".join(named[:3]) + (", …" if len(missing) > 3 else "")
    if len(missing) == len(wanted):
        raise InputError(f"none of the {len(wanted)} captioned images is in {images_dir} ({some}).")
    if not allow_missing:
        raise InputError(
            f"{len(missing)} of {len(wanted)} images are not in {images_dir}: {some}\n"
            f"Add them, or continue without them: --allow_missing"
        )
    for name in named:
        cli.log(f"missing, left out: {name}")
    return {split: [i for i in ids if i not in missing] for split, ids in splits.items()}


def features_of(args, images_dir: Path, image_ids: list[str]) -> tuple[dict, bool]:
    """The content of features.pkl, and whether it is new: no image has changed, or extracted."""
    from captioning.encoders import Encoder

    if args.weights == "random":
        cli.log("WARNING: --weights random is for tests: such features are meaningless.")
    cli.load_tensorflow()
    encoder = Encoder(args.encoder, args.weights, args.features)
    paths = [images_dir / image_id for image_id in image_ids]
    files = shard_files(encoder, paths, args.output_dir / "shards")
    fingerprint = hashlib.sha256(" ".join(file.name for file in files).encode()).hexdigest()
    with contextlib.suppress(InputError):  # there is none, or a broken one: it will be replaced
        old = load_features(args.output_dir)
        if old["fingerprint"] == fingerprint:
            cli.log(
                f"features.pkl is up to date: the {len(old['image_ids'])} images are unchanged."
            )
            return old, False
    features, errors = extract_features(
        encoder, paths, files, args.batch_size, args.n_jobs, args.dask
    )
    unreadable = {i: error for i, error in zip(image_ids, errors, strict=True) if error}
    for error in unreadable.values():
        cli.log(f"skipped: {error}")
    content = {
        "features": features,
        "image_ids": [i for i in image_ids if i not in unreadable],
        "kind": encoder.kind,
        "encoder": encoder.name,
        "weights_hash": encoder.weights_hash,
        "fingerprint": fingerprint,
        "unreadable": unreadable,
    }
    return content, True


def text_of(args, captions: dict[str, list[str]], splits: dict[str, list[str]]) -> dict:
    """The content of captions.pkl, but for its settings.

    Raises:
        InputError: no word is frequent enough.
    """
    keep = -args.captions_per_image if args.captions_per_image else None
    captions = {i: captions[i][keep:] for split in SPLITS for i in splits[split]}
    training = [caption for i in splits["train"] for caption in captions[i]]
    vocabulary = Vocabulary.from_captions(training, args.min_word_count)
    if not vocabulary.words[len(SPECIAL_TOKENS) :]:
        raise InputError(f"no word is seen {args.min_word_count} times: lower --min_word_count.")
    return {
        "vocabulary": vocabulary.words,
        "captions": captions,
        "splits": splits,
        "max_length": max(len(caption.split()) for caption in training),
    }


def settings(args, captions_file: Path, source: str) -> dict:
    """What captions.pkl was made from; `source` is where the splits are from."""
    names = ("min_word_count", "captions_per_image", "limit", "seed")
    return {
        "captions_file": captions_file.name,
        "captions_sha256": sha256(captions_file),
        "splits": source,
        **{name: getattr(args, name) for name in names},
    }


def report(text: dict, features: dict, unused: int) -> None:
    """Print what was made: images, captions and unknown words per split, vocabulary, lengths."""
    known = set(text["vocabulary"])
    print(f"{'split':<8}{'images':>8}{'captions':>10}{'tokens':>10}{'unknown':>9}{'longest':>9}")
    for split, image_ids in text["splits"].items():
        lines = [caption.split() for i in image_ids for caption in text["captions"][i]]
        tokens = [token for line in lines for token in line]
        unknown = sum(token not in known for token in tokens)
        share = f"{unknown / len(tokens):.2%}" if tokens else "-"
        longest = max(map(len, lines), default=0)
        print(
            f"{split:<8}{len(image_ids):>8}{len(lines):>10}{len(tokens):>10}{share:>9}{longest:>9}"
        )
    source = text["settings"]["splits"]
    print(f"vocabulary: {len(known)} entries, four of them special; splits: {source}")
    print(
        f"images: {len(features['image_ids'])} with features, {len(features['unreadable'])} "
        f"unreadable and skipped; {unused} in the folder unused (no caption, or in no split)"
    )


if __name__ == "__main__":
    cli.run(main, "The same command continues where it was.")
