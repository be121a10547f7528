"""Training: how, the loss, and Keras' fit."""

from dataclasses import dataclass, fields
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from captioning.batches import CaptionBatches
from captioning.callbacks import Recorder, Seeds
from captioning.decoder import Decoder

EXAMPLES = 3  # dev images whose captions are shown after each epoch


@dataclass(frozen=True)
class Options:
    """How a captioner is trained.

    Attributes:
        model_path: the .h5 to write; history, curves and checkpoint go beside it.
        epochs: passes over the training captions, at most.
        learning_rate: Adam's at the start; it falls to 0 over all epochs along half a cosine.
        weight_decay: share of each weight, times the learning rate, that a step takes away.
        patience: epochs without a better dev measure after which training stops; None does all
            epochs and keeps the last instead of the best.
        seed: of the order of the captions and of the dropout.
        resume: continue after the last finished epoch of a run that was stopped.
        tensorboard: a folder for Keras' callback of that name.
    """

    model_path: Path
    epochs: int
    learning_rate: float
    weight_decay: float = 0.0
    patience: int | None = None
    seed: int = 0
    resume: bool = False
    tensorboard: Path | None = None

    @classmethod
    def from_arguments(cls, args) -> "Options":
        """From a command line that has `cli.add_training_options`."""
        given = {known.name: getattr(args, known.name) for known in fields(cls)}
        return cls(**given | {"patience": args.patience if args.keep == "best" else None})

    def record(self, batch_size: int, features: dict, text: dict) -> dict:
        """What the captioner's file says of its training; a resumed run must have the same.

        Args:
            batch_size: captions, or photos, per step.
            features: the content of features.pkl.
            text: the content of captions.pkl.
        """
        names = ("epochs", "learning_rate", "weight_decay", "patience", "seed")
        data = text["settings"] | {"features": features["fingerprint"]}
        own = {name: getattr(self, name) for name in names}
        return own | {"batch_size": batch_size, "data": data}


def cross_entropy() -> keras.losses.Loss:
    """The sum over all tokens, in nats, each times its weight."""
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="sum")


def compile_for_training(decoder: Decoder, options: Options, steps: int) -> None:
    """Adam on the cross-entropy per token; AdamW with weight decay (Loshchilov & Hutter 2019).

    Without a GPU the network is compiled by XLA, and from then on can only be trained so. On a GPU
    XLA would keep the LSTM from cuDNN's kernel.

    Args:
        decoder: the network.
        options: learning rate and weight decay.
        steps: of the whole training, over which the learning rate falls.
    """
    xla = not tf.config.list_physical_devices("GPU")
    for dropout in decoder.dropouts.values():
        dropout.rng_alg = "threefry" if xla else "philox"
    schedule = keras.optimizers.schedules.CosineDecay(options.learning_rate, steps)
    optimizer = keras.optimizers.AdamW(schedule, weight_decay=options.weight_decay)
    decoder.network.compile(optimizer, cross_entropy(), jit_compile=xla)


def loss_per_token(network: keras.Model, batches: CaptionBatches) -> float:
    """The network's loss on all captions of a split, in nats per token."""
    # Without XLA: compiling it for every width would take longer than a single pass without.
    network.compile(loss=cross_entropy(), jit_compile=False)
    return float(network.evaluate(batches.dataset(), verbose=0))


def fit(
    captioner,
    train: CaptionBatches,
    dev: CaptionBatches | None,
    options: Options,
    examples: dict[str, np.ndarray] | None = None,
) -> Recorder:
    """Train a captioner with Keras' fit; the best epoch ends in its file.

    Args:
        captioner: a `model.Captioner`, trained in place; its network ends as the last epoch left
            it.
        train: training batches.
        dev: dev batches; None trains without their loss.
        options: see there.
        examples: dev images by id, whose features are captioned after each epoch.

    Raises:
        InputError: the loss is no longer a number, or the run cannot be resumed.
    """
    network = captioner.decoder.network
    compile_for_training(captioner.decoder, options, options.epochs * len(train))
    recorder = Recorder(captioner, options, len(train))
    seeds = Seeds(captioner.decoder, options.seed, train)
    with recorder:
        if not recorder.should_stop():
            network.fit(
                train.dataset(),
                validation_data=dev.dataset() if dev is not None else None,
                initial_epoch=len(recorder.rows),
                epochs=options.epochs,
                callbacks=[seeds, *recorder.callbacks(examples or {})],
                verbose=0,
                shuffle=False,  # the batches have their own order
            )
    return recorder


def dev_examples(features: dict, text: dict) -> dict[str, np.ndarray]:
    """The first dev image and those after one and two thirds of the split, with their features.

    Args:
        features: the content of features.pkl.
        text: the content of captions.pkl.
    """
    split = text["splits"]["dev"]
    chosen = [split[i * len(split) // EXAMPLES] for i in range(min(EXAMPLES, len(split)))]
    return {i: features["features"][features["image_ids"].index(i)] for i in chosen}
