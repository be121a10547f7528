"""The page: what it shows of captions and words, and what it lets in and out."""

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from unittest import mock

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import (
    CONFIGS,
    EACH,
    EXAMPLES,
    PATIENCE,
    ROOT,
    look_somewhere,
    random_features,
    run_here,
    run_script,
    serving,
    untrained,
)

import app
from captioning.encoders import Encoder
from captioning.files import InputError
from model import Captioner

# -- what is shown ---------------------------------------------------------------------------------


@EACH
@pytest.mark.parametrize("beam_size", [1, 4])
def test_the_words_make_the_caption_s_probability(config, beam_size):
    """That of one pass over the whole caption is the one that the search added up."""
    captioner = untrained(config, seed=3)
    features = random_features(1, config)
    captioner.encoder = mock.Mock(encode=lambda pixels: features)
    captions, words, probabilities, weights = captioner.explain(np.zeros((2, 2, 3)), beam_size)
    assert captions == captioner.decode(features, beam_size)[0]
    caption, score, *_ = captions[0]
    ended = len(caption.split()) < config.max_length
    assert words == caption.split() + ["<end>"] * ended
    assert np.log(probabilities).sum() == pytest.approx(score, abs=1e-4)
    ids = np.array([captioner.vocabulary.encode(caption)[: len(words) + 1]])
    logits = captioner.decoder.network([features, ids[:, :-1]])[0]  # (T, V)
    shares = tf.nn.softmax(logits).numpy()[np.arange(len(words)), ids[0, 1:]]
    np.testing.assert_allclose(probabilities, shares, rtol=1e-3)
    assert (weights is None) == (config.decoder != "updown")


@pytest.fixture
def attentive(tmp_path) -> Captioner:
    """A captioner from a file, whose words look somewhere; untrained ones look everywhere alike."""
    encoder = Encoder("efficientnet_lite0", kind="grid")
    sizes = {"feature_size": encoder.features_shape[-1], "weights_hash": encoder.weights_hash}
    captioner = untrained(dataclasses.replace(CONFIGS["updown"], **sizes))
    look_somewhere(captioner)
    captioner.save(tmp_path / "m.h5")
    return Captioner.load(tmp_path / "m.h5")


def test_what_the_page_shows_of_each_word(attentive):
    pixels = np.full((384, 384, 3), 200, np.uint8)
    description = app.describe(attentive, pixels, beam_size=3, num_captions=2)
    assert description == json.loads(json.dumps(description))
    assert len(description["captions"]) == 2
    words, (_, _, _, weights) = description["words"], attentive.explain(pixels, 3)
    told = [np.ravel(entry["attention"]) for entry in words]
    np.testing.assert_allclose(told, weights, atol=1e-4)
    scored, pictures = app.scored_words(description), app.looks(description, pixels)
    for entry, text, (picture, word) in zip(words, scored, pictures, strict=True):
        probability = entry["probability"]
        assert (f"{word} {100 * probability:.0f}%", probability) == text
        assert word == entry["word"]
        cells = picture.reshape(6, 64, 6, 64, 3)
        assert (np.ptp(cells, axis=(1, 3, 4)) == 0).all()  # each cell in one shade
        light = cells[:, 0, :, 0, 0].ravel()
        order = np.argsort(entry["attention"], axis=None)
        assert (np.diff(light[order].astype(int)) >= 0).all()  # where it looked least, darkest
        assert light.min() < 60 < light.max() == 200


def test_where_words_looked_is_where_the_network_looked(attentive):
    pixels = np.full((384, 384, 3), 200, np.uint8)
    (caption, *_), words, _, weights = attentive.explain(pixels, 2)
    decoder, features = attentive.decoder, attentive.encoder.encode(pixels[None])
    network = keras.Model(decoder.network.inputs, decoder.recurrence.output[2])
    tokens = np.array([attentive.vocabulary.encode(caption.text)[: len(words)]])
    np.testing.assert_allclose(weights, network([features, tokens])[0], atol=1e-4)
    assert np.ptp(weights) > 0.05


def test_shares_are_those_of_the_rankings_however_low():
    captions = [{"caption": "a dog", "ranking": -1000.0}, {"caption": "a", "ranking": -1001.0}]
    share = 1 / (1 + np.exp(-1))
    assert app.shares({"captions": captions}) == pytest.approx({"a dog": share, "a": 1 - share})


# -- in and out ------------------------------------------------------------------------------------

TRIES = """
import socket, app
app.stay_local("localhost")
with socket.create_server(("127.0.0.1", 0)) as server:
    socket.create_connection(server.getsockname(), 5).close()
for address in (("192.0.2.1", 80), ("example.invalid", 80)):
    try:
        socket.create_connection(address, 5)
    except PermissionError as error:
        print(error)
"""


def test_other_machines_are_not_asked():
    assert run_script("-c", TRIES).stdout == 2 * "this page makes no outbound connections\n"


def test_places_where_nothing_can_listen():
    done = run_here("app.py", "--port", 65536, code=2)
    assert "65536 is not between 1 and 65535" in done.stderr
    with pytest.raises(InputError, match=r"--host nowhere\.invalid: no such address\. Use 127"):
        app.stay_local("nowhere.invalid")


META = {"meta": {"_type": "gradio.FileData"}}


def uploaded(url: str, content: bytes) -> dict:
    import httpx

    (path,) = httpx.post(f"{url}/gradio_api/upload", files={"files": ("x.jpg", content)}).json()
    return {"path": path, **META}


def ask(url: str, photo: dict, *sizes) -> tuple[str, object]:
    """By HTTP alone, as no well-behaved client would: the last event, and what comes with it."""
    import httpx

    api = f"{url}/gradio_api/call/caption"
    answer = httpx.post(api, json={"data": [photo, *sizes]})
    stream = httpx.get(f"{api}/{answer.json()['event_id']}", timeout=PATIENCE).text
    event, data = stream.strip().splitlines()[-2:]
    return event.removeprefix("event: "), json.loads(data.removeprefix("data: "))


@pytest.mark.long
def test_several_programs_at_once_get_each_its_own(page, said):
    names = list(said) * 3
    with ThreadPoolExecutor(6) as pool:
        photos = pool.map(lambda name: uploaded(page, (EXAMPLES / name).read_bytes()), names)
        answers = list(pool.map(lambda photo: ask(page, photo, 10, 2), photos))
    for name, (event, data) in zip(names, answers, strict=True):
        assert event == "complete"
        best, _ = data[0]["captions"]
        assert best["caption"] == said[name]
        product = np.prod([entry["probability"] for entry in data[0]["words"]])
        assert best["probability"] == pytest.approx(product, rel=1e-3)


@pytest.mark.long
def test_what_is_not_served(page):
    import httpx

    inside = str(EXAMPLES / "coffee.jpg")
    good = uploaded(page, (EXAMPLES / "coffee.jpg").read_bytes())
    for photo, beam_size, message in (
        (uploaded(page, b"no photo"), 3, "cannot be captioned: not a readable image"),
        (good, 99, "from 1 to 10"),
        (good, "many", "from 1 to 10"),
        ({"path": inside, **META}, 3, ""),
        ({"path": inside}, 3, ""),
        ({"path": "http://192.0.2.1/x.jpg", **META}, 3, ""),
        ({"url": "data:image/png;base64,AAAA", **META}, 3, ""),
        ({"path": "a" * 5000}, 3, ""),
    ):
        started = time.monotonic()
        event, data = ask(page, photo, beam_size, 1)
        assert event == "error"
        assert message in str(data)
        assert "/" not in str(data)  # nothing of where it lies here
        assert time.monotonic() - started < 30  # nobody was waited for

    large = {"files": ("x.jpg", bytes(21 * 10**6))}
    assert httpx.post(f"{page}/gradio_api/upload", files=large).status_code == 413
    past_the_queue = f"{page}/gradio_api/run/caption"
    answer = httpx.post(past_the_queue, json={"data": [good, 3, 1]}, timeout=PATIENCE)
    assert answer.status_code >= 400
    for path in (inside, "https://192.0.2.1/x.jpg"):
        assert httpx.get(f"{page}/gradio_api/file={path}").status_code == 403


@pytest.mark.long
def test_uploads_are_gone_when_it_is_stopped(tmp_path):
    pytest.importorskip("gradio", reason="Gradio is not installed (requirements-app.txt)")
    with serving(stop=signal.SIGTERM, env={**os.environ, "TMPDIR": str(tmp_path)}) as url:
        uploaded(url, b"private")
        (folder,) = tmp_path.glob("captions-*")
        assert folder.stat().st_mode & 0o077 == 0
        assert [path.read_bytes() for path in folder.rglob("x.jpg")] == [b"private"]
    assert not list(tmp_path.iterdir())


@pytest.mark.long
@pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")
def test_the_lines_for_programs_in_docs_page(page, said, tmp_path):
    shutil.copy(EXAMPLES / "coffee.jpg", tmp_path / "x.jpg")
    text = (ROOT / "docs" / "page.md").read_text().replace("http://127.0.0.1:7860", page)
    blocks = re.findall(r"```(bash|python)\n(.*?)```", text, re.S)
    assert {language for language, _ in blocks} == {"bash", "python"}
    for language, code in blocks:
        command = {"bash": ["bash", "-euc", code], "python": [sys.executable, "-c", code]}[language]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert said["coffee.jpg"] in done.stdout
