"""What a stranger's .onnx must not ask of ONNX Runtime: refused before that sees it."""

import os

import numpy as np
import onnx
import pytest
from helpers import check_refused, run_script
from onnx import TensorProto, helper, numpy_helper

from captioning.onnx_captioner import open_session
from captioning.onnx_check import check


def loop(model) -> onnx.GraphProto:
    """The beam search's body."""
    (node,) = (node for node in model.graph.node if node.op_type == "Loop")
    return next(attribute.g for attribute in node.attribute if attribute.name == "body")


def elsewhere(tensor: TensorProto) -> TensorProto:
    """The array in another file."""
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")
    return tensor


def external(model):
    elsewhere(model.graph.initializer[0])


def external_in_the_loop(model):
    elsewhere(loop(model).initializer[0])


def external_constant(model):
    tensor = elsewhere(numpy_helper.from_array(np.zeros(9, np.float32), "hidden"))
    model.graph.node.append(helper.make_node("Constant", [], ["hidden"], value=tensor))


def sparse(model):
    values = numpy_helper.from_array(np.zeros(9, np.float32), "hidden")
    indices = numpy_helper.from_array(np.arange(9))
    tensor = helper.make_sparse_tensor(values, indices, [10**12])
    model.graph.node.append(helper.make_node("Constant", [], ["hidden"], sparse_value=tensor))


def foreign_operator(model):
    node = helper.make_node("Inverse", ["pixels"], ["x"], domain="com.microsoft")
    model.graph.node.append(node)


def foreign_operator_in_the_loop(model):
    loop(model).node.append(helper.make_node("Any", [], ["x"], domain="evil"))


def unknown_operator(model):
    model.graph.node.append(helper.make_node("MemcpyFromHost", ["pixels"], ["x"]))


def other_opset(model):
    model.opset_import[0].version = 21


def foreign_domain(model):
    model.opset_import.append(helper.make_opsetid("evil", 1))


def function(model):
    model.functions.add(name="f", domain="")


def training(model):
    model.training_info.add().algorithm.node.append(helper.make_node("Any", [], [], domain="evil"))


def huge(model):
    model.graph.initializer[0].dims[:] = [10**9, 10**9]


def negative(model):
    model.graph.initializer[0].dims[:] = [-1, 10**9]


def too_short(model):
    tensor = next(each for each in model.graph.initializer if len(each.raw_data) > 100)
    tensor.raw_data = tensor.raw_data[:50]


CRAFTED = {
    "external data": (external, "is in another file"),
    "external data in the loop": (external_in_the_loop, "is in another file"),
    "an external constant": (external_constant, "'hidden' is in another file"),
    "a sparse array of 10 ** 12 floats": (sparse, "has a SparseTensorProto"),
    "an operator from elsewhere": (foreign_operator, "an operator 'Inverse' of 'com.microsoft'"),
    "an operator from elsewhere in the loop": (foreign_operator_in_the_loop, "'Any' of 'evil'"),
    "an operator that is no standard's": (unknown_operator, "an operator 'MemcpyFromHost' of ''"),
    "a domain from elsewhere": (foreign_domain, "operators of 'evil', version 1"),
    "operators of another version": (other_opset, "operators of '', version 21"),
    "a training": (training, "has a TrainingInfoProto"),
    "a function": (function, "has a FunctionProto"),
    "an array of 10 ** 18 floats": (huge, "claims more than the file holds"),
    "an array of fewer than no floats": (negative, "claims more than the file holds"),
    "an array that is too short": (too_short, "ONNX Runtime: "),
}


@pytest.mark.parametrize(("spoil", "message"), CRAFTED.values(), ids=CRAFTED)
def test_a_crafted_file_is_refused_in_one_line_and_little_memory(
    onnx_model, tmp_path, spoil, message
):
    spoil(onnx_model)
    check_refused(onnx_model, tmp_path / "m.onnx", message)


def test_what_is_checked_is_what_is_read(onnx_model, onnx_content):
    """Not ONNX Runtime's own format in the same bytes, nor fields that the check does not know."""
    unknown = b"\xfa\x7f\x05hello"  # field 2047, of a length of 5
    assert check(onnx_content + unknown) == check(onnx_content)
    # In that format, bytes 4 to 8 are ORTM; here they are a part of the producer's name.
    onnx_model.producer_name = "RTM" + "x" * 2**15
    name = onnx_model.producer_name.encode()
    field = b"\x12" + bytes(
        [0x80 | len(name) % 128, 0x80 | len(name) // 128 % 128, len(name) >> 14]
    )
    onnx_model.ClearField("producer_name")
    disguised = field + b"ORTM" + name[4:] + onnx_model.SerializeToString()
    assert onnx.load_model_from_string(disguised).producer_name.startswith("ORTM")
    session = open_session(disguised)  # as ONNX, or it would fail
    assert session.get_inputs()[0].name == "pixels"


SPOIL = """
import sys
from pathlib import Path
import numpy as np
from captioning.files import InputError
from captioning.onnx_captioner import OnnxCaptioner, open_session
from captioning.onnx_check import check

content, spoilt, read = Path(sys.argv[1]).read_bytes(), Path(sys.argv[2]), 0
for seed in range(int(sys.argv[3])):
    random = np.random.default_rng(seed)
    copy = bytearray(content)
    for place in random.integers(len(copy), size=random.choice([1, 2, 5, 20])):
        copy[place] = random.integers(256)
    spoilt.write_bytes(copy)
    try:
        OnnxCaptioner.load(spoilt).decode_photos(np.zeros((2, 12, 12, 3), np.uint8), 2)
        read += 1
    except InputError as error:
        assert str(error).isprintable()
print(read)
"""


@pytest.mark.long
def test_a_spoilt_file_is_read_or_refused(onnx_content, tmp_path):
    """In a process of its own, which ONNX Runtime might bring down."""
    (tmp_path / "m.onnx").write_bytes(onnx_content)
    count = int(os.environ.get("FUZZ", 200))
    done = run_script("-c", SPOIL, tmp_path / "m.onnx", tmp_path / "spoilt.onnx", count)
    (read,) = map(int, done.stdout.split())  # nothing else is printed
    assert 0.05 * count < read < 0.95 * count
