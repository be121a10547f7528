"""Photos named by folders of any depth and by patterns, and their ids in each format."""

import csv
import functools
import io
import json
import shutil
from pathlib import Path

import pytest
from helpers import EXAMPLES, run_here

from captioning.files import InputError
from captioning.onnx_captioner import OnnxCaptioner
from captioning.photo_list import coco_id, list_photos

NAMES = ("a.jpg", "b.PNG", "sub/c.jpg", "sub/deep/ü d.webp", ".hidden/e.jpg", "sub/notes.md")


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    for name in NAMES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "recursive", "names"),
    [
        (["."], False, ["a.jpg", "b.PNG"]),
        (["."], True, ["a.jpg", "b.PNG", "sub/c.jpg", "sub/deep/ü d.webp"]),
        (["sub"], True, ["c.jpg", "deep/ü d.webp"]),
        (["*.jpg"], False, ["a.jpg"]),
        (["**/*.jpg"], False, ["a.jpg", "sub/c.jpg"]),
        (["sub/*"], False, ["c.jpg", "deep/ü d.webp"]),  # as a shell's would
        (["s?b/**/*"], False, ["sub/c.jpg", "sub/deep/ü d.webp"]),
        (["s*"], True, ["sub/c.jpg", "sub/deep/ü d.webp"]),
        (["sub/c.jpg", "sub", "sub/c.jpg"], True, ["c.jpg", "deep/ü d.webp"]),
    ],
)
def test_photos_are_found_with_their_names_from_there_on(folder, arguments, recursive, names):
    assert [*list_photos(arguments, recursive).values()] == names
    absolute = [str(folder / argument) for argument in arguments]
    found = list_photos(absolute, recursive)
    assert [*found.values()] == names
    assert all(path.is_file() for path in found)


def test_a_pattern_that_matches_nothing_is_named_but_a_name_may_look_like_one(folder):
    with pytest.raises(InputError, match=r"x\*\.jpg: no image matches this pattern"):
        list_photos(["x*.jpg"])
    (folder / "my[1]").mkdir()
    for name in ("[a].jpg", "my[1]/b.jpg"):
        (folder / name).touch()
    assert [*list_photos(["[a].jpg", "my[1]/*.jpg"]).values()] == ["[a].jpg", "b.jpg"]


def test_what_is_left_out_of_folders_is_counted_and_named(folder, capsys):
    list_photos(["."])
    (told,) = capsys.readouterr().err.splitlines()
    assert told == "left out in .: 1 folder: sub (--recursive takes their images)"
    list_photos(["."], recursive=True)
    (told,) = capsys.readouterr().err.splitlines()
    assert told == "left out in .: 2 files: .hidden/e.jpg, sub/notes.md"


@pytest.mark.parametrize(
    ("name", "image_id"),
    [
        ("COCO_val2014_000000391895.jpg", 391895),
        ("val2017/000000391895.jpg", 391895),
        ("000000000001.png", 1),
        ("391895.jpg", "391895.jpg"),
        ("trip/202401011230.jpg", "trip/202401011230.jpg"),
        ("1000268201_693b08cb0e.jpg", "1000268201_693b08cb0e.jpg"),
        ("sub/x.jpg", "sub/x.jpg"),
    ],
)
def test_coco_s_names_are_its_numbers(name, image_id):
    assert coco_id(name) == image_id


def test_every_format_keeps_the_folders_names(tmp_path, monkeypatch):
    monkeypatch.setattr(OnnxCaptioner, "load", functools.cache(OnnxCaptioner.load))
    photos = tmp_path / "photos"
    names = ("000000391895.jpg", "sub/donna.jpg")
    for name in names:
        (photos / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(EXAMPLES / "donna.jpg", photos / name)
    command = ("generate_caption.py", "--image_path", photos, "--recursive", "--format")
    said = {form: run_here(*command, form).stdout for form in ("tsv", "jsonl", "csv", "coco")}
    paths = [str(photos / name) for name in names]
    assert [line.split("\t")[0] for line in said["tsv"].splitlines()] == paths
    assert [json.loads(line)["image_path"] for line in said["jsonl"].splitlines()] == paths
    assert [row["image_path"] for row in csv.DictReader(io.StringIO(said["csv"]))] == paths
    assert [row["image_id"] for row in json.loads(said["coco"])] == [391895, "sub/donna.jpg"]
    output = ("--output", tmp_path / "captions.json")
    run_here(*command, "coco", *output)
    assert (tmp_path / "captions.json").read_text() == said["coco"]
    run_here("generate_caption.py", "--image_path", photos, "--recursive", "--sidecar")
    assert all((photos / name).with_suffix(".txt").is_file() for name in names)
