"""What all decoders share. model.py opens with the first one; docs/decoders.md adds another."""

import math
from abc import ABC, abstractmethod

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from captioning.captions import PADDING
from captioning.features import finite, floored

# Typical length of an image's vector before its Dense layer. With 1 Adam takes long to let the
# image in, and captions stay general (benchmarks/quality.md).
IMAGE_SCALE = 8.0


class Dropout(layers.Dropout):
    """Keras' dropout, with a random generator that suits XLA.

    Philox, TensorFlow's default, takes longer under XLA on a CPU than the rest of a training step;
    threefry does not run without XLA there. The name is that of Keras' own layer, as which it is
    loaded from a file.
    """

    rng_alg = "philox"

    def call(self, inputs, training=False):
        if not training or self.rate == 0:
            return inputs
        seed = tf.cast(self.seed_generator.next(), tf.int32)  # (2,), another one each time
        shape = tf.shape(inputs)
        if self.noise_shape:  # one mask for all along the axes of size 1
            shape = [size or shape[axis] for axis, size in enumerate(self.noise_shape)]
        return tf.nn.experimental.stateless_dropout(inputs, self.rate, seed, self.rng_alg, shape)


class LSTM(layers.LSTM):
    """Keras' LSTM (Hochreiter & Schmidhuber 1997), its words' product taken out of the loop.

    Of a step only the product with the recurrent kernel needs the step before. The words' product
    is done for all steps at once, and an epoch on a CPU is about a tenth shorter. On a GPU Keras'
    own pass stays, for cuDNN. As `Dropout`, it is Keras' own layer in a file.
    """

    def inner_loop(self, sequences, initial_state, mask, training=False):
        """As Keras calls it: (B, T, E) -> the last output, all (B, T, units), the last states."""
        if mask is not None or tf.config.list_physical_devices("GPU"):
            return super().inner_loop(sequences, initial_state, mask, training)
        kernel, recurrent_kernel, bias = map(tf.convert_to_tensor, self.cell.weights)
        sequences = tf.transpose(sequences, [1, 0, 2])  # (T, B, E)
        steps = tf.shape(sequences)[0]
        words = tf.tensordot(sequences, kernel, 1) + bias  # (T, B, 4 * units)
        words = tf.TensorArray(words.dtype, steps).unstack(words)

        def step(t, hidden, cell, outputs):
            gates = words.read(t) + tf.matmul(hidden, recurrent_kernel)  # (B, 4 * units)
            hidden, cell = lstm_step(gates, cell)
            return t + 1, hidden, cell, outputs.write(t, hidden)

        start = (0, *initial_state, tf.TensorArray(kernel.dtype, steps))
        _, hidden, cell, outputs = tf.while_loop(
            lambda t, *_: t < steps, step, start, maximum_iterations=steps
        )
        return hidden, tf.transpose(outputs.stack(), [1, 0, 2]), [hidden, cell]


def lstm_step(gates, cell):
    """An LSTM's output and cell state (B, units), of its gates (B, 4 * units) and last state."""
    input_gate, forget_gate, candidate, output_gate = tf.split(gates, 4, axis=1)
    cell = tf.sigmoid(forget_gate) * cell + tf.sigmoid(input_gate) * tf.tanh(candidate)
    return tf.sigmoid(output_gate) * tf.tanh(cell), cell


class FeatureInput:
    """Feature vectors (…, feature_size) as a decoder's Dense layer takes them.

    Scaled to length 1, less the training images' mean, in standard deviations, to a typical length
    of `IMAGE_SCALE`; then some floats are dropped. Otherwise the mean image dominates, and captions
    become generic. The moments are set by `Decoder.standardize` and are not trained.
    """

    def __init__(self, name: str, size: int, dropout: float, noise_shape=None):
        self.norm = layers.UnitNormalization(name=f"{name}_norm")
        self.standardizer = layers.BatchNormalization(
            epsilon=1e-6, center=False, scale=False, trainable=False, name=f"{name}_standard"
        )
        self.rescale = layers.Rescaling(IMAGE_SCALE / math.sqrt(size), name=f"{name}_scale")
        self.dropout = Dropout(dropout, noise_shape, name=f"{name}_dropout")

    def __call__(self, vectors, training=None):
        vectors = self.rescale(self.standardizer(self.norm(vectors)))
        return self.dropout(vectors, training=training)


class Decoder(ABC):
    """A caption network, for whole captions in training and word by word in captioning.

    A subclass names its `kinds` and has three methods: `build` makes its layers, `project` turns
    features into what the words are combined with, and `logits_of` runs whole captions. With
    these it trains, captions, is saved, put into ensembles and fine-tuned. `init_state` and `step`
    may be written as well: the ones here run all words again for each new one.

    Both `project` and `logits_of`, of which `network` is the Keras model, use layers alone: with
    bare `keras.ops` it could not be loaded from .h5.
    """

    kinds: tuple[str, ...] = ()  # of features that it takes, as `Encoder.kind`

    def __init__(self, config, log_frequencies: np.ndarray | None = None, name: str = "captioner"):
        """Build the network of a `model.CaptionerConfig`, a Keras model called `name`.

        Its output bias starts as `log_frequencies` (vocabulary_size,), so that the untrained
        network already knows how common each word is; as zeros when not given.
        """
        self.config = config
        self.feature_inputs: dict[str, FeatureInput] = {}
        self.dropouts: dict[str, Dropout] = {}  # those of the feature inputs among them
        self.members = [self]  # as of an `Ensemble`
        size = config.vocabulary_size
        bias = "zeros" if log_frequencies is None else keras.initializers.Constant(log_frequencies)
        self.embedding = layers.Embedding(size, config.embedding_size, name="embedding")
        self.word_dropout = self.add_dropout("word", config.dropout)
        self.logits = layers.Dense(size, bias_initializer=bias, name="logits")
        self.build(config)
        features = keras.Input(config.features_shape, name="features")
        tokens = keras.Input((None,), dtype="int32", name="tokens")  # (B, T)
        logits = self.logits_of(self.project(features), tokens)  # (B, T, vocabulary_size)
        self.network = keras.Model([features, tokens], logits, name=name)

    @abstractmethod
    def build(self, config) -> None:
        """Make the layers; dropout by `add_dropout`, features by `add_feature_input`."""

    @abstractmethod
    def project(self, features, training=None):
        """Features (B, *features_shape) to what the words are combined with.

        Features are dropped here alone, so that a sampled caption and the update that learns from
        it can miss the same ones. Returns nested tensors (B, …).
        """

    @abstractmethod
    def logits_of(self, image, tokens):
        """Whole captions: `image` from `project`, tokens (B, T) -> logits (B, T, V).

        Causal: the logits after a token depend on it and those before it.
        """

    def init_state(self, features, training: bool = False):
        """The state before the first word: nested tensors (W, …) of constant shapes.

        Features are (W, *features_shape); in `training` some are dropped, as in an update.
        """
        image = self.project(features, training)
        width = tf.shape(features)[0]
        # One place more than words: an END may follow the longest caption.
        tokens = tf.fill([width, self.config.max_length + 1], PADDING)
        return image, tokens, tf.zeros([width], tf.int32)

    def step(self, tokens, state):
        """One word on: tokens (W,) int32 -> logits (W, V) of the next one, and the next state."""
        image, prefix, position = state
        here = tf.range(prefix.shape[1]) == position[:, None]  # (W, max_length + 1)
        prefix = tf.where(here, tokens[:, None], prefix)
        logits = self.logits_of(image, prefix)  # (W, max_length + 1, V)
        return tf.gather(logits, position, batch_dims=1), (image, prefix, position + 1)

    def attention(self, state):
        """How much the step that gave a state looked at each cell, (W, cells); None without.

        The weights of one word add up to 1.
        """
        return None

    def add_dropout(self, name: str, rate: float) -> Dropout:
        """A dropout layer that training seeds and fine-tuning can switch off."""
        self.dropouts[name] = Dropout(rate, name=f"{name}_dropout")
        return self.dropouts[name]

    def add_feature_input(self, name: str, noise_shape=None) -> FeatureInput:
        """Features, as a Dense layer takes them, by layers whose names begin with `name`.

        `noise_shape` (None, 1, None) drops the same floats of all cells.
        """
        config = self.config
        made = FeatureInput(name, config.feature_size, config.dropout, noise_shape)
        self.feature_inputs[name], self.dropouts[name] = made, made.dropout
        return made

    def embed(self, tokens):
        """Tokens (B, T) -> vectors (B, T, embedding_size), some floats dropped in training."""
        return self.word_dropout(self.embedding(tokens))

    def standardize(self, features: np.ndarray, rows: list[int]) -> None:
        """Set the inputs' moments to those of rising `rows` of features (N, [cells,] size).

        Raises InputError if one is NaN or infinite.
        """
        size = features.shape[-1]
        step = 256 if features.ndim == 2 else 32  # images
        for made in self.feature_inputs.values():
            sums = np.zeros((3, size))
            for start in range(0, len(rows), step):  # all images' cells would not fit into memory
                batch = finite(features[rows[start : start + step]]).astype(np.float64)
                vectors = batch.reshape(-1, size)
                vectors = vectors / (np.linalg.norm(vectors, axis=1, keepdims=True) + 1e-9)
                sums += [np.full(size, len(vectors)), vectors.sum(0), np.square(vectors).sum(0)]
            count, total, squares = sums
            mean = total / count
            variance = squares / count - mean**2
            made.standardizer.set_weights([mean, floored(variance)])

    def seed_dropouts(self, *entropy: int) -> None:
        """Make the next pass in training drop what `entropy` says, and the passes after it."""
        for number, dropout in enumerate(self.dropouts.values()):
            if dropout.rate > 0:
                sequence = np.random.SeedSequence((*entropy, number))
                dropout.seed_generator.state.assign(sequence.generate_state(2))

    def copy_pretrained(self, pretrained: "Decoder") -> None:
        """Copy the weights of a network of the same sizes that may know fewer words.

        Its words come first here. The weights of new words, and their logits' bias, stay.
        """
        mine, known = self.network.get_weights(), pretrained.network.get_weights()
        for array, first in zip(mine, known, strict=True):
            array[tuple(map(slice, first.shape))] = first
        self.network.set_weights(mine)


class LSTMDecoder(Decoder):
    """A decoder whose `lstm` reads words alone, so that whole captions pass at once.

    What the LSTM has read and what `project` gives meet in a fourth method, `combine`.
    """

    @abstractmethod
    def combine(self, image, hidden):
        """`image` from `project`, the LSTM's output (B, T, units) -> logits (B, T, V)."""

    def logits_of(self, image, tokens):
        return self.combine(image, self.lstm(self.embed(tokens)))

    def init_state(self, features, training: bool = False):
        """The LSTM's hidden and cell state (W, units) each, and what `project` gives."""
        zeros = tf.zeros([tf.shape(features)[0], self.config.units])
        return zeros, zeros, self.project(features, training)

    def step(self, tokens, state):
        hidden, cell, image = state
        _, (hidden, cell) = self.lstm.cell(self.embedding(tokens), (hidden, cell))
        return self.combine(image, hidden[:, None])[:, 0], (hidden, cell, image)


class Ensemble:
    """Several decoders of the same sizes and words, whose logits are averaged.

    It is asked as a `Decoder` is; it cannot be trained.
    """

    def __init__(self, members: list[Decoder], config):
        self.config, self.members = config, members
        features = keras.Input(config.features_shape, name="features")
        tokens = keras.Input((None,), dtype="int32", name="tokens")  # (B, T)
        logits = [member.network([features, tokens]) for member in members]  # (B, T, V) each
        mean = layers.Average(name="mean")(logits)
        self.network = keras.Model([features, tokens], mean, name="captioner")

    def init_state(self, features, training: bool = False):
        return tuple(member.init_state(features, training) for member in self.members)

    def step(self, tokens, state):
        steps = [m.step(tokens, own) for m, own in zip(self.members, state, strict=True)]
        logits, states = zip(*steps, strict=True)
        return tf.reduce_mean(logits, axis=0), states

    def attention(self, state):
        each = [member.attention(own) for member, own in zip(self.members, state, strict=True)]
        return None if each[0] is None else tf.reduce_mean(each, axis=0)
