"""Put captioners of the same data and the same sizes, trained with other seeds, into one .h5. Each
word is chosen by the mean of their logits, in which the mistakes of a single one count for less.

Reads   the .h5 files that are named, two or more.
Writes  MODEL_PATH (.h5), used as any other; its weights are float16, for half the size.

  python ensemble.py models/seed0.h5 models/seed1.h5 models/seed2.h5"""

from dataclasses import asdict, replace
from pathlib import Path

from captioning import cli
from captioning.features import all_photos
from captioning.files import InputError


def main() -> None:
    """Read the members, compare them, and write them as one."""
    parser = cli.parser(__doc__)
    add = parser.add_argument
    add("members", type=Path, nargs="+", metavar="MODEL", help="what to put in")
    add("--model_path", type=Path, default="models/ensemble.h5", help="what to write")
    cli.add_overwrite_option(parser)
    args = parser.parse_args()
    cli.check_model_path(args.model_path, args.overwrite)
    if len({path.resolve() for path in args.members}) < max(2, len(args.members)):
        raise InputError("an ensemble takes two or more captioners, each of them once.")
    cli.load_tensorflow()
    from model import Captioner

    captioners = [Captioner.load(path) for path in args.members]
    for path, captioner in zip(args.members, captioners, strict=True):
        check(path, captioner, captioners[0], args.members[0])
    ensemble(captioners).save(args.model_path, half=True)
    size = args.model_path.stat().st_size / 1e6
    cli.log(f"{len(captioners)} captioners in {args.model_path}, {size:.1f} MB")


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
    from model import Captioner, build_decoder

    first = captioners[0]
    training = {"members": [captioner.config.training for captioner in captioners]}
    config = replace(first.config, members=len(captioners), training=training)
    decoder = build_decoder(config)
    for member, captioner in zip(decoder.members, captioners, strict=True):
        member.copy_pretrained(captioner.decoder)
    photos = all_photos([captioner.photos for captioner in captioners])
    return Captioner(decoder, first.vocabulary, config, photos=photos)


if __name__ == "__main__":
    cli.run(main)
