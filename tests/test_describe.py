"""What describe.py prints is what one counts oneself, and its picture shows it."""

import re
import shutil
from collections import Counter

import joblib
import numpy as np
import pytest
from helpers import colours_of, run_here, shows
from PIL import Image

from captioning import plots
from captioning.captions import SPLITS


def describe(data, target, *arguments, images, code=0):
    folders = ("--data_dir", data, "--images_dir", images)
    return run_here("data/describe.py", *folders, "--save_figure", target, *arguments, code=code)


def rows_of(done) -> dict[str, list[str]]:
    """Each printed row's cells by its label; thousands without their commas."""
    rows = [re.split(r"\s{2,}", line.strip()) for line in done.stdout.splitlines()]
    return {label: [cell.replace(",", "") for cell in cells] for label, *cells in rows}


@pytest.fixture(scope="module")
def described(small, tmp_path_factory):
    """The picture, and what was printed, for the sample set."""
    target = tmp_path_factory.mktemp("described") / "d.png"
    return target, rows_of(describe(small / "data", target, images=small / "dataset/Images"))


def counted(small, split: str) -> tuple[int, list[list[str]]]:
    """A split's images, and the words of their captions."""
    text = joblib.load(small / "data" / "captions.pkl")
    names = text["splits"][split]
    return len(names), [caption.split() for name in names for caption in text["captions"][name]]


@pytest.mark.parametrize("split", SPLITS)
def test_the_row_of_a_split(small, described, split):
    images, captions = counted(small, split)
    each = [len(caption) for caption in captions]
    row = [images, len(each), sum(each), min(each), np.median(each), np.mean(each), max(each)]
    assert [float(cell) for cell in described[1][split]] == pytest.approx(row, abs=0.005)


def test_the_words_of_the_training_captions(small, described):
    words = Counter(word for caption in counted(small, "train")[1] for word in caption)
    known = {word: count for word, count in words.items() if count >= 3}
    total, covered, rows = words.total(), sum(known.values()), described[1]
    assert rows["words in the training captions"] == [str(total)]
    assert rows["of the vocabulary"] == [str(covered), f"{covered / total:.2%}"]
    assert rows["different words"] == [str(len(words))]
    share = f"{len(known) / len(words):.2%}"
    assert rows["in the vocabulary, seen 3 times or more"] == [str(len(known)), share]
    most = list(rows).index("most frequent") + 1
    shown = {word: int(cells[0]) for word, cells in list(rows.items())[most : most + 15]}
    assert list(shown.values()) == sorted(words.values(), reverse=True)[:15]
    assert shown.items() <= words.items()
    assert rows["a"] == [str(words["a"]), f"{words['a'] / total:.2%}"]


def test_only_training_captions_tell_of_words_and_a_split_may_be_empty(small, described, tmp_path):
    text = joblib.load(small / "data" / "captions.pkl")
    splits, captions = text["splits"], text["captions"]
    captions[splits["train"][0]][0] += " zebra yak yak"
    captions[splits["dev"][0]][0] += " walrus" + 999 * " gnu"
    splits["test"] = []
    joblib.dump(text, tmp_path / "captions.pkl")
    shutil.copy(small / "data" / "features.pkl", tmp_path)
    before = described[1]
    after = rows_of(describe(tmp_path, tmp_path / "d.png", images=tmp_path))

    def gained(row: str, column: int = 0) -> int:
        return int(after[row][column]) - int(before[row][column])

    assert gained("words in the training captions") == 3
    assert gained("of the vocabulary") == 0
    assert gained("different words") == 2
    assert gained("seen once") == 1
    assert gained("dev", 2) == 1000
    assert "gnu" not in after
    assert after["test"] == ["0", "0", "0"]


def test_the_seed_chooses_the_examples_that_the_picture_shows(
    small, described, tmp_path, monkeypatch
):
    given = []
    monkeypatch.setattr(plots, "draw_description", lambda *arguments: given.append(arguments[3]))
    for seed in (0, 0, 1):
        images = small / "dataset/Images"
        describe(small / "data", tmp_path / "d.png", "--seed", seed, images=images)
    first, again, other = given
    assert first == again != other
    text = joblib.load(small / "data" / "captions.pkl")
    assert len({path for path, _ in first}) == 4
    for path, lines in first:
        assert path.name in text["splits"]["train"]
        assert [line.removeprefix("– ") for line in lines] == text["captions"][path.name]
        assert shows(described[0], path)


def test_without_photos_the_picture_shows_charts_alone(small, described, tmp_path):
    done = describe(small / "data", tmp_path / "d.png", images=tmp_path / "none")
    assert "no examples: " in done.stderr
    assert "--images_dir" in done.stderr
    with Image.open(tmp_path / "d.png") as picture, Image.open(described[0]) as whole:
        assert picture.height < whole.height / 1.5
        white = colours_of(tmp_path / "d.png")[255, 255, 255]
        assert white > picture.width * picture.height / 2


def test_the_picture_goes_beside_the_pickles(small, tmp_path):
    shutil.copytree(small / "data", tmp_path / "data")
    run_here("data/describe.py", "--data_dir", tmp_path / "data")
    assert (tmp_path / "data" / "description.png").is_file()


def test_a_picture_has_a_known_format(small, tmp_path):
    done = describe(small / "data", tmp_path / "d.txt", images=tmp_path, code=2)
    assert "d.txt is not a picture's name: it must end in .png" in done.stderr


@pytest.mark.long
def test_photos_of_two_splits_that_are_nearly_one_are_named(small, tmp_path):
    """A dev photo's features become nearly those of a training photo, a test photo's quite so."""
    shutil.copytree(small / "data", tmp_path / "data")
    features = joblib.load(tmp_path / "data" / "features.pkl")
    splits = joblib.load(tmp_path / "data" / "captions.pkl")["splits"]
    array, row = features["features"].copy(), features["image_ids"].index
    random = np.random.default_rng(0)
    array[:] = random.normal(5, 1, array.shape)  # no two are alike, but all have one mean
    train, (dev, *_), (test, *_) = splits["train"], splits["dev"], splits["test"]
    array[row(dev)] = array[row(train[3])] + 0.2 * random.normal(size=array.shape[1])
    array[row(test)] = array[row(dev)]
    joblib.dump(features | {"features": array}, tmp_path / "data" / "features.pkl")
    folders = {"images": small / "dataset" / "Images"}
    done = describe(tmp_path / "data", tmp_path / "d.png", **folders)
    assert "2 dev and test photos are nearly one of another split (cosine ≥ 0.9)" in done.stdout
    first, second = re.findall(r"^  (0\.9\d+|1\.000)  (\S+)  (\S+)$", done.stdout, re.M)
    assert first == ("1.000", f"test/{test}", f"dev/{dev}")
    assert second[1:] == (f"dev/{dev}", f"train/{train[3]}")
    done = describe(tmp_path / "data", tmp_path / "d.png", "--similar", 0.999, **folders)
    assert "1 dev and test photos" in done.stdout
