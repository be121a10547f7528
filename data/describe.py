"""Look at a data set before training on it: splits, caption lengths, word frequencies, examples.

Reads   DATA_DIR/features.pkl and DATA_DIR/captions.pkl, and four photos from IMAGES_DIR.
Prints  images, captions and lengths per split; what the training captions say of the vocabulary.
Writes  the same as a picture, with four training photos and their captions.

  python data/describe.py --data_dir demo/data --images_dir demo/dataset/Images

Nobody should test on what was trained on. So photos of different splits that are nearly identical
are named: those whose features, less the training photos' mean, have a cosine of --similar or more.
Of Flickr8k's dev photos 99 of 100 have no training photo above 0.86, by the included captioner's
features. Copies of 60 that were mirrored, or cropped by 5 % a side, had 0.91 or more. A copy of
other quality or size may have less.

Lengths are in words, as preprocess.py splits captions. Words are counted in the training split
alone: dev and test must not tell which words are learnt."""

import random
import sys
from collections import Counter
from pathlib import Path
from statistics import mean, median

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from captioning import cli
from captioning.captions import SPECIAL_TOKENS, SPLITS, as_written, load_captions
from captioning.features import load_features
from captioning.files import InputError, one_line
from captioning.images import try_load_image
from captioning.neighbours import averages, to_unit

EXAMPLES = 4  # photos drawn, as many as stand side by side
MOST_FREQUENT = 15  # words printed
PAIRS = 10  # of nearly identical photos printed
BLOCK = 512  # photos whose features are read at once


def main() -> None:
    """Count, print, draw."""
    parser = cli.parser(__doc__)
    add = parser.add_argument
    add("--data_dir", type=Path, default="data", help="where the two pickles are")
    add("--images_dir", type=Path, default="data/flickr8k/Images", help="photos for the examples")
    why = "the picture to write (default: description.png in --data_dir)"
    add("--save_figure", type=cli.picture, metavar="FILE", help=why)
    why = "cosine from which on two photos of different splits are named as nearly identical"
    add("--similar", type=cli.fraction, default=0.9, metavar="COSINE", help=why)
    add("--seed", type=cli.seed, default=0, help="of which photos are examples")
    args = parser.parse_args()
    features, text = load_features(args.data_dir), load_captions(args.data_dir)
    captions = {s: [c for i in text["splits"][s] for c in text["captions"][i]] for s in SPLITS}
    lengths = {s: [len(caption.split()) for caption in captions[s]] for s in SPLITS}
    words = Counter(word for caption in captions["train"] for word in caption.split())
    vocabulary = text["vocabulary"][len(SPECIAL_TOKENS) :]

    print_splits(text["splits"], lengths)
    array, unreadable = features["features"], len(features["unreadable"])
    shape = " × ".join(map(str, array.shape[1:]))
    print(f"\nfeatures: {len(array):,} images, {shape} {array.dtype} each, of ", end="")
    print(f"{features['encoder']}; {unreadable:,} images could not be read")
    print_words(words, vocabulary, text["settings"]["min_word_count"])
    print_pairs(near_duplicates(features, text["splits"], args.similar), args.similar)
    examples = choose_examples(text, args.images_dir, args.seed)
    from captioning.plots import draw_description

    target = args.save_figure or args.data_dir / "description.png"
    draw_description(lengths, words, len(vocabulary), examples, target)
    print(f"wrote {target}")


def print_splits(splits: dict[str, list[str]], lengths: dict[str, list[int]]) -> None:
    """A row for each split: images, captions, and words per caption."""
    columns = ("images", "captions", "words", "shortest", "median", "mean", "longest")
    print(f"{'split':<8}" + "".join(f"{column:>10}" for column in columns))
    for split in SPLITS:
        each = lengths[split]
        cells = [f"{number:,}" for number in (len(splits[split]), len(each), sum(each))]
        if each:
            cells += [f"{min(each)}", f"{median(each):g}", f"{mean(each):.2f}", f"{max(each)}"]
        print(f"{split:<8}" + "".join(f"{cell:>10}" for cell in cells))


def print_words(words: Counter, vocabulary: list[str], min_word_count: int) -> None:
    """What words the training captions have, and what share of them the vocabulary covers."""
    total, different = words.total(), len(words)
    seen = "once or more" if min_word_count == 1 else f"{min_word_count} times or more"
    rows = [
        ("words in the training captions", total, None),
        ("  of the vocabulary", sum(words[word] for word in vocabulary), total),
        ("different words", different, None),
        ("  seen once", sum(count == 1 for count in words.values()), different),
        (f"  in the vocabulary, seen {seen}", len(vocabulary), different),
    ]
    print()
    for name, number, whole in rows:
        share = f"{number / whole:>10.2%}" if whole else ""
        print(f"{name:<48}{number:>10,}{share}")
    print(f"\n{'most frequent':<24}{'times':>10}{'share':>10}")
    for word, count in words.most_common(MOST_FREQUENT):
        print(f"{one_line(word, 20):<24}{count:>10,}{count / total:>10.2%}")
    print()


def near_duplicates(
    features: dict, splits: dict[str, list[str]], least: float
) -> list[tuple[float, str, str]]:
    """Of each dev and test photo the most similar one of the splits before it, if it is similar.

    As (cosine, "split/name", "split/name"), the most similar pair first. Raises InputError where a
    photo has no features.
    """
    row_of = {image_id: row for row, image_id in enumerate(features["image_ids"])}
    names = [f"{split}/{image_id}" for split in SPLITS for image_id in splits[split]]
    image_ids = [image_id for split in SPLITS for image_id in splits[split]]
    if missing := [image_id for image_id in image_ids if image_id not in row_of]:
        raise InputError(f"{one_line(missing[0])} has no features. Run preprocess.py again.")
    rows = [row_of[image_id] for image_id in image_ids]
    blocks = [rows[start : start + BLOCK] for start in range(0, len(rows), BLOCK)]
    vectors = np.concatenate([averages(features["features"][block]) for block in blocks])  # (N, F)
    vectors = to_unit(vectors - vectors[: len(splits["train"])].mean(0))
    found, end = [], len(splits["train"])
    for split in SPLITS[1:]:
        start, end = end, end + len(splits[split])  # the split's photos; those before it are known
        for photo in range(start, end):
            cosines = vectors[:start] @ vectors[photo]  # (start,)
            best = int(cosines.argmax())
            if cosines[best] >= least:
                found.append((float(cosines[best]), names[photo], names[best]))
    return sorted(found, reverse=True)


def print_pairs(pairs: list[tuple[float, str, str]], least: float) -> None:
    """How many photos are nearly identical to one of another split, and the closest of them."""
    print(f"{len(pairs)} dev and test photos are nearly one of another split (cosine ≥ {least})")
    for cosine, photo, other in pairs[:PAIRS]:
        print(f"  {cosine:.3f}  {one_line(photo)}  {one_line(other)}")
    if pairs:
        cli.log("note: take such photos out of a split's list, or scores are too high.")
    print()


def choose_examples(text: dict, images_dir: Path, seed: int) -> list[tuple[Path, list[str]]]:
    """Some training photos with their captions; none, and a word why, if one cannot be read."""
    train = text["splits"]["train"]
    chosen = random.Random(seed).sample(train, min(EXAMPLES, len(train)))
    examples = [
        (images_dir / i, [f"– {as_written(line)}" for line in text["captions"][i]]) for i in chosen
    ]
    for path, _ in examples:
        if problem := try_load_image(path)[1]:
            cli.log(f"no examples: {problem}. Name the photos' folder with --images_dir.")
            return []
    return examples


if __name__ == "__main__":
    cli.run(main)
