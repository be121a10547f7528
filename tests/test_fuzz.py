"""Spoilt photos, captioners and caption files: each is read, or refused in one line.

`FUZZ=20000 make test-long ARGS="-k spoilt"` tries so many photos and texts, and a tenth as many
captioners. Each is made from its number alone, so a fault comes again. Those that fail are left in
the test's folder, as is the one that ended the process.
"""

import copy
import faulthandler
import functools
import io
import json
import multiprocessing
import os
import random
import struct
import tempfile
import time
import traceback
import unicodedata
import warnings
import zlib
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import h5py
import numpy as np
import pytest
import tensorflow as tf
from helpers import CONFIGS, PATIENCE, PeakMemory, untrained
from PIL import Image, ImageCms, PngImagePlugin

from captioning.dataset import SPLIT_LISTS, read_captions, read_split_lists
from captioning.files import InputError
from captioning.images import IMAGE_SIZE, load_image
from model import Captioner

CASES = int(os.environ.get("FUZZ", 3000))
SECONDS = 5  # of computing, that a case may take


def spoilt(content: bytes, draw: random.Random, regions: list[tuple[int, int]]) -> bytes:
    """One to four changes of bytes, each in one of the regions, (first, last); at times a cut."""
    for _ in range(draw.choice([1, 1, 2, 4])):
        at = min(draw.randint(*draw.choice(regions)), len(content))
        source, size = draw.randrange(len(content)), draw.choice([1, 4, 40])
        bits = draw.choice([16, 32])
        extreme = draw.choice([0, 1, 2 ** (bits - 1) - 1, 2 ** (bits - 1), 2**bits - 1])
        number = extreme.to_bytes(bits // 8, draw.choice(["little", "big"]))
        flipped = bytes(byte ^ 1 << draw.randrange(8) for byte in content[at : at + 1])
        block = content[source : source + size]
        changes = [(new, len(new)) for new in (flipped, draw.randbytes(1), number, block)]
        new, replaced = draw.choice(
            [*changes * 3, (block, 0), (draw.randbytes(size), 0), (b"", size)]
        )
        content = (content[:at] + new + content[at + replaced :]) or b"\0"
    return content if draw.random() < 0.95 else content[: draw.randrange(len(content))]


# -- photos ----------------------------------------------------------------------------------------

MODES = {  # of Pillow, which it can write
    "BMP": "1 L P RGB RGBA",
    "GIF": "1 LA P RGBA",
    "JPEG": "1 L RGB CMYK",
    "MPO": "L RGB CMYK",
    "PNG": "1 L LA P RGB RGBA",
    "TIFF": "1 L LA P PA RGB RGBA RGBX CMYK LAB I I;16 I;16B F",
    "WEBP": "L RGB RGBA",
}
XMP = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'


# EXIF tags (number, type, count, value or its place) that no camera writes so: an orientation of
# text, 6/1, 0/0, two numbers, a float; a maker that is a fraction; a resolution of text;
# directories in themselves, beyond the end, of text; a maker's note longer than the file.
TAGS = [(274, 2, 2, ord("6")), (274, 5, 1, 38), (274, 10, 1, 46), (274, 3, 2, 6 | 8 << 16)]
TAGS += [(274, 11, 1, 0x7FC00000), (271, 5, 1, 38), (282, 2, 2, ord("6")), (34665, 4, 1, 8)]
TAGS += [(34665, 4, 1, 2**32 - 9), (34853, 2, 2**31, 8), (37500, 7, 2**16, 9)]


def exif(*tag: int) -> bytes:
    """An EXIF block: a quarter turn, that tag, and at 38 the fractions 6/1 and 0/0."""
    tags = b"".join(struct.pack("<HHII", *each) for each in ((274, 3, 1, 6), tag))
    return b"Exif\0\0II*\0\x08\0\0\0\x02\0" + tags + bytes(4) + struct.pack("<4I", 6, 1, 0, 0)


def photo(form: str, mode: str = "RGB", frames: int = 0, **options) -> bytes:
    """A small photo of noise, as that kind of file, with further frames."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 24, 3), np.uint8))
    noise = noise.convert({"PA": "RGBA", "I;16": "I", "I;16B": "I"}.get(mode, "RGB"))
    if frames:
        options |= {"save_all": True, "append_images": [Image.new("L", (24, 16))] * frames}
    buffer = io.BytesIO()
    noise.convert(mode).save(buffer, form, **options)
    return buffer.getvalue()


@functools.cache
def photos() -> list[bytes]:
    """Of every format and mode, and with everything that may stand in such a file."""
    made = [photo(form, mode) for form, modes in MODES.items() for mode in modes.split()]
    made += [photo(form, frames=2) for form in ("GIF", "MPO", "PNG", "TIFF", "WEBP")]
    made.append(photo("GIF", "P", frames=2, transparency=3, disposal=2, comment=b"x"))
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    extras = [{"exif": exif(*tag)} for tag in TAGS] + [{"exif": b"Exif\0\0none at all"}]
    extras += [{"icc_profile": profile}, {"xmp": XMP}]
    made += [photo(form, **extra) for form in ("JPEG", "PNG", "WEBP") for extra in extras]
    made += [photo("JPEG", mode, progressive=True) for mode in ("L", "RGB", "CMYK")]
    made += [photo("JPEG", subsampling=2, restart_marker_rows=1), photo("WEBP", lossless=True)]
    packed = ("packbits", "tiff_lzw", "tiff_adobe_deflate", "jpeg", "zstd", "lzma")
    made += [photo("TIFF", compression=each) for each in packed]
    made += [photo("TIFF", big_tiff=True), photo("TIFF", "1", compression="group4")]
    made.append(photo("TIFF", tiffinfo={700: XMP, 274: 6, 271: "x", 281: 255}, dpi=(1, 2)))
    text = PngImagePlugin.PngInfo()
    text.add_itxt("XML:com.adobe.xmp", XMP.decode(), zip=True)
    text.add_text("key", "text", zip=True)
    text.add(b"sBIT", b"\x0c\x0c\x0c")
    made += [photo("PNG", pnginfo=text), photo("PNG", "P", transparency=b"\0\x80", bits=4)]
    deep = np.random.default_rng(0).integers(0, 2**16, (16, 24, 4), np.uint16)
    made += [tf.io.encode_png(deep[..., :channels]).numpy() for channels in (1, 2, 3, 4)]
    # A TIFF of 16-bit colours, and so half as high.
    deep = photo("TIFF").replace(struct.pack("<3H", 8, 8, 8), struct.pack("<3H", 16, 16, 16))
    return [*made, deep.replace(struct.pack("<HHII", 257, 4, 1, 16), b"\1\1\4\0\1\0\0\0\x08\0\0\0")]


def spoilt_photo(draw: random.Random) -> bytes:
    """Of most PNGs the chunks' contents are spoilt: their lengths and checksums stay right."""
    content = draw.choice(photos())
    if not content.startswith(b"\x89PNG") or draw.random() < 0.2:
        return spoilt(content, draw, [(0, 60), (0, 600), (0, len(content))])
    at, made = 8, content[:8]
    while at < len(content):
        end = at + 8 + int.from_bytes(content[at : at + 4])
        name, body = content[at + 4 : at + 8], content[at + 8 : end]
        packed = name == b"IDAT" and draw.random() < 0.8  # so that not only zlib is tried
        body = zlib.decompress(body) if packed else body
        if draw.random() < 0.3:
            body = spoilt(body or b"\0", draw, [(0, 9), (0, len(body))])
        body = zlib.compress(body) if packed else body
        made += len(body).to_bytes(4) + name + body + zlib.crc32(name + body).to_bytes(4)
        at = end + 4
    return made


def read_photo(path: Path) -> None:
    pixels = load_image(path)
    assert pixels.shape == (IMAGE_SIZE, IMAGE_SIZE, 3)
    assert pixels.dtype == np.uint8


# -- captioners ------------------------------------------------------------------------------------


@functools.cache
def captioners() -> dict[bytes, list[tuple[int, int]]]:
    """Small files, each with the regions that count: headers, ours most of all, and words."""
    made = {}
    for number, config in enumerate(CONFIGS.values()):
        captioner = untrained(config)
        captioner.photos = np.arange(5, dtype=np.uint64)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "m.h5")
            captioner.save(path, half=number % 2 == 1)
            with h5py.File(path) as file:
                places = ["/", *["captioner", "captioner/vocabulary", "captioner/photos"] * 4]
                file.visit(places.append)
                starts = [h5py.h5o.get_info(file[place].id).addr for place in places]
                starts += [0, file["captioner/vocabulary"].id.get_offset()] * 4
            content = path.read_bytes()
        made[content] = [*[(at, at + 400) for at in starts], *[(0, len(content))] * 8]
    return made


def spoilt_captioner(draw: random.Random) -> bytes:
    content, regions = draw.choice(list(captioners().items()))
    return spoilt(content, draw, regions)


def read_captioner(path: Path) -> None:
    captioner = Captioner.load(path)
    for word in captioner.vocabulary.words:
        check_token(word)
    for array in captioner.decoder.network.get_weights():
        assert np.isfinite(array).all()


# -- captions and lists ----------------------------------------------------------------------------

KARPATHY = {
    "images": [
        {"filename": "a.jpg", "split": "train", "sentences": [{"raw": "A dog."}, {"raw": "Dogs"}]},
        {"filename": "b.jpg", "filepath": "x", "split": "val", "sentences": [{"raw": "Ein Wal"}]},
        {"filename": "c.jpg", "split": "test", "imgid": 7, "sentences": [{"raw": "Höhle, alt"}]},
    ]
}
COCO = {"images": [{"id": 7, "file_name": "a.jpg"}, {"id": 9, "file_name": "ü.jpg"}]}
COCO["annotations"] = [{"image_id": 7, "caption": "A dog"}, {"image_id": 9, "caption": "Höhle"}]
OBJECTS = [{"file_name": "a.jpg", "text": "A dog"}, {"image": "b", "caption": ["A man", "Größe"]}]
CAPTIONS = [  # a text of each form that read_captions knows
    'image,caption\na.jpg,A dog .\na.jpg,Two dogs\nb.jpg,"A man , old"\nc.jpg,The girl\'s hat\n',
    'a.jpg,A dog .\r\n\r\nb.jpg,"Ein ""großes"" Haus"\r\nx/c.jpg,&quot;مرد می‌خواند&quot;',
    "a.jpg#0\tA dog .\na.jpg#1\tZwei größere Hunde\n\nb.jpg#0\tA man , old 3:30\n",
    'id;image;caption;split\n1;a.jpg;A dog, wet;train\n2;x/ü.jpg;"Ein; Haus";val\n',
    "image_name| comment_number| comment\na.jpg| 0| A dog .\nb.jpg| 0| A man\n",
    "text\tfile_name\nA dog\ta.jpg\n",
    json.dumps(KARPATHY, ensure_ascii=False, indent=1),
    json.dumps(COCO),
    json.dumps(OBJECTS, indent=1),
    "\n".join(map(json.dumps, OBJECTS)),
]
LISTS = ["a.jpg\nb.jpg\n", "./a.jpg\r\n\r\nx/ü.jpg\r\na.jpg"]
PIECES = [*"\0\a\t\n\r\x1b\x7f\x85\x9b\xa0\xad\",;#&<>{}[]/\\'.9", "\u0301", "\u061c", "\u200b"]
PIECES += ["\u200d", "\u2019", "\u2028", "\u202e", "\ufeff", "\ufffe", "\U000e0001", "\U0010ffff"]
PIECES += ["#0\t", "../", "'s", "\\ud800", "&#27;", "&#x9b;", "&nbsp;", "<end>", '"\n']
PIECES += ["9" * 5000, "a" * 5000, "a " * 300, "{" * 2000, "'s" * 2000, "\u0301\u0323" * 20_000]
NODES = [None, True, 0, -1, 10**30, 1e308, float("nan"), "", "x", "\0", "\x1b[2J", "\ud800", [], {}]
NODES += ["a" * 5000, "../x", "/x", [[]], {"raw": "x"}, [{"raw": 1}], "train", "restval"]
ENCODINGS = ["utf-8"] * 30 + ["utf-8-sig", "utf-16", "utf-16-be", "utf-32", "latin-1", "shift-jis"]


def spoilt_json(text: str, draw: random.Random) -> str:
    """One to three nodes replaced, by others of it too, or left out."""

    def places(node) -> list[tuple]:
        keys = (
            range(len(node)) if isinstance(node, list) else node if isinstance(node, dict) else ()
        )
        return [place for key in keys for place in [(node, key), *places(node[key])]]

    tree = {"": json.loads(text)}
    for _ in range(draw.randint(1, 3)):
        (node, key), (other, name) = draw.choices(places(tree), k=2)
        if draw.random() < 0.2 and node is not tree:
            del node[key]
        else:
            node[key] = copy.deepcopy(draw.choice([other[name], *draw.choices(NODES, k=3)]))
    return json.dumps(tree[""], ensure_ascii=draw.random() < 0.5)


def spoilt_text(texts: list[str], draw: random.Random) -> bytes:
    """Changes of JSON, of lines and characters, of the encoding, and of bytes."""
    text = draw.choice(texts)
    if text[0] in "{[" and "\n{" not in text and draw.random() < 0.7:
        text = spoilt_json(text, draw)
    for _ in range(draw.choice([0, 1, 1, 2, 3])):
        lines = text.splitlines(keepends=True) or [""]
        at, other = draw.randrange(len(lines)), draw.choice(lines)
        place, size = draw.randint(0, len(lines[at])), draw.choice([0, 0, 1, 8])
        piece = draw.choice([*draw.choices(PIECES, k=3), chr(draw.randrange(0xD800))])
        changed = lines[at][:place] + piece + lines[at][place + size :]
        lines[at] = draw.choice([changed] * 5 + ["", other, other + lines[at], lines[at].strip()])
        text = "".join(lines)
    content = text.encode(draw.choice(ENCODINGS), errors="replace") or b"\n"
    return spoilt(content, draw, [(0, len(content))]) if draw.random() < 0.2 else content


def check_token(token: str) -> None:
    """Raises unless it can be shown and split off again; joiners belong to words of Persian."""
    assert token.split() == [token], ascii(token)
    visible = token.replace("\u200c", "").replace("\u200d", "")
    assert not {unicodedata.category(c) for c in visible} & {"Cc", "Cf", "Cs", "Zl", "Zp", "Zs"}


def read_texts(path: Path) -> None:
    captions, _ = read_captions(path)
    assert captions
    for caption in (caption for each in captions.values() for caption in each):
        for token in caption.split(" "):
            check_token(token)


def read_lists(path: Path) -> None:
    splits = read_split_lists(path.parent) or {}
    assert all(name.strip() and "\n" not in name for names in splits.values() for name in names)


# -- all of them -----------------------------------------------------------------------------------

captions, lists = (functools.partial(spoilt_text, texts) for texts in (CAPTIONS, LISTS))
KINDS = {  # whole ones, how one is spoilt, how read, its file's name, the MB that it may take
    "photos": (photos, spoilt_photo, read_photo, "photo", 1100),
    "captioners": (captioners, spoilt_captioner, read_captioner, "m.h5", 300),
    "captions": (lambda: map(str.encode, CAPTIONS), captions, read_texts, "captions.txt", 100),
    "lists": (lambda: map(str.encode, LISTS), lists, read_lists, SPLIT_LISTS["train"], 100),
}


@pytest.mark.filterwarnings("ignore:::PIL")
@pytest.mark.parametrize("kind", KINDS)
def test_before_they_are_spoilt_they_are_read(kind, tmp_path):
    whole, _, read, name, _ = KINDS[kind]
    for content in whole():
        (tmp_path / name).write_bytes(content)
        read(tmp_path / name)


def tried(kind: str, numbers: range, folder: Path) -> tuple[list[str], dict]:
    """Read the cases of those numbers: what was wrong with them, and what they took at most."""
    _, spoil, read, name, limit = KINDS[kind]
    warnings.simplefilter("error")
    for library in ("PIL", "keras"):
        warnings.filterwarnings("ignore", module=library)
    pool = ThreadPoolExecutor(1)  # it keeps what a case has raised
    faults, took = [], {"tried": len(numbers), "refused": 0, "seconds": (0, 0), "MB": (0, 0)}
    for number in numbers:
        path, fault = folder / str(number) / name, ""
        path.parent.mkdir()
        path.write_bytes(spoil(random.Random(number)))
        faulthandler.dump_traceback_later(PATIENCE, exit=True)
        start = time.process_time()
        with PeakMemory() as memory:
            error = pool.submit(read, path).exception()
        if isinstance(error, InputError):
            took["refused"] += 1
            lines = str(error).split("\n")  # a line for each fault of a text's lines
            short = all(line.isprintable() and len(line) < 1000 for line in lines)
            if not short or len(lines) > (60 if kind == "captions" else 1):
                fault = f"not one short line: {error!s:.2000}"
        elif error:  # it is what is looked for
            fault = "".join(traceback.format_exception(error))
        seconds, taken = round(time.process_time() - start, 2), round(memory.taken)
        took |= {"seconds": max(took["seconds"], (seconds, number))}
        took |= {"MB": max(took["MB"], (taken, number))}
        if seconds > SECONDS or taken > limit:
            fault += f"took {seconds} seconds and {taken} MB"
        if fault:
            faults.append(f"{path}: {fault}")
        else:
            path.unlink()
            path.parent.rmdir()
    faulthandler.cancel_dump_traceback_later()
    return faults, took


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
def test_a_spoilt_file_is_read_or_refused_in_one_line(kind, tmp_path):
    numbers = range(CASES // 10 if kind == "captioners" else CASES)
    # In a process of its own, which a fault in a library's C code may end.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        try:
            faults, took = pool.submit(tried, kind, numbers, tmp_path).result()
        except BrokenProcessPool:
            last = max(tmp_path.iterdir(), key=lambda folder: int(folder.name))
            pytest.fail(f"{last} ended its process, or took more than {PATIENCE} seconds")
    print(kind, took)
    assert not faults, "\n".join(faults)
    assert 0.1 < took["refused"] / took["tried"] < 0.95  # both ways were taken
