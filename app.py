"""A page in the browser that captions photos and shows what each word was worth."""

import argparse
import base64
import html
import importlib.util
import io
import math
import os
import signal
import socket
import sys
import tempfile
import threading
from pathlib import Path

import numpy as np
from PIL import Image

from captioning import cli
from captioning.files import ROOT, InputError, one_line
from captioning.images import load_image

MAX_BEAM = 10  # every beam size is compiled once and kept, so their number is bounded
MAX_FILE = "20mb"  # of an upload; the pixels are bounded by load_image
MAX_WAITING = 50  # requests in the queue; the next one is told to come back later
MAX_SESSIONS = 100  # that Gradio keeps something of; nothing that the page needs
DELETE_CACHE = (300, 1800)  # seconds: every 5 minutes, uploads older than half an hour go
LOCAL = {"localhost", "127.0.0.1", "::1", "", None}  # None and "" are asked for when binding
EXAMPLES = sorted((ROOT / "data" / "examples").glob("*.jpg"))

DESCRIPTION = """\
A page to try a captioner on: drop or take a photo, see its captions with their probabilities, how
probable each word was, and, for an attention decoder, where each word looked.

  pip install -r requirements-app.txt
  python app.py                        then open http://127.0.0.1:7860

Without --model_path, the model is chosen as generate_caption.py does. The page is for this machine
alone until --host says otherwise. It asks nothing of any other machine, and deletes what was
uploaded after half an hour, or when it is stopped (Ctrl-C)."""

CSS = """
.best { font-size: 1.5em; margin: .3em 0 .6em }
.captions { display: grid; grid-template-columns: auto 1fr; gap: .2em 1em }
.words { display: flex; flex-wrap: wrap; gap: .8em; margin-top: 1em }
.word { width: 6.5em; font-size: .9em }
.bar { height: .5em; background: #8883; border-radius: .25em; overflow: hidden }
.bar i { display: block; height: 100%; background: #e8590c }
.look { width: 100%; margin-top: .4em; background: var(--photo) 0 / 100% 100% }
.look img { width: 100%; aspect-ratio: 1; image-rendering: pixelated; display: block }
"""


def parse_arguments() -> argparse.Namespace:
    """The command line's options, each with its default and its reason."""
    parser = cli.parser(DESCRIPTION)
    add = parser.add_argument
    cli.add_model_options(parser)
    add("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 is for everybody")
    add("--port", type=port, default=7860, help="port to listen on")
    return parser.parse_args()


def port(text: str) -> int:
    """An argparse type: a port's number."""
    value = int(text)
    if not 1 <= value < 2**16:
        raise argparse.ArgumentTypeError(f"{value} is not between 1 and {2**16 - 1}")
    return value


def main() -> None:
    """Load the captioner, then serve the page until it is stopped."""
    args = parse_arguments()
    if importlib.util.find_spec("gradio") is None:
        raise InputError("the page needs Gradio: pip install -r requirements-app.txt")
    cli.load_tensorflow()
    from model import Captioner

    captioner = Captioner.load(args.model_path or cli.default_model(), args.weights)
    captioner.caption(np.zeros((224, 224, 3), np.uint8))  # a fault is told now, not on the page
    stay_local(args.host)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a stopped service tidies up, too
    with tempfile.TemporaryDirectory(prefix="captions-") as folder:  # nobody else may read it
        os.environ["GRADIO_TEMP_DIR"] = folder
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
        serve(captioner, args.host, args.port)


def serve(captioner, host: str, port: int) -> None:
    """Answer at `host` and `port` until Ctrl-C.

    Raises:
        InputError: nothing can listen there.
    """
    import gradio as gr

    page = build_page(captioner)
    system = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
    page.queue(max_size=MAX_WAITING, api_open=False)  # there is no way around the queue
    quiet = {"quiet": True, "share": False, "enable_monitoring": False, "footer_links": []}
    plain = {"ssr_mode": False, "run_history": False, "prevent_thread_lock": True}
    try:
        _, url, _ = page.launch(
            server_name=host,
            server_port=port,
            max_file_size=MAX_FILE,
            state_session_capacity=MAX_SESSIONS,
            theme=gr.themes.Default(**system),
            css=CSS,
            **quiet,
            **plain,
        )
    except OSError as error:
        raise InputError(f"cannot listen on {host}:{port}. Name another --port.") from error
    cli.log(f"listening on {url} (Ctrl-C stops)")
    try:
        threading.Event().wait()
    finally:
        page.close(verbose=False)


def stay_local(host: str) -> None:
    """From now on let this process connect to no other machine, whatever a library tries.

    Gradio would fetch the address that a request names in place of an upload.

    Raises:
        InputError: there is no such host.
    """
    local = LOCAL | {host, host.encode()}
    try:
        local |= {address[0] for *_, address in socket.getaddrinfo(host, None)}
    except OSError as error:
        raise InputError(f"--host {host}: no such address. Use 127.0.0.1 or 0.0.0.0.") from error

    def refuse(event: str, arguments: tuple) -> None:
        if event == "socket.getaddrinfo":
            name = arguments[0]
        elif event == "socket.connect" and isinstance(arguments[1], tuple):
            name = arguments[1][0]
        else:
            return
        if name not in local:
            raise PermissionError("this page asks nothing of other machines")

    sys.addaudithook(refuse)


def build_page(captioner):
    """The page's parts and what they do, as a `gradio.Blocks`."""
    import gradio as gr

    def read(photo: dict, *sizes: float) -> np.ndarray:
        """The pixels of an upload; what is wrong with it, or with the sizes, is told the user."""
        path = Path((photo or {}).get("path") or "")
        # Gradio only looks after what a request marks as a file; this machine has others.
        if not path.resolve().is_relative_to(Path(os.environ["GRADIO_TEMP_DIR"]).resolve()):
            raise gr.Error("Upload a photo first.", print_exception=False)
        if not all(size in range(1, MAX_BEAM + 1) for size in sizes):
            message = f"Beam size and captions go from 1 to {MAX_BEAM}."
            raise gr.Error(message, print_exception=False)
        try:
            return load_image(path)
        except InputError as error:
            reason = str(error).removeprefix(f"{one_line(path)}: ")  # where it lies here
            message = html.escape(f"This file cannot be captioned: {reason}.")
            raise gr.Error(message, print_exception=False) from error

    def show(photo, beam_size, num_captions) -> str:
        if not photo:  # it was taken away
            return ""
        pixels = read(photo, beam_size, num_captions)
        return draw(describe(captioner, pixels, int(beam_size), int(num_captions)), pixels)

    def tell(photo, beam_size, num_captions) -> dict:
        """The captions of a photo and the words of the best one, with their probabilities."""
        pixels = read(photo, beam_size, num_captions)
        return describe(captioner, pixels, int(beam_size), int(num_captions))

    # One at a time: TensorFlow takes all cores for each. What Gradio would do before is left out:
    # opening the file by whatever Pillow knows, and telling where it lies when it is no image.
    once = {"preprocess": False, "concurrency_limit": 1, "concurrency_id": "captioner"}
    with gr.Blocks(title="Photo captions", delete_cache=DELETE_CACHE) as page:
        with gr.Row():
            with gr.Column(scale=2):
                photo = gr.Image(label="Photo", height=340)
                beam_size = gr.Slider(1, MAX_BEAM, 3, step=1, label="Beam size (1: greedy)")
                num_captions = gr.Slider(1, MAX_BEAM, 3, step=1, label="Captions shown")
                gr.Examples([str(path) for path in EXAMPLES], photo, api_visibility="private")
            with gr.Column(scale=3):
                drawn = gr.HTML(label="Captions", min_height=340)
                with gr.Accordion("For programs", open=False):
                    button = gr.Button("The same as JSON", size="sm")
                    told = gr.JSON(show_label=False)
        inputs = [photo, beam_size, num_captions]
        changes = [part.change for part in inputs]
        always = {"trigger_mode": "always_last", "api_visibility": "private"}
        gr.on(changes, show, inputs, drawn, **always, **once)
        button.click(tell, inputs, told, api_name="caption", **once)
    return page


def describe(captioner, pixels: np.ndarray, beam_size: int, num_captions: int) -> dict:
    """All there is to tell of one photo, (224, 224, 3) uint8, as JSON takes it."""
    features = captioner.encoder.encode(pixels[None])  # (1, *features_shape)
    beam = captioner.decode(features, beam_size)[0][:num_captions]
    words, probabilities, weights = captioner.explain(features, beam[0][0])
    told = [{"word": w, "probability": float(p)} for w, p in zip(words, probabilities, strict=True)]
    if weights is not None:
        side = math.isqrt(weights.shape[1])
        for entry, cells in zip(told, weights, strict=True):
            entry["attention"] = cells.reshape(side, side).round(4).tolist()
    captions = [
        {"caption": caption, "probability": math.exp(score), "log_probability": score}
        for caption, score in beam
    ]
    return {"captions": captions, "words": told}


# -- HTML ------------------------------------------------------------------------------------------


def draw(description: dict, pixels: np.ndarray) -> str:
    """What `describe` tells as HTML; the words may be anybody's."""
    captions = description["captions"]
    beam = "".join(
        f"<span>{entry['probability']:.2g}</span><span>{html.escape(entry['caption'])}</span>"
        for entry in captions
    )
    words = "".join(draw_word(entry) for entry in description["words"])
    photo = ""
    if "attention" in description["words"][0]:
        photo = f' style="--photo: url({data_url(Image.fromarray(pixels), "jpeg")})"'
    return (
        f'<p class="best">{html.escape(captions[0]["caption"])}</p>'
        f'<div class="captions">{beam}</div><div class="words"{photo}>{words}</div>'
    )


def draw_word(entry: dict) -> str:
    """A word, a bar of its probability, and the photo, dark where the word did not look."""
    percent = 100 * entry["probability"]
    bar = f'<div class="bar"><i style="width: {percent:.1f}%"></i></div>{percent:.2g} %'
    look = ""
    if "attention" in entry:
        weights = np.array(entry["attention"])  # (7, 7)
        dark = 220 * (1 - weights / weights.max())
        shade = np.stack([np.zeros_like(dark), dark], axis=-1).astype(np.uint8)  # grey, opacity
        look = (
            f'<div class="look"><img alt="" src="{data_url(Image.fromarray(shade), "png")}"></div>'
        )
    return f'<div class="word">{html.escape(entry["word"])} {bar}{look}</div>'


def data_url(image: Image.Image, form: str) -> str:
    """A picture as an address that holds it."""
    file = io.BytesIO()
    image.save(file, form)
    return f"data:image/{form};base64,{base64.b64encode(file.getvalue()).decode()}"


if __name__ == "__main__":
    cli.run(main)
