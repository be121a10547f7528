"""What makes training fast on a CPU: XLA, and a network that suits it.

The network's layers, weights and file stay Keras' own; only what two of its layers do in training
is replaced by the same in a form that takes less time.
"""

import keras
import tensorflow as tf


def accelerate(network: keras.Model) -> bool:
    """Prepare `network` for training; returns whether to compile it with XLA.

    From then on it can be trained under XLA only; captioning is as before.
    On a GPU nothing is changed and XLA is left out, for it would keep the LSTM from cuDNN's kernel.
    """
    if tf.config.list_physical_devices("GPU"):
        return False
    for layer in network.layers:
        if isinstance(layer, keras.layers.LSTM):
            _use_large_products(layer)
        elif isinstance(layer, keras.layers.Dropout) and layer.rate > 0:
            _use_threefry(layer)
    return True


def _use_large_products(layer: keras.layers.LSTM) -> None:
    """Let `layer` pass sequences through `lstm` below."""
    cell = layer.cell

    def inner_loop(sequences, initial_state, mask, training=False):
        weights = (cell.kernel, cell.recurrent_kernel, cell.bias)
        hiddens = lstm(sequences, *map(tf.convert_to_tensor, weights))
        return hiddens[:, -1], hiddens, []  # the last states are nobody's here

    layer.inner_loop = inner_loop  # Keras asks for a whole sequence's pass by this name


def _use_threefry(layer: keras.layers.Dropout) -> None:
    """Let `layer` draw with a generator that XLA can run for many numbers at once.

    TensorFlow's default, Philox, takes longer under XLA on a CPU than all the rest of the step.
    """

    def call(inputs, training=False):
        if not training:
            return inputs
        seed = tf.cast(layer.seed_generator.next(), tf.int32)  # (2,), and another the next time
        shape = tf.shape(inputs)
        if layer.noise_shape:  # whose ones share what is drawn along their axis
            shape = [size or shape[axis] for axis, size in enumerate(layer.noise_shape)]
        return tf.nn.experimental.stateless_dropout(
            inputs, layer.rate, seed, rng_alg="threefry", noise_shape=shape
        )

    layer.call = call


@tf.custom_gradient
def lstm(inputs, kernel, recurrent_kernel, bias):
    """All hidden states of an LSTM that starts from zeros (Hochreiter & Schmidhuber 1997).

    Keras' own loop multiplies inputs, states and gradients step by step, and its gradient adds up
    the kernels' gradients at every step. Only two products truly need the step before: the
    state's with the recurrent kernel, forwards, and the gates' gradients with it, backwards. All
    others are done here for a whole batch of captions at once, and nothing is computed twice.

    Args:
        inputs: (B, T, E) float32.
        kernel: (E, 4 * U), the gates' weights in Keras' order: input, forget, candidate, output.
        recurrent_kernel: (U, 4 * U).
        bias: (4 * U,).

    Returns:
        The hidden states (B, T, U).
    """
    units = recurrent_kernel.shape[0]
    steps_first = tf.transpose(inputs, [1, 0, 2])  # (T, B, E)
    steps, batch_size = tf.unstack(tf.shape(steps_first)[:2])
    rows = tf.reshape(steps_first, [steps * batch_size, inputs.shape[2]])  # (T * B, E)
    projected = tf.nn.bias_add(tf.matmul(rows, kernel), bias)  # (T * B, 4 * U)
    projected = _steps(tf.reshape(projected, [steps, batch_size, 4 * units]))
    zeros = tf.zeros([batch_size, units])

    def forwards(step, hidden, carry, hiddens, carries, gates):
        gate = projected.read(step) + tf.matmul(hidden, recurrent_kernel)  # (B, 4 * U)
        enter, forget, candidate, output = tf.split(gate, 4, axis=1)  # (B, U) each
        enter, forget, output = tf.sigmoid(enter), tf.sigmoid(forget), tf.sigmoid(output)
        candidate = tf.tanh(candidate)
        carry = forget * carry + enter * candidate
        hidden = output * tf.tanh(carry)
        gate = tf.concat([enter, forget, candidate, output], axis=1)
        writes = hiddens.write(step, hidden), carries.write(step, carry), gates.write(step, gate)
        return step + 1, hidden, carry, *writes

    start = (0, zeros, zeros, *[tf.TensorArray(tf.float32, steps) for _ in range(3)])
    *_, hiddens, carries, gates = tf.while_loop(lambda step, *_: step < steps, forwards, start)
    hiddens, carries = hiddens.stack(), carries.stack()  # (T, B, U) each
    gates = gates.stack()  # (T, B, 4 * U)

    def gradient(d_hiddens):
        """Back through time: (B, T, U) -> the gradients of the four arguments."""
        enter, forget, candidate, output = tf.split(gates, 4, axis=2)  # (T, B, U) each
        before = tf.concat([zeros[None], carries[:-1]], axis=0)  # the carry that each step met
        bent = tf.tanh(carries)
        # What a gradient of the carry, or of the hidden state, is multiplied by on its way.
        to_carry = _steps(output * (1 - bent * bent))
        to_output = _steps(bent * output * (1 - output))
        to_gates = _steps(
            tf.concat(
                [
                    candidate * enter * (1 - enter),
                    before * forget * (1 - forget),
                    enter * (1 - candidate * candidate),
                ],
                axis=2,
            )
        )
        kept, above = _steps(forget), _steps(tf.transpose(d_hiddens, [1, 0, 2]))
        transposed = tf.transpose(recurrent_kernel)  # (4 * U, U)

        def backwards(step, d_hidden, d_carry, d_gates):
            d_hidden += above.read(step)
            d_carry += d_hidden * to_carry.read(step)
            d_gate = tf.concat(
                [
                    tf.tile(d_carry, [1, 3]) * to_gates.read(step),
                    d_hidden * to_output.read(step),
                ],
                axis=1,
            )  # (B, 4 * U)
            d_carry *= kept.read(step)
            return step - 1, tf.matmul(d_gate, transposed), d_carry, d_gates.write(step, d_gate)

        start = (steps - 1, zeros, zeros, tf.TensorArray(tf.float32, steps))
        *_, d_gates = tf.while_loop(lambda step, *_: step >= 0, backwards, start)
        d_gates = tf.reshape(d_gates.stack(), [steps * batch_size, 4 * units])
        met = tf.concat([zeros[None], hiddens[:-1]], axis=0)  # the hidden state each step met
        met = tf.reshape(met, [steps * batch_size, units])
        d_inputs = tf.reshape(tf.matmul(d_gates, kernel, transpose_b=True), tf.shape(steps_first))
        return (
            tf.transpose(d_inputs, [1, 0, 2]),
            tf.matmul(rows, d_gates, transpose_a=True),
            tf.matmul(met, d_gates, transpose_a=True),
            tf.reduce_sum(d_gates, axis=0),
        )

    return tf.transpose(hiddens, [1, 0, 2]), gradient


def _steps(values) -> tf.TensorArray:
    """Values (T, …) to be read step by step."""
    return tf.TensorArray(tf.float32, tf.shape(values)[0]).unstack(values)
