"""What several tests need: the real scripts, the sample set, Flickr8k where it is."""

import os
import shlex
import time
from pathlib import Path

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from helpers import EXAMPLES, FLICKR8K, run_here, run_script, serving


@pytest.fixture(scope="session")
def flickr8k() -> Path:
    if not (FLICKR8K / "captions.txt").is_file():
        pytest.skip(f"Flickr8k is not in {FLICKR8K}; set FLICKR8K_DIR to run this on it")
    return FLICKR8K


@pytest.fixture(scope="session")
def demo(tmp_path_factory) -> Path:
    """The sample set taken through the real scripts: dataset/, data/, models/."""
    folder = tmp_path_factory.mktemp("demo")
    done = [run_script("data/sample.py", "--output_dir", folder / "dataset")]
    arguments = ("--dataset_dir", folder / "dataset", "--output_dir", folder / "data")
    started = time.monotonic()
    done.append(run_script("preprocess.py", *arguments, "--encoder", "efficientnet_lite0"))
    (folder / "preprocess_seconds").write_text(str(time.monotonic() - started))
    model_path = folder / "models" / "caption_model.h5"
    arguments = ("--data_dir", folder / "data", "--model_path", model_path)
    done.append(run_script("train.py", *arguments, "--epochs", 30))  # as make demo does
    # For docs/tutorial.md, which shows them.
    (folder / "commands").write_text("".join(f"{shlex.join(one.args[1:])}\n" for one in done))
    (folder / "stdout").write_text("".join(one.stdout for one in done))
    return folder


@pytest.fixture(scope="session")
def small(tmp_path_factory) -> Path:
    """A sample set that a training passes in a blink: dataset/, data/."""
    from data.sample import write_sample

    folder = tmp_path_factory.mktemp("small")
    write_sample(folder / "dataset", scenes=60, seed=2)
    arguments = ("--dataset_dir", folder / "dataset", "--output_dir", folder / "data")
    run_here("preprocess.py", *arguments, "--encoder", "efficientnet_lite0")
    return folder


@pytest.fixture(scope="session")
def captioner(demo):
    from model import Captioner

    return Captioner.load(demo / "models" / "caption_model.h5")


@pytest.fixture(scope="session")
def page():
    pytest.importorskip("gradio", reason="Gradio is not installed (requirements-app.txt)")
    with serving() as url:
        yield url


@pytest.fixture(scope="session")
def said():
    """What generate_caption.py says of the examples, beam 3."""
    done = run_here("generate_caption.py", "--image_path", EXAMPLES, "--beam_size", 3)
    lines = dict(line.split("\t") for line in done.stdout.splitlines())
    return {path.rsplit("/")[-1]: caption for path, caption in lines.items()}


def pytest_terminal_summary(terminalreporter):
    """Say in the last lines how many tests were skipped, and why."""
    skipped = terminalreporter.stats.get("skipped", [])
    reasons = sorted({str(report.longrepr[-1]).removeprefix("Skipped: ") for report in skipped})
    explained = "; ".join(reasons) if reasons else "nothing to explain"
    terminalreporter.write_line(f"skipped: {len(skipped)} ({explained})")
