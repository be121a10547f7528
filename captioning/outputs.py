"""Where captions go: line by line to stdout or into a file, or each into a file beside its photo.

`Lines` and `Sidecars` are used alike: `open` tells which photos still need a caption, `write` takes
one photo's, `close` ends the work.
"""

import csv
import io
import json
import os
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from captioning.files import InputError, atomic_path, is_file, one_line

FORMATS = ("tsv", "jsonl", "csv", "coco")
TSV_ESCAPES = str.maketrans({"\\": r"\\", "\t": r"\t", "\n": r"\n", "\r": r"\r"})
LONGEST_LINE = 2**17  # bytes, more than a path and a caption take
TEXT = {"encoding": "utf-8", "errors": "surrogateescape"}  # file names may be in any encoding


class Lines:
    """Captions line by line, in one of `FORMATS`; with their scores when there are several.

    A score is the natural logarithm of the caption's probability. Nothing waits for a later line,
    and a line is whole when its line feed is there: so a file can be gone on with.
    """

    def __init__(self, form: str, num_captions: int = 1, path: Path | None = None):
        """Take the form, how many captions a photo gets at most, and the file; None is stdout."""
        self.form, self.num_captions, self.path = form, num_captions, path
        image = "image_id" if form == "coco" else "image_path"
        self.columns = [image, "caption", *["log_probability"] * (num_captions > 1)]
        self.opening = {"csv": ",".join(self.columns) + "\n", "coco": "[\n"}.get(form, "")
        self.empty = True  # no caption yet
        self.stream = sys.stdout

    def open(self, photos: list[Path], resume: bool = False) -> list[bool]:
        """Open the file, its folder made; of each photo, whether it still needs its line.

        Args:
            photos: all that will be written, in this order.
            resume: go on with the file, less what was cut off at its end.

        Raises:
            InputError: the file cannot be written, holds something already and is not to be
                resumed, or holds something else than such lines.
        """
        if self.path is None:
            return [True] * len(photos)
        held = is_file(self.path) and self.path.stat().st_size > 0
        if held and not resume:
            raise InputError(
                f"{one_line(self.path)} is there already. Go on with it by --resume, or remove it."
            )
        done, end = self._read_back(photos) if held else (Counter(), 0)
        self.empty = not done.total()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.stream = self.path.open("r+" if held else "w", newline="", **TEXT)
            if held:
                self.stream.seek(0 if self.empty else end)
                self.stream.truncate()
        except OSError as error:
            raise self._cannot_write(error) from error
        missing = []
        for name in map(self._name, photos):  # named twice, a photo has two lines
            missing.append(not done[name])
            done[name] -= bool(done[name])
        return missing

    def write(self, photo: Path, captions: list[tuple[str, float]]) -> None:
        """Write the captions of one photo, each with its score."""
        for caption, score in captions:
            self._put((self.opening if self.empty else "") + self._line(photo, caption, score))
            self.empty = False

    def close(self) -> None:
        """Write what ends the file."""
        if self.form == "coco" and not self.empty:
            self._put("]\n")
        if self.path is not None:
            self.stream.close()

    def _line(self, photo: Path, caption: str, score: float) -> str:
        values = [self._name(photo), caption, *[round(score, 4)] * (self.num_captions > 1)]
        if self.form == "tsv":
            return "\t".join(map(str, values)) + "\n"
        if self.form == "csv":
            row = io.StringIO()  # with the standard's line end, so that either half is quoted
            csv.writer(row, lineterminator="\r\n").writerow(values)
            return row.getvalue().removesuffix("\r\n") + "\n"
        line = json.dumps(dict(zip(self.columns, values, strict=True)), ensure_ascii=False)
        comma = "" if self.form == "jsonl" else " " if self.empty else ","
        return f"{comma}{line}\n"

    def _name(self, photo: Path) -> str:
        """What a line calls the photo."""
        if self.form == "coco":
            return photo.name
        name = os.fspath(photo)
        return name.translate(TSV_ESCAPES) if self.form == "tsv" else name

    def _put(self, text: str) -> None:
        try:
            self.stream.write(text)
            self.stream.flush()
        except OSError as error:
            if self.path is None:
                raise
            raise self._cannot_write(error) from error

    def _cannot_write(self, error: OSError) -> InputError:
        reason = error.strerror or one_line(error)
        return InputError(
            f"cannot write {one_line(self.path)}: {reason}. Free space and go on with --resume, "
            f"or name another place."
        )

    # -- reading back ------------------------------------------------------------------------------

    def _read_back(self, photos: list[Path]) -> tuple[Counter[str], int]:
        """How often the file has each photo, by its line's name, and the bytes that hold them."""
        done: Counter[str] = Counter()
        name, captions, begin, end = None, 0, 0, 0
        try:
            with self.path.open("rb") as file:
                for found, start, end in self._whole_lines(file, photos):  # noqa: B007
                    if found != name or captions == self.num_captions:  # the next photo
                        name, captions, begin = found, 0, start
                        done[name] += 1
                    captions += 1
        except (ValueError, RecursionError, csv.Error, OSError) as error:
            raise InputError(
                f"{one_line(self.path)} is not what --format {self.form} with these options writes "
                f"({one_line(error)}). Give the options of before, or name another file."
            ) from error
        if 0 < captions < self.num_captions:  # perhaps stopped between them
            done[name] -= 1
            return done, begin
        return done, end

    def _whole_lines(self, file: BinaryIO, photos) -> Iterator[tuple[str, int, int]]:
        """Yield each line's photo, and where the line begins and ends; not one that was cut off.

        Raises:
            ValueError, csv.Error: there is another line.
        """
        start, text, opening, closed = 0, b"", self.opening.encode(), False
        for line in file:
            text += line
            if not line.endswith(b"\n") or (self.form == "csv" and text.count(b'"') % 2):
                if len(text) > LONGEST_LINE:
                    raise ValueError("a quote is never closed")
                continue  # within a name, or the file was cut off here
            end = start + len(text)
            if closed or (start == 0 and opening and text != opening):
                raise ValueError(f"{one_line(text.decode(**TEXT), 40)!r} does not belong there")
            if self.form == "coco" and text == b"]\n":
                closed = True
            elif text != opening or start:
                yield self._read_line(text.removesuffix(b"\n").decode(**TEXT)), start, end
            start, text = end, b""
        if start == 0 and not self._begins(text, photos):
            raise ValueError(f"it begins with {one_line(text.decode(**TEXT), 40)!r}")

    def _read_line(self, text: str) -> str:
        """The photo that a line names.

        Raises:
            ValueError, csv.Error: the line is not of this form.
        """
        if self.form == "tsv":
            values = text.split("\t")
        elif self.form == "csv":
            values = next(csv.reader([text], strict=True))
        else:
            line = json.loads(text[1:] if self.form == "coco" else text)
            ours = isinstance(line, dict) and list(line) == self.columns
            values = list(line.values()) if ours else []
        if len(values) != len(self.columns) or not isinstance(values[0], str):
            raise ValueError(f"{one_line(text, 40)!r} is not {', '.join(self.columns)}")
        return values[0]

    def _begins(self, text: bytes, photos: list[Path]) -> bool:
        """Whether a file of such lines can begin so: one that is not ours is never cut."""
        begins = [self.opening] if self.opening else [f"{self._name(p)}\t" for p in photos]
        if self.form == "jsonl":
            begins = [f'{{"{self.columns[0]}": "']
        begins = [begin.encode(**TEXT) for begin in begins]
        return any(text.startswith(begin) or begin.startswith(text) for begin in begins)


class Sidecars:
    """Each caption in a text file beside its photo: that of x.jpg, and a line feed, in x.txt."""

    def open(self, photos: list[Path], resume: bool = False) -> list[bool]:
        """Of each photo, whether it still needs its file: without `resume` all do.

        Raises:
            InputError: a file would be that of two photos, or is itself among them.
        """
        photo_of: dict[Path, Path] = {}
        for photo in photos:
            other = photo_of.setdefault(photo.with_suffix(".txt"), photo)
            if other != photo or photo.suffix == ".txt":
                raise InputError(
                    f"{one_line(other)} and {one_line(photo)} cannot both have their caption in "
                    f"{one_line(photo.with_suffix('.txt'))}. Rename one, or leave it out."
                    if other != photo
                    else f"{one_line(photo)} would be overwritten by its caption. Leave it out."
                )
        return [not (resume and is_file(photo.with_suffix(".txt"))) for photo in photos]

    def write(self, photo: Path, captions: list[tuple[str, float]]) -> None:
        """Write the best caption of one photo."""
        with atomic_path(photo.with_suffix(".txt")) as path:
            path.write_text(captions[0][0] + "\n", encoding="utf-8", newline="")

    def close(self) -> None:
        """Every file is whole already."""
