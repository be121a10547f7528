"""Every picture that the scripts draw, by matplotlib's object interface: no display needed."""

import textwrap
from pathlib import Path

from matplotlib.figure import Figure

from encoders import load_image
from files import InputError, atomic_path

MAX_IMAGES = 24  # in one picture; more would be too small to look at
COLUMNS = 4
WRAP = 32  # characters of a caption per line, at the size of these pictures


def draw_captions(items: list[tuple[Path, list[str]]], target: str | Path) -> None:
    """Draw images with the lines of text below each.

    Args:
        items: image files, each with its lines; only the first `MAX_IMAGES` are drawn.
        target: the picture to write; its suffix chooses the format.

    Raises:
        InputError: an image cannot be read, or the picture cannot be written.
    """
    items = items[:MAX_IMAGES]
    columns = min(COLUMNS, len(items))
    rows = -(-len(items) // columns)
    texts = ["\n".join(textwrap.fill(line, WRAP) for line in lines) for _, lines in items]
    height = 2.6 + 0.18 * max(text.count("\n") + 1 for text in texts)  # inches
    figure = Figure(figsize=(2.9 * columns, height * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid:
        axes.set(xticks=[], yticks=[], frame_on=False)
    for axes, (path, _), text in zip(grid, items, texts, strict=False):
        axes.imshow(load_image(path))
        axes.set_xlabel(_plain(text), fontsize="medium")  # the layout makes room for a label
    _save(figure, target)


UNITS = {"loss": "loss per token (nats)", "cider": "CIDEr"}  # what a measure is called in curves


def draw_curves(rows: list[dict], measure: str, best: dict, target: Path) -> None:
    """Draw the training and dev measure of every epoch into a picture.

    Args:
        rows: a dict for each epoch, with `epoch`, `train_…` and `dev_…` (None without dev images).
        measure: a key of `UNITS`, as in those names.
        best: the row to be pointed out.
        target: the picture to write.
    """
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot(xlabel="epoch", ylabel=UNITS[measure])
    epochs = [row["epoch"] for row in rows]
    label = {"loss": "train (with dropout)", "cider": "train (sampled captions)"}[measure]
    axes.plot(epochs, [row[f"train_{measure}"] for row in rows], "o-", label=label)
    if best[f"dev_{measure}"] is not None:
        axes.plot(epochs, [row[f"dev_{measure}"] for row in rows], "s-", label="dev")
        place = best["epoch"], best[f"dev_{measure}"]
        axes.annotate(f"best: {place[1]:.3f}", place, (0, 10), textcoords="offset points")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend()
    axes.grid(alpha=0.3)
    _save(figure, target)


def _plain(text: str) -> str:
    return text.replace("$", r"\$")  # matplotlib reads $…$ as mathematics


def _save(figure: Figure, target: str | Path) -> None:
    target = Path(target)
    if target.suffix.lower().lstrip(".") not in figure.canvas.get_supported_filetypes():
        raise InputError(f"{target}: not a picture format. Name it .png, .jpg, .pdf or .svg.")
    with atomic_path(target) as path:
        figure.savefig(path, dpi=120, bbox_inches="tight")
