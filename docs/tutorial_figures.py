"""Draw the pictures of docs/tutorial.md from a trained network and a batch of the sample set.

Reads   DEMO_DIR, as `make demo` leaves it.
Writes  OUTPUT_DIR/tutorial_network.png, tutorial_batch.png and tutorial_beam.png; the shapes of
        the network's tensors go to stdout, and into the first picture's description."""

import argparse
import sys
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from captioning import cli
from captioning.captions import END, PADDING, START
from captioning.files import InputError, atomic_path
from captioning.pickles import load_captions, load_features

# What each layer does, in the order of the computation: the image's, the words', those of both.
IMAGE = {
    "features": "what the CNN saw in the photo",
    "image_norm": "scaled to length 1",
    "image_standard": "less their mean, in standard deviations",
    "image_scale": "to a length of about 8",
    "image_dropout": "half of them 0, in training",
    "image": "Dense, relu",
    "image_step": "the same at every word",
}
WORDS = {
    "tokens": "ids of the words so far",
    "embedding": "a vector for each word",
    "word_dropout": "half of the floats 0, in training",
    "lstm": "all words up to each place, as a vector",
}
BOTH = {
    "merge": "image + words",
    "merged": "Dense, relu",
    "merged_dropout": "three tenths 0, in training",
    "logits": "Dense: a number for each word of the vocabulary",
}
BLUE, ORANGE, GREEN, GREY = "#dbe8f6", "#fde3cd", "#dcefdc", "#8a8a8a"
BEAM = 3
SHOWN = 2  # candidates of a step that the beam drops, and that are drawn all the same


def shapes_of(network) -> dict[str, str]:
    """Layer name -> the shape of its output, B captions of T words."""
    names = {0: "B", 1: "T"}
    return {
        layer.name: "({})".format(
            ", ".join(names[i] if n is None else str(n) for i, n in enumerate(layer.output.shape))
        )
        for layer in network.layers
    }


def draw_network(shapes: dict[str, str], target: Path) -> None:
    """Draw every layer with its output's shape: the image's, the words', and where they meet.

    Raises:
        InputError: the network's layers are not those that are described here.
    """
    described = IMAGE | WORDS | BOTH
    if described.keys() != shapes.keys():
        odd = ", ".join(sorted(described.keys() ^ shapes.keys()))
        raise InputError(f"the layers have changed ({odd}): mend the descriptions in {__file__}.")
    figure = Figure(figsize=(8.6, 7.6))
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, 10), ylim=(11.4, -0.5))
    axes.axis("off")
    meet = len(IMAGE)  # the row where the two columns do
    columns = ((2.5, IMAGE, 0, BLUE), (7.5, WORDS, meet - len(WORDS), ORANGE))
    for x, layers, first, colour in (*columns, (5, BOTH, meet, GREEN)):
        for y, (name, text) in enumerate(layers.items(), first):
            axes.text(
                *(x, y, f"{name}   {shapes[name]}\n{text}"),
                **{"ha": "center", "va": "center", "fontsize": 9.5, "linespacing": 1.35},
                bbox=_round(colour),
            )
            if y > first:
                _arrow(axes, (x, y - 0.64), (x, y - 0.37))
    _arrow(axes, (2.5, meet - 0.64), (4.15, meet - 0.1))
    _arrow(axes, (7.5, meet - 0.64), (5.85, meet - 0.1))
    end = meet + len(BOTH)
    _arrow(axes, (5, end - 0.64), (5, end - 0.25))
    axes.text(5, end, "what comes next, after each of the T words", ha="center", fontsize=9.5)
    note = "B captions of T words\nthe LSTM sees no image"
    axes.text(7.5, 1, note, ha="center", va="center", fontsize=9.5, color=GREY)
    _save(figure, target, "\n".join(f"{name} {shape}" for name, shape in shapes.items()))


def draw_batch(photo: Path, words: list[str], inputs, targets, losses, target: Path) -> None:
    """Draw a photo and the batch of its captions.

    Args:
        photo: the image file.
        words: the vocabulary.
        inputs: (B, T) ids that the network reads.
        targets: (B, T) ids that it should say next.
        losses: (B, T) float, of each target in nats.
        target: the picture to write.
    """
    from captioning.encoders import load_image

    rows, columns = inputs.shape
    figure = Figure(figsize=(12.5, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[1, 3.6])
    left.imshow(load_image(photo))
    left.set(xticks=[], yticks=[], title=photo.name)
    right.set(xlim=(-0.5, columns - 0.5), ylim=(rows - 0.5, -0.5), yticks=[])
    right.set(xticks=range(columns), xlabel="place t", ylabel="caption")
    right.set_title("input → target: loss in nats; what is hatched is padding, of weight 0")
    for (row, column), loss in np.ndenumerate(losses):
        place = (column - 0.5, row - 0.5)
        if targets[row, column] == PADDING:
            right.add_patch(Rectangle(place, 1, 1, fc="white", ec="#cccccc", hatch="///", lw=0))
            continue
        shade = colormaps["Oranges"](min(loss, 3) / 3 * 0.7)
        right.add_patch(Rectangle(place, 1, 1, fc=shade, ec="white", lw=2))
        said, meant = words[inputs[row, column]], words[targets[row, column]]
        right.text(column, row - 0.25, said, ha="center", va="center", color="#666666", size=8)
        right.text(column, row, meant, ha="center", va="center", weight="bold", size=9)
        right.text(column, row + 0.28, f"{loss:.2f}", ha="center", va="center", size=8)
    _save(figure, target)


def search(network, image, vocabulary_size: int, max_length: int) -> list[list[tuple]]:
    """Beam search step by step: the candidates of each, (log-probability, ids), best first."""
    import tensorflow as tf

    beam, steps = [(0.0, [START])], []
    while len(steps) < max_length and not all(ids[-1] == END for _, ids in beam):
        grown = [line for line in beam if line[1][-1] == END]
        for score, ids in beam:
            if ids[-1] != END:
                logits = network([image, np.array([ids], np.int32)])[0, -1]  # (V,)
                log_probs = tf.nn.log_softmax(logits).numpy()
                grown += [(score + log_probs[i], [*ids, i]) for i in range(END, vocabulary_size)]
        steps.append(sorted(grown, reverse=True))
        beam = steps[-1][:BEAM]
    return steps


def draw_beam(steps: list[list[tuple]], words: list[str], target: Path) -> None:
    """Draw what the beam keeps at each step, from where it comes, and what is dropped next.

    Args:
        steps: from `search`.
        words: the vocabulary.
        target: the picture to write.
    """
    figure = Figure(figsize=(13.6, 3.9))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(-0.45, len(steps) + 1.75), ylim=(BEAM + SHOWN - 0.5, -1))
    axes.axis("off")
    axes.text(0, 0, words[START], ha="center", va="center", size=9, bbox=_round(ORANGE))
    places = {(START,): 0}
    for column, candidates in enumerate(steps, 1):
        axes.text(column, -0.75, f"step {column}", ha="center", color=GREY)
        before, places = places, {}
        for row, (score, ids) in enumerate(candidates[: BEAM + SHOWN]):
            kept, ids = row < BEAM, tuple(ids)
            if kept:
                places[ids] = row
                resting = ids in before  # it ended at an earlier step
                parent = before[ids if resting else ids[:-1]]
                style = {"color": "#777777", "zorder": 0, "ls": ":" if resting else "-"}
                axes.plot((column - 1, column), (parent, row), **style)
            colour = (GREEN if ids[-1] == END else ORANGE) if kept else "white"
            axes.text(
                *(column, row, f"{words[ids[-1]]}\n{np.exp(score):.3f}"),
                **{"ha": "center", "va": "center", "size": 9},
                color="black" if kept else "#aaaaaa",
                bbox=_round(colour, GREY if kept else "#dddddd"),
            )
    axes.text(len(steps) + 1.1, -0.75, "ranking", ha="center", color=GREY)
    for row, (score, ids) in enumerate(steps[-1][:BEAM]):
        length = len(ids) - 1  # START is no token of the caption
        sum_of = f"{score:.2f} / {length}$^{{{cli.LENGTH_PENALTY}}}$"
        ranking = f"{sum_of} = {score / length**cli.LENGTH_PENALTY:.2f}"
        axes.text(len(steps) + 1.1, row, ranking, ha="center", va="center", size=9.5)
    _save(figure, target)


def _round(colour: str, edge: str = GREY) -> dict:
    return {"boxstyle": "round,pad=0.4", "fc": colour, "ec": edge}


def _arrow(axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    axes.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": "#555555"})


def _save(figure, target: Path, description: str = "") -> None:
    with atomic_path(target) as path:
        figure.savefig(path, dpi=100, metadata={"Description": description})
    cli.say(f"drew {target}")


def main() -> None:
    """Print the shapes, draw the pictures."""
    parser = cli.parser(__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--demo_dir", type=Path, default="demo", help="dataset/, data/, models/")
    parser.add_argument("--output_dir", type=Path, default="docs", help="where the pictures go")
    args = parser.parse_args()
    features, text = load_features(args.demo_dir / "data"), load_captions(args.demo_dir / "data")

    cli.load_tensorflow()
    import keras

    from captioning.batches import CaptionBatches
    from model import Captioner

    captioner = Captioner.load(args.demo_dir / "models" / "caption_model.h5")
    network, words = captioner.network, captioner.vocabulary.words
    shapes = shapes_of(network)
    for name, shape in shapes.items():
        print(name, shape)
    draw_network(shapes, args.output_dir / "tutorial_network.png")

    scene = text["splits"]["test"][0]
    row = features["image_ids"].index(scene)
    pairs = [(row, caption) for caption in text["captions"][scene]]
    batches = CaptionBatches(features["features"], pairs, captioner.vocabulary, len(pairs))
    (images, inputs), targets, _ = next(iter(batches))  # (B, 1280), (B, T), (B, T)
    logits = network([images, inputs])  # (B, T, V)
    losses = keras.losses.sparse_categorical_crossentropy(targets, logits, from_logits=True)
    photo = args.demo_dir / "dataset" / "Images" / scene
    target = args.output_dir / "tutorial_batch.png"
    draw_batch(photo, words, inputs, targets, losses.numpy(), target)

    steps = search(network, images[:1], len(words), captioner.config.max_length)
    draw_beam(steps, words, args.output_dir / "tutorial_beam.png")


if __name__ == "__main__":
    cli.run(main)
