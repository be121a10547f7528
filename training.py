"""The training run: Keras' fit, and what is written after every epoch."""

import csv
import math
import time
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np

import cli
from acceleration import accelerate
from batches import CaptionBatches
from figures import draw_curves
from files import InputError, atomic_path
from model import Captioner

HISTORY = ("epoch", "train_loss", "dev_loss", "seconds")  # the columns of the CSV


def compile_for_training(network: keras.Model, learning_rate) -> None:
    """Adam on the cross-entropy per token, in nats: the mean of the batches' weighted sums."""
    network.compile(
        optimizer=keras.optimizers.Adam(learning_rate),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="sum"),
        jit_compile=accelerate(network),
    )


def loss_per_token(network: keras.Model, batches: CaptionBatches) -> float:
    """The network's loss on all captions of a split, in nats per token."""
    compile_for_training(network, learning_rate=1.0)  # nothing is learnt here
    return float(network.evaluate(batches.dataset(), verbose=0))


def fit(
    captioner: Captioner,
    train: CaptionBatches,
    dev: CaptionBatches | None,
    *,
    model_path: Path,
    epochs: int,
    learning_rate: float,
    patience: int,
) -> None:
    """Train, keeping the best epoch in `model_path` and the history beside it.

    Args:
        captioner: to be trained in place; its network ends as the last epoch left it.
        train: training batches.
        dev: dev batches; None trains without validation and keeps the last epoch.
        model_path: the .h5; the history goes to the same name with .csv, its curves to .png.
        epochs: at most so many.
        learning_rate: Adam's at the start; it falls to 0 over all epochs, along half a cosine.
        patience: epochs without a better dev loss after which training stops.

    Raises:
        InputError: the loss is no longer a number.
    """
    steps = epochs * len(train)
    schedule = keras.optimizers.schedules.CosineDecay(learning_rate, steps)  # down to 0 at the end
    compile_for_training(captioner.network, schedule)
    log = EpochLog(captioner, train, model_path, epochs)
    callbacks = [log, keras.callbacks.TerminateOnNaN()]
    if dev is not None:
        callbacks.append(keras.callbacks.EarlyStopping("val_loss", mode="min", patience=patience))
    try:
        captioner.network.fit(
            train.dataset(),
            validation_data=dev.dataset() if dev is not None else None,
            epochs=epochs,
            callbacks=callbacks,
            verbose=0,
            shuffle=False,  # CaptionBatches has its own order
        )
    finally:  # Ctrl-C keeps what is finished
        log.close()
    if not log.rows or not math.isfinite(log.rows[-1]["train_loss"]):
        raise InputError("the loss is no longer a number: lower --learning_rate and train again.")


class EpochLog(keras.callbacks.Callback):
    """Seeds every epoch, shows its progress, and writes the history and the best model after it."""

    def __init__(self, captioner: Captioner, train: CaptionBatches, model_path: Path, epochs: int):
        super().__init__()
        self.captioner, self.train, self.model_path = captioner, train, model_path
        self.epochs = epochs
        self.rows: list[dict] = []
        self.bar = None  # of the epoch under way
        self.best = math.inf

    def on_epoch_begin(self, epoch, logs=None):
        """Draw the order and the dropout from (seed, epoch), so that any epoch can be repeated."""
        self.train.epoch = epoch
        for number, layer in enumerate(self.model.layers):
            if isinstance(layer, keras.layers.Dropout):
                entropy = np.random.SeedSequence((self.train.seed, number, epoch))
                layer.seed_generator.state.assign(entropy.generate_state(2))
        self.started = time.perf_counter()
        title = f"epoch {epoch + 1}/{self.epochs}"
        self.bar = cli.progress(len(self.train), "batch", title, leave=False)

    def on_train_batch_end(self, batch, logs=None):
        """One batch on."""
        self.bar.update()

    def on_epoch_end(self, epoch, logs=None):
        """Write the history, and the model when it is the best so far."""
        self.bar.close()
        row = {
            "epoch": epoch + 1,
            "train_loss": logs["loss"],
            "dev_loss": logs.get("val_loss"),
            "seconds": time.perf_counter() - self.started,
        }
        self.rows.append(row)
        judged = row["train_loss"] if row["dev_loss"] is None else row["dev_loss"]
        best = math.isfinite(judged) and (row["dev_loss"] is None or judged < self.best)
        if best:
            self.best = judged
            self.save()
        self.write_history()
        dev = "" if row["dev_loss"] is None else f"  dev loss {row['dev_loss']:.4f}"
        print(
            f"epoch {epoch + 1}/{self.epochs}  train loss {row['train_loss']:.4f}{dev}  "
            f"{row['seconds']:.1f} s{'  saved' if best else ''}",
            flush=True,
        )

    def save(self) -> None:
        """Write the model, with the epoch and the losses that speak for it."""
        config = self.captioner.config
        row = self.rows[-1]
        kept = {"epoch": row["epoch"], "train_loss": row["train_loss"], "dev_loss": row["dev_loss"]}
        self.captioner.config = replace(config, training=config.training | {"kept": kept})
        self.captioner.save(self.model_path)

    def write_history(self) -> None:
        """Write the losses of all epochs so far as a CSV file."""
        with (
            atomic_path(self.model_path.with_suffix(".csv")) as path,
            path.open("w", newline="") as file,
        ):
            writer = csv.DictWriter(file, HISTORY)
            writer.writeheader()
            writer.writerows(self.rows)

    def close(self) -> None:
        """Draw the curves and say where everything is."""
        if self.bar is not None:
            self.bar.close()
        kept = self.captioner.config.training.get("kept")
        if kept is None:
            cli.say("no epoch was finished: no model was written.")
            return
        draw_curves(self.rows, self.model_path.with_suffix(".png"))
        print(
            f"kept epoch {kept['epoch']} in {self.model_path}; losses in "
            f"{self.model_path.with_suffix('.csv')} and {self.model_path.with_suffix('.png')}"
        )
        print("next: python generate_caption.py --image_path x.jpg --model_path", self.model_path)
