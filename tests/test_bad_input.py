"""What strangers' files get: a caption, a named skip, or one line and an exit code."""

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from helpers import PeakMemory, run_here
from PIL import Image

from captioning.dataset import read_captions
from captioning.files import InputError, one_line
from captioning.images import IMAGE_SIZE, load_image, try_load_image
from data.sample import write_sample

# -- images ----------------------------------------------------------------------------------------


def saved(form: str, mode: str = "RGB", size: tuple = (60, 40), **options) -> bytes:
    """A photo of noise as that kind of file."""
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).convert(mode).save(buffer, form, **options)
    return buffer.getvalue()


def png_of_claimed_size(width: int, height: int) -> bytes:
    """A small PNG that says it is as large as that."""
    png = saved("PNG")
    header = b"IHDR" + struct.pack(">II", width, height) + png[24:29]
    return png[:12] + header + struct.pack(">I", zlib.crc32(header)) + png[33:]


EXIF = Image.Exif()
EXIF[274] = 6  # turned
FRAMES = {"save_all": True, "append_images": [Image.new("P", (60, 40))] * 3}
GOOD = {
    "plain.jpg": saved("JPEG", exif=EXIF),
    "progressive.jpg": saved("JPEG", progressive=True),
    "cmyk.jpg": saved("JPEG", "CMYK"),
    "palette.png": saved("PNG", "P", transparency=1),
    "alpha.png": saved("PNG", "RGBA"),
    "one.png": saved("PNG", size=(1, 1)),
    "thin.png": saved("PNG", size=(3000, 1)),
    "moving.gif": saved("GIF", "P", **FRAMES),
    "moving.webp": saved("WEBP", **FRAMES),
    "scan.tiff": saved("TIFF", compression="tiff_lzw"),
    "floats.tif": saved("TIFF", "F"),
    "simple.bmp": saved("BMP"),
    "jpeg called.png": saved("JPEG"),
    "with space, ünïcode ☃.jpg": saved("JPEG"),
    "with\ttab and\nnewline.jpg": saved("JPEG"),
    "-dash.jpg": saved("JPEG"),
}
NO_IMAGE = "not a readable image ("
NO_FILE = "no such image file"
BAD = {  # name: content, or what a link leads to, or None; and what is said of it
    "\x1b[31mred\n.jpg": (b"no image", NO_IMAGE + "it is none of BMP"),
    "truncated.jpg": (saved("JPEG")[:-300], NO_IMAGE + "image file is truncated"),
    "header.jpg": (saved("JPEG")[:20], NO_IMAGE),
    "empty.jpg": (b"", NO_IMAGE + "it is none of"),
    "zeros.png": (bytes(10_000), NO_IMAGE + "it is none of"),
    "truncated.png": (saved("PNG")[:400], NO_IMAGE),
    "bomb.png": (png_of_claimed_size(60_000, 60_000), NO_IMAGE + "Image size"),
    "large.png": (png_of_claimed_size(9_000, 9_000), NO_IMAGE + "81000000 pixels"),
    "program.jpg": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", NO_IMAGE + "it is none"),
    "broken.jpg": ("nowhere", NO_FILE),
    "circle.jpg": ("circle.jpg", NO_FILE),
    "device.jpg": ("/dev/zero", NO_FILE),
    "disk.jpg": ("/proc/self/mem", NO_IMAGE + "Input/output error)"),
    "folder.jpg": (".", NO_FILE),
    "pipe.jpg": (None, NO_FILE),
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    for name, content in (GOOD | {name: content for name, (content, _) in BAD.items()}).items():
        if content is None:
            os.mkfifo(folder / name)
        elif isinstance(content, str):
            (folder / name).symlink_to(content)
        else:
            (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize("name", GOOD | BAD, ids=lambda name: ascii(name)[1:-1])
def test_an_image_is_read_or_named(corpus, name):
    pixels, error = try_load_image(corpus / name)
    if name in GOOD:
        assert error == ""
        assert pixels.shape == (IMAGE_SIZE, IMAGE_SIZE, 3)
    else:
        assert error.startswith(f"{one_line(corpus / name)}: {BAD[name][1]}")
        assert error.isprintable()
        assert len(error) < 500


def test_in_a_folder_of_everything_each_file_is_captioned_or_named_once(demo, corpus):
    model = ("--model_path", demo / "models" / "caption_model.h5")
    done = run_here("generate_caption.py", "--image_path", corpus, *model)
    assert len(done.stdout.splitlines()) == len(GOOD)
    skipped = [line for line in done.stderr.splitlines() if line.startswith("skipped: ")]
    names = sorted(one_line(corpus / name) for name in BAD)
    assert sorted(line.split(": ")[1] for line in skipped) == names
    assert f"{len(GOOD)} captioned, {len(BAD)} skipped" in done.stderr


@pytest.mark.long
@pytest.mark.parametrize(
    ("form", "mode", "side", "options"),
    [
        ("JPEG", "RGB", 13_000, {"progressive": True, "subsampling": 0}),
        ("PNG", "RGBA", 7_000, {"compress_level": 1}),
        ("PNG", "I;16", 7_000, {"compress_level": 1}),
        ("TIFF", "F", 7_000, {}),
        ("TIFF", "CMYK", 7_000, {}),
        ("PNG", "P", 7_000, {"compress_level": 1, "transparency": 3}),
    ],
)
def test_the_largest_images_take_a_gigabyte_at_most(tmp_path, form, mode, side, options):
    Image.new(mode, (side, side)).save(tmp_path / "large", form, **options)
    with PeakMemory() as memory:
        load_image(tmp_path / "large")
    assert memory.taken < 1000


# -- captions and lists ----------------------------------------------------------------------------

LONG = 10**6
JSON = '{{"images": [{{"filename": "a", "split": {}, "sentences": [{}]}}]}}'
SAID = '{"raw": "a dog"}'
CAPTION_FILES = {  # name: content, and what the error must say; None: it is read
    "empty": (b"", "holds no captions"),
    "columns": (b"a.jpg,one,two\n", ":1: 3 columns.*double quotes"),
    "one column": (b"a.jpg,a dog\n\x1b[2J\x07.jpg\n", ":2: 1 columns"),
    "no tab": (b"a.jpg#0\ta dog\nb.jpg a man\n", ":2: not of the form"),
    "unclosed quotes": (b'a.jpg,"a dog\nb.jpg,a cat\n', ":2: .*Mend the line's quotes"),
    "nul bytes": (b"a.jpg,a\0dog\nb.jpg,cat\0\n", None),
    "nul in the name": (b"a\0.jpg,a dog\n", "not a file name"),
    "utf-16": ("a.jpg,a dog\n".encode("utf-16"), None),
    "utf-16 without a mark": ("a.jpg,a café\n".encode("utf-16-le"), "not UTF-8|columns"),
    "utf-16 cut": ("a.jpg,a dog\n".encode("utf-16")[:-1], "not UTF-8"),
    "latin-1": ("a.jpg,a café\n".encode("latin-1"), "not UTF-8"),
    "a long caption": (b"a.jpg," + b"dog " * 201, "has 201 words; at most 200 are allowed"),
    "a long csv line": (b"a.jpg," + b"d" * LONG, "field limit"),
    "a long word": (b"a.jpg#0\t" + b"d" * 3000, None),
    "a longer word": (b"a.jpg#0\t" + b"d" * LONG, "1000000 characters; at most 4000 are"),
    "marks to sort": (b"a.jpg,a" + "\u0301\u0323".encode() * 30_000, "characters; at most"),
    "a long name": (b"a" * 100_000 + b".jpg,a dog", None),
    "a million possessives": (b"a.jpg#0\tdog" + b"'s" * LONG, "characters; at most"),
    "a thousand marks": (b"a.jpg#0\t" + b"#0\t" * 1000, "has 1000 words"),
    "empty caption": (b"a.jpg,a dog\nb.jpg,  \n", ":2: the caption of b.jpg is empty"),
    "punctuation": (b"a.jpg,a dog\nb.jpg, ...\n", ":2: the caption of b.jpg has no word"),
    "an emoji": ("a.jpg,\U0001f436\n".encode(), ":1: the caption of a.jpg has no word"),
    "a json list": (b'[{"image": "a.jpg", "caption": "a dog"}]', None),
    "brackets in a name": (b"[a].jpg,a dog\n", None),
    "up": (b"../a.jpg,a dog\n", "not a file name inside"),
    "up in the middle": (b"a/../../b.jpg,a dog\n", "not a file name inside"),
    "up, backslashes": (b"..\\a.jpg,a dog\n", "not a file name inside"),
    "deep json": (b'{"a":' * 100_000, "nested too deeply"),
    "cut json": (b'{"images": ', ":1: .*Mend the JSON"),
    "json, a number": (JSON.format('"train"', '{"raw": 7}').encode(), None),
    "json, unknown split": (JSON.format('"x"', SAID).encode(), "split 'x' is none of train"),
    "json, a long split": (
        JSON.format('"%s"' % ("x" * 5000), SAID).encode(),
        "split 'xxx.*…' is none",
    ),
    "json, unhashable split": (JSON.format("[]", SAID).encode(), "is none of train"),
}


@pytest.mark.parametrize("name", CAPTION_FILES)
def test_a_captions_file_is_read_or_refused_in_one_line(tmp_path, name):
    content, message = CAPTION_FILES[name]
    path = tmp_path / "captions.txt"
    path.write_bytes(content)
    if message is None:
        assert read_captions(path)[0]
    else:
        with pytest.raises(InputError, match=message) as error:
            read_captions(path)
        assert str(error.value).isprintable()
        assert len(str(error.value)) < 1000


def test_all_bad_captions_are_named_at_once(tmp_path):
    path = tmp_path / "captions.csv"
    path.write_text("a.jpg,\nb.jpg,a, b\n../d.jpg,a cat\nx.jpg,a dog\n" + "e.jpg,\n" * 60 + '"')
    with pytest.raises(InputError) as error:
        read_captions(path)
    lines = str(error.value).splitlines()
    assert [line.split(": ")[0][-2:] for line in lines[:3]] == [":1", ":2", ":3"]
    assert len(lines) == 51
    assert lines[-1] == "… and 14 more"


def test_photos_that_are_links_are_read(tmp_path):
    """As the caches of data sets keep them."""
    write_sample(tmp_path / "set", scenes=12, seed=1)
    (tmp_path / "blobs").mkdir()
    for photo in (tmp_path / "set" / "Images").iterdir():
        photo.rename(tmp_path / "blobs" / photo.stem)
        photo.symlink_to(tmp_path / "blobs" / photo.stem)
    folders = ("--dataset_dir", tmp_path / "set", "--output_dir", tmp_path / "data")
    done = run_here("preprocess.py", *folders, "--encoder", "efficientnet_lite0")
    assert "12 with features, 0 unreadable" in done.stdout
