"""docs/tutorial.md: its blocks are run as they stand, and print what it shows."""

import collections
import contextlib
import io
import re
import shlex

import numpy as np
import pytest
from helpers import CONFIG, ROOT, run_script

from model import build_decoder

PAGE = (ROOT / "docs" / "tutorial.md").read_text()
BLOCKS = re.findall(r"^```(\w+) ?(\w*)\n(.*?)^```$", PAGE, re.M | re.S)
NUMBER = r"-?\d+\.\d+"
ABOUT = 0.4  # nats by which a loss may differ where the training rounds differently
NOT_RUN = {("sh", "setup"): 1}  # it installs what runs this
# Which of two equal words is said; a training's log; a drawing.
NOT_COMPARED = {("text", "varies"): 7, ("text", "drawing"): 1}


@pytest.fixture
def clone(demo, tmp_path, monkeypatch):
    """The repository in another place, with what the page's first commands have made there."""
    for entry in ROOT.iterdir():
        if entry.name[0] != "." and entry.name != "demo":
            (tmp_path / entry.name).symlink_to(entry)
    (tmp_path / "demo").mkdir()
    for name in ("dataset", "data", "models"):
        (tmp_path / "demo" / name).symlink_to(demo / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def commands(block: str) -> list[list[str]]:
    """The words of each line, less the `python` at its start."""
    lines = [shlex.split(line) for line in block.replace("\\\n", " ").splitlines()]
    assert all(line[0] == "python" for line in lines)
    return [line[1:] for line in lines]


def run_blocks(folder, demo):
    """Run the page in `folder`; yield each shown output's mark, its text, and what came out."""
    names, out = {}, None
    for language, mark, body in BLOCKS:
        if mark == "drawing":
            continue
        if language == "text":
            assert out is not None, f"nothing printed this:\n{body}"
            yield mark, body, out
            out = None
            continue
        assert not out, f"the page does not show this:\n{out}"
        if (language, mark) in NOT_RUN:
            out = None
        elif mark == "demo":  # the fixture did just this
            made = [line.replace(str(demo), "demo") for line in commands_of(demo)]
            assert [shlex.join(line) for line in commands(body)] == made
            out = (demo / "stdout").read_text()
        elif language == "sh":
            out = "".join(run_script(*line, cwd=folder).stdout for line in commands(body))
        else:
            with contextlib.redirect_stdout(io.StringIO()) as printed:
                exec(compile(body, "tutorial.md", "exec"), names)
            out = printed.getvalue()
    assert not out, f"the page does not show this:\n{out}"


def commands_of(demo) -> list[str]:
    return (demo / "commands").read_text().splitlines()


def same(shown: str, out: str, tolerance: float) -> bool:
    """Whether the words are the same, and the decimal fractions as near as `tolerance`."""
    numbers = [list(map(float, re.findall(NUMBER, each))) for each in (shown, out)]
    words = [re.sub(rf" *{NUMBER}", " #", each) for each in (shown, out)]
    return words[0] == words[1] and np.allclose(*numbers, rtol=0, atol=tolerance)


@pytest.mark.long
def test_the_page_prints_what_it_shows(clone, demo):
    for mark, shown, out in run_blocks(clone, demo):
        if mark == "varies":
            assert out and shown
            assert "the same: False" not in out
        elif mark == "about":
            assert same(shown, out, ABOUT), f"shown:\n{shown}\nprinted:\n{out}"
        else:
            assert shown == out


def test_every_block_is_known():
    """What is not run, or not compared, is counted: none escapes by a new mark."""
    kinds = collections.Counter((language, mark) for language, mark, _ in BLOCKS)
    checked = {("sh", ""), ("sh", "demo"), ("python", ""), ("text", ""), ("text", "about")}
    assert {kind: n for kind, n in kinds.items() if kind not in checked} == NOT_RUN | NOT_COMPARED
    assert PAGE.count("\n```") == 2 * len(BLOCKS)


def test_the_drawing_names_every_layer():
    (drawing,) = (body for _, mark, body in BLOCKS if mark == "drawing")
    layers = {layer.name for layer in build_decoder(CONFIG).network.layers}
    assert set(re.findall(r"[a-z_]+", drawing)) >= layers


def test_every_link_leads_somewhere():
    for link in re.findall(r"\]\(([^)#]+)", PAGE):
        assert (ROOT / "docs" / link).exists(), link
