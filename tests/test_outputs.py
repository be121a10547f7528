"""Where captions go: as they come, in formats that others read, continued after any stop."""

import csv
import io
import itertools
import json
import os
import shutil
import tracemalloc
from pathlib import Path

import pytest
from helpers import ROOT, run_here, run_script, with_files_up_to
from PIL import Image

import captioning.images
from captioning.cli import INCLUDED
from captioning.files import InputError
from captioning.outputs import FORMATS, OutputFile, Stream
from model import Captioner

FORMS = [(form, count) for form in FORMATS for count in (1, 2) if (form, count) != ("coco", 2)]
EACH = pytest.mark.parametrize(("form", "num_captions"), FORMS)
NAMES = ("a folder/tab\tnew\nline, \r ü.jpg", 'x"\n".jpg', "-.png", "x\\n.jpg", "x.jpg")
PHOTOS = [*map(Path, (*NAMES, "other/x.jpg", os.fsdecode(b"\xff.jpg")))]
SETTINGS = {"model_path": "m.h5", "beam_size": "2"}


def beam(photo: Path, num_captions: int) -> list[tuple[str, float]]:
    """Captions that tell photos apart, as many as are asked for; a .png has only one."""
    captions = [(f"a dog 's ball, {len(str(photo))}", -1.5), ("größe", -2.25)]
    return captions[: 1 if photo.suffix == ".png" else num_captions]


def write_all(output, num_captions: int, resume=False, photos=PHOTOS, close=True) -> list[Path]:
    """Write what is missing; returns the photos that were."""
    missing = [p for p, left in zip(photos, output.open(photos, resume), strict=True) if left]
    for photo in missing:
        output.write(photo, beam(photo, num_captions))
    if close:
        output.close()
    return missing


def partial_of(path: Path) -> Path:
    return path.with_name(path.name + ".partial")


@EACH
def test_rows_are_read_back_by_other_parsers_and_a_file_holds_the_same(
    form, num_captions, tmp_path, monkeypatch
):
    stdout = io.TextIOWrapper(io.BytesIO(), "utf-8", "surrogateescape", newline="")
    monkeypatch.setattr("sys.stdout", stdout)
    write_all(Stream(form, num_captions), num_captions)
    flushed = stdout.buffer.getvalue()
    stdout.flush()
    content = stdout.buffer.getvalue()
    assert content.removeprefix(flushed) == (b"]\n" if form == "coco" else b"")
    write_all(OutputFile(tmp_path / "file", form, num_captions, SETTINGS), num_captions)
    assert (tmp_path / "file").read_bytes() == content
    assert not partial_of(tmp_path / "file").exists()

    text = content.decode(errors="surrogateescape")
    captions = [(photo, *line) for photo in PHOTOS for line in beam(photo, num_captions)]
    rows = [[str(p), text, *map(str, [s] * (num_captions > 1))] for p, text, s in captions]
    if form == "csv":
        assert list(csv.reader(io.StringIO(text, newline="")))[1:] == rows
    elif form == "jsonl":
        objects = [json.loads(line) for line in text.removesuffix("\n").split("\n")]
        assert [[*map(str, line.values())] for line in objects] == rows
    elif form == "tsv":
        fields = [line.split("\t") for line in text.removesuffix("\n").split("\n")]
        escapes = {"\\": r"\\", "\t": r"\t", "\n": r"\n", "\r": r"\r"}
        names = ["".join(escapes.get(c, c) for c in name) for name, *_ in rows]
        assert [f[0] for f in fields] == names
        assert [f[1:] for f in fields] == [r[1:] for r in rows]
    else:
        expected = [{"image_id": p.name, "caption": caption} for p, caption, _ in captions]
        assert json.loads(text) == expected


@EACH
def test_a_partial_file_cut_off_at_any_byte_is_continued(form, num_captions, tmp_path):
    def output(name):
        return OutputFile(tmp_path / name, form, num_captions, SETTINGS)

    write_all(output("cut"), num_captions, close=False)  # as if killed
    partial = partial_of(tmp_path / "cut")
    content = partial.read_bytes()
    ends = list(itertools.accumulate(map(len, content.splitlines(keepends=True))))
    write_all(output("whole"), num_captions)
    for size in range(len(content) + 1):
        partial.write_bytes(content[:size])
        whole = max(0, sum(end <= size for end in ends) - 1)  # photos; the settings are a line
        assert write_all(output("cut"), num_captions, resume=True) == PHOTOS[whole:], size
        assert (tmp_path / "cut").read_bytes() == (tmp_path / "whole").read_bytes()
        (tmp_path / "cut").unlink()


FOREIGN = {
    "lines": b"notes\nof mine\n",
    "one line": b"notes of mine",
    "list": b'[{"image_id": "x.jpg", "caption": "a dog"}]\n',
    "numbers": b"1\n2\n",
    "nested": b"[" * 100_000 + b"\n",
    "other object": b'{"image_path": "x.jpg", "text": "a dog"}\n',
    "bytes": b"\x00\xff\xfe\n",
}


@pytest.mark.parametrize("content", FOREIGN.values(), ids=FOREIGN)
def test_what_it_did_not_write_is_left_alone(content, tmp_path):
    path = tmp_path / "file"
    partial_of(path).write_bytes(content)
    with pytest.raises(InputError, match="cannot be continued") as error:
        write_all(OutputFile(path, "csv", 1, SETTINGS), 1, resume=True)
    assert str(error.value).isprintable()
    assert partial_of(path).read_bytes() == content
    assert not path.exists()


def test_a_damaged_line_in_the_middle_is_refused(tmp_path):
    path = tmp_path / "file"
    write_all(OutputFile(path, "csv", 1, SETTINGS), 1, close=False)
    settings, _, *rest = partial_of(path).read_bytes().splitlines(keepends=True)
    for line in (b'{"image_path": 5}\n', b'{"captions": []}\n', b"[]\n", b"\n"):
        content = b"".join([settings, line, *rest])
        partial_of(path).write_bytes(content)
        with pytest.raises(InputError, match="cannot be continued"):
            write_all(OutputFile(path, "csv", 1, SETTINGS), 1, resume=True)
        assert partial_of(path).read_bytes() == content


def test_other_options_are_refused(tmp_path):
    path = tmp_path / "file"
    write_all(OutputFile(path, "tsv", 1, SETTINGS), 1, close=False)
    content = partial_of(path).read_bytes()
    for count, settings in ((2, SETTINGS), (1, SETTINGS | {"beam_size": "3"})):
        with pytest.raises(InputError, match="other options"):
            write_all(OutputFile(path, "tsv", count, settings), 1, resume=True)
    with pytest.raises(InputError, match="Give --resume"):
        write_all(OutputFile(path, "tsv", 1, SETTINGS), 1)
    assert partial_of(path).read_bytes() == content
    # The format is only that of the file made in the end.
    assert write_all(OutputFile(path, "jsonl", 1, SETTINGS), 1, resume=True) == []
    assert json.loads(path.read_bytes().splitlines()[0])["image_path"] == str(PHOTOS[0])


# -- through the script ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def included():
    return Captioner.load(INCLUDED)


@pytest.fixture
def generate(included, monkeypatch):
    """The script, with a captioner that need not be built for every run."""
    monkeypatch.setattr(Captioner, "load", lambda *_: included)

    def run(*photos_and_options, code=0):
        options = ("--batch_size", 3, "--beam_size", 2, "--image_path", *photos_and_options)
        return run_here("generate_caption.py", *options, code=code)

    return run


@pytest.fixture
def photos(small, tmp_path) -> Path:
    """A folder of eight photos and a file that is none."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for photo in sorted((small / "dataset" / "Images").iterdir())[:8]:
        shutil.copy(photo, folder)
    (folder / "scene_0001b.jpg").write_text("no photo")
    return folder


@pytest.mark.parametrize("form", FORMATS)
def test_captions_are_there_before_the_last_photo_is_read(
    form, generate, photos, tmp_path, monkeypatch
):
    path, seen = tmp_path / "new" / "file", []
    load = captioning.images.load_image

    def look(photo):
        if photo.name == "scene_0007.jpg":
            seen.append(partial_of(path).read_text())
            assert not path.exists()
        return load(photo)

    with monkeypatch.context() as patch:
        patch.setattr(captioning.images, "load_image", look)
        done = generate(photos, "--format", form, "--output", path)
    assert done.stdout == ""
    assert "8 captioned, 1 skipped" in done.stderr
    assert [f"scene_000{i}.jpg" in seen[0] for i in range(8)] == [True] * 5 + [False] * 3
    assert generate(photos, "--format", form).stdout == path.read_text()


def test_a_stopped_run_is_continued_and_a_finished_file_stays(
    generate, photos, tmp_path, monkeypatch
):
    path = tmp_path / "file"
    options = ("--format", "coco", "--output", path)
    generate(photos, *options)
    content = path.read_bytes()
    done = generate(photos, *options, code=1)
    assert f"{path} is there already. Give --resume, remove it, or name another." in done.stderr
    assert path.read_bytes() == content
    done = generate(photos, *options, "--resume")  # nothing is left to do
    assert "9 of 9 are captioned already" in done.stderr
    assert path.read_bytes() == content
    path.unlink()

    load = captioning.images.load_image

    def stop(photo):
        if photo.name == "scene_0007.jpg":
            raise KeyboardInterrupt
        return load(photo)

    with monkeypatch.context() as patch:
        patch.setattr(captioning.images, "load_image", stop)
        done = generate(photos, *options, code=130)
    assert "--resume continues" in done.stderr
    shutil.copy(partial_of(path), tmp_path / "stopped")
    (tmp_path / "other.h5").touch()
    for other in (("--length_penalty", 0), ("--model_path", tmp_path / "other.h5")):
        done = generate(photos, *options, "--resume", *other, code=1)
        assert "other options" in done.stderr
        assert partial_of(path).read_bytes() == (tmp_path / "stopped").read_bytes()
    same = shutil.copy(INCLUDED, tmp_path / "same.h5")
    done = generate(photos, *options, "--resume", "--model_path", same)
    assert "5 of 9 are captioned already" in done.stderr
    assert "3 captioned, 1 skipped" in done.stderr
    assert path.read_bytes() == content


def test_a_photo_named_twice_is_captioned_once(generate, photos):
    done = generate(photos / "scene_0001.jpg", photos, photos)
    names = [line.split("\t")[0][-8:] for line in done.stdout.splitlines()]
    assert names == ["0001.jpg", "0000.jpg", *(f"000{i}.jpg" for i in range(2, 8))]


def test_sidecars(generate, photos):
    lines = dict(line.split("\t") for line in generate(photos).stdout.splitlines())
    assert generate(photos, "--sidecar").stdout == ""
    found = {str(path.with_suffix(".jpg")): path.read_text() for path in photos.glob("*.txt")}
    assert found == {path: caption + "\n" for path, caption in lines.items()}
    (photos / "scene_0000.txt").unlink()
    (photos / "scene_0002.txt").write_text("mine")
    done = generate(photos, "--sidecar", "--resume")
    assert "7 of 9 are captioned already" in done.stderr
    assert "1 captioned, 1 skipped" in done.stderr
    assert (photos / "scene_0000.txt").read_text() == found[str(photos / "scene_0000.jpg")]
    assert (photos / "scene_0002.txt").read_text() == "mine"
    generate(photos, "--sidecar")
    assert (photos / "scene_0002.txt").read_text() == found[str(photos / "scene_0002.jpg")]
    assert {path.suffix for path in photos.iterdir()} == {".jpg", ".txt"}


def test_no_photo_loses_its_place_to_a_sidecar(generate, photos):
    shutil.copy(photos / "scene_0000.jpg", photos / "scene_0000.png")
    assert "cannot both have their caption" in generate(photos, "--sidecar", code=1).stderr
    assert not list(photos.glob("*.txt"))
    photo = (photos / "scene_0000.jpg").rename(photos / "scene_0000.txt")
    content = photo.read_bytes()
    assert "would be overwritten" in generate(photo, "--sidecar", code=1).stderr
    assert photo.read_bytes() == content


def test_options_that_make_no_sense_together(generate, photos):
    for options in (
        ("--resume",),
        ("--sidecar", "--output", "x"),
        ("--sidecar", "--format", "csv"),
        ("--sidecar", "--num_captions", 2),
        ("--num_captions", 3),
        ("--num_captions", 2, "--format", "coco"),
        ("--output", "x", "--resume", "--save_figure", "x.png"),
    ):
        assert "usage: " in generate(photos, *options, code=2).stderr
    generate(photos, "--output", photos, code=1)  # a folder
    assert not (ROOT / "x").exists()


class Talkative:
    """A captioner of very long captions."""

    encoder = property(lambda self: self)

    def encode(self, pixels):
        return pixels.mean(axis=(1, 2))

    def decode(self, features, *_):
        return [[("word " * 20_000, -1.0)] for _ in features]  # 100 kB


@pytest.mark.parametrize("form", FORMATS)
def test_memory_does_not_grow_with_the_captions(form, generate, tmp_path, monkeypatch):
    """400 captions of 100 kB, of which one batch is kept."""
    monkeypatch.setattr(Captioner, "load", lambda *_: Talkative())
    for number in range(400):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{number}.png")
    (tmp_path / "m.h5").touch()
    options = ("--model_path", tmp_path / "m.h5", "--format", form)
    generate(tmp_path, *options, "--output", tmp_path / "warm")
    tracemalloc.start()
    try:
        generate(tmp_path, *options, "--output", tmp_path / "file")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (tmp_path / "file").stat().st_size > 40e6
    assert peak < 10e6


@pytest.mark.long
def test_a_full_disk_and_then_the_rest(generate, photos, tmp_path):
    path = tmp_path / "file"
    command = ("generate_caption.py", "--image_path", photos, "--model_path", INCLUDED)
    command = (*command, "--batch_size", 3, "--beam_size", 2, "--output", path)
    done = run_script(*command, code=1, preexec_fn=with_files_up_to(600))
    assert done.stderr.splitlines()[-1].startswith(f"error: cannot write {partial_of(path)}: ")
    assert partial_of(path).stat().st_size == 600
    assert not path.exists()
    run_script(*command, "--resume")
    assert path.read_text() == generate(photos).stdout
