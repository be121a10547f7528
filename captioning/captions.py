"""Tokens, vocabulary, and captions.pkl.

Captions are kept as strings of tokens joined by single spaces, so that `caption.split()` gives
the tokens back.
"""

import functools
import html
import itertools
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from captioning.files import InputError, load_pickle, one_line

PADDING, UNKNOWN, START, END = range(4)  # ids; words follow from 4 on
SPECIAL_TOKENS = ("<pad>", "<unk>", "<start>", "<end>")  # never a token: < and > are stripped
SPLITS = ("train", "dev", "test")
POSSESSIVES = ("'s", "’s")
ENTITY = re.compile(r"&(?:#\d+|#x[0-9a-f]+|[a-z]\w*);", re.IGNORECASE)  # of HTML
# Soft hyphens, zero-width spaces, marks of direction and of byte order.
INVISIBLE = re.compile("[\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060\u2066-\u2069\ufeff]")
INVISIBLE_KINDS = ("Cc", "Cf", "Cs", "Zl", "Zp", "Zs")  # of Unicode's categories
JOINERS = "\u200c\u200d"  # of zero width; words of Persian and Hindi are spelt with them
# Between two letters these separate words; between two digits, as in 1,000 and 3:30, they do not.
MARK = '(?:[,;:!?…–—―|()\\[\\]{}"“”„«»、。，；：！？]|\\.{2,})'
SEPARATOR = re.compile(rf"(?<!\d){MARK}|{MARK}(?!\d)")
# Scripts that are written without spaces: Thai, Lao, Burmese, Khmer, Japanese and Chinese.
UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\u2fdf\u3005-\u3007\u3021-\u30ff\u31f0-\u31ff"
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff]"
)
MAX_CAPTION_WORDS = 200  # a longer text is no caption, and every training step would pay for it
MAX_CAPTION_LENGTH = 20 * MAX_CAPTION_WORDS  # characters; to normalize some texts takes hours
MAX_WORD_LENGTH = 100  # characters; what is longer is never a word of the vocabulary
LENGTH_PENALTY = 0.8  # of beam search, chosen on Flickr8k's dev split; here, where --help sees it
MAX_BEAM_SIZE = 100  # hypotheses of each image: of 16 images at once these take a gigabyte


def tokenize(caption: str) -> list[str]:
    """Split a caption into words, as the standard scorers' references are split.

    Lower case; split at white space and at commas, colons, dashes and the like; punctuation
    stripped from both ends; a possessive 's a token of its own; inner hyphens, digits and
    one-letter words kept. Any script: a token needs a letter, mark or digit of some alphabet. Of
    scripts without spaces each character, with its marks, is a token. HTML's &quot; becomes what
    it stands for, and invisible characters are dropped.
    """
    caption = ENTITY.sub(lambda entity: html.unescape(entity[0]), caption)
    caption = INVISIBLE.sub("", unicodedata.normalize("NFC", caption))
    if not caption.isprintable():
        caption = "".join(" " if _is_invisible(c) else c for c in caption)
    if UNSPACED.search(caption):
        caption = _with_spaces(caption)
    words = SEPARATOR.sub(" ", caption).lower().split()
    return [token for word in words for token in _split_word(word)]


def as_written(caption: str) -> str:
    """Tokens, joined by spaces, as a sentence: without them in scripts that have none.

    `tokenize` gives the same tokens back.
    """
    if not UNSPACED.search(caption):
        return caption
    tokens, parts = caption.split(), []
    for before, token in zip(["", *tokens], tokens, strict=False):
        joined = UNSPACED.match(before) and UNSPACED.match(token) and not _is_mark(token[0])
        parts += [" " * bool(before and not joined), token]
    return "".join(parts)


def _with_spaces(text: str) -> str:
    """A space on either side of each character of an unspaced script, and of its marks."""
    parts, inside = [], False
    for c in text:
        if not _is_mark(c):
            before, inside = inside, bool(UNSPACED.match(c))
            parts.append(" " * (before or inside))
        parts.append(c)
    return "".join(parts)


def _is_mark(c: str) -> bool:
    """Whether it belongs to the character before it."""
    return c in JOINERS or unicodedata.category(c)[0] == "M"


def _is_invisible(c: str) -> bool:
    """Whether it is white space of any kind, or might control a terminal, and is no joiner."""
    return c not in JOINERS and unicodedata.category(c) in INVISIBLE_KINDS


@functools.lru_cache(maxsize=65536)  # captions repeat their words
def _split_word(word: str) -> tuple[str, ...]:
    if word in POSSESSIVES:  # already split off, as in Flickr8k's "dog 's"
        return ("'s",)
    # Letters, combining marks and numbers make words.
    start = next((i for i, c in enumerate(word) if unicodedata.category(c)[0] in "LMN"), len(word))
    end, possessives = len(word), 0
    while start < end:
        if word.endswith(POSSESSIVES, start, end):
            end, possessives = end - 2, possessives + 1
        elif unicodedata.category(word[end - 1])[0] in "LMN":
            break
        else:
            end -= 1
    return (*filter(None, [word[start:end]]), *["'s"] * possessives)


class Vocabulary:
    """The words a model knows, by id: 0 padding, 1 unknown, 2 start, 3 end, then words."""

    def __init__(self, words: Iterable[str]):
        """Raises InputError if the special tokens are not the first, or an entry occurs twice.

        Also if one is no word: words may come from a stranger's file, and are printed as they are.
        """
        self.words = list(words)
        self.ids = {word: i for i, word in enumerate(self.words)}
        if tuple(self.words[: len(SPECIAL_TOKENS)]) != SPECIAL_TOKENS:
            raise InputError(f"a vocabulary must begin with {' '.join(SPECIAL_TOKENS)}")
        if len(self.ids) != len(self.words):
            raise InputError("a vocabulary must not hold a word twice")
        for word in self.words:
            if any(map(_is_invisible, word)) or not word.strip(JOINERS):
                raise InputError(f"the vocabulary's {word!r:.50} is not of visible characters")
            if len(word) > MAX_WORD_LENGTH:
                raise InputError(f"{word[:20]}… is longer than {MAX_WORD_LENGTH} characters")

    @classmethod
    def from_captions(cls, captions: Iterable[str], min_word_count: int = 1) -> "Vocabulary":
        """Words seen at least `min_word_count` times, by falling frequency, ties alphabetically."""
        words = (word for caption in captions for word in caption.split())
        counts = Counter(word for word in words if len(word) <= MAX_WORD_LENGTH)
        kept = [word for word, count in counts.items() if count >= min_word_count]
        return cls([*SPECIAL_TOKENS, *sorted(kept, key=lambda word: (-counts[word], word))])

    def __len__(self) -> int:
        return len(self.words)

    def encode(self, caption: str) -> list[int]:
        """Ids of a tokenized caption between START and END."""
        return [START, *(self.ids.get(word, UNKNOWN) for word in caption.split()), END]

    def decode(self, ids: Iterable[int]) -> str:
        """The caption up to END; padding and start are not words and are left out."""
        before = itertools.takewhile(lambda i: i != END, ids)
        return " ".join(self.words[i] for i in before if i not in (PADDING, START))


def load_captions(folder: Path) -> dict:
    """The fields of captions.pkl, as in data/README.md; raises InputError if they are not so."""
    path = folder / "captions.pkl"
    fields = {"vocabulary": list, "captions": dict, "splits": dict, "max_length": int}
    text = load_pickle(path, fields | {"settings": dict})
    if set(text["splits"]) != set(SPLITS):
        raise InputError(f"{path} is not what preprocess.py writes (splits). Run it again.")
    for split, image_ids in text["splits"].items():
        for name in image_ids:
            if not text["captions"].get(name):
                where = f"{path}: {one_line(name)} of the {split} split"
                raise InputError(f"{where} has no captions. Run preprocess.py again.")
    return text
