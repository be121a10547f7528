"""Whether time and memory grow with the data: python benchmarks/growth.py [--work_dir DIR]

Drawn photos with five captions each, as many as Flickr8k has, 4 and 16 times as many (more than
COCO has), go through preprocess.py (EfficientNet-Lite0), an epoch of train.py with its pass over
dev, and, a part of them, through generate_caption.py. Linux alone, half an hour and 5 GB.

Times have the start in them, training's the compilation too. A process' own memory, looked at ten
times a second, is what it has allocated: the rest is of files, which the system can take back.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import workload  # from which on the repository can be imported

from captioning.captions import SPECIAL_TOKENS

ROOT = Path(__file__).resolve().parent.parent
TIMES = (1, 4, 16)
CAPTIONED = 5 / 32  # of the photos: 20,000 of 16 times Flickr8k
# What a script works on, for each photo; the random split has 80 % of the captions for training.
ITEMS = {"preprocess.py": 1, "train.py": 0.8 * 5, "generate_caption.py": CAPTIONED}
WORDS = 12  # a caption


def draw(folder: Path, count: int, photos: list[Path]) -> None:
    """A data set of `count` photos; their files differ in what follows the picture."""
    some = int(CAPTIONED * count)
    for part in ("Images", "some"):
        (folder / part).mkdir(parents=True)
    random = np.random.default_rng(0)
    words = np.array(workload.vocabulary().words[len(SPECIAL_TOKENS) :])
    shares = 1 / np.arange(1, len(words) + 1)
    pictures = [path.read_bytes() for path in photos]
    with (folder / "captions.txt").open("w") as file:
        file.write("image,caption\n")
        for i in range(count):
            name = f"{i:06d}.jpg"
            (folder / "Images" / name).write_bytes(pictures[i % len(pictures)] + b"%d" % i)
            if i < some:
                os.link(folder / "Images" / name, folder / "some" / name)
            for line in random.choice(words, (5, WORDS), p=shares / shares.sum()):
                file.write(f"{name},{' '.join(line)}\n")


def measure(log: Path, script: str, options: tuple) -> tuple[float, int, int]:
    """Run a script of the repository: seconds, peak of resident and of own memory (MB)."""
    start, peaks = time.perf_counter(), {"VmHWM": 0, "RssAnon": 0}
    with log.open("w") as file:
        command = [sys.executable, ROOT / script, *options]
        process = subprocess.Popen(command, stdout=file, stderr=file)
        while process.poll() is None:
            status = Path(f"/proc/{process.pid}/status").read_text()
            for name, kilobytes in re.findall(r"(VmHWM|RssAnon):\s+(\d+) kB", status):
                peaks[name] = max(peaks[name], int(kilobytes) // 1024)
            time.sleep(0.1)
    if process.returncode:
        raise SystemExit(f"{script} failed:\n{log.read_text()}")
    return time.perf_counter() - start, *peaks.values()


def main() -> None:
    """Print a row of the table for each size and script."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--work_dir", type=Path, default=Path(__file__).parent / "scratch")
    parser.add_argument("--photos", type=int, default=8000, help="those of 1 ×")
    args = parser.parse_args()
    drawn, folder = workload.photos(args.work_dir.resolve()), args.work_dir.resolve() / "growth"
    data, model, some = folder / "data", folder / "caption_model.h5", folder / "some"
    encoder, by = ("--encoder", "efficientnet_lite0"), ("--model_path", model)
    options = {
        "preprocess.py": ("--dataset_dir", folder, "--output_dir", data, *encoder),
        "train.py": ("--data_dir", data, "--epochs", "1", *by),
        "generate_caption.py": ("--image_path", some, "--output", f"{some}.tsv", *by),
    }
    columns = ("data", "script", "items", "time", "an item", "resident", "own")
    print("|", " | ".join(columns), "|\n" + len(columns) * "|---" + "|")
    for times in TIMES:
        count = times * args.photos
        shutil.rmtree(folder, ignore_errors=True)
        draw(folder, count, drawn)
        for script, share in ITEMS.items():
            items = int(share * count)
            seconds, resident, own = measure(folder / "log", script, options[script])
            each = f"{items:,} | {seconds:,.0f} s | {1000 * seconds / items:.2f} ms"
            print(f"| {times} × | {script} | {each} | {resident:,} MB | {own:,} MB |", flush=True)
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
