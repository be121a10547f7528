"""The usual loop in Keras: python benchmarks/classic.py train FOLDER (see speed.py).

Prefix samples, padded on the left, for `fit`.
"""

import itertools
import sys
import time
from pathlib import Path

import numpy as np
import workload
from workload import BATCH_SIZE, EMBEDDING_SIZE, FEATURE_SIZE, UNITS, VOCABULARY_SIZE

from captioning import cli

MAX_LENGTH = workload.FIRST_LENGTH + len(workload.LENGTHS) - 1 + 1  # words and the start token
STEPS, WARM_UP = 60, 10  # batches measured, and before them


def build():
    """The merge model as it is usually written: one next word for one prefix."""
    from keras import Input, Model, layers

    features = Input((FEATURE_SIZE,))
    image = layers.Dropout(0.5)(features)
    image = layers.Dense(UNITS, activation="relu")(image)  # (B, units)
    prefix = Input((MAX_LENGTH,))
    text = layers.Embedding(VOCABULARY_SIZE, EMBEDDING_SIZE, mask_zero=True)(prefix)
    text = layers.Dropout(0.5)(text)  # (B, MAX_LENGTH, embedding_size)
    text = layers.LSTM(UNITS)(text)  # (B, units)
    merged = layers.add([image, text])
    merged = layers.Dense(UNITS, activation="relu")(merged)
    outputs = layers.Dense(VOCABULARY_SIZE, activation="softmax")(merged)
    model = Model([features, prefix], outputs)  # (B, vocabulary_size)
    model.compile(loss="sparse_categorical_crossentropy", optimizer="adam")
    return model


def prefix_batches(features, encoded):
    """Every prefix of every caption with its next word, 64 at a time, for ever."""
    from keras.utils import pad_sequences

    endless = itertools.cycle(encoded)
    samples = ((row, ids[:end], ids[end]) for row, ids in endless for end in range(1, len(ids)))
    while True:
        rows, prefixes, targets = zip(*itertools.islice(samples, BATCH_SIZE), strict=True)
        yield (features[list(rows)], pad_sequences(prefixes, MAX_LENGTH)), np.array(targets)


def train(folder: Path) -> None:
    """Seconds an epoch of all prefixes would take, from a sample of its batches."""
    import keras

    encode = workload.vocabulary().encode
    encoded = [(row, encode(caption)) for row, caption in workload.captions()]
    prefixes = sum(len(ids) - 1 for _, ids in encoded)
    times = []
    clock = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: times.append(time.perf_counter())
    )
    batches = prefix_batches(workload.features(folder), encoded)
    build().fit(batches, steps_per_epoch=WARM_UP + STEPS, callbacks=[clock], verbose=0)
    step = (times[-1] - times[WARM_UP - 1]) / STEPS
    workload.report(seconds=step * prefixes / BATCH_SIZE)


if __name__ == "__main__":
    cli.load_tensorflow()
    train(Path(sys.argv[2]))
