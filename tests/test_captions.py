"""Tokens, vocabulary, caption readers and splits."""

import json
import unicodedata
from itertools import chain

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from captioning.caption_files import Columns
from captioning.captions import END, START, UNKNOWN, Vocabulary, as_written, tokenize
from captioning.dataset import (
    check_splits,
    find_dataset,
    random_splits,
    read_captions,
    read_split_lists,
)
from captioning.files import InputError


@pytest.mark.parametrize(
    ("caption", "tokens"),
    [
        ("A dog 's t-shirt , torn .", ["a", "dog", "'s", "t-shirt", "torn"]),
        ("The dog's ball", ["the", "dog", "'s", "ball"]),
        ("The boys\u2019s \u2018boat\u2019", ["the", "boys", "'s", "boat"]),
        ('"Two" (2) men & 1 woman!', ["two", "2", "men", "1", "woman"]),
        ("<start> 's", ["start", "'s"]),  # never mistaken for a special token
        ("Ein grünes Straßenschild", ["ein", "grünes", "straßenschild"]),
        ("रंगीन किताबें।", ["रंगीन", "किताबें"]),  # vowel signs are marks, and stay
        ("كلبٌ يركض،", ["كلبٌ", "يركض"]),
        ("一只黑狗。iPhone15", ["一", "只", "黑", "狗", "iphone15"]),  # scripts without spaces
        ("犬が3匹、走る", ["犬", "が", "3", "匹", "走", "る"]),
        ("กำลังวิ่ง", ["ก", "ำ", "ลั", "ง", "วิ่", "ง"]),  # marks stay with their letter
        ("cafe\u0301", ["caf\u00e9"]),  # one spelling for both ways to write é
        ("a\0b\ud800c", ["a", "b", "c"]),
        ("1girl,solo,long_hair", ["1girl", "solo", "long_hair"]),
        ("dog;cat:man\u2014a...b\u2026c", ["dog", "cat", "man", "a", "b", "c"]),
        ("1,000 men at 3:30,two", ["1,000", "men", "at", "3:30", "two"]),
        ("&quot;A dog&#39;s&quot; at&t", ["a", "dog", "'s", "at&t"]),
        ("\ufeffa\u200bb\u00adc \u200fx", ["abc", "x"]),
        (
            "\u0645\u06cc\u200c\u062e\u0648",
            ["\u0645\u06cc\u200c\u062e\u0648"],
        ),  # spelt so in Persian
    ],
)
def test_tokenize(caption, tokens):
    assert tokenize(caption) == tokens


@given(st.text() | st.text("'s’ .,-#\t\"\na1é\u0301", max_size=40))
@settings(deadline=None)
def test_tokens_are_words_and_stay_what_they_are(text):
    tokens = tokenize(text)
    for token in tokens:
        assert token
        assert not any(character.isspace() for character in token)
        assert token == "'s" or any(unicodedata.category(c)[0] in "LMN" for c in token)
    assert tokenize(" ".join(tokens)) == tokens


@given(st.text("a1 。黒い狗กัิ่ำខ្ម\u200d'sé\u0301", max_size=40) | st.text())
@settings(deadline=None)
def test_a_sentence_has_the_tokens_that_it_was_made_of(text):
    tokens = tokenize(text)
    assert tokenize(as_written(" ".join(tokens))) == tokens


def test_sentences_are_written_as_their_scripts_are():
    for sentence in ("一只黑狗在草地上", "a dog runs", "สุนัขสีดำ", "كلب يركض", "黒い犬 runs"):
        assert as_written(" ".join(tokenize(sentence))) == sentence


def test_vocabulary_by_falling_frequency_then_alphabetically():
    captions = ["b b a", "c a b", "d", "x" * 101]  # the last is too long for a word
    vocabulary = Vocabulary.from_captions(captions, min_word_count=1)
    assert vocabulary.words[4:] == ["b", "a", "c", "d"]
    assert Vocabulary.from_captions(captions, 2).words[4:] == ["b", "a"]
    assert vocabulary.encode("b e") == [START, 4, UNKNOWN, END]
    assert vocabulary.decode([4, 5, END, 6]) == "b a"
    with pytest.raises(InputError, match="begin with"):
        Vocabulary(["a", "b"])


KARPATHY = {
    "images": [
        {"filename": "a.jpg", "split": "train", "sentences": [{"raw": "A dog."}, {"raw": "Dogs"}]},
        {"filename": "b.jpg", "split": "restval", "sentences": [{"raw": "A man, old."}]},
        {"filename": "c.jpg", "filepath": "val2014", "split": "val", "sentences": [{"raw": "C"}]},
    ]
}
EXPECTED = {"a.jpg": ["a dog", "dogs"], "b.jpg": ["a man old"]}


TWICE = [{"file_name": "a.jpg", "text": "A dog ."}, {"file_name": "a.jpg", "text": "Dogs"}]
OBJECTS = [*TWICE, {"file_name": "b.jpg", "text": "A man , old"}]
COCO = {
    "info": {"year": 2014},
    "images": [{"id": 7, "file_name": "a.jpg"}, {"id": 9, "file_name": "b.jpg"}],
    "annotations": [
        {"image_id": 7, "id": 1, "caption": "A dog ."},
        {"image_id": 7, "id": 2, "caption": "Dogs"},
        {"image_id": 9, "id": 3, "caption": "A man , old"},
    ],
}
FORMS = {  # of the same captions
    "kaggle": 'image,caption\na.jpg,A dog .\na.jpg,Dogs\nb.jpg,"A man , old"\n',
    "kaggle-bom-crlf-blank": (
        '\ufeffimage,caption\r\na.jpg,A dog .\r\n\r\na.jpg,Dogs\r\nb.jpg,"A man , old"\r\n'
    ),
    "two-columns": 'a.jpg,A dog .\na.jpg,Dogs\nb.jpg,"A man , old"',  # without a header
    "token.txt-bom-crlf-blank": (
        "\ufeffa.jpg#0\tA dog .\r\na.jpg#1\tDogs\r\n\r\nb.jpg#0\tA man , old\r\n"
    ),
    "semicolons": "image;caption\na.jpg;A dog .\na.jpg;Dogs\nb.jpg;A man , old\n",
    "semicolons-two-columns": "a.jpg;A dog .\na.jpg;Dogs\nb.jpg;A man , old\n",
    "tabs": "filename\ttext\na.jpg\tA dog .\na.jpg\tDogs\nb.jpg\tA man , old\n",
    "flickr30k": (
        "image_name| comment_number| comment\na.jpg| 0| A dog .\na.jpg| 1| Dogs\n"
        "b.jpg| 0| A man , old\n"
    ),
    "flickr30k-without-one-delimiter": (  # as a line of its results.csv is
        "image_name| comment_number| comment\na.jpg| 0| A dog .\na.jpg| 1   Dogs\n"
        "b.jpg| 0| A man , old\n"
    ),
    "names-with-captions": json.dumps({"a.jpg": ["A dog .", "Dogs"], "b.jpg": "A man , old"}),
    "one-name-known": "image;satz\na.jpg;A dog .\na.jpg;Dogs\nb.jpg;A man , old\n",
    "quotes-in-tabs": 'image\ttext\na.jpg\t"A dog .\na.jpg\tDogs\nb.jpg\t"A man" , old\n',
    "more-columns": (
        'id,image,caption,author\n1,a.jpg,A dog .,x\n2,a.jpg,Dogs,y\n3,b.jpg,"A man , old",x\n'
    ),
    "swapped": 'caption,image\nA dog .,a.jpg\nDogs,a.jpg\n"A man , old",b.jpg\n',
    "metadata.csv": 'file_name,text\na.jpg,A dog .\na.jpg,Dogs\nb.jpg,"A man , old"\n',
    "metadata.jsonl": "\n".join(map(json.dumps, OBJECTS)),
    "list": json.dumps(OBJECTS),
    "list-of-captions": json.dumps(
        [
            {"image": "a.jpg", "captions": ["A dog .", "Dogs"]},
            {"image": "b.jpg", "captions": "A man , old"},
        ]
    ),
    "coco": json.dumps(COCO),
}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("form", FORMS)
def test_readers_agree(tmp_path, form, encoding):
    path = tmp_path / "captions.txt"
    path.write_bytes(FORMS[form].removeprefix("\ufeff").encode(encoding))
    assert read_captions(path) == (EXPECTED, None)


def test_text_files_beside_the_photos_are_captions(tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("a.jpg", "sub/b.png", "c.jpg"):
        (tmp_path / name).touch()
    (tmp_path / "a.txt").write_text("A dog .\n\nDogs\n")
    (tmp_path / "sub" / "b.txt").write_bytes("Größe".encode("utf-16"))
    (tmp_path / "readme.txt").write_text("of no photo")
    found = {"a.jpg": ["a dog", "dogs"], "sub/b.png": ["größe"]}
    assert read_captions(tmp_path) == (found, None)
    assert find_dataset(tmp_path) == (tmp_path, [tmp_path])


@pytest.mark.parametrize(
    "text",
    [
        "number\tfoto\tsatz\n1\ta.jpg\tA dog\n",
        "satz;foto;image;caption\nA dog;a.jpg;x.jpg;wrong\n",
        json.dumps([{"foto": "a.jpg", "satz": "A dog", "image": "x.jpg"}]),
    ],
    ids=["tabs", "semicolons", "list"],
)
def test_columns_are_called_what_the_user_says(tmp_path, text):
    path = tmp_path / "captions.txt"
    path.write_text(text)
    assert read_captions(path, columns=Columns("foto", "satz")) == ({"a.jpg": ["a dog"]}, None)
    with pytest.raises(InputError, match=r"does not name the columns|no image and caption in it"):
        read_captions(path, columns=Columns("photo!", "satz"))


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
    (tmp_path / "results.csv").write_text(FORMS["flickr30k"])
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


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image;text\na.jpg;b\n\nx;y;z\n", r"captions.txt:4: 3 columns where .* two"),
        ("number,image,words\n1,a.jpg,b\n", r"first line, 'number,image,words', .* --image_column"),
        ("image,caption\na.jpg\n", r"captions.txt:2: 1 columns .* Separate them by ','"),
        ("image\tcaption\na.jpg\ta\tb\n", r"captions.txt:2: 3 columns .* out of captions"),
        ('{"file_name": "/etc/a.jpg", "text": "a"}', "'/etc/a.jpg' is not a file name inside"),
        ('[{"image": "a.jpg", "caption": []}]', "entry 1: it has no caption"),
        (
            json.dumps({f"n{i}": "x" for i in range(10**5)}),
            "no image and caption in it, but n0, n1",
        ),
        ('[{"image": "a.jpg"}]', "entry 1: no image and caption in it, but image"),
        ('[{"image": 7, "caption": "a"}]', "entry 1: its image or caption is no text"),
        ('["a.jpg"]', "entry 1: no image and caption in it, but no object"),
        ('{"image": "a", "caption": "b"}\n{"image": "a"\n', "captions.txt:2: .*Mend the JSON"),
        ('{"image": "a",,}', "captions.txt:1: .*Mend the JSON"),
        ('{"images": [{"id": 1}], "annotations": []}', "no file of COCO captions .*file_name"),
        ('{"images": [], "annotations": [{"image_id": 1}]}', "no file of COCO captions"),
        ('{"annotations": 7}', "no file of COCO captions"),
        ("[" * 10**5, "nested too deeply"),
    ],
)
def test_a_wrong_file_is_told_with_its_place_and_fix(tmp_path, text, message):
    path = tmp_path / "captions.txt"
    path.write_text(text)
    with pytest.raises(InputError, match=message) as error:
        read_captions(path)
    assert len(str(error.value).splitlines()) == 1
    assert len(str(error.value)) < 500


def test_columns_of_a_form_that_has_none_are_refused(tmp_path):
    path = tmp_path / "captions.txt"
    for form in ("token.txt-bom-crlf-blank", "coco"):
        path.write_text(FORMS[form].removeprefix("\ufeff"))
        with pytest.raises(InputError, match="has no columns: leave out"):
            read_captions(path, columns=Columns("image", None))


@pytest.mark.parametrize(
    ("first", "rest"),
    [("image.file,caption", 0), ("Image,Text", 0), ("photo1,a dog", 1), ("image.jpg,a caption", 1)],
)
def test_a_header_is_known_by_its_names(tmp_path, first, rest):
    path = tmp_path / "captions.csv"
    path.write_text(f"{first}\nphoto2,a cat\n")
    assert len(read_captions(path)[0]) == 1 + rest


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


def test_one_photo_has_one_id(tmp_path):
    path = tmp_path / "captions.csv"
    path.write_text("./x.jpg,a dog\nx.jpg,a cat\na//b/./y.jpg,a man\n")
    assert read_captions(path)[0] == {"x.jpg": ["a dog", "a cat"], "a/b/y.jpg": ["a man"]}
    (tmp_path / "Flickr_8k.trainImages.txt").write_text("./x.jpg")
    assert read_split_lists(tmp_path)["train"] == ["x.jpg"]


def test_karpathy_json_brings_its_splits(tmp_path):
    path = tmp_path / "dataset_coco.json"
    path.write_text(json.dumps(KARPATHY))
    captions, splits = read_captions(path)
    assert captions == EXPECTED | {"val2014/c.jpg": ["c"]}
    assert splits == {"train": ["a.jpg", "b.jpg"], "dev": ["val2014/c.jpg"], "test": []}


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
