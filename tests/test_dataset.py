"""What a folder holds as a data set, and how it is split."""

import json
from itertools import chain

import pytest

from captioning.captions import Vocabulary
from captioning.dataset import (
    check_splits,
    find_dataset,
    random_splits,
    read_captions,
    read_split_lists,
)
from captioning.files import InputError


@pytest.mark.parametrize(
    "text",
    [
        "image,caption,split\na.jpg,A dog,train\nb.jpg,A cat,val\nc.jpg,A cow,test\n",
        "\n".join(
            json.dumps({"image": f"{name}.jpg", "caption": f"A {animal}", "split": split})
            for name, animal, split in (
                ("a", "dog", "training"),
                ("b", "cat", "validation"),
                ("c", "cow", "test"),
            )
        ),
    ],
    ids=["csv", "jsonl"],
)
def test_a_column_of_splits_is_read(tmp_path, text):
    path = tmp_path / "captions.txt"
    path.write_text(text)
    captions, splits = read_captions(path)
    assert captions == {"a.jpg": ["a dog"], "b.jpg": ["a cat"], "c.jpg": ["a cow"]}
    assert splits == {"train": ["a.jpg"], "dev": ["b.jpg"], "test": ["c.jpg"]}
    for spoilt, message in (
        (text.replace("test", "later"), "the split 'later' is none of train"),
        (text.replace("c.jpg", "a.jpg"), "a.jpg is in the train split before"),
        (text.replace("test", ""), "c.jpg is in no split, as others are"),
    ):
        path.write_text(spoilt)
        with pytest.raises(InputError, match=message):
            read_captions(path)


def coco(name: str, number: int) -> str:
    value = {"images": [{"id": number, "file_name": name}]}
    value["annotations"] = [{"image_id": number, "id": 1, "caption": f"A {name[0]}"}]
    return json.dumps(value)


def test_coco_s_two_files_are_its_splits_with_their_folders(tmp_path):
    for folder in ("annotations", "Images/train2017", "Images/val2017"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "annotations" / "captions_train2017.json").write_text(coco("a.jpg", 1))
    (tmp_path / "annotations" / "captions_val2017.json").write_text(coco("b.jpg", 1))
    images_dir, files = find_dataset(tmp_path)
    captions, splits = read_captions(files, images_dir)
    assert captions == {"train2017/a.jpg": ["a a"], "val2017/b.jpg": ["a b"]}
    assert splits == {"train": ["train2017/a.jpg"], "dev": ["val2017/b.jpg"], "test": []}
    assert read_captions(files) == (
        {"a.jpg": ["a a"], "b.jpg": ["a b"]},
        {"train": ["a.jpg"], "dev": ["b.jpg"], "test": []},
    )
    assert read_captions(files[0], images_dir)[1] is None  # of one file alone no split is made


def test_coco_as_it_is_unpacked(tmp_path):
    for folder in ("annotations", "train2017", "val2017"):
        (tmp_path / folder).mkdir()
    for split, name in (("train", "a.jpg"), ("val", "b.jpg")):
        (tmp_path / f"{split}2017" / name).touch()
        (tmp_path / "annotations" / f"captions_{split}2017.json").write_text(coco(name, 1))
    images_dir, files = find_dataset(tmp_path)
    captions, splits = read_captions(files, images_dir)
    assert captions == {"train2017/a.jpg": ["a a"], "val2017/b.jpg": ["a b"]}
    assert splits == {"train": ["train2017/a.jpg"], "dev": ["val2017/b.jpg"], "test": []}


def test_text_files_in_two_folders_are_two_splits(tmp_path):
    for split in ("train", "test"):
        (tmp_path / "Images" / split).mkdir(parents=True)
        (tmp_path / "Images" / split / "a.jpg").touch()
        (tmp_path / "Images" / split / "a.txt").write_text("a dog")
    folders = [tmp_path / "Images" / split for split in ("train", "test")]
    captions, splits = read_captions(folders, tmp_path / "Images")
    assert captions == {"train/a.jpg": ["a dog"], "test/a.jpg": ["a dog"]}
    assert splits == {"train": ["train/a.jpg"], "dev": [], "test": ["test/a.jpg"]}


def test_a_folder_s_name_outside_of_the_photos_is_no_split(tmp_path):
    (tmp_path / "dev21").mkdir()
    files = [tmp_path / "dev21" / name for name in ("one.csv", "two.csv")]
    for number, file in enumerate(files):
        file.write_text(f"{number}.jpg,a dog\n")
    assert read_captions(files)[1] is None


def test_the_only_folder_with_photos_is_found_and_what_is_there_is_taken(tmp_path):
    (tmp_path / "flickr30k_images").mkdir()
    (tmp_path / "flickr30k_images" / "a.jpg").touch()
    (tmp_path / "results.csv").write_text(
        "image_name| comment_number| comment\na.jpg| 0| A dog .\n"
    )
    assert find_dataset(tmp_path) == (tmp_path / "flickr30k_images", [tmp_path / "results.csv"])
    (tmp_path / "results.csv").rename(tmp_path / "flickr30k_images" / "metadata.csv")
    (tmp_path / "flickr30k_images" / "notes.txt").write_text("of no photo")
    photos, files = find_dataset(tmp_path)
    assert files == [photos / "metadata.csv"]
    files[0].unlink()
    with pytest.raises(InputError, match="Name yours with --captions_file"):
        find_dataset(tmp_path)


def test_hugging_face_s_folders_are_splits(tmp_path):
    for split in ("train", "validation"):
        (tmp_path / split).mkdir()
        (tmp_path / split / "x.jpg").touch()
        line = json.dumps({"file_name": "x.jpg", "text": "a dog"})
        (tmp_path / split / "metadata.jsonl").write_text(line)
    images_dir, files = find_dataset(tmp_path)
    captions, splits = read_captions(files, images_dir)
    assert captions == {"train/x.jpg": ["a dog"], "validation/x.jpg": ["a dog"]}
    assert splits == {"train": ["train/x.jpg"], "dev": ["validation/x.jpg"], "test": []}


def test_one_photo_has_one_id(tmp_path):
    path = tmp_path / "captions.csv"
    path.write_text("./x.jpg,a dog\nx.jpg,a cat\na//b/./y.jpg,a man\n")
    assert read_captions(path)[0] == {"x.jpg": ["a dog", "a cat"], "a/b/y.jpg": ["a man"]}
    (tmp_path / "Flickr_8k.trainImages.txt").write_text("./x.jpg")
    assert read_split_lists(tmp_path)["train"] == ["x.jpg"]


def test_lists_may_have_any_names(tmp_path):
    (tmp_path / "mine.txt").write_bytes("a.jpg\r\nb.jpg".encode("utf-16"))
    splits = read_split_lists(tmp_path, {"train": tmp_path / "mine.txt"})
    assert splits == {"train": ["a.jpg", "b.jpg"], "dev": [], "test": []}
    (tmp_path / "empty.txt").write_text(" \n")
    splits = read_split_lists(tmp_path, {"train": tmp_path / "empty.txt"})
    with pytest.raises(InputError, match="no images to train on"):  # not a random split
        check_splits(splits, {})
    with pytest.raises(InputError, match=r"none\.txt: no such list of images"):
        read_split_lists(tmp_path, {"train": tmp_path / "none.txt"})


def test_split_lists_are_read_and_checked(tmp_path):
    captions = {name: ["a"] for name in ("a.jpg", "b.jpg")}
    assert read_split_lists(tmp_path) is None
    names = b"\xef\xbb\xbfa.jpg\r\n\r\nb.jpg\r\na.jpg"
    (tmp_path / "Flickr_8k.trainImages.txt").write_bytes(names)
    splits = read_split_lists(tmp_path)
    assert splits == {"train": ["a.jpg", "b.jpg"], "dev": [], "test": []}
    check_splits(splits, captions)
    with pytest.raises(InputError, match=r"d\\x1b\.jpg, of the dev split, has no captions"):
        check_splits(splits | {"dev": ["d\x1b.jpg"]}, captions)
    with pytest.raises(InputError, match="no images to train on"):
        check_splits(splits | {"train": []}, captions)


def test_random_splits_are_seeded_disjoint_and_by_image():
    names = [f"{i}.jpg" for i in range(50)]
    splits = random_splits(names, seed=3)
    assert {split: len(ids) for split, ids in splits.items()} == {"train": 40, "dev": 5, "test": 5}
    assert sorted(chain(*splits.values())) == sorted(names)
    assert random_splits(reversed(names), seed=3) == splits != random_splits(names, seed=4)
    with pytest.raises(InputError, match="too few"):
        random_splits(names[:2], seed=0)


def test_flickr8k_facts(flickr8k):
    captions, _ = read_captions(flickr8k / "captions.txt")
    assert (len(captions), sum(map(len, captions.values()))) == (8091, 40455)
    older, _ = read_captions(flickr8k / "Flickr8k.token.txt")
    assert older == captions | {name: older[name] for name in ["2258277193_586949ec62.jpg.1"]}
    training = [line for i in read_split_lists(flickr8k)["train"] for line in captions[i]]
    assert len(Vocabulary.from_captions(training, 3)) == 3490
    assert len(" ".join(training).split()) == 323639
