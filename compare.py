"""Compare two captioners on the same photos: which is better, by how much, and is it chance?

A system is a folder of results from evaluate.py, or a file of captions made elsewhere, in COCO's
results format or any other that preprocess.py reads. Its photos and human captions must be those of
the other; files alone need --references.

One result a side: photos are drawn again (intervals: paired bootstrap, BCa), and captions swapped
photo by photo (p: paired randomization test). It says how far the result holds for other photos,
of these two trained models. Several a side, one for each seed: Welch's t-test over the seeds'
scores. It says how far the result holds for other seeds, on these photos.

Reads   the results named, and photos in IMAGES_DIR for the picture of the greatest differences.
Writes  OUTPUT_DIR/comparison.json, differences.png and photos.png; sentences go to stdout.

  python evaluate.py --beam_size 1 --output_dir results/greedy
  python evaluate.py --beam_size 3 --output_dir results/beam3
  python compare.py results/greedy --against results/beam3
  python compare.py results/merge_seed* --against results/updown_seed*
  python compare.py theirs.json --against ours.json --references captions_val2014.json

Of seven scores that are tested, one may well reach p < .05 by chance: choose yours beforehand."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from captioning import cli, dataset
from captioning.captions import as_written
from captioning.files import InputError, check_writable, one_line
from captioning.images import images_below
from captioning.photo_list import coco_id
from captioning.results import read_results, write_json

PHOTOS = 10  # shown, those on which the two differ most
CHANCE = 0.05  # the p below which a difference is called one


class System(NamedTuple):
    """What a captioner says of each image, by id, and the human captions where they are known."""

    name: str
    captions: dict
    references: dict | None = None


def main() -> None:
    """Read both sides, score them, and say how they differ."""
    parser = cli.parser(__doc__)
    add = parser.add_argument
    why = "a folder of results, or a file of captions; several are one system's seeds"
    add("system", nargs="+", type=Path, metavar="RESULTS", help=why)
    why = "the other system's, likewise: differences are its scores less those of RESULTS"
    add("--against", nargs="+", type=Path, required=True, metavar="RESULTS", help=why)
    why = "human captions, in COCO's format or any other that preprocess.py reads"
    add("--references", type=Path, metavar="FILE", help=why)
    add("--images_dir", type=Path, default="data/flickr8k/Images", help="photos for the picture")
    add("--output_dir", type=Path, default="comparison", help="where the comparison goes")
    add("--seed", type=cli.seed, default=0, help="of the photos that are drawn again")
    args = parser.parse_args()
    for paths in (args.system, args.against):
        if len({path.resolve() for path in paths}) < len(paths):
            raise InputError("a result is named twice on one side: it is no second seed.")
    sides = [[read_system(path) for path in paths] for paths in (args.system, args.against)]
    if len(args.system) != len(args.against) and 1 in map(len, sides):
        raise InputError("one result against several: name two seeds or more on either side.")
    check_writable(args.output_dir / "comparison.json")
    references = find_references(sides[0] + sides[1], args.references)

    from captioning.scoring import Scorer

    scorer, measured = Scorer(), []
    for side in sides:  # all with the photos in one order
        said = ({image_id: system.captions[image_id] for image_id in references} for system in side)
        measured.append([scorer.measure(captions, references) for captions in said])
    found = compare(measured, args.seed)
    if scorer.without_meteor:
        cli.log(f"note: no METEOR: {scorer.without_meteor}; the other scores stand.")
    names = [label(side) for side in sides]
    print(f"{len(references)} photos: A = {names[0]}, B = {names[1]}")
    for score, each in found.items():
        print(sentence(score, each))
    gains = np.subtract(*(mean_cider(side) for side in reversed(measured)))  # (N,), of B
    photos = greatest(sides, list(references), gains)
    if len(args.system) > 1:
        print("photo by photo: the mean over the seeds, with the captions of each side's first")
    for each in photos:
        print(
            f"\n{one_line(each['image'])}: CIDEr {each['gain']:+.2f}", *lines_of(each), sep="\n  "
        )
    write(args.output_dir, names, found, photos)
    draw(args, names, found, gains, photos)


def read_system(path: Path) -> System:
    """One of the results named; raises InputError if it is not one caption of each image."""
    if not path.exists():
        raise InputError(f"{path}: no such results. Name a folder of evaluate.py's, or captions.")
    if path.is_dir():
        found = read_results(path)
        by_id = [{coco_id(i): value for i, value in each.items()} for each in found]
        if len(by_id[0]) < len(found[0]):
            raise InputError(f"{path}: two of its images have one of COCO's numbers.")
        return System(str(path), *by_id)
    captions = read_captions(path)
    if several := [key for key, lines in captions.items() if len(lines) > 1]:
        raise InputError(f"{path}: {one_line(several[0])} has several captions: name one a photo.")
    return System(str(path), {key: lines[0] for key, lines in captions.items()})


def read_captions(path: Path) -> dict[str | int, list[str]]:
    """Tokenized captions by image: its file's name, or COCO's number."""
    captions: dict[str | int, list[str]] = {}
    for image_id, lines in dataset.read_captions(path, with_splits=False)[0].items():
        key = int(image_id) if image_id.isdecimal() else coco_id(image_id)
        captions.setdefault(key, []).extend(lines)
    return captions


def find_references(systems: list[System], path: Path | None) -> dict:
    """The human captions, which are the same of all; raises InputError where they are not."""
    first = systems[0]
    for system in systems[1:]:
        check_same(f"{first.name} and {system.name}", first.captions, system.captions)
    known = [s for s in systems if s.references]
    if path:
        given = read_captions(path)
        images = {key: given[key] for key in first.captions if key in given}
        known.append(System(str(path), images, images))
        check_same(f"{first.name} and {path}", first.captions, images)
    if not known:
        raise InputError("no human captions: name their file with --references.")
    for system in known[1:]:
        for image_id, lines in known[0].references.items():
            if sorted(system.references[image_id]) != sorted(lines):
                raise InputError(
                    f"{known[0].name} and {system.name} have different human captions of "
                    f"{one_line(image_id)}: their scores cannot be compared."
                )
    return known[0].references


def check_same(names: str, first: dict, second: dict) -> None:
    """Raises InputError unless both have the same images."""
    if other := first.keys() ^ second.keys():
        some = one_line(sorted(map(str, other))[0])
        raise InputError(
            f"{names} are not of the same photos: {len(other)} are in one alone, such as {some}. "
            f"Evaluate both on one split."
        )


def compare(measured: list[list[dict]], seed: int) -> dict[str, dict]:
    """For each score what `significance` finds, and both sides' scores, one for each seed.

    METEOR is left out where its process has failed, before or meanwhile.
    """
    from captioning.significance import difference, seeds_difference

    found = {}
    for name in measured[0][0]:
        if not all(name in measures for side in measured for measures in side):
            continue
        first, second = ([each[name] for each in side] for side in measured)
        values = [[measure.score for measure in side] for side in (first, second)]
        if len(first) == len(second) == 1:
            each = difference(first[0], second[0], seed)
        else:
            each = seeds_difference(*values)
        if np.isfinite(each["difference"]):
            found[name] = {"A": values[0], "B": values[1]} | each
    return found


def label(side: list[System]) -> str:
    """One side's name."""
    return one_line(side[0].name) + (f" and {len(side) - 1} more" if len(side) > 1 else "")


def sentence(score: str, found: dict) -> str:
    """What was found of a score, in words."""
    scores = " against ".join(f"{side} {spread(found[side])}" for side in "AB")
    gain, p = found["difference"], found["p"]
    ends = found["interval"] or [gain, gain]
    if p is None or p >= CHANCE:
        over = "seeds" if len(found["A"]) > 1 else "photos"
        verdict = f"these {over} do not tell them apart; B − A is"
        amount, ends = f"{gain:+.3f}", [f"{end:+.3f}" for end in ends]
    else:
        verdict = f"{'B' if gain > 0 else 'A'} is better by"
        amount = f"{abs(gain):.3f}"
        ends = [f"{end:.3f}" for end in (ends if gain > 0 else [-ends[1], -ends[0]])]
    how = []
    if found["interval"]:
        how.append(f"95 % interval {ends[0]} to {ends[1]}")
    how.append("too few to test" if p is None else "p < .001" if p < 0.001 else f"p = {p:.3f}")
    return f"{score}: {scores}; {verdict} {amount} ({', '.join(how)})"


def spread(scores: list[float]) -> str:
    """A score, or of several seeds mean, standard deviation and number."""
    if len(scores) == 1:
        return f"{scores[0]:.3f}"
    return f"{np.mean(scores):.3f} ± {np.std(scores, ddof=1):.3f} ({len(scores)} seeds)"


def mean_cider(side: list[dict]) -> np.ndarray:
    """Each photo's CIDEr, (N,), the mean over the seeds."""
    return np.mean([measures["CIDEr"].each for measures in side], axis=0)


def greatest(sides: list[list[System]], image_ids: list, gains: np.ndarray) -> list[dict]:
    """The photos on which B gains or loses most, with what each side's first system says."""
    found = []
    for i in np.argsort(-np.abs(gains), kind="stable"):
        first, second = (as_written(side[0].captions[image_ids[i]]) for side in sides)
        if gains[i] or first != second:
            found.append({"image": image_ids[i], "gain": float(gains[i]), "A": first, "B": second})
    return found[:PHOTOS]


def write(folder: Path, names: list[str], found: dict, photos: list[dict]) -> None:
    """Write comparison.json."""
    content = {"A": names[0], "B": names[1], "scores": found, "photos": photos}
    target = folder / "comparison.json"
    write_json(target, content)
    print(f"\nwrote {target}")


def draw(args, names: list[str], found: dict, gains: np.ndarray, photos: list[dict]) -> None:
    """Draw the differences, and where they are there, the photos with both captions."""
    from captioning.plots import draw_captions, draw_differences

    target = args.output_dir / "differences.png"
    draw_differences(found, gains, names, target)
    print(f"wrote {target}: each score's difference, and CIDEr's photo by photo")
    if not photos:
        print("no photos.png: A and B differ on none")
        return
    paths, folder = {}, args.images_dir
    if folder.is_dir():
        paths = {coco_id(p.relative_to(folder).as_posix()): p for p in images_below(folder)}
    if missing := [each["image"] for each in photos if each["image"] not in paths]:
        why = f"{one_line(missing[0])} is not in {folder}"
        cli.log(f"no photos.png: {why}. Name the photos' folder with --images_dir.")
        return
    items = [
        (paths[each["image"]], [f"CIDEr {each['gain']:+.2f}", *lines_of(each)]) for each in photos
    ]
    draw_captions(items, args.output_dir / "photos.png")
    print(f"wrote {args.output_dir / 'photos.png'}: where A and B differ most")


def lines_of(photo: dict) -> list[str]:
    """What each side says of a photo."""
    return [f"{side}: {photo[side]}" for side in "AB"]


if __name__ == "__main__":
    cli.run(main)
