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
from helpers import files_up_to, run_here

import captioning.images
from captioning.beams import Caption
from captioning.cli import INCLUDED
from captioning.files import InputError
from captioning.onnx_captioner import OnnxCaptioner
from captioning.outputs import FORMATS, OutputFile, Stream

NAMES = ("a folder/tab\tnew\nline, \r ü.jpg", 'x"\n".jpg', "-.png", "x\\n.jpg", "x.jpg")
PHOTOS = [*map(Path, (*NAMES, "other/x.jpg", os.fsdecode(b"\xff.jpg")))]
SETTINGS = {"model_path": "m.h5", "beam_size": "2"}


def beam(photo: Path, num_captions: int) -> list[Caption]:
    """Captions that tell photos apart, as many as are asked for; a .png has only one."""
    captions = [Caption(f"a dog 's ball, {len(str(photo))}", -1.5, 0.1, 0.25)]
    captions.append(Caption("größe", -2.25, None, 0.125))
    return captions[: 1 if photo.suffix == ".png" else num_captions]


def write_all(output, num_captions: int, close=True) -> list[Path]:
    """Write what is missing; returns the photos that were."""
    missing = output.open({photo: photo.name for photo in PHOTOS})
    for photo in missing:
        output.write(photo, beam(photo, num_captions))
    if close:
        output.close()
    return missing


def partial_of(path: Path) -> Path:
    return path.with_suffix(".partial")


READERS = {
    "csv": lambda text: list(csv.reader(io.StringIO(text, newline="")))[1:],
    "jsonl": lambda text: [[*json.loads(line).values()] for line in text.split("\n")[:-1]],
    "tsv": lambda text: [line.split("\t") for line in text.split("\n")[:-1]],
    "coco": lambda text: [[*row.values()] for row in json.loads(text)],
}
ESCAPES = {"\\": r"\\", "\t": r"\t", "\n": r"\n", "\r": r"\r"}
NAMED = {  # how a photo is named, where it is not by its path
    "tsv": lambda photo: "".join(ESCAPES.get(c, c) for c in str(photo)),
    "coco": lambda photo: photo.name,
    "csv": lambda photo: str(photo).encode(errors="backslashreplace").decode(),
}


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("form", FORMATS)
def test_rows_are_read_back_by_other_parsers_and_a_file_holds_the_same(
    form, count, tmp_path, monkeypatch
):
    stdout = io.TextIOWrapper(io.BytesIO(), "utf-8", "surrogateescape", newline="")
    monkeypatch.setattr("sys.stdout", stdout)
    write_all(Stream(form, count), count)
    flushed = stdout.buffer.getvalue()
    stdout.flush()
    content = stdout.buffer.getvalue()
    assert content.removeprefix(flushed) == (b"]\n" if form == "coco" else b"")
    write_all(OutputFile(tmp_path / "file", form, count, SETTINGS), count)
    assert (tmp_path / "file").read_bytes() == content
    assert not partial_of(tmp_path / "file").exists()

    # Of a name in another encoding, a line of tsv has the bytes, and all others are valid UTF-8.
    found = READERS[form](content.decode(errors="surrogateescape" if form == "tsv" else "strict"))
    rows = [
        [NAMED.get(form, str)(photo), c.text]
        + [str(c.log_probability)] * (count > 1)
        + [str(c.confidence)] * (form in ("jsonl", "csv"))
        for photo in PHOTOS
        for c in beam(photo, count)
    ]
    assert [[*map(str, row)] for row in found] == rows


@pytest.mark.parametrize("num_captions", [1, 2])
def test_a_partial_file_cut_off_at_any_byte_is_continued(num_captions, tmp_path):
    def output(name, *replace):
        return OutputFile(tmp_path / name, "csv", num_captions, SETTINGS, *replace)

    write_all(output("cut"), num_captions, close=False)  # as if killed
    partial = partial_of(tmp_path / "cut")
    content = partial.read_bytes()
    ends = list(itertools.accumulate(map(len, content.splitlines(keepends=True))))
    write_all(output("whole"), num_captions)
    for size in range(len(content) + 1):
        partial.write_bytes(content[:size])
        whole = max(0, sum(end <= size for end in ends) - 1)  # photos; the settings are a line
        assert write_all(output("cut", "resume"), num_captions) == PHOTOS[whole:], size
        assert (tmp_path / "cut").read_bytes() == (tmp_path / "whole").read_bytes()
        (tmp_path / "cut").unlink()


NOT_OURS = {  # the line's place, and what stands there
    "notes": (0, b"notes\nof mine\n"),
    "one line": (0, b"notes of mine"),
    "bytes": (1, b"\x00\xff\xfe\n"),
    "empty": (1, b"\n"),
    "no path": (1, b'{"captions": []}\n'),
    "a number": (1, b'{"image_path": 5}\n'),
    "nested": (1, b"[" * 100_000 + b"\n"),
}


@pytest.mark.parametrize(("place", "line"), NOT_OURS.values(), ids=NOT_OURS)
def test_what_it_did_not_write_is_refused_and_left_alone(place, line, tmp_path):
    path = tmp_path / "file"
    write_all(OutputFile(path, "csv", 1, SETTINGS), 1, close=False)
    ours = partial_of(path).read_bytes().splitlines(keepends=True)
    content = b"".join([*ours[:place], line, *ours[place + 1 :] * place])
    partial_of(path).write_bytes(content)
    with pytest.raises(InputError, match="cannot be continued") as error:
        write_all(OutputFile(path, "csv", 1, SETTINGS, "resume"), 1)
    assert str(error.value).isprintable()
    assert partial_of(path).read_bytes() == content
    assert not path.exists()


@pytest.mark.parametrize("form", FORMATS)
def test_memory_does_not_grow_with_the_captions(form, tmp_path):
    """400 captions of 100 kB."""
    output = OutputFile(tmp_path / "file", form, 1, SETTINGS)
    photos = [Path(f"{number}.jpg") for number in range(400)]
    output.open({photo: photo.name for photo in photos})
    tracemalloc.start()
    for photo in photos:
        output.write(photo, [Caption("word " * 20_000, -1.0)])
    output.close()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (tmp_path / "file").stat().st_size > 40e6
    assert peak < 10e6


@pytest.fixture(scope="module")
def included():
    return OnnxCaptioner.load(INCLUDED)


@pytest.fixture
def generate(included, monkeypatch):
    """The script, with a captioner that need not be built for every run."""
    monkeypatch.setattr(OnnxCaptioner, "load", lambda *_: included)

    def run(*photos_and_options, code=0):
        options = ("--batch_size", 3, "--beam_size", 2, "--image_path", *photos_and_options)
        return run_here("generate_caption.py", *options, code=code)

    return run


@pytest.fixture
def photos(small, tmp_path) -> Path:
    """A folder of eight photos and a file that is none."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for photo in (small / "dataset" / "Images").glob("scene_000[0-7].jpg"):
        shutil.copy(photo, folder)
    (folder / "scene_0001b.jpg").write_text("no photo")
    return folder


@pytest.mark.long
def test_after_a_full_disk_comes_the_rest_and_the_finished_file_stays(generate, photos, tmp_path):
    path = tmp_path / "new" / "file"
    with files_up_to(600):
        done = generate(photos, "--output", path, code=1)
    assert done.stderr.splitlines()[-1].startswith(f"error: cannot write {partial_of(path)}: ")
    assert partial_of(path).stat().st_size == 600
    assert not path.exists()
    assert generate(photos, "--output", path, "--resume").stdout == ""
    content = path.read_text()
    assert content == generate(photos).stdout
    done = generate(photos, "--output", path, code=1)
    assert f"{path} is there already. Give --resume or --overwrite, or name" in done.stderr
    assert "9 of 9 are captioned" in generate(photos, "--output", path, "--resume").stderr
    assert path.read_text() == content
    assert generate(photos, "--output", path, "--overwrite", "--format", "csv").stdout == ""
    assert path.read_text() == generate(photos, "--format", "csv").stdout


def test_a_stopped_run_has_each_batch_in_its_file_and_is_continued(
    generate, photos, tmp_path, monkeypatch
):
    path, load = tmp_path / "file", captioning.images.load_image

    def stop(photo, *size):
        if photo.name == "scene_0007.jpg":
            raise KeyboardInterrupt
        return load(photo, *size)

    with monkeypatch.context() as patch:
        patch.setattr(captioning.images, "load_image", stop)
        assert "--resume continues" in generate(photos, "--output", path, code=130).stderr
    seen = partial_of(path).read_text()
    assert [f"scene_000{i}.jpg" in seen for i in range(8)] == [True] * 5 + [False] * 3
    (tmp_path / "other.onnx").touch()
    same = shutil.copy(INCLUDED, tmp_path / "same.onnx")
    resume = ("--output", path, "--resume", "--model_path")
    for other in (
        (tmp_path / "other.onnx",),
        (same, "--length_penalty", 0),
        (same, "--num_captions", 2),
    ):
        assert "other options" in generate(photos, *resume, *other, code=1).stderr
    assert "Give --resume" in generate(photos, "--output", path, code=1).stderr
    assert partial_of(path).read_text() == seen
    done = generate(photos, *resume, same, "--format", "coco")  # that of the file in the end
    assert "5 of 9 are captioned already" in done.stderr
    assert "3 captioned, 1 skipped" in done.stderr
    assert path.read_text() == generate(photos, "--format", "coco").stdout


def test_a_photo_named_twice_is_captioned_once(generate, photos):
    done = generate(photos / "scene_0001.jpg", photos, photos)
    names = [line.split("\t")[0][-8:] for line in done.stdout.splitlines()]
    assert names == ["0001.jpg", "0000.jpg", *(f"000{i}.jpg" for i in range(2, 8))]


def test_sidecars_hold_what_stdout_shows_and_those_with_text_stay(generate, photos):
    lines = dict(line.split("\t") for line in generate(photos).stdout.splitlines())

    def sidecars():
        return {str(p.with_suffix(".jpg")): p.read_text() for p in photos.glob("*.txt")}

    assert generate(photos, "--sidecar").stdout == ""
    written = sidecars()
    assert written == {path: f"{caption}\n" for path, caption in lines.items()}
    (photos / "scene_0000.txt").unlink()
    (photos / "scene_0002.txt").write_text("mine")
    (photos / "scene_0003.txt").write_text(" \n")
    for resume in ((), ("--resume",)):
        done = generate(photos, "--sidecar", *resume)
        assert sidecars() == written | {str(photos / "scene_0002.jpg"): "mine"}
    assert "8 of 9 are captioned already" in done.stderr
    generate(photos, "--sidecar", "--overwrite")
    assert sidecars() == written
    assert {path.suffix for path in photos.iterdir()} == {".jpg", ".txt"}


def test_a_name_too_long_for_a_text_file_is_that_photo_s_fault(generate, photos):
    for name in ("p" * 251 + ".jpg", "q" * 255):
        shutil.copy(photos / "scene_0000.jpg", photos / name)
    done = generate(photos, photos / ("q" * 255), "--sidecar")
    assert (photos / ("p" * 251 + ".txt")).read_text().strip()
    assert f"skipped: {photos / ('q' * 255)}: the name of its text file" in done.stderr
    assert "9 captioned, 2 skipped" in done.stderr
    done = generate(photos / ("q" * 255), "--sidecar", code=1)
    assert "none of the 1 files could be captioned" in done.stderr


def test_what_is_left_out_of_a_folder_is_counted_and_named(generate, photos):
    for name in ("a.heic", "b.avif", "c.jp2", "d.pdf", "e", "f.mp4", "scene_0000.txt", ".hidden"):
        (photos / name).touch()
    (photos / "sub").mkdir()
    shutil.copy(photos / "scene_0000.jpg", photos / "scene_0000.jfif")
    shutil.copy(photos / "scene_0000.jpg", photos / "scene_0000.JPE")
    done = generate(photos)
    assert len(done.stdout.splitlines()) == 10
    left = "a.heic, b.avif, c.jp2, d.pdf, e, …"
    assert f"left out in {photos}: 6 files: {left}" in done.stderr
    assert f"left out in {photos}: 1 folder: sub (--recursive takes" in done.stderr


def test_no_photo_is_overwritten_by_the_file_or_the_picture(generate, photos):
    photo = photos / "scene_0000.jpg"
    content = photo.read_bytes()
    for option in ("--output", "--save_figure"):
        done = generate(photos, option, photos / "." / photo.name, "--overwrite", code=1)
        assert f"{option} {photo} is one of the photos" in done.stderr
    assert photo.read_bytes() == content


def test_coco_refuses_two_photos_of_one_name(generate, photos):
    other = photos.parent / "other"
    other.mkdir()
    shutil.copy(photos / "scene_0001.jpg", other)
    assert "have one image_id" in generate(photos, other, "--format", "coco", code=1).stderr
    path = photos.parent / "list.json"
    options = ("--format", "coco", "--output", path)
    with files_up_to(900):
        generate(photos, *options, code=1)
    assert "has its id already" in generate(other, *options, "--resume", code=1).stderr


def test_no_photo_loses_its_place_to_a_sidecar(generate, photos):
    shutil.copy(photos / "scene_0000.jpg", photos / "scene_0000.png")
    assert "cannot both have their caption" in generate(photos, "--sidecar", code=1).stderr
    assert not list(photos.glob("*.txt"))
    photo = (photos / "scene_0000.jpg").rename(photos / "scene_0000.txt")
    content = photo.read_bytes()
    assert "would be overwritten" in generate(photo, "--sidecar", code=1).stderr
    assert photo.read_bytes() == content


def test_options_that_make_no_sense_together_are_wrong_use(generate, photos, tmp_path):
    output = ("--output", tmp_path / "x")
    for options in (
        ("--resume",),
        ("--sidecar", *output),
        ("--sidecar", "--format", "csv"),
        ("--sidecar", "--num_captions", 2),
        ("--num_captions", 3),
        ("--num_captions", 2, "--format", "coco"),
        (*output, "--resume", "--save_figure", "x.png"),
    ):
        assert "usage: " in generate(photos, *options, code=2).stderr
    assert "is a folder" in generate(photos, "--output", photos, code=1).stderr
