"""Training: how, the loss, and Keras' fit."""

from dataclasses import dataclass, fields
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from captioning.batches import CaptionBatches
from captioning.callbacks import Recorder
from captioning.decoder import Decoder

EXAMPLES = 3  # dev images whose captions are shown after each epoch
AT_ONCE = 5  # batches that Keras runs in one call of TensorFlow
# The sum over all tokens, in nats, each times its weight.
CROSS_ENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="sum")


@dataclass(frozen=True)
class Options:
    """How a captioner is trained: the options of `cli.add_training_options`, explained there."""

    model_path: Path  # the .h5; history, curves and checkpoint go beside it
    epochs: int
    learning_rate: float
    weight_decay: float = 0.0
    patience: int | None = None  # None does all epochs and keeps the last instead of the best
    seed: int = 0
    resume: bool = False
    tensorboard: Path | None = None

    @classmethod
    def from_arguments(cls, args) -> "Options":
        given = {known.name: getattr(args, known.name) for known in fields(cls)}
        return cls(**given | {"patience": args.patience if args.keep == "best" else None})

    def record(self, batch_size: int, features: dict, text: dict) -> dict:
        """What the captioner's file says of its training; a resumed run must have the same."""
        names = ("epochs", "learning_rate", "weight_decay", "patience", "seed")
        data = text["settings"] | {"features": features["fingerprint"]}
        own = {name: getattr(self, name) for name in names}
        return own | {"batch_size": batch_size, "data": data}


def compile_for_training(decoder: Decoder, options: Options, steps: int) -> None:
    """Adam on the cross-entropy per token; AdamW with weight decay (Loshchilov & Hutter 2019).

    Without a GPU the network is compiled by XLA, and from then on can only be trained so. On a GPU
    XLA would keep the LSTM from cuDNN's kernel. The learning rate falls over all `steps`.
    """
    xla = not tf.config.list_physical_devices("GPU")
    for dropout in decoder.dropouts.values():
        dropout.rng_alg = "threefry" if xla else "philox"
    schedule = keras.optimizers.schedules.CosineDecay(options.learning_rate, steps)
    optimizer = keras.optimizers.AdamW(schedule, weight_decay=options.weight_decay)
    word_vectors, variables = decoder.embedding.embeddings, decoder.network.trainable_variables
    # Matrices alone decay, as is usual: not biases, and not the vectors of words.
    kept = [v for v in variables if len(v.shape) < 2 or v is word_vectors]
    optimizer.exclude_from_weight_decay(kept)
    decoder.network.compile(optimizer, CROSS_ENTROPY, jit_compile=xla, steps_per_execution=AT_ONCE)


def loss_per_token(network: keras.Model, batches: CaptionBatches) -> float:
    """The network's loss on all captions of a split, in nats per token."""
    # Without XLA: compiling it for every width would take longer than a single pass without.
    network.compile(loss=CROSS_ENTROPY, jit_compile=False)
    return float(network.evaluate(batches.dataset(), verbose=0))


def fit(
    captioner,
    train: CaptionBatches,
    dev: CaptionBatches | None,
    options: Options,
    examples: dict[str, np.ndarray] | None = None,
) -> Recorder:
    """Train a captioner with Keras' fit; the best epoch ends in its file.

    Its network ends as the last epoch left it. Examples are features of dev images by id, which
    are captioned after each epoch. Raises InputError if features or the loss are not finite, or the
    run cannot be resumed.
    """
    decoder, network = captioner.decoder, captioner.decoder.network
    compile_for_training(decoder, options, options.epochs * len(train))
    recorder = Recorder(captioner, options, len(train))

    def seed(epoch, logs):  # order and dropout: so epochs can be repeated
        train.epoch = epoch
        decoder.seed_dropouts(options.seed, epoch)

    seeds = keras.callbacks.LambdaCallback(on_epoch_begin=seed)
    with recorder:
        try:
            if not recorder.should_stop():
                network.fit(
                    train.dataset(),
                    validation_data=dev.dataset() if dev else None,
                    initial_epoch=len(recorder.rows),
                    epochs=options.epochs,
                    callbacks=[seeds, *recorder.callbacks(examples)],
                    verbose=0,
                    shuffle=False,  # the batches have their own order
                )
        except tf.errors.OpError as error:
            fault = train.fault or (dev and dev.fault)
            if fault:
                raise fault from error
            raise
    return recorder


def dev_examples(features: dict, text: dict) -> dict[str, np.ndarray]:
    """The first dev image and those after one and two thirds of the split, with their features."""
    split = text["splits"]["dev"]
    chosen = [split[i * len(split) // EXAMPLES] for i in range(min(EXAMPLES, len(split)))]
    return {i: features["features"][features["image_ids"].index(i)] for i in chosen}
