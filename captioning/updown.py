"""A decoder that attends to the photo's cells before each word (Anderson et al. 2018)."""

import keras
import tensorflow as tf
from keras import layers

from captioning.decoder import Decoder, lstm_step


class UpDownCell(layers.Layer):
    """One word on: the first LSTM's output chooses what the second one sees of the photo."""

    def __init__(self, units: int, **options):
        super().__init__(**options)
        self.state_size = [units] * 4  # of both LSTMs, output and cell state each

    def build(self, shapes):
        units, (_, keys, cells) = self.state_size[0], (shape[-1] for shape in shapes)
        weight = self.add_weight
        self.first_kernel = weight(shape=(2 * units, 4 * units), name="first_kernel")
        self.query_kernel = weight(shape=(units, keys), name="query_kernel")
        self.score = weight(shape=(keys,), name="score")
        self.second_kernel = weight(shape=(cells + 2 * units, 4 * units), name="second_kernel")
        self.second_bias = weight(shape=(4 * units,), initializer="zeros", name="second_bias")

    def call(self, inputs, states):
        """Of W captions: (gates, keys, cells), four states (W, units) -> outputs, next states.

        `gates` (W, 4 * units) are what word and photo add to the first LSTM's; keys and cells
        (W, cells, …), each of its width. Outputs: the second LSTM's (W, units), what was attended
        to (W, width of cells), and the cells' weights (W, cells).
        """
        gates, keys, cells = inputs
        first, first_cell, second, second_cell = states
        gates += tf.concat([first, second], axis=1) @ self.first_kernel  # (W, 4 * units)
        first, first_cell = lstm_step(gates, first_cell)
        matches = tf.tanh(keys + (first @ self.query_kernel)[:, None])  # (W, cells, width of keys)
        weights = tf.nn.softmax(tf.reduce_sum(matches * self.score, axis=2))  # (W, cells)
        attended = tf.reduce_sum(weights[..., None] * cells, axis=1)  # (W, width of cells)
        gates = tf.concat([attended, first, second], axis=1) @ self.second_kernel
        second, second_cell = lstm_step(gates + self.second_bias, second_cell)
        return (second, attended, weights), (first, first_cell, second, second_cell)


@keras.saving.register_keras_serializable("captioning")
class UpDown(layers.Layer):
    """Runs an `UpDownCell` over whole captions.

    Not `keras.layers.RNN`: there keys and cells would have to be states, which are kept for every
    step until the gradient has been taken.
    """

    def __init__(self, units: int, **options):
        super().__init__(**options)
        self.units = units
        self.cell = UpDownCell(units, name="cell")

    def build(self, shapes):
        self.cell.build(shapes)

    def get_config(self):
        return super().get_config() | {"units": self.units}

    def call(self, inputs):
        """As the cell's, but gates (B, T, 4 * units) -> its three outputs (B, T, …)."""
        gates, keys, cells = inputs
        gates = tf.transpose(gates, [1, 0, 2])  # (T, B, 4 * units)
        steps, batch = tf.unstack(tf.shape(gates)[:2])
        gates = tf.TensorArray(gates.dtype, steps).unstack(gates)

        def step(t, states, outputs):
            now, states = self.cell((gates.read(t), keys, cells), states)
            return t + 1, states, [o.write(t, x) for o, x in zip(outputs, now, strict=True)]

        states = tuple(tf.zeros([batch, size]) for size in self.cell.state_size)
        outputs = [tf.TensorArray(keys.dtype, steps) for _ in range(3)]
        # Of weights that are read inside of a loop, XLA would make a copy at each step.
        weights = [(weight, tf.convert_to_tensor(weight)) for weight in self.cell.weights]
        with keras.StatelessScope(weights):
            _, _, outputs = tf.while_loop(
                lambda t, *_: t < steps, step, (0, states, outputs), maximum_iterations=steps
            )
        return tuple(tf.transpose(output.stack(), [1, 0, 2]) for output in outputs)


class UpDownDecoder(Decoder):
    """Two LSTMs, and attention between them: what the first has read chooses among the cells."""

    kinds = ("grid",)

    def build(self, config) -> None:
        units, width = config.units, config.merge_units
        # The same floats of all cells are dropped: otherwise neighbours would give them away.
        self.cell_input = self.add_feature_input("cell", noise_shape=(None, 1, None))
        self.cells = layers.Dense(width, activation="relu", name="cells")
        self.keys = layers.Dense(-(-width // 2), name="keys")  # half as wide, as in the paper
        self.mean_cell = layers.GlobalAveragePooling1D(keepdims=True, name="mean_cell")
        self.image = layers.Dense(width, activation="relu", name="image")
        # Of the first LSTM's gates, all that does not depend on the step before.
        self.image_gates = layers.Dense(4 * units, use_bias=False, name="image_gates")
        self.word_gates = layers.Dense(4 * units, name="word_gates")
        self.gates = layers.Add(name="gates")
        self.recurrence = UpDown(units, name="recurrence")
        # Projects the LSTM's output to the width of the sum, where they differ.
        self.words = layers.Dense(width, name="words") if units != width else None
        self.merge = layers.Add(name="merge")
        self.merged_dropout = self.add_dropout("merged", 0.8 * config.dropout)

    def project(self, features, training=None):
        """The mean photo (B, 1, merge_units), its gates (B, 1, 4 * units), keys, and cells."""
        seen = self.cell_input(features, training)  # (B, cells, feature_size)
        image = self.image(self.mean_cell(seen))  # (B, 1, merge_units)
        cells = self.cells(seen)  # (B, cells, merge_units)
        return image, self.image_gates(image), self.keys(cells), cells

    def logits_of(self, image, tokens):
        _, gates, keys, cells = image
        gates = self.gates([gates, self.word_gates(self.embed(tokens))])  # (B, T, 4 * units)
        hidden, attended, _ = self.recurrence([gates, keys, cells])
        return self.combine(image, hidden, attended)

    def combine(self, image, hidden, attended):
        """What a step, or all T, have given, (B, T, …), to logits (B, T, V)."""
        mean, *_ = image
        words = self.words(hidden) if self.words else hidden  # (B, T, merge_units)
        return self.logits(self.merged_dropout(self.merge([mean, words, attended])))

    def init_state(self, features, training: bool = False):
        """Both LSTMs' states (W, units), the cells' weights (W, cells), what `project` gives."""
        image = self.project(features, training)
        zeros = tf.zeros([tf.shape(features)[0], self.config.units])
        return (zeros,) * 4, tf.zeros_like(image[-1][..., 0]), image

    def step(self, tokens, state):
        states, _, image = state
        _, gates, keys, cells = image
        gates = gates[:, 0] + self.word_gates(self.embedding(tokens))  # (W, 4 * units)
        (hidden, attended, weights), states = self.recurrence.cell((gates, keys, cells), states)
        logits = self.combine(image, hidden[:, None], attended[:, None])[:, 0]
        return logits, (states, weights, image)

    def attention(self, state):
        _, weights, _ = state
        return weights
