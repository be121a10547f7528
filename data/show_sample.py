"""Caption the held-out scenes of the sample set and show them beside the true captions."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from captioning import cli
from captioning.pickles import load_captions, load_features
from data.sample import colour_and_shape

SHOWN = 8  # scenes printed


def main() -> None:
    """Print captions and truth, count what is right, draw a picture."""
    parser = cli.parser(__doc__)
    parser.add_argument("--demo_dir", type=Path, default="demo", help="dataset/, data/, models/")
    demo_dir = parser.parse_args().demo_dir
    features, text = load_features(demo_dir / "data"), load_captions(demo_dir / "data")

    cli.load_tensorflow()
    from captioning.plots import draw_captions
    from model import Captioner

    captioner = Captioner.load(demo_dir / "models" / "caption_model.h5")
    scenes = text["splits"]["test"]
    rows = [features["image_ids"].index(scene) for scene in scenes]
    captions = captioner.caption_features(features["features"][rows])
    truths = [text["captions"][scene][0] for scene in scenes]
    right = sum(
        colour_and_shape(caption) == colour_and_shape(truth)
        for caption, truth in zip(captions, truths, strict=True)
    )
    print(f"{'held-out scene':<18}{'model':<44}truth")
    for scene, caption, truth in list(zip(scenes, captions, truths, strict=True))[:SHOWN]:
        print(f"{scene:<18}{caption:<44}{truth}")
    print(f"colour and shape both right in {right} of {len(scenes)} held-out scenes")
    picture = demo_dir / "captions.png"
    lines = zip(scenes, captions, truths, strict=True)
    draw_captions(
        [
            (demo_dir / "dataset" / "Images" / scene, [f"model: {caption}", f"truth: {truth}"])
            for scene, caption, truth in lines
        ],
        picture,
    )
    print(f"picture: {picture}")
    print(f"log of the training: {demo_dir / 'models' / 'caption_model.csv'}, and .png beside it")


if __name__ == "__main__":
    cli.run(main)
