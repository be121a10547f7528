"""What describe.py prints is what one counts oneself, and its picture shows it."""

import csv
import re
import shutil
from collections import Counter

import joblib
import numpy as np
import pytest
from helpers import colours_of, run_here, shows
from PIL import Image

from captioning import plots
from captioning.captions import SPLIT_LISTS, SPLITS


def describe(data, target, *arguments, images, code=0):
    folders = ("--data_dir", data, "--images_dir", images)
    return run_here("data/describe.py", *folders, "--save_figure", target, *arguments, code=code)


def rows_of(stdout: str) -> dict[str, list[str]]:
    """Each printed row's cells by its label; thousands without their commas."""
    rows = [re.split(r"\s{2,}", line.strip()) for line in stdout.splitlines()]
    return {label: [cell.replace(",", "") for cell in cells] for label, *cells in rows}


@pytest.fixture(scope="module")
def described(small, tmp_path_factory):
    """The picture, and what was printed, for the sample set."""
    target = tmp_path_factory.mktemp("described") / "d.png"
    return target, describe(small / "data", target, images=small / "dataset/Images").stdout


@pytest.fixture
def changed(small, tmp_path):
    """Describes the sample set after a change of captions.pkl, without photos; gives the rows."""

    def run(change) -> dict[str, list[str]]:
        text = joblib.load(small / "data" / "captions.pkl")
        change(text)
        (tmp_path / "data").mkdir()
        shutil.copy(small / "data" / "features.pkl", tmp_path / "data")
        joblib.dump(text, tmp_path / "data" / "captions.pkl")
        done = describe(tmp_path / "data", tmp_path / "d.png", images=tmp_path / "none")
        return rows_of(done.stdout)

    return run


def counted(small, split: str) -> tuple[int, list[list[str]]]:
    """Images and words of the captions, from the files that the pickles were made of."""
    names = (small / "dataset" / SPLIT_LISTS[split]).read_text().split()
    with (small / "dataset" / "captions.txt").open() as file:
        captions = [row["caption"].lower() for row in csv.DictReader(file) if row["image"] in names]
    # The drawn captions' punctuation stands between spaces.
    return len(names), [[w for w in caption.split() if w not in ".,"] for caption in captions]


@pytest.mark.parametrize("split", SPLITS)
def test_the_row_of_a_split(small, described, split):
    images, captions = counted(small, split)
    lengths = [len(caption) for caption in captions]
    whole = [images, len(lengths), sum(lengths), min(lengths), max(lengths)]
    row = rows_of(described[1])[split]
    assert [int(row[i]) for i in (0, 1, 2, 3, 6)] == whole
    assert float(row[4]) == np.median(lengths)
    assert row[5] == f"{np.mean(lengths):.2f}"


def test_the_words_of_the_training_captions(small, described):
    words = Counter(word for caption in counted(small, "train")[1] for word in caption)
    total = sum(words.values())
    known = {word: count for word, count in words.items() if count >= 3}
    rows = rows_of(described[1])
    assert rows["words in the training captions"] == [str(total)]
    covered = sum(known.values())
    assert rows["of the vocabulary"] == [str(covered), f"{covered / total:.2%}"]
    assert rows["different words"] == [str(len(words))]
    share = f"{len(known) / len(words):.2%}"
    assert rows["in the vocabulary, seen 3 times or more"] == [str(len(known)), share]
    most = list(rows).index("most frequent") + 1
    shown = {word: int(cells[0]) for word, cells in list(rows.items())[most : most + 15]}
    assert list(shown.values()) == sorted(words.values(), reverse=True)[:15]
    assert shown.items() <= words.items()
    assert rows["a"] == [str(words["a"]), f"{words['a'] / total:.2%}"]


def test_only_training_captions_tell_of_words(small, described, changed):
    def change(text):
        splits = text["splits"]
        text["captions"][splits["train"][0]][0] += " zebra yak yak"
        text["captions"][splits["dev"][0]][0] += " walrus" + 999 * " gnu"

    before, after = rows_of(described[1]), changed(change)
    total, different = (
        int(before[row][0]) for row in ("words in the training captions", "different words")
    )
    assert after["words in the training captions"] == [str(total + 3)]
    assert after["of the vocabulary"][0] == before["of the vocabulary"][0]  # neither is in it
    assert after["different words"] == [str(different + 2)]
    once = int(before["seen once"][0]) + 1
    assert after["seen once"] == [str(once), f"{once / (different + 2):.2%}"]
    assert int(after["dev"][2]) == int(before["dev"][2]) + 1000
    assert "gnu" not in after


def test_the_tables_are_aligned(described):
    lines = described[1].splitlines()
    most = next(i for i, line in enumerate(lines) if line.startswith("most frequent"))
    for table in (lines[:4], lines[most : most + 16]):
        assert len({len(line) for line in table}) == 1


def test_a_data_set_without_a_test_split(changed):
    rows = changed(lambda text: text["splits"].update(test=[]))
    assert rows["test"] == ["0", "0", "0"]


@pytest.fixture
def examples(small, tmp_path, monkeypatch):
    """The photos and captions that are given to be drawn, for a seed."""
    given = []
    monkeypatch.setattr(plots, "draw_description", lambda *arguments: given.append(arguments))

    def run(seed: int) -> list:
        images = small / "dataset/Images"
        describe(small / "data", tmp_path / "d.png", "--seed", seed, images=images)
        return given[-1][3]

    return run


def test_the_seed_chooses_the_examples(small, examples):
    text = joblib.load(small / "data" / "captions.pkl")
    first, again, other = map(examples, (1, 1, 2))
    assert first == again != other
    assert len({path for path, _ in first}) == 4
    for path, lines in first:
        assert path.name in text["splits"]["train"]
        assert [line.removeprefix("– ") for line in lines] == text["captions"][path.name]


def test_the_picture_shows_the_examples(described, examples):
    assert all(shows(described[0], path) for path, _ in examples(seed=0))


def test_without_photos_the_picture_shows_charts_alone(small, described, tmp_path):
    done = describe(small / "data", tmp_path / "d.png", images=tmp_path / "none")
    assert "no examples: " in done.stderr
    assert "--images_dir" in done.stderr
    assert done.stdout.splitlines()[:-1] == described[1].splitlines()[:-1]
    with Image.open(tmp_path / "d.png") as picture, Image.open(described[0]) as whole:
        assert picture.height < whole.height / 1.5
        colours = colours_of(tmp_path / "d.png")
        assert colours[255, 255, 255] > picture.width * picture.height / 2


def test_faults_are_told(small, tmp_path):
    images = small / "dataset/Images"
    done = describe(tmp_path, tmp_path / "d.png", images=images, code=1)
    assert "features.pkl is missing. Run preprocess.py first" in done.stderr
    done = describe(small / "data", tmp_path / "d.txt", images=images, code=1)
    assert "not a picture format" in done.stderr
    assert not list(tmp_path.iterdir())
