"""Every picture that the scripts draw, by matplotlib's object interface: no display needed."""

import contextlib
import math
import textwrap
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
from matplotlib import font_manager
from matplotlib.figure import Figure
from matplotlib.text import Text

from captioning import cli
from captioning.confidence import BINS, GOOD
from captioning.files import atomic_path, one_line
from captioning.images import load_image

MAX_IMAGES = 24  # in one picture; more would be too small to look at
COLUMNS = 4
WIDTH = 2.9  # inches of one image
WRAP = 32  # characters of a caption per line, at the size of these pictures
OWN_FONT = "DejaVu Sans"  # which comes with matplotlib
LAST_RESORT = "Last Resort"  # a font whose signs say only which script is lacking
SHOWN = 20  # characters of those that no font has
BARS = 15  # words named in a description
SUREST = 20  # captions, the fewest whose mean CIDEr is drawn
HEIGHT = 3.4  # inches of its charts
UNITS = {"loss": "loss per token (nats)", "cider": "CIDEr"}  # what a measure is called in curves
TAKEN = {"loss": "with dropout", "cider": "sampled captions"}  # how, in training
Items = list[tuple[Path, list[str]]]  # image files, each with its lines of text


def draw_captions(items: Items, target: Path) -> None:
    """Draw the first `MAX_IMAGES`; raises InputError for unreadable images, unwritable pictures."""
    items = items[:MAX_IMAGES]
    columns = min(COLUMNS, math.ceil(math.sqrt(len(items))))
    rows = math.ceil(len(items) / columns)
    figure = Figure(figsize=(WIDTH * columns, _height(items) * rows), layout="constrained")
    _draw_grid(figure, items, rows, columns)
    _save(figure, target)


def _text(lines: list[str]) -> str:
    text = "\n".join(textwrap.fill(line, WRAP) for line in lines)
    return text.replace("$", r"\$")  # matplotlib reads $…$ as mathematics


def _height(items: Items) -> float:
    """Inches that a row of images takes with the lines below them."""
    return 2.6 + 0.18 * max(_text(lines).count("\n") + 1 for _, lines in items)


def _draw_grid(figure, items: Items, rows: int, columns: int) -> None:
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid:
        axes.set(xticks=[], yticks=[], frame_on=False)
    for axes, (path, lines) in zip(grid, items, strict=False):
        axes.imshow(load_image(path))
        axes.set_xlabel(_text(lines), fontsize="medium")  # the layout makes room for a label


def draw_curves(rows: list[dict], measure: str, kept: dict, target: Path) -> None:
    """Draw a measure, a key of `UNITS`, in training and on dev, of every epoch.

    A row has `epoch`, `train_…` and `dev_…` (None without dev images). `kept`, the row of the epoch
    that the model's file holds, is pointed out.
    """
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot(xlabel="epoch", ylabel=UNITS[measure])
    epochs = [row["epoch"] for row in rows]
    label = f"train ({TAKEN[measure]})"
    axes.plot(epochs, [row[f"train_{measure}"] for row in rows], "o-", label=label)
    if kept[f"dev_{measure}"] is not None:
        axes.plot(epochs, [row[f"dev_{measure}"] for row in rows], "s-", label="dev")
        place = kept["epoch"], kept[f"dev_{measure}"]
        axes.annotate(f"kept: {place[1]:.3f}", place, (0, 10), textcoords="offset points")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend()
    axes.grid(alpha=0.3)
    _save(figure, target)


def draw_coverage(confidence: np.ndarray, cider: np.ndarray, target: Path) -> None:
    """Draw the CIDEr of the surest captions, by their share, and the calibration; both (N,)."""
    figure = Figure(figsize=(2 * WIDTH, WIDTH), layout="constrained")
    left, right = figure.subplots(1, 2)
    cider = cider[np.argsort(-confidence, kind="stable")]
    count = np.arange(1, len(cider) + 1)
    first = min(len(cider), SUREST)  # the means of fewer leap about
    left.plot((100 * count / len(cider))[first - 1 :], (np.cumsum(cider) / count)[first - 1 :])
    left.set(xlabel="% of the captions, the surest", ylabel="their CIDEr", ylim=(0, None))
    confidence = -np.sort(-confidence)
    for chosen in np.array_split(np.arange(len(cider)), min(BINS, len(cider))):
        right.plot(confidence[chosen].mean(), (cider[chosen] >= GOOD).mean(), "o", color="C0")
    right.plot([0, 1], [0, 1], color="grey", linestyle="--")
    right.set(xlabel="confidence", ylabel=f"share with CIDEr ≥ {GOOD}", xlim=(0, 1), ylim=(0, 1))
    for axes in (left, right):
        axes.grid(alpha=0.3)
    _save(figure, target)


def draw_differences(
    found: dict[str, dict], gains: np.ndarray, names: list[str], target: Path
) -> None:
    """Draw by how much the second system's scores are higher, and its captions' CIDEr, (N,).

    `found` has a "difference" and its "interval" by the score's name; `names` are the systems'.
    """
    figure = Figure(figsize=(3 * WIDTH, HEIGHT), layout="constrained")
    left, right = figure.subplots(1, 2)
    for row, each in enumerate(found.values()):
        if each["interval"]:
            left.plot(each["interval"], [row, row], color="C0", linewidth=3, alpha=0.5)
        left.plot(each["difference"], row, "o", color="C0")
    left.set_yticks(range(len(found)), found)
    left.invert_yaxis()
    first, second = (one_line(name, 40) for name in names)
    left.set(xlabel=_text([f"score of {second} less that of {first}, and its 95 % interval"]))
    right.hist(gains, bins=41)
    right.set(xlabel=_text([f"CIDEr of a photo's caption: {second} less {first}"]), ylabel="photos")
    for axes in (left, right):
        axes.axvline(0, color="grey", linestyle="--")
        axes.grid(alpha=0.3)
    _save(figure, target)


def draw_description(
    lengths: dict[str, list[int]], words: Counter, known: int, examples: Items, target: Path
) -> None:
    """Draw caption lengths, word frequencies and some images of a data set.

    `lengths` has the words of every caption for each split; `words` how often each word occurs in
    the training captions, of which the `known` most frequent are in the vocabulary; `examples` at
    most `COLUMNS` images, or none. Raises InputError as `draw_captions` does.
    """
    below = _height(examples) if examples else 0
    figure = Figure(figsize=(WIDTH * COLUMNS, HEIGHT + below), layout="constrained")
    charts = figure
    if examples:
        charts, photos = figure.subfigures(2, 1, height_ratios=[HEIGHT, below])
        _draw_grid(photos, examples, 1, COLUMNS)
    left, middle, right = charts.subplots(1, 3)

    for split, each in lengths.items():
        if each:
            share = np.bincount(each) / len(each)  # (longest + 1,)
            left.plot(share, ".-", label=f"{split}: {len(each):,} captions")
    left.set(xlabel="words", ylabel="share of the captions", title="Caption lengths")
    left.legend()

    counts = sorted(words.values(), reverse=True)
    middle.loglog(range(1, len(counts) + 1), counts)
    middle.axvline(known, color="grey", linestyle="--")
    middle.set(xlabel="rank of a word", ylabel="times in training captions")
    middle.set_title(f"{known:,} of {len(counts):,} words in the vocabulary")

    most = words.most_common(BARS)
    right.barh([_text([one_line(word, 20)]) for word, _ in most], [count for _, count in most])
    right.invert_yaxis()
    right.set(xlabel="times in training captions", title="Most frequent words")
    _save(figure, target)


def _save(figure: Figure, target: Path) -> None:
    with atomic_path(target) as path, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # _choose_fonts says it
        figure.draw_without_rendering()  # after which axes have all their texts
        _choose_fonts(figure)
        figure.savefig(path, dpi=120, bbox_inches="tight")


def _choose_fonts(figure: Figure) -> None:
    """Take what matplotlib's own font lacks from other installed ones; say what none has."""
    texts = figure.findobj(Text)
    lacking = {ord(c) for text in texts for c in text.get_text() if not c.isspace()}
    families = []
    own = font_manager.FontEntry(fname=font_manager.findfont(OWN_FONT), name=OWN_FONT)
    others = (f for f in font_manager.fontManager.ttflist if not f.name.startswith(LAST_RESORT))
    for font in [own, *sorted(others, key=lambda font: (font.name, font.fname))]:
        if not lacking:
            break
        with contextlib.suppress(OSError, RuntimeError):  # a font that was removed, or is broken
            if found := lacking & font_manager.get_font(font.fname).get_charmap().keys():
                lacking -= found
                families.append(font.name)
    for text in texts:
        text.set_fontfamily(families or [OWN_FONT])
    if lacking:
        some = "".join(map(chr, sorted(lacking)[:SHOWN]))
        cli.log(f"the picture lacks {len(lacking)} characters ({some}): no installed font has them")
