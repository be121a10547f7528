"""What strangers' files get: a caption, a named skip, or one line and an exit code."""

import csv
import io
import os
import struct
import tempfile
import time
import unicodedata
import zlib
from pathlib import Path

import numpy as np
import pytest
from helpers import PeakMemory, run_here, run_script
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from captioning import captions
from captioning.captions import read_captions, read_split_lists, tokenize
from captioning.files import InputError, one_line
from captioning.images import IMAGE_SIZE, try_load_image

LARGEST = 1_000  # MB that reading one image may take
SKIPPED, READ = "not a readable image (", ""
FOREIGN = SKIPPED + "it is none of"


# -- images ----------------------------------------------------------------------------------------


def saved(form: str, image: Image.Image, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def png_of_claimed_size(width: int, height: int) -> bytes:
    """A PNG of a few hundred bytes that says it is as large as that."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    content = zlib.compress(bytes(1000))
    return b"".join(
        [b"\x89PNG\r\n\x1a\n", chunk(b"IHDR", header), chunk(b"IDAT", content), chunk(b"IEND", b"")]
    )


def photo(mode: str = "RGB", size: tuple = (60, 40)) -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    return Image.fromarray(noise).convert(mode)


def turned() -> bytes:
    exif = Image.Exif()
    exif[274] = 6
    return saved("JPEG", photo(), exif=exif)


IMAGES = {  # name -> content, and what it must get
    "plain.jpg": (saved("JPEG", photo()), READ),
    "progressive.jpg": (saved("JPEG", photo(), progressive=True), READ),
    "cmyk.jpg": (saved("JPEG", photo("CMYK")), READ),
    "turned.jpg": (turned(), READ),
    "palette.png": (saved("PNG", photo("P")), READ),
    "alpha.png": (saved("PNG", photo("RGBA")), READ),
    "grey16.png": (saved("PNG", Image.new("I;16", (9, 9), 40_000)), READ),
    "one.png": (saved("PNG", photo(size=(1, 1))), READ),
    "thin.png": (saved("PNG", photo(size=(3000, 1))), READ),
    "moving.gif": (
        saved("GIF", photo("P"), save_all=True, append_images=[photo("P")] * 3),
        READ,
    ),
    "moving.webp": (saved("WEBP", photo(), save_all=True, append_images=[photo()]), READ),
    "scan.tiff": (saved("TIFF", photo(), compression="tiff_lzw"), READ),
    "jpeg called.png": (saved("JPEG", photo()), READ),
    "with space, ünïcode ☃.jpg": (saved("JPEG", photo()), READ),
    "with\ttab and\nnewline.jpg": (saved("JPEG", photo()), READ),
    "-dash.jpg": (saved("JPEG", photo()), READ),
    "\x1b[31mred\n.jpg": (b"no image", SKIPPED),
    "truncated.jpg": (saved("JPEG", photo())[:-300], SKIPPED),
    "header.jpg": (saved("JPEG", photo())[:20], SKIPPED),
    "empty.jpg": (b"", SKIPPED),
    "text.jpg": (b"not an image\n" * 100, SKIPPED),
    "zeros.png": (bytes(10_000), SKIPPED),
    "truncated.png": (saved("PNG", photo())[:400], SKIPPED),
    "bomb.png": (png_of_claimed_size(60_000, 60_000), SKIPPED + "Image size"),
    "large.png": (png_of_claimed_size(9_000, 9_000), SKIPPED + "81000000 pixels"),
    "program.jpg": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n", FOREIGN),
    "fits.jpg": (b"SIMPLE  =                    T" + b" " * 3000, FOREIGN),
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """A folder of all of `IMAGES`, and of things that are no files at all."""
    folder = tmp_path_factory.mktemp("corpus")
    for name, (content, _) in IMAGES.items():
        (folder / name).write_bytes(content)
    (folder / "folder.jpg").mkdir()
    (folder / "broken.jpg").symlink_to("nowhere")
    (folder / "circle.jpg").symlink_to("circle.jpg")
    (folder / "device.jpg").symlink_to("/dev/zero")
    os.mkfifo(folder / "pipe.jpg")
    return folder


NO_FILES = ("folder.jpg", "broken.jpg", "circle.jpg", "device.jpg", "pipe.jpg")


@pytest.mark.parametrize("name", IMAGES, ids=lambda name: ascii(name)[1:-1])
def test_an_image_is_read_or_named(corpus, name):
    pixels, error = try_load_image(corpus / name)
    wanted = IMAGES[name][1]
    if wanted == READ:
        assert error == ""
        assert pixels.shape == (IMAGE_SIZE, IMAGE_SIZE, 3)
    else:
        assert error.startswith(f"{one_line(corpus / name)}: {wanted}")
        assert error.isprintable()
        assert len(error) < 500


def test_a_folder_of_everything_is_captioned(demo, corpus):
    """Every file is in the output or named once; none is waited for."""
    model = ("--model_path", demo / "models" / "caption_model.h5")
    done = run_script("generate_caption.py", "--image_path", corpus, *model)
    read = [name for name, (_, wanted) in IMAGES.items() if wanted == READ]
    assert len(done.stdout.splitlines()) == len(read)
    skipped = [line for line in done.stderr.splitlines() if line.startswith("skipped: ")]
    names = [name for name in IMAGES if name not in read] + list(NO_FILES)
    assert sorted(line.split(": ")[1] for line in skipped) == sorted(
        one_line(corpus / name) for name in names
    )
    assert f"{len(read)} captioned, {len(names)} skipped" in done.stderr


def test_a_file_that_may_not_be_read(tmp_path, tmp_path_factory):
    path = tmp_path / "secret.jpg"
    path.write_bytes(IMAGES["plain.jpg"][0])
    path.chmod(0)
    user = os.geteuid()
    if user == 0:  # who may read everything
        for folder in (tmp_path, *tmp_path.parents):
            if folder.is_relative_to(tmp_path_factory.getbasetemp().parent):
                folder.chmod(0o755)
        os.seteuid(65534)
    try:
        _, error = try_load_image(path)
    finally:
        os.seteuid(user)
    assert error.endswith("(Permission denied)")


@pytest.mark.long
@pytest.mark.parametrize(
    ("form", "mode", "size", "options"),
    [
        ("JPEG", "RGB", (13_000, 13_000), {"progressive": True, "subsampling": 0}),
        ("PNG", "RGBA", (7_000, 7_000), {"compress_level": 1}),
        ("PNG", "I;16", (7_000, 7_000), {"compress_level": 1}),
        ("TIFF", "F", (7_000, 7_000), {}),
        ("TIFF", "CMYK", (7_000, 7_000), {}),
        ("PNG", "P", (7_000, 7_000), {"compress_level": 1, "transparency": 3}),
    ],
)
def test_the_largest_images_take_bounded_memory(tmp_path, form, mode, size, options):
    path = tmp_path / "large"
    Image.new(mode, size).save(path, form, **options)
    with PeakMemory() as memory:
        pixels, error = try_load_image(path)
    assert pixels is not None, error
    assert memory.taken < LARGEST


# -- captions and lists ----------------------------------------------------------------------------

LONG = 10**6
CAPTION_FILES = {  # name -> content, and what the error must say; None: it is read
    "empty": (b"", "holds no captions"),
    "header alone": (b"image,caption\n", "holds no captions"),
    "columns": (b"a.jpg,one,two\n", ":1: 3 columns.*double quotes"),
    "one column": (b"a.jpg,a dog\nb.jpg\n", ":2: 1 columns"),
    "no tab": (b"a.jpg#0\ta dog\nb.jpg a man\n", ":2: not of the form"),
    "unclosed quotes": (b'a.jpg,"a dog\nb.jpg,a cat\n', ":2: .*Mend the line's quotes"),
    "nul bytes": (b"a.jpg,a\0dog\nb.jpg,cat\0\n", None),
    "nul in the name": (b"a\0.jpg,a dog\n", "not a file name"),
    "utf-16": ("a.jpg,a dog\n".encode("utf-16"), "not UTF-8"),
    "latin-1": ("a.jpg,a café\n".encode("latin-1"), "not UTF-8"),
    "a long caption": (b"a.jpg," + b"dog " * 30_000, "has 30000 words"),
    "a long csv line": (b"a.jpg," + b"d" * LONG, "field limit"),
    "a long word": (b"a.jpg#0\t" + b"d" * LONG, None),
    "a million words": (b"a.jpg#0\t" + b"d " * LONG, "has 1000000 words"),
    "a million possessives": (b"a.jpg#0\tdog" + b"'s" * LONG, "words; at most"),
    "a million blanks": (b" " * LONG + b"a.jpg,a dog", "field limit"),
    "a million marks": (b"a.jpg#0\t" + b"#0\t" * LONG, "has 1000000 words"),
    "hashes": (b"#" * LONG, "1 columns|field limit"),
    "a long name": (b"a" * 100_000 + b".jpg,a dog", None),
    "empty caption": (b"a.jpg,a dog\nb.jpg,  \n", ":2: the caption of b.jpg is empty"),
    "punctuation": (b"a.jpg,a dog\nb.jpg, ...\n", ":2: the caption of b.jpg is empty"),
    "up": (b"../a.jpg,a dog\n", "not a file name inside"),
    "up in the middle": (b"a/../../b.jpg,a dog\n", "not a file name inside"),
    "up, backslashes": (b"..\\a.jpg,a dog\n", "not a file name inside"),
    "absolute": (b"/etc/passwd.jpg,a dog\n", "not a file name inside"),
    "deep json": (b"{" + b'"a":[' * 100_000, "not a Karpathy"),
    "cut json": (b'{"images": ', "not a Karpathy"),
    "json without captions": (b'{"images": [{"filename": "a.jpg"}]}', "not a Karpathy"),
    "json of numbers": (b'{"images": [1, 2]}', "not a Karpathy"),
    "json, names of numbers": (
        b'{"images": [{"filename": 5, "split": "train", "sentences": [{"raw": 7}]}]}',
        None,
    ),
    "json, unknown split": (
        b'{"images": [{"filename": "a", "split": "x", "sentences": []}]}',
        "not a Karpathy",
    ),
    "json, unhashable split": (
        b'{"images": [{"filename": "a", "split": [], "sentences": []}]}',
        "not a Karpathy",
    ),
    "escapes": (b"\x1b[2J\x07.jpg\n", "1 columns"),
}


@pytest.mark.parametrize("name", CAPTION_FILES)
def test_a_captions_file_is_read_or_refused_in_one_line(tmp_path, name):
    content, message = CAPTION_FILES[name]
    path = tmp_path / "captions.txt"
    path.write_bytes(content)
    started = time.monotonic()
    if message is None:
        found, _ = read_captions(path)
        assert all(
            len(line.split()) <= captions.MAX_CAPTION_WORDS for v in found.values() for line in v
        )
    else:
        with pytest.raises(InputError, match=message) as error:
            read_captions(path)
        assert str(error.value).isprintable()
        assert len(str(error.value)) < 1000
    assert time.monotonic() - started < 10


def test_words_that_are_too_long_are_unknown():
    vocabulary = captions.Vocabulary.from_captions(["dog " + "x" * 101] * 3)
    assert vocabulary.words[4:] == ["dog"]


@pytest.mark.parametrize(
    ("spoil", "code", "message"),
    [
        (lambda s: link(s, "/etc/hostname"), 1, "leads out of"),
        (lambda s: link(s, "circle"), 1, "are not in"),
        (lambda s: train_list(s, "nowhere.jpg\n"), 1, "has no captions"),
        (lambda s: train_list(s, "scene_0000.jpg\n" * 3), 0, ""),
        (lambda s: train_list(s, "\xff"), 1, "not UTF-8"),
        (lambda s: train_list(s, "\0\n"), 1, "has no captions"),
        (lambda s: (s / "captions.txt").write_text("a" * 5000 + ".jpg,a dog\n"), 1, "no captions"),
    ],
    ids=["link out", "circle", "unknown", "repeated", "encoding", "nul", "long"],
)
def test_a_data_set_is_taken_or_refused_in_one_line(tmp_path, spoil, code, message):
    from data.sample import write_sample

    dataset = tmp_path / "set"
    write_sample(dataset, scenes=12, seed=1)
    spoil(dataset)
    folders = ("--dataset_dir", dataset, "--output_dir", tmp_path / "data")
    options = ("--encoder", "efficientnet_lite0", "--min_word_count", 1)
    done = run_here("preprocess.py", *folders, *options, code=code)
    if code:
        assert message in done.stderr
        assert done.stderr.startswith("error: ")
        assert not (tmp_path / "data").exists()


def link(dataset: Path, target: str) -> None:
    first = (dataset / "Flickr_8k.trainImages.txt").read_text().split()[0]
    (dataset / "Images" / first).unlink()
    (dataset / "Images" / first).symlink_to(first if target == "circle" else target)


def train_list(dataset: Path, content: str) -> None:
    (dataset / "Flickr_8k.trainImages.txt").write_bytes(content.encode("latin-1"))


# -- properties ------------------------------------------------------------------------------------

ANY_TEXT = st.text() | st.text("'s’ .,-#\t\"\na1é\u0301", max_size=40)


@given(ANY_TEXT)
@settings(deadline=None)
def test_tokens_are_words_and_stay_what_they_are(text):
    tokens = tokenize(text)
    for token in tokens:
        assert token
        assert not any(character.isspace() for character in token)
        assert token == "'s" or any(unicodedata.category(c)[0] in "LMN" for c in token)
    assert tokenize(" ".join(tokens)) == tokens


NAMES = st.text("abc0_-é ", min_size=1, max_size=8).map(str.strip).filter(bool)
LINES = st.text("ab 's,\"#.é\u200d", min_size=1, max_size=30).filter(tokenize)


@given(st.lists(st.tuples(NAMES, LINES), min_size=1, max_size=6))
@settings(deadline=None)
def test_the_csv_and_token_readers_agree(rows):
    with tempfile.TemporaryDirectory() as folder:
        table, lines = Path(folder) / "captions.csv", Path(folder) / "token.txt"
        with table.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("image", "caption"), *((f"{n}.jpg", t) for n, t in rows)])
        text = "".join(f"{n}.jpg#{i}\t{t}\n" for i, (n, t) in enumerate(rows))
        lines.write_text(text, encoding="utf-8")
        assert read_captions(table) == read_captions(lines)


@given(st.binary(max_size=300))
@settings(deadline=None)
def test_any_bytes_are_captions_or_an_input_error(content):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "captions.txt"
        path.write_bytes(content)
        (Path(folder) / "Flickr_8k.trainImages.txt").write_bytes(content)
        for reader, argument in ((read_captions, path), (read_split_lists, Path(folder))):
            try:
                reader(argument)
            except InputError as error:
                assert str(error).isprintable()
