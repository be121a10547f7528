"""From a captioner to the content of an .onnx: by tf2onnx, and what `OnnxCaptioner` looks for."""

import json
import logging
import tempfile
from dataclasses import asdict

import keras
import numpy as np
import onnx
import tensorflow as tf
import tf2onnx
from onnx import TensorProto, helper, numpy_helper

from captioning.captioner import BaseCaptioner
from captioning.captions import LENGTH_PENALTY
from captioning.files import InputError, one_line
from captioning.onnx_captioner import (
    ATTENTION,
    FEATURES,
    FORMAT_VERSION,
    FOUND,
    INPUTS,
    NEIGHBOURS,
    load_runtime,
    open_session,
)
from captioning.onnx_check import OPSET, STANDARD

WORTH_HALVING = 1024  # numbers of an array


def convert(captioner) -> onnx.ModelProto:
    """From pixels to what a beam search finds: the graph of a `model.Captioner`.

    Raises InputError where an operation has no counterpart.
    """
    encoder = captioner.encoder
    variables = [*encoder.network.weights, *captioner.decoder.network.weights]

    # The weights are inputs, until all is converted. As constants they would be copied again and
    # again, VGG16's to more than the memory of most machines.
    @tf.function
    def run(pixels, beam_size, length_penalty, *weights):
        with keras.StatelessScope(zip(variables, weights, strict=True)):
            features = encoder.run(pixels)  # (B, *features_shape)
            features = tf.cast(tf.cast(features, encoder.dtype), tf.float32)  # as `encode` rounds
            beams = captioner.search_tensors(features, beam_size, length_penalty)._asdict()
        grid = len(features.shape) == 3  # of which the neighbours take the mean alone
        beams["features"] = tf.reduce_mean(features, axis=1) if grid else features  # (B, F)
        return {name: part for name, part in beams.items() if part is not None}

    side = encoder.image_size
    signature = [
        tf.TensorSpec((None, side, side, 3), tf.uint8, "pixels"),
        tf.TensorSpec((), tf.int32, "beam_size"),
        tf.TensorSpec((), tf.float32, "length_penalty"),
    ]
    values = {f"weights_{number}": variable.numpy() for number, variable in enumerate(variables)}
    signature += [tf.TensorSpec(array.shape, array.dtype, name) for name, array in values.items()]
    logging.getLogger("tf2onnx").setLevel(logging.CRITICAL)  # what fails is told below
    try:
        model, _ = tf2onnx.convert.from_function(run, signature, opset=OPSET)
    except Exception as error:  # of many kinds
        raise InputError(f"tf2onnx cannot convert the captioner: {one_line(error)}") from error
    # Constants that the CNN's layers hold beside their weights have become inputs, too.
    captured = run.get_concrete_function(*signature).graph.captures
    put_values(model.graph, values | {inside.name: each.numpy() for each, inside in captured})
    return fold_constants(model)


def put_values(graph: onnx.GraphProto, values: dict[str, np.ndarray]) -> None:
    """Make constants of the inputs whose values are given.

    Raises InputError where the graph has operators that ONNX does not know.
    """
    operators = {node.op_type for node in graph.node if not onnx.defs.has(node.op_type)}
    if operators:
        names = ", ".join(sorted(operators))
        raise InputError(
            f"ONNX has no counterpart of {names}, which the captioner needs. Train one with "
            f"another --encoder."
        )
    inputs = [each for each in graph.input if each.name not in values]
    given = [each.name for each in graph.input if each.name in values]
    graph.initializer.extend(numpy_helper.from_array(values[name], name) for name in given)
    del graph.input[:]
    graph.input.extend(inputs)


def fold_constants(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model without what ONNX Runtime would compute of its weights at each start."""
    # This level uses standard operators alone, and suits any processor.
    level = load_runtime().GraphOptimizationLevel.ORT_ENABLE_BASIC
    with tempfile.TemporaryDirectory() as folder:
        options = {"graph_optimization_level": level, "optimized_model_filepath": f"{folder}/m"}
        open_session(model.SerializeToString(), **options)
        return onnx.load(f"{folder}/m")


def serialize(
    model: onnx.ModelProto, captioner: BaseCaptioner, half: bool, source: str = ""
) -> bytes:
    """The file's content: a converted graph, with all that `OnnxCaptioner.load` looks for.

    With `half`, matrices are stored as float16. The graph makes float32 of them when it is loaded.
    `source` is the hash of the .h5 that it comes from.
    """
    graph = model.graph
    graph.name = "captioner"
    for used in [each for each in model.opset_import if each.domain not in STANDARD]:
        model.opset_import.remove(used)  # ONNX Runtime names all that it knows
    order = [*INPUTS, *FOUND, *ATTENTION, *FEATURES]
    for values in (graph.input, graph.output):
        ordered = sorted(values, key=lambda value: order.index(value.name))
        del values[:]
        values.extend(ordered)
        for value in ordered:
            for dimension, axis in zip(value.type.tensor_type.shape.dim, "BK", strict=False):
                if not dimension.dim_value:  # of any size
                    dimension.dim_param = axis
    if half:
        halve(graph)
    if captioner.neighbours:
        arrays = captioner.neighbours.arrays().values()
        for name, array in zip(NEIGHBOURS, arrays, strict=True):
            add_constant(graph, name, array)
    metadata = {"format_version": FORMAT_VERSION, "source": source}
    metadata["length_penalty"] = LENGTH_PENALTY  # for other programs
    metadata |= {"config": asdict(captioner.config), "vocabulary": captioner.vocabulary.words}
    if captioner.calibration:
        metadata["calibration"] = captioner.calibration
    helper.set_model_props(model, {name: json.dumps(value) for name, value in metadata.items()})
    onnx.checker.check_model(model)
    return model.SerializeToString()


def halve(graph: onnx.GraphProto) -> None:
    """Store the matrices as float16; vectors stay, among which are standard deviations."""
    casts = []
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.FLOAT and len(tensor.dims) > 1:
            array, name = numpy_helper.to_array(tensor), tensor.name
            if array.size >= WORTH_HALVING:
                stored = numpy_helper.from_array(array.astype(np.float16), f"{name}/half")
                tensor.CopyFrom(stored)
                casts.append(helper.make_node("Cast", [stored.name], [name], to=TensorProto.FLOAT))
    nodes = [*casts, *graph.node]  # in the order of computation
    del graph.node[:]
    graph.node.extend(nodes)


def add_constant(graph: onnx.GraphProto, name: str, array: np.ndarray) -> None:
    """An array as an output: ONNX Runtime gives access to no others."""
    stored = numpy_helper.from_array(array, f"{name}/stored")
    graph.initializer.append(stored)
    graph.node.append(helper.make_node("Identity", [stored.name], [name]))
    graph.output.append(helper.make_tensor_value_info(name, stored.data_type, array.shape))
