"""What several tests need: the real scripts, the sample set, Flickr8k where it is."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

ROOT = Path(__file__).resolve().parent.parent
# Flickr8k cannot be shipped: tests on it look here, or beside the repository.
FLICKR8K = Path(os.environ.get("FLICKR8K_DIR", ROOT.parent / "shared" / "flickr8k"))


def run_script(*arguments, code: int = 0, **options) -> subprocess.CompletedProcess:
    """Run one of the repository's scripts as a user would; its exit code must be `code`."""
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=options.pop("cwd", ROOT),
        capture_output=True,
        text=True,
        timeout=600,
        **options,
    )
    assert done.returncode == code, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr, done.stderr
    return done


@pytest.fixture(scope="session")
def flickr8k() -> Path:
    if not (FLICKR8K / "captions.txt").is_file():
        pytest.skip(f"Flickr8k is not in {FLICKR8K}; set FLICKR8K_DIR to run this on it")
    return FLICKR8K


@pytest.fixture(scope="session")
def demo(tmp_path_factory) -> Path:
    """The sample set taken through the real scripts: dataset/, data/, models/."""
    folder = tmp_path_factory.mktemp("demo")
    run_script("data/sample.py", "--output_dir", folder / "dataset")
    arguments = ("--dataset_dir", folder / "dataset", "--output_dir", folder / "data")
    run_script("preprocess.py", *arguments, "--encoder", "efficientnet_lite0")
    model_path = folder / "models" / "caption_model.h5"
    arguments = ("--data_dir", folder / "data", "--model_path", model_path)
    run_script("train.py", *arguments, "--epochs", 30)  # as make demo does
    return folder


@pytest.fixture(scope="session")
def captioner(demo):
    from model import Captioner

    return Captioner.load(demo / "models" / "caption_model.h5")


def pytest_terminal_summary(terminalreporter):
    """Say in the last lines how many tests were skipped, and why."""
    skipped = terminalreporter.stats.get("skipped", [])
    reasons = sorted({str(report.longrepr[-1]).removeprefix("Skipped: ") for report in skipped})
    explained = "; ".join(reasons) if reasons else "nothing to explain"
    terminalreporter.write_line(f"skipped: {len(skipped)} ({explained})")
