"""Captions in the forms in which people have them (data/README.md), each read into the same rows.

The form is recognised by the content. What is wrong with a line is collected, so that all lines
can be mended at once; what is wrong with a file as a whole raises an InputError.
"""

import codecs
import csv
import io
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from captioning.files import InputError, is_file, one_line
from captioning.images import list_images

# Names of columns, the surest first: a table may have several of them.
IMAGE_COLUMNS = ("file_name", "filename", "image", "image_name", "image_path", "image_file", "file")
IMAGE_COLUMNS += ("path", "photo", "images", "name", "image_id", "id")
CAPTION_COLUMNS = ("caption", "captions", "text", "comment", "description", "sentence")
SPLIT_COLUMN = "split"
DELIMITERS = (",", ";", "\t", "|")
IMAGE_NAME = re.compile(r"\.(jpe?g|png|gif|bmp|webp|tiff?|jfif|jpe)\s*$", re.IGNORECASE)
TOKEN_LINE = re.compile(r"([^\t\n]+)#\d+\t(.*)")  # of Flickr8k.token.txt
JSON_START = re.compile(r'\s*(\{|\[\s*[\[{"])')  # an image's name may begin with a bracket
BYTE_ORDER_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
JSON_FAULTS = (ValueError, KeyError, TypeError, AttributeError, RecursionError)


class Row(NamedTuple):
    """One caption of one image."""

    where: str  # file and line, for messages
    image: str  # its path in the images folder, as the file has it
    caption: str
    split: str = ""  # as the file has it; "" where it says nothing


class Columns(NamedTuple):
    """What a user calls the columns, None where it is one of the known names."""

    image: str | None = None
    caption: str | None = None


BY_NAME = Columns()


def read_rows(path: Path, columns: Columns, faults: list[str]) -> Iterable[Row]:
    """The rows of a captions file, or of a folder whose images have text files beside them.

    Raises InputError if it cannot be read at all; faults of single lines are added to `faults`.
    """
    if path.is_dir():
        return read_sidecars(path)
    text = decode(path)
    if JSON_START.match(text):
        return read_json(path, text, columns, faults)
    if TOKEN_LINE.match(text.lstrip()):
        return read_token_lines(path, text, faults)
    return read_table(path, text, columns, faults)


def decode(path: Path) -> str:
    """A file's text: UTF-8, or what its byte-order mark says; raises InputError otherwise."""
    if not is_file(path):
        raise InputError(f"{one_line(path)}: no such captions file. Name yours: --captions_file.")
    content = path.read_bytes()
    marks = (name for mark, name in BYTE_ORDER_MARKS.items() if content.startswith(mark))
    try:
        return content.decode(next(marks, "utf-8"))
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 ({error.reason}). Save it as UTF-8.") from error


def read_sidecars(folder: Path) -> Iterator[Row]:
    """Of each image in `folder`, at any depth, the lines of the text file beside it."""
    for image in sorted(p for sub in [folder, *folder.rglob("*/")] for p in list_images(sub)):
        text_file = image.with_suffix(".txt")
        if is_file(text_file):
            for number, line in enumerate(decode(text_file).splitlines(), 1):
                if line.strip():
                    yield Row(f"{text_file}:{number}", image.relative_to(folder).as_posix(), line)


def read_token_lines(path: Path, text: str, faults: list[str]) -> Iterator[Row]:
    """Flickr8k.token.txt and its like: name.jpg#0<TAB>caption."""
    for number, line in enumerate(map(str.strip, text.split("\n")), 1):
        if match := TOKEN_LINE.fullmatch(line):
            yield Row(f"{path}:{number}", match[1], match[2])
        elif line:
            faults.append(f"{path}:{number}: not of the form name.jpg#0<TAB>caption.")


# -- tables ----------------------------------------------------------------------------------------


def read_table(path: Path, text: str, columns: Columns, faults: list[str]) -> Iterator[Row]:
    """A table with a header, or with the two columns image and caption."""
    delimiter, header = find_header(path, text, columns)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    places = header_places(path, header, columns) if header else (0, 1, None)
    count = len(header) if header else 2
    first = header is not None
    try:
        for row in reader:
            where = f"{path}:{reader.line_num}"
            if not any(map(str.strip, row)):
                continue
            if first:
                first = False
                continue
            if len(row) != count:
                what = "two, image and caption" if count == 2 else str(count)
                faults.append(
                    f"{where}: {len(row)} columns where there should be {what}. Put a caption "
                    f'with {delimiter!r} between double quotes ("…").'
                )
                continue
            image, caption, split = (None if p is None else row[p] for p in places)
            yield Row(where, image.strip(), caption, (split or "").strip())
    except csv.Error as error:
        faults.append(f"{path}:{reader.line_num}: {error}. Mend the line's quotes.")


def find_header(path: Path, text: str, columns: Columns) -> tuple[str, list[str] | None]:
    """The delimiter, and the header's names, in lower case; None where there is no header."""
    line = next((line for line in text.splitlines() if line.strip()), "")
    rows = {}
    for delimiter in DELIMITERS:
        try:
            cells = next(csv.reader([line], delimiter=delimiter), [])
        except csv.Error:  # a quote that ends in another line
            continue
        rows[delimiter] = [cell.strip().lower() for cell in cells]
    for delimiter, names in rows.items():
        if find(names, columns.image, IMAGE_COLUMNS) and find(
            names, columns.caption, CAPTION_COLUMNS
        ):
            return delimiter, names
    if wanted := [name for name in columns if name]:
        raise InputError(
            f"{path}: its first line, {one_line(line, 80)!r}, does not name the columns "
            f"{' and '.join(wanted)}. Name them as that line does."
        )
    for delimiter, names in rows.items():
        if len(names) == 2 and IMAGE_NAME.search(names[0]):
            return delimiter, None
    names = rows.get(",", [])
    known = len(names) == 2 and (names[0] in IMAGE_COLUMNS or names[1] in CAPTION_COLUMNS)
    if len(names) != 2 and any(name in (*IMAGE_COLUMNS, *CAPTION_COLUMNS) for name in names):
        raise InputError(
            f"{path}: its first line, {one_line(line, 80)!r}, names no column of images, or no "
            f"column of captions. Say which they are: --image_column, --caption_column."
        )
    return ",", names if known else None


def find(names: list[str], wanted: str | None, known: tuple[str, ...]) -> str | None:
    """The name of a column: the one that is wanted, or the surest of those that are known."""
    candidates = (wanted.lower(),) if wanted else known
    return next((name for name in candidates if name in names), None)


def header_places(path: Path, header: list[str], columns: Columns) -> tuple[int, int, int | None]:
    """Where a header has images, captions, and splits; of two columns one name is enough."""
    image = find(header, columns.image, IMAGE_COLUMNS)
    caption = find(header, columns.caption, CAPTION_COLUMNS)
    image_place = header.index(image) if image else 1 - header.index(caption)
    caption_place = header.index(caption) if caption else 1 - image_place
    split = header.index(SPLIT_COLUMN) if SPLIT_COLUMN in header else None
    return image_place, caption_place, split


# -- JSON ------------------------------------------------------------------------------------------


def read_json(path: Path, text: str, columns: Columns, faults: list[str]) -> Iterator[Row]:
    """COCO's, Karpathy's, a list of objects, or an object a line."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        if "Extra data" not in error.msg:
            where = f"{path}:{error.lineno}"
            raise InputError(f"{where}: {error.msg}. Mend the JSON there.") from error
        return read_lines(path, text, columns, faults)
    except (RecursionError, ValueError) as error:  # ValueError: a number of too many digits
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else error
        raise InputError(f"{path} holds no captions: {one_line(reason)}.") from error
    if isinstance(value, list):
        numbered = ((f"{path}: entry {n}", each) for n, each in enumerate(value, 1))
        return read_objects(numbered, columns, faults)
    if "annotations" in value:
        return read_whole(path, "COCO captions", coco_rows, value)
    if "images" in value:
        return read_whole(path, "Karpathy split", karpathy_rows, value)
    return read_objects([(f"{path}:1", value)], columns, faults)


def read_lines(path: Path, text: str, columns: Columns, faults: list[str]) -> Iterator[Row]:
    """An object a line, as in Hugging Face's metadata.jsonl."""

    def objects() -> Iterator[tuple[str, object]]:
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                try:
                    yield f"{path}:{number}", json.loads(line)
                except (ValueError, RecursionError) as error:
                    faults.append(f"{path}:{number}: {one_line(error)}. Mend the JSON there.")

    return read_objects(objects(), columns, faults)


def read_objects(
    objects: Iterable[tuple[str, object]], columns: Columns, faults: list[str]
) -> Iterator[Row]:
    """Objects with an image's name and a caption, or a list of captions; each with its place."""
    for where, value in objects:
        names = {f"{name}".lower(): name for name in value} if isinstance(value, dict) else {}
        image = find(names, columns.image, IMAGE_COLUMNS)
        caption = find(names, columns.caption, CAPTION_COLUMNS)
        if image is None or caption is None:
            found = ", ".join(map(one_line, names)) or "no object"
            faults.append(
                f"{where}: no image and caption in it, but {found}. Say what they are called: "
                f"--image_column, --caption_column."
            )
            continue
        lines, split = value[names[caption]], value.get(names.get(SPLIT_COLUMN), "")
        for line in lines if isinstance(lines, list) else [lines]:
            if not isinstance(line, str) or not isinstance(value[names[image]], str):
                faults.append(f"{where}: its image or caption is no text. Write both as text.")
                break
            yield Row(where, value[names[image]], line, f"{split or ''}")


def read_whole(path: Path, form: str, rows_of, value: dict) -> list[Row]:
    """The rows of a JSON file that makes sense only as a whole."""
    try:
        return rows_of(path, value)
    except JSON_FAULTS as error:
        needs = " ".join((rows_of.__doc__ or "").split())
        reason = f"{type(error).__name__}: {one_line(error, 60)}"
        raise InputError(f"{path} is no file of {form} ({reason}). {needs}") from error


def coco_rows(path: Path, value: dict) -> list[Row]:
    """It needs images with id and file_name, and annotations with image_id and caption."""
    names = {image["id"]: image["file_name"] for image in value["images"]}
    rows = []
    for number, each in enumerate(value["annotations"], 1):
        name, caption = names[each["image_id"]], each["caption"]
        if not isinstance(name, str) or not isinstance(caption, str):
            raise TypeError(f"annotation {number} has no text")
        rows.append(Row(f"{path}: annotation {number}", name, caption))
    return rows


def karpathy_rows(path: Path, value: dict) -> list[Row]:
    """It needs images, each with filename, split and sentences with raw."""
    rows = []
    for image in value["images"]:
        folder = image.get("filepath", "")  # COCO keeps its images in two folders
        name = f"{folder}/{image['filename']}" if folder else f"{image['filename']}"
        rows += [
            Row(f"{path}", name, f"{s['raw']}", f"{image['split']}") for s in image["sentences"]
        ]
    return rows
