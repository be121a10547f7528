"""Which photos a command names: files, folders, and patterns, each photo once."""

import glob
import re
from pathlib import Path

from captioning import cli
from captioning.files import InputError, one_line
from captioning.images import images_below, is_image, list_images

NAMES_SHOWN = 5  # of what is left out of a folder
# COCO's own names, whose number is the image's id: COCO_val2014_000000391895, 000000391895.
COCO_NAME = re.compile(r"(?:COCO_\w+[0-9]{4}_)?(0{5}[0-9]{7})")


def list_photos(arguments: list[str], recursive: bool = False) -> dict[Path, str]:
    """The files named, and the images in the folders named, each with its path from there on.

    A pattern, as photos/*.jpg, names what it matches; ** in it any folders. With `recursive` the
    folders' own folders are searched. What else is in a folder is counted and named. Raises
    InputError where a pattern matches nothing.
    """
    photos: dict[Path, str] = {}
    for argument in arguments:
        is_pattern = glob.has_magic(argument) and not Path(argument).exists()
        folder, paths = matches(argument) if is_pattern else named(argument)
        before = len(photos)
        for path in paths:
            images = [path]
            if path.is_dir():
                images = images_below(path) if recursive else list_images(path)
                if not is_pattern:
                    log_others(path, images, recursive)
            for image in images:
                photos.setdefault(image, image.relative_to(folder).as_posix())
        if is_pattern and len(photos) == before:
            hint = "the sign [ itself is written [[]"
            raise InputError(f"{one_line(argument)}: no image matches this pattern ({hint}).")
    return photos


def named(argument: str) -> tuple[Path, list[Path]]:
    """A file, or a folder, and the folder from which on its photos have their names."""
    path = Path(argument)
    return path if path.is_dir() else path.parent, [path]


def matches(pattern: str) -> tuple[Path, list[Path]]:
    """The images and folders that a pattern matches, and the folder from which on it is one."""
    parts, folder = Path(pattern).parts, Path()
    while len(parts) > 1 and (not glob.has_magic(parts[0]) or (folder / parts[0]).is_dir()):
        folder, parts = folder / parts[0], parts[1:]
    found = glob.glob(str(Path(*parts)), root_dir=folder, recursive=True)  # noqa: PTH207
    paths = (folder / name for name in sorted(found))
    return folder, [path for path in paths if path.is_dir() or is_image(path)]


def log_others(folder: Path, images: list[Path], recursive: bool) -> None:
    """Say what in a folder is not captioned; text files of its images are not named."""
    if not images:
        cli.log(f"no images in {folder}: it has no file named like .jpg or .png")
    known = {*images, *(image.with_suffix(".txt") for image in images)}
    folders, files = [], []
    for path in sorted(folder.rglob("*") if recursive else folder.iterdir()):
        if path not in known and not path.name.startswith("."):
            (folders if path.is_dir() else files).append(path.relative_to(folder).as_posix())
    if folders and not recursive:
        cli.log(left_out(folders, "folder", folder) + " (--recursive takes their images)")
    if files:
        cli.log(left_out(files, "file", folder))


def left_out(names: list[str], kind: str, folder: Path) -> str:
    """How many of a kind are not captioned, and the first names."""
    more = ["…"] * (len(names) > NAMES_SHOWN)
    some = ", ".join([*map(one_line, names[:NAMES_SHOWN]), *more])
    return f"left out in {folder}: {len(names)} {kind}{'s' * (len(names) > 1)}: {some}"


def coco_id(image_id: str) -> str | int:
    """The number in a file name of COCO's; other names, with their folders, are ids themselves."""
    match = COCO_NAME.fullmatch(Path(image_id).stem)
    return int(match[1]) if match else image_id
