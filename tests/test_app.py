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

import numpy as np
import pytest
import tensorflow as tf
from helpers import (
    CONFIGS,
    EACH,
    EXAMPLES,
    PATIENCE,
    ROOT,
    random_features,
    run_script,
    serving,
    untrained,
)

import app
from captioning.encoders import Encoder
from ensemble import ensemble
from model import Captioner


def several(config, count: int) -> Captioner:
    """One captioner, or an ensemble of some."""
    captioners = [untrained(config, seed) for seed in range(3, 3 + count)]
    return captioners[0] if count == 1 else ensemble(captioners)


# -- the words' probabilities ----------------------------------------------------------------------


@EACH
@pytest.mark.parametrize("count", [1, pytest.param(3, marks=pytest.mark.long)])
def test_the_words_make_the_caption_s_probability(config, count):
    """That of one pass over the whole caption is the one that the search added up."""
    captioner = several(config, count)
    features = random_features(1, config)
    for caption, score in captioner.decode(features, beam_size=4)[0]:
        words, probabilities, weights = captioner.explain(features, caption)
        assert np.log(probabilities).sum() == pytest.approx(score, abs=1e-4)
        ended = len(caption.split()) < config.max_length
        assert words == caption.split() + ["<end>"] * ended
        if config.decoder == "attention":
            assert weights.shape == (len(words), 49)
            np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-5)
        else:
            assert weights is None


@pytest.mark.parametrize("count", [1, 3])
def test_where_words_looked_is_where_the_decoder_looked(count):
    """Word by word, from the state that decoding carries."""
    captioner = several(CONFIGS["attention"], count)
    decoder = captioner.decoder
    for member in decoder.members:  # untrained ones look everywhere alike
        member.keys.set_weights([100 * weights for weights in member.keys.get_weights()])
    features = random_features(1, captioner.config)
    caption = "w1 w7 w3"
    _, _, weights = captioner.explain(features, caption)
    state = decoder.init_state(features)
    for position, token in enumerate(captioner.vocabulary.encode(caption)[:-1]):
        _, state = decoder.step(tf.constant([token]), state)
        each = []
        for member, own in zip(decoder.members, state if count > 1 else [state], strict=True):
            hidden, _, (_, keys, _) = own
            each.append(tf.nn.softmax(tf.linalg.matvec(keys, member.query(hidden)))[0])  # (cells,)
        assert np.ptp(np.mean(each, axis=0)) > 0.05  # they do look somewhere
        np.testing.assert_allclose(weights[position], np.mean(each, axis=0), atol=1e-5)


def test_what_the_page_shows_of_a_description():
    grids = np.random.default_rng(0).random((2, 7, 7))
    words = [
        {"word": word, "probability": p, "attention": grid.tolist()}
        for word, p, grid in zip(["a", "dog"], [0.25, 0.5], grids, strict=True)
    ]
    captions = [{"caption": "a dog", "ranking": -1000.0}, {"caption": "a", "ranking": -1001.0}]
    description = {"captions": captions, "words": words}
    odds = np.exp(1)  # of rankings that differ by one, however low they are
    assert app.shares(description) == pytest.approx(
        {"a dog": odds / (1 + odds), "a": 1 / (1 + odds)}
    )
    assert app.scored_words(description) == [("a 25%", 0.25), ("dog 50%", 0.5)]

    pixels = np.full((224, 224, 3), 200, np.uint8)
    pictures = app.looks(description, pixels)
    assert [word for _, word in pictures] == ["a", "dog"]
    for grid, (picture, _) in zip(grids, pictures, strict=True):
        cells = picture.reshape(7, 32, 7, 32, 3)
        assert (np.ptp(cells, axis=(1, 3, 4)) == 0).all()  # each cell in one shade
        light = cells[:, 0, :, 0, 0].ravel()
        order = np.argsort(grid, axis=None)
        assert (np.diff(light[order].astype(int)) >= 0).all()  # where it looked least, darkest
        assert light.min() < 60 < light.max() == 200
    del words[0]["attention"], words[1]["attention"]
    assert app.looks(description, pixels) == []


def test_attention_from_a_model_s_file_to_the_page(tmp_path):
    """A model of an attention decoder, from its file to the page's pictures."""
    encoder = Encoder("efficientnet_lite0", kind="grid")
    config = dataclasses.replace(
        CONFIGS["attention"],
        feature_size=encoder.features_shape[-1],
        weights_hash=encoder.weights_hash,
    )
    untrained(config).save(tmp_path / "m.h5")
    captioner = Captioner.load(tmp_path / "m.h5")
    pixels = np.random.default_rng(0).integers(0, 256, (224, 224, 3), np.uint8)
    description = app.describe(captioner, pixels, beam_size=3, num_captions=2)
    assert len(description["captions"]) == 2
    assert description == json.loads(json.dumps(description))
    assert np.array(description["words"][0]["attention"]).shape == (7, 7)
    assert len(app.looks(description, pixels)) == len(description["words"])


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
    done = subprocess.run([sys.executable, "-c", TRIES], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == 2 * "this page makes no outbound connections\n", done.stderr


@pytest.mark.long
def test_places_where_nothing_can_listen():
    pytest.importorskip("gradio", reason="Gradio is not installed (requirements-app.txt)")
    done = run_script("app.py", "--host", "nowhere.invalid", code=1)
    assert "error: --host nowhere.invalid: no such address. Use 127.0.0.1" in done.stderr
    done = run_script("app.py", "--port", 65536, code=2)
    assert "65536 is not between 1 and 65535" in done.stderr


def client(url: str):
    from gradio_client import Client

    return Client(url, verbose=False)


@pytest.mark.long
def test_several_programs_at_once_get_each_its_own(page, said):
    from gradio_client import handle_file

    def ask(name: str) -> dict:
        return client(page).predict(handle_file(EXAMPLES / name), 3, 2, api_name="/caption")

    names = list(said) * 3
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(ask, names))
    for name, answer in zip(names, answers, strict=True):
        assert answer["captions"][0]["caption"] == said[name]
        assert len(answer["captions"]) == 2
        product = np.prod([entry["probability"] for entry in answer["words"]])
        assert answer["captions"][0]["probability"] == pytest.approx(product, rel=1e-3)


def ask_plainly(url: str, photo: dict, *sizes) -> str:
    """By HTTP alone, as no well-behaved client would: the event stream."""
    import httpx

    api = f"{url}/gradio_api/call/caption"
    answer = httpx.post(api, json={"data": [photo, *sizes]})
    return httpx.get(f"{api}/{answer.json()['event_id']}", timeout=PATIENCE).text


@pytest.mark.long
def test_what_is_not_served(page, tmp_path):
    from gradio_client import handle_file
    from gradio_client.exceptions import AppError

    (tmp_path / "x.jpg").write_bytes(b"no photo")
    for file, sizes, message in (
        (tmp_path / "x.jpg", (3, 1), "cannot be captioned: not a readable image"),
        (EXAMPLES / "coffee.jpg", (99, 1), "from 1 to 10"),
        (EXAMPLES / "coffee.jpg", (3, 0), "from 1 to 10"),
        (EXAMPLES / "coffee.jpg", ("many", 1), "from 1 to 10"),
    ):
        with pytest.raises(AppError, match=message) as refused:
            client(page).predict(handle_file(file), *sizes, api_name="/caption")
        assert "/" not in str(refused.value)

    meta = {"meta": {"_type": "gradio.FileData"}}
    inside = str(EXAMPLES / "coffee.jpg")
    for photo in (
        {"path": inside, **meta},
        {"path": inside},
        {"path": "http://192.0.2.1/x.jpg", **meta},
        {"path": "https://huggingface.co/x.jpg", **meta},
        {"url": "data:image/png;base64,AAAA", **meta},
        {"path": "", **meta},
        {"path": "a" * 5000},
    ):
        started = time.monotonic()
        answer = ask_plainly(page, photo, 3, 1)
        assert "event: error" in answer
        assert str(ROOT) not in answer
        assert time.monotonic() - started < 30  # nobody was waited for

    import httpx

    large = {"files": ("x.jpg", bytes(21 * 10**6))}
    assert httpx.post(f"{page}/gradio_api/upload", files=large).status_code == 413
    small = {"files": ("x.jpg", (EXAMPLES / "coffee.jpg").read_bytes())}
    (path,) = httpx.post(f"{page}/gradio_api/upload", files=small).json()
    assert "event: complete" in ask_plainly(page, {"path": path, **meta}, 3, 1)
    past_the_queue = {"data": [{"path": path, **meta}, 3, 1]}
    answer = httpx.post(f"{page}/gradio_api/run/caption", json=past_the_queue, timeout=PATIENCE)
    assert answer.status_code >= 400
    for path in (inside, "https://192.0.2.1/x.jpg"):
        assert httpx.get(f"{page}/gradio_api/file={path}").status_code == 403


@pytest.mark.long
def test_uploads_are_gone_when_it_is_stopped(tmp_path):
    pytest.importorskip("gradio", reason="Gradio is not installed (requirements-app.txt)")
    from gradio_client import handle_file

    with serving(stop=signal.SIGTERM, env={**os.environ, "TMPDIR": str(tmp_path)}) as url:
        client(url).predict(handle_file(EXAMPLES / "coffee.jpg"), 1, 1, api_name="/caption")
        (folder,) = tmp_path.glob("captions-*")
        assert folder.stat().st_mode & 0o077 == 0
        assert list(folder.rglob("coffee.jpg"))
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
