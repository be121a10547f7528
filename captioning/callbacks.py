"""Callbacks of training.fit and of finetune.py's own loop: samples, and the record of a run."""

import csv
import math
import time
from dataclasses import asdict, replace

import keras
import numpy as np

from captioning import cli
from captioning.captions import as_written
from captioning.checkpoint import load_checkpoint, save_checkpoint
from captioning.files import InputError, atomic_path, one_line
from captioning.plots import draw_curves


class SampleCaptions(keras.callbacks.Callback):
    """Prints, after each epoch, what the network now says of a few images, decoding greedily."""

    def __init__(self, captioner, examples: dict[str, np.ndarray] | None):
        super().__init__()
        self.captioner, self.examples = captioner, examples

    def on_epoch_end(self, epoch, logs=None):
        if self.examples and all(map(math.isfinite, logs.values())):
            captions = self.captioner.caption_features(np.stack(list(self.examples.values())))
            for image_id, caption in zip(self.examples, captions, strict=True):
                print(f"    {one_line(image_id)}: {as_written(caption)}", flush=True)


class Recorder(keras.callbacks.Callback):
    """Shows progress, writes after each epoch all that must not be lost, and stops in time.

    The best epoch, or the last, is kept in the model's file; beside it go the history, under the
    same name with .csv, its curves (.png), and the checkpoint (.checkpoint.npz). Keras' own
    callbacks for this forget on a resume which epoch was the best and how long ago it was.

    Used as a context around the training: leaving it draws the curves, also on Ctrl-C. The best
    epoch, and whether to stop, follow from the history: `rows`, a dict for each finished epoch.
    """

    def __init__(self, captioner, options, batches: int, measure: str = "loss"):
        """Take a captioner, its network compiled, and resume its training if that is wanted.

        `batches` is their number in an epoch, `measure` its name in Keras' logs: "loss", or
        "cider", of which more is better. Raises InputError if the run cannot be resumed.
        """
        super().__init__()
        self.captioner, self.options, self.measure = captioner, options, measure
        self.batches, self.bar, self.diverged = batches, None, False
        self.checkpoint = options.model_path.with_suffix(".checkpoint.npz")
        self.rows: list[dict] = []
        self._resume()

    def callbacks(self, examples: dict[str, np.ndarray] | None) -> list:
        """Those of any training, this one first: samples after the epoch's line, a stop on NaN."""
        samples, folder = SampleCaptions(self.captioner, examples), self.options.tensorboard
        boards = [keras.callbacks.TensorBoard(folder, write_graph=False)] if folder else []
        return [self, samples, keras.callbacks.TerminateOnNaN(), *boards]

    def best(self) -> dict:
        """The row of the epoch that is kept: the best by the dev measure, or the last."""
        dev = f"dev_{self.measure}"
        if self.options.patience is None or self.rows[-1][dev] is None:
            return self.rows[-1]
        best = max if self.measure == "cider" else min
        return best(self.rows, key=lambda row: row[dev])

    def should_stop(self) -> bool:
        """Whether all epochs are done, or too many since the best one."""
        if not self.rows:
            return False
        waited = len(self.rows) - self.best()["epoch"]
        epochs, patience = self.options.epochs, self.options.patience
        return len(self.rows) >= epochs or waited >= (patience or epochs)

    def on_epoch_begin(self, epoch, logs=None):
        self.started = time.perf_counter()
        title = f"epoch {epoch + 1}/{self.options.epochs}"
        self.bar = cli.progress(self.batches, "batch", title, leave=False)

    def on_train_batch_end(self, batch, logs=None):
        # After every few batches (`training.AT_ONCE`); the last ones count as a full call's.
        self.bar.update(min(batch + 1, self.batches) - self.bar.n)

    def on_epoch_end(self, epoch, logs=None):
        """Write the model when it is the best, the history, and then the checkpoint."""
        self.bar.close()
        if not all(map(math.isfinite, logs.values())):
            self.diverged = self.model.stop_training = True
            return
        train, dev = logs[self.measure], logs.get(f"val_{self.measure}")
        result = {"epoch": epoch + 1, f"train_{self.measure}": train, f"dev_{self.measure}": dev}
        row = result | {"seconds": time.perf_counter() - self.started}
        self.rows.append(row)
        saved = self.best() is row
        if len(self.rows) == 1:  # an earlier run's does not fit the model's file from here on
            self.checkpoint.unlink(missing_ok=True)
        if saved:
            config = self.captioner.config
            config = replace(config, training=config.training | {"kept": result})
            replace(self.captioner, config=config).save(self.options.model_path)
        self._write_history()
        # Last: an epoch counts as finished when all of it is on the disk.
        save_checkpoint(self.checkpoint, self.model, asdict(self.captioner.config), self.rows)
        on_dev = "" if dev is None else f"  dev {self.measure} {dev:.4f}"
        print(
            f"epoch {epoch + 1}/{self.options.epochs}  train {self.measure} {train:.4f}{on_dev}  "
            f"{row['seconds']:.1f} s{'  saved' if saved else ''}",
            flush=True,
        )
        if self.should_stop():
            self.model.stop_training = True

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(self, kind, error, traceback) -> None:
        """Draw the curves and say where everything is; Ctrl-C keeps what is finished."""
        if self.bar is not None:
            self.bar.close()
        path = self.options.model_path
        if not self.rows or not path.is_file():
            cli.log("no epoch was finished: no model was written.")
        else:
            history, curves = path.with_suffix(".csv"), path.with_suffix(".png")
            draw_curves(self.rows, self.measure, self.best(), curves)
            print(f"kept epoch {self.best()['epoch']} in {path}; history in {history} and {curves}")
            if not self.diverged:
                print(f"next: python generate_caption.py --image_path x.jpg --model_path {path}")
        if self.diverged and error is None:
            raise InputError(
                "the loss is no longer a number: lower --learning_rate and train again."
            )

    def _write_history(self) -> None:
        """Write the measures of all epochs so far as a CSV file."""
        path = self.options.model_path.with_suffix(".csv")
        with atomic_path(path) as temporary, temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, self.rows[0])
            writer.writeheader()
            writer.writerows(self.rows)

    def _resume(self) -> None:
        """Continue from the checkpoint, or say that there is one."""
        path = self.options.model_path
        if not self.checkpoint.is_file():
            history = path.with_suffix(".csv")
            rows = history.read_text().splitlines() if history.is_file() else []
            if self.options.resume and path.is_file() and len(rows) > 2:  # a header, and epochs
                raise InputError(
                    f"{self.checkpoint} is not there, without which a training cannot be resumed. "
                    f"Train anew with --overwrite, or name another --model_path."
                )
            if self.options.resume:
                cli.log(f"{self.checkpoint} is not there: starting with the first epoch.")
            return
        if not self.options.resume:
            cli.log(f"starting anew; --resume would continue from {self.checkpoint}.")
            return
        network, config = self.captioner.decoder.network, asdict(self.captioner.config)
        self.rows = load_checkpoint(self.checkpoint, network, config)
        if not path.is_file():
            raise InputError(
                f"{path} is gone, and with it the epoch that was kept. Train without --resume."
            )
        left = "nothing is left to do" if self.should_stop() else "continuing after them"
        cli.log(f"epochs finished: {len(self.rows)}; {left}.")
