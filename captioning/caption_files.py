"""Captions in the forms in which people have them (data/README.md), each read into the same rows.

The form is recognised by the content. What is wrong with a line is collected, so that all lines
can be mended at once; what is wrong with a file as a whole raises an InputError.
"""

import codecs
import contextlib
import csv
import io
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from captioning.files import InputError, is_file, one_line
from captioning.images import images_below, is_image

# Names of columns, the surest first: a table may have several of them.
IMAGE_COLUMNS = ("file_name", "filename", "image", "image_name", "image_path", "image_file", "file")
IMAGE_COLUMNS += ("path", "photo", "images", "name", "image_id", "id")
NUMBERS = ("image_id", "id")  # those in which COCO's results have an image's number
CAPTION_COLUMNS = ("caption", "captions", "text", "comment", "description", "sentence")
SPLIT_COLUMN = "split"
UNNAMED = ["image", "caption"]  # the columns of a table without a header
DELIMITERS = (",", ";", "\t", "|")
TOKEN_LINE = re.compile(r"([^\t\n]+)#\d+\t(.*)")  # of Flickr8k.token.txt
JSON_START = re.compile(r'\s*(\{\s*["}]|\[\s*[\[{"\]])')  # a name may begin with such a bracket
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
        return without_columns(path, columns, read_sidecars(path))
    text = decode(path)
    if JSON_START.match(text):
        return read_json(path, text, columns, faults)
    if TOKEN_LINE.match(text.lstrip()):
        return without_columns(path, columns, read_token_lines(path, text, faults))
    return read_table(path, text, columns, faults)


def without_columns(path: Path, columns: Columns, rows: Iterable[Row]) -> Iterable[Row]:
    """The rows; raises InputError where the user names columns of a form that has none."""
    if any(columns):
        raise InputError(f"{path} has no columns: leave out --image_column, --caption_column.")
    return rows


def decode(path: Path, what: str = "captions file") -> str:
    """A file's text: UTF-8, or what its byte-order mark says; raises InputError otherwise."""
    if not is_file(path):
        raise InputError(f"{one_line(path)}: no such {what}. Name yours.")
    content = path.read_bytes()
    marks = (name for mark, name in BYTE_ORDER_MARKS.items() if content.startswith(mark))
    try:
        return content.decode(next(marks, "utf-8"))
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 ({error.reason}). Save it as UTF-8.") from error


def read_sidecars(folder: Path) -> Iterator[Row]:
    """Of each image in `folder`, at any depth, the lines of the text file beside it."""
    for image in images_below(folder):
        text_file = image.with_suffix(".txt")
        if is_file(text_file):
            for number, line in enumerate(decode(text_file).split("\n"), 1):
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
    names = header or UNNAMED
    places, count = find_places(names, columns), len(names)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, **dialect(delimiter))
    rows = (row for row in reader if any(map(str.strip, row)))
    try:
        if header:
            next(rows)
        for row in rows:
            where = f"{path}:{reader.line_num}"
            if len(row) == count - 1 and delimiter == "|":
                row = with_number(row)
            if len(row) != count:
                faults.append(f"{where}: {wrong_width(len(row), count, delimiter)}")
                continue
            image, caption, split = ("" if place is None else row[place] for place in places)
            yield Row(where, image, caption, split.strip())
    except csv.Error as error:
        where = f"{path}:{reader.line_num}"
        faults.append(f"{where}: {error}. Mend the line's quotes; those after it were not read.")


def dialect(delimiter: str) -> dict:
    """Quotes keep a delimiter together; a caption may well begin with one, but has no tab or |."""
    quoting = csv.QUOTE_NONE if delimiter in "\t|" else csv.QUOTE_MINIMAL
    return {"delimiter": delimiter, "quoting": quoting}


def with_number(row: list[str]) -> list[str]:
    """A row whose number and caption are not separated, as one of Flickr30k's results.csv is."""
    for place, cell in enumerate(row):
        if match := re.fullmatch(r"\s*(\d+)\s+(\S.*)", cell):
            return [*row[:place], *match.groups(), *row[place + 1 :]]
    return row


def wrong_width(found: int, count: int, delimiter: str) -> str:
    """What is wrong with a row of other columns than it should have, and the fix."""
    wanted = "two, image and caption" if count == 2 else f"{count}"
    fix = f"Separate them by {delimiter!r}."
    if found > count:
        fix = "Leave that sign out of captions."
        if delimiter in ",;":
            fix = f'Put a caption with {delimiter!r} between double quotes ("…").'
    return f"{found} columns where there should be {wanted}. {fix}"


def find_header(path: Path, text: str, columns: Columns) -> tuple[str, list[str] | None]:
    """The delimiter, and the columns' names, in lower case; None where there is no header.

    Raises InputError where the first line names columns, but not those that are needed.
    """
    line = next((line for line in text.splitlines() if line.strip()), "")
    rows = {}
    for delimiter in DELIMITERS:
        with contextlib.suppress(csv.Error):  # a quote that ends in another line
            cells = next(csv.reader([line], **dialect(delimiter)), [])
            rows[delimiter] = [cell.strip().lower() for cell in cells]
    for both in (True, False):
        for delimiter, names in rows.items():
            image, caption, _ = find_places(names, columns, both)
            if image is not None and caption is not None:
                return delimiter, names
    shown = f"{path}: its first line, {one_line(line, 80)!r},"
    if wanted := [one_line(name) for name in columns if name]:
        raise InputError(f"{shown} does not name the columns {' and '.join(wanted)} so.")
    for delimiter, names in rows.items():
        if len(names) == 2 and is_image(names[0]):
            return delimiter, None
    known = {*IMAGE_COLUMNS, *CAPTION_COLUMNS}
    if len(rows.get(",", [])) != 2 and any(known.intersection(names) for names in rows.values()):
        raise InputError(
            f"{shown} names no column of images, or no column of captions. Say which they are: "
            f"--image_column, --caption_column."
        )
    return ",", None


def find_places(
    names: list[str], columns: Columns, both: bool = False
) -> tuple[int | None, int | None, int | None]:
    """Where a table with these columns has images, captions, and splits; None where it has not.

    Of two columns one name is enough, unless `both` are asked for, or the user names the other.
    """
    image = find(names, columns.image, IMAGE_COLUMNS)
    caption = find(names, columns.caption, CAPTION_COLUMNS)
    image, caption = (None if name is None else names.index(name) for name in (image, caption))
    if len(names) == 2 and not both:
        if image is None and caption is not None and not columns.image:
            image = 1 - caption
        elif caption is None and image is not None and not columns.caption:
            caption = 1 - image
    return image, caption, names.index(SPLIT_COLUMN) if SPLIT_COLUMN in names else None


def find(names: list[str], wanted: str | None, known: tuple[str, ...]) -> str | None:
    """The name of a column: the one that is wanted, or the surest of those that are known."""
    candidates = (wanted.lower(),) if wanted else known
    return next((name for name in candidates if name in names), None)


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
        rows = read_whole(path, "COCO captions", coco_rows, value)
        return without_columns(path, columns, rows)
    if isinstance(value.get("images"), list):
        rows = read_whole(path, "Karpathy split", karpathy_rows, value)
        return without_columns(path, columns, rows)
    if value and all(map(is_image, value)):  # names with their captions
        pairs = [(f"{path}: {one_line(k)}", {"image": k, "caption": v}) for k, v in value.items()]
        return without_columns(path, columns, read_objects(pairs, BY_NAME, faults))
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
            found = one_line(", ".join(names), 100) if isinstance(value, dict) else "no object"
            faults.append(
                f"{where}: no image and caption in it, but {found or 'nothing'}. Say what they are "
                f"called: --image_column, --caption_column."
            )
            continue
        lines, split = value[names[caption]], value.get(names.get(SPLIT_COLUMN), "")
        name = value[names[image]]
        if image in NUMBERS and type(name) is int:
            name = str(name)
        if lines == []:
            faults.append(f"{where}: it has no caption. Write one or drop it.")
        for line in lines if isinstance(lines, list) else [lines]:
            if not isinstance(line, str) or not isinstance(name, str):
                faults.append(f"{where}: its image or caption is no text. Write both as text.")
                break
            yield Row(where, name, line, f"{split or ''}")


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
        for sentence in image["sentences"]:
            if image["filename"] is None or sentence["raw"] is None:
                raise TypeError("null in place of a text")
            rows.append(Row(f"{path}", name, f"{sentence['raw']}", f"{image['split']}"))
    return rows
