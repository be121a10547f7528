"""Where captions go: to stdout, into a file, or each into a file beside its photo.

The three are used alike: `open` takes the photos, each with its id, and gives those that need a
caption; `write` takes one photo's captions, each with its score; `close` ends the work.
"""

import csv
import io
import itertools
import json
import os
import sys
from pathlib import Path

from captioning.beams import Caption
from captioning.files import InputError, atomic_path, is_file, one_line

FORMATS = ("tsv", "jsonl", "csv", "coco")
TSV_ESCAPES = str.maketrans({"\\": r"\\", "\t": r"\t", "\n": r"\n", "\r": r"\r"})
TEXT = {"encoding": "utf-8", "errors": "surrogateescape"}  # file names may be in any encoding


class Stream:
    """Captions line by line to an open text file, in one of `FORMATS`, each row flushed.

    A photo with several captions has a row for each, with the natural logarithm of its probability.
    JSON and CSV also have each caption's confidence, empty where the captioner knows none.
    """

    def __init__(self, form: str, num_captions: int = 1, stream=None):
        self.form, self.stream = form, stream or sys.stdout
        image = "image_id" if form == "coco" else "image_path"
        self.columns = [image, "caption", *["log_probability"] * (num_captions > 1)]
        self.columns += ["confidence"] * (form in ("jsonl", "csv"))
        self.empty = True

    def open(self, ids: dict[Path, str]) -> list[Path]:
        self.ids = ids
        return list(ids)

    def write(self, photo: Path, captions: list[Caption]) -> None:
        self.write_rows(os.fspath(photo), self.ids[photo], captions)

    def write_rows(self, path: str, image_id: str, captions: list) -> None:
        """The rows of a photo, whatever `open` has been told."""
        for caption in itertools.starmap(Caption, captions):
            row = {"image_id": image_id, "image_path": path, "caption": caption.sentence}
            row["log_probability"] = round(caption.log_probability, 4)
            row["confidence"] = None
            if caption.confidence is not None:
                row["confidence"] = round(caption.confidence, 4)
            row = self._row([row[name] for name in self.columns])
            if self.form != "tsv":  # a name in another encoding would not be UTF-8: \\udcff
                row = row.encode("utf-8", "backslashreplace").decode()
            self.stream.write(row)
            self.stream.flush()
            self.empty = False

    def close(self) -> None:
        if self.form == "coco" and not self.empty:
            self.stream.write("]\n")

    def _row(self, values: list) -> str:
        """A row, the first one with what stands before it."""
        if self.form == "tsv":
            return "\t".join([values[0].translate(TSV_ESCAPES), *map(str, values[1:])]) + "\n"
        if self.form == "csv":
            return (self._csv(self.columns) if self.empty else "") + self._csv(values)
        line = json.dumps(dict(zip(self.columns, values, strict=True)), ensure_ascii=False)
        if self.form == "coco":
            line = ("[\n " if self.empty else ",") + line
        return f"{line}\n"

    def _csv(self, values: list) -> str:
        row = io.StringIO()  # with the standard's line end, so that either half of it is quoted
        csv.writer(row).writerow(values)
        return row.getvalue().removesuffix("\r\n") + "\n"


class OutputFile:
    """A file of captions, which appears when all is done.

    Until then they are in FILE.partial, in one form whatever the format: a line of settings, then a
    JSON object for each photo. A stopped run loses a few batches, by several processes a few
    hundred photos; the last line of a killed one may be torn, and is dropped.
    """

    def __init__(self, path: Path, form: str, num_captions: int, settings: dict, replace: str = ""):
        """`settings` are what a resumed run must share; `replace`: "resume", "overwrite" or ""."""
        self.path, self.form, self.num_captions, self.replace = path, form, num_captions, replace
        self.settings = settings | {"num_captions": num_captions}
        self.partial = path.with_name(path.name + ".partial")
        self.file, self.finished = None, False

    def open(self, ids: dict[Path, str]) -> list[Path]:
        """Raises InputError if a file is there already, or is of a run with other settings."""
        self.ids = ids
        try:
            partial = self.partial.exists()
            self.finished = self.path.exists() and self.path.stat().st_size > 0
        except OSError as error:  # a name that is too long
            raise InputError(f"{one_line(self.path)}: {error.strerror}. Name another.") from error
        if self.replace == "overwrite":
            self.partial.unlink(missing_ok=True)
            partial = self.finished = False
        if (partial or self.finished) and not self.replace:
            name = one_line(self.path if self.finished else self.partial)
            raise InputError(
                f"{name} is there already. Give --resume or --overwrite, or name another."
            )
        if self.finished:
            return []
        done = self._read_back() if partial else {}
        missing = [photo for photo in ids if os.fspath(photo) not in done]
        taken = set(done.values())
        for photo in missing if self.form == "coco" else ():
            if ids[photo] in taken:
                raise InputError(f"{one_line(photo)}: {one_line(self.partial)} has its id already.")
        return missing

    def write(self, photo: Path, captions: list[Caption]) -> None:
        try:
            if self.file is None:
                self.partial.parent.mkdir(parents=True, exist_ok=True)
                # Without --resume "x": another run with the same FILE is not mixed with this one.
                mode = "a" if self.replace == "resume" else "x"
                self.file = self.partial.open(mode, encoding="ascii")
                if self.file.tell() == 0:
                    self.file.write(json.dumps(self.settings) + "\n")
            # In ASCII: a name in any encoding is read back as it was.
            row = {"image_path": os.fspath(photo), "image_id": self.ids[photo]}
            row["captions"] = captions
            self.file.write(json.dumps(row) + "\n")
            self.file.flush()
        except OSError as error:
            raise InputError(
                f"cannot write {one_line(self.partial)}: {error.strerror or one_line(error)}. Free "
                f"space and continue with --resume, or name another place."
            ) from error

    def close(self) -> None:
        """Turn FILE.partial into FILE."""
        if self.finished:
            return
        if self.file is not None:
            self.file.close()
        with (
            atomic_path(self.path) as temporary,
            self.partial.open(encoding="ascii") as lines,
            temporary.open("w", newline="", **TEXT) as file,
        ):
            stream = Stream(self.form, self.num_captions, file)
            next(lines)  # the settings
            for row in map(json.loads, lines):
                stream.write_rows(row["image_path"], row["image_id"], row["captions"])
            stream.close()
        self.partial.unlink()

    def _read_back(self) -> dict[str, str]:
        """The photos in FILE.partial with their ids, a torn last line cut off."""
        done, end, opening = {}, 0, json.dumps(self.settings).encode() + b"\n"
        try:
            with self.partial.open("rb+") as file:
                for line in file:
                    if end == 0 and not opening.startswith(line):
                        raise ValueError("it is of a run with another model or other options")
                    if not line.endswith(b"\n"):  # torn
                        break
                    if end:
                        row = json.loads(line)
                        done[os.fspath(row["image_path"])] = row["image_id"]
                    end += len(line)
                file.truncate(end)
        except (ValueError, TypeError, KeyError, RecursionError, OSError) as error:
            raise InputError(
                f"{one_line(self.partial)} cannot be continued ({one_line(error)}). Give the "
                f"options of before, or remove it."
            ) from error
        return done


class Sidecars:
    """Each caption in a text file beside its photo: that of x.jpg, and a line feed, in x.txt.

    Somebody may have edited those that are there: they stay, but for blank ones.
    """

    def __init__(self, overwrite: bool = False):
        self.overwrite = overwrite

    def open(self, ids: dict[Path, str]) -> list[Path]:
        """Raises InputError if a file would be that of two photos, or is itself among them."""
        photo_of: dict[Path, Path] = {}
        for photo in ids:
            target = photo.with_suffix(".txt")
            other = photo_of.setdefault(target, photo)
            name = one_line(photo)
            if other != photo:
                raise InputError(
                    f"{one_line(other)} and {name} cannot both have their caption in "
                    f"{one_line(target)}. Rename one, or leave it out."
                )
            if photo == target:
                raise InputError(f"{name} would be overwritten by its caption. Leave it out.")
        return [photo for photo in ids if self.overwrite or not self._has_caption(photo)]

    def _has_caption(self, photo: Path) -> bool:
        target = photo.with_suffix(".txt")
        return is_file(target) and bool(target.read_bytes().strip())

    def write(self, photo: Path, captions: list[Caption]) -> None:
        with atomic_path(photo.with_suffix(".txt")) as path:
            path.write_text(captions[0].sentence + "\n", encoding="utf-8", newline="")

    def close(self) -> None:
        """Every file is whole already."""
