"""Put captioners of the same data and the same sizes, trained with other seeds, into one .h5. Each
word is chosen by the mean of their logits, in which the mistakes of a single one count for less.

With --neighbours, of one captioner too, the file also gets what people said of the training photos.
A beam is then ranked by how well its captions fit what was said of similar ones (docs/training.md).

Reads   the .h5 files that are named; for neighbours, DATA_DIR/features.pkl and captions.pkl.
Writes  MODEL_PATH (.h5), used as any other; its weights are float16, for half the size.

  python ensemble.py models/seed0.h5 models/seed1.h5 models/seed2.h5
  python ensemble.py models/finetuned.h5 --neighbours data"""

from dataclasses import asdict, replace
from pathlib import Path

from captioning import cli
from captioning.captions import load_captions
from captioning.features import all_photos, load_features
from captioning.files import InputError, check_h5


def main() -> None:
    """Read the members, compare them, and write them as one."""
    parser = cli.parser(__doc__)
    add = parser.add_argument
    add("members", type=Path, nargs="+", metavar="MODEL", help="what to put in")
    add("--model_path", type=Path, default="models/ensemble.h5", help="what to write")
    why = "the folder of the two pickles whose training photos a beam is to be compared with"
    add("--neighbours", type=Path, metavar="DATA_DIR", help=why)
    cli.add_overwrite_option(parser)
    args = parser.parse_args()
    for path in args.members:
        check_h5(path)
    cli.check_model_path(args.model_path, args.overwrite)
    least = 1 if args.neighbours else 2
    if len({path.resolve() for path in args.members}) < max(least, len(args.members)):
        raise InputError(
            "an ensemble takes two or more captioners, each of them once; one will do with "
            "--neighbours."
        )
    if args.neighbours:
        features, text = load_features(args.neighbours), load_captions(args.neighbours)
    cli.load_tensorflow()
    from model import Captioner

    captioners = [Captioner.load_h5(path) for path in args.members]
    for path, captioner in zip(args.members, captioners, strict=True):
        check(path, captioner, captioners[0], args.members[0])
    whole = ensemble(captioners)
    if args.neighbours:
        whole.check_features(features)
        add_neighbours(whole, features, text)
    whole.save(args.model_path, half=True)
    size = args.model_path.stat().st_size / 1e6
    cli.log(f"{len(captioners)} network(s) in {args.model_path}, {size:.1f} MB")
    if args.neighbours:
        cli.log(f"a beam is compared with {len(whole.neighbours.vectors)} photos")
    cli.log(f"next: python calibrate.py {args.model_path}")


def check(path: Path, captioner, first, first_path: Path) -> None:
    """Raises InputError where `captioner` is an ensemble, or cannot be averaged with `first`."""
    if captioner.config.members > 1:
        raise InputError(f"{path} is an ensemble itself: name its members instead.")
    own, other = (
        asdict(replace(c.config, training={})) | {"vocabulary": c.vocabulary.words}
        for c in (captioner, first)
    )
    differing = [name for name in own if own[name] != other[name]]
    if differing:
        raise InputError(
            f"{path} differs from {first_path} in {', '.join(differing)}: train both on the same "
            f"data with the same options, but for --seed."
        )


def ensemble(captioners: list):
    """One captioner of the networks of several, which `check` has found to be alike."""
    from model import build_decoder

    first = captioners[0]
    trainings = [captioner.config.training for captioner in captioners]
    training = {"members": trainings} if len(captioners) > 1 else trainings[0]
    config = replace(first.config, members=len(captioners), training=training)
    decoder = build_decoder(config)
    for member, captioner in zip(decoder.members, captioners, strict=True):
        member.copy_pretrained(captioner.decoder)
    photos = all_photos([captioner.photos for captioner in captioners])
    return replace(first, decoder=decoder, config=config, photos=photos, calibration=None)


def add_neighbours(captioner, features: dict, text: dict) -> None:
    """Give it the training split's photos and captions: `features` and `text` are the pickles'."""
    from captioning.batches import caption_rows
    from captioning.neighbours import Neighbours

    if new := set(text["vocabulary"]) - set(captioner.vocabulary.words):
        raise InputError(
            f"--neighbours: {len(new)} words of that data are new to the captioner: name the "
            f"folder of the data that it was trained on."
        )
    captions = {}  # row of the features -> ids of each caption
    for row, caption in caption_rows("train", text, features):
        if ids := captioner.vocabulary.encode(caption)[1:-1]:
            captions.setdefault(row, []).append(ids)
    if not captions:
        raise InputError("--neighbours: the train split of that data is empty.")
    try:
        captioner.neighbours = Neighbours.of(features["features"], captions).check()
    except ValueError as error:
        raise InputError(f"--neighbours: {error}. Run preprocess.py again.") from error
    # Their captions are in the file: whoever scores it on these photos is to know.
    captioner.photos = all_photos([captioner.photos, features["photos"][[*captions]]])


if __name__ == "__main__":
    cli.run(main)
