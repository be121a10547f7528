"""Where captions go: as they come, in forms that others read, and gone on with after any stop."""

import csv
import io
import json
import os
import shutil
import tracemalloc
from pathlib import Path

import pytest
from conftest import ROOT, run_here, run_script
from PIL import Image

from captioning import encoders
from captioning.files import InputError
from captioning.outputs import FORMATS, Lines
from generate_caption import INCLUDED
from model import Captioner

FORMS = [(form, count) for form in FORMATS for count in (1, 2) if (form, count) != ("coco", 2)]
EACH = pytest.mark.parametrize(("form", "num_captions"), FORMS)
PHOTOS = [
    *map(Path, ("a folder/tab\tnew\nline, \r ü.jpg", 'x"\n".jpg', "-.png", "x\\n.jpg", "x.jpg")),
    *map(Path, ("other/x.jpg", "x.jpg", os.fsdecode(b"\xff.jpg"))),
]


def beam(photo: Path, num_captions: int) -> list[tuple[str, float]]:
    """Captions that tell photos apart, as many as are asked for, but for a photo of one alone."""
    captions = [(f"a dog 's ball, {len(str(photo))}", -1.5), ("größe", -2.25)]
    return captions[: 1 if photo.suffix == ".png" else num_captions]


def write_all(path: Path, form: str, num_captions: int, resume=False, photos=PHOTOS) -> list[Path]:
    """Write what is missing; returns the photos that were."""
    lines = Lines(form, num_captions, path)
    missing = [p for p, left in zip(photos, lines.open(photos, resume), strict=True) if left]
    for photo in missing:
        lines.write(photo, beam(photo, num_captions))
    lines.close()
    return missing


@EACH
def test_paths_and_captions_are_read_back_by_other_parsers(
    form, num_captions, tmp_path, capfdbinary
):
    write_all(tmp_path / "file", form, num_captions)
    content = (tmp_path / "file").read_bytes()
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
        escaped = [
            r[0].replace("\\", r"\\").replace("\t", r"\t").replace("\n", r"\n") for r in rows
        ]
        assert [f[0] for f in fields] == [name.replace("\r", r"\r") for name in escaped]
        assert [f[1:] for f in fields] == [r[1:] for r in rows]
    else:
        expected = [{"image_id": p.name, "caption": caption} for p, caption, _ in captions]
        assert json.loads(text) == expected


@EACH
def test_a_file_cut_off_at_any_byte_is_gone_on_with(form, num_captions, tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    write_all(whole, form, num_captions)
    content = whole.read_bytes()
    for size in range(len(content) + 1):
        cut.write_bytes(content[:size])
        again = write_all(cut, form, num_captions, resume=True)
        assert cut.read_bytes() == content, size
        # Only what was cut off is done again: the photos that are whole, but for the last.
        assert len(again) <= len(PHOTOS) - max(0, 8 * size // len(content) - 2)
    assert write_all(cut, form, num_captions, resume=True, photos=PHOTOS[3:4]) == []
    more = [*PHOTOS, Path("new.jpg")]
    assert write_all(cut, form, num_captions, resume=True, photos=more) == more[-1:]
    write_all(tmp_path / "more", form, num_captions, photos=more)
    assert cut.read_bytes() == (tmp_path / "more").read_bytes()


FOREIGN = {
    "text": "notes of mine",
    "lines": "notes\nof mine\n",
    "list": '[{"image_id": "x.jpg", "caption": "a dog"}]',
    "pretty list": '[\n {\n  "image_id": "x.jpg"\n }\n]\n',
    "numbers": "1\n2\n",
    "nested": "[" * 5000 + "\n",
    "other columns": '{"image_path": "x.jpg", "text": "a dog"}\n',
    "other csv": "image,caption\nx.jpg,a dog\n",
    "four": "x.jpg\ta\tdog\tran\n",
    "bytes": "\x00\udcff\udcfe\n",
    "list and more": '[\n {"image_id": "x.jpg", "caption": "a dog"}\n]\n]\n',
    "quote": 'image_path,caption\n"x.jpg,a dog\n' + "x.jpg,a dog\n" * 20_000,
}


@EACH
def test_what_it_did_not_write_is_left_alone(form, num_captions, tmp_path):
    path = tmp_path / "file"
    foreign = {name: text.encode(errors="surrogateescape") for name, text in FOREIGN.items()}
    for other in FORMS:
        if other != (form, num_captions):
            write_all(tmp_path / "other", *other)
            foreign[other] = (tmp_path / "other").read_bytes()
            (tmp_path / "other").unlink()
    for name, content in foreign.items():
        path.write_bytes(content)
        with pytest.raises(InputError, match=f"is not what --format {form} with these") as error:
            write_all(path, form, num_captions, resume=True)
        assert str(error.value).isprintable(), name
        with pytest.raises(InputError, match="is there already"):
            write_all(path, form, num_captions)
        assert path.read_bytes() == content


# -- through the script ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def included():
    return Captioner.load(INCLUDED)


@pytest.fixture
def generate(included, monkeypatch):
    """The script, with a captioner that need not be built for every run."""
    monkeypatch.setattr(Captioner, "load", lambda *_: included)

    def run(folder, *options, code=0):
        arguments = ("--image_path", folder, "--batch_size", 3, "--beam_size", 2, *options)
        return run_here("generate_caption.py", *arguments, code=code)

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
    read = encoders.try_load_image

    def look(photo):
        if photo.name == "scene_0007.jpg":
            seen.append(path.read_text())
        return read(photo)

    monkeypatch.setattr(encoders, "try_load_image", look)
    done = generate(photos, "--format", form, "--output", path)
    assert done.stdout == ""
    assert "8 captioned, 1 skipped" in done.stderr
    assert path.read_text().startswith(seen[0])
    assert [f"scene_000{i}.jpg" in seen[0] for i in range(8)] == [True] * 5 + [False] * 3
    assert generate(photos, "--format", form).stdout == path.read_text()


@pytest.mark.parametrize(("form", "count"), [("tsv", 2), ("jsonl", 1), ("csv", 2), ("coco", 1)])
def test_a_killed_run_is_gone_on_with(form, count, generate, photos, tmp_path, monkeypatch):
    path = tmp_path / "file"
    options = ("--format", form, "--num_captions", count, "--output", path)
    generate(photos, *options)
    content = path.read_bytes()
    generate(photos, *options, code=1)
    assert path.read_bytes() == content
    for share in (0, 0.05, 0.4, 0.77, 1):  # of eight photos, so 0.05 is less than a line
        path.write_bytes(content[: int(share * len(content))])
        done = generate(photos, *options, "--resume")
        assert path.read_bytes() == content
        assert ("of 9 are captioned already" in done.stderr) == (share > 0.2)
    # What is done needs no network, but for what could not be read before.
    (photos / "scene_0001b.jpg").unlink()
    monkeypatch.setattr(Captioner, "load", None)
    generate(photos, *options, "--resume")
    assert path.read_bytes() == content


class Sociable:
    """A captioner that says of each photo in whose company it came."""

    encoder = property(lambda self: self)

    def encode(self, pixels):
        return pixels.mean(axis=(1, 2, 3))

    def decode(self, features, *_):
        return [[(f"{mean} among {sorted(features)}", -1.0)] for mean in features]


def test_photos_are_captioned_in_the_company_of_an_undisturbed_run(
    generate, photos, tmp_path, monkeypatch
):
    """A CNN's last digits may depend on the batch, and a caption on those."""
    monkeypatch.setattr(Captioner, "load", lambda *_: Sociable())
    path = tmp_path / "file"
    generate(photos, "--output", path)
    lines = path.read_text().splitlines(keepends=True)
    for count in range(len(lines) + 1):
        path.write_text("".join(lines[:count]))
        generate(photos, "--output", path, "--resume")
        assert path.read_text() == "".join(lines)
    path.write_text("".join(lines[3:]))  # as if new photos had come among the old ones
    done = generate(photos, "--output", path, "--resume")
    assert "3 captioned, 1 skipped" in done.stderr
    names = [line.split("\t")[0] for line in path.read_text().splitlines()]
    assert sorted(names) == [line.split("\t")[0] for line in lines]


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
        ("--output", "x", "--resume", "--save_figure", "x.png"),
    ):
        assert "usage: " in generate(photos, *options, code=2).stderr
    assert "Is a directory" in generate(photos, "--output", photos, code=1).stderr
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
    generate(tmp_path, "--format", form, "--output", tmp_path / "warm")
    tracemalloc.start()
    try:
        generate(tmp_path, "--format", form, "--output", tmp_path / "file")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (tmp_path / "file").stat().st_size > 40e6
    assert peak < 10e6


@pytest.mark.long
def test_a_full_disk_and_then_the_rest(generate, photos, tmp_path):
    from test_faults import with_files_up_to

    path = tmp_path / "file"
    command = ("generate_caption.py", "--image_path", photos, "--model_path", INCLUDED)
    command = (*command, "--batch_size", 3, "--beam_size", 2, "--output", path)
    done = run_script(*command, code=1, preexec_fn=with_files_up_to(300))
    assert done.stderr.splitlines()[-1].startswith(f"error: cannot write {path}: ")
    assert path.stat().st_size == 300
    generate(photos, "--output", path, "--resume")
    assert path.read_text() == generate(photos).stdout
