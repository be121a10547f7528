"""Teach a captioner how sure it may be: each caption then has a confidence, from 0 to 1. It is the
share of captions of which it is as sure that agree well with what people say (their own CIDEr, of
10 at most, is 0.5 or more).

The first half of the dev split is captioned and scored, and a logistic regression of two numbers is
fitted: the caption's log-probability, and the CIDEr that its neighbours expect, where the captioner
has them (docs/training.md). What is printed is of the other half, which the fit has not seen.

Reads   MODEL, DATA_DIR/features.pkl and DATA_DIR/captions.pkl.
Writes  the three numbers into MODEL. It needs no --overwrite: the weights stay as they are.

  python calibrate.py models/caption_model.h5
  python generate_caption.py --image_path photos/ --min_confidence 0.4"""

from pathlib import Path

import numpy as np

from captioning import cli
from captioning.captions import load_captions
from captioning.cider import CiderD
from captioning.confidence import Calibration, report, table
from captioning.features import load_features, trained_on
from captioning.files import InputError, check_h5, check_writable

FEWEST = 20  # captions in either half, or chance alone would decide


def main() -> None:
    """Caption dev, fit on the first half, report on the other, and write."""
    parser = cli.parser(__doc__)
    parser.add_argument("model", type=Path, metavar="MODEL", help="the .h5 to calibrate")
    why = "where the two pickles of the data that it was trained on are"
    parser.add_argument("--data_dir", type=Path, default="data", help=why)
    args = parser.parse_args()
    check_h5(args.model)
    check_writable(args.model)
    features, text = load_features(args.data_dir), load_captions(args.data_dir)
    split = text["splits"]["dev"]
    if len(split) < 2 * FEWEST:
        raise InputError(f"the dev split has {len(split)} photos; it takes {2 * FEWEST} or more.")

    cli.load_tensorflow()
    from captioning.batches import caption_rows
    from captioning.model_file import write_calibration
    from model import Captioner

    captioner = Captioner.load_h5(args.model)
    captioner.check_features(features)
    captioner.calibration = None
    pairs = caption_rows("dev", text, features)
    if seen := trained_on(captioner.photos, features, pairs):
        raise InputError(
            f"the captioner was trained on {len(seen)} of the dev photos, and would seem too sure: "
            f"name the data that it was trained on by --data_dir."
        )
    rows = list(dict.fromkeys(row for row, _ in pairs))
    cli.log(f"captioning the {len(rows)} dev photos, beam size {captioner.beam_size}")
    said = [beam[0] for beam in captioner.decode(features["features"][rows])]
    references = [text["captions"][features["image_ids"][row]] for row in rows]
    scorer = CiderD([[line.split() for line in lines] for lines in references])
    cider = [scorer.score(number, caption.text.split()) for number, caption in enumerate(said)]
    cider = np.array(cider)  # (N,)
    half = len(rows) // 2
    try:
        calibration = Calibration.fit(said[:half], cider[:half])
    except ValueError as error:
        raise InputError(f"it cannot be calibrated: {error} in dev's first half.") from error
    write_calibration(args.model, calibration)
    confidence = np.array([calibration.confidence(caption) for caption in said])  # (N,)
    print(f"fitted on {half} dev photos; of the others:")
    print(table(report(confidence[half:], cider[half:])))
    print(f"wrote the calibration into {args.model}")


if __name__ == "__main__":
    cli.run(main)
