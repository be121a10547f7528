"""Fetch Flickr8k: 8,091 photos with five captions each, 1.1 GB, and the official split lists.

Reads   Flickr8k_text.zip and Flickr8k_Dataset.zip from BASE_URL, and checks their MD5 sums.
Writes  OUTPUT_DIR/Images/, Flickr8k.token.txt and Flickr_8k.{train,dev,test}Images.txt. Only what
        is missing is fetched, each appears when it is whole, and the archives are then removed.

  python data/download.py

By hand: place BASE_URL's two archives in OUTPUT_DIR and run this, or unpack them there yourself.
The photos belong to their authors on Flickr; the set is for research, not for redistribution."""

import hashlib
import http.client
import shutil
import sys
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from captioning import cli
from captioning.dataset import IMAGE_FOLDERS, SPLIT_LISTS
from captioning.files import InputError, atomic_path, is_file, one_line
from captioning.images import list_images

RELEASE = "https://github.com/jbrownlee/Datasets/releases/download/Flickr8k"
TEXT, PHOTOS = "Flickr8k_text.zip", "Flickr8k_Dataset.zip"
CHECKSUMS = {  # MD5
    TEXT: "bf6c1abcb8e4a833b7f922104de18627",
    PHOTOS: "f18a1e2920de5bd84dae7cf08ec78978",
}
BLOCK = 2**20  # bytes read at once
TEXT_FILES = ("Flickr8k.token.txt", *SPLIT_LISTS.values())
PHOTO_FOLDER = "Flicker8k_Dataset"  # spelt so in the archive
SILENCE = 60  # seconds without a byte, after which the server is given up


def main() -> None:
    """Fetch and unpack each archive of which something is missing."""
    parser = cli.parser(__doc__)
    add = parser.add_argument
    add("--output_dir", type=Path, default="data/flickr8k", help="where the data set goes")
    add("--base_url", default=RELEASE, help="where the two archives lie, for a mirror")
    args = parser.parse_args()
    needed = missing(args.output_dir)
    for archive, contents in needed.items():
        path = fetch(archive, args.base_url, args.output_dir)
        unpack(path, contents, args.output_dir)
        path.unlink()
    photos = sum(len(list_images(folder)) for folder in photo_folders(args.output_dir))
    done = "is complete" if needed else "is complete already, nothing was downloaded"
    print(f"{args.output_dir} {done}: {photos} photos, captions and split lists")
    options = "--encoder efficientnet_lite0 --features layers"  # whose weights are here already
    print(f"next: python preprocess.py --dataset_dir {args.output_dir} {options}")


def photo_folders(folder: Path) -> list[Path]:
    """Those of the photos' folders, under any of their names, that are there."""
    return [folder / name for name in IMAGE_FOLDERS if (folder / name).is_dir()]


def missing(folder: Path) -> dict[str, dict[str, str]]:
    """What is to be taken from each archive, and the name that it gets in `folder`.

    Raises InputError if something else is where the photos belong.
    """
    wanted = {TEXT: {name: name for name in TEXT_FILES if not is_file(folder / name)}}
    if not any(map(list_images, photo_folders(folder))):
        images = folder / IMAGE_FOLDERS[0]
        if images.is_dir() and any(images.iterdir()):
            raise InputError(f"{images} holds no photos but other files. Remove it and try again.")
        wanted[PHOTOS] = {PHOTO_FOLDER: IMAGE_FOLDERS[0]}
    return {archive: contents for archive, contents in wanted.items() if contents}


def fetch(archive: str, base_url: str, folder: Path) -> Path:
    """Download an archive into `folder`, unless it lies there whole.

    Raises InputError, leaving nothing behind, if it cannot be written or downloaded, or if its MD5
    sum is another.
    """
    path, url = folder / archive, f"{base_url.rstrip('/')}/{archive}"
    if is_file(path):
        with path.open("rb") as file:
            if hashlib.file_digest(file, "md5").hexdigest() == CHECKSUMS[archive]:
                return path
        cli.log(f"{path} is damaged, or another file: it is fetched anew.")
    cli.log(f"fetching {url}")
    digest = hashlib.md5()
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        try:
            for block in blocks(url, archive):
                digest.update(block)
                file.write(block)
            if digest.hexdigest() != CHECKSUMS[archive]:
                raise ValueError("its MD5 sum is another: it is damaged, or another file")
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise InputError(
                f"{one_line(url)} could not be downloaded ({one_line(error)}). Try again, or by "
                f"hand:\nplace {archive} from {RELEASE}/ in {folder} and run this again, or unpack "
                f"it there. The whole takes 2.3 GB while it is unpacked."
            ) from error
    return path


def blocks(url: str, title: str) -> Iterator[bytes]:
    """What is at `url`, in blocks, with a bar; OSError, ValueError or HTTPException if not all."""
    with urllib.request.urlopen(url, timeout=SILENCE) as response:
        size = int(response.headers.get("Content-Length") or 0)
        with cli.progress(size, "B", title) as bar:
            while block := response.read(BLOCK):
                yield block
                bar.update(len(block))
            if bar.n < size:
                raise OSError(f"the connection ended after {bar.n} of {size} bytes")


def unpack(path: Path, contents: dict[str, str], folder: Path) -> None:
    """Unpack the files or folders named in `contents`; each appears in `folder` when it is whole.

    Raises InputError if the archive is not fit for it, and is removed then; or if the disk is full.
    """
    staging = folder / ".unpacking"
    shutil.rmtree(staging, ignore_errors=True)  # a killed run's
    try:
        with zipfile.ZipFile(path) as archive:  # which keeps every path inside the folder
            members = [m for m in archive.infolist() if m.filename.split("/")[0] in contents]
            with cli.progress(len(members), "files", f"unpacking {path.name}") as bar:
                for member in members:
                    archive.extract(member, staging)
                    bar.update()
        for name, target in contents.items():
            if not (staging / name).exists():
                raise zipfile.BadZipFile(f"it holds no {name}")
            (staging / name).replace(folder / target)
    except zipfile.BadZipFile as error:
        path.unlink()
        raise InputError(
            f"{path.name} is not fit to be unpacked and was removed ({error}). Get it from\n"
            f"{RELEASE}/ without --base_url, or unpack it into {folder} by hand."
        ) from error
    except OSError as error:
        raise InputError(
            f"cannot unpack {path}: {error.strerror or one_line(error)}. Free 1.2 GB, or name "
            f"another place, and run this again."
        ) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


if __name__ == "__main__":
    cli.run(main, "The same command fetches what is missing.")
