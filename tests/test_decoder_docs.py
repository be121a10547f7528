"""docs/decoders.md: its code, applied as it stands, is a decoder like any other."""

import re
import shlex
import shutil
import subprocess
import sys

import joblib
import pytest
from helpers import ROOT, share_right

from captioning.cli import INCLUDED
from captioning.encoders import LITE0_WEIGHTS

PAGE = (ROOT / "docs" / "decoders.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, re.M | re.S)
MAX_LINES = 60


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A copy of the repository with what the page adds."""
    copy = tmp_path_factory.mktemp("clone") / "repository"
    for pattern in ("*.py", "pyproject.toml", "captioning/*.py", "tests/*.py", "data/*.py"):
        for path in ROOT.glob(pattern):
            (copy / path.relative_to(ROOT)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, copy / path.relative_to(ROOT))
    (copy / "models").mkdir()
    for path in (LITE0_WEIGHTS, INCLUDED):
        shutil.copy(path, copy / "models")
    (code,) = (body for language, body in BLOCKS if language == "python")
    assert len(code.splitlines()) <= MAX_LINES
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


def run(clone, command: str) -> str:
    """Run a line of the page in the clone."""
    _, *arguments = shlex.split(command)
    done = subprocess.run([sys.executable, *arguments], cwd=clone, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.long
def test_the_page_s_transformer_learns_and_passes_every_decoder_s_tests(clone, demo, captioner):
    (clone / "demo").symlink_to(demo)
    ((_, commands),) = ((language, body) for language, body in BLOCKS if language == "sh")
    train, check = commands.splitlines()
    run(clone, train.replace("demo/models/", "models/"))
    passed = run(clone, check)
    assert int(re.search(r"(\d+) passed", passed)[1]) > 30
    assert "failed" not in passed

    features = joblib.load(demo / "data" / "features.pkl")
    text = joblib.load(demo / "data" / "captions.pkl")
    scenes = text["splits"]["dev"] + text["splits"]["test"]
    truths = [text["captions"][scene][0] for scene in scenes]
    code = (
        "import joblib, json; from model import Captioner; "
        "features = joblib.load('demo/data/features.pkl'); "
        "text = joblib.load('demo/data/captions.pkl'); "
        "rows = [features['image_ids'].index(i) "
        "for i in text['splits']['dev'] + text['splits']['test']]; "
        "captioner = Captioner.load('models/transformer.h5'); "
        "print('\\n'.join(captioner.caption_features(features['features'][rows])))"
    )
    captions = run(clone, f"python -c {shlex.quote(code)}").splitlines()
    rows = [features["image_ids"].index(scene) for scene in scenes]
    merge = share_right(captioner.caption_features(features["features"][rows]), truths)
    assert share_right(captions, truths) >= merge - 0.1
