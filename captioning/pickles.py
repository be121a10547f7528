"""The two pickles between preprocess.py and the scripts after it; data/README.md has every field.

Unpickling runs what a file says: these are working files, to be trusted like code. What is
checked here is that they are whole and of this project.
"""

from collections.abc import Callable
from pathlib import Path

import joblib
import numpy as np

from captioning.captions import SPLITS
from captioning.files import InputError, atomic_path, is_file, one_line


def _is_text(value) -> bool:
    return isinstance(value, str)


def _are_texts(value) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


def _are_lists_of_texts(value) -> bool:
    return (
        isinstance(value, dict) and _are_texts(list(value)) and all(map(_are_texts, value.values()))
    )


def _are_features(value) -> bool:
    """A vector for each image, or one for each cell of its grid."""
    forms = {2: np.float32, 3: np.float16}
    return isinstance(value, np.ndarray) and forms.get(value.ndim) == value.dtype


FEATURES = {
    "features": _are_features,
    "image_ids": _are_texts,
    "kind": _is_text,
    "encoder": _is_text,
    "weights_hash": _is_text,
    "fingerprint": _is_text,
    "unreadable": lambda v: isinstance(v, dict),
}
CAPTIONS = {
    "vocabulary": _are_texts,
    "captions": _are_lists_of_texts,
    "splits": lambda v: _are_lists_of_texts(v) and set(v) == set(SPLITS),
    "max_length": lambda v: isinstance(v, int) and v > 0,
    "settings": lambda v: isinstance(v, dict),
}


def save_pickle(value: dict, path: str | Path) -> None:
    """Write `value` with joblib, uncompressed, so that its arrays can be memory-mapped."""
    with atomic_path(path) as temporary:
        joblib.dump(value, temporary)


def load_features(folder: Path) -> dict:
    """Read features.pkl in `folder`, its array memory-mapped read-only.

    Raises:
        InputError: the file is missing, or not what preprocess.py writes.
    """
    value = _load(folder / "features.pkl", FEATURES)
    if len(value["image_ids"]) != len(value["features"]):
        raise InputError(
            f"{folder / 'features.pkl'} has {len(value['features'])} features of "
            f"{len(value['image_ids'])} images. Run preprocess.py again."
        )
    return value


def load_captions(folder: Path) -> dict:
    """Read captions.pkl in `folder`.

    Raises:
        InputError: the file is missing, or not what preprocess.py writes.
    """
    value = _load(folder / "captions.pkl", CAPTIONS)
    for split, image_ids in value["splits"].items():
        without = next((i for i in image_ids if not value["captions"].get(i)), None)
        if without is not None:
            raise InputError(
                f"{folder / 'captions.pkl'}: {one_line(without)} of the {split} split has no "
                f"captions. Run preprocess.py again."
            )
    return value


def _load(path: Path, entries: dict[str, Callable[[object], bool]]) -> dict:
    if not is_file(path):
        raise InputError(f"{path} is missing. Run preprocess.py first, or name its folder.")
    try:
        value = joblib.load(path, mmap_mode="r")
    except Exception as error:  # unpickling can raise anything at all
        raise InputError(
            f"{path} cannot be read ({one_line(error)}). Run preprocess.py again."
        ) from error
    wrong = list(entries)
    if isinstance(value, dict):
        wrong = [key for key, fits in entries.items() if key not in value or not fits(value[key])]
    if wrong:
        raise InputError(
            f"{path} is not what preprocess.py writes ({', '.join(wrong)}). Run it again."
        )
    return value
