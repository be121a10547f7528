"""Time and memory against the amount of data: python benchmarks/growth.py --dataset_dir FLICKR8K

Runs preprocess.py on 1 × and 4 × the data set, and an epoch of train.py on 1 ×, 4 × and 16 ×, with
EfficientNet-Lite0. A larger set repeats the photos under other names; for training, every copy's
features get some noise and every copy of a caption one other word. Prints a table; about 25 minutes
with Flickr8k on two cores. Anonymous memory is what a process has beside the files it maps: pages
of the features' file that were read count as resident, but are given back when memory is short.
"""

import argparse
import csv
import shutil
import subprocess
import sys
import time
from pathlib import Path

import joblib
import numpy as np
import workload

from captioning.captions import read_captions, read_split_lists

LITE0 = ("--encoder", "efficientnet_lite0")
NOISE = 0.05  # standard deviation of what is added to copied features, which are mostly below 1


def measure(script: str, *arguments) -> tuple[float, float, float, str]:
    """Run a script: its seconds, peak resident and peak anonymous memory in MB, and its output."""
    command = [sys.executable, workload.ROOT / script, *map(str, arguments)]
    start = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    peaks = {"VmRSS": 0, "RssAnon": 0}
    while process.poll() is None:
        try:
            lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        except OSError:
            break
        for line in lines:
            name, _, value = line.partition(":")
            if name in peaks:
                peaks[name] = max(peaks[name], int(value.split()[0]) / 1024)
        time.sleep(0.1)
    printed = process.communicate()[0]
    if process.returncode:
        raise SystemExit(f"{script} failed:\n{printed}")
    return time.monotonic() - start, peaks["VmRSS"], peaks["RssAnon"], printed


def repeat_photos(dataset_dir: Path, target: Path, times: int) -> None:
    """A data set of `times` as many photos, each a link under another name."""
    captions, _ = read_captions(next(dataset_dir.glob("captions.txt")))
    splits = read_split_lists(dataset_dir)
    shutil.rmtree(target, ignore_errors=True)
    (target / "Images").mkdir(parents=True)
    with (target / "captions.txt").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "caption"])
        for split, image_ids in splits.items():
            present = [i for i in image_ids if (dataset_dir / "Images" / i).is_file()]
            names = [(f"{copy}_{i}", i) for copy in range(times) for i in present]
            lines = "".join(f"{name}\n" for name, _ in names)
            (target / f"Flickr_8k.{split}Images.txt").write_text(lines)
            for name, image_id in names:
                link = target / "Images" / name
                link.symlink_to((dataset_dir / "Images" / image_id).resolve())
                writer.writerows([name, caption] for caption in captions[image_id])


def repeat_pickles(source: Path, target: Path, times: int) -> None:
    """The pickles of `source`, every training image `times` times with noise in both pickles."""
    random = np.random.default_rng(0)
    features = dict(joblib.load(source / "features.pkl"))
    text = dict(joblib.load(source / "captions.pkl"))
    words = np.array(text["vocabulary"][4:])

    def jitter(caption: str) -> str:
        line = caption.split()
        line[random.integers(len(line))] = random.choice(words)
        return " ".join(line)

    row = {image_id: n for n, image_id in enumerate(features["image_ids"])}
    train, captions = text["splits"]["train"], dict(text["captions"])
    arrays, image_ids = [features["features"]], list(features["image_ids"])
    originals = features["features"][[row[i] for i in train]]
    for copy in range(1, times):
        noise = random.normal(0, NOISE, originals.shape).astype(np.float32)
        arrays.append(np.maximum(originals + noise, 0))
        image_ids += [f"{copy}_{i}" for i in train]
        captions |= {f"{copy}_{i}": list(map(jitter, captions[i])) for i in train}
    features |= {"features": np.concatenate(arrays), "image_ids": image_ids}
    train = train + image_ids[len(row) :]
    text |= {"captions": captions, "splits": text["splits"] | {"train": train, "dev": []}}
    target.mkdir(parents=True, exist_ok=True)
    joblib.dump(features, target / "features.pkl")
    joblib.dump(text, target / "captions.pkl")


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--dataset_dir", type=Path, default="data/flickr8k")
    parser.add_argument("--work_dir", type=Path, default=Path(__file__).parent / "scratch")
    args = parser.parse_args()
    work = args.work_dir.resolve()
    print("| step | data | time | for each | resident | anonymous |\n|---|---|---|---|---|---|")

    def row(step: str, what: str, count: int, seconds: float, resident: float, anonymous: float):
        print(
            f"| {step} | {what} | {seconds:,.0f} s | {seconds / count * 1e3:.2f} ms | "
            f"{resident:,.0f} MB | {anonymous:,.0f} MB |",
            flush=True,
        )

    for times in (1, 4):
        repeat_photos(args.dataset_dir, work / "set", times)
        count = len(list((work / "set" / "Images").iterdir()))
        folders = ("--dataset_dir", work / "set", "--output_dir", work / f"data_{times}")
        *figures, _ = measure("preprocess.py", *folders, *LITE0)
        row("preprocess.py", f"{times} ×: {count:,} images", count, *figures)
    for times in (1, 4, 16):
        repeat_pickles(work / "data_1", work / "repeated", times)
        folders = ("--data_dir", work / "repeated", "--model_path", work / "growth.h5")
        *figures, printed = measure("train.py", *folders, "--epochs", 1)
        count = int(printed.split(" training captions")[0].splitlines()[-1])
        row("train.py, 1 epoch", f"{times} ×: {count:,} captions", count, *figures)
    for folder in ("set", "data_1", "data_4", "repeated"):
        shutil.rmtree(work / folder)


if __name__ == "__main__":
    main()
