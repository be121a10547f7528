"""What all decoders share. A decoder is one class; model.py opens with the first, MergeDecoder.

docs/decoders.md adds another one step by step.
"""

import math
from abc import ABC, abstractmethod
from typing import ClassVar

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from captioning.captions import PADDING

# Typical length of an image's vector before its Dense layer. With 1 Adam takes long to let the
# image in, and captions stay general (benchmarks/quality.md).
IMAGE_SCALE = 8.0
MIN_VARIANCE = 0.1  # of one float of the features, as a share of the floats' mean variance


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
        return tf.nn.experimental.stateless_dropout(
            inputs, self.rate, seed, rng_alg=self.rng_alg, noise_shape=shape
        )


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
        kernel, recurrent_kernel, bias = map(
            tf.convert_to_tensor, (self.cell.kernel, self.cell.recurrent_kernel, self.cell.bias)
        )
        sequences = tf.transpose(sequences, [1, 0, 2])  # (T, B, E)
        steps, batch_size, size = tf.shape(sequences)[0], tf.shape(sequences)[1], sequences.shape[2]
        words = tf.matmul(tf.reshape(sequences, [-1, size]), kernel) + bias  # (T * B, 4 * units)
        words = tf.reshape(words, [steps, batch_size, 4 * self.units])
        words = tf.TensorArray(words.dtype, steps).unstack(words)

        def step(t, hidden, cell, outputs):
            gates = words.read(t) + tf.matmul(hidden, recurrent_kernel)  # (B, 4 * units)
            input_gate, forget_gate, candidate, output_gate = tf.split(gates, 4, axis=1)
            cell = tf.sigmoid(forget_gate) * cell + tf.sigmoid(input_gate) * tf.tanh(candidate)
            hidden = tf.sigmoid(output_gate) * tf.tanh(cell)  # (B, units)
            return t + 1, hidden, cell, outputs.write(t, hidden)

        start = (0, *initial_state, tf.TensorArray(kernel.dtype, steps))
        _, hidden, cell, outputs = tf.while_loop(
            lambda t, *_: t < steps, step, start, maximum_iterations=steps
        )
        return hidden, tf.transpose(outputs.stack(), [1, 0, 2]), [hidden, cell]


class FeatureInput:
    """Feature vectors (…, feature_size) as a decoder's Dense layer takes them.

    Scaled to length 1, less the training images' mean, in standard deviations, to a typical length
    of `IMAGE_SCALE`; then some floats are dropped. Otherwise the mean image dominates, and captions
    become generic. The moments are set by `Decoder.standardize` and are not trained.
    """

    def __init__(self, name: str, size: int, dropout: float, noise_shape=None, pooled=False):
        self.pooled = pooled  # it takes the mean of a grid's cells
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

    In `project` and `logits_of` use layers alone: a network with bare `keras.ops` cannot be loaded
    from .h5.

    Attributes:
        config: a `model.CaptionerConfig`.
        embedding: word ids to vectors (embedding_size,).
        logits: the Dense layer from the last vector to logits (vocabulary_size,).
        feature_inputs: by name, as made by `add_feature_input`.
        dropouts: by name, those of the feature inputs among them.
        network: the Keras model from [features (B, *features_shape), tokens (B, T) int32] to
            logits (B, T, vocabulary_size) of each next token.
        members: the networks that make the decoder up, here itself alone.
    """

    kinds: ClassVar[tuple[str, ...]] = ()  # of features that it takes, as `Encoder.kind`

    def __init__(self, config, log_frequencies: np.ndarray | None = None, name: str = "captioner"):
        """Build the network.

        Args:
            config: sizes and dropout.
            log_frequencies: (vocabulary_size,) start of the output bias, so that the untrained
                network already knows how common each word is; zeros when not given.
            name: of the Keras model.
        """
        self.config = config
        self.feature_inputs: dict[str, FeatureInput] = {}
        self.dropouts: dict[str, Dropout] = {}
        self.members = [self]
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

    # -- what a subclass has -----------------------------------------------------------------------

    @abstractmethod
    def build(self, config) -> None:
        """Make the layers; dropout by `add_dropout`, features by `add_feature_input`."""

    @abstractmethod
    def project(self, features, training=None):
        """Features (B, *features_shape) to what the words are combined with.

        Features are dropped here alone, so that a sampled caption and the update that learns from
        it can miss the same ones.

        Returns:
            Nested tensors (B, …).
        """

    @abstractmethod
    def logits_of(self, image, tokens):
        """Whole captions: `image` from `project`, tokens (B, T) -> logits (B, T, V).

        Causal: the logits after a token depend on it and those before it.
        """

    def init_state(self, features, training: bool = False):
        """The state before the first word.

        Args:
            features: (W, *features_shape).
            training: drop features, as an update does.

        Returns:
            Nested tensors (W, …) of constant shapes.
        """
        image = self.project(features, training=training)
        width = tf.shape(tf.nest.flatten(image)[0])[0]
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

    def attention(self, features, tokens):
        """How much each word looked at each cell, (B, T, cells), adding up to 1; None without."""
        return None

    # -- what it makes use of ----------------------------------------------------------------------

    def add_dropout(self, name: str, rate: float) -> Dropout:
        """A dropout layer that training seeds and fine-tuning can switch off."""
        self.dropouts[name] = Dropout(rate, name=f"{name}_dropout")
        return self.dropouts[name]

    def add_feature_input(self, name: str, noise_shape=None, pooled=False) -> FeatureInput:
        """Features, as a Dense layer takes them.

        Args:
            name: its layers' names begin with it.
            noise_shape: of the dropout; (None, 1, None) drops the same floats of all cells.
            pooled: it takes the mean of a grid's cells, so its moments are those of the means.
        """
        config = self.config
        made = FeatureInput(name, config.feature_size, config.dropout, noise_shape, pooled)
        self.feature_inputs[name], self.dropouts[name] = made, made.dropout
        return made

    def embed(self, tokens):
        """Tokens (B, T) -> vectors (B, T, embedding_size), some floats dropped in training."""
        return self.word_dropout(self.embedding(tokens))

    # -- what others ask ---------------------------------------------------------------------------

    @classmethod
    def count(cls, config) -> int:
        """The network's parameters; no array is made."""
        with keras.StatelessScope(initialize_variables=False):
            return cls(config).network.count_params()

    def standardize(self, features: np.ndarray, rows: list[int]) -> None:
        """Set the feature inputs' moments to those of some images.

        Args:
            features: (N, [cells,] feature_size), may be memory-mapped.
            rows: of the training images, rising.
        """
        size = features.shape[-1]
        moments = {name: np.zeros((3, size)) for name in self.feature_inputs}
        for start in range(0, len(rows), 256):  # all images' cells would not fit into memory
            batch = np.asarray(features[rows[start : start + 256]], np.float64)
            for name, sums in moments.items():
                vectors = batch.mean(axis=1) if self.feature_inputs[name].pooled else batch
                vectors = vectors.reshape(-1, size)
                vectors = vectors / (np.linalg.norm(vectors, axis=1, keepdims=True) + 1e-9)
                sums += [np.full(size, len(vectors)), vectors.sum(0), np.square(vectors).sum(0)]
        for name, (count, total, squares) in moments.items():
            mean = total / count
            variance = squares / count - mean**2
            # Cap the scaling of near-constant features: they say little about these photos.
            variance = np.maximum(variance, MIN_VARIANCE * variance.mean())
            self.feature_inputs[name].standardizer.set_weights([mean, variance])

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
        pairs = zip(self.network.layers, pretrained.network.layers, strict=True)
        for layer, other in pairs:
            weights = layer.get_weights()
            for mine, known in zip(weights, other.get_weights(), strict=True):
                mine[tuple(map(slice, known.shape))] = known
            layer.set_weights(weights)


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
        """As `Decoder.init_state`: a tuple of the members' states."""
        return tuple(member.init_state(features, training) for member in self.members)

    def step(self, tokens, state):
        """As `Decoder.step`, by all members."""
        steps = [m.step(tokens, own) for m, own in zip(self.members, state, strict=True)]
        logits, states = zip(*steps, strict=True)
        return tf.reduce_mean(logits, axis=0), states

    def attention(self, features, tokens):
        """As `Decoder.attention`, the members' mean."""
        each = [member.attention(features, tokens) for member in self.members]
        return None if each[0] is None else tf.reduce_mean(each, axis=0)
