"""Tokens, vocabulary, caption readers and splits."""

import json
import unicodedata
from itertools import chain

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from captioning.captions import (
    END,
    START,
    UNKNOWN,
    Vocabulary,
    check_splits,
    random_splits,
    read_captions,
    read_split_lists,
    tokenize,
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
        ("一只 狗 。", ["一只", "狗"]),
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


@pytest.mark.parametrize(
    "text",
    [
        'image,caption\na.jpg,A dog .\na.jpg,Dogs\nb.jpg,"A man , old"\n',
        '\ufeffimage,caption\r\na.jpg,A dog .\r\n\r\na.jpg,Dogs\r\nb.jpg,"A man , old"\r\n',
        'a.jpg,A dog .\na.jpg,Dogs\nb.jpg,"A man , old"',  # one's own, without a header
        "\ufeffa.jpg#0\tA dog .\r\na.jpg#1\tDogs\r\n\r\nb.jpg#0\tA man , old\r\n",
    ],
    ids=["kaggle", "kaggle-bom-crlf-blank", "two-columns", "token.txt-bom-crlf-blank"],
)
def test_readers_agree(tmp_path, text):
    path = tmp_path / "captions.txt"
    path.write_bytes(text.encode())
    assert read_captions(path) == (EXPECTED, None)


@pytest.mark.parametrize(
    ("first", "rest"),
    [("image.file,caption", 0), ("Image,Text", 0), ("photo1,a dog", 1), ("image.jpg,a caption", 1)],
)
def test_a_header_is_known_by_its_names(tmp_path, first, rest):
    path = tmp_path / "captions.csv"
    path.write_text(f"{first}\nphoto2,a cat\n")
    assert len(read_captions(path)[0]) == 1 + rest


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
