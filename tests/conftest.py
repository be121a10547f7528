"""What several tests need: the real scripts, the sample set, Flickr8k where it is."""

import contextlib
import io
import os
import runpy
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

ROOT = Path(__file__).resolve().parent.parent
# Flickr8k cannot be shipped: tests on it look here, or beside the repository.
FLICKR8K = Path(os.environ.get("FLICKR8K_DIR", ROOT.parent / "shared" / "flickr8k"))
EXAMPLES = ROOT / "data" / "examples"
PATIENCE = 600  # seconds for what takes one or two on a machine that has nothing else to do


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


def run_here(*arguments, code: int = 0) -> subprocess.CompletedProcess:
    """The same within this process, where TensorFlow is loaded: spares what a process costs."""
    out, err = (io.TextIOWrapper(io.BytesIO(), write_through=True) for _ in range(2))
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        contextlib.chdir(ROOT),
        mock.patch.object(sys, "argv", list(map(str, arguments))),
        pytest.raises(SystemExit) as ended,
    ):
        runpy.run_path(str(arguments[0]), run_name="__main__")
    stdout, stderr = (stream.buffer.getvalue().decode(errors="replace") for stream in (out, err))
    assert ended.value.code == code, f"exit code {ended.value.code}\n{stdout}\n{stderr}"
    return subprocess.CompletedProcess(arguments, code, stdout, stderr)


class PeakMemory:
    """Measures, in MB, by how much a block raises this process' greatest resident memory."""

    def __enter__(self):
        Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
        self.before = self.peak()
        return self

    def __exit__(self, *_):
        self.taken = self.peak() - self.before

    @staticmethod
    def peak() -> float:
        """The process' greatest resident memory; unlike rusage's, not that of who started it."""
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) / 1024


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


@contextlib.contextmanager
def serving(*arguments, stop=signal.SIGINT, env=None):
    """The script itself, at a free port, stopped in the end: its address."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "app.py", "--port", port, *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(list(map(str, command)), cwd=ROOT, env=env, **pipes)
    lines = []
    try:
        for line in process.stderr:
            lines.append(line)
            if line.startswith("listening on"):
                break
        else:
            pytest.fail(f"it did not start:\n{''.join(lines)}")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.send_signal(stop)
        _, err = process.communicate(timeout=PATIENCE)
    assert err.endswith("stopped.\n"), err
    assert process.returncode == 130


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
