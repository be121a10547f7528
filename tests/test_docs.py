"""README and docs name only commands, options and files that exist, and scores that are stored."""

import functools
import json
import re
import shlex
import statistics

import pytest
from helpers import ROOT, run_here

PAGES = [ROOT / "README.md", *sorted(ROOT.glob("*/*.md")), *sorted(ROOT.glob("data/*/*.md"))]
EACH = pytest.mark.parametrize("page", PAGES, ids=[str(p.relative_to(ROOT)) for p in PAGES])
FENCED = re.compile(r"^```[^\n]*\n(.*?)^```", re.M | re.S)


@functools.cache
def options_of(script: str) -> set[str]:
    return set(re.findall(r"--\w+", run_here(script, "--help").stdout))


@EACH
def test_commands_have_the_options_that_are_shown(page):
    fenced = "\n".join(FENCED.findall(page.read_text())).replace("\\\n", " ")
    commands = re.findall(r"(?:^ *|&& )python (?!-m|benchmarks/|tests/)([^\n&]*)", fenced, re.M)
    for command in commands:
        script, *arguments = shlex.split(command, comments=True)
        options = {argument for argument in arguments if argument.startswith("--")}
        assert options <= options_of(script), (script, options - options_of(script))


@EACH
def test_nothing_is_left_to_fill_in(page):
    assert "@@" not in page.read_text()


@EACH
def test_links_lead_somewhere_and_files_that_are_named_exist(page):
    """Files in code spans, and in the README's tree."""
    text = page.read_text()
    for link in re.findall(r"\]\((?!http)([^)\s]+)\)", FENCED.sub("", text)):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        headings = re.findall(r"^#+ (.*)$", target.read_text(), re.M) if anchor else []
        names = [re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings]
        assert anchor in ["", *names], link
    places = [ROOT, page.parent, ROOT / "captioning", ROOT / "tests"]
    for name in re.findall(r"`([\w./]+\.(?:py|md))`|^ *([\w/]+\.py) ", text, re.M):
        name = "".join(name)
        made_here = f"`{name}`:\n\n```python" in text  # a file that the page itself gives
        assert made_here or any((place / name).exists() for place in places), name


def test_make_has_the_targets_that_the_readme_shows():
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M)
    shown = re.findall(r"\bmake ([a-z-]+)", (ROOT / "README.md").read_text())
    assert {"demo", "test"} <= set(shown) <= set(targets)


SCORES = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "METEOR", "ROUGE-L", "CIDEr")
SEEDS = [f"merge_seed{seed}_dev_beam3" for seed in range(3)]
INCLUDED = ["included_dev"]
ROWS = {  # beginning of a row: the files and the row in them
    "**the included captioner": (INCLUDED, "model"),
    "shuffled": (INCLUDED, "shuffled"),
    "constant": (INCLUDED, "constant"),
    "the best constant caption": (INCLUDED, "constant"),
    "the included captioner, four": (INCLUDED, "model, same references as human"),
    "human": (INCLUDED, "human"),
    "one human caption": (INCLUDED, "human"),
    **{f"seed {seed}": ([name], "model") for seed, name in enumerate(SEEDS)},
    "mean": (SEEDS, "model"),
    "one merge network": (SEEDS, "model"),
}


def stored(files: list[str], row: str, score: str) -> str:
    """A score as the pages write it: .586, or of several files .529 ± .004."""
    paths = [ROOT / "benchmarks" / "results" / f"{name}.json" for name in files]
    values = [json.loads(path.read_text())[row][score] for path in paths]
    figures = [statistics.mean(values), *([statistics.stdev(values)] if len(values) > 1 else [])]
    return " ± ".join(f"{figure:.3f}".lstrip("0") for figure in figures)


def test_confidence_is_worth_what_is_stored():
    """What calibrate.py printed of the included captioner."""
    told = (ROOT / "benchmarks" / "results" / "included_confidence.txt").read_text()
    page = (ROOT / "docs" / "results.md").read_text()
    rows = re.findall(r"^ *(\d+)% +([\d.]+) +([\d.]+) +([\d.]+)%$", told, re.M)
    assert len(rows) == 6
    for share, least, cider, good in rows:
        cells = (f"{share} %", least.lstrip("0"), cider.removeprefix("0"), f"{good} %")
        assert f"| {' | '.join(cells)} |" in page
    figures = re.search(r"Spearman 0(\S+), expected calibration error 0(\S+)", told).groups()
    for text in (page, (ROOT / "models" / "README.md").read_text()):
        assert all(figure in text for figure in figures)


@pytest.mark.parametrize(("page", "count"), [("README.md", 4), ("docs/results.md", 9)])
def test_scores_are_those_that_are_stored(page, count):
    columns, found = [], 0
    for line in (ROOT / page).read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        columns = cells if "CIDEr" in cells else columns
        row = next((row for row in ROWS if cells[0].startswith(row)), None)
        if row and len(cells) == len(columns) > 1:
            found += 1
            for score, cell in zip(columns, cells, strict=True):
                assert score not in SCORES or cell.strip("*") == stored(*ROWS[row], score), line
    assert found == count
