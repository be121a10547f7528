"""Flickr8k fetched from a server of our own: whole, broken, hostile, stopped half-way."""

import hashlib
import io
import os
import resource
import sys
import threading
import time
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers import run_here, run_script

from captioning import cli, files
from captioning.dataset import SPLIT_LISTS, read_captions
from data import download
from data.sample import write_sample

PHOTOS, TEXT = download.PHOTOS, download.TEXT


def everything(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def zipped(contents: dict) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict[str, bytes]:
    """What a finished download leaves, and nothing beside it."""
    folder = tmp_path_factory.mktemp("drawn")
    write_sample(folder, scenes=20, seed=3)
    captions, _ = read_captions(folder / "captions.txt")
    (folder / "captions.txt").unlink()
    lines = [f"{i}#{n}\t{c} ." for i in captions for n, c in enumerate(captions[i])]
    return everything(folder) | {"Flickr8k.token.txt": "\n".join(lines).encode()}


@pytest.fixture(scope="module")
def release(whole) -> dict[str, bytes]:
    """Two archives of the release's shape, with what else lies in them."""
    texts = {name: content for name, content in whole.items() if "/" not in name}
    photos = {"Flicker8k_Dataset/": b"", "__MACOSX/._Flicker8k_Dataset": b"?"}
    for name in whole.keys() - texts.keys():
        photos[name.replace("Images", "Flicker8k_Dataset")] = whole[name]
    return {TEXT: zipped(texts | {"readme.txt": b"terms"}), PHOTOS: zipped(photos)}


@pytest.fixture
def server(release, monkeypatch):
    """Serves archives by name, notes what is asked for, and misbehaves when told to."""
    server = SimpleNamespace(archives=release, asked=[], share=1.0, silent=False)

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def do_GET(self):
            server.asked.append(Path(self.path).name)
            content = server.archives.get(server.asked[-1])
            if content is None:
                return self.send_error(404)
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: int(len(content) * server.share)])
            while server.silent:
                time.sleep(0.01)

    monkeypatch.setenv("no_proxy", "*")
    sums = {name: hashlib.md5(content).hexdigest() for name, content in release.items()}
    monkeypatch.setattr(download, "CHECKSUMS", sums)
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        server.url = f"http://127.0.0.1:{http.server_port}/release"
        threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.silent = False
        http.shutdown()


@pytest.fixture
def fetch(server, tmp_path, monkeypatch, capsys):
    """Runs the script as its command line would, and returns what it says."""

    def run(code: int = 0) -> str:
        arguments = ["--output_dir", str(run.folder), "--base_url", server.url]
        monkeypatch.setattr(sys, "argv", ["data/download.py", *arguments])
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (run.room, limits[1]))
        try:
            with pytest.raises(SystemExit) as ended:
                cli.run(download.main)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        said = capsys.readouterr()
        assert ended.value.code == code, said
        return said.err if code else said.out

    run.folder, run.room = tmp_path / "flickr8k", resource.RLIM_INFINITY
    return run


@pytest.fixture
def texts_are_there(fetch, whole):
    """The photos alone are still to be fetched."""
    fetch.folder.mkdir()
    for name in download.TEXT_FILES:
        (fetch.folder / name).write_bytes(whole[name])


# -- the whole way -----------------------------------------------------------------------------


def test_what_is_downloaded_can_be_preprocessed_and_is_not_fetched_again(
    fetch, server, whole, tmp_path
):
    said = fetch()
    assert "is complete: 20 photos" in said
    assert f"python preprocess.py --dataset_dir {fetch.folder}" in said
    assert everything(fetch.folder) == whole
    folders = ("--dataset_dir", fetch.folder, "--output_dir", tmp_path / "data")
    done = run_here("preprocess.py", *folders, "--encoder", "efficientnet_lite0")
    assert "splits: lists" in done.stdout
    assert [line.split()[1] for line in done.stdout.splitlines()[1:4]] == ["16", "2", "2"]
    assert "nothing was downloaded" in fetch()
    assert server.asked == [TEXT, PHOTOS]
    assert everything(fetch.folder) == whole


def test_only_what_is_missing_is_fetched_and_nothing_is_overwritten(fetch, server, whole):
    fetch()
    mine = fetch.folder / SPLIT_LISTS["train"]
    mine.write_text("my own\n")
    (fetch.folder / "Flickr8k.token.txt").unlink()
    (fetch.folder / "Images").rename(fetch.folder / "Flicker8k_Dataset")  # as unpacked by hand
    fetch()
    assert server.asked == [TEXT, PHOTOS, TEXT]
    assert mine.read_text() == "my own\n"
    assert (fetch.folder / "Flickr8k.token.txt").read_bytes() == whole["Flickr8k.token.txt"]


def test_archives_placed_by_hand_are_used_if_they_are_whole(fetch, server, release, whole):
    fetch.folder.mkdir()
    (fetch.folder / TEXT).write_bytes(release[TEXT])
    (fetch.folder / PHOTOS).write_bytes(release[PHOTOS][:5000])
    fetch()
    assert server.asked == [PHOTOS]
    assert everything(fetch.folder) == whole


# -- faults ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ({"url": "http://127.0.0.1:1"}, "Connection refused"),
        ({"archives": {}}, "Not Found"),
        ({"archives": {PHOTOS: zipped({})}}, "its MD5 sum is another"),
        ({"share": 0.6}, "the connection ended after"),
        ({"share": 0.6, "silent": True}, "timed out"),
    ],
)
def test_a_fault_of_the_server_is_told_and_mended_by_another_run(
    fetch, texts_are_there, server, whole, monkeypatch, fault, reason
):
    monkeypatch.setattr(download, "SILENCE", 0.5)
    good = vars(server).copy()
    vars(server).update(fault)
    said = fetch(code=1)
    assert f"{server.url}/{PHOTOS} could not be downloaded (" in said
    assert reason in said
    assert f"place {PHOTOS} from {download.RELEASE}/ in {fetch.folder}" in said
    assert set(everything(fetch.folder)) == set(download.TEXT_FILES)
    vars(server).update(good)
    fetch()
    assert everything(fetch.folder) == whole


@pytest.mark.parametrize("doing", ["could not be downloaded", "cannot unpack"])
def test_a_full_disk_is_told_and_mended_by_another_run(
    fetch, texts_are_there, release, whole, doing
):
    if doing == "cannot unpack":
        (fetch.folder / PHOTOS).write_bytes(release[PHOTOS])
    before = everything(fetch.folder)
    fetch.room = 900  # bytes
    said = fetch(code=1)
    assert doing in said
    assert "File too large" in said
    assert everything(fetch.folder) == before
    fetch.room = resource.RLIM_INFINITY
    fetch()
    assert everything(fetch.folder) == whole


def test_something_else_where_the_data_belongs(fetch, server):
    (fetch.folder / "Images").mkdir(parents=True)
    (fetch.folder / "Images" / "notes.txt").touch()
    assert "Images holds no photos but other files. Remove it" in fetch(code=1)
    fetch.folder = fetch.folder / "Images" / "notes.txt" / "flickr8k"
    assert f"cannot write {fetch.folder / TEXT}: Not a directory. " in fetch(code=1)
    assert server.asked == []


# -- stops -------------------------------------------------------------------------------------

STOPPED = """
import signal, zipfile
from http.client import HTTPResponse
from captioning import cli
from data import download

def stop_at_the_tenth(function, calls=[]):
    def call(*arguments):
        calls.append(arguments)
        if len(calls) == 10:
            signal.raise_signal(signal.{stop})
        return function(*arguments)
    return call

download.CHECKSUMS, download.BLOCK = {sums}, 5000
{place} = stop_at_the_tenth({place})
cli.run(download.main)
"""
FETCHING, UNPACKING = "HTTPResponse.read", "zipfile.ZipFile.extract"


@pytest.mark.parametrize(
    ("place", "stop", "code"),
    [
        (FETCHING, "SIGKILL", -9),
        (UNPACKING, "SIGKILL", -9),
        (UNPACKING, "SIGINT", 130),
    ],
    ids=["killed fetching", "killed unpacking", "ctrl-c"],
)
def test_stopped_and_repeated(fetch, texts_are_there, server, whole, place, stop, code):
    script = STOPPED.format(sums=download.CHECKSUMS, place=place, stop=stop)
    arguments = ("--output_dir", fetch.folder, "--base_url", server.url)
    done = run_script("-c", script, *arguments, code=code)
    left = everything(fetch.folder).keys() - whole.keys()
    assert not any(name.startswith("Images") for name in left)
    assert (PHOTOS in left) == (place == UNPACKING)
    if stop == "SIGINT":
        assert done.stderr.endswith("stopped.\n")
        assert left == {PHOTOS}
    for abandoned in fetch.folder.glob(".partial-*"):
        os.utime(abandoned, (0, 0))
    files._remove_abandoned.cache_clear()  # as in another process
    fetch()
    assert everything(fetch.folder) == whole
    assert server.asked.count(PHOTOS) == (2 if place == FETCHING else 1)
