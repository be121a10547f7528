"""Fine-tune a trained captioner on CIDEr, by self-critical sequence training.

Five captions of each training photo are sampled, and each is reinforced by its CIDEr-D minus the
mean of the others. Sizes, words and features stay those of MODEL.

Reads   MODEL (.h5, from train.py), DATA_DIR/features.pkl and DATA_DIR/captions.pkl.
Writes  MODEL_PATH (.h5, the epoch with the best dev CIDEr) and beside it the history (.csv), its
        curves (.png), and what --resume needs (.checkpoint.npz).

  python finetune.py models/caption_model.h5
  python finetune.py models/caption_model.h5 --resume     # after a stop, with the same options"""

from dataclasses import replace
from pathlib import Path

import numpy as np

from captioning import cli
from captioning.captions import END, PADDING, START, load_captions
from captioning.features import all_photos, finite, load_features
from captioning.files import InputError

SAMPLES = 5  # captions drawn of each photo; each one's baseline is the mean of the other four
FEATURE_DROPOUT = 0.3  # share of a photo's floats (benchmarks/quality.md)
MAX_WORDS = 16  # of a sample; 7 % of the training captions are longer, and all would pay for it
WIDTH_STEP = 4  # tokens; samples are padded to a multiple, for XLA compiles every width anew
END_WORD = "<end>"  # scored like a word: otherwise captions would stop in mid-sentence
# All this in SacreEOS' words (Hu et al. 2023), for whoever compares figures: the end is scored, and
# counted in the words' frequencies, which are the training captions'.
VARIANT = f"STANDARD_wInit+Cider-D[n4,s6.0]+average[nspi{SAMPLES}]+1.0.0"


def main() -> None:
    """Read the model and the pickles, and fine-tune it."""
    parser = cli.parser(__doc__)
    add = parser.add_argument
    add("model", type=Path, metavar="MODEL", help="the captioner to start from")
    add("--model_path", type=Path, default="models/finetuned.h5", help="what to write")
    batch = "photos per step, each with five sampled captions"
    cli.add_training_options(parser, epochs=6, batch_size=32, learning_rate=4e-5, batch=batch)
    args = parser.parse_args()
    cli.check_training(args, args.model)
    features, text = load_features(args.data_dir), load_captions(args.data_dir)

    cli.load_tensorflow()
    from captioning.batches import caption_rows
    from captioning.training import Options, dev_examples
    from model import Captioner

    start = Captioner.load_h5(args.model)
    if start.config.members > 1:
        raise InputError(
            f"{args.model} is an ensemble. Fine-tune its members, then put those together."
        )
    start.check_features(features)
    options = Options.from_arguments(args)
    record = options.record(args.batch_size, features, text)
    record |= {"scst": VARIANT, "start": start.config.training}
    captioner = prepare_for_scst(start, record)
    image_ids, captions = features["image_ids"], text["captions"]
    train, dev = (
        {row: captions[image_ids[row]] for row, _ in caption_rows(split, text, features)}
        for split in ("train", "dev")
    )
    captioner.photos = all_photos([features["photos"][list(train)], start.photos])
    if not dev:
        cli.log("no dev captions: training without validation; the last epoch is kept.")
    examples = dev_examples(features, text)
    finetune(captioner, features["features"], train, dev, args.batch_size, options, examples)


def prepare_for_scst(start, record: dict):
    """A copy of a trained captioner in which features alone are dropped, `FEATURE_DROPOUT` of them.

    It knows the training photos by heart, and what it says of them teaches little: so a part of
    their features is hidden, in sampling and in the update alike. Otherwise it would learn
    off-policy, from samples of another network. The word vectors and the output layer are frozen:
    a photo's samples are too few to teach anything about a word, and would distort rare words.
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
    captioner, features: np.ndarray, train: dict, dev: dict, batch_size: int, options, examples=None
):
    """Train epoch by epoch, as `training.fit` does; the best epoch ends in the captioner's file.

    Args:
        captioner: from `prepare_for_scst`; trained in place.
        features: (N, …), may be memory-mapped.
        train: row of `features` -> human captions, tokenized; `dev`, which may be empty, likewise.
        batch_size: P, photos per step.
        options: as for `training.fit`, and `examples`; as there, a `Recorder` is returned.
    """
    import keras

    from captioning.callbacks import Recorder
    from captioning.cider import CiderD
    from captioning.training import compile_for_training

    steps = -(-len(train) // batch_size)
    compile_for_training(captioner.decoder, options, options.epochs * steps)
    human = [[line.split() for line in lines] for lines in train.values()]
    scorer = CiderD([[[*line, END_WORD] for line in lines] for lines in human])
    sample = sampler(captioner, batch_size)
    dev_cider = greedy_cider(captioner, features, dev, human)
    before = dev_cider()
    if dev:
        cli.log(f"before fine-tuning: dev cider {before:.4f}")

    network, rows = captioner.decoder.network, np.array(list(train))
    recorder = Recorder(captioner, options, steps, measure="cider")
    callbacks = keras.callbacks.CallbackList(recorder.callbacks(examples), model=network)
    network.stop_training = recorder.should_stop()
    with recorder:
        callbacks.on_train_begin()
        for epoch in range(len(recorder.rows), options.epochs):
            if network.stop_training:
                break
            callbacks.on_epoch_begin(epoch)
            seed = (options.seed, epoch)
            order = np.random.default_rng(seed).permutation(len(rows))
            order = np.resize(order, (steps, batch_size))  # (steps, P), its end filled up
            batches = ((photos, features[rows[photos]]) for photos in order)
            logs = train_epoch(captioner, batches, seed, sample, scorer, callbacks)
            callbacks.on_epoch_end(epoch, logs | ({"val_cider": dev_cider()} if dev else {}))
        callbacks.on_train_end()
    if dev and recorder.rows and before > max(row["dev_cider"] for row in recorder.rows):
        cli.log("no epoch improved on the start: lower --learning_rate.")
    return recorder


def train_epoch(captioner, batches, seed, sample, scorer, callbacks) -> dict[str, float]:
    """Sample, reward, baseline, update, once for each batch; returns the epoch's logs.

    A batch is the positions of its photos (P,), by which `scorer` knows them, and their features
    (P, …); `sample` is from `sampler`.
    """
    decoder, network = captioner.decoder, captioner.decoder.network
    rewards = []
    for step, (photos, images) in enumerate(batches):
        finite(images)
        decoder.seed_dropouts(*seed, step)
        tokens = sample(images, (*seed, step))  # (P * S, T)
        reward = score(scorer, captioner.vocabulary, photos, tokens)  # (P, S)
        baseline = (reward.sum(axis=1, keepdims=True) - reward) / (SAMPLES - 1)  # of the others
        advantage = (reward - baseline).reshape(-1, 1)  # (P * S, 1)

        # With the advantage as its weight, the cross-entropy's gradient is the policy's, but for
        # what is never sampled, as <unk>: it has its share of the softmax here.
        weights = (tokens != PADDING) * advantage / len(tokens)  # (P * S, T)
        inputs = np.pad(tokens[:, :-1], ((0, 0), (1, 0)), constant_values=START)
        images = np.repeat(images, SAMPLES, axis=0)  # (P * S, …)
        decoder.seed_dropouts(*seed, step)  # the update misses what the samples missed
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
    length = min(MAX_WORDS, captioner.config.max_length + 1)  # with the END

    # Compiled as the update is: otherwise its dropout would draw other numbers.
    @tf.function(jit_compile=decoder.network.jit_compile)
    def init_state(images):
        return decoder.init_state(tf.repeat(images, SAMPLES, axis=0), training=True)

    @tf.function
    def draw(state, seed):
        return sample_captions(decoder.step, state, batch_size * SAMPLES, length, seed)

    def sample(images, seed):
        words = np.random.SeedSequence(seed).generate_state(2).view(np.int32)
        tokens = draw(init_state(images), tf.constant(words)).numpy()  # (P * S, length)
        width = padded((tokens != PADDING).sum(axis=1).max(), WIDTH_STEP)
        return np.pad(tokens, ((0, 0), (0, WIDTH_STEP)), constant_values=PADDING)[:, :width]

    return sample


def score(scorer, vocabulary, photos: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """CIDEr-D of every sample, (P, S): of photos (P,), by position, and tokens (P * S, T)."""
    said = [[*vocabulary.decode(ids).split(), *[END_WORD] * (END in ids)] for ids in tokens]
    rewards = list(map(scorer.score, np.repeat(photos, SAMPLES), said))
    return np.reshape(rewards, (len(photos), SAMPLES))


def greedy_cider(captioner, features: np.ndarray, photos: dict[int, list[str]], human: list):
    """A function that gives the mean CIDEr-D of the photos' greedy captions; NaN without photos.

    Words are weighed by `human`, the training captions: so a few photos have a score, too.
    """
    from captioning.cider import CiderD

    references = [[caption.split() for caption in lines] for lines in photos.values()]
    scorer = CiderD(references, human)
    images = features[list(photos)]  # (N, …)

    def cider() -> float:
        captions = captioner.caption_features(images)
        scores = [scorer.score(i, caption.split()) for i, caption in enumerate(captions)]
        return float(np.mean(scores)) if scores else float("nan")

    return cider


if __name__ == "__main__":
    cli.run(main, "The same command with --resume continues after the last finished epoch.")
