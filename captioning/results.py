"""A folder of results: what evaluate.py writes, and compare.py reads."""

import csv
import json
from pathlib import Path

import numpy as np

from captioning.files import InputError, atomic_path, is_file, one_line

PER_PHOTO = "per_photo.csv"
TEXT = {"encoding": "utf-8", "newline": ""}


def write_json(target: Path, content) -> None:
    """Write a file that people read as well as programs."""
    with atomic_path(target) as path:
        path.write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")


def write_results(
    folder: Path,
    said: dict,
    references: dict[str, list[str]],
    each: dict[str, np.ndarray],
    results: dict[str, dict],
) -> None:
    """Write captions.json, as the COCO scorers read it, per_photo.csv, and scores.json.

    `said` has the `Caption` of each of N images by its id; `each` scores of theirs by name, (N,).
    """
    captions = [{"image_id": i, "caption": caption.text} for i, caption in said.items()]
    write_json(folder / "captions.json", captions)
    write_json(folder / "scores.json", results)
    with atomic_path(folder / PER_PHOTO) as path, path.open("w", **TEXT) as file:
        columns = ("image", "caption", "log_probability", "confidence", *each, "references")
        table = csv.DictWriter(file, columns)
        table.writeheader()
        for row, (image_id, caption) in enumerate(said.items()):
            human = json.dumps(references[image_id], ensure_ascii=False)
            own = {"image": image_id, "caption": caption.text, "references": human}
            own |= {name: getattr(caption, name) for name in ("log_probability", "confidence")}
            table.writerow(own | {name: values[row] for name, values in each.items()})
    names = ("captions.json", PER_PHOTO, "scores.json")
    print(f"wrote {', '.join(str(folder / name) for name in names)}")


def read_results(folder: Path) -> tuple[dict[str, str], dict[str, list[str]]]:
    """The caption of each image of a folder of results, by its id, and its references.

    Raises InputError if the folder has none, or they cannot be read.
    """
    path = folder / PER_PHOTO
    if not is_file(path):
        raise InputError(f"{path}: no such file. Run evaluate.py --output_dir {folder} again.")
    captions, references = {}, {}
    try:
        with path.open(**TEXT) as file:
            for row in csv.DictReader(file, strict=True):
                image_id, lines = row["image"], json.loads(row["references"])
                if image_id in captions or not isinstance(lines, list) or not all(lines):
                    raise ValueError(f"image {one_line(image_id)} is there twice, or has no text")
                captions[image_id], references[image_id] = row["caption"], lines
        if not captions:
            raise ValueError("it has no image")
    except (ValueError, KeyError, TypeError, csv.Error) as error:
        raise InputError(
            f"{path} is not what evaluate.py writes ({error}). Run it again."
        ) from error
    return captions, references
