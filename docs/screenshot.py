"""Photograph the page with an example photo: python docs/screenshot.py (needs Chromium).

Writes docs/app.png. `make pictures` runs it, and draws docs/captions.png.
"""

import shutil
import subprocess
import sys
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.support.ui import WebDriverWait

ROOT = Path(__file__).resolve().parent.parent
PHOTO = ROOT / "data" / "examples" / "donna.jpg"
PORT = 7861
SIZE = "1200,860"  # pixels
WORDS = "[data-testid='highlighted-text:textfield']"  # they come last
PATIENCE = 120  # seconds


def main() -> None:
    """Start the page, upload the photo, wait for its caption, and save what the browser shows."""
    model = ROOT / "models" / "flickr8k_captioner.h5"
    command = [sys.executable, ROOT / "app.py", "--port", str(PORT), "--model_path", model]
    page = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    for line in page.stderr:
        if line.startswith("listening on"):
            break
    else:
        raise SystemExit("the page did not start: python app.py says why")
    options = webdriver.ChromeOptions()
    for option in ("--headless", "--no-sandbox", "--hide-scrollbars", f"--window-size={SIZE}"):
        options.add_argument(option)
    options.binary_location = shutil.which("chromium")
    driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        driver.get(f"http://127.0.0.1:{PORT}")
        wait = WebDriverWait(driver, PATIENCE)
        wait.until(lambda d: d.find_element("css selector", ".gallery-item"))  # it comes last
        upload = wait.until(lambda d: d.find_element("css selector", "input[type=file]"))
        upload.send_keys(str(PHOTO))
        wait.until(lambda d: d.find_element("css selector", WORDS).text)
        driver.save_screenshot(str(ROOT / "docs" / "app.png"))
    finally:
        driver.quit()
        page.terminate()


if __name__ == "__main__":
    main()
