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
from captioning.files import InputError, is_file, one_line, sha256
from captioning.images import images_below, list_images

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
    if found is None and not images_dir and folder.is_dir():
        found = folder_of_photos(folder)
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


def folder_of_photos(folder: Path) -> Path | None:
    """The folder itself if it has photos, or its only one that has; of several again itself."""
    if list_images(folder):
        return folder
    inner = [path for path in sorted(folder.iterdir()) if path.is_dir() and list_images(path)]
    return inner[0] if len(inner) == 1 else folder if inner else None


def usual_files(folder: Path, images_dir: Path) -> list[Path]:
    """The captions of a data set by their usual names; none if there are none."""
    for name in CAPTION_FILES:
        if is_file(folder / name):
            return [folder / name]
    for place in (folder, folder / "annotations"):
        if files := sorted(place.glob("captions_*.json")):  # COCO's
            return files
    names = ("metadata.jsonl", "metadata.csv")  # Hugging Face's, in the photos' folders
    places = [images_dir, *(path for path in images_dir.iterdir() if path.is_dir())]
    if files := sorted(place / name for place in places for name in names if is_file(place / name)):
        return files
    beside = (photo.with_suffix(".txt") for photo in images_below(images_dir))
    return [images_dir] if any(map(is_file, beside)) else []


def content_hash(paths: list[Path]) -> str:
    """SHA-256 of a captions file; of several, or a folder's text files, of names and hashes."""
    files = []
    for path in paths:
        files += sorted(filter(is_file, path.rglob("*.txt"))) if path.is_dir() else [path]
    if len(files) == 1:
        return sha256(files[0])
    lines = [f"{file.name} {sha256(file)}\n" for file in files]
    return hashlib.sha256("".join(lines).encode(errors="surrogateescape")).hexdigest()


def read_captions(
    paths: Path | list[Path],
    images_dir: Path | None = None,
    columns: Columns = BY_NAME,
    with_splits: bool = True,
) -> tuple[dict[str, list[str]], dict[str, list[str]] | None]:
    """Read captions files of any of the known forms (data/README.md), told apart by their content.

    Returns tokenized captions by image id, the image's path in the images folder, in the files'
    order; and the splits where the files state them, otherwise None. Of several files with a
    split's name in theirs, as COCO's, each is a split. Without `with_splits` none is read. Raises
    InputError with the file, the line and the fix.
    """
    paths = paths if isinstance(paths, list) else [paths]
    captions: dict[str, list[str]] = {}
    split_of: dict[str, str] = {}  # "" where none is stated
    faults: list[str] = []  # of all lines, so that they can be mended at once
    for path in paths:
        folder = folder_of(path, images_dir)
        of_file = split_in(path.stem, folder) if len(paths) > 1 else ""
        for row in read_rows(path, columns, faults):
            name = image_id_of(row.image.strip())
            if is_outside(name):
                shown = repr(one_line(name))
                faults.append(f"{row.where}: {shown} is not a file name inside the images folder.")
                continue
            name = f"{folder}/{name}" if folder else name
            tokens = tokenize(row.caption[:MAX_CAPTION_LENGTH])
            captions.setdefault(name, []).append(" ".join(tokens))
            if fault := _fault(row.caption, tokens):
                faults.append(f"{row.where}: the caption of {one_line(name)} {fault} or drop it.")
            if with_splits and (fault := _set_split(split_of, name, row.split, of_file)):
                faults.append(f"{row.where}: {fault}")
    if faults:
        more = [f"… and {len(faults) - FAULTS_SHOWN} more"] * (len(faults) > FAULTS_SHOWN)
        raise InputError("\n".join([*faults[:FAULTS_SHOWN], *more]))
    if not captions:
        raise InputError(f"{paths[0]} holds no captions.")
    return captions, _splits(split_of)


def _set_split(split_of: dict[str, str], name: str, stated: str, of_file: str) -> str:
    """Note the split that a row states, or its file; returns what is wrong with it, or ""."""
    split = SPLIT_NAMES.get(stated.lower(), "") if stated else of_file
    if stated and not split:
        return f"the split {one_line(stated, 50)!r} is none of {', '.join(SPLIT_NAMES)}."
    before = split_of.setdefault(name, split)
    if before == split:
        return ""
    other = f"in the {before} split" if before else "in no split"
    return f"{one_line(name)} is {other} before. Choose one."


def folder_of(path: Path, images_dir: Path | None) -> str:
    """The folder, in that of the images, of the images that a captions file names.

    It is train2017 of COCO's captions_train2017.json, where there is such a folder; or the file's
    own, where there are images, as in Hugging Face's; or a folder of text files itself.
    """
    if images_dir is None:
        return ""
    coco = path.stem.removeprefix("captions_")
    if coco != path.stem and (images_dir / coco).is_dir():
        return coco
    own, images = path.resolve() if path.is_dir() else path.resolve().parent, images_dir.resolve()
    inside = own != images and own.is_relative_to(images)
    return own.relative_to(images).as_posix() if inside and folder_of_photos(own) else ""


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
            f"each a split, or lists of your own: --train_list."
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
        wanted = path and (given or is_file(path))
        names = decode(path, "list of images").split("\n") if wanted else []
        splits[split] = list(dict.fromkeys(image_id_of(n.strip()) for n in names if n.strip()))
    return splits if given or any(splits.values()) else None


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
