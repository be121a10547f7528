"""Batches of whole captions, bucketed by length."""

import keras
import numpy as np
import tensorflow as tf

from captioning.captions import PADDING, Vocabulary
from captioning.features import finite
from captioning.files import InputError

# Tokens; batches are padded to a multiple of it. XLA compiles every width anew, 2 seconds each:
# 2 costs 4 % padding on Flickr8k and a dozen widths.
WIDTH_STEP = 2


def caption_rows(split: str, text: dict, features: dict) -> list[tuple[int, str]]:
    """The captions of a split, each with its image's row in the features.

    `text` and `features` are the contents of captions.pkl and features.pkl. Raises InputError if an
    image of the split has no features.
    """
    rows = {image_id: row for row, image_id in enumerate(features["image_ids"])}
    image_ids = text["splits"][split]
    missing = next((image_id for image_id in image_ids if image_id not in rows), None)
    if missing is not None:
        raise InputError(
            f"{missing} of the {split} split has no features: the two pickles are not of one run. "
            f"Run preprocess.py again."
        )
    return [(rows[i], caption) for i in image_ids for caption in text["captions"][i]]


class CaptionBatches:
    """Every caption of a split once an epoch, in batches of captions of about the same length.

    Decoders are causal, so one pass over a whole caption gives the loss and gradients of all its
    prefixes. The targets are the inputs one step later; padding, always to the right, has weight 0.
    All other targets of an epoch weigh the same: the mean of the batches' summed losses, which is
    what Keras takes, is the loss per token. For that, all batches have the same number of captions:
    a few empty ones of weight 0 fill the last.

    The order of the next pass is drawn from the seed and `epoch`: a training that is resumed sees
    the batches that an undisturbed one sees.
    """

    def __init__(
        self,
        features: np.ndarray,
        captions: list[tuple[int, str]],
        vocabulary: Vocabulary,
        batch_size: int,
        seed: int | None = None,
    ):
        """Encode `captions`, pairs of a row of `features` (N, …) and a tokenized caption.

        The features may be memory-mapped. Without a seed one order is kept, for evaluation.
        """
        self.features, self.batch_size, self.seed, self.epoch = features, batch_size, seed, 0
        self.fault: InputError | None = None  # what was wrong with a batch of `dataset`
        empty = -len(captions) % batch_size  # captions, which take the features of row 0
        self.rows = np.array([row for row, _ in captions] + [0] * empty)
        encoded = [vocabulary.encode(caption) for _, caption in captions] + [[]] * empty
        self.lengths = np.array([len(ids) for ids in encoded])
        width = padded(self.lengths.max(initial=0))
        self.ids = keras.utils.pad_sequences(encoded, width, padding="post", value=PADDING)
        self.vocabulary_size = len(vocabulary)
        self.tokens = int(np.count_nonzero(self.ids[:, 1:]))  # targets: every word and every END
        self.weight = np.float32(len(self) / max(1, self.tokens))

    def __len__(self) -> int:
        """Batches per epoch."""
        return len(self.rows) // self.batch_size

    def log_frequencies(self) -> np.ndarray:
        """Natural log of each id's share of the targets, (vocabulary_size,) float32."""
        counts = np.bincount(self.ids[:, 1:].ravel(), minlength=self.vocabulary_size)
        counts[PADDING] = 0
        counts = np.maximum(counts, 0.5)  # what is never a target is not quite impossible
        return np.log(counts / counts.sum()).astype(np.float32)

    def order(self) -> np.ndarray:
        """This epoch's batches as the captions' positions, (len(self), batch_size)."""
        if self.seed is None:
            return np.argsort(self.lengths, kind="stable").reshape(-1, self.batch_size)
        random = np.random.default_rng((self.seed, self.epoch))
        positions = random.permutation(len(self.rows))  # who shares a batch changes every epoch
        positions = positions[np.argsort(self.lengths[positions], kind="stable")]
        return random.permutation(positions.reshape(-1, self.batch_size))

    def __iter__(self):
        """Yield ((features, inputs), targets, weights) as Keras' `fit` takes them.

        Raises InputError if a feature is NaN or infinite.
        """
        for positions in self.order():
            ids = self.ids[positions, : padded(self.lengths[positions].max())]  # (B, T + 1)
            inputs, targets = ids[:, :-1], ids[:, 1:]  # (B, T) each
            weights = (targets != PADDING) * self.weight  # (B, T)
            yield (finite(self.features[self.rows[positions]]), inputs), targets, weights

    def dataset(self) -> tf.data.Dataset:
        """The same as a tf.data pipeline, its next batches made while the network works.

        An InputError arrives as one of TensorFlow's, with a traceback in its text: so it is kept.
        """

        def batches():
            try:
                yield from self
            except InputError as error:
                self.fault = error
                raise

        words = tf.TensorSpec((self.batch_size, None), tf.int32)  # (B, T)
        features = tf.TensorSpec((self.batch_size, *self.features.shape[1:]), self.features.dtype)
        weights = tf.TensorSpec((self.batch_size, None), tf.float32)  # (B, T)
        signature = ((features, words), words, weights)
        dataset = tf.data.Dataset.from_generator(batches, output_signature=signature)
        dataset = dataset.apply(tf.data.experimental.assert_cardinality(len(self)))
        options = tf.data.Options()
        # The tuner has nothing to do here, and the end of an epoch would wait 10 seconds for it.
        options.autotune.enabled = False
        return dataset.with_options(options).prefetch(4)


def padded(length: int, step: int = WIDTH_STEP) -> int:
    """The width that a batch whose longest caption has `length` tokens is padded to."""
    return -(-int(length) // step) * step
