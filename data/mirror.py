"""Double a data set's training photos by their mirror images: a captioner that is trained on both
knows the photos less by heart. The captions stay, but that left is right and right is left.

Reads   DATASET_DIR: photos, captions and split lists, as preprocess.py finds them.
Writes  OUTPUT_DIR: Images/ with links to the photos and, in mirrored/, the mirror images;
        captions.txt and the three split lists. Dev and test stay as they are.

  python data/mirror.py --dataset_dir data/flickr8k --output_dir data/flickr8k_mirrored
  python preprocess.py --dataset_dir data/flickr8k_mirrored --min_word_count 10

Each word is then seen twice as often, and an epoch is twice as long: double --min_word_count, and
halve --epochs."""

import csv
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from PIL import ImageOps

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from captioning import cli
from captioning.dataset import (
    SPLIT_LISTS,
    check_splits,
    find_dataset,
    random_splits,
    read_captions,
    read_split_lists,
)
from captioning.files import InputError, atomic_path
from captioning.images import read_image, upright

FOLDER = "mirrored"
SIDES = {"left": "right", "right": "left"}
QUALITY = 95  # of the mirror images' JPEG


def main() -> None:
    """Link, mirror, and write captions and lists."""
    parser = cli.parser(__doc__)
    add = parser.add_argument
    add("--dataset_dir", type=Path, default="data/flickr8k", help="photos, captions, split lists")
    why = "where the doubled data set goes"
    add("--output_dir", type=Path, default="data/flickr8k_mirrored", help=why)
    add("--seed", type=cli.seed, default=0, help="of a random split, where there are no lists")
    args = parser.parse_args()
    images_dir, captions_files = find_dataset(args.dataset_dir)
    if args.output_dir.resolve() == args.dataset_dir.resolve():
        raise InputError("--output_dir is the data set itself: name another folder.")
    captions, splits = read_captions(captions_files, images_dir)
    splits = splits or read_split_lists(args.dataset_dir) or random_splits(captions, args.seed)
    check_splits(splits, captions)
    target = args.output_dir / "Images"
    mirrored = {}  # image id of the mirror image -> of the photo
    training = splits["train"]
    with ThreadPoolExecutor() as pool, cli.progress(len(training), "image") as bar:
        for image_id, error in zip(
            training, pool.map(partial(mirror, images_dir, target), training), strict=True
        ):
            bar.update()
            if error:
                cli.log(f"not mirrored: {error}")
            else:
                mirrored[mirror_id(image_id)] = image_id
    for image_id in (i for ids in splits.values() for i in ids):
        link(images_dir / image_id, target / image_id)
    rows = [(i, line) for ids in splits.values() for i in ids for line in captions[i]]
    rows += [(new, swap(line)) for new, image_id in mirrored.items() for line in captions[image_id]]
    with atomic_path(args.output_dir / "captions.txt") as path, path.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([("image", "caption"), *rows])
    splits["train"] = [*training, *mirrored]
    for split, image_ids in splits.items():
        with atomic_path(args.output_dir / SPLIT_LISTS[split]) as path:
            path.write_text("".join(f"{image_id}\n" for image_id in image_ids))
    print(f"{len(mirrored)} mirror images beside {len(training)} training photos")
    print(f"next: python preprocess.py --dataset_dir {args.output_dir} --min_word_count N")


def mirror_id(image_id: str) -> str:
    """The image id of a photo's mirror image."""
    return f"{FOLDER}/{image_id}.jpg"


def mirror(images_dir: Path, target: Path, image_id: str) -> str:
    """Write a photo's mirror image; returns what is wrong with the photo, "" if nothing is."""
    try:
        turned = read_image(
            images_dir / image_id, lambda image, name: upright(image, name, ImageOps.mirror)
        )
    except InputError as error:
        return str(error)
    place = target / mirror_id(image_id)
    place.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(place) as path:
        turned.save(path, "JPEG", quality=QUALITY, subsampling=0)
    return ""


def link(photo: Path, place: Path) -> None:
    """Let `place` be the photo as well: a link where the file system has them, or a copy."""
    if place.exists() or not photo.is_file():  # preprocess.py names what is not there
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        place.symlink_to(photo.resolve())
    except OSError:
        shutil.copyfile(photo, place)


def swap(caption: str) -> str:
    """The same caption of the mirror image; of other meanings of the two words nothing is known."""
    return " ".join(SIDES.get(word, word) for word in caption.split())


if __name__ == "__main__":
    cli.run(main)
