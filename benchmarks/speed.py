"""Measure this repository beside what one would otherwise run: `make bench`, twenty minutes.

    python benchmarks/speed.py [--work_dir DIR] [--torch_python PYTHON]

Every figure comes from a process of its own (ours.py, classic.py, torch_packed.py, floor.py), the
contestants of a comparison take turns, and a ratio is the median over the turns. Slow baselines are
measured on a sample and scaled, as the table says. The last line is one JSON object.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from importlib.metadata import version
from operator import itemgetter
from pathlib import Path

import numpy as np
import workload  # from which on the repository can be imported

from captioning import cli
from captioning.parallel import cores

HERE = Path(__file__).resolve().parent
TURNS = 3
CLI_TURNS = 5
BEAM = ("--beam_size", "3")
PACKAGES = ("tensorflow", "keras", "numpy", "onnxruntime")


def measure(script: str, task: str, folder: Path, python: str = sys.executable) -> dict:
    """The figures that a script prints for a task."""
    start = time.monotonic()
    command = [python, HERE / f"{script}.py", task, folder]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{script}.py {task} failed:\n{done.stderr}")
    print(f"{script} {task}: {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure_python(*arguments) -> dict:
    """Seconds and peak memory of a run of Python."""
    start = time.perf_counter()
    nowhere = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen([sys.executable, *arguments], **nowhere)
    _, status, usage = os.wait4(process.pid, 0)  # the only way to one child's peak memory
    if status:
        raise SystemExit(f"{arguments} failed")
    return {"seconds": time.perf_counter() - start, "peak_mb": usage.ru_maxrss / 1024}


def compare(run, contestants: dict[str, tuple], base: int, turns: int) -> list[tuple]:
    """Call `run` on each in turns: medians of (name, seconds, their ratio to `base`'s, peak MB)."""
    figures = itemgetter("seconds", "peak_mb")
    results = [[figures(run(*each)) for each in contestants.values()] for _ in range(turns)]
    seconds, peaks = np.array(results).T  # (contestants, turns) each
    medians = np.median([seconds, seconds / seconds[base], peaks], axis=2)  # (3, contestants)
    return list(zip(contestants, *medians.tolist(), strict=True))


def training(folder: Path, torch_python: str | None) -> tuple[list, dict]:
    """An epoch of training: rows for the table, and the ratios to ours."""
    contestants = {
        "ours, 30,000 captions": ("ours", "train", folder),
        "its matrix products alone (NumPy)": ("floor", "train", folder),
        "Keras `fit` on every prefix (70 batches, scaled)": ("classic", "train", folder),
    }
    if torch_python:
        packed = "PyTorch, packed sequences (a third, scaled)"
        contestants[packed] = ("torch_packed", "train", folder, torch_python)
    compared = compare(measure, contestants, base=0, turns=TURNS)
    rows = [(f"training, {what}", f"{s:,.1f} s per epoch", r, mb) for what, s, r, mb in compared]
    ratios = zip(("floor", "classic", "torch"), compared[1:], strict=False)  # torch may be absent
    return rows, {f"train_vs_{name}": ratio for name, (_, _, ratio, _) in ratios}


def updown(folder: Path, torch_python: str | None) -> tuple[list, dict]:
    """An epoch of Up-Down, likewise."""
    contestants = {
        "ours": ("ours", "updown", folder),
        "its matrix products alone (NumPy)": ("floor", "updown", folder),
    }
    if torch_python:
        contestants["PyTorch"] = ("torch_packed", "updown", folder, torch_python)
    compared = compare(measure, contestants, base=0, turns=TURNS)
    rows = [
        (f"training Up-Down, {what} (a tenth, scaled)", f"{seconds:,.1f} s per epoch", ratio, peak)
        for what, seconds, ratio, peak in compared
    ]
    ratios = zip(("floor", "torch"), compared[1:], strict=False)  # torch may be absent
    return rows, {f"updown_vs_{name}": ratio for name, (_, _, ratio, _) in ratios}


def captioning(folder: Path) -> tuple[list, dict]:
    """Captions from features, with the network that `training` left: rows, and the rates."""
    rates = measure("ours", "caption", folder)
    peak = rates.pop("peak_mb")
    rows, figures = [], {}
    for name, rate in rates.items():
        what = f"captioning from features, {name.replace('_', ', ')}"
        rows.append((what, f"{rate:,.0f} captions/s", 1, peak))
        figures[f"captions_per_second_{name}"] = rate
    return rows, figures


def extraction(folder: Path) -> tuple[list, dict]:
    """Features from JPEG files: rows, and the ratios to the bare network."""
    rows, figures = [], {}
    for short, name in (("vgg16", "vgg16"), ("lite0", "efficientnet_lite0")):
        own = measure("ours", f"extract_{name}", folder)
        figures[f"extract_{short}_vs_bare"] = own["ratio"]
        for what, key, ratio in (("from JPEG files", "ours", own["ratio"]), ("bare", "bare", 1)):
            rate = f"{own[key]:.1f} images/s"
            rows.append((f"{short} features, {what}", rate, ratio, own["peak_mb"]))
    return rows, figures


def photos(folder: Path) -> tuple[list, dict]:
    """From pixels to captions by the included captioner's two files: rows, and their ratio."""
    rows, rates = [], []
    for task, what in (("search", "CNN and greedy search"), ("photos", "by default")):
        contestants = {
            f"captioning photos, the included .{kind}, {what}": ("ours", f"{task}_{kind}", folder)
            for kind in ("onnx", "h5")
        }
        compared = compare(measure, contestants, base=0, turns=TURNS)
        rows += [(name, f"{1000 * s:.1f} ms a photo", r, peak) for name, s, r, peak in compared]
        rates.append(compared[1][2])  # the .h5's time, divided by the .onnx's
    # Greedy search is a small part of it: the rest is the CNN's, the extraction.
    return rows, {"onnx_extract_vs_tf": rates[0]}


def command_line(folder: Path) -> tuple[list, dict]:
    """One caption by command line beside `import tensorflow`: rows, and their ratios."""
    measure("ours", "model", folder)
    script, photo = HERE.parent / "generate_caption.py", workload.photos(folder)[0]
    caption = (script, "--image_path", photo, "--model_path")
    commands = {
        "`import tensorflow` alone": ("-c", "import tensorflow"),
        "one caption by command line, an .h5 (lite0)": (*caption, folder / "lite0_model.h5"),
        "one caption by command line, the included .onnx, beam 3": (*caption, cli.INCLUDED, *BEAM),
        "one caption by command line, the included .onnx": (*caption, cli.INCLUDED),
        "one caption by command line, the included .h5": (*caption, cli.INCLUDED_H5),
    }
    compare(measure_python, commands, base=0, turns=1)  # at first, files come from the disk
    compared = compare(measure_python, commands, base=0, turns=CLI_TURNS)
    rows = [(what, f"{seconds:.2f} s", ratio, peak) for what, seconds, ratio, peak in compared]
    return rows, {"cli_vs_import": compared[1][2], "onnx_cli_vs_import": compared[2][2]}


def machine() -> str:
    """Processor, cores and the versions that matter."""
    cpuinfo = Path("/proc/cpuinfo")
    names = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    name = next((n.split(":")[1].strip() for n in names if n.startswith("model name")), "CPU")
    versions = [f"{package} {version(package)}" for package in PACKAGES]
    python = sys.version.split()[0]
    return ", ".join([name, f"{cores()} cores", f"Python {python}", *versions])


def main() -> None:
    """Measure everything, print the table and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--work_dir", type=Path, default=HERE / "scratch", help="for what is made")
    parser.add_argument("--torch_python", help="an interpreter that has PyTorch; without, no row")
    args = parser.parse_args()
    folder = args.work_dir.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    for make in (workload.features, workload.cells, workload.photos):
        make(folder)
    torch = args.torch_python
    parts = [training(folder, torch), captioning(folder), updown(folder, torch)]
    parts += [extraction(folder), photos(folder), command_line(folder)]
    print(f"{machine()}\n\n| measured | figure | ratio | peak memory |\n|---|---|---|---|")
    figures = {}
    for rows, own in parts:
        figures |= {name: round(value, 3) for name, value in own.items()}
        for what, figure, ratio, peak in rows:
            print(f"| {what} | {figure} | {ratio:,.2f} | {peak:,.0f} MB |")
    print(json.dumps(figures | {"machine": machine()}))


if __name__ == "__main__":
    main()
