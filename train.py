"""Train the caption network on the two pickles of preprocess.py."""

import argparse
import importlib.util
from pathlib import Path

from captioning import cli
from captioning.files import InputError
from captioning.pickles import load_captions, load_features

# What the model's file says of its training, beside its sizes and its data.
TRAINING_OPTIONS = ("epochs", "batch_size", "learning_rate", "weight_decay", "patience", "seed")
# Epochs, batch size, learning rate: of training, and of fine-tuning, whose gradients are noisy.
DEFAULTS = {False: (20, 64, 1.5e-3), True: (6, 32, 4e-5)}

# What a new captioner is made of; one that starts from another keeps what that one has.
SIZES = {
    "decoder": "merge",
    "embedding_size": 256,
    "units": 256,
    "merge_units": None,
    "dropout": 0.5,
}

DESCRIPTION = """\
Train the LSTM merge network: Adam, sparse categorical cross-entropy on whole captions.

Reads   DATA_DIR/features.pkl and DATA_DIR/captions.pkl, from preprocess.py.
Writes  MODEL_PATH (.h5, the epoch with the best dev loss, or when fine-tuning the best dev CIDEr;
        all that captioning needs but the CNN's weights), and beside it the history (.csv), its
        curves (.png), and what --resume needs (.checkpoint.npz).

  python train.py
  python train.py --units 512 --learning_rate 1e-3 --model_path models/large.h5
  python train.py --decoder attention            # after preprocess.py --features grid
  python train.py --resume                       # after a stop, with the options of before
  python train.py --data_dir data/mine --init_from models/flickr8k_captioner.h5 # --features layers
  python train.py --finetune_cider models/caption_model.h5 --model_path models/finetuned.h5

Losses are natural logarithms per token: summed over every word and the end of every caption,
divided by their number. However a run is stopped, the epoch kept so far is on the disk, and with
--resume it ends as if it had not been stopped, to the last bit on the same machine."""


def parse_arguments() -> argparse.Namespace:
    """The command line's options, each with its default and its reason."""
    parser = cli.parser(DESCRIPTION)
    add = parser.add_argument
    number = cli.positive_int
    add("--data_dir", type=Path, default="data", help="where the two pickles are")
    add("--model_path", type=Path, default="models/caption_model.h5", help="what to write")
    start = parser.add_mutually_exclusive_group()
    start.add_argument(
        "--init_from",
        type=Path,
        metavar="MODEL",
        help="start from this trained model, on other data with features of the same kind: its "
        "sizes, decoder and dropout stay, and its words, behind which come those that are new",
    )
    start.add_argument(
        "--finetune_cider",
        type=Path,
        metavar="MODEL",
        help="go on from this trained model, with CIDEr as the aim instead of the next human word: "
        "it draws captions of the training photos and learns from those that score higher; its "
        "sizes and words stay",
    )
    add(
        "--epochs",
        type=number,
        help="passes over the training captions, at most (default: 20; for fine-tuning 6, in which "
        "each photo is captioned five times)",
    )
    add(
        "--batch_size",
        type=number,
        help="captions per step (default: 64; for fine-tuning 32 photos, each with five captions)",
    )
    add(
        "--learning_rate",
        type=cli.positive_float,
        help="Adam's step size at the start; it falls to 0 over the epochs, along half a cosine "
        "(default: 1.5e-3; for fine-tuning 4e-5)",
    )
    add(
        "--weight_decay",
        type=cli.fraction,
        default=0.0,
        help="share of each weight, times the step size, that a step takes away",
    )
    add(
        "--decoder",
        choices=("merge", "attention"),
        help="merge: one vector an image; attention: each word looks at some of its 7 × 7 cells "
        "(default: merge)",
    )
    add("--embedding_size", type=number, help="floats per word (default: 256)")
    add("--units", type=number, help="width of the LSTM (default: 256)")
    add(
        "--merge_units",
        type=number,
        help="width of the layers where image and words meet (default: as --units)",
    )
    add(
        "--dropout",
        type=cli.fraction,
        help="share dropped of the features and the word vectors: without it the network soon "
        "knows the training photos by heart (default: 0.5)",
    )
    add(
        "--patience",
        type=number,
        default=3,
        help="stop after so many epochs without a better dev loss, or CIDEr: overfitting does not "
        "mend",
    )
    add(
        "--keep",
        choices=("best", "last"),
        default="best",
        help="the epoch that MODEL_PATH ends with: the best by dev loss, or CIDEr, or, without "
        "regard to --patience, the last, whose captions can be better though its loss is not",
    )
    add(
        "--seed", type=cli.seed, default=0, help="of the first weights, the batches and the dropout"
    )
    add("--resume", action="store_true", help="go on after the last finished epoch")
    add(
        "--tensorboard",
        type=Path,
        metavar="DIR",
        help="also write the losses of every epoch there, for: tensorboard --logdir DIR (which "
        "needs: pip install tensorboard)",
    )
    args = parser.parse_args()
    epochs, batch_size, learning_rate = DEFAULTS[args.finetune_cider is not None]
    args.epochs = args.epochs or epochs
    args.batch_size = args.batch_size or batch_size
    args.learning_rate = args.learning_rate or learning_rate
    args.patience = args.patience if args.keep == "best" else None
    given = [f"--{name}" for name in SIZES if getattr(args, name) is not None]
    if given and (args.init_from or args.finetune_cider):
        parser.error(f"{given[0]}: that stays as it is in the model that is started from")
    for name, default in SIZES.items():
        if getattr(args, name) is None:
            setattr(args, name, default)
    return args


def main() -> None:
    """Read the pickles, build the network or take a trained one, and train it."""
    args = parse_arguments()
    if args.model_path.suffix != ".h5":
        raise InputError(f"--model_path {args.model_path}: its name must end in .h5")
    for start in (args.init_from, args.finetune_cider):
        if start is not None and start.resolve() == args.model_path.resolve():
            raise InputError(f"{start} would be overwritten: name another file by --model_path.")
    if args.tensorboard:
        if importlib.util.find_spec("tensorboard") is None:
            raise InputError("--tensorboard needs a package of its own: pip install tensorboard")
        try:
            args.tensorboard.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"--tensorboard {args.tensorboard}: {error.strerror}. Name a folder."
            ) from error
    features, text = load_features(args.data_dir), load_captions(args.data_dir)

    cli.share_one_heap()
    cli.load_tensorflow()
    import keras

    from captioning.training import dev_examples, fit

    keras.utils.set_random_seed(args.seed)
    training = {name: getattr(args, name) for name in TRAINING_OPTIONS}
    training["data"] = text["settings"] | {"features": features["fingerprint"]}
    if args.finetune_cider:
        log, dev = prepare_finetuning(args, features, text, training), None
    else:
        log, dev = prepare_training(args, features, text, training)
    config = log.captioner.config
    cli.say(
        f"{config.decoder} decoder, {config.vocabulary_size} words, "
        f"{config.count_parameters():,} parameters, features of {config.encoder}"
    )
    if not text["splits"]["dev"]:
        cli.say("no dev captions: training without validation; the last epoch is kept.")
    log.shown = dev_examples(features, text)
    fit(log, dev, args.learning_rate, args.weight_decay, args.tensorboard)


def prepare_training(args, features: dict, text: dict, training: dict):
    """A captioner, its training batches and what writes it, and the dev batches or None."""
    from captioning.batches import CaptionBatches, caption_rows
    from captioning.captions import Vocabulary
    from captioning.networks import build_captioner, standardize
    from captioning.training import EpochLog
    from captioning.transfer import load_start, take_over
    from model import Captioner

    if args.init_from:
        start, vocabulary, config = load_start(args.init_from, features, text, training)
    else:
        vocabulary = Vocabulary(text["vocabulary"])
        config = new_config(args, features, text, training)
    matrix = features["features"]  # (N, …), memory-mapped
    train_captions, dev_captions = (
        caption_rows(split, text["captions"], text["splits"], features["image_ids"])
        for split in ("train", "dev")
    )
    train = CaptionBatches(matrix, train_captions, vocabulary, args.batch_size, args.seed)
    dev = (
        CaptionBatches(matrix, dev_captions, vocabulary, args.batch_size) if dev_captions else None
    )
    network = build_captioner(config, train.log_frequencies())
    if args.init_from:
        take_over(network, start.network, train)
    else:
        standardize(network, matrix, sorted({row for row, _ in train_captions}))
    cli.say(
        f"{len(train_captions)} training captions ({train.tokens} tokens), "
        f"{len(dev_captions)} dev captions"
    )
    captioner = Captioner(network, vocabulary, config)
    log = EpochLog(captioner, train, args.model_path, args.epochs, args.patience, args.resume)
    return log, dev


def new_config(args, features: dict, text: dict, training: dict):
    """The sizes of a captioner that starts from nothing.

    Raises:
        InputError: the decoder takes features of another kind.
    """
    from captioning.networks import DECODERS, CaptionerConfig

    taken = DECODERS[args.decoder]
    if features["kind"] not in taken:
        raise InputError(
            f"--decoder {args.decoder} needs other features: run preprocess.py with --features "
            f"{' or '.join(taken)}."
        )
    return CaptionerConfig(
        feature_size=features["features"].shape[-1],
        vocabulary_size=len(text["vocabulary"]),
        max_length=text["max_length"],
        encoder=features["encoder"],
        weights_hash=features["weights_hash"],
        features=features["kind"],
        decoder=args.decoder,
        embedding_size=args.embedding_size,
        units=args.units,
        merge_units=args.merge_units or args.units,
        dropout=args.dropout,
        training=training,
    )


def prepare_finetuning(args, features: dict, text: dict, training: dict):
    """A trained captioner, which draws its own batches, and what writes it."""
    from captioning.batches import caption_rows
    from captioning.scst import CiderLog, SampledBatches, policy
    from model import Captioner

    start = Captioner.load(args.finetune_cider)
    if start.config.members > 1:
        raise InputError(
            f"{args.finetune_cider} is an ensemble. Fine-tune its members, then put those together."
        )
    matrix = features["features"]  # (N, …), memory-mapped
    start.check_features(features)
    training["start"] = start.config.training
    captioner = policy(start, training)
    photos = {"train": {}, "dev": {}}  # split -> row -> captions
    for split, rows in photos.items():
        for row, caption in caption_rows(
            split, text["captions"], text["splits"], features["image_ids"]
        ):
            rows.setdefault(row, []).append(caption)
    train = SampledBatches(captioner, matrix, photos["train"], args.batch_size, args.seed)
    return CiderLog(
        *(captioner, train, args.model_path, args.epochs, args.patience, args.resume),
        features=matrix,
        photos=photos["dev"],
    )


if __name__ == "__main__":
    cli.run(main, "The same command with --resume goes on after the last finished epoch.")
