"""A page to try a captioner on: drop or take a photo, see its captions with their probabilities,
how probable each word was, and, for an Up-Down decoder, where each word looked.

  pip install -r requirements-app.txt
  python app.py                        then open http://127.0.0.1:7860

The page is for this machine alone until --host says otherwise. It makes no outbound connections,
and deletes what was uploaded after half an hour, or when it is stopped (Ctrl-C)."""

import html
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
from captioning.beams import WEIGHT
from captioning.captions import LENGTH_PENALTY
from captioning.confidence import GOOD
from captioning.files import ROOT, InputError, is_onnx, one_line
from captioning.images import load_image

MAX_BEAM = 10  # so that nobody asks for work without end
MAX_FILE = "20mb"  # of an upload; the pixels are bounded by load_image
MAX_WAITING = 50  # requests in the queue; the next one is told to come back later
MAX_SESSIONS = 100  # that Gradio keeps something of; nothing that the page needs
DELETE_CACHE = (300, 1800)  # seconds: every 5 minutes, uploads older than half an hour go
LOCAL = {"localhost", "127.0.0.1", "::1", "", None}  # None and "" are asked for when binding
PORT = cli.number(int, lambda value: 1 <= value < 2**16, f"between 1 and {2**16 - 1}")
EXAMPLES = sorted((ROOT / "data" / "examples").glob("*.jpg"))


def main() -> None:
    """Load the captioner, then serve the page until it is stopped."""
    parser = cli.parser(__doc__)
    cli.add_model_option(parser)
    cli.add_weights_option(parser)
    why = "address to listen on; 0.0.0.0 opens the page to all machines"
    parser.add_argument("--host", default="127.0.0.1", help=why)
    parser.add_argument("--port", type=PORT, default=7860, help="port to listen on")
    args = parser.parse_args()
    cli.need("the page", "-r requirements-app.txt", "gradio")
    path = args.model_path or cli.default_model()
    if is_onnx(path):
        cli.need("an .onnx", "-r requirements-caption.txt", "onnxruntime", "onnx")
        from captioning.onnx_captioner import OnnxCaptioner as Captioner
    else:
        cli.load_tensorflow()
        from model import Captioner

    captioner = Captioner.load(path, args.weights)
    captioner.caption(np.zeros((224, 224, 3), np.uint8))  # here the CNN's weights may be downloaded
    stay_local(args.host)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a stopped service tidies up, too
    with tempfile.TemporaryDirectory(prefix="captions-") as folder:  # of this user alone
        os.environ["GRADIO_TEMP_DIR"] = folder
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
        serve(captioner, args.host, args.port)


def serve(captioner, host: str, port: int) -> None:
    """Answer at `host` and `port` until Ctrl-C. Raises InputError if nothing can listen there."""
    import gradio as gr

    page = build_page(captioner)
    page.queue(max_size=MAX_WAITING, api_open=False)  # there is no way around the queue
    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
    try:
        _, url, _ = page.launch(
            server_name=host,
            server_port=port,
            max_file_size=MAX_FILE,
            state_session_capacity=MAX_SESSIONS,
            theme=gr.themes.Default(**fonts),  # of this machine: none is fetched
            quiet=True,
            share=False,
            enable_monitoring=False,
            footer_links=[],
            ssr_mode=False,
            run_history=False,
            prevent_thread_lock=True,
        )
    except OSError as error:
        raise InputError(f"cannot listen on {host}:{port}. Name another --port.") from error
    cli.log(f"listening on {url} (Ctrl-C stops)")
    try:
        threading.Event().wait()
    finally:
        page.close(verbose=False)


def stay_local(host: str) -> None:
    """Let this process connect to no other machine from now on.

    Gradio would fetch the address that a request names in place of an upload.
    Raises InputError if there is no such host.
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
            raise PermissionError("this page makes no outbound connections")

    sys.addaudithook(refuse)


def build_page(captioner):
    """The page's parts and what they do, as a `gradio.Blocks`."""
    import gradio as gr

    side, size = captioner.config.photo_size, max(3, captioner.beam_size)
    blank = describe(captioner, np.zeros((side, side, 3), np.uint8), 1, 1)
    has_attention = "attention" in blank["words"][0]

    def read(photo: dict, *sizes: float) -> tuple:
        """An upload's pixels, and whole sizes; bad ones end in a message on the page."""
        path = Path((photo or {}).get("path") or "")
        # Gradio only looks after what a request marks as a file; this machine has others.
        if not path.resolve().is_relative_to(Path(os.environ["GRADIO_TEMP_DIR"]).resolve()):
            raise gr.Error("Upload a photo first.", print_exception=False)
        if not all(size in range(1, MAX_BEAM + 1) for size in sizes):
            message = f"Beam size and captions go from 1 to {MAX_BEAM}."
            raise gr.Error(message, print_exception=False)
        try:
            return load_image(path, side), *map(int, sizes)
        except InputError as error:
            reason = str(error).removeprefix(f"{one_line(path)}: ")  # where it lies here
            message = html.escape(f"This file cannot be captioned: {reason}.")
            raise gr.Error(message, print_exception=False) from error

    def caption(photo, beam_size, num_captions) -> dict:
        """The captions of a photo and the words of the best one, with their probabilities."""
        return describe(captioner, *read(photo, beam_size, num_captions))

    def show(photo, beam_size, num_captions) -> list:
        if not photo:  # it was removed
            return [None] * len(outputs)
        pixels, *sizes = read(photo, beam_size, num_captions)
        description = describe(captioner, pixels, *sizes)
        return [*of_captions(description), looks(description, pixels)]

    # Without preprocess=False, Gradio would open the file in any format that Pillow knows, and show
    # its path when it is no image. One request at a time: each takes all cores.
    options = {"preprocess": False, "concurrency_limit": 1, "concurrency_id": "captioner"}
    with gr.Blocks(title="Photo captions", delete_cache=DELETE_CACHE) as page:
        with gr.Row():
            with gr.Column(scale=2):
                photo = gr.Image(label="Photo", height=340)
                beam_size = gr.Slider(1, MAX_BEAM, size, step=1, label="Beam size (1: greedy)")
                num_captions = gr.Slider(1, MAX_BEAM, 3, step=1, label="Captions shown")
                gr.Examples([str(path) for path in EXAMPLES], photo, api_visibility="private")
            with gr.Column(scale=3):
                outputs = [
                    gr.Label(label="Captions, best first (share among those shown)"),
                    gr.Markdown(visible=captioner.calibration is not None),
                    gr.HighlightedText(label="Words of the best, by how probable each was"),
                    gr.Gallery(label="Where each word looked", columns=6, visible=has_attention),
                ]
                with gr.Accordion("For programs", open=False):
                    button = gr.Button("The same as JSON", size="sm")
                    as_json = gr.JSON(show_label=False)
        inputs = [photo, beam_size, num_captions]
        last = {"trigger_mode": "always_last", "api_visibility": "private"}
        gr.on([part.change for part in inputs], show, inputs, outputs, **last, **options)
        button.click(caption, inputs, as_json, api_name="caption", **options)
    return page


def describe(captioner, pixels: np.ndarray, beam_size: int, num_captions: int) -> dict:
    """Captions and words of one photo, (S, S, 3) uint8, with probabilities, for JSON."""
    beam, words, probabilities, weights = captioner.explain(pixels, beam_size)
    pairs = zip(words, probabilities.tolist(), strict=True)
    entries = [{"word": word, "probability": probability} for word, probability in pairs]
    if weights is not None:
        side = math.isqrt(weights.shape[1])
        for entry, cells in zip(entries, weights, strict=True):
            entry["attention"] = cells.reshape(side, side).astype(float).round(4).tolist()
    captions = []
    for caption in beam[:num_captions]:
        score = caption.log_probability
        length = min(len(caption.text.split()) + 1, captioner.config.max_length)  # with its <end>
        ranking = score / length**LENGTH_PENALTY + (caption.expected_cider or 0) / WEIGHT
        values = {"probability": math.exp(score), "log_probability": score, "ranking": ranking}
        values |= {"confidence": caption.confidence, "expected_cider": caption.expected_cider}
        captions.append({"caption": caption.sentence} | values)
    return {"captions": captions, "words": entries}


def of_captions(description: dict) -> list:
    """What the page shows, but for pictures."""
    return [shares(description), how_sure(description), scored_words(description)]


def shares(description: dict) -> dict[str, float]:
    """Softmax of the captions' ranking scores: their order is that of the beam."""
    entries = description["captions"]
    odds = [math.exp(entry["ranking"] - entries[0]["ranking"]) for entry in entries]  # to the best
    return {entry["caption"]: x / sum(odds) for entry, x in zip(entries, odds, strict=True)}


def how_sure(description: dict) -> str | None:
    """The best caption's confidence in a sentence, where the captioner is calibrated."""
    confidence = description["captions"][0]["confidence"]
    if confidence is None:
        return None
    meaning = f"that share of such captions agrees well with people's (CIDEr of {GOOD} or more)"
    return f"**{confidence:.0%} sure** of the best: {meaning}."


def scored_words(description: dict) -> list[tuple[str, float]]:
    """Each word with its probability, which also colours it."""
    pairs = [(entry["word"], entry["probability"]) for entry in description["words"]]
    return [(f"{word} {probability:.0%}", probability) for word, probability in pairs]


def looks(description: dict, pixels: np.ndarray) -> list[tuple[np.ndarray, str]]:
    """The photo for each word, dark where the word did not look; none without attention."""
    pictures = []
    for entry in description["words"]:
        if "attention" in entry:
            weights = np.array(entry["attention"])  # (6, 6)
            cells = Image.fromarray((weights / weights.max()).astype(np.float32))
            light = cells.resize(pixels.shape[:2], Image.Resampling.NEAREST)
            light = np.asarray(light)[..., None]  # (S, S, 1)
            pictures.append(((pixels * (0.15 + 0.85 * light)).astype(np.uint8), entry["word"]))
    return pictures


if __name__ == "__main__":
    cli.run(main)
