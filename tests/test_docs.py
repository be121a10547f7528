"""README and docs name only commands, options and files that exist."""

import functools
import json
import re
import shlex
import statistics

import pytest
from helpers import ROOT, run_script

PAGES = [ROOT / "README.md", *sorted(ROOT.glob("*/*.md")), *sorted(ROOT.glob("data/*/*.md"))]
EACH = pytest.mark.parametrize("page", PAGES, ids=[str(p.relative_to(ROOT)) for p in PAGES])
FENCED = re.compile(r"^```[^\n]*\n(.*?)^```", re.M | re.S)


def commands(text: str) -> list[list[str]]:
    """The words of every fenced line that runs a script of this repository."""
    fenced = "\n".join(FENCED.findall(text)).replace("\\\n", " ")
    lines = [line.strip() for line in fenced.splitlines()]
    lines = [part for line in lines for part in line.split(" && ")]
    return [shlex.split(line, comments=True) for line in lines if line.startswith("python ")]


@functools.cache
def help_of(script: str) -> str:
    return run_script(script, "--help").stdout


@EACH
def test_commands_have_the_options_that_are_shown(page):
    for _, script, *arguments in commands(page.read_text()):
        if script == "-m" or script.startswith(("benchmarks/", "tests/")):
            continue
        assert (ROOT / script).is_file(), script
        options = [argument for argument in arguments if argument.startswith("--")]
        known = re.findall(r"--\w+", help_of(script))
        assert set(options) <= set(known), (script, set(options) - set(known))


@EACH
def test_links_lead_somewhere(page):
    text = page.read_text()
    for link in re.findall(r"\]\(([^)\s]+)\)", FENCED.sub("", text)):
        if link.startswith("http"):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.*)$", target.read_text(), re.M)
            names = [re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings]
            assert anchor in names, link


@EACH
def test_modules_and_pages_that_are_named_exist(page):
    """In code spans, and in the README's tree."""
    text = page.read_text()
    names = re.findall(r"`([\w./]+\.(?:py|md))`", text)
    names += re.findall(r"^ *([\w/]+\.py) ", text, re.M)
    for name in names:
        places = [ROOT, page.parent, ROOT / "captioning", ROOT / "tests"]
        made_here = f"`{name}`:\n\n```python" in text  # a file that the page itself gives
        assert made_here or any((place / name).exists() for place in places), name


def test_make_has_the_targets_that_the_readme_shows():
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M)
    shown = re.findall(r"\bmake ([a-z-]+)", (ROOT / "README.md").read_text())
    assert {"demo", "test"} <= set(shown) <= set(targets)


def test_the_readme_is_short():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 200
    assert len(text.split()) <= 1800


SCORES = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "METEOR", "ROUGE-L", "CIDEr")
STORED = ROOT / "benchmarks" / "results"
SEEDS = [f"merge_seed{seed}_dev_beam3" for seed in range(3)]
ROWS = {  # beginning of a row: the file and the row in it
    "**the included captioner": ("included_dev_beam3", "model"),
    "shuffled": ("included_dev_beam3", "shuffled"),
    "constant": ("included_dev_beam3", "constant"),
    "the best constant caption": ("included_dev_beam3", "constant"),
    "the included captioner, four": ("included_dev_beam3", "model, same references as human"),
    "human": ("included_dev_beam3", "human"),
    "one human caption": ("included_dev_beam3", "human"),
    **{f"seed {seed}": (name, "model") for seed, name in enumerate(SEEDS)},
    "mean": (SEEDS, "model"),
    "one merge network": (SEEDS, "model"),
}


def stored(files: str | list[str], row: str, score: str) -> str:
    """A score as the pages write it: .586, or of several files .529 ± .004."""
    files = [files] if isinstance(files, str) else files
    values = [json.loads((STORED / f"{name}.json").read_text())[row][score] for name in files]
    figures = [statistics.mean(values), *([statistics.stdev(values)] if len(values) > 1 else [])]
    return " ± ".join(f"{figure:.3f}".lstrip("0") for figure in figures)


@pytest.mark.parametrize(("page", "count"), [("README.md", 4), ("docs/results.md", 9)])
def test_scores_are_those_that_are_stored(page, count):
    columns, found = [], 0
    for line in (ROOT / page).read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if "CIDEr" in cells:
            columns = cells
        row = next((row for row in ROWS if cells[0].startswith(row)), None)
        if line.startswith("|") and row and len(cells) == len(columns):
            found += 1
            for score, cell in zip(columns, cells, strict=True):
                if score in SCORES:
                    assert cell.strip("*") == stored(*ROWS[row], score), (row, score)
    assert found == count
