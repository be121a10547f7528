"""A data set doubled by mirror images: the same photos turned, the same captions but for sides."""

import numpy as np
import pytest
from helpers import run_here
from PIL import Image, ImageOps

from captioning.dataset import read_captions, read_split_lists
from captioning.images import load_image
from data.mirror import mirror, mirror_id
from data.sample import write_sample


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A sample set, one of whose training photos is stored on its side, and its double."""
    folder = tmp_path_factory.mktemp("mirror")
    write_sample(folder / "set", scenes=40, seed=2)
    turned = read_split_lists(folder / "set")["train"][0]
    path = folder / "set" / "Images" / turned
    with Image.open(path) as image:
        exif = image.getexif()
        exif[0x0112] = 6
        image.rotate(90).save(path, exif=exif, quality=95)
    broken = read_split_lists(folder / "set")["train"][1]
    (folder / "set" / "Images" / broken).write_bytes(b"no image")
    command = ("--dataset_dir", folder / "set", "--output_dir", folder / "double")
    done = run_here("data/mirror.py", *command)
    assert "31 mirror images beside 32 training photos" in done.stdout
    assert f"{broken}: not a readable image" in done.stderr
    return folder / "set", folder / "double", broken


def test_the_training_photos_alone_have_a_mirror_image(folders):
    old, new, broken = folders
    before, after = read_split_lists(old), read_split_lists(new)
    added = [f"mirrored/{image_id}.jpg" for image_id in before["train"] if image_id != broken]
    assert after == before | {"train": before["train"] + added}
    for split in before.values():
        for image_id in split:
            assert (new / "Images" / image_id).samefile(old / "Images" / image_id)
    for image_id in before["train"]:
        if image_id != broken:
            with (
                Image.open(old / "Images" / image_id) as photo,
                Image.open(new / "Images" / "mirrored" / f"{image_id}.jpg") as image,
            ):
                expected = np.asarray(ImageOps.mirror(ImageOps.exif_transpose(photo)), float)
                assert np.abs(np.asarray(image, float) - expected).mean() < 3


def test_a_mirror_image_is_of_what_the_captioner_sees(tmp_path):
    """What is transparent is white, and 16-bit grey is not clipped."""
    clear = np.zeros((40, 60, 4), np.uint8)
    clear[:, :20] = (200, 0, 0, 255)
    Image.fromarray(clear).save(tmp_path / "clear.png")
    Image.fromarray(np.tile(np.arange(60, dtype=np.uint16) * 1000, (40, 1))).save(
        tmp_path / "deep.png"
    )
    for name in ("clear.png", "deep.png"):
        assert mirror(tmp_path, tmp_path / "new", name) == ""
        image = load_image(tmp_path / "new" / mirror_id(name)).astype(float)
        expected = load_image(tmp_path / name)[:, ::-1].astype(float)
        assert np.abs(image - expected).mean() < 3
        assert expected.std() > 50


def test_captions_change_sides(folders):
    old, new, broken = folders
    before, _ = read_captions(old / "captions.txt")
    after, _ = read_captions(new / "captions.txt")
    sides = 0
    for image_id in read_split_lists(old)["train"]:
        assert after[image_id] == before[image_id]
        if image_id != broken:
            for line, turned in zip(
                before[image_id], after[f"mirrored/{image_id}.jpg"], strict=True
            ):
                swapped = line.replace("left", "·").replace("right", "left").replace("·", "right")
                assert turned == swapped
                sides += turned != line
    assert sides > 0


def test_preprocess_takes_it(folders, tmp_path):
    _, new, _ = folders
    command = ("--dataset_dir", new, "--output_dir", tmp_path, "--encoder", "efficientnet_lite0")
    assert "train         62" in run_here("preprocess.py", *command).stdout
    done = run_here("data/mirror.py", "--dataset_dir", new, "--output_dir", new, code=1)
    assert "name another folder" in done.stderr
