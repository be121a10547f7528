"""Two systems on the same photos: what is said of them, and what is refused."""

import json

import joblib
import numpy as np
import pytest
from helpers import run_here, shows

from captioning.beams import Caption
from captioning.results import read_results, write_results
from compare import System, greatest


@pytest.fixture(scope="module")
def split(demo):
    """The dev photos' human captions."""
    text = joblib.load(demo / "data" / "captions.pkl")
    return {i: text["captions"][i] for i in text["splits"]["dev"]}


def results(folder, said: dict, references: dict):
    """A folder of results, without scores."""
    captions = {i: Caption(caption, -1.0) for i, caption in said.items()}
    write_results(folder, captions, references, {}, {})
    return folder


@pytest.fixture
def sides(split, tmp_path):
    """One system says what people say; the other has a fifth of that wrong."""
    references = {i: lines[1:] for i, lines in split.items()}
    good = {i: lines[0] for i, lines in split.items()}
    bad = good | dict.fromkeys(list(good)[::5], "two yellow stars")
    return results(tmp_path / "bad", bad, references), results(tmp_path / "good", good, references)


def compare(tmp_path, *arguments, code=0):
    return run_here("compare.py", *arguments, "--output_dir", tmp_path / "out", code=code)


@pytest.mark.long
def test_the_better_one_is_said_to_be(sides, demo, split, tmp_path, no_java):
    bad, good = sides
    images = ("--images_dir", demo / "dataset" / "Images")
    done = compare(tmp_path, bad, "--against", good, *images)
    found = json.loads((tmp_path / "out" / "comparison.json").read_text())
    cider = found["scores"]["CIDEr"]
    low, high = cider["interval"]
    assert 0 < low < cider["difference"] < high and cider["p"] < 0.02
    assert (
        f"CIDEr: A {cider['A'][0]:.3f} against B {cider['B'][0]:.3f}; B is better by" in done.stdout
    )
    wrong = {*list(split)[::5]}
    assert {photo["image"] for photo in found["photos"]} <= wrong
    assert all(photo["gain"] > 0 for photo in found["photos"])
    for photo in found["photos"]:
        assert f"  A: two yellow stars\n  B: {split[photo['image']][0]}\n" in done.stdout
        assert shows(tmp_path / "out" / "photos.png", demo / "dataset" / "Images" / photo["image"])
    assert (tmp_path / "out" / "differences.png").is_file()
    again = compare(tmp_path, good, "--against", bad, *images)
    assert f"A is better by {cider['difference']:.3f}" in again.stdout
    same = compare(tmp_path, good, "--against", good, *images)
    assert same.stdout.count("these photos do not tell them apart; B − A is +0.000") == 6


def test_captions_made_elsewhere(sides, split, demo, tmp_path, no_java):
    """As they are written, in another order: the same scores as the folder's."""
    bad, good = sides
    said, references = read_results(good)
    lines = [{"image_id": i, "caption": f"{c.capitalize()}."} for i, c in reversed(said.items())]
    theirs, human = tmp_path / "theirs.json", tmp_path / "human.json"
    theirs.write_text(json.dumps(lines))
    compare(tmp_path, bad, "--against", good)
    expected = json.loads((tmp_path / "out" / "comparison.json").read_text())["scores"]
    done = compare(tmp_path, bad, "--against", theirs)
    found = json.loads((tmp_path / "out" / "comparison.json").read_text())["scores"]
    assert found == expected
    assert "no photos.png: " in done.stderr and "--images_dir" in done.stderr
    assert "no human captions" in compare(tmp_path, theirs, "--against", theirs, code=1).stderr
    human.write_text(json.dumps({i: [*lines, "of no use"] for i, lines in references.items()}))
    refused = compare(tmp_path, bad, "--against", theirs, "--references", human, code=1)
    assert "have different human captions" in refused.stderr
    everything = {i: lines[1:] for i, lines in split.items()} | {"other.jpg": ["a dog"]}
    human.write_text(json.dumps(everything))
    same = compare(tmp_path, theirs, "--against", theirs, "--references", human)
    assert "A and B differ on none" in same.stdout


def test_coco_s_numbers_are_its_names(tmp_path, no_java):
    """Results have a number, the human captions' file gives it a name."""
    names = {7: "COCO_val2014_000000000007.jpg", 9: "COCO_val2014_000000000009.jpg"}
    human = {
        "images": [{"id": n, "file_name": name} for n, name in names.items()],
        "annotations": [{"image_id": n, "caption": f"A dog, {n} times."} for n in (7, 9, 9)],
    }
    theirs = [{"image_id": n, "caption": "a dog 9 times"} for n in names]
    (tmp_path / "human.json").write_text(json.dumps(human))
    (tmp_path / "theirs.json").write_text(json.dumps(theirs))
    said = dict.fromkeys(names.values(), "a dog 7 times")
    references = {names[7]: ["a dog 7 times"], names[9]: ["a dog 9 times"] * 2}
    ours = results(tmp_path / "ours", said, references)
    given = ("--references", tmp_path / "human.json")
    compare(tmp_path, tmp_path / "theirs.json", "--against", ours, *given)
    photos = json.loads((tmp_path / "out" / "comparison.json").read_text())["photos"]
    assert {photo["image"] for photo in photos} == {7, 9}


@pytest.mark.long
def test_seeds_are_told_as_seeds(sides, split, tmp_path, no_java):
    bad, good = sides
    said, references = read_results(good)
    other = said | dict.fromkeys(list(said)[::4], "two yellow stars")
    worse = results(tmp_path / "worse", other, references)
    better = results(tmp_path / "better", said | {next(iter(said)): "a star"}, references)
    done = compare(tmp_path, bad, worse, "--against", good, better)
    cider = json.loads((tmp_path / "out" / "comparison.json").read_text())["scores"]["CIDEr"]
    assert len(cider["A"]) == len(cider["B"]) == 2
    assert "(2 seeds) against B" in done.stdout and f"{bad} and 1 more" in done.stdout
    assert "the mean over the seeds" in done.stdout
    twice = compare(tmp_path, bad, worse, "--against", good, good, code=1)
    assert "named twice on one side" in twice.stderr
    refused = compare(tmp_path, bad, "--against", good, better, code=1)
    assert "name two seeds or more on either side" in refused.stderr


def test_photos_that_differ_come_before_the_others():
    """Though none of them is better, and they are few."""
    said = dict.fromkeys(range(30), "a dog")
    sides = [[System("A", said)], [System("B", said | {20: "a cat"})]]
    found = greatest(sides, [*said], np.zeros(30))
    assert [(each["image"], each["B"]) for each in found] == [(20, "a cat")]


def test_what_cannot_be_compared_is_refused(sides, split, tmp_path):
    _, good = sides
    said, references = read_results(good)
    first = next(iter(said))
    fewer = {i: caption for i, caption in said.items() if i != first}
    less = results(tmp_path / "less", fewer, {i: references[i] for i in fewer})
    others = results(tmp_path / "others", said, references | {first: ["a dog"]})
    several = tmp_path / "several.json"
    several.write_text(json.dumps([{"image_id": first, "caption": c} for c in ("a dog", "a cat")]))
    spoilt = results(tmp_path / "spoilt", said, references)
    text = (spoilt / "per_photo.csv").read_text()
    (spoilt / "per_photo.csv").write_text(text.replace('"[', '"', 1))
    (tmp_path / "empty").mkdir()
    for second, message in (
        (less, f"are not of the same photos: 1 are in one alone, such as {first}"),
        (others, f"have different human captions of {first}"),
        (several, "has several captions"),
        (spoilt, "is not what evaluate.py writes"),
        (tmp_path / "empty", "Run evaluate.py --output_dir"),
        (tmp_path / "nothing", "nothing: no such results. Name a folder of evaluate.py's"),
    ):
        done = compare(tmp_path, good, "--against", second, code=1)
        assert message in done.stderr
        assert not (tmp_path / "out").exists()
