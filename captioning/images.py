"""From an image file to pixels: the one path that training and captioning share."""

import contextlib
import io
import math
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from captioning.files import InputError, is_file, one_line

READING = 2  # counts how photos have been read; features of photos read otherwise are made anew
IMAGE_SIZE = 224  # pixels, the side that most CNNs were trained on
IMAGE_SUFFIXES = frozenset([".bmp", ".gif", ".png", ".tif", ".tiff", ".webp"])
IMAGE_SUFFIXES |= {".jpg", ".jpeg", ".jpe", ".jfif"}
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")  # what else Pillow opens may start programs
MAX_PIXELS = 50_000_000  # of what is decoded; a larger JPEG is decoded small
LARGE = 4_000_000  # pixels, from which on images are decoded one at a time
RANGES = (1, 255, 1023, 4095, 16383, 65535)  # of floats, then of 8, 10, 12, 14 and 16 bits
ORIENTATION = 0x0112  # EXIF's tag, and what undoes each of its values but 1
FLIPS = Image.Transpose
UPRIGHT = {2: FLIPS.FLIP_LEFT_RIGHT, 3: FLIPS.ROTATE_180, 4: FLIPS.FLIP_TOP_BOTTOM}
UPRIGHT |= {5: FLIPS.TRANSPOSE, 6: FLIPS.ROTATE_270, 7: FLIPS.TRANSVERSE, 8: FLIPS.ROTATE_90}
BICUBIC = Image.Resampling.BICUBIC
ONE_LARGE_IMAGE = threading.Lock()  # so that threads do not each take a gigabyte


def load_image(path: str | Path, size: int = IMAGE_SIZE) -> np.ndarray:
    """Read one image, (size, size, 3) uint8: upright, RGB, squashed.

    Of several frames the first. Takes 1 GB at most, for the largest that is read. Raises
    InputError if the file is missing, not a regular file, or not an image that can be read.
    """
    # A large JPEG is decoded at a half, a quarter or an eighth, with twice the size left.
    return read_image(path, lambda image, name: image_to_pixels(image, size, name), 2 * size)


def read_image(path: str | Path, use: Callable, least: int | None = None):
    """What `use` makes of an open image and its name; at `least` so many pixels a side are needed.

    Raises InputError as `load_image` does.
    """
    name = one_line(path)
    if not is_file(path):
        raise InputError(f"{name}: no such image file")
    with contextlib.ExitStack() as stack:
        with _decoding(name):
            image = stack.enter_context(Image.open(path, formats=FORMATS))
            if least:
                image.draft(None, (least, least))
        return use(image, name)


@contextlib.contextmanager
def _decoding(name: str) -> Iterator[None]:
    """Whatever a library raises on reading an image is that image's fault: an InputError."""
    try:
        yield
    except Exception as error:
        reason = getattr(error, "strerror", None) or one_line(error) or type(error).__name__
        if isinstance(error, UnidentifiedImageError):  # whose own words repeat the path
            reason = f"it is none of {', '.join(FORMATS)}, or is cut off"
        raise InputError(f"{name}: not a readable image ({reason})") from error


def try_load_image(path: str | Path, size: int = IMAGE_SIZE) -> tuple[np.ndarray | None, str]:
    """As `load_image`, but with an error as a value: (pixels, "") or (None, what is wrong)."""
    try:
        return load_image(path, size), ""
    except InputError as error:
        return None, str(error)


def image_to_pixels(
    image: Image.Image, size: int = IMAGE_SIZE, name: str = "the image"
) -> np.ndarray:
    """Turn an open image of any mode into (size, size, 3) uint8, as `load_image` does.

    Raises InputError, with the `name`, if it is too large or cannot be decoded.
    """
    # Pillow's filters widen with the reduction, so this is antialiased.
    return upright(image, name, lambda rgb: np.asarray(rgb.resize((size, size), BICUBIC)))


def upright(image: Image.Image, name: str, use: Callable):
    """What `use` makes of an open image, turned upright and into RGB, which may be large.

    Raises InputError as `image_to_pixels` does.
    """
    count = image.width * image.height
    if count > MAX_PIXELS:
        reason = f"{count} pixels are more than {MAX_PIXELS}"
        raise InputError(f"{name}: not a readable image ({reason})")
    with ONE_LARGE_IMAGE if count > LARGE else contextlib.nullcontext():
        # What is not in such a block is our own code, whose faults are not the image's.
        with _decoding(name):
            deep, stated = _deep_values(image)
            image.load()
        orientation = None
        with contextlib.suppress(Exception):  # what cannot be parsed turns nothing
            orientation = image.getexif().get(ORIENTATION)
        if deep is not None:
            alpha = deep.shape[2:] in ((2,), (4,))  # the last channel, always of the full range
            parts = [to_bytes(deep[..., :-1] if alpha else deep, stated)]
            parts += [to_bytes(deep[..., -1:], RANGES[-1])] if alpha else []
            image = Image.fromarray(np.concatenate(parts, axis=-1))
        with _decoding(name):
            if image.has_transparency_data:  # what is transparent is seen on white
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            image = image.convert("RGB")
            if orientation in UPRIGHT:
                image = image.transpose(UPRIGHT[orientation])
            return use(image)


def array_to_pixels(values, size: int = IMAGE_SIZE) -> np.ndarray:
    """(H, W), or (H, W, 1), 3 or 4, of bytes, deeper numbers or floats -> (size, size, 3) uint8.

    Lists of such numbers will do. Raises InputError for anything else.
    """
    try:
        values = np.asarray(values)
    except ValueError as error:  # rows of different lengths
        raise InputError(f"an image is an array, or a path, or Pillow's ({error})") from error
    channels = values.shape[2:] or (1,)
    if values.ndim not in (2, 3) or channels not in ((1,), (3,), (4,)) or not values.size:
        raise InputError(f"an image is (height, width[, 1, 3 or 4]), not {values.shape}")
    if values.dtype.kind not in "buif":
        raise InputError(f"an image is of numbers, not of {values.dtype}")
    values = values[..., 0] if channels == (1,) and values.ndim == 3 else values
    values = values.astype(np.float32) if values.dtype.kind == "b" else values
    return image_to_pixels(Image.fromarray(to_bytes(values)), size)


def to_bytes(values: np.ndarray, stated: int | None = None) -> np.ndarray:
    """Values of any type as uint8, scaled by the range that their file states.

    Without one, by the smallest usual one that holds them: 12-bit pixels in a 16-bit file would
    else be black. Bytes stay as they are.
    """
    if values.dtype == np.uint8:
        return values
    usual = RANGES if values.dtype.kind == "f" else RANGES[1:]
    values = values.astype(np.float32)
    top = values.max(initial=0, where=np.isfinite(values))
    largest = next((r for r in (stated or 0, *usual) if top <= r), top)
    # Clipped before scaling: the largest floats would overflow.
    values = np.nan_to_num(values, copy=False, posinf=largest).clip(0, largest, out=values)
    scaled = values * np.float32(255 / max(largest, 1e-30))
    return (scaled + np.float32(1e-3)).astype(np.uint8)  # 119.9999 is 120


def _deep_values(image: Image.Image) -> tuple[np.ndarray | None, int | None]:
    """Pixels of more than 8 bits (H, W[, 2 to 4]), and the range that their file states, if any.

    None where Pillow's own conversion will do.
    """
    unread = getattr(image, "tile", [])  # parts of a file; empty of an image that is in memory
    grey = image.mode.startswith(("I", "F"))  # which Pillow would clip, not scale
    if not grey and ";16" not in str(unread):  # colours, of which Pillow takes the upper 8 bits
        return None, None
    stated = _stated_range(image) if unread else None
    if grey:
        return np.array(image), stated
    if image.format == "PNG":
        return _png_colours(image), stated
    if np.array(image).max() < 64:
        raise ValueError("its 16-bit colours are of fewer bits, or very dark: save 8 bits")
    return None, None


def _png_colours(image: Image.Image) -> np.ndarray:
    """A PNG's 16-bit colours (H, W, 2 to 4) uint16: Pillow reads one byte of each at a time."""
    image.fp.seek(0)
    content = image.fp.read()

    def read(raw: str) -> np.ndarray:  # the bytes (H, W, 3 or 4) that lie in the file as `raw`
        with Image.open(io.BytesIO(content), formats=("PNG",)) as copy:
            copy.tile = [tile._replace(args=raw) for tile in copy.tile]
            return np.asarray(copy)

    raw = image.tile[0].args
    if raw == "LA;16B":  # as many bytes as 8-bit RGBA
        pairs = read("RGBA")
        upper, lower = pairs[..., ::2], pairs[..., 1::2]
    else:
        upper, lower = read(raw), read(raw.replace("16B", "16L"))
    values = upper.astype(np.uint16)
    values <<= 8  # in place: such arrays are large
    values |= lower
    return values


def _stated_range(image: Image.Image) -> int | None:
    """The largest value that a pixel can have, where a TIFF or a PNG says so."""
    if image.format == "TIFF":
        bits, largest = (np.ravel(image.tag_v2.get(tag, 0)).max() for tag in (258, 281))
        return int(largest) or (2 ** int(bits) - 1 if bits < 16 else None)
    if image.format == "PNG":
        place, bits = image.fp.tell(), 0
        image.fp.seek(8)
        while len(header := image.fp.read(8)) == 8 and header[4:] != b"IDAT":
            content = image.fp.read(int.from_bytes(header[:4]))
            bits = max(content, default=0) if header[4:] == b"sBIT" else bits
            image.fp.seek(4, 1)  # the checksum
        image.fp.seek(place)
        return 2**bits - 1 if 8 < bits < 16 else None
    return None


def typical_side(paths: list[Path]) -> int:
    """The median of the photos' sides, in pixels, each that of a square as large; 0 of none."""

    def side(path: Path) -> float:
        with contextlib.suppress(Exception), Image.open(path, formats=FORMATS) as image:
            return math.sqrt(image.width * image.height)
        return 0

    with ThreadPoolExecutor() as pool:  # a network drive answers many at once
        sides = [each for each in pool.map(side, paths) if each]
    return int(np.median(sides)) if sides else 0


def is_image(name: str | Path) -> bool:
    """Whether a file is an image by the end of its name."""
    return Path(name).suffix.lower() in IMAGE_SUFFIXES


def list_images(folder: str | Path) -> list[Path]:
    """The image files directly in `folder`, sorted by name, chosen by their suffix."""
    return sorted(path for path in Path(folder).iterdir() if is_image(path))


def images_below(folder: Path) -> list[Path]:
    """The image files in a folder and all folders below it, but hidden ones; sorted."""
    folders = [folder, *(path for path in folder.rglob("*") if path.is_dir())]
    hidden = (any(part.startswith(".") for part in f.relative_to(folder).parts) for f in folders)
    seen = (list_images(f) for f, skip in zip(folders, hidden, strict=True) if not skip)
    return sorted(image for images in seen for image in images)
