"""Feed mutated files to the readers, to see that nothing but a result or an InputError comes back.

    python benchmarks/mutations.py [--count 100000] [--seed 0]

Valid captions files and images get a few bytes changed, cut away or repeated. Prints how many
inputs each reader took, how many reached tokens or pixels, and the slowest; a fault ends the run
and leaves the input on the disk.
"""

import argparse
import io
import random
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from PIL import Image  # noqa: E402
from tqdm import tqdm  # noqa: E402

from captioning.captions import read_captions  # noqa: E402
from captioning.encoders import load_image  # noqa: E402
from captioning.files import InputError  # noqa: E402

CAPTIONS = [
    b'image,caption\na.jpg,A dog .\na.jpg,Two dogs\nb.jpg,"A man , old"\nc.jpg,The girl\'s hat\n',
    "a.jpg#0\tA dog .\na.jpg#1\tZwei größere Hunde\nb.jpg#0\tA man , old\n".encode(),
    b'{"images": [{"filename": "a.jpg", "split": "train", "sentences": [{"raw": "A dog."}]},'
    b' {"filename": "b.jpg", "filepath": "x", "split": "val", "sentences": [{"raw": "Dogs"}]}]}',
]
PIECES = [
    b"\0",
    b"\xff",
    b'"',
    b"\n",
    b",",
    b"\t",
    b"#0\t",
    b"../",
    b"'s",
    b"\xe2\x80\x99",
    b"{",
    b"9" * 30,
]


def images() -> list[bytes]:
    """One small image of each format and of the modes that differ in how they are read."""
    noise = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)
    photo = Image.fromarray(noise).resize((64, 48))
    exif = Image.Exif()
    exif[274] = 8
    ways = [
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
    ]
    found = []
    for form, mode, options in ways:
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


def main() -> None:
    """Run all inputs and print what became of them."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--count", type=int, default=100_000, help="inputs, half of each kind")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    draw = random.Random(args.seed)
    path = Path(tempfile.mkdtemp()) / "input"
    print(f"each input in turn is {path}; after a fault, the one that made it")
    for name, reader, seeds in (
        ("captions", read_captions, CAPTIONS),
        ("images", load_image, images()),
    ):
        reached = slowest = 0
        count = args.count // 2
        for _ in tqdm(range(count), desc=name, mininterval=10):
            path.write_bytes(mutate(draw.choice(seeds), draw))
            started = time.perf_counter()
            try:
                reader(path)
                reached += 1
            except InputError as error:
                if not str(error).isprintable():
                    raise SystemExit(f"{path}: its error is not one line: {error!r}") from error
            slowest = max(slowest, time.perf_counter() - started)
        share = f"{reached / count:.0%}"
        print(f"{name}: {count} inputs, {share} read, the others refused, slowest {slowest:.2f} s")


if __name__ == "__main__":
    main()
