"""Fetch Flickr8k's two archives and unpack what preprocess.py reads."""

import contextlib
import os
import shutil
import socket
import stat
import sys
import zipfile
from pathlib import Path, PurePosixPath

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from captioning import cli
from captioning.captions import SPLIT_LISTS
from captioning.encoders import list_images
from captioning.files import InputError, is_file, one_line
from preprocess import IMAGE_FOLDERS

RELEASE = "https://github.com/jbrownlee/Datasets/releases/download/Flickr8k"
TEXT, PHOTOS = "Flickr8k_text.zip", "Flickr8k_Dataset.zip"
CHECKSUMS = {  # MD5
    TEXT: "bf6c1abcb8e4a833b7f922104de18627",
    PHOTOS: "f18a1e2920de5bd84dae7cf08ec78978",
}
TEXT_FILES = ("Flickr8k.token.txt", *SPLIT_LISTS.values())
PHOTO_FOLDER = "Flicker8k_Dataset"  # spelt so in the archive
SILENCE = 60  # seconds without a byte, after which the server is given up

DESCRIPTION = f"""\
Fetch Flickr8k: 8,091 photos with five captions each, 1.1 GB, and the official split lists.

Reads   {TEXT} and {PHOTOS} from BASE_URL, and checks their MD5 sums.
Writes  OUTPUT_DIR/Images/, Flickr8k.token.txt and Flickr_8k.{{train,dev,test}}Images.txt. Only what
        is missing is fetched, each appears when it is whole, and the archives are then removed.

  python data/download.py

By hand: get the two archives from
{RELEASE}/
place them in OUTPUT_DIR and run this, or unpack them there yourself.

The photos belong to their authors on Flickr; the set is for research, not for redistribution."""


def main() -> None:
    """Fetch and unpack each archive of which something is missing."""
    parser = cli.parser(DESCRIPTION)
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
    print(f"next: python preprocess.py --dataset_dir {args.output_dir}")


def photo_folders(folder: Path) -> list[Path]:
    """Those of the photos' folders, under any of their names, that are there."""
    return [folder / name for name in IMAGE_FOLDERS if (folder / name).is_dir()]


def missing(folder: Path) -> dict[str, dict[str, str]]:
    """What is to be taken from each archive, and the name that it gets in `folder`.

    Raises:
        InputError: something else is where the photos belong.
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

    Raises:
        InputError: the folder cannot be written, or the archive not be had, or not as it should be;
            nothing of it is left.
    """
    path, url = folder / archive, f"{base_url.rstrip('/')}/{archive}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write {folder}: {error.strerror}. Name another place.") from error
    if not os.access(folder, os.W_OK):  # Keras would write to /tmp and say nothing
        raise InputError(f"cannot write {folder}. Mend its permissions, or name another place.")
    cli.load_tensorflow()
    import keras

    cli.log(f"fetching {url}")
    socket.setdefaulttimeout(SILENCE)
    try:
        with (
            Path(os.devnull).open("w") as nowhere,
            # Keras' bar knows only terminals: a log would get twenty lines a second.
            contextlib.redirect_stdout(sys.stderr if sys.stderr.isatty() else nowhere),
        ):
            keras.utils.get_file(
                archive,
                url,
                cache_dir=folder,
                cache_subdir="",
                file_hash=CHECKSUMS[archive],
                hash_algorithm="md5",
            )
    except Exception as error:  # Keras raises a bare Exception when its download fails
        reason = one_line(str(error).rsplit(" -- ")[-1])
        if path.exists():  # Keras leaves only what it has downloaded to the end
            reason = f"its MD5 sum is not {CHECKSUMS[archive]}: it is damaged, or another file"
            path.unlink()
        raise InputError(
            f"{one_line(url)} could not be had ({reason}). Try again, or by hand:\nplace {archive} "
            f"from {RELEASE}/ in {folder} and run this again, or unpack it there. The whole takes "
            f"2.3 GB while it is unpacked."
        ) from error
    return path


def unpack(path: Path, contents: dict[str, str], folder: Path) -> None:
    """Unpack the files or folders named in `contents`; each appears in `folder` when it is whole.

    Keras' own extraction would leave out a path that leads elsewhere and go on, and a stopped one
    would leave a folder that looks whole.

    Raises:
        InputError: the archive is not fit to be unpacked, and is removed; or the disk is full.
    """
    staging = folder / ".unpacking"
    shutil.rmtree(staging, ignore_errors=True)  # a killed run's
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            check_members(members)
            members = [m for m in members if PurePosixPath(m.filename).parts[:1][0] in contents]
            with cli.progress(len(members), "files", f"unpacking {path.name}") as bar:
                for member in members:
                    archive.extract(member, staging)
                    bar.update()
        for name in contents:
            if not (staging / name).exists():
                raise zipfile.BadZipFile(f"it holds no {name}")
        os.sync()  # or after a power failure a file could be there, but empty
        for name, target in contents.items():
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


def check_members(members: list[zipfile.ZipInfo]) -> None:
    """Refuse an archive with links, or with paths that could lead out of the folder.

    Raises:
        zipfile.BadZipFile: naming the first of them.
    """
    for member in members:
        parts = PurePosixPath(member.filename.replace("\\", "/")).parts
        link = stat.S_ISLNK(member.external_attr >> 16)
        if link or not parts or parts[0] == "/" or ".." in parts:
            kind = "link" if link else "path that could lead elsewhere"
            raise zipfile.BadZipFile(f"{one_line(member.filename)!r} is a {kind}")


if __name__ == "__main__":
    cli.run(main, "The same command fetches what is missing.")
