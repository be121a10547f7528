"""A training run on the disk: all that it takes to continue as if it had never been stopped.

Keras' save_weights would carry the optimizer too, but a full disk ends HDF5 with a crash; NumPy's
file ends with an error that names the fix, and takes no more lines.
"""

import json
import zipfile
from pathlib import Path

import keras
import numpy as np

from captioning.files import InputError, atomic_path, one_line


def save_checkpoint(path: Path, network: keras.Model, run: dict, history: list[dict]) -> None:
    """Write weights, Adam's moments and steps, and `history`, a row for each finished epoch.

    Order and dropout are drawn from the seed and the epoch's number, and whether to stop follows
    from the history: there is nothing else to keep. `run` says what the run was started with;
    another one must not continue from here.
    """
    arrays = {f"array_{i}": variable.numpy() for i, variable in enumerate(_variables(network))}
    with atomic_path(path) as temporary:
        np.savez(temporary, run=json.dumps(run), history=json.dumps(history), **arrays)


def load_checkpoint(path: Path, network: keras.Model, run: dict) -> list[dict]:
    """Put a run's state into its network, compiled as for training, and return its history.

    Raises InputError if the checkpoint is damaged, or that of a run with other options or data.
    """
    variables = _variables(network)
    try:
        with np.load(path) as arrays:
            wanted, found = json.loads(json.dumps(run)), json.loads(str(arrays["run"]))
            if found != wanted:
                found, wanted = (each | each.get("training", {}) for each in (found, wanted))
                names = [n for n in wanted if n != "training" and found.get(n) != wanted[n]]
                raise InputError(
                    f"{path} is of a run with other {', '.join(names) or 'settings'}. Give the "
                    f"same options and data, or train anew with --overwrite."
                )
            for i, variable in enumerate(variables):
                variable.assign(arrays[f"array_{i}"])
            return json.loads(str(arrays["history"]))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(
            f"{path} cannot be read ({one_line(error)}). Train anew with --overwrite."
        ) from error


def _variables(network: keras.Model) -> list:
    network.optimizer.build(network.trainable_variables)
    return [*network.weights, *network.optimizer.variables]
