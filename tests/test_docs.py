"""README and docs name only commands, options and files that exist."""

import functools
import re
import shlex

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
