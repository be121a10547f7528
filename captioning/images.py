"""From an image file to pixels: the one path that training and captioning share."""

import contextlib
import struct
import threading
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from captioning.files import InputError, is_file, one_line

IMAGE_SIZE = 224  # pixels; both encoders were trained on 224 × 224
IMAGE_SUFFIXES = frozenset([".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"])
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")  # what else Pillow opens may start programs
MAX_PIXELS = 50_000_000  # of what is decoded; a larger JPEG is decoded small
LARGE = 4_000_000  # pixels, from which on images are decoded one at a time
ONE_LARGE_IMAGE = threading.Lock()  # so that threads do not each take a gigabyte

# What Pillow's decoders are seen to raise on broken files.
BROKEN_IMAGE = (OSError, ValueError, SyntaxError, EOFError, TypeError, LookupError, OverflowError)
BROKEN_IMAGE += (struct.error, zlib.error, MemoryError, Image.DecompressionBombError)


def load_image(path: str | Path) -> np.ndarray:
    """Read one image as the encoders see it, (224, 224, 3) uint8: upright, RGB, squashed.

    Of several frames the first. Takes 1 GB at most, for the largest that is read. Raises
    InputError if the file is missing, not a regular file, or not an image that can be read.
    """
    name = one_line(path)
    if not is_file(path):
        raise InputError(f"{name}: no such image file")
    try:
        with Image.open(path, formats=FORMATS) as image:
            return image_to_pixels(image)
    except BROKEN_IMAGE as error:
        reason = getattr(error, "strerror", None) or one_line(error)  # without the path
        if isinstance(error, UnidentifiedImageError):  # whose own words repeat it
            reason = f"it is none of {', '.join(FORMATS)}, or is cut off"
        raise InputError(f"{name}: not a readable image ({reason})") from error


def try_load_image(path: str | Path) -> tuple[np.ndarray | None, str]:
    """As `load_image`, but with an error as a value: (pixels, "") or (None, what is wrong)."""
    try:
        return load_image(path), ""
    except InputError as error:
        return None, str(error)


def image_to_pixels(image: Image.Image) -> np.ndarray:
    """Turn an open image of any mode into (224, 224, 3) uint8, as `load_image` does."""
    # A large JPEG is decoded at a half, a quarter or an eighth, as long as twice the size is left.
    image.draft(None, (2 * IMAGE_SIZE, 2 * IMAGE_SIZE))
    count = image.width * image.height
    if count > MAX_PIXELS:
        raise ValueError(f"{count} pixels are more than {MAX_PIXELS}")
    with ONE_LARGE_IMAGE if count > LARGE else contextlib.nullcontext():
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith(("I", "F")):  # 16- and 32-bit grey: Pillow would clip, not scale
            grey = np.nan_to_num(np.array(image, np.float32), copy=False)
            scale = 255 / 65535 if image.mode.startswith("I;16") or grey.max() > 255 else 1
            grey.clip(0, 255 / scale, out=grey)  # before scaling: the largest would overflow
            image = Image.fromarray((grey * scale).astype(np.uint8))
        if image.has_transparency_data:  # what is transparent is seen on white
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        # Pillow's filters widen with the reduction, so this is antialiased.
        return np.asarray(image.convert("RGB").resize((IMAGE_SIZE, IMAGE_SIZE), Image.BICUBIC))


def list_images(folder: str | Path) -> list[Path]:
    """The image files directly in `folder`, sorted by name, chosen by their suffix."""
    return sorted(p for p in Path(folder).iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
