"""Train the caption network on the two pickles of preprocess.py."""

import argparse
import itertools
import math
from dataclasses import replace
from pathlib import Path

import numpy as np

from captioning import cli
from captioning.captions import SPECIAL_TOKENS, UNKNOWN, Vocabulary, load_captions
from captioning.features import load_features
from captioning.files import InputError

# What a new captioner is made of; one that starts from another has the sizes of that one.
SIZES = {
    "decoder": "merge",
    "embedding_size": 256,
    "units": 256,
    "merge_units": None,
    "dropout": 0.5,
}
OFFSET_BATCHES = 16  # of captions, on which the offset of the known words' logits is measured

DESCRIPTION = """\
Train the LSTM merge network: Adam, sparse categorical cross-entropy on whole captions.

Reads   DATA_DIR/features.pkl and DATA_DIR/captions.pkl, from preprocess.py.
Writes  MODEL_PATH (.h5, the epoch with the best dev loss; all that captioning needs but the CNN's
        weights), and beside it the history (.csv), its curves (.png), and what --resume needs
        (.checkpoint.npz).

  python train.py
  python train.py --units 512 --learning_rate 1e-3 --model_path models/large.h5
  python train.py --decoder attention            # after preprocess.py --features grid
  python train.py --resume                       # after a stop, with the options of before
  python train.py --data_dir data/mine --init_from models/flickr8k_captioner.h5 # --features layers

Losses are natural logarithms per token: summed over every word and the end of every caption,
divided by their number. However a run is stopped, the epoch kept so far is on the disk, and with
--resume it ends as if it had not been stopped, to the last bit on the same machine. finetune.py
then trains the captioner on CIDEr."""

INIT_HELP = """\
start from this trained model, on other data with features of the same kind: its sizes, decoder and
dropout stay; its vocabulary is inherited, and new words are appended"""


def parse_arguments() -> argparse.Namespace:
    """The command line's options, each with its default and its reason."""
    parser = cli.parser(DESCRIPTION)
    add, count = parser.add_argument, cli.positive_int
    add("--model_path", type=Path, default=cli.TRAINED, help="what to write")
    add("--finetune_cider", metavar="MODEL", help=argparse.SUPPRESS)
    add("--init_from", type=Path, metavar="MODEL", help=INIT_HELP)
    batch = "captions per step"
    cli.add_training_options(parser, epochs=20, batch_size=64, learning_rate=1.5e-3, batch=batch)
    why = (
        "merge: one vector per image; attention: each word looks at some of its 7 × 7 cells "
        "(default: merge)"
    )
    add("--decoder", choices=cli.DECODER_NAMES, help=why)
    add("--embedding_size", type=count, help="floats per word (default: 256)")
    add("--units", type=count, help="width of the LSTM (default: 256)")
    why = "width of the layers where image and words are added (default: as --units)"
    add("--merge_units", type=count, help=why)
    why = (
        "share dropped of the features and the word vectors: without it the network soon knows the "
        "training photos by heart (default: 0.5)"
    )
    add("--dropout", type=cli.fraction, help=why)
    args = parser.parse_args()
    if args.finetune_cider:
        parser.error(f"fine-tuning is now: python finetune.py {args.finetune_cider}")
    given = [f"--{name}" for name in SIZES if getattr(args, name) is not None]
    if given and args.init_from:
        parser.error(f"{given[0]}: that stays as it is in the model that is started from")
    for name, default in SIZES.items():
        if getattr(args, name) is None:
            setattr(args, name, default)
    return args


def main() -> None:
    """Read the pickles, build the network, and train it."""
    args = parse_arguments()
    cli.check_training(args, args.init_from)
    features, text = load_features(args.data_dir), load_captions(args.data_dir)

    cli.load_tensorflow()
    import keras

    from captioning.batches import CaptionBatches, caption_rows
    from captioning.training import Options, dev_examples, fit
    from model import Captioner, build_decoder

    keras.utils.set_random_seed(args.seed)
    options = Options.from_arguments(args)
    record = options.record(args.batch_size, features, text)
    if args.init_from:
        start = load_start(args.init_from, features)
        vocabulary, config = extend(start, text, record)
    else:
        vocabulary = Vocabulary(text["vocabulary"])
        config = new_config(args, features, text, record)

    array = features["features"]  # (N, …), memory-mapped
    train_pairs, dev_pairs = (caption_rows(split, text, features) for split in ("train", "dev"))
    train = CaptionBatches(array, train_pairs, vocabulary, args.batch_size, args.seed)
    dev = CaptionBatches(array, dev_pairs, vocabulary, args.batch_size) if dev_pairs else None
    decoder = build_decoder(config, train.log_frequencies())
    if args.init_from:
        start_from(decoder, start.decoder.members[0], train)
    else:
        decoder.standardize(array, sorted({row for row, _ in train_pairs}))
    cli.log(
        f"{len(train_pairs)} training captions ({train.tokens} tokens), {len(dev_pairs)} dev "
        f"captions\n{config.decoder} decoder, {config.vocabulary_size} vocabulary entries, "
        f"{config.count_parameters():,} parameters, features of {config.encoder}"
    )
    if dev is None:
        cli.log("no dev captions: training without validation; the last epoch is kept.")
    captioner = Captioner(decoder, vocabulary, config)
    fit(captioner, train, dev, options, dev_examples(features, text))


def new_config(args, features: dict, text: dict, record: dict):
    """The sizes of a captioner that is trained from scratch.

    Raises:
        InputError: the decoder takes features of another kind.
    """
    from model import DECODERS, CaptionerConfig

    kinds = DECODERS[args.decoder].kinds
    if features["kind"] not in kinds:
        raise InputError(
            f"--decoder {args.decoder} needs other features: run preprocess.py with --features "
            f"{' or '.join(kinds)}."
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
        training=record,
    )


# -- starting from a trained captioner ---------------------------------------------------------


def load_start(path: Path, features: dict):
    """The captioner to start from; of an ensemble the first member is taken.

    Raises:
        InputError: it is no captioner, or takes other features.
    """
    from model import Captioner

    start = Captioner.load(path)
    start.check_features(features)
    if start.config.members > 1:
        cli.log(f"{path} is an ensemble: starting from the first of its {start.config.members}.")
    return start


def extend(start, text: dict, record: dict):
    """The vocabulary and the sizes of a captioner that starts from another: its words come first.

    Args:
        start: the trained captioner.
        text: the content of captions.pkl.
        record: what the new captioner's file says of its training.
    """
    known = start.vocabulary
    new = [word for word in text["vocabulary"] if word not in known.ids]
    cli.log(f"{len(known) - len(SPECIAL_TOKENS):,} words known, {len(new):,} new")
    config = replace(
        start.config,
        vocabulary_size=len(known) + len(new),
        max_length=max(start.config.max_length, text["max_length"]),
        members=1,
        training=record | {"start": start.config.training},
    )
    return Vocabulary([*known.words, *new]), config


def start_from(decoder, pretrained, batches) -> None:
    """Copy all that `pretrained` knows into a new network, which may know more words.

    The vectors and output weights of new words are random, their bias is the logarithm of their
    share of the new captions; but offset to where the known words' logits are. The softmax takes no
    notice of an offset, so training leaves it several nats too low or too high, and next to low
    logits new words would dominate the softmax.

    The features' moments are copied as well: the weights that follow were trained on features that
    were standardized so.

    Args:
        decoder: new, of the sizes of `pretrained` but for the vocabulary.
        pretrained: trained.
        batches: the new training captions.
    """
    decoder.copy_pretrained(pretrained)
    known = pretrained.config.vocabulary_size
    if known < decoder.config.vocabulary_size:
        kernel, bias = decoder.logits.get_weights()
        bias[known:] += logit_offset(pretrained, batches)
        decoder.logits.set_weights([kernel, bias])


def logit_offset(decoder, batches) -> float:
    """How far a constant logit lies above the logarithm of its word's mean probability, in nats."""
    import tensorflow as tf

    known = decoder.config.vocabulary_size
    partitions = []
    for (features, inputs), _, weights in itertools.islice(batches, OFFSET_BATCHES):
        inputs = np.where(inputs < known, inputs, UNKNOWN)  # (B, T)
        partition = tf.reduce_logsumexp(decoder.network([features, inputs]), axis=-1)  # (B, T)
        partitions.append(partition.numpy()[weights > 0])
    negative = -np.concatenate(partitions)  # (tokens,)
    return math.log(len(negative)) - float(np.logaddexp.reduce(negative))


if __name__ == "__main__":
    cli.run(main, "The same command with --resume continues after the last finished epoch.")
