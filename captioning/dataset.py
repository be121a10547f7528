"""A data set as people have it: its photos, its captions, and how it is split.

All forms of captions, and all ways to split, end in the same two dicts: image id -> captions, and
split name -> image ids.
"""

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path, PurePath, PurePosixPath

from captioning.caption_files import BY_NAME, Columns, decode, read_rows
from captioning.captions import (
    MAX_CAPTION_LENGTH,
    MAX_CAPTION_WORDS,
    SPLITS,
    tokenize,
)
from captioning.files import InputError, is_file, one_line
from captioning.images import list_images

SPLIT_LISTS = {split: f"Flickr_8k.{split}Images.txt" for split in SPLITS}
SPLIT_NAMES = {  # as files have them
    **dict.fromkeys(("train", "training", "restval"), "train"),
    **dict.fromkeys(("dev", "val", "valid", "validation"), "dev"),
    **dict.fromkeys(("test", "testing"), "test"),
}
FAULTS_SHOWN = 50  # of a data set's lines, at most
IMAGE_FOLDERS = ("Images", "Flicker8k_Dataset", "Flickr8k_Dataset")  # names in data sets
CAPTION_FILES = ("captions.txt", "Flickr8k.token.txt", "captions.csv")
CAPTION_FILES += ("dataset_flickr8k.json", "dataset_flickr30k.json", "dataset_coco.json")
CAPTION_FILES += ("results.csv", "captions.json", "captions.jsonl", "metadata.jsonl")
CAPTION_FILES += ("metadata.csv",)
HELD_OUT = 0.1  # share of the images that a random split keeps for dev, and again for test


def find_dataset(
    folder: Path, images_dir: Path | None = None, captions_files: list[Path] | None = None
) -> tuple[Path, list[Path]]:
    """A data set's photos and captions files; raises InputError where they are not found.

    They are looked for in its folder by their usual names, unless others are given. In place of a
    file there may be the folder of photos, with a text file beside each.
    """
    folders = [images_dir] if images_dir else [folder / name for name in IMAGE_FOLDERS]
    found = next(filter(Path.is_dir, folders), None)
    if found is None and not images_dir and folder.is_dir() and has_images(folder):
        found = folder  # as Hugging Face's image folders are
    if found is None:
        raise InputError(
            f"{folders[0]}: no such folder. Fetch Flickr8k: python data/download.py; or name yours "
            f"with --dataset_dir or --images_dir (docs/preprocessing.md). Without any: make demo"
        )
    files = captions_files or usual_files(folder, found)
    if not files:
        raise InputError(
            f"{folder / CAPTION_FILES[0]}: no such file, nor captions of another form. Name yours "
            f"with --captions_file."
        )
    return found, files


def has_images(folder: Path) -> bool:
    """Whether there are images in a folder, or in those directly in it."""
    return any(map(list_images, [folder, *filter(Path.is_dir, folder.iterdir())]))


def usual_files(folder: Path, images_dir: Path) -> list[Path]:
    """The captions of a data set by their usual names; none if there are none."""
    for name in CAPTION_FILES:
        if is_file(folder / name):
            return [folder / name]
    for place, names in (
        (folder, "captions_*.json"),  # COCO's
        (folder / "annotations", "captions_*.json"),
        (images_dir, "*/metadata.jsonl"),  # Hugging Face's, one for each split
        (images_dir, "*/metadata.csv"),
    ):
        if files := sorted(place.glob(names)):
            return files
    return [images_dir] if any(images_dir.rglob("*.txt")) else []


def content_hash(paths: list[Path]) -> str:
    """SHA-256 of the captions files' content; of a folder, of the text files in it."""
    digest = hashlib.sha256()
    for path in paths:
        for file in sorted(path.rglob("*.txt")) if path.is_dir() else [path]:
            digest.update(file.read_bytes())
    return digest.hexdigest()


def read_captions(
    paths: Path | list[Path], images_dir: Path | None = None, columns: Columns = BY_NAME
) -> tuple[dict[str, list[str]], dict[str, list[str]] | None]:
    """Read captions files of any of the known forms (data/README.md), told apart by their content.

    Returns tokenized captions by image id, the image's path in the images folder, in the files'
    order; and the splits where the files state them, otherwise None. Of several files with a
    split's name in theirs, as COCO's, each is a split. Raises InputError with the file, the line
    and the fix.
    """
    paths = paths if isinstance(paths, list) else [paths]
    captions: dict[str, list[str]] = {}
    split_of: dict[str, str] = {}
    faults: list[str] = []  # of all lines, so that they can be mended at once
    for path in paths:
        folder = folder_of(path, images_dir)
        of_file = split_in(path.stem, path.parent.name) if len(paths) > 1 else ""
        for row in read_rows(path, columns, faults):
            name = image_id_of(f"{folder}/{row.image}" if folder else row.image)
            if is_outside(name):
                shown = repr(one_line(name))
                faults.append(f"{row.where}: {shown} is not a file name inside the images folder.")
                continue
            tokens = tokenize(row.caption[:MAX_CAPTION_LENGTH])
            captions.setdefault(name, []).append(" ".join(tokens))
            if fault := _fault(row.caption, tokens):
                faults.append(f"{row.where}: the caption of {one_line(name)} {fault} or drop it.")
            split = SPLIT_NAMES.get(row.split.lower(), "") if row.split else of_file
            if row.split and not split:
                known = ", ".join(SPLIT_NAMES)
                faults.append(
                    f"{row.where}: the split {one_line(row.split, 50)!r} is none of {known}."
                )
            if split_of.setdefault(name, split) != split:
                other = f"in the {split_of[name]} split" if split_of[name] else "in no split"
                faults.append(f"{row.where}: {one_line(name)} is {other} before. Choose one.")
    if faults:
        more = [f"… and {len(faults) - FAULTS_SHOWN} more"] * (len(faults) > FAULTS_SHOWN)
        raise InputError("\n".join([*faults[:FAULTS_SHOWN], *more]))
    if not captions:
        raise InputError(f"{paths[0]} holds no captions.")
    return captions, _splits(split_of)


def folder_of(path: Path, images_dir: Path | None) -> str:
    """The folder, in that of the images, of the images that a captions file names.

    It is the file's own, as in Hugging Face's image folders; or train2017 of COCO's
    captions_train2017.json, where there is such a folder.
    """
    if images_dir is None or path.is_dir():
        return ""
    own, images = path.resolve().parent, images_dir.resolve()
    if own != images and own.is_relative_to(images):
        return own.relative_to(images).as_posix()
    coco = path.stem.removeprefix("captions_")
    return coco if coco != path.stem and (images_dir / coco).is_dir() else ""


def split_in(*names: str) -> str:
    """The split that one of the names of a file speaks of, as captions_val2017; "" if none does."""
    for name in names:
        parts = re.split(r"[^a-z]+", name.lower())
        if found := next((SPLIT_NAMES[part] for part in parts if part in SPLIT_NAMES), ""):
            return found
    return ""


def _splits(split_of: dict[str, str]) -> dict[str, list[str]] | None:
    """From image id -> split, "" where none is stated, to split -> image ids, or None."""
    if not any(split_of.values()):
        return None
    if without := [name for name, split in split_of.items() if not split]:
        raise InputError(
            f"{one_line(without[0])} is in no split, as others are ({len(without)} images). Give "
            f"each row its split, or none."
        )
    return {split: [i for i, own in split_of.items() if own == split] for split in SPLITS}


def is_outside(name: str) -> bool:
    """Whether a name is none of a file below the images folder."""
    parts = PurePosixPath(name.replace("\\", "/")).parts
    absolute = PurePath(name).anchor or parts[:1] == ("/",)  # of Windows, C:
    return not parts or bool(absolute) or ".." in parts or "\0" in name


def _fault(caption: str, tokens: list[str]) -> str:
    """What is wrong with a caption and the first half of the fix; "" if nothing is."""
    if len(caption) > MAX_CAPTION_LENGTH:
        long = f"has {len(caption)} characters; at most {MAX_CAPTION_LENGTH} are allowed"
        return f"{long}. Shorten it"
    if len(tokens) > MAX_CAPTION_WORDS:
        return f"has {len(tokens)} words; at most {MAX_CAPTION_WORDS} are allowed. Shorten it"
    if not caption.strip():
        return "is empty. Write one"
    return "" if tokens else "has no word, neither letter nor digit. Write one"


def image_id_of(name: str) -> str:
    """The one id of a photo: its path in the images folder, without "./" and "//"."""
    return PurePosixPath(name).as_posix()


def read_split_lists(folder: Path, given: dict[str, Path] | None = None) -> dict | None:
    """Split -> image ids, of lists with a name a line; None if there are none.

    Those `given` for splits, or Flickr8k's in `folder`. Raises InputError if a given one is
    missing, or one is not in UTF-8.
    """
    lists = given or {split: Path(folder) / name for split, name in SPLIT_LISTS.items()}
    splits: dict[str, list[str]] = {}
    for split in SPLITS:
        path = lists.get(split)
        names = decode(path).split("\n") if path and (given or is_file(path)) else []
        splits[split] = list(dict.fromkeys(image_id_of(n.strip()) for n in names if n.strip()))
    return splits if any(splits.values()) else None


def check_splits(splits: dict[str, list[str]], captions: dict[str, list[str]]) -> None:
    """Raises InputError unless splits are disjoint, all images captioned, and some to train on."""
    seen: dict[str, str] = {}
    for split, image_ids in splits.items():
        for image_id in image_ids:
            if image_id in seen:
                raise InputError(
                    f"{one_line(image_id)} is in both the {seen[image_id]} and the {split} split. "
                    f"Remove it from one list: splits must be disjoint."
                )
            if image_id not in captions:
                raise InputError(f"{one_line(image_id)}, of the {split} split, has no captions.")
            seen[image_id] = split
    if not splits["train"]:
        raise InputError("no images to train on. Name a list of some: --train_list.")


def random_splits(image_ids: Iterable[str], seed: int) -> dict[str, list[str]]:
    """Split at random by image, a tenth each for dev and test; raises InputError below 3 images."""
    from sklearn.model_selection import train_test_split

    image_ids = sorted(image_ids)  # the split must not depend on the captions' order
    if len(image_ids) < 3:
        raise InputError(f"{len(image_ids)} captioned images are too few to split: give 3 or more.")
    size = max(1, round(len(image_ids) * HELD_OUT))
    rest, test = train_test_split(image_ids, test_size=size, random_state=seed)
    train, dev = train_test_split(rest, test_size=size, random_state=seed)
    return {"train": sorted(train), "dev": sorted(dev), "test": sorted(test)}
