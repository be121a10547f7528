"""The content of a captioner's .onnx: a stranger's is checked, export.py's completed.

It needs the onnx package, which captioning by the included file does without.
"""

import json
import tempfile
from collections.abc import Iterator
from dataclasses import asdict

import numpy as np
import onnx
import onnxruntime
from google.protobuf.message import Message
from onnx import FunctionProto, NodeProto, OperatorSetIdProto, TensorProto, helper, numpy_helper

from captioning.captioner import BaseCaptioner
from captioning.captions import LENGTH_PENALTY
from captioning.files import InputError
from captioning.onnx_captioner import (
    ATTENTION,
    FORMAT_VERSION,
    INPUTS,
    NEIGHBOURS,
    OUTPUTS,
    open_session,
)

STANDARD = ("", "ai.onnx")  # domains of operators, two names of one
WORTH_HALVING = 1024  # numbers of an array


def check(content: bytes) -> None:
    """Raises ValueError if a file asks for more than standard operators on what it holds itself.

    ONNX Runtime would open the files that it names, and call the code of other operators.
    """
    try:
        model = onnx.load_model_from_string(content)
    except Exception as error:  # protobuf's own
        raise ValueError("it is no ONNX model, or is cut off") from error
    for part in parts(model):
        if isinstance(part, FunctionProto):
            raise ValueError(f"it brings a function, {part.name!r:.50}")
        if isinstance(part, NodeProto | OperatorSetIdProto) and part.domain not in STANDARD:
            raise ValueError(f"it needs operators of {part.domain!r:.50}")
        if isinstance(part, TensorProto):
            if part.external_data or part.data_location != TensorProto.DEFAULT:
                raise ValueError(f"its array {part.name!r:.50} is in another file")
            if min(part.dims, default=0) < 0 or np.prod(part.dims, dtype=object) > len(content):
                raise ValueError(f"its array {part.name!r:.50} claims more than the file holds")


def parts(message: Message) -> Iterator[Message]:
    """A message and all that is in it, at any depth: in loops, attributes, sparse arrays."""
    yield message
    for field, value in message.ListFields():
        if field.message_type:
            for part in [value] if isinstance(value, Message) else value:
                yield from parts(part)


def put_values(graph: onnx.GraphProto, values: dict[str, np.ndarray]) -> None:
    """Make constants of the inputs whose values are given.

    Raises InputError where the graph has operators that ONNX does not know.
    """
    operators = {node.op_type for node in graph.node if not onnx.defs.has(node.op_type)}
    if operators:
        raise InputError(f"ONNX has no counterpart of {', '.join(sorted(operators))}")
    inputs = [each for each in graph.input if each.name not in values]
    given = [each.name for each in graph.input if each.name in values]
    graph.initializer.extend(numpy_helper.from_array(values[name], name) for name in given)
    del graph.input[:]
    graph.input.extend(inputs)


def folded(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model without what ONNX Runtime would compute of its weights at each start."""
    # This level uses standard operators alone, and suits any processor.
    level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    with tempfile.TemporaryDirectory() as folder:
        options = {"graph_optimization_level": level, "optimized_model_filepath": f"{folder}/m"}
        open_session(model.SerializeToString(), **options)
        return onnx.load(f"{folder}/m")


def complete(
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
    order = [*INPUTS, *OUTPUTS, *ATTENTION]
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
    said = {"format_version": FORMAT_VERSION, "length_penalty": LENGTH_PENALTY, "source": source}
    said |= {"config": asdict(captioner.config), "vocabulary": captioner.vocabulary.words}
    if captioner.calibration:
        said["calibration"] = captioner.calibration
    helper.set_model_props(model, {name: json.dumps(value) for name, value in said.items()})
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
