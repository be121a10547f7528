"""Tokens, sentences and the vocabulary."""

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from captioning.captions import END, START, UNKNOWN, Vocabulary, as_written, tokenize
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
