"""The real scripts as subprocesses on the sample set: what they write, what bad input gets."""

import csv
import json
import shutil
from pathlib import Path

import joblib
import numpy as np
import pytest
from helpers import colours_of, run_here, run_script, share_right, shows
from PIL import Image

from captioning.captions import SPLITS
from captioning.encoders import Encoder
from captioning.features import extract_features, shard_files
from captioning.images import load_image
from data.sample import COLOURS, SHAPES, write_sample

LITE0 = ("--encoder", "efficientnet_lite0")


@pytest.fixture
def dataset(tmp_path):
    """A very small sample set of one's own to spoil."""
    write_sample(tmp_path / "set", scenes=12, seed=1)
    return tmp_path / "set"


def preprocess(dataset, *arguments, code=0):
    output = dataset.parent / "data"
    arguments = ("--dataset_dir", dataset, "--output_dir", output, *LITE0, *arguments)
    return run_here("preprocess.py", *arguments, code=code)


def last_error(done) -> str:
    """The error a script ended with: one or two lines, the first beginning with error:"""
    lines = done.stderr.strip().splitlines()[-2:]
    return " ".join(lines[0 if lines[0].startswith("error:") else 1 :])


# -- the whole way -----------------------------------------------------------------------------


def test_the_pickles_are_as_documented(demo):
    features = joblib.load(demo / "data" / "features.pkl", mmap_mode="r")
    assert isinstance(features["features"], np.memmap)
    assert features["features"].shape == (720, 1280)
    assert features["features"].dtype == np.float32
    assert features["image_ids"] == [f"scene_{i:04d}.jpg" for i in range(720)]
    assert features["encoder"] == "efficientnet_lite0"
    assert len(features["weights_hash"]) == len(features["fingerprint"]) == 64
    assert features["unreadable"] == {}
    text = joblib.load(demo / "data" / "captions.pkl")
    assert text["vocabulary"][:5] == ["<pad>", "<unk>", "<start>", "<end>", "the"]
    assert [len(text["splits"][split]) for split in SPLITS] == [576, 72, 72]
    assert text["captions"]["scene_0000.jpg"][1] == "there are three red circles in the picture"
    assert text["max_length"] == 9
    assert text["settings"]["splits"] == "lists"
    assert not (demo / "data" / "shards").exists()


def test_the_features_are_those_of_the_images(demo):
    features = joblib.load(demo / "data" / "features.pkl")
    chosen = [0, 255, 256, 719]  # both sides of a shard's edge
    paths = [demo / "dataset" / "Images" / features["image_ids"][row] for row in chosen]
    expected = Encoder("efficientnet_lite0").encode(np.stack([load_image(p) for p in paths]))
    np.testing.assert_allclose(features["features"][chosen], expected, rtol=1e-4, atol=1e-5)


def test_training_writes_history_and_curves(demo):
    with (demo / "models" / "caption_model.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["epoch"]) for row in rows] == list(range(1, len(rows) + 1))
    dev = [float(row["dev_loss"]) for row in rows]
    assert dev[-1] < 0.5 * dev[0]
    assert all(float(row["seconds"]) > 0 for row in rows)
    drawn = colours_of(demo / "models" / "caption_model.png")
    assert {(31, 119, 180), (255, 127, 14)} <= drawn.keys()  # the lines of training and dev


def test_the_best_epoch_is_kept(demo, captioner):
    with (demo / "models" / "caption_model.csv").open() as file:
        dev = {int(row["epoch"]): float(row["dev_loss"]) for row in csv.DictReader(file)}
    best = min(dev, key=dev.get)
    assert captioner.config.training["kept"]["epoch"] == best
    assert captioner.config.training["kept"]["dev_loss"] == pytest.approx(dev[best])


def test_held_out_scenes_are_described_and_only_by_their_own_features(demo, captioner):
    features = joblib.load(demo / "data" / "features.pkl")
    text = joblib.load(demo / "data" / "captions.pkl")
    scenes = text["splits"]["dev"] + text["splits"]["test"]
    rows = [features["image_ids"].index(scene) for scene in scenes]
    truths = [text["captions"][scene][0] for scene in scenes]
    captions = captioner.caption_features(features["features"][rows])
    assert share_right(captions, truths) >= 0.8
    others = np.roll(rows, 1)
    chance = 1 / (len(COLOURS) * len(SHAPES))
    swapped = captioner.caption_features(features["features"][others])
    assert share_right(swapped, truths) <= chance + 0.1
    assert share_right(swapped, truths[-1:] + truths[:-1]) >= 0.8  # they describe the other scene


def test_captioning_needs_no_pickle_and_formats_agree(demo, captioner, tmp_path):
    model_path = shutil.copy(demo / "models" / "caption_model.h5", tmp_path / "m.h5")
    folder = tmp_path / "photos"
    folder.mkdir()
    names = ["a b.jpg", "tab\tnew\nline.jpg", "ü.png"]
    for number, name in enumerate(names):
        image = Image.open(demo / "dataset" / "Images" / f"scene_{number:04d}.jpg")
        image.save(folder / name)
    (folder / "notes.txt").write_text("not looked at")
    (folder / "broken.jpg").write_text("not an image")
    expected = {str(folder / name): captioner.caption(folder / name) for name in names}

    def lines(run, form, *options):
        arguments = ("--model_path", model_path, "--format", form, "--image_path", folder, *options)
        done = run("generate_caption.py", *arguments)
        assert "skipped: " in done.stderr
        assert "broken.jpg" in done.stderr
        assert "3 captioned, 1 skipped" in done.stderr
        return done.stdout

    figure = tmp_path / "figure.png"
    rows = [
        line.split("\t") for line in lines(run_script, "tsv", "--save_figure", figure).splitlines()
    ]
    assert {p.replace(r"\t", "\t").replace(r"\n", "\n"): c for p, c in rows} == expected
    assert all(shows(figure, folder / name) for name in names)
    found = [json.loads(line) for line in lines(run_here, "jsonl").splitlines()]
    assert {line["image_path"]: line["caption"] for line in found} == expected


def test_caption_takes_paths_images_and_pixels(demo, captioner):
    path = demo / "dataset" / "Images" / "scene_0003.jpg"
    caption = captioner.caption(path)
    assert captioner.caption(str(path)) == caption
    assert captioner.caption(Image.open(path)) == caption
    assert captioner.caption(load_image(path)) == caption


# -- options -----------------------------------------------------------------------------------


def test_preprocess_options(dataset):
    preprocess(dataset, "--limit", 2, "--captions_per_image", 1, "--min_word_count", 2)
    text = joblib.load(dataset.parent / "data" / "captions.pkl")
    assert [len(text["splits"][split]) for split in SPLITS] == [2, 1, 1]
    assert all(len(captions) == 1 for captions in text["captions"].values())
    last = [text["captions"][scene][0] for scene in text["splits"]["train"]]
    words = set(" ".join(last).split())
    assert all(" " in caption for caption in last)
    assert set(text["vocabulary"][4:]) < words  # those seen once are gone
    assert text["settings"]["limit"] == 2


@pytest.mark.long
def test_without_lists_a_seeded_split_and_without_dev_a_training(dataset, tmp_path):
    for path in dataset.glob("Flickr_8k.*.txt"):
        path.unlink()
    preprocess(dataset, "--seed", 1)
    one = joblib.load(tmp_path / "data" / "captions.pkl")
    assert [len(one["splits"][split]) for split in SPLITS] == [10, 1, 1]
    assert "unchanged" in preprocess(dataset, "--seed", 2).stderr  # nothing is extracted again
    assert joblib.load(tmp_path / "data" / "captions.pkl")["splits"] != one["splits"]

    names = [f"scene_{i:04d}.jpg\n" for i in range(6)]
    (dataset / "Flickr_8k.trainImages.txt").write_text("".join(names))
    preprocess(dataset)
    done = run_here(
        *("train.py", "--data_dir", tmp_path / "data", "--model_path", tmp_path / "m.h5"),
        *("--epochs", 2, "--batch_size", 8),
    )
    assert "without validation" in done.stderr
    assert "kept epoch 2" in done.stdout


def test_finished_shards_are_not_redone(dataset, tmp_path):
    """A shard that an earlier run left is used; one of a changed file is not."""
    encoder = Encoder("efficientnet_lite0", "random")
    paths = sorted((dataset / "Images").iterdir())
    work = tmp_path / "shards"
    files = shard_files(encoder, paths, work)
    features, _ = extract_features(encoder, paths, files, batch_size=5)
    before = features.copy()
    assert [file.is_file() for file in files] == [True]

    encoder.encode = None  # anything that is encoded now fails
    again, _ = extract_features(encoder, paths, files, batch_size=5)
    np.testing.assert_array_equal(again, before)
    Path(paths[3]).write_bytes(paths[4].read_bytes())
    assert shard_files(encoder, paths, work) != files
    assert shard_files(encoder, paths[::-1], work) != files


# -- bad input ---------------------------------------------------------------------------------


def test_missing_images_stop_the_run_unless_allowed(dataset):
    lost = (dataset / "Flickr_8k.trainImages.txt").read_text().split()[0]
    (dataset / "Images" / lost).unlink()
    done = preprocess(dataset, code=1)
    assert lost in last_error(done)
    assert "--allow_missing" in last_error(done)
    assert not (dataset.parent / "data").exists()
    assert f"missing, left out: {lost}" in preprocess(dataset, "--allow_missing").stderr


def test_an_unreadable_image_is_named_skipped_and_counted(dataset):
    spoilt = (dataset / "Flickr_8k.trainImages.txt").read_text().split()[0]
    (dataset / "Images" / spoilt).write_bytes(b"\xff\xd8 no jpeg")
    (dataset / "Images" / "extra.png").write_bytes(b"")  # no caption names it
    done = preprocess(dataset)
    assert f"skipped: {dataset / 'Images' / spoilt}" in done.stderr
    assert "11 with features, 1 unreadable and skipped; 1 in the folder unused" in done.stdout
    text = joblib.load(dataset.parent / "data" / "captions.pkl")
    assert spoilt not in text["captions"]
    assert spoilt not in text["splits"]["train"]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda s: shutil.rmtree(s), "no such folder"),
        (lambda s: shutil.rmtree(s / "Images"), "--images_dir"),
        (lambda s: (s / "captions.txt").unlink(), "--captions_file"),
        (lambda s: (s / "captions.txt").write_text("a.jpg,one,two\n"), "3 columns"),
        (
            lambda s: (s / "Flickr_8k.devImages.txt").write_text(
                (s / "Flickr_8k.trainImages.txt").read_text()
            ),
            "is in both the train and the dev split",
        ),
        (lambda s: [p.unlink() for p in (s / "Images").iterdir()], "none of the 12"),
    ],
    ids=["folder", "images", "captions", "columns", "overlap", "empty"],
)
def test_bad_data_sets_end_in_one_clear_error(dataset, spoil, message):
    spoil(dataset)
    assert message in last_error(preprocess(dataset, code=1))
    assert not (dataset.parent / "data" / "captions.pkl").exists()


def test_old_pickles_survive_a_failed_run(demo, dataset, tmp_path):
    shutil.copytree(demo / "data", tmp_path / "data")
    before = {p.name: p.read_bytes() for p in (tmp_path / "data").iterdir()}
    (dataset / "captions.txt").write_text("image,caption\n")
    preprocess(dataset, code=1)
    assert {p.name: p.read_bytes() for p in (tmp_path / "data").iterdir()} == before


def test_train_refuses_what_is_not_its_input(demo, tmp_path):
    def error(*arguments, code=1):
        done = run_here("train.py", "--model_path", tmp_path / "m.h5", *arguments, code=code)
        return last_error(done) if code == 1 else done.stderr

    assert "Run preprocess.py first" in error("--data_dir", tmp_path / "nowhere")
    shutil.copytree(demo / "data", tmp_path / "data")
    (tmp_path / "data" / "features.pkl").write_bytes(b"not a pickle")
    assert "features.pkl cannot be read" in error("--data_dir", tmp_path / "data")
    joblib.dump({"features": 1}, tmp_path / "data" / "features.pkl")
    assert "is not what preprocess.py writes (features, image_ids" in error(
        "--data_dir", tmp_path / "data"
    )
    features = joblib.load(demo / "data" / "features.pkl")
    for changes, message in (
        ({"image_ids": []}, "has 720 features of 0 images"),
        ({"features": features["features"].astype("f8")}, "writes (features)"),
        ({"features": features["features"][0]}, "writes (features)"),
        ({"image_ids": [f"{i}.jpg" for i in range(720)]}, "not of one run"),
    ):
        joblib.dump(features | changes, tmp_path / "data" / "features.pkl")
        assert message in error("--data_dir", tmp_path / "data")
    assert ".h5" in error("--data_dir", demo / "data", "--model_path", tmp_path / "m.keras")
    assert "--dropout" in error("--dropout", "1.5", code=2)
    assert not list(tmp_path.glob("m.*"))


def test_generate_refuses_what_is_not_its_input(demo, tmp_path):
    model_path = demo / "models" / "caption_model.h5"
    photo = demo / "dataset" / "Images" / "scene_0000.jpg"

    def error(image, *arguments, code=1):
        arguments = ("--image_path", image, "--model_path", model_path, *arguments)
        done = run_here("generate_caption.py", *arguments, code=code)
        assert done.stdout == ""
        return done.stderr

    missing = error(tmp_path / "missing.jpg")
    assert "no such image file" in missing
    assert "none of the 1 files" in missing
    assert "no images in" in error(tmp_path)
    assert "Train one with train.py" in error(photo, "--model_path", tmp_path / "m.h5")
    assert "are not those the captioner was trained with" in error(photo, "--weights", "random")
    assert "invalid choice" in error(photo, "--format", "xml", code=2)
