"""The real scripts on the sample set: what they write, and what bad input gets."""

import csv
import json
import os
import shutil
from collections import Counter

import joblib
import numpy as np
import pytest
from helpers import colours_of, run_here, shows
from PIL import Image

from captioning import features
from captioning.captions import SPLITS
from captioning.dataset import read_captions, read_split_lists
from captioning.encoders import Encoder
from captioning.features import extract_features, hash_files, shard_files
from captioning.images import load_image
from data.sample import COLOURS, SHAPES, write_sample


@pytest.fixture
def dataset(tmp_path):
    """A very small sample set of one's own to spoil."""
    write_sample(tmp_path / "set", scenes=12, seed=1)
    return tmp_path / "set"


def preprocess(dataset, *arguments, code=0):
    folders = ("--dataset_dir", dataset, "--output_dir", dataset.parent / "data")
    encoder = ("--encoder", "efficientnet_lite0")
    return run_here("preprocess.py", *folders, *encoder, *arguments, code=code)


def test_the_pickles_hold_the_features_captions_and_splits_of_the_files(demo):
    features = joblib.load(demo / "data" / "features.pkl", mmap_mode="r")
    assert isinstance(features["features"], np.memmap)
    chosen = [0, 255, 256, 719]  # both sides of a shard's edge
    paths = [demo / "dataset" / "Images" / features["image_ids"][row] for row in chosen]
    expected = Encoder("efficientnet_lite0").encode(np.stack([load_image(p) for p in paths]))
    np.testing.assert_allclose(features["features"][chosen], expected, rtol=1e-4, atol=1e-5)
    text = joblib.load(demo / "data" / "captions.pkl")
    assert (text["captions"], None) == read_captions(demo / "dataset" / "captions.txt")
    assert text["splits"] == read_split_lists(demo / "dataset")
    assert not (demo / "data" / "shards").exists()


def test_the_history_is_drawn_and_the_best_epoch_is_in_the_file(demo, captioner):
    with (demo / "models" / "caption_model.csv").open() as file:
        dev = [float(row["dev_loss"]) for row in csv.DictReader(file)]
    assert dev[-1] < 0.5 * dev[0]
    kept = captioner.config.training["kept"]
    assert kept["epoch"] == 1 + np.argmin(dev)
    assert kept["dev_loss"] == pytest.approx(min(dev))  # test_scoring.py: it is the file's own
    drawn = colours_of(demo / "models" / "caption_model.png")
    assert {(31, 119, 180), (255, 127, 14)} <= drawn.keys()  # the lines of training and dev


def test_held_out_scenes_get_captions_of_their_colour_and_shape(demo, captioner):
    features = joblib.load(demo / "data" / "features.pkl")
    text = joblib.load(demo / "data" / "captions.pkl")
    scenes = text["splits"]["dev"] + text["splits"]["test"]
    rows = [features["image_ids"].index(scene) for scene in scenes]
    captions = captioner.caption_features(features["features"][rows])

    def named(caption: str) -> set[str]:
        return {word.removesuffix("s") for word in caption.split()} & {*COLOURS, *SHAPES}

    truths = [text["captions"][scene][0] for scene in scenes]
    right = [
        named(caption) == named(truth) for caption, truth in zip(captions, truths, strict=True)
    ]
    assert np.mean(right) >= 0.8


def test_the_command_captions_and_draws_as_the_library_does(demo, captioner, tmp_path):
    photos = [tmp_path / "photos" / name for name in ("a b.jpg", "tab\tnew\nline.jpg", "ü.png")]
    photos[0].parent.mkdir()
    for number, photo in enumerate(photos):
        shutil.copy(demo / "dataset" / "Images" / f"scene_{number:04d}.jpg", photo)
    (tmp_path / "photos" / "broken.jpg").write_text("not an image")
    done = run_here(
        *("generate_caption.py", "--model_path", demo / "models" / "caption_model.h5"),
        *("--image_path", tmp_path / "photos", "--save_figure", tmp_path / "new" / "figure.png"),
        *("--beam_size", 3, "--num_captions", 3, "--format", "jsonl"),
    )
    assert "broken.jpg" in done.stderr
    assert "3 captioned, 1 skipped" in done.stderr
    beams = captioner.decode(captioner.encoder.encode(np.stack([*map(load_image, photos)])), 3)
    each = zip(photos, beams, strict=True)
    expected = {(str(photo), c.text): c.log_probability for photo, beam in each for c in beam}
    found = [list(json.loads(line).values()) for line in done.stdout.splitlines()]
    scores = {(path, text): score for path, text, score, _ in found}
    assert scores == pytest.approx(expected, abs=1e-3)
    assert len(found) == 9
    assert all(shows(tmp_path / "new" / "figure.png", photo) for photo in photos)
    for image in (photos[0], str(photos[0]), Image.open(photos[0]), load_image(photos[0])):
        assert captioner.caption(image, beam_size=3) == beams[0][0][0]


def test_preprocess_options(dataset):
    preprocess(dataset, "--limit", 2, "--captions_per_image", 1, "--min_word_count", 2)
    text = joblib.load(dataset.parent / "data" / "captions.pkl")
    splits = {split: ids[:2] for split, ids in read_split_lists(dataset).items()}
    assert text["splits"] == splits
    captions, _ = read_captions(dataset / "captions.txt")
    assert text["captions"] == {i: captions[i][-1:] for ids in splits.values() for i in ids}
    counts = Counter(word for i in splits["train"] for word in captions[i][-1].split())
    assert set(text["vocabulary"][4:]) == {word for word, n in counts.items() if n >= 2}


def test_preprocess_reads_another_s_forms_and_lists(dataset):
    """COCO's captions of other columns' names and one's own lists, for what was captions.txt."""
    captions, _ = read_captions(dataset / "captions.txt")
    splits = read_split_lists(dataset)
    (dataset / "captions.txt").unlink()
    objects = [{"foto": i, "satz": line} for i, lines in captions.items() for line in lines]
    (dataset / "mine.jsonl").write_text("\n".join(map(json.dumps, objects)))
    options = ("--captions_file", dataset / "mine.jsonl")
    options += ("--image_column", "foto", "--caption_column", "satz")
    for split in SPLITS:
        (dataset / f"Flickr_8k.{split}Images.txt").unlink()
        (dataset / f"{split}.lst").write_text("\n".join(splits[split]))
        options += (f"--{split}_list", dataset / f"{split}.lst")
    preprocess(dataset, *options)
    text = joblib.load(dataset.parent / "data" / "captions.pkl")
    assert text["splits"] == splits
    assert text["captions"] == {i: captions[i] for ids in splits.values() for i in ids}
    assert text["settings"]["captions_file"] == "mine.jsonl"


@pytest.mark.long
def test_without_lists_a_seeded_split_and_without_dev_a_training(dataset, tmp_path):
    for path in dataset.glob("Flickr_8k.*.txt"):
        path.unlink()
    preprocess(dataset, "--seed", 1)
    splits = joblib.load(tmp_path / "data" / "captions.pkl")["splits"]
    assert [len(splits[split]) for split in SPLITS] == [10, 1, 1]
    assert "unchanged" in preprocess(dataset, "--seed", 2).stderr  # nothing is extracted again
    assert joblib.load(tmp_path / "data" / "captions.pkl")["splits"] != splits
    (dataset / "Flickr_8k.trainImages.txt").write_text("scene_0000.jpg\nscene_0001.jpg\n")
    preprocess(dataset)
    model = ("--model_path", tmp_path / "m.h5", "--epochs", 2)
    done = run_here("train.py", "--data_dir", tmp_path / "data", *model)
    assert "without validation" in done.stderr
    assert "kept epoch 2" in done.stdout


def test_finished_shards_are_not_redone_and_those_of_changed_files_are(dataset, tmp_path):
    encoder = Encoder("efficientnet_lite0", "random")
    paths = sorted((dataset / "Images").iterdir())
    files = shard_files(encoder, hash_files(paths), tmp_path / "shards")
    before = np.array(extract_features(encoder, paths, files, batch_size=5)[0])
    encoder.encode = None  # anything that is encoded now fails
    again = extract_features(encoder, paths, files, batch_size=5)[0]
    np.testing.assert_array_equal(again, before)
    state = paths[3].stat()
    paths[3].write_bytes(paths[3].read_bytes()[:-1] + b"?")
    os.utime(paths[3], ns=(state.st_atime_ns, state.st_mtime_ns))  # as old and as large as before
    assert shard_files(encoder, hash_files(paths), tmp_path / "shards") != files


def test_a_shard_with_a_photo_that_can_be_read_again_is_redone(dataset, tmp_path, monkeypatch):
    encoder, paths = Encoder("efficientnet_lite0", "random"), [*(dataset / "Images").iterdir()]
    files = shard_files(encoder, hash_files(paths), tmp_path / "shards")
    with monkeypatch.context() as patch:
        patch.setattr(features, "try_load_image", lambda path, size=0: (None, "no memory"))
        assert extract_features(encoder, paths, files, batch_size=5)[2] == ["no memory"] * 12
    assert extract_features(encoder, paths, files, batch_size=5)[2] == [""] * 12


def features_by_id(dataset) -> dict[str, bytes]:
    content = joblib.load(dataset.parent / "data" / "features.pkl")
    return {
        i: row.tobytes() for i, row in zip(content["image_ids"], content["features"], strict=True)
    }


def test_photos_keep_their_features_when_folders_are_renamed(dataset, monkeypatch):
    """Also where names, sizes and times are those of other photos."""
    images, text = dataset / "Images", (dataset / "captions.txt").read_text()
    names = sorted(path.name for path in images.iterdir())
    for path in dataset.glob("*Images.txt"):
        path.unlink()
    for folder, chosen in (("a", names[::2]), ("b", names[1::2])):
        (images / folder).mkdir()
        for number, name in enumerate(chosen):
            (images / name).rename(images / folder / f"{number}.jpg")
            text = text.replace(name, f"{folder}/{number}.jpg")
    (dataset / "captions.txt").write_text(text)
    preprocess(dataset)
    before = features_by_id(dataset)
    (images / "a").rename(images / "0")
    (images / "b").rename(images / "a")
    text = text.replace("a/", "0/").replace("b/", "a/")
    (dataset / "captions.txt").write_text(text)
    monkeypatch.setattr(Encoder, "encode", None)  # nothing is encoded again
    preprocess(dataset)
    moved = {i.replace("a/", "0/").replace("b/", "a/"): row for i, row in before.items()}
    assert features_by_id(dataset) == moved
    assert "up to date: the 12 images" in preprocess(dataset).stderr


@pytest.mark.long
def test_what_could_not_be_read_is_named_and_tried_again(dataset, monkeypatch):
    broken = dataset / "Images" / "scene_0005.jpg"
    content = broken.read_bytes()
    load = features.try_load_image
    with monkeypatch.context() as patch:  # a network drive, say: the file is as it was
        wrong = f"{broken}: no memory"
        patch.setattr(
            features,
            "try_load_image",
            lambda p, size: (None, wrong) if p == broken else load(p, size),
        )
        for _ in range(2):
            assert f"skipped: {wrong}" in preprocess(dataset).stderr
    assert broken.name not in features_by_id(dataset)
    preprocess(dataset)
    assert broken.name in features_by_id(dataset)
    broken.write_bytes(b"no photo")
    for _ in range(2):
        assert f"skipped: {broken}: not a readable image" in preprocess(dataset).stderr
    broken.write_bytes(content)
    preprocess(dataset)
    assert broken.name in features_by_id(dataset)


def test_a_folder_of_the_user_s_is_not_removed_with_the_shards(dataset):
    mine = dataset.parent / "data" / "shards" / "mine.npz"
    mine.parent.mkdir(parents=True)
    mine.touch()
    preprocess(dataset)
    assert list(mine.parent.iterdir()) == [mine]


def test_names_in_another_form_are_found_and_other_ones_are_suggested(dataset):
    images, captions = dataset / "Images", dataset / "captions.txt"
    (images / "scene_0003.jpg").rename(images / "e\u0301.jpg")  # as macOS writes it
    text = captions.read_text().replace("scene_0003", "\u00e9")
    captions.write_text(text)
    for path in dataset.glob("*Images.txt"):
        path.write_text(path.read_text().replace("scene_0003", "\u00e9"))
    preprocess(dataset)
    assert "e\u0301.jpg" in joblib.load(dataset.parent / "data" / "features.pkl")["image_ids"]
    for name, wanted in (("scene_0001.JPG", "scene_0001.jpg"), ("scene_0001", "scene_0001.jpg")):
        captions.write_text(text.replace("scene_0001.jpg", name))
        for path in dataset.glob("*Images.txt"):
            path.unlink()
        done = preprocess(dataset, code=1)
        assert f"{name} (did you mean {wanted}?)" in done.stderr


def test_missing_and_broken_photos_are_named_and_left_out(dataset):
    lost, spoilt = read_split_lists(dataset)["train"][:2]
    (dataset / "Images" / lost).unlink()
    (dataset / "Images" / spoilt).write_bytes(b"\xff\xd8 no jpeg")
    (dataset / "Images" / "extra.png").write_bytes(b"")  # no caption names it
    refused = preprocess(dataset, code=1).stderr
    assert lost in refused and "--allow_missing" in refused
    done = preprocess(dataset, "--allow_missing")
    assert f"missing, left out: {lost}" in done.stderr
    assert f"skipped: {dataset / 'Images' / spoilt}" in done.stderr
    assert "10 with features, 1 unreadable and skipped; 1 in the folder unused" in done.stdout
    text = joblib.load(dataset.parent / "data" / "captions.pkl")
    assert not {lost, spoilt} & {*text["captions"], *text["splits"]["train"]}


def overlap(dataset):
    shutil.copy(dataset / "Flickr_8k.trainImages.txt", dataset / "Flickr_8k.devImages.txt")


BAD_DATA_SETS = {
    "folder": (shutil.rmtree, "no such folder"),
    "images": (lambda s: shutil.rmtree(s / "Images"), "--images_dir"),
    "captions": (lambda s: (s / "captions.txt").unlink(), "--captions_file"),
    "overlap": (overlap, "is in both the train and the dev split"),
    "empty": (lambda s: [p.unlink() for p in (s / "Images").iterdir()], "none of the 12"),
    "output": (lambda s: (s.parent / "data" / "shards").touch(), "cannot write"),
}


@pytest.mark.parametrize("name", BAD_DATA_SETS)
def test_bad_data_sets_end_in_one_clear_error_and_old_pickles_stay(dataset, name):
    spoil, message = BAD_DATA_SETS[name]
    old = dataset.parent / "data" / "captions.pkl"
    old.parent.mkdir()
    old.write_bytes(b"old")
    spoil(dataset)
    error = preprocess(dataset, code=1).stderr.rpartition("error: ")[2]
    assert message in error
    assert old.read_bytes() == b"old"


def test_train_refuses_what_is_not_its_input(small, tmp_path):
    def error(*arguments, code=1):
        return run_here("train.py", "--model_path", tmp_path / "m.h5", *arguments, code=code).stderr

    data = shutil.copytree(small / "data", tmp_path / "data")
    features = joblib.load(small / "data" / "features.pkl")
    for content, message in (
        ({"features": 1}, "is not what preprocess.py writes (features, image_ids"),
        (features | {"image_ids": []}, "has 60 features of 0 images"),
        (features | {"features": features["features"].astype("f8")}, "writes (features)"),
        (features | {"features": features["features"][0]}, "writes (features)"),
        (features | {"features": np.zeros((60, 49, 8), "f2")}, "writes (features)"),
        (features | {"image_ids": [f"{i}.jpg" for i in range(60)]}, "not of one run"),
    ):
        joblib.dump(content, data / "features.pkl")
        assert message in error("--data_dir", data)
    (data / "features.pkl").write_bytes(b"not a pickle")
    assert "features.pkl cannot be read" in error("--data_dir", data)
    assert "Run preprocess.py first" in error("--data_dir", tmp_path / "nowhere")
    assert ".h5" in error("--data_dir", small / "data", "--model_path", tmp_path / "m.keras")
    assert "--dropout" in error("--dropout", "1.5", code=2)
    assert not list(tmp_path.glob("m.*"))


def test_the_option_that_moved_names_its_script():
    done = run_here("train.py", "--finetune_cider", "x.h5", code=2)
    assert "python finetune.py x.h5" in done.stderr


def test_generate_refuses_what_is_not_its_input(demo, tmp_path):
    photo = demo / "dataset" / "Images" / "scene_0000.jpg"
    for arguments, message in (
        ((tmp_path / "x.jpg",), "x.jpg: no such image file"),
        ((tmp_path / "x.jpg",), "error: none of the 1 files"),
        ((tmp_path,), f"no images in {tmp_path}"),
        ((photo, "--model_path", tmp_path / "m.h5"), "Train one with train.py"),
        ((photo, "--weights", "random"), "are not those the captioner was trained with"),
    ):
        model = ("--model_path", demo / "models" / "caption_model.h5", "--image_path")
        done = run_here("generate_caption.py", *model, *arguments, code=1)
        assert done.stdout == ""
        assert message in done.stderr
