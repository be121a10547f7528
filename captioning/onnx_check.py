"""A look into an .onnx that may be a stranger's, before ONNX Runtime sees it.

It needs the onnx package, which takes longer to import than to caption a photo: what comes with the
repository is captioned without it.
"""

from collections.abc import Iterator

import numpy as np
import onnx
from google.protobuf.message import Message
from onnx import (
    FunctionProto,
    NodeProto,
    OperatorSetIdProto,
    SparseTensorProto,
    TensorProto,
    TrainingInfoProto,
)

OPSET = 18  # of ONNX's operators, the last one that tf2onnx knows
STANDARD = ("", "ai.onnx")  # two names of their domain


def check(content: bytes) -> bytes:
    """What is known of a file's content; raises ValueError if it needs more than it should.

    That is, more than the standard's operators on what the file holds itself: ONNX Runtime would
    open other files that it names, and call the code of other operators.
    """
    try:
        model = onnx.load_model_from_string(content)
    except Exception as error:  # protobuf's own
        raise ValueError("it is no ONNX model, or is cut off") from error
    if not model.graph.node:
        raise ValueError("it is no ONNX model, or is cut off")
    model.DiscardUnknownFields()  # a newer ONNX Runtime might know them
    for message in messages(model):
        if isinstance(message, FunctionProto | TrainingInfoProto | SparseTensorProto):
            raise ValueError(f"it has a {type(message).__name__}, which no captioner needs")
        if isinstance(message, OperatorSetIdProto):
            check_opset(message)
        elif isinstance(message, NodeProto):
            check_operator(message)
        elif isinstance(message, TensorProto):
            check_array(message, len(content))
    return model.SerializeToString()


def messages(message: Message) -> Iterator[Message]:
    """A message and all that are in it, at any depth: in loops, in attributes, anywhere."""
    yield message
    for field, value in message.ListFields():
        if field.message_type:
            for inner in [value] if isinstance(value, Message) else value:
                yield from messages(inner)


def check_opset(opset: OperatorSetIdProto) -> None:
    """Raises ValueError if it is not the standard's, of the version that export.py uses."""
    if opset.domain not in STANDARD or opset.version != OPSET:
        raise ValueError(f"it needs operators of {opset.domain!r:.50}, version {opset.version}")


def check_operator(node: NodeProto) -> None:
    """Raises ValueError if it is not one of the standard's."""
    if node.domain not in STANDARD or not onnx.defs.has(node.op_type):
        raise ValueError(f"it needs an operator {node.op_type!r:.50} of {node.domain!r:.50}")


def check_array(tensor: TensorProto, most: int) -> None:
    """Raises ValueError if its numbers lie elsewhere, or are more than `most`."""
    if tensor.external_data or tensor.data_location != TensorProto.DEFAULT:
        raise ValueError(f"its array {tensor.name!r:.50} is in another file")
    if min(tensor.dims, default=0) < 0 or np.prod(tensor.dims, dtype=object) > most:
        raise ValueError(f"its array {tensor.name!r:.50} claims more than the file holds")
