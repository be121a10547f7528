"""Train the caption network on the two pickles of preprocess.py."""

import argparse
from pathlib import Path

import cli
from files import InputError
from pickles import load_captions, load_features

# What the model's file says of its training, beside its sizes and its data.
TRAINING_OPTIONS = ("epochs", "batch_size", "learning_rate", "patience", "seed")

DESCRIPTION = """\
Train the LSTM merge network: Adam, sparse categorical cross-entropy on whole captions.

Reads   DATA_DIR/features.pkl and DATA_DIR/captions.pkl, from preprocess.py.
Writes  MODEL_PATH (.h5, the best epoch by dev loss; all that captioning needs but the CNN's
        weights), and beside it the history (.csv), the loss curves (.png), and what --resume
        needs (.checkpoint.npz).

  python train.py
  python train.py --units 512 --learning_rate 1e-3 --model_path models/large.h5
  python train.py --resume                       # after a stop, with the options of before

Losses are natural logarithms per token: summed over every word and the end of every caption,
divided by their number. However a run is stopped, the best epoch so far is on the disk, and with
--resume it ends as if it had not been stopped, to the last bit on the same machine."""


def parse_arguments() -> argparse.Namespace:
    """The command line's options, each with its default and its reason."""
    parser = cli.parser(DESCRIPTION)
    add = parser.add_argument
    number = cli.positive_int
    add("--data_dir", type=Path, default="data", help="where the two pickles are")
    add("--model_path", type=Path, default="models/caption_model.h5", help="what to write")
    add("--epochs", type=number, default=20, help="passes over the training captions, at most")
    add("--batch_size", type=number, default=64, help="captions per step")
    add(
        "--learning_rate",
        type=cli.positive_float,
        default=1.5e-3,
        help="Adam's step size at the start; it falls to 0 over the epochs, along half a cosine",
    )
    add("--embedding_size", type=number, default=256, help="floats per word")
    add("--units", type=number, default=256, help="width of the LSTM and of the merged layers")
    add(
        "--dropout",
        type=cli.fraction,
        default=0.5,
        help="share dropped of the features, the word vectors and the merged layer: without it "
        "the network soon knows the training photos by heart",
    )
    add(
        "--patience",
        type=number,
        default=3,
        help="stop after so many epochs without a better dev loss: overfitting does not mend",
    )
    add(
        "--seed", type=cli.seed, default=0, help="of the first weights, the batches and the dropout"
    )
    add("--resume", action="store_true", help="go on after the last finished epoch")
    return parser.parse_args()


def main() -> None:
    """Read the pickles, build the network, train it."""
    args = parse_arguments()
    if args.model_path.suffix != ".h5":
        raise InputError(f"--model_path {args.model_path}: its name must end in .h5")
    features, text = load_features(args.data_dir), load_captions(args.data_dir)

    cli.share_one_heap()
    cli.load_tensorflow()
    import keras

    from batches import CaptionBatches, caption_rows
    from captions import Vocabulary
    from model import Captioner, CaptionerConfig, build_captioner
    from training import fit

    keras.utils.set_random_seed(args.seed)
    vocabulary = Vocabulary(text["vocabulary"])
    matrix = features["features"]  # (N, feature_size) float32, memory-mapped
    train_captions, dev_captions = (
        caption_rows(split, text["captions"], text["splits"], features["image_ids"])
        for split in ("train", "dev")
    )
    train = CaptionBatches(matrix, train_captions, vocabulary, args.batch_size, args.seed)
    dev = (
        CaptionBatches(matrix, dev_captions, vocabulary, args.batch_size) if dev_captions else None
    )

    config = CaptionerConfig(
        feature_size=matrix.shape[1],
        vocabulary_size=len(vocabulary),
        max_length=text["max_length"],
        encoder=features["encoder"],
        weights_hash=features["weights_hash"],
        embedding_size=args.embedding_size,
        units=args.units,
        dropout=args.dropout,
        training={name: getattr(args, name) for name in TRAINING_OPTIONS}
        | {"data": text["settings"] | {"features": features["fingerprint"]}},
    )
    network = build_captioner(config, train.log_frequencies())
    cli.say(
        f"{len(train_captions)} training captions ({train.tokens} tokens), "
        f"{len(dev_captions)} dev captions, {len(vocabulary)} words, "
        f"{network.count_params():,} parameters, features of {config.encoder}"
    )
    if dev is None:
        cli.say("no dev captions: training without validation; the last epoch is kept.")
    fit(
        Captioner(network, vocabulary, config),
        train,
        dev,
        model_path=args.model_path,
        epochs=args.epochs,
        learning_rate=args.learning_rate,
        patience=args.patience,
        resume=args.resume,
    )


if __name__ == "__main__":
    cli.run(main, "The same command with --resume goes on after the last finished epoch.")
