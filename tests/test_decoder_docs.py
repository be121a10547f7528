"""docs/decoders.md: its code, applied as it stands, is a decoder like any other."""

import csv
import re
import shlex
import shutil

import pytest
from helpers import ROOT, run_script

PAGE = (ROOT / "docs" / "decoders.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, re.M | re.S)


@pytest.fixture
def clone(tmp_path):
    """A copy of the repository with what the page adds."""
    copy = tmp_path / "clone"
    shutil.copytree(ROOT / "captioning", copy / "captioning")
    shutil.copytree(ROOT / "tests", copy / "tests")
    for path in (*ROOT.glob("*.py"), ROOT / "pyproject.toml"):
        shutil.copy(path, copy)
    (code,) = (body for language, body in BLOCKS if language == "python")
    (copy / "captioning" / "transformer.py").write_text(code)
    for language, body in BLOCKS:
        if language == "diff":
            old, new = (
                "".join(f"{line[1:]}\n" for line in body.splitlines() if line[0] == sign)
                for sign in "-+"
            )
            files = (copy / "model.py", copy / "captioning" / "cli.py")
            (path,) = (path for path in files if path.read_text().count(old) == 1)
            path.write_text(path.read_text().replace(old, new))
    return copy


def best_loss(history) -> float:
    with history.open() as file:
        return min(float(row["dev_loss"]) for row in csv.DictReader(file))


@pytest.mark.long
def test_the_page_s_transformer_learns_and_passes_every_decoder_s_tests(clone, demo):
    (clone / "demo").symlink_to(demo)
    ((_, commands),) = ((language, body) for language, body in BLOCKS if language == "sh")
    train, check = (shlex.split(line)[1:] for line in commands.splitlines())
    run_script(*train, "--epochs", 12, "--model_path", "transformer.h5", cwd=clone)
    merge = best_loss(demo / "models" / "caption_model.csv")
    assert best_loss(clone / "transformer.csv") < merge + 0.1
    for tests, choice, count in (
        (check, "transformer or command_line", 10),
        ((*check[:-1], "tests/test_onnx.py"), "exported and transformer", 2),
    ):
        passed = run_script(*tests, "-k", choice, cwd=clone).stdout
        assert int(re.search(r"(\d+) passed", passed)[1]) == count
