"""Fine-tune a captioner on CIDEr itself: self-critical sequence training (Rennie et al. 2017)."""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np

from captioning import cli
from captioning.captions import END, PADDING, START, load_captions
from captioning.features import load_features
from captioning.files import InputError

SAMPLES = 5  # captions drawn of each photo; each one's baseline is the mean of the other four
FEATURE_DROPOUT = 0.3  # share of a photo's floats (benchmarks/quality.md)
MAX_WORDS = 16  # of a sample; 7 % of the training captions are longer, and all would pay for it
WIDTH_STEP = 4  # tokens; samples are padded to a multiple, for XLA compiles every width anew
END_WORD = "<end>"  # scored like a word: otherwise captions would stop in mid-sentence

DESCRIPTION = """\
Fine-tune a trained captioner on CIDEr, by self-critical sequence training.

Cross-entropy trains the network to continue human captions, but in captioning it continues its own
(exposure bias). So it samples five captions of each training photo, and each sample is reinforced
by its CIDEr-D minus the mean of the photo's other samples.

Reads   MODEL (.h5, from train.py), DATA_DIR/features.pkl and DATA_DIR/captions.pkl.
Writes  MODEL_PATH (.h5, the epoch with the best dev CIDEr) and beside it the history (.csv), its
        curves (.png), and what --resume needs (.checkpoint.npz).

  python finetune.py models/caption_model.h5
  python finetune.py models/caption_model.h5 --resume     # after a stop, with the options of before

Sizes, words and features stay those of MODEL."""


def parse_arguments() -> argparse.Namespace:
    """The command line's options, each with its default and its reason."""
    parser = cli.parser(DESCRIPTION)
    parser.add_argument("model", type=Path, metavar="MODEL", help="the captioner to start from")
    default = "models/finetuned.h5"
    parser.add_argument("--model_path", type=Path, default=default, help="what to write")
    batch = "photos per step, each with five sampled captions"
    cli.add_training_options(parser, epochs=6, batch_size=32, learning_rate=4e-5, batch=batch)
    return parser.parse_args()


def main() -> None:
    """Read the model and the pickles, and fine-tune it."""
    args = parse_arguments()
    cli.check_training(args, args.model)
    features, text = load_features(args.data_dir), load_captions(args.data_dir)

    cli.load_tensorflow()
    from captioning.training import Options, dev_examples
    from model import Captioner

    start = Captioner.load(args.model)
    if start.config.members > 1:
        raise InputError(
            f"{args.model} is an ensemble. Fine-tune its members, then put those together."
        )
    start.check_features(features)
    options = Options.from_arguments(args)
    record = options.record(args.batch_size, features, text) | {"start": start.config.training}
    captioner = prepare_for_scst(start, record)
    train, dev = (references(split, text, features) for split in ("train", "dev"))
    if not dev:
        cli.log("no dev captions: training without validation; the last epoch is kept.")
    examples = dev_examples(features, text)
    finetune(captioner, features["features"], train, dev, args.batch_size, options, examples)


def references(split: str, text: dict, features: dict) -> dict[int, list[str]]:
    """The human captions of a split's photos, by their row in the features."""
    from captioning.batches import caption_rows

    captions: dict[int, list[str]] = {}
    for row, caption in caption_rows(split, text, features):
        captions.setdefault(row, []).append(caption)
    return captions


def prepare_for_scst(start, record: dict):
    """A copy of a trained captioner in which features alone are dropped, `FEATURE_DROPOUT` of them.

    It knows the training photos by heart, and what it says of them teaches little: so a part of
    their features is hidden, in sampling and in the update alike. Otherwise it would learn
    off-policy, from samples of another network.

    The word vectors and the output layer are frozen: a photo's samples are too few to teach
    anything about a word, and training would distort rare words.
    """
    from model import Captioner, build_decoder

    config = replace(start.config, training=record)
    decoder = build_decoder(replace(config, dropout=FEATURE_DROPOUT))
    decoder.copy_pretrained(start.decoder)
    for name, dropout in decoder.dropouts.items():
        if name not in decoder.feature_inputs:
            dropout.rate = 0.0
    decoder.embedding.trainable = decoder.logits.trainable = False
    return Captioner(decoder, start.vocabulary, config)


def finetune(
    captioner,
    features: np.ndarray,
    train: dict[int, list[str]],
    dev: dict[int, list[str]],
    batch_size: int,
    options,
    examples: dict[str, np.ndarray] | None = None,
):
    """Train epoch by epoch, as `training.fit` does; the best epoch ends in the captioner's file.

    Args:
        captioner: from `prepare_for_scst`; trained in place.
        features: (N, …), may be memory-mapped.
        train: row of `features` -> human captions, tokenized.
        dev: the same of the dev split; may be empty.
        batch_size: P, photos per step.
        options: a `training.Options`.
        examples: as for `training.fit`.

    Returns:
        The `training.Recorder`, with the history.
    """
    import keras

    from captioning.callbacks import Recorder
    from captioning.scoring import CiderD
    from captioning.training import compile_for_training

    steps = -(-len(train) // batch_size)
    compile_for_training(captioner.decoder, options, options.epochs * steps)
    lines_with_end = [[[*line.split(), END_WORD] for line in lines] for lines in train.values()]
    scorer, sample = CiderD(lines_with_end), sampler(captioner, batch_size)
    dev_cider = greedy_cider(captioner, features, dev)
    before = dev_cider()
    if dev:
        cli.log(f"before fine-tuning: dev cider {before:.4f}")

    network, rows = captioner.decoder.network, np.array(list(train))
    recorder = Recorder(captioner, options, steps, measure="cider")
    callbacks = keras.callbacks.CallbackList(recorder.callbacks(examples or {}), model=network)
    network.stop_training = recorder.should_stop()
    with recorder:
        callbacks.on_train_begin()
        for epoch in range(len(recorder.rows), options.epochs):
            if network.stop_training:
                break
            callbacks.on_epoch_begin(epoch)
            batches = draw_batches(features, rows, batch_size, options.seed, epoch)
            logs = train_epoch(captioner, batches, sample, scorer, callbacks)
            callbacks.on_epoch_end(epoch, logs | ({"val_cider": dev_cider()} if dev else {}))
        callbacks.on_train_end()
    if dev and recorder.rows and before > max(row["dev_cider"] for row in recorder.rows):
        cli.log("no epoch improved on the start: lower --learning_rate.")
    return recorder


def draw_batches(features: np.ndarray, rows: np.ndarray, batch_size: int, seed: int, epoch: int):
    """All photos in an order of (seed, epoch): yields their positions in `rows` (P,), their
    features (P, …), and the batch's own seed. The last batch is filled up with the first photos.
    """
    order = np.random.default_rng((seed, epoch)).permutation(len(rows))
    order = np.resize(order, (-(-len(rows) // batch_size), batch_size))
    for step, photos in enumerate(order):
        yield photos, features[rows[photos]], (seed, epoch, step)


def train_epoch(captioner, batches, sample, scorer, callbacks) -> dict[str, float]:
    """Sample, reward, baseline, update, once for each batch.

    Args:
        captioner: its network is compiled.
        batches: from `draw_batches`.
        sample: from `sampler`.
        scorer: a `scoring.CiderD` of the training photos, by the same positions.
        callbacks: told of each batch.

    Returns:
        The last loss, and the mean CIDEr of the samples.
    """
    decoder, network = captioner.decoder, captioner.decoder.network
    rewards = []
    for step, (photos, images, seed) in enumerate(batches):
        decoder.seed_dropouts(*seed)
        tokens = sample(images, seed)  # (P * S, T)
        reward = score(scorer, captioner.vocabulary, photos, tokens)  # (P, S)
        baseline = (reward.sum(axis=1, keepdims=True) - reward) / (SAMPLES - 1)  # of the others
        advantage = (reward - baseline).reshape(-1, 1)  # (P * S, 1)

        # With the advantage as its weight, the cross-entropy's gradient is the policy's.
        weights = (tokens != PADDING) * advantage / len(tokens)  # (P * S, T)
        inputs = np.pad(tokens[:, :-1], ((0, 0), (1, 0)), constant_values=START)
        images = np.repeat(images, SAMPLES, axis=0)  # (P * S, …)
        decoder.seed_dropouts(*seed)  # the update misses what the samples missed
        loss = network.train_on_batch([images, inputs], tokens, weights.astype(np.float32))

        rewards.append(reward.mean())
        callbacks.on_train_batch_end(step, {"loss": loss})
        if network.stop_training:  # the loss is no longer a number
            break
    return {"loss": float(loss), "cider": float(np.mean(rewards))}


def sampler(captioner, batch_size: int):
    """A function that draws captions: (images (P, …), seed) -> tokens (P * S, T) int32."""
    import tensorflow as tf

    from captioning.batches import padded
    from captioning.decoding import sample_captions

    decoder = captioner.decoder
    width = batch_size * SAMPLES
    length = min(MAX_WORDS, captioner.config.max_length + 1)  # with the END

    # Compiled as the update is: otherwise its dropout would draw other numbers.
    @tf.function(jit_compile=decoder.network.jit_compile)
    def init_state(images):
        return decoder.init_state(tf.repeat(images, SAMPLES, axis=0), training=True)

    @tf.function
    def draw(state, seed):
        return sample_captions(decoder.step, state, width, length, seed)

    def sample(images, seed):
        words = np.random.SeedSequence(seed).generate_state(2).view(np.int32)
        tokens = draw(init_state(images), tf.constant(words)).numpy()  # (P * S, length)
        longest = int((tokens != PADDING).sum(axis=1).max())
        more = np.pad(tokens, ((0, 0), (0, WIDTH_STEP)), constant_values=PADDING)
        return more[:, : padded(longest, WIDTH_STEP)]

    return sample


def score(scorer, vocabulary, photos: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """CIDEr-D of every sample, (P, S): of photos (P,), by position, and tokens (P * S, T)."""
    rewards = []
    for photo, ids in zip(np.repeat(photos, SAMPLES), tokens, strict=True):
        end = [END_WORD] if END in ids else []
        rewards.append(scorer.score(photo, [*vocabulary.decode(ids).split(), *end]))
    return np.reshape(rewards, (len(photos), SAMPLES))


def greedy_cider(captioner, features: np.ndarray, photos: dict[int, list[str]]):
    """A function that gives the mean CIDEr-D of the photos' greedy captions; NaN without photos."""
    from captioning.scoring import CiderD

    scorer = CiderD([[caption.split() for caption in lines] for lines in photos.values()])
    images = features[list(photos)]  # (N, …)

    def cider() -> float:
        captions = captioner.caption_features(images)
        scores = [scorer.score(i, caption.split()) for i, caption in enumerate(captions)]
        return float(np.mean(scores)) if scores else float("nan")

    return cider


if __name__ == "__main__":
    cli.run(main, "The same command with --resume continues after the last finished epoch.")
