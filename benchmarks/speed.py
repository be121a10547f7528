"""Measure this repository beside what one would otherwise run: `make bench`, a quarter of an hour.

    python benchmarks/speed.py [--work_dir DIR] [--torch_python PYTHON]

Every figure comes from a process of its own (ours.py, classic.py, torch_packed.py, floor.py), the
contestants of a comparison take turns, and a ratio is the median over the turns. Slow baselines are
measured on a sample and scaled, as the table says. The last line is one JSON object.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import workload

HERE = Path(__file__).resolve().parent
ENCODERS = {"vgg16": "vgg16", "lite0": "efficientnet_lite0"}
TURNS = 3
CLI_TURNS = 5


def measure(script: str, task: str, folder: Path, python: str = sys.executable) -> dict:
    """The figures that a script prints for a task."""
    start = time.monotonic()
    command = [python, HERE / f"{script}.py", task, folder]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{script}.py {task} failed:\n{done.stderr}")
    print(f"{script} {task}: {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
    return json.loads(done.stdout.splitlines()[-1])


def in_turns(contestants: dict[str, tuple], folder: Path) -> dict[str, list[dict]]:
    """Measure each of {name: (script, task, …)} `TURNS` times, one after the other."""
    results = {name: [] for name in contestants}
    for _ in range(TURNS):
        for name, (script, task, *python) in contestants.items():
            results[name].append(measure(script, task, folder, *python))
    return results


def median(results: list[dict], key: str) -> float:
    """The median of a figure over the turns."""
    return statistics.median(result[key] for result in results)


def training(folder: Path, torch_python: str | None) -> tuple[list, dict]:
    """An epoch of training: rows for the table, and the ratios to ours."""
    contestants = {
        "ours": ("ours", "train"),
        "floor": ("floor", "train"),
        "classic": ("classic", "train"),
    }
    if torch_python:
        contestants["torch"] = ("torch_packed", "train", torch_python)
    names = {
        "ours": "ours, 30,000 captions",
        "floor": "its matrix products alone (NumPy)",
        "classic": "Keras `fit` on every prefix (70 batches, scaled)",
        "torch": "PyTorch, packed sequences (a third, scaled)",
    }
    results, rows, figures = in_turns(contestants, folder), [], {}
    for name, other in results.items():
        pairs = zip(results["ours"], other, strict=True)
        ratio = statistics.median(b["seconds"] / a["seconds"] for a, b in pairs)
        figures[f"train_vs_{name}"] = ratio
        seconds = f"{median(other, 'seconds'):,.1f} s per epoch"
        rows.append((f"training, {names[name]}", seconds, ratio, median(other, "peak_mb")))
    del figures["train_vs_ours"]
    return rows, figures


def captioning(folder: Path) -> tuple[list, dict]:
    """Captions from features, with the network that `training` left: rows."""
    own = measure("ours", "caption", folder)
    what = "captioning from features"
    names = ("greedy_1", "greedy_256", "beam_3")
    rows = [
        (f"{what}, {name.replace('_', ', ')}", f"{own[name]:,.0f} captions/s", 1, own["peak_mb"])
        for name in names
    ]
    return rows, {f"captions_per_second_{name}": own[name] for name in names}


def extraction(folder: Path) -> tuple[list, dict]:
    """Features from JPEG files: rows, and the ratios to the bare network."""
    rows, figures = [], {}
    for short, name in ENCODERS.items():
        own = measure("ours", f"extract_{name}", folder)
        figures[f"extract_{short}_vs_bare"] = own["ratio"]
        for what, key, ratio in (("from JPEG files", "ours", own["ratio"]), ("bare", "bare", 1.0)):
            rate = f"{own[key]:.1f} images/s"
            rows.append((f"{short} features, {what}", rate, ratio, own["peak_mb"]))
    return rows, figures


def command_line(folder: Path) -> tuple[list, dict]:
    """One caption by command line beside `import tensorflow`: rows, and their ratio."""
    measure("ours", "model", folder)
    photo, model = workload.photos(folder)[0], folder / "lite0_model.h5"
    caption = [workload.ROOT / "generate_caption.py", "--image_path", photo, "--model_path", model]
    commands = {"one caption by command line (lite0)": caption}
    commands["`import tensorflow` alone"] = ["-c", "import tensorflow"]
    seconds, peaks = ({name: [] for name in commands} for _ in range(2))
    for _ in range(CLI_TURNS + 1):
        for name, arguments in commands.items():
            start = time.perf_counter()
            nowhere = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
            process = subprocess.Popen([sys.executable, *arguments], **nowhere)
            _, status, usage = os.wait4(process.pid, 0)  # the only way to one child's peak memory
            if status:
                raise SystemExit(f"{arguments} failed")
            seconds[name].append(time.perf_counter() - start)
            peaks[name].append(usage.ru_maxrss / 1024)
    own, bare = (times[1:] for times in seconds.values())  # at first, files come from the disk
    ratio = statistics.median(a / b for a, b in zip(own, bare, strict=True))
    rows = [
        (name, f"{statistics.median(seconds[name][1:]):.2f} s", r, statistics.median(peaks[name]))
        for name, r in zip(commands, (ratio, 1.0), strict=True)
    ]
    return rows, {"cli_vs_import": ratio}


def machine() -> str:
    """Processor, cores and the versions that matter."""
    cpuinfo = Path("/proc/cpuinfo")
    names = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    name = next((n.split(":")[1].strip() for n in names if n.startswith("model name")), "CPU")
    versions = [f"{package} {version(package)}" for package in ("tensorflow", "keras", "numpy")]
    return f"{name}, {os.cpu_count()} cores, Python {platform.python_version()}, " + ", ".join(
        versions
    )


def main() -> None:
    """Measure everything, print the table and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--work_dir", type=Path, default=HERE / "scratch", help="for what is made")
    parser.add_argument("--torch_python", help="an interpreter that has PyTorch; without, no row")
    args = parser.parse_args()
    folder = args.work_dir.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    workload.features(folder)
    workload.photos(folder)
    parts = [training(folder, args.torch_python), captioning(folder), extraction(folder)]
    parts.append(command_line(folder))
    print(f"{machine()}\n\n| measured | figure | ratio | peak memory |\n|---|---|---|---|")
    figures = {}
    for rows, own in parts:
        figures |= {name: round(value, 3) for name, value in own.items()}
        for what, figure, ratio, peak in rows:
            print(f"| {what} | {figure} | {ratio:,.2f} | {peak:,.0f} MB |")
    print(json.dumps(figures | {"machine": machine()}))


if __name__ == "__main__":
    main()
