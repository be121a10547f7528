"""Flickr8k fetched from a server of our own: whole, broken, hostile, stopped half-way."""

import hashlib
import io
import os
import resource
import signal
import socket
import stat
import subprocess
import sys
import time
import zipfile

import pytest
from archive_server import Server
from helpers import ROOT, run_here

from captioning import cli, files
from captioning.captions import SPLIT_LISTS, SPLITS, read_captions
from data import download
from data.sample import write_sample

SCENES = 20
PHOTOS, TEXT = download.PHOTOS, download.TEXT


def zipped(files: dict[str, bytes], links: dict[str, str] | None = None) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
        for name, target in (links or {}).items():
            link = zipfile.ZipInfo(name)
            link.external_attr = (stat.S_IFLNK | 0o777) << 16
            archive.writestr(link, target)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def release(tmp_path_factory) -> dict[str, bytes]:
    """Two archives of the release's shape, with what else lies in them."""
    folder = tmp_path_factory.mktemp("drawn")
    write_sample(folder, SCENES, seed=3)
    captions, _ = read_captions(folder / "captions.txt")
    lines = [f"{i}#{n}\t{c} ." for i in captions for n, c in enumerate(captions[i])]
    texts = {name: (folder / name).read_bytes() for name in SPLIT_LISTS.values()}
    texts |= {"Flickr8k.token.txt": "\n".join(lines).encode(), "readme.txt": b"terms"}
    photos = {f"Flicker8k_Dataset/{p.name}": p.read_bytes() for p in folder.glob("Images/*")}
    photos |= {"Flicker8k_Dataset/": b"", "__MACOSX/._Flicker8k_Dataset": b"?"}
    return {TEXT: zipped(texts), PHOTOS: zipped(photos)}


@pytest.fixture
def server(release, monkeypatch):
    server = Server(release, PHOTOS)
    expect(monkeypatch, release)
    monkeypatch.setenv("no_proxy", "*")
    yield server
    server.stop()
    socket.setdefaulttimeout(None)


def expect(monkeypatch, archives: dict[str, bytes]) -> None:
    """Let these archives, and no others, be the right ones."""
    sums = {name: hashlib.md5(content).hexdigest() for name, content in archives.items()}
    monkeypatch.setattr(download, "CHECKSUMS", sums)


@pytest.fixture
def fetch(server, tmp_path, monkeypatch, capsys):
    """Runs the script as its command line would, and returns what it says; `fetch.folder`."""

    def run(code: int = 0, url: str | None = None) -> str:
        arguments = ["--output_dir", str(run.folder), "--base_url", url or server.url]
        monkeypatch.setattr(sys, "argv", ["data/download.py", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.run(download.main)
        said = capsys.readouterr()
        assert ended.value.code == code, said
        return said.err if code else said.out

    run.folder = tmp_path / "flickr8k"
    return run


def everything(folder) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def complete(release) -> dict[str, bytes]:
    """What a finished download leaves, and nothing beside it."""
    files = {}
    for content in release.values():
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            files |= {n: archive.read(n) for n in archive.namelist() if not n.endswith("/")}
    for name in ("readme.txt", "__MACOSX/._Flicker8k_Dataset"):
        del files[name]
    return {n.replace("Flicker8k_Dataset", "Images"): content for n, content in files.items()}


# -- the whole way -----------------------------------------------------------------------------


def test_what_is_downloaded_can_be_preprocessed(fetch, complete, tmp_path):
    said = fetch()
    assert f"is complete: {SCENES} photos" in said
    assert f"python preprocess.py --dataset_dir {fetch.folder}" in said
    assert everything(fetch.folder) == complete
    folders = ("--dataset_dir", fetch.folder, "--output_dir", tmp_path / "data")
    done = run_here("preprocess.py", *folders, "--encoder", "efficientnet_lite0")
    assert "splits: lists" in done.stdout
    images = {line.split()[0]: line.split()[1] for line in done.stdout.splitlines()[1:4]}
    assert images == dict(zip(SPLITS, ("16", "2", "2"), strict=True))


def test_a_second_run_downloads_nothing(fetch, server, complete):
    fetch()
    assert server.asked == [TEXT, PHOTOS]
    assert "nothing was downloaded" in fetch()
    assert server.asked == [TEXT, PHOTOS]
    assert everything(fetch.folder) == complete


def test_only_what_is_missing_is_fetched_and_nothing_is_overwritten(fetch, server, complete):
    fetch()
    mine = fetch.folder / SPLIT_LISTS["train"]
    mine.write_text("my own\n")
    (fetch.folder / "Flickr8k.token.txt").unlink()
    (fetch.folder / "Images").rename(fetch.folder / "Flicker8k_Dataset")  # as unpacked by hand
    fetch()
    assert server.asked == [TEXT, PHOTOS, TEXT]
    assert mine.read_text() == "my own\n"
    assert (fetch.folder / "Flickr8k.token.txt").read_bytes() == complete["Flickr8k.token.txt"]


def test_archives_placed_by_hand_need_no_network(fetch, server, release, complete):
    fetch.folder.mkdir()
    for name, content in release.items():
        (fetch.folder / name).write_bytes(content)
    fetch(url="http://127.0.0.1:1/nobody")
    assert server.asked == []
    assert everything(fetch.folder) == complete


# -- faults ------------------------------------------------------------------------------------


def broken(server):
    server.share = 0.6


def silent(server):
    server.share = 0.6
    server.may_hang_up.clear()


def changed(server):
    content = server.archives[PHOTOS]
    server.archives[PHOTOS] = content[:500] + bytes([content[500] ^ 1]) + content[501:]


def gone(server):
    del server.archives[PHOTOS]


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (broken, "the connection ended after"),
        (silent, "timed out"),
        (changed, "its MD5 sum is another"),
        (gone, "Not Found"),
    ],
)
def test_a_fault_of_the_server_is_told_and_mended_by_another_run(
    fetch, server, release, complete, monkeypatch, spoil, reason
):
    monkeypatch.setattr(download, "SILENCE", 0.5)
    spoil(server)
    said = fetch(code=1)
    assert reason in said
    assert f"from {download.RELEASE}/ in {fetch.folder}" in said  # by hand
    assert set(everything(fetch.folder)) == set(download.TEXT_FILES)
    server.archives, server.share = release, 1.0
    fetch()
    assert everything(fetch.folder) == complete


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "http://nowhere.invalid/x", "no-address"])
def test_an_address_that_is_not_there(fetch, url):
    said = fetch(code=1, url=url)
    assert f"error: {url}/{TEXT} could not be downloaded (" in said
    assert everything(fetch.folder) == {}


TRICKS = {
    "Flicker8k_Dataset/../../escaped.jpg": b"!",
    "/tmp/escaped.jpg": b"!",
    "Flicker8k_Dataset\\..\\..\\escaped.jpg": b"!",
}


def test_nothing_of_an_archive_leaves_the_folder(fetch, server, complete, tmp_path, monkeypatch):
    good = {"Flicker8k_Dataset/a.jpg": complete["Images/scene_0000.jpg"]}
    server.archives[PHOTOS] = zipped(good | TRICKS, {"Flicker8k_Dataset/link.jpg": "/etc/passwd"})
    expect(monkeypatch, server.archives)
    fetch()
    left = everything(tmp_path)
    assert all(name.startswith(("flickr8k/Images/", "flickr8k/Flickr")) for name in left)
    assert left["flickr8k/Images/a.jpg"] == good["Flicker8k_Dataset/a.jpg"]
    assert not any(path.is_symlink() for path in tmp_path.rglob("*"))


@pytest.mark.parametrize(
    ("content", "reason"),
    [(zipped({}), "it holds no Flicker8k_Dataset"), (b"text", "not a zip file")],
    ids=["nothing", "no zip"],
)
def test_an_archive_without_photos_is_refused(
    fetch, server, tmp_path, monkeypatch, content, reason
):
    server.archives[PHOTOS] = content
    expect(monkeypatch, server.archives)
    said = fetch(code=1)
    assert reason in said
    assert f"{download.RELEASE}/" in said
    assert set(everything(tmp_path)) == {f"flickr8k/{name}" for name in download.TEXT_FILES}


def test_something_else_where_the_photos_belong(fetch, server):
    (fetch.folder / "Images").mkdir(parents=True)
    (fetch.folder / "Images" / "notes.txt").touch()
    assert "Images holds no photos but other files. Remove it" in fetch(code=1)
    assert server.asked == []


def test_folders_that_cannot_be_written(fetch, tmp_path):
    fetch.folder = tmp_path / "file" / "flickr8k"
    (tmp_path / "file").touch()
    assert f"cannot write {fetch.folder / TEXT}: Not a directory. " in fetch(code=1)


# -- full disks and stops ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "doing"), [(50_000, "could not be downloaded"), (900, "cannot unpack")]
)
def test_a_full_disk(fetch, server, release, complete, size, doing):
    fetch.folder.mkdir()
    for name in download.TEXT_FILES:
        (fetch.folder / name).write_bytes(complete[name])
    if doing == "cannot unpack":
        (fetch.folder / PHOTOS).write_bytes(release[PHOTOS])
    before = everything(fetch.folder)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))  # a full disk, nearly
    try:
        said = fetch(code=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert doing in said
    assert "File too large" in said
    assert everything(fetch.folder) == before
    fetch()
    assert everything(fetch.folder) == complete


def at_the_tenth(do):
    """A way to extract that calls `do` half-way: the first four files are the texts."""
    extract, calls = zipfile.ZipFile.extract, []

    def extract_or_stop(*arguments):
        calls.append(arguments)
        if len(calls) == 10:
            do()
        return extract(*arguments)

    return extract_or_stop


def test_ctrl_c_leaves_nothing_half(fetch, complete, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(zipfile.ZipFile, "extract", at_the_tenth(lambda: signal.raise_signal(2)))
        assert fetch(code=cli.INTERRUPTED).endswith("stopped.\n")
    assert set(everything(fetch.folder)) == {*download.TEXT_FILES, PHOTOS}
    fetch()
    assert everything(fetch.folder) == complete


def test_half_an_archive_is_fetched_again(fetch, server, release, complete):
    fetch.folder.mkdir()
    (fetch.folder / PHOTOS).write_bytes(release[PHOTOS][:5000])
    fetch()
    assert server.asked == [TEXT, PHOTOS]
    assert everything(fetch.folder) == complete


IN_A_PROCESS = """
import signal, zipfile
from captioning import cli
from data import download
from test_download import at_the_tenth
download.CHECKSUMS = {sums}
zipfile.ZipFile.extract = at_the_tenth(lambda: signal.raise_signal(signal.SIGKILL))
cli.run(download.main)
"""


@pytest.mark.parametrize("moment", ["unpacking", pytest.param("fetching", marks=pytest.mark.long)])
def test_killed_and_repeated(fetch, server, complete, moment):
    if moment == "fetching":
        silent(server)
    code = IN_A_PROCESS.format(sums=download.CHECKSUMS)
    arguments = ["--output_dir", str(fetch.folder), "--base_url", server.url]
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"},
    )
    while moment == "fetching" and PHOTOS not in server.asked:
        assert process.poll() is None
        time.sleep(0.01)
    if moment == "fetching":
        process.kill()
    assert process.wait(120) == -signal.SIGKILL
    left = everything(fetch.folder)
    assert left.keys() > {*download.TEXT_FILES, PHOTOS} or moment == "fetching"
    assert not any(name.startswith("Images") for name in left)
    server.share = 1.0
    for abandoned in fetch.folder.glob(".partial-*"):
        os.utime(abandoned, (0, 0))
    files._remove_abandoned.cache_clear()  # as in another process
    fetch()
    assert everything(fetch.folder) == complete
    assert server.asked.count(PHOTOS) == (2 if moment == "fetching" else 1)
