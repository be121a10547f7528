"""Mutated files: a reader gives a result or an InputError of one printable line, nothing else.

The environment variable FUZZ_INPUTS asks for more caption files, and half as many images.
"""

import io
import os
import random

import numpy as np
import pytest
from PIL import Image

from captioning.captions import read_captions
from captioning.files import InputError
from captioning.images import load_image

pytestmark = pytest.mark.long

INPUTS = int(os.environ.get("FUZZ_INPUTS", 2000))
CAPTIONS = [
    b'image,caption\na.jpg,A dog .\na.jpg,Two dogs\nb.jpg,"A man , old"\nc.jpg,The girl\'s hat\n',
    "a.jpg#0\tA dog .\na.jpg#1\tZwei größere Hunde\nb.jpg#0\tA man , old\n".encode(),
    b'{"images": [{"filename": "a.jpg", "split": "train", "sentences": [{"raw": "A dog."}]},'
    b' {"filename": "b.jpg", "filepath": "x", "split": "val", "sentences": [{"raw": "Dogs"}]}]}',
]
PIECES = [b"\0", b"\xff", b'"', b"\n", b",", b"\t", b"#0\t", b"../", b"'s", b"\xe2\x80\x99", b"{"]
PIECES += [b"9" * 30]


def images() -> list[bytes]:
    """One small image of each format and of the modes that differ in how they are read."""
    noise = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)
    photo = Image.fromarray(noise).resize((64, 48))
    exif = Image.Exif()
    exif[274] = 8
    found = []
    for form, mode, options in (
        ("JPEG", "RGB", {"exif": exif}),
        ("JPEG", "RGB", {"progressive": True}),
        ("JPEG", "CMYK", {}),
        ("PNG", "RGB", {}),
        ("PNG", "P", {"transparency": 1}),
        ("PNG", "RGBA", {}),
        ("GIF", "P", {"save_all": True, "append_images": [photo.convert("P")]}),
        ("BMP", "RGB", {}),
        ("TIFF", "RGB", {"compression": "tiff_lzw"}),
        ("TIFF", "F", {}),
        ("WEBP", "RGB", {"lossless": True}),
    ):
        buffer = io.BytesIO()
        photo.convert(mode).save(buffer, form, **options)
        found.append(buffer.getvalue())
    return found


def mutate(content: bytes, draw: random.Random) -> bytes:
    """One to four changes: bytes replaced, inserted, repeated, or cut away."""
    content = bytearray(content)
    for _ in range(draw.randint(1, 4)):
        place = draw.randrange(len(content) + 1)
        kind = draw.randrange(5)
        if kind == 0 and place < len(content):
            content[place] = draw.randrange(256)
        elif kind == 1:
            content[place:place] = draw.choice(PIECES)
        elif kind == 2:
            content[place:place] = content[place : place + draw.randint(1, 40)]
        elif kind == 3:
            del content[place : place + draw.randint(1, 8)]
        elif draw.random() < 0.1:
            del content[place:]
    return bytes(content)


@pytest.mark.filterwarnings("error", "ignore:::PIL")  # as in the scripts
@pytest.mark.parametrize(
    ("read", "valid", "count"),
    [(read_captions, CAPTIONS, INPUTS), (load_image, images(), INPUTS // 2)],
    ids=["captions", "images"],
)
def test_mutated_files(read, valid, count, tmp_path):
    draw = random.Random(0)
    path = tmp_path / "input"  # after a failure, what made it fail
    whole = 0
    for _ in range(count):
        path.write_bytes(mutate(draw.choice(valid), draw))
        try:
            read(path)
            whole += 1
        except InputError as error:
            assert str(error).isprintable()
    assert 0.1 * count < whole < 0.9 * count  # both ways were taken
