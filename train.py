"""Train the LSTM merge network: Adam, sparse categorical cross-entropy on whole captions.

Reads   DATA_DIR/features.pkl and DATA_DIR/captions.pkl, from preprocess.py.
Writes  MODEL_PATH (.h5, the epoch with the best dev loss), and beside it the history (.csv), its
        curves (.png), and what --resume needs (.checkpoint.npz).

  python train.py
  python train.py --units 512 --learning_rate 1e-3 --model_path models/large.h5
  python train.py --decoder updown               # after preprocess.py --features grid
  python train.py --resume                       # after a stop, with the options of before
  python train.py --data_dir data/mine --init_from models/flickr8k_captioner.h5   # grid of Lite2

Losses are in nats per token: of every word, and of the end of every caption. However a run is
stopped, with --resume it ends as if it had not been, to the last bit on the same machine.
finetune.py then trains the captioner on CIDEr."""

import argparse
import itertools
import math
from dataclasses import replace
from pathlib import Path

import numpy as np

from captioning import cli
from captioning.captions import SPECIAL_TOKENS, UNKNOWN, Vocabulary, load_captions
from captioning.features import all_photos, load_features
from captioning.files import InputError

# Options of a new captioner; one that starts from another is like that one.
SIZES = ("decoder", "embedding_size", "units", "merge_units", "dropout")
OFFSET_BATCHES = 16  # of captions, on which the offset of the known words' logits is measured


def parse_arguments() -> argparse.Namespace:
    """The command line's options, each with its default and its reason."""
    parser = cli.parser(__doc__)
    add, count = parser.add_argument, cli.positive_int
    add("--model_path", type=Path, default=cli.TRAINED, help="what to write")
    add("--finetune_cider", metavar="MODEL", help=argparse.SUPPRESS)
    why = "trained model, whose sizes, decoder, dropout and words stay; new words are appended"
    add("--init_from", type=Path, metavar="MODEL", help=why)
    batch = "captions per step"
    cli.add_training_options(parser, epochs=20, batch_size=64, learning_rate=1.5e-3, batch=batch)
    why = "merge: one vector per image; updown: each word looks at some of its 6 × 6 cells"
    add("--decoder", choices=cli.DECODER_NAMES, default="merge", help=why)
    add("--embedding_size", type=count, default=256, help="floats per word")
    add("--units", type=count, default=256, help="width of the LSTM")
    add("--merge_units", type=count, help="width of the sum of image and words (default: --units)")
    why = "share dropped of features and word vectors, or photos would soon be known by heart"
    add("--dropout", type=cli.fraction, default=0.5, help=why)
    args = parser.parse_args()
    if args.finetune_cider:
        parser.error(f"fine-tuning is now: python finetune.py {args.finetune_cider}")
    parser.set_defaults(**dict.fromkeys(SIZES))  # what still has a value was given
    given = [f"--{name}" for name in SIZES if getattr(parser.parse_args(), name) is not None]
    if given and args.init_from:
        parser.error(f"{given[0]}: that stays as it is in the model that is started from")
    args.merge_units = args.merge_units or args.units
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
    from model import Captioner, build_decoder, count_parameters

    keras.utils.set_random_seed(args.seed)
    options = Options.from_arguments(args)
    record = options.record(args.batch_size, features, text)
    if args.init_from:
        start = Captioner.load_h5(args.init_from)
        start.check_features(features)
        members = start.config.members
        if members > 1:
            cli.log(f"{args.init_from} is an ensemble: starting from the first of its {members}.")
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
        f"{count_parameters(config):,} parameters, features of {config.encoder}"
    )
    if dev is None:
        cli.log("no dev captions: training without validation; the last epoch is kept.")
    photos = [features["photos"][[row for row, _ in train_pairs]]]
    photos += [start.photos] if args.init_from else []
    captioner = Captioner(decoder, vocabulary, config, photos=all_photos(photos))
    fit(captioner, train, dev, options, dev_examples(features, text))


def new_config(args, features: dict, text: dict, record: dict):
    """The sizes of a new captioner; raises InputError where its decoder takes other features."""
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
        photo_size=features["photo_size"],
        training=record,
        **{name: getattr(args, name) for name in SIZES},
    )


def extend(start, text: dict, record: dict):
    """The vocabulary and the sizes of a captioner that starts from another: its words come first.

    `text` is the content of captions.pkl, `record` what the new file says of its training.
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
    share of the new captions, offset to where the known words' logits are. The softmax takes no
    notice of an offset, so training leaves it several nats too low or too high, and next to low
    logits new words would dominate. The features' moments are copied as well: the weights that
    follow were trained on features standardized so.
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
