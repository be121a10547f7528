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
from pathlib import Path

import workload

HERE = Path(__file__).resolve().parent
ENCODERS = {"vgg16": "vgg16", "efficientnet_lite0": "lite0"}
TRAINING = {
    "ours": "ours, 30,000 captions",
    "floor": "its matrix products alone (NumPy)",
    "torch": "PyTorch, packed sequences (a third, scaled)",
    "unbucketed": "ours, batches of any lengths (a third, scaled)",
    "classic": "Keras `fit` on every prefix (70 batches, scaled)",
}
CAPTIONING = {
    "greedy_1": "ours, greedy, one by one",
    "greedy_256": "ours, greedy, 256 at once",
    "beam_3": "ours, beam 3, 256 at once",
}
TURNS = 3
CLI_TURNS = 5


def measure(script: str, task: str, folder: Path, python: str = sys.executable) -> dict:
    """The figures that a script prints for a task."""
    command = [python, HERE / f"{script}.py", task, folder]
    start = time.monotonic()
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


def command_line(folder: Path) -> tuple[float, ...]:
    """Seconds of one caption and of importing TensorFlow, their ratio, and both's peaks in MB."""
    photo, model = workload.photos(folder)[0], lite0_model(folder)
    caption = [workload.ROOT / "generate_caption.py", "--image_path", photo, "--model_path", model]
    turns = []
    for _ in range(CLI_TURNS + 1):
        turn = []
        for arguments in (caption, ["-c", "import tensorflow"]):
            start = time.perf_counter()
            nowhere = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
            process = subprocess.Popen([sys.executable, *arguments], **nowhere)
            _, status, usage = os.wait4(process.pid, 0)  # the only way to one child's peak memory
            if status:
                raise SystemExit(f"{arguments} failed")
            turn += [time.perf_counter() - start, usage.ru_maxrss / 1024]
        turns.append(turn)
    turns = turns[1:]  # in the first, the files are read from the disk
    seconds, peak, bare, bare_peak = map(statistics.median, zip(*turns, strict=True))
    return seconds, bare, statistics.median(a / b for a, _, b, _ in turns), peak, bare_peak


def lite0_model(folder: Path) -> Path:
    """An untrained captioner of EfficientNet-Lite0's features: one photo takes as long with it."""
    path = folder / "lite0_model.h5"
    code = (
        "import sys; sys.path[:0] = sys.argv[1:3]; from captioning import cli; "
        "cli.load_tensorflow(); import workload; from captioning.encoders import Encoder; "
        "from captioning.captions import Vocabulary; from model import Captioner; "
        "from captioning.networks import CaptionerConfig, build_captioner; "
        "words = workload.words(); encoder = Encoder('efficientnet_lite0'); "
        "config = CaptionerConfig(1280, len(words), 36, encoder.name, encoder.weights_hash); "
        "Captioner(build_captioner(config), Vocabulary(words), config).save(sys.argv[3])"
    )
    command = [sys.executable, "-c", code, workload.ROOT, HERE, path]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    return path


def machine() -> str:
    """Processor, cores and the versions that matter."""
    import importlib.metadata

    cpuinfo = Path("/proc/cpuinfo")
    names = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    name = next((n.split(":")[1].strip() for n in names if n.startswith("model name")), "CPU")
    versions = [f"{p} {importlib.metadata.version(p)}" for p in ("tensorflow", "keras", "numpy")]
    python = f"Python {platform.python_version()}"
    return ", ".join([f"{name}, {os.cpu_count()} cores", python, *versions])


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

    training = {"ours": ("ours", "train"), "floor": ("floor", "train")}
    if args.torch_python:
        training["torch"] = ("torch_packed", "train", args.torch_python)
    training |= {"unbucketed": ("ours", "train_unbucketed"), "classic": ("classic", "train")}
    trained = in_turns(training, folder)
    captioned = in_turns({"ours": ("ours", "caption"), "predict": ("classic", "caption")}, folder)
    extracted = {
        script: {name: measure(script, f"extract_{name}", folder) for name in ENCODERS}
        for script in ("ours", "classic")
    }
    started = command_line(folder)
    rows, figures = table(trained, captioned, extracted, started)
    print(f"{machine()}\n\n| measured | figure | ours is | peak memory |\n|---|---|---|---|")
    for row in rows:
        print("| " + " | ".join(row) + " |")
    print(json.dumps(figures | {"machine": machine()}))


def table(trained, captioned, extracted, started) -> tuple[list[tuple], dict]:
    """The rows to read and the figures for programs."""
    rows, figures, peaks = [], {}, {}

    def add(what: str, figure: str, peak: float, key: str | None = None, ratio: float = 0):
        """A row; with a key, also a figure: the ratio of ours to this."""
        peaks[what] = round(peak)
        said = ""
        if key:
            figures[key] = round(ratio, 3)
            said = f"{ratio:,.2f} ×" if ratio < 100 else f"{ratio:,.0f} ×"
        rows.append((what, figure, said, f"{peak:,.0f} MB"))

    for name, results in trained.items():
        key = None if name == "ours" else f"train_vs_{name}"
        ratio = statistics.median(
            other["seconds"] / ours["seconds"]
            for ours, other in zip(trained["ours"], results, strict=True)
        )
        seconds = f"{median(results, 'seconds'):,.1f} s an epoch"
        add(f"training, {TRAINING[name]}", seconds, median(results, "peak_mb"), key, ratio)
    first = median(trained["ours"], "first_seconds") - median(trained["ours"], "seconds")
    rows.append(("training, ours: compiling, once", f"{first:.1f} s in the first epoch", "", ""))

    ours, predict = captioned["ours"], captioned["predict"]
    for name, what in CAPTIONING.items():
        rate = median(ours, name)
        add(f"captioning, {what}", f"{rate:,.0f} captions/s", median(ours, "peak_mb"))
    words = median(ours, "greedy_256_words") + 1  # and the end
    rate = 1 / (median(predict, "seconds") * words)
    figure = f"{rate:.2f} captions/s"
    for batch_size in (256, 1):
        add(
            f"captioning, Keras `predict` a word ({words:.0f} words, scaled)",
            figure,
            median(predict, "peak_mb"),
            f"caption_vs_predict_batch{batch_size}",
            median(ours, f"greedy_{batch_size}") / rate,
        )

    for name, short in ENCODERS.items():
        own, classic = extracted["ours"][name], extracted["classic"][name]
        what = f"{short} features"
        add(f"{what}, ours, from JPEG files", f"{own['ours']:.1f} images/s", own["peak_mb"])
        bare = f"{own['bare']:.1f} images/s"
        add(
            f"{what}, the bare network",
            bare,
            own["peak_mb"],
            f"extract_{short}_vs_bare",
            own["ratio"],
        )
        ratio = own["ours"] / classic["rate"]
        rate = f"{classic['rate']:.1f} images/s"
        key = f"extract_{short}_vs_classic"
        add(f"{what}, Keras `predict` an image", rate, classic["peak_mb"], key, ratio)

    caption, bare, ratio, peak, bare_peak = started
    add("one caption by command line (lite0)", f"{caption:.2f} s", peak)
    add("`import tensorflow` alone", f"{bare:.2f} s", bare_peak)
    figures["cli_vs_import"] = round(ratio, 3)
    rows[-1] = (*rows[-1][:2], f"{ratio:.2f} × as long", rows[-1][3])
    return rows, figures | {"peak_mb": peaks}


if __name__ == "__main__":
    main()
