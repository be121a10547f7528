"""The captioner's .h5 file: Keras' own format, and a group that makes it describe itself.

A model file may come from a stranger. So only a few numbers, words, and plain arrays of known
shapes are read from it; the network is built from this repository's code, never from the file's.
Nothing in it is followed to another place, and nothing is read that it is not large enough for.
"""

import io
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import keras
import numpy as np

from captioning.confidence import Calibration
from captioning.files import InputError, atomic_path, is_file, one_line
from captioning.neighbours import TYPES, Neighbours

FORMAT_VERSION = 6  # of the group below
READABLE = (3, 4, 5, 6)  # 3 has no hashes of training photos
HEADERS = 2**18  # bytes, more than a model's file takes besides its arrays and words
MAX_ATTRIBUTE = 2**16  # bytes, HDF5's own limit for those that lie with their group
PRECISIONS = (np.float32, np.float16)  # in which a file may hold the weights
EXTRAS = ("photos", "neighbours", "calibration")  # fields of a captioner that may be None
GROUP = "captioner"  # our group in the .h5, beside Keras' own


def write_model(
    path: str | Path,
    network: keras.Model,
    words: list[str],
    config: dict,
    extras: dict,
    half: bool = False,
) -> None:
    """Write one .h5: Keras' model and weights, and in a group of its own all the rest.

    `words` is the vocabulary by id, `config` the captioner's few numbers, `extras` what else it
    may have, by the names in `EXTRAS`; `half` stores the weights as float16. Raises InputError if
    it cannot be written.
    """
    arrays = {}
    for name, extra in extras.items():
        if isinstance(extra, Neighbours):
            arrays |= {f"{name}/{part}": array for part, array in extra.arrays().items()}
        elif extra is not None:
            arrays[name] = np.array(extra)
    encoded = [word.encode() for word in words]
    size = 4 * network.count_params() + sum(map(len, encoded)) + HEADERS
    size += sum(array.nbytes for array in arrays.values())
    with atomic_path(path) as temporary:
        temporary.write_bytes(bytes(size))  # a full disk fails here; it would crash HDF5
        network.save(temporary, include_optimizer=False)
        if half:
            _store_halves(temporary)
        with h5py.File(temporary, "r+") as file:
            group = file.create_group(GROUP)
            group.attrs.update(format_version=FORMAT_VERSION, config=json.dumps(config))
            # A dataset: attributes stop at 64 kB. Of one width: its size is known before reading.
            width = h5py.string_dtype(length=max(map(len, encoded)))
            group.create_dataset("vocabulary", data=encoded, dtype=width)
            for name, array in arrays.items():
                group.create_dataset(name, data=array)


def write_calibration(path: Path, calibration: Calibration) -> None:
    """Put a calibration into a captioner's file, or replace the one that is there.

    Raises InputError if it cannot be written.
    """
    with atomic_path(path) as temporary:
        shutil.copyfile(path, temporary)
        with h5py.File(temporary, "r+") as file:
            group = file[GROUP]
            group.pop("calibration", None)
            group.create_dataset("calibration", data=np.array(calibration))
            group.attrs["format_version"] = FORMAT_VERSION


def _store_halves(path: Path) -> None:
    """Rewrite Keras' file with float16 arrays; HDF5 would keep the room of what is replaced."""
    with h5py.File(io.BytesIO(path.read_bytes())) as old, h5py.File(path, "w") as new:

        def copy(place: str, item: h5py.HLObject) -> None:
            if isinstance(item, h5py.Dataset):
                new.create_dataset(place, data=item[()].astype(np.float16))
            else:
                new.require_group(place).attrs.update(item.attrs)

        new.attrs.update(old.attrs)
        old.visititems(copy)


@contextmanager
def open_model(path: str | Path) -> Iterator[h5py.File]:
    """Open a model file; raises InputError if it is not, as the block may find, a captioner's."""
    if not is_file(path):
        name = one_line(path)
        raise InputError(f"{name}: no such model. Train one with train.py, or name yours.")
    try:
        with h5py.File(path) as file:
            yield file
    except (OSError, RuntimeError, LookupError, ValueError, TypeError) as error:
        raise not_a_captioner(path, error) from error


def not_a_captioner(path: str | Path, reason: object) -> InputError:
    """The error for a file that `write_model` has not written."""
    return InputError(
        f"{one_line(path)} is not a captioner that train.py wrote ({one_line(reason)}). "
        f"Train one, or name another file."
    )


def read_description(file: h5py.File) -> tuple[list[str], dict, dict]:
    """Vocabulary, config, and extras, as `write_model` took them, None where the file has none.

    Raises ValueError if they are not in its form.
    """
    group = _find(file, GROUP)
    attributes = group.attrs
    for name in ("format_version", "config"):
        attribute = attributes.get_id(name)
        if attribute.shape != () or attribute.get_storage_size() > MAX_ATTRIBUTE:
            raise ValueError(f"{name} is an array, or too large")
    version = attributes["format_version"]
    if version not in READABLE:
        raise ValueError(f"format {version}, not {FORMAT_VERSION}")
    config = json.loads(attributes["config"])
    words = _plain_dataset(file, f"{GROUP}/vocabulary")
    if words.dtype.kind != "S":
        raise ValueError("its words are not strings of one width")
    found, extras = group.id.links, dict.fromkeys(EXTRAS)
    if found.exists(b"photos"):
        photos = _plain_dataset(file, f"{GROUP}/photos")
        if photos.dtype != np.uint64 or photos.ndim != 1:
            raise ValueError("its training photos are not hashes")
        extras["photos"] = photos[:]
    if found.exists(b"neighbours"):
        if version < FORMAT_VERSION:
            raise ValueError("its neighbours are of an earlier form: run ensemble.py again")
        arrays = (_plain_dataset(file, f"{GROUP}/neighbours/{name}")[:] for name in TYPES)
        extras["neighbours"] = Neighbours(*arrays).check()
    if found.exists(b"calibration"):
        numbers = _plain_dataset(file, f"{GROUP}/calibration")
        extras["calibration"] = Calibration.parse(numbers[:].tolist())
    return [word.decode() for word in words[:].tolist()], config, extras


def read_arrays(file: h5py.File, network: keras.Model) -> None:
    """Put the file's arrays into the network; raises ValueError if one is not plainly there."""
    for layer in network.layers:
        for variable in layer.weights:
            dataset = _plain_dataset(file, f"model_weights/{layer.name}/{variable.path}")
            if dataset.shape != tuple(variable.shape) or dataset.dtype not in PRECISIONS:
                found = f"{dataset.shape} {dataset.dtype}"
                raise ValueError(f"{variable.path} is {found}, not {variable.shape} float32")
            values = dataset[:]
            if not np.isfinite(values).all():
                raise ValueError(f"{variable.path} is NaN or infinite in places")
            variable.assign(values)


def _plain_dataset(file: h5py.File, place: str) -> h5py.Dataset:
    """The array at `place`, whole and uncompressed: then a small file cannot fill the memory."""
    found = _find(file, place)
    plain = isinstance(found, h5py.Dataset) and not (
        found.chunks or found.external or found.is_virtual or found.dtype.hasobject
    )
    if not plain or found.id.get_storage_size() != found.nbytes:
        raise ValueError(f"{place} is not a plain array")
    if found.nbytes > Path(file.filename).stat().st_size:
        raise ValueError(f"{place} claims more than the file holds")
    return found


def _find(file: h5py.File, place: str) -> h5py.HLObject:
    """What is at `place`, by no other links than a file's own tree: others may lead anywhere."""
    found = file
    for name in place.split("/"):
        # Even asking h5py whether a name is in a group would open what an external link names.
        if not isinstance(found, h5py.Group) or not found.id.links.exists(name.encode()):
            raise ValueError(f"{place} is missing")
        if found.id.links.get_info(name.encode()).type != h5py.h5l.TYPE_HARD:
            raise ValueError(f"{place} is a link")
        found = found[name]
    return found
