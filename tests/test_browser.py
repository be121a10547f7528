"""The page in a real browser, headless Chromium."""

import contextlib
import dataclasses
import json
import os
import shutil
from urllib.parse import urlparse

import pytest
from helpers import CONFIGS, EXAMPLES, PATIENCE, ROOT, WORDS, serving, untrained

import app
from captioning.captions import END
from captioning.encoders import Encoder

pytestmark = pytest.mark.long

BROWSER = shutil.which("chromium"), shutil.which("chromedriver")
CHROMIUM_OPTIONS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
    *("--hide-scrollbars", "--window-size=1200,860"),
]
CAPTION = "[data-testid=label-output-value]"
SHARES = "[data-testid=label] .confidence-set"
SCORED = "[data-testid='highlighted-text:textfield'] .text"
LOST = 60  # seconds without an answer, after which an upload is taken for lost
NETWORK = ("http", "https", "ws", "wss")  # what else it loads is its own: chrome:, data:, blob:


@contextlib.contextmanager
def browser(folder):
    """A headless Chromium with a profile of its own, which keeps a log of its requests."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    if None in BROWSER:
        pytest.skip("chromium or chromedriver is not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER[0]
    for option in (*CHROMIUM_OPTIONS, f"--user-data-dir={folder}"):
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(BROWSER[1]))
    try:
        yield driver
    finally:
        driver.quit()


def present(driver, selector: str, with_text=False, patience=PATIENCE):
    """The first such element, once it is there, or once it says something."""
    from selenium.webdriver.support.ui import WebDriverWait

    def found(driver):
        elements = driver.find_elements("css selector", selector)
        return [element for element in elements if element.text or not with_text]

    return WebDriverWait(driver, patience).until(found)[0]


def texts(driver, selector: str) -> list[str]:
    return [element.text for element in driver.find_elements("css selector", selector)]


def upload(driver, path) -> None:
    present(driver, "input[type=file]").send_keys(str(path))


def caption_of(driver, url: str, path) -> str:
    """The caption that the page shows for a photo.

    An upload before the page listens is lost, so after a while the page is loaded anew.
    """
    from selenium.common.exceptions import TimeoutException

    for _ in range(PATIENCE // LOST):
        driver.get(url)
        present(driver, ".gallery-item")  # the examples come last
        upload(driver, path)
        try:
            return present(driver, CAPTION, with_text=True, patience=LOST).text
        except TimeoutException:
            continue
    pytest.fail(f"no caption of {path}")


def requested(driver) -> list[str]:
    """Every address that the browser has asked for."""
    events = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    sent = [event for event in events if event["method"] == "Network.requestWillBeSent"]
    return [event["params"]["request"]["url"] for event in sent]


def test_photos_are_captioned_and_nobody_else_is_asked(page, said, tmp_path):
    (tmp_path / "x.jpg").write_bytes(b"no photo")
    with browser(tmp_path / "profile") as driver:
        assert caption_of(driver, page, EXAMPLES / "donna.jpg") == said["donna.jpg"]
        present(driver, SCORED, with_text=True)
        words = [text.split() for text in texts(driver, SCORED)]
        assert [word for word, _ in words] == [*said["donna.jpg"].split(), "<end>"]
        assert all(share.endswith("%") for _, share in words)
        assert len(texts(driver, SHARES)) == 3
        if "PICTURE" in os.environ:  # make pictures
            driver.save_screenshot(os.environ["PICTURE"])
        for secret in (str(ROOT), "Traceback"):
            assert secret not in driver.page_source

        driver.get(page)
        present(driver, ".gallery-item")
        upload(driver, tmp_path / "x.jpg")
        message = present(driver, ".toast-body", with_text=True).text
        assert "This file cannot be captioned: not a readable image" in message
        assert "/" not in message

        driver.get(page)
        present(driver, ".gallery-item").click()
        assert present(driver, CAPTION, with_text=True).text == said[app.EXAMPLES[0].name]
        addresses = requested(driver)
        assert any("/upload" in address for address in addresses)
        asked = {urlparse(a).hostname for a in addresses if urlparse(a).scheme in NETWORK}
        assert asked == {"127.0.0.1"}, addresses


def test_a_stranger_s_updown_decoder_shows_where_each_word_looked(tmp_path):
    """Its words are markup, which is shown and not obeyed; its captions never end."""
    encoder = Encoder("efficientnet_lite0", kind="grid")
    sizes = {"feature_size": encoder.features_shape[-1], "weights_hash": encoder.weights_hash}
    config = dataclasses.replace(CONFIGS["updown"], **sizes)
    words = [*WORDS[:4], *(f"<b>{word}</b>" for word in WORDS[4:])]
    captioner, model = untrained(config, words=words), tmp_path / "m.h5"
    kernel, bias = captioner.decoder.logits.get_weights()
    bias[END] = -100
    captioner.decoder.logits.set_weights([kernel, bias])
    captioner.save(model)
    with serving("--model_path", model) as url, browser(tmp_path / "profile") as driver:
        words = caption_of(driver, url, EXAMPLES / "coffee.jpg").split()
        assert len(words) == config.max_length
        assert all(word.startswith("<b>w") for word in words)
        present(driver, ".grid-wrap .gallery-item", with_text=True)
        assert texts(driver, ".grid-wrap .gallery-item") == words
