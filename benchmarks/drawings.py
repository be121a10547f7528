"""Is a captioner less sure of what is no photo? Draws a hundred pictures, a third each of shapes,
screens and pages of text, and compares their confidence with that of the dev split's second half.

Reads   MODEL, calibrated, DATA_DIR/features.pkl and DATA_DIR/captions.pkl.
Writes  the pictures to OUTPUT_DIR; the area under the ROC curve goes to stdout.

  python benchmarks/drawings.py models/flickr8k_captioner.h5 --data_dir data/grid"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from captioning import cli
from captioning.captions import SPECIAL_TOKENS, load_captions
from captioning.features import load_features
from captioning.files import InputError
from captioning.images import load_image

PICTURES = 100
SIDE = 448  # pixels
COLOURS = ("#d02828", "#28963c", "#2d50c8", "#ebcd28", "#823296", "#191919", "#e88e2e")


def draw_shapes(pen: ImageDraw.ImageDraw, words: list[str], random: np.random.Generator) -> None:
    """Circles, boxes and lines on a pale ground."""
    pen.rectangle((0, 0, SIDE, SIDE), (int(random.integers(215, 256)),) * 3)
    for _ in range(random.integers(1, 9)):
        x, y, r = (*random.uniform(60, SIDE - 60, 2).tolist(), random.uniform(15, 60))
        box, colour = (x - r, y - r, x + r, y + r), str(random.choice(COLOURS))
        draw = (pen.ellipse, pen.rectangle, lambda box, fill: pen.line(box, fill, 5))
        draw[random.integers(3)](box, fill=colour)


def draw_screen(pen: ImageDraw.ImageDraw, words: list[str], random: np.random.Generator) -> None:
    """A window with a bar, a list, buttons, and a chart."""
    pen.rectangle((0, 0, SIDE, SIDE), "#f4f5f7")
    pen.rectangle((0, 0, SIDE, 36), str(random.choice(COLOURS)))
    text(pen, 12, 8, words[0], 18, "white")
    for row, word in enumerate(words[1 : random.integers(4, 12)]):
        text(pen, 16, 52 + 26 * row, word, 14, "#333333")
    for column in range(random.integers(2, 5)):
        left = 150 + 70 * column
        pen.rounded_rectangle((left, 50, left + 60, 74), 5, str(random.choice(COLOURS)))
    heights = random.uniform(20, 200, 9)
    for column, height in enumerate(heights):
        left = 160 + 30 * column
        pen.rectangle((left, 400 - height, left + 20, 400), COLOURS[2])


def draw_page(pen: ImageDraw.ImageDraw, words: list[str], random: np.random.Generator) -> None:
    """Lines of text, black on white."""
    pen.rectangle((0, 0, SIDE, SIDE), "white")
    size = int(random.integers(11, 24))
    for top in range(24, SIDE - 30, int(1.5 * size)):
        text(pen, 24, top, " ".join(random.permutation(words)), size, "black")


def text(pen: ImageDraw.ImageDraw, x: int, y: int, line: str, size: int, colour: str) -> None:
    """Write a line in Pillow's own font."""
    pen.text((x, y), line, colour, ImageFont.load_default(size))


def draw_pictures(folder: Path, words: list[str]) -> list[Path]:
    """The three kinds in turn, as PNG; what is written in them are the `words`."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number in range(PICTURES):
        random = np.random.default_rng(number)
        image = Image.new("RGB", (SIDE, SIDE))
        draw = (draw_shapes, draw_screen, draw_page)[number % 3]
        draw(ImageDraw.Draw(image), random.choice(words, 12).tolist(), random)
        paths.append(folder / f"{number:03}.png")
        image.save(paths[-1])
    return paths


def main() -> None:
    """Draw, caption, compare."""
    parser = cli.parser(__doc__)
    parser.add_argument("model", type=Path, metavar="MODEL", help="a calibrated captioner")
    parser.add_argument("--data_dir", type=Path, default="data", help="the data it is made of")
    why = "where the pictures go"
    parser.add_argument("--output_dir", type=Path, default="benchmarks/scratch/drawings", help=why)
    args = parser.parse_args()
    features, text = load_features(args.data_dir), load_captions(args.data_dir)
    cli.load_tensorflow()
    from sklearn.metrics import roc_auc_score

    from model import Captioner

    captioner = Captioner.load_h5(args.model)
    captioner.check_features(features)
    if captioner.calibration is None:
        raise InputError(f"{args.model} knows no confidence: python calibrate.py {args.model}")
    rows = {image_id: row for row, image_id in enumerate(features["image_ids"])}
    dev = text["splits"]["dev"]
    photos = features["features"][[rows[image_id] for image_id in dev[len(dev) // 2 :]]]
    paths = draw_pictures(args.output_dir, text["vocabulary"][len(SPECIAL_TOKENS) :])
    size, encoder = captioner.config.photo_size, captioner.encoder
    drawings = [encoder.encode(load_image(path, size)[None]) for path in paths]
    drawings = np.concatenate(drawings)  # (100, …)
    sure = [
        np.array([beam[0].confidence for beam in captioner.decode(each)])
        for each in (photos, drawings)
    ]
    labels = np.repeat([1, 0], [*map(len, sure)])
    print(f"photos: {len(photos)}, median confidence {np.median(sure[0]):.2f}")
    for kind, name in enumerate(("shapes", "screens", "pages")):
        print(f"{name}: {len(sure[1][kind::3])}, median {np.median(sure[1][kind::3]):.2f}")
    print(f"area under the ROC curve: {roc_auc_score(labels, np.concatenate(sure)):.3f}")


if __name__ == "__main__":
    cli.run(main)
