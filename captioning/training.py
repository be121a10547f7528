"""The training run: Keras' fit, and what is written after every epoch."""

import csv
import math
import time
from dataclasses import asdict, replace
from pathlib import Path

import keras
import numpy as np

from captioning import cli
from captioning.acceleration import accelerate
from captioning.batches import CaptionBatches
from captioning.checkpoint import load_checkpoint, save_checkpoint
from captioning.files import InputError, atomic_path, one_line
from captioning.plots import draw_curves
from model import Captioner

SHOWN = 3  # dev images whose captions are shown after each epoch


def compile_for_training(network: keras.Model, learning_rate, weight_decay: float = 0.0) -> None:
    """Adam on the cross-entropy per token, in nats: the mean of the batches' weighted sums.

    With weight decay it is AdamW (Loshchilov & Hutter 2019), without it the plain one.
    """
    network.compile(
        optimizer=keras.optimizers.AdamW(learning_rate, weight_decay=weight_decay),
        loss=_cross_entropy(),
        jit_compile=accelerate(network),
    )


def _cross_entropy() -> keras.losses.Loss:
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="sum")


def loss_per_token(network: keras.Model, batches: CaptionBatches) -> float:
    """The network's loss on all captions of a split, in nats per token."""
    # Without XLA: compiling it for every width would take longer than a single pass without.
    network.compile(loss=_cross_entropy(), jit_compile=False)
    return float(network.evaluate(batches.dataset(), verbose=0))


def dev_examples(features: dict, text: dict) -> dict[str, np.ndarray]:
    """The first dev image and those after one and two thirds of the split, with their features.

    Args:
        features: the content of features.pkl.
        text: the content of captions.pkl.
    """
    split = text["splits"]["dev"]
    chosen = [split[i * len(split) // SHOWN] for i in range(min(SHOWN, len(split)))]
    return {i: features["features"][features["image_ids"].index(i)] for i in chosen}


def fit(
    log: "EpochLog",
    dev: CaptionBatches | None,
    learning_rate: float,
    weight_decay: float,
    tensorboard: Path | None = None,
) -> None:
    """Train `log.captioner` on `log.train` for `log.epochs` epochs, less those already done.

    Args:
        log: what is trained, on what, and where it goes; `take_up` may have resumed it.
        dev: dev batches; None trains without their loss.
        learning_rate: Adam's at the start; it falls to 0 over all epochs, along half a cosine.
        weight_decay: share of each weight, times the learning rate, that a step takes away.
        tensorboard: a folder for Keras' callback of that name, which writes every epoch's measures.

    Raises:
        InputError: the loss is no longer a number, or the run cannot be resumed.
    """
    network, train = log.captioner.network, log.train
    steps = log.epochs * len(train)
    schedule = keras.optimizers.schedules.CosineDecay(learning_rate, steps)  # down to 0 at the end
    compile_for_training(network, schedule, weight_decay)
    log.take_up()
    callbacks = [log, keras.callbacks.TerminateOnNaN()]
    if tensorboard is not None:
        callbacks.append(keras.callbacks.TensorBoard(tensorboard, write_graph=False))
    try:
        if not log.finished():
            network.fit(
                train.dataset(),
                validation_data=dev.dataset() if dev is not None else None,
                initial_epoch=len(log.rows),
                epochs=log.epochs,
                callbacks=callbacks,
                verbose=0,
                shuffle=False,  # the batches have their own order
            )
    finally:  # Ctrl-C keeps what is finished
        log.close()
    if log.diverged:
        raise InputError("the loss is no longer a number: lower --learning_rate and train again.")


class EpochLog(keras.callbacks.Callback):
    """Seeds every epoch, shows its progress, and writes after it all that must not be lost.

    The best epoch, or the last, is kept in `model_path`; beside it go the history, under the same
    name with .csv, its curves (.png), and what resuming needs (.checkpoint.npz).

    Attributes:
        rows: the history, a dict for each finished epoch. The best epoch, and whether to stop,
            follow from it.
        shown: images to be captioned after each epoch: their ids and features.
    """

    measure = "loss"  # of an epoch, in training and on dev

    def __init__(
        self,
        captioner: Captioner,
        train: CaptionBatches,
        model_path: Path,
        epochs: int,
        patience: int | None,
        resume: bool = False,
    ):
        """Take what is trained.

        Args:
            captioner: to be trained in place; its network ends as the last epoch left it.
            train: training batches.
            model_path: the .h5 to write.
            epochs: at most so many.
            patience: epochs without a better dev measure after which training stops; None does
                all epochs, and keeps the last instead of the best.
            resume: go on after the last finished epoch of a run that was stopped.
        """
        super().__init__()
        self.captioner, self.train, self.model_path = captioner, train, model_path
        self.epochs, self.patience, self.resume = epochs, patience, resume
        self.shown: dict[str, np.ndarray] = {}
        self.checkpoint = model_path.with_suffix(".checkpoint.npz")
        self.rows: list[dict] = []
        self.bar = None  # of the epoch under way
        self.diverged = False

    def take_up(self) -> None:
        """Go on from the checkpoint, or say that one is left alone."""
        if not self.checkpoint.is_file():
            if self.resume:
                cli.say(f"{self.checkpoint} is not there: starting with the first epoch.")
            return
        if not self.resume:
            cli.say(f"starting anew; --resume would go on from {self.checkpoint}.")
            return
        config = asdict(self.captioner.config)
        self.rows = load_checkpoint(self.checkpoint, self.captioner.network, config)
        if not self.model_path.is_file():
            raise InputError(
                f"{self.model_path} is gone, and with it the epoch that was kept. Train without "
                f"--resume."
            )
        left = "nothing is left to do" if self.finished() else "going on after them"
        cli.say(f"epochs finished: {len(self.rows)}; {left}.")

    def kept(self) -> dict:
        """The row of the epoch that is kept: by the dev measure, or the last."""
        dev = f"dev_{self.measure}"
        if self.patience is None or self.rows[-1][dev] is None:
            return self.rows[-1]
        return min(self.rows, key=lambda row: self.badness(row[dev]))

    def badness(self, value: float) -> float:
        """What is lowest for the best value of the measure."""
        return value

    def measured(self, logs: dict) -> tuple[float, float | None]:
        """The measure of the epoch just ended, in training and on dev."""
        return logs["loss"], logs.get("val_loss")

    def finished(self) -> bool:
        """Whether all epochs are done, or too many since the best one."""
        if not self.rows:
            return False
        waited = len(self.rows) - self.kept()["epoch"]
        return len(self.rows) >= self.epochs or waited >= (self.patience or self.epochs)

    def on_epoch_begin(self, epoch, logs=None):
        """Draw the order and the dropout from (seed, epoch), so that any epoch can be repeated."""
        self.train.epoch = epoch
        for number, layer in enumerate(self.model.layers):
            if isinstance(layer, keras.layers.Dropout) and layer.rate > 0:
                entropy = np.random.SeedSequence((self.train.seed, number, epoch))
                layer.seed_generator.state.assign(entropy.generate_state(2))
        self.started = time.perf_counter()
        title = f"epoch {epoch + 1}/{self.epochs}"
        self.bar = cli.progress(len(self.train), "batch", title, leave=False)

    def on_train_batch_end(self, batch, logs=None):
        """One batch on."""
        self.bar.update()

    def on_epoch_end(self, epoch, logs=None):
        """Write the model when it is the one to be kept, the history, and then the checkpoint."""
        self.bar.close()
        if not all(map(math.isfinite, logs.values())):
            self.diverged = self.model.stop_training = True
            return
        train, dev = self.measured(logs)
        logs[self.measure] = train  # which TensorBoard's callback, after this one, writes
        if dev is not None:
            logs[f"val_{self.measure}"] = dev
        row = {
            "epoch": epoch + 1,
            f"train_{self.measure}": train,
            f"dev_{self.measure}": dev,
            "seconds": time.perf_counter() - self.started,
        }
        self.rows.append(row)
        kept = self.kept() is row
        if len(self.rows) == 1:  # from here on an earlier run's belongs to nothing
            self.checkpoint.unlink(missing_ok=True)
        if kept:
            self.save(row)
        self.write_history()
        # Last: an epoch counts as finished when all of it is on the disk.
        config = asdict(self.captioner.config)
        save_checkpoint(self.checkpoint, self.model, config, self.rows)
        on_dev = "" if dev is None else f"  dev {self.measure} {dev:.4f}"
        print(
            f"epoch {epoch + 1}/{self.epochs}  train {self.measure} {train:.4f}{on_dev}  "
            f"{row['seconds']:.1f} s{'  saved' if kept else ''}",
            flush=True,
        )
        self.show()
        if self.finished():
            self.model.stop_training = True

    def show(self) -> None:
        """Print what the network now says of a few dev images, decoding greedily."""
        if self.shown:
            captions = self.captioner.caption_features(np.stack(list(self.shown.values())))
            for image_id, caption in zip(self.shown, captions, strict=True):
                print(f"    {one_line(image_id)}: {caption}", flush=True)

    def save(self, row: dict) -> None:
        """Write the model, with the epoch and the measures that speak for it."""
        kept = {name: value for name, value in row.items() if name != "seconds"}
        config = self.captioner.config
        config = replace(config, training=config.training | {"kept": kept})
        Captioner(self.captioner.network, self.captioner.vocabulary, config).save(self.model_path)

    def write_history(self) -> None:
        """Write the measures of all epochs so far as a CSV file."""
        with (
            atomic_path(self.model_path.with_suffix(".csv")) as path,
            path.open("w", newline="") as file,
        ):
            writer = csv.DictWriter(file, self.rows[0])
            writer.writeheader()
            writer.writerows(self.rows)

    def close(self) -> None:
        """Draw the curves and say where everything is."""
        if self.bar is not None:
            self.bar.close()
        if not self.rows or not self.model_path.is_file():
            cli.say("no epoch was finished: no model was written.")
            return
        draw_curves(self.rows, self.measure, self.kept(), self.model_path.with_suffix(".png"))
        print(
            f"kept epoch {self.kept()['epoch']} in {self.model_path}; history in "
            f"{self.model_path.with_suffix('.csv')} and {self.model_path.with_suffix('.png')}"
        )
        print("next: python generate_caption.py --image_path x.jpg --model_path", self.model_path)
