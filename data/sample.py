"""Draw a small data set in Flickr8k's format: coloured shapes with five captions each.

Deterministic and free of any licence, for tests, demonstrations and first steps: a scene shows
one to three shapes of one kind and colour, and its captions name them.
"""

import csv
import sys
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from captioning import cli
from captioning.dataset import SPLIT_LISTS
from captioning.files import atomic_path

SIZE = 224  # pixels a side
OVERSAMPLING = 2  # drawn larger and reduced, so that edges are smooth
COLOURS = {
    "red": (205, 40, 40),
    "green": (40, 150, 60),
    "blue": (45, 80, 200),
    "yellow": (235, 205, 40),
    "purple": (130, 50, 160),
    "black": (25, 25, 25),
}
SHAPES = ("circle", "square", "triangle", "star")
COUNTS = ("a", "two", "three")
PLACES = {  # centres of one, as shares of the width and height
    "on the left": (0.25, 0.5),
    "on the right": (0.75, 0.5),
    "at the top": (0.5, 0.25),
    "at the bottom": (0.5, 0.75),
    "in the middle": (0.5, 0.5),
}
SEVERAL = {2: ((0.28, 0.5), (0.72, 0.5)), 3: ((0.25, 0.3), (0.75, 0.3), (0.5, 0.75))}
SHARES = {"train": 0.8, "dev": 0.1, "test": 0.1}


def draw_scene(colour: str, shape: str, centres, random: np.random.Generator) -> Image.Image:
    """Draw `shape` at each centre on a pale grey background, sizes and places jittered."""
    side = SIZE * OVERSAMPLING
    grey = int(random.integers(215, 256))
    image = Image.new("RGB", (side, side), (grey, grey, grey))
    pen = ImageDraw.Draw(image)
    radius = random.uniform(0.15, 0.2) * side
    for x, y in centres:
        x, y = (x + random.uniform(-0.05, 0.05)) * side, (y + random.uniform(-0.05, 0.05)) * side
        if shape == "circle":
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), COLOURS[colour])
        else:
            pen.polygon(_corners(shape, x, y, radius), COLOURS[colour])
    return image.resize((SIZE, SIZE), Image.Resampling.LANCZOS)


def _corners(shape: str, x: float, y: float, radius: float) -> list[tuple[float, float]]:
    points, inner, turn = {
        "square": (4, 1.0, 45),
        "triangle": (3, 1.0, 0),
        "star": (10, 0.42, 0),  # every second corner lies inside
    }[shape]
    angles = np.deg2rad(turn - 90 + 360 / points * np.arange(points))
    radii = radius * np.where(np.arange(points) % 2, inner, 1.0)
    return [(x + r * np.cos(a), y + r * np.sin(a)) for a, r in zip(angles, radii, strict=True)]


def captions_of(colour: str, shape: str, count: int, place: str) -> list[str]:
    """Five true captions, in words of growing detail; `place` is "" for more than one shape."""
    number = COUNTS[count - 1]
    noun, verb = (shape, "is") if count == 1 else (f"{shape}s", "are")
    where = f" {place}" if place else " side by side" if count == 2 else " in a triangle"
    return [
        f"{number.capitalize()} {colour} {noun} .",
        f"There {verb} {number} {colour} {noun} in the picture .",
        f"The picture shows {number} {colour} {noun}{where} .",
        f"{number.capitalize()} {colour} {noun} {verb}{where} .",
        f"{number.capitalize()} {noun} , {colour} ,{where} .",
    ]


def write_sample(folder: Path, scenes: int, seed: int) -> None:
    """Write Images/, captions.txt and the three split lists, as Flickr8k has them."""
    random = np.random.default_rng(seed)
    (folder / "Images").mkdir(parents=True, exist_ok=True)
    names = [f"scene_{number:04d}.jpg" for number in range(scenes)]
    rows = [("image", "caption")]
    for number, name in enumerate(names):
        # Every colour and shape in turn, so that each occurs equally often.
        colour = list(COLOURS)[number % len(COLOURS)]
        shape = SHAPES[number // len(COLOURS) % len(SHAPES)]
        count = int(random.integers(1, 4))
        place = str(random.choice(list(PLACES))) if count == 1 else ""
        centres = [PLACES[place]] if place else SEVERAL[count]
        with atomic_path(folder / "Images" / name) as path:
            draw_scene(colour, shape, centres, random).save(path, quality=90)
        rows += [(name, caption) for caption in captions_of(colour, shape, count, place)]
    with atomic_path(folder / "captions.txt") as path, path.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)
    order = iter(random.permutation(names))
    for split, share in SHARES.items():
        lines = [f"{name}\n" for name in islice(order, round(share * scenes))]
        with atomic_path(folder / SPLIT_LISTS[split]) as path:
            path.write_text("".join(lines))


def main() -> None:
    """Draw the set where the command line says."""
    parser = cli.parser(__doc__)
    parser.add_argument("--output_dir", type=Path, default="demo/dataset", help="where to write")
    parser.add_argument("--scenes", type=cli.positive_int, default=720, help="pictures to draw")
    parser.add_argument("--seed", type=cli.seed, default=0, help="of everything random in them")
    args = parser.parse_args()
    write_sample(args.output_dir, args.scenes, args.seed)
    print(f"drew {args.scenes} scenes with five captions each into {args.output_dir}")


if __name__ == "__main__":
    cli.run(main)
