"""docs/tutorial.md: its blocks are run as they stand, and print what it shows."""

import contextlib
import io
import re
import shlex

import numpy as np
import pytest
from helpers import ROOT, run_script

PAGE = (ROOT / "docs" / "tutorial.md").read_text()
BLOCKS = re.findall(r"^```(\w+) ?(\w*)\n(.*?)^```$", PAGE, re.M | re.S)
NUMBER = r"-?\d+\.\d+"
ABOUT = 0.4  # nats by which a loss may differ where the training rounds differently


def run(block: str, language: str, names: dict) -> str:
    """What a block prints; a command runs in this folder."""
    if language == "python":
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(compile(block, "tutorial.md", "exec"), names)
        return printed.getvalue()
    lines = [shlex.split(line) for line in block.replace("\\\n", " ").splitlines()]
    return "".join(run_script(*line[1:], cwd=".").stdout for line in lines)


def check(shown: str, mark: str, out: str) -> None:
    if mark == "varies":  # which of two equal words is said; a training's log
        assert out and "the same: False" not in out
    elif mark == "about":
        numbers = [list(map(float, re.findall(NUMBER, each))) for each in (shown, out)]
        np.testing.assert_allclose(*numbers, rtol=0, atol=ABOUT)
        assert re.sub(rf" *{NUMBER}", " #", shown) == re.sub(rf" *{NUMBER}", " #", out)
    else:
        assert shown == out


@pytest.mark.long
def test_the_page_prints_what_it_shows(tmp_path, monkeypatch):
    """In another place that looks like the repository: the page writes into demo/."""
    for entry in ROOT.iterdir():
        if entry.name[0] != "." and entry.name != "demo":
            (tmp_path / entry.name).symlink_to(entry)
    monkeypatch.chdir(tmp_path)
    assert PAGE.count("\n```") == 2 * len(BLOCKS)
    names, out = {}, ""
    for language, mark, body in BLOCKS:
        if mark in ("setup", "drawing"):  # it installs what runs this
            continue
        if language == "text":
            check(body, mark, out)
            out = ""
        else:
            assert not out, f"the page does not show this:\n{out}"
            out = run(body, language, names)
    assert not out
