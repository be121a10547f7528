"""Caption files, tokens, vocabulary and splits.

Captions are kept as strings of tokens joined by single spaces, so that `caption.split()` gives
the tokens back. The five readers and the two ways to split a data set end in the same two dicts:
image id -> captions, and split name -> image ids.
"""

import csv
import functools
import html
import io
import itertools
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from pathlib import Path, PurePath, PurePosixPath

from captioning.files import InputError, is_file, load_pickle, one_line

PADDING, UNKNOWN, START, END = range(4)  # ids; words follow from 4 on
SPECIAL_TOKENS = ("<pad>", "<unk>", "<start>", "<end>")  # never a token: < and > are stripped
SPLITS = ("train", "dev", "test")
SPLIT_LISTS = {split: f"Flickr_8k.{split}Images.txt" for split in SPLITS}
KARPATHY_SPLITS = {"train": "train", "restval": "train", "val": "dev", "test": "test"}
POSSESSIVES = ("'s", "’s")
ENTITY = re.compile(r"&(?:#\d+|#x[0-9a-f]+|[a-z]\w*);", re.IGNORECASE)  # of HTML
# Soft hyphens, zero-width spaces, marks of direction and of byte order.
INVISIBLE = re.compile("[\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060\u2066-\u2069\ufeff]")
INVISIBLE_KINDS = ("Cc", "Cf", "Cs", "Zl", "Zp", "Zs")  # of Unicode's categories
JOINERS = "\u200c\u200d"  # of zero width; words of Persian and Hindi are spelt with them
# Between two letters these separate words; between two digits, as in 1,000 and 3:30, they do not.
MARK = '(?:[,;:!?…–—―|()\\[\\]{}"“”„«»、。，；：！？]|\\.{2,})'
SEPARATOR = re.compile(rf"(?<!\d){MARK}|{MARK}(?!\d)")
MAX_CAPTION_WORDS = 200  # a longer text is no caption, and every training step would pay for it
FAULTS_SHOWN = 50  # of a file's lines, at most
MAX_CAPTION_LENGTH = 20 * MAX_CAPTION_WORDS  # characters; to normalize some texts takes hours
MAX_WORD_LENGTH = 100  # characters; what is longer is never a word of the vocabulary
# Names of columns, by which the first line of a CSV is known for a header.
IMAGE_COLUMNS = ("image", "images", "image_id", "image_name", "image_path")
IMAGE_COLUMNS += ("file", "file_name", "filename", "photo", "path", "name", "id")
CAPTION_COLUMNS = ("caption", "captions", "text", "comment", "description", "sentence")
LENGTH_PENALTY = 0.8  # of beam search, chosen on Flickr8k's dev split; here, where --help sees it
MAX_BEAM_SIZE = 1000  # hypotheses of each image; 10 are enough
IMAGE_FOLDERS = ("Images", "Flicker8k_Dataset", "Flickr8k_Dataset")  # names in data sets
CAPTION_FILES = ("captions.txt", "Flickr8k.token.txt", "captions.csv")
CAPTION_FILES += ("dataset_flickr8k.json", "dataset_flickr30k.json", "dataset_coco.json")
HELD_OUT = 0.1  # share of the images that a random split keeps for dev, and again for test


def tokenize(caption: str) -> list[str]:
    """Split a caption into words, as the standard scorers' references are split.

    Lower case; split at white space and at commas, colons, dashes and the like; punctuation
    stripped from both ends; a possessive 's a token of its own; inner hyphens, digits and
    one-letter words kept. Any script: a token needs a letter, mark or digit of some alphabet.
    HTML's &quot; becomes what it stands for, and invisible characters are dropped.
    """
    caption = ENTITY.sub(lambda entity: html.unescape(entity[0]), caption)
    caption = INVISIBLE.sub("", unicodedata.normalize("NFC", caption))
    if not caption.isprintable():
        caption = "".join(" " if _is_invisible(c) else c for c in caption)
    words = SEPARATOR.sub(" ", caption).lower().split()
    return [token for word in words for token in _split_word(word)]


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


def find_dataset(
    folder: Path, images_dir: Path | None = None, captions_file: Path | None = None
) -> tuple[Path, Path]:
    """A data set's photos and captions file; raises InputError where one is not found.

    They are looked for in its folder by their usual names, unless others are given.
    """
    folders = [images_dir] if images_dir else [folder / name for name in IMAGE_FOLDERS]
    files = [captions_file] if captions_file else [folder / name for name in CAPTION_FILES]
    images_dir = next(filter(Path.is_dir, folders), None)
    captions_file = next(filter(Path.is_file, files), None)
    if images_dir is None:
        raise InputError(
            f"{folders[0]}: no such folder. Fetch Flickr8k: python data/download.py; or name yours "
            f"with --dataset_dir or --images_dir (docs/preprocessing.md). Without any: make demo"
        )
    if captions_file is None:
        raise InputError(f"{files[0]}: no such file. Name the captions with --captions_file.")
    return images_dir, captions_file


def read_captions(path: str | Path) -> tuple[dict[str, list[str]], dict[str, list[str]] | None]:
    """Read a caption file of any of the known kinds, told apart by what is in it.

    Kaggle's captions.txt (CSV with a header), Flickr8k.token.txt (`name#k<TAB>caption`), a
    Karpathy split (`dataset_flickr8k.json` and its like), or a CSV with two columns.

    Returns tokenized captions by image id, the image's path in the images folder, in the file's
    order; and the splits where the file states them (Karpathy), otherwise None. Raises InputError
    with the file, the line and the fix.
    """
    path = Path(path)
    if not is_file(path):
        raise InputError(f"{path}: no such captions file. Name yours with --captions_file.")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 ({error.reason}). Save it as UTF-8.") from error
    splits = None
    faults: list[str] = []  # of all lines, so that they can be mended at once
    if re.match(r"\s*\[\s*[\[{\"]", text):
        raise InputError(f"{path} is a JSON list, which is not read. Make it a CSV: image,caption.")
    if text.lstrip()[:1] == "{":
        rows, splits = _read_karpathy(path, text)
    elif re.match(r"[^\t\n]+#\d+\t", text.lstrip()):
        rows = _read_token_lines(path, text, faults)
    else:
        rows = _read_csv(path, text, faults)
    captions: dict[str, list[str]] = {}
    for where, name, caption in rows:
        name = image_id_of(name)
        parts = PurePosixPath(name.replace("\\", "/")).parts
        outside = PurePath(name).anchor or parts[:1] == ("/",)  # of Windows, C:
        if not parts or outside or ".." in parts or "\0" in name:
            name = repr(one_line(name))
            faults.append(f"{where}: {name} is not a file name inside the images folder.")
            continue
        tokens = tokenize(caption[:MAX_CAPTION_LENGTH])
        captions.setdefault(name, []).append(" ".join(tokens))
        if fault := _fault(caption, tokens):
            faults.append(f"{where}: the caption of {one_line(name)} {fault} or drop it.")
    if faults:
        more = [f"… and {len(faults) - FAULTS_SHOWN} more"] * (len(faults) > FAULTS_SHOWN)
        raise InputError("\n".join([*faults[:FAULTS_SHOWN], *more]))
    if not captions:
        raise InputError(f"{path} holds no captions.")
    return captions, splits


def _fault(caption: str, tokens: list[str]) -> str:
    """What is wrong with a caption and the first half of the fix; "" if nothing is."""
    if len(caption) > MAX_CAPTION_LENGTH:
        long = f"has {len(caption)} characters; at most {MAX_CAPTION_LENGTH} are allowed"
        return f"{long}. Shorten it"
    if len(tokens) > MAX_CAPTION_WORDS:
        return f"has {len(tokens)} words; at most {MAX_CAPTION_WORDS} are allowed. Shorten it"
    if not caption.strip():
        return "is empty. Write one"
    return "" if tokens else "has no word, neither letter nor digit. Write one"


def image_id_of(name: str) -> str:
    """The one id of a photo: its path in the images folder, without "./" and "//"."""
    return PurePosixPath(name).as_posix()


def _read_csv(path: Path, text: str, faults: list[str]) -> Iterable[tuple[str, str, str]]:
    """Where, image and caption of each row; of other rows the fault is added to `faults`."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    first = True
    try:
        for row in reader:
            where = f"{path}:{reader.line_num}"
            if not any(map(str.strip, row)):
                continue
            if len(row) != 2:
                faults.append(
                    f"{where}: {len(row)} columns where there should be two, image and caption. "
                    f'Put a caption with commas between double quotes ("…").'
                )
                continue
            image_id, caption = row[0].strip(), row[1]
            names = image_id.lower() in IMAGE_COLUMNS, caption.strip().lower() in CAPTION_COLUMNS
            if not (first and any(names)):  # a header
                yield where, image_id, caption
            first = False
    except csv.Error as error:
        faults.append(f"{path}:{reader.line_num}: {error}. Mend the line's quotes.")


def _read_token_lines(path: Path, text: str, faults: list) -> Iterable[tuple[str, str, str]]:
    for number, line in enumerate(map(str.strip, text.split("\n")), 1):
        if match := re.fullmatch(r"([^\t]+)#\d+\t(.*)", line):
            yield f"{path}:{number}", match[1], match[2]
        elif line:
            faults.append(f"{path}:{number}: not of the form name.jpg#0<TAB>caption.")


def _read_karpathy(path: Path, text: str) -> tuple[list[tuple[str, str, str]], dict]:
    rows, splits = [], {split: [] for split in SPLITS}
    try:
        for image in json.loads(text)["images"]:
            folder = image.get("filepath", "")  # COCO keeps its images in two folders
            image_id = f"{folder}/{image['filename']}" if folder else f"{image['filename']}"
            splits[KARPATHY_SPLITS[image["split"]]].append(image_id_of(image_id))
            rows += [(f"{path}", image_id, f"{line['raw']}") for line in image["sentences"]]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(
            f"{path} is not a Karpathy split file ({type(error).__name__}: {one_line(error, 60)}); "
            f"it needs images, each with filename, split and sentences with raw."
        ) from error
    return rows, splits


def read_split_lists(folder: str | Path) -> dict[str, list[str]] | None:
    """Flickr8k's lists in `folder`, None without any; raises InputError if one is not in UTF-8."""
    splits: dict[str, list[str]] = {}
    for split, name in SPLIT_LISTS.items():
        path = Path(folder) / name
        try:
            names = path.read_text(encoding="utf-8-sig").split("\n") if is_file(path) else []
        except UnicodeDecodeError as error:
            raise InputError(f"{path} is not UTF-8. Save it as UTF-8.") from error
        splits[split] = list(dict.fromkeys(image_id_of(n.strip()) for n in names if n.strip()))
    return splits if any(splits.values()) else None


def check_splits(splits: dict[str, list[str]], captions: dict[str, list[str]]) -> None:
    """Raises InputError unless splits are disjoint, all images captioned, and some to train on."""
    seen: dict[str, str] = {}
    for split, image_ids in splits.items():
        for image_id in image_ids:
            if image_id in seen:
                raise InputError(
                    f"{one_line(image_id)} is in both the {seen[image_id]} and the {split} split. "
                    f"Remove it from one list: splits must be disjoint."
                )
            if image_id not in captions:
                raise InputError(f"{one_line(image_id)}, of the {split} split, has no captions.")
            seen[image_id] = split
    if not splits["train"]:
        raise InputError(f"no images to train on. Is {SPLIT_LISTS['train']} there, and not empty?")


def random_splits(image_ids: Iterable[str], seed: int) -> dict[str, list[str]]:
    """Split at random by image, a tenth each for dev and test; raises InputError below 3 images."""
    from sklearn.model_selection import train_test_split

    image_ids = sorted(image_ids)  # the split must not depend on the captions' order
    if len(image_ids) < 3:
        raise InputError(f"{len(image_ids)} captioned images are too few to split: give 3 or more.")
    size = max(1, round(len(image_ids) * HELD_OUT))
    rest, test = train_test_split(image_ids, test_size=size, random_state=seed)
    train, dev = train_test_split(rest, test_size=size, random_state=seed)
    return {"train": sorted(train), "dev": sorted(dev), "test": sorted(test)}


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
