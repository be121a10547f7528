"""An .onnx from a stranger: refused in one line and in little memory, before it is run."""

import json
import os

import numpy as np
import onnx
import pytest
from helpers import CONFIGS, PeakMemory, photographing, run_here, run_script, tiny_photos, untrained
from onnx import TensorProto, helper, numpy_helper

from captioning.files import InputError
from captioning.neighbours import Neighbours
from captioning.onnx_captioner import OnnxCaptioner, open_session
from captioning.onnx_check import check
from captioning.onnx_export import convert, serialize


@pytest.fixture(scope="module")
def content() -> bytes:
    captioner = photographing(untrained(CONFIGS["merge"]))
    captions = {row: [[4 + row // 2, 8], [6]] for row in range(4)}
    features = np.random.default_rng(0).normal(size=(4, 12)).astype(np.float32)
    captioner.neighbours = Neighbours.of(features, captions)
    return serialize(convert(captioner), captioner, half=False)


@pytest.fixture
def model(content) -> onnx.ModelProto:
    """A small captioner's model, to be spoilt."""
    return onnx.load_model_from_string(content)


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


def named(values, name: str):
    return next(value for value in values if value.name == name)


def say(**changes):
    """Change the file's metadata, or leave out what is None."""

    def spoil(model):
        said = {each.key: each.value for each in model.metadata_props} | changes
        del model.metadata_props[:]
        helper.set_model_props(model, {k: v for k, v in said.items() if v is not None})

    return spoil


def configure(**changes):
    """Change the file's few numbers."""

    def spoil(model):
        config = json.loads(named_value(model, "config")) | changes
        say(config=json.dumps(config))(model)

    return spoil


def named_value(model, key: str) -> str:
    return next(each.value for each in model.metadata_props if each.key == key)


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


def large_photos(model):
    for axis in (1, 2):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_value = 2**14


def other_input(model):
    model.graph.input.append(helper.make_tensor_value_info("secret", TensorProto.FLOAT, []))


def no_output(model):
    model.graph.output.remove(named(model.graph.output, "scores"))


def other_output(model):
    model.graph.node.append(helper.make_node("Identity", ["pixels"], ["secret"]))
    model.graph.output.append(helper.make_tensor_value_info("secret", TensorProto.UINT8, None))


def sequence(model):
    """One of the neighbours' arrays as a list of arrays."""
    output = named(model.graph.output, "neighbours_axes")
    (node,) = (node for node in model.graph.node if output.name in node.output)
    node.op_type = "SequenceConstruct"
    info = helper.make_tensor_sequence_value_info(output.name, TensorProto.FLOAT16, None)
    output.CopyFrom(info)


def attention(model):
    """Of a captioner that has no cells."""
    model.graph.node.append(helper.make_node("Identity", ["log_probs"], ["attention"]))
    model.graph.output.append(helper.make_tensor_value_info("attention", TensorProto.FLOAT, None))


def constant(name: str, change):
    """Change one of the neighbours' arrays."""

    def spoil(model):
        tensor = named(model.graph.initializer, f"neighbours_{name}/stored")
        array = change(numpy_helper.to_array(tensor))
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
        output = named(model.graph.output, f"neighbours_{name}")
        info = helper.make_tensor_value_info(output.name, tensor.data_type, array.shape)
        output.CopyFrom(info)

    return spoil


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
    "photos of 16,384 pixels": (large_photos, r"its pixels are .* S up to 1024"),
    "one input more": (other_input, "its inputs are not pixels, beam_size"),
    "no scores": (no_output, "its outputs are not tokens, scores"),
    "one output more": (other_output, "its outputs are not tokens, scores"),
    "no version": (say(format_version=None), "format None, not 1"),
    "another version": (say(format_version="2"), "format 2, not 1"),
    "no words": (say(vocabulary=None), "vocabulary"),
    "words that are numbers": (say(vocabulary="[1, 2]"), "a vocabulary must begin with"),
    "lists of lists": (say(vocabulary="[" * 10**5), "is not a captioner"),
    "other words": (
        say(vocabulary='["<pad>", "<unk>", "<start>", "<end>", "a\\u001b"]'),
        "not of visible characters",
    ),
    "a config of a list": (say(config="[]"), "its config is not an object"),
    "a sequence of arrays": (sequence, "its outputs are not tokens, scores"),
    "attention to nothing": (attention, "its outputs are not tokens, scores"),
    "captions of a million words": (configure(max_length=10**6), "max_length is 1000000"),
    "other features": (configure(feature_size=13), "neighbours' features are of 12 floats"),
    "an unknown field": (configure(code="x"), "should not have, code"),
    "a calibration of two numbers": (say(calibration="[0.1, 0.2]"), "is not of three numbers"),
    "a calibration that is NaN": (say(calibration="[NaN, 0.0, 1.0]"), "is not of three numbers"),
    "neighbours that are not there": (constant("vectors", lambda a: a[:2]), "do not fit together"),
    "neighbours that are NaN": (
        constant("weights", lambda a: a * np.float16("nan")),
        "or infinite",
    ),
}


@pytest.mark.parametrize(("spoil", "message"), CRAFTED.values(), ids=CRAFTED)
def test_a_crafted_file_is_refused_in_one_line_and_little_memory(model, tmp_path, spoil, message):
    path = tmp_path / "m.onnx"
    spoil(model)
    path.write_bytes(model.SerializeToString())
    with PeakMemory() as memory, pytest.raises(InputError, match=message) as error:
        OnnxCaptioner.load(path)
    assert str(error.value).isprintable()
    assert str(path) in str(error.value)
    assert memory.taken < 300


def test_as_it_was_it_is_read(content, tmp_path):
    (tmp_path / "m.onnx").write_bytes(content)
    assert OnnxCaptioner.load(tmp_path / "m.onnx").decode_photos(tiny_photos(2))[0][0].text


def changed(name: str, operator: str, value):
    """An output is what the operator makes of it and a value."""

    def spoil(model):
        for node in model.graph.node:
            for names in (node.input, node.output):
                names[:] = ["own" if each == name else each for each in names]
        model.graph.initializer.append(numpy_helper.from_array(np.array(value), "value"))
        model.graph.node.append(helper.make_node(operator, ["own", "value"], [name]))
        named(model.graph.output, name).type.tensor_type.ClearField("shape")

    return spoil


LIES = {
    "longer captions": (configure(max_length=30), "of other shapes"),
    "one word": (changed("tokens", "Reshape", [-1]), "of other shapes"),
    "scores of nothing": (changed("scores", "Reshape", [-1]), "of other shapes"),
    "other features": (changed("features", "Reshape", [-1, 1, 6]), "of other shapes"),
    "words beyond the last": (changed("tokens", "Add", np.int32(10**6)), "words that it does not"),
    "words below 0": (changed("tokens", "Sub", np.int32(10**6)), "words that it does not have"),
    "an end that comes first": (changed("tokens", "Mul", np.int32(0)), "words that it does not"),
    "a probability of e ** 999": (changed("scores", "Sub", np.float32(-999)), "no probability"),
    "a probability of NaN": (changed("log_probs", "Mul", np.float32("nan")), "no probability"),
    "features that are NaN": (changed("features", "Mul", np.float32("nan")), "NaN or infinite"),
}


@pytest.mark.parametrize(("spoil", "message"), LIES.values(), ids=LIES)
def test_a_graph_that_lies_is_told_of(model, spoil, message):
    spoil(model)
    captioner = OnnxCaptioner.parse(model.SerializeToString())
    with pytest.raises(InputError, match=message):
        captioner.decode_photos(tiny_photos(2), 2)


def test_what_is_checked_is_what_is_read(model, content):
    """Not ONNX Runtime's own format in the same bytes, nor fields that the check does not know."""
    unknown = b"\xfa\x7f\x05hello"  # field 2047, of a length of 5
    assert check(content + unknown) == check(content)
    # In that format, bytes 4 to 8 are ORTM; here they are a part of the producer's name.
    model.producer_name = "RTM" + "x" * 2**15
    name = model.producer_name.encode()
    field = b"\x12" + bytes(
        [0x80 | len(name) % 128, 0x80 | len(name) // 128 % 128, len(name) >> 14]
    )
    model.ClearField("producer_name")
    disguised = field + b"ORTM" + name[4:] + model.SerializeToString()
    assert onnx.load_model_from_string(disguised).producer_name.startswith("ORTM")
    session = open_session(disguised)  # as ONNX, or it would fail
    assert session.get_inputs()[0].name == "pixels"


@pytest.mark.parametrize("keep", [0, 7, 2000, -1000])
def test_a_file_that_is_cut_off_is_refused(content, tmp_path, keep):
    path = tmp_path / "m.onnx"
    path.write_bytes(content[:keep])
    done = run_here("generate_caption.py", "--image_path", "x", "--model_path", path, code=1)
    assert done.stderr.startswith(f"error: {path} is not a captioner that export.py wrote")
    assert len(done.stderr.splitlines()) == 1


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
def test_a_spoilt_file_is_read_or_refused(content, tmp_path):
    """In a process of its own, which ONNX Runtime might bring down."""
    (tmp_path / "m.onnx").write_bytes(content)
    count = int(os.environ.get("FUZZ", 200))
    done = run_script("-c", SPOIL, tmp_path / "m.onnx", tmp_path / "spoilt.onnx", count)
    (read,) = map(int, done.stdout.split())  # nothing else is printed
    assert 0.05 * count < read < 0.95 * count


def test_other_files_and_wrong_use_are_named(content, tmp_path):
    path = tmp_path / "m.onnx"
    for make, arguments, message in (
        (lambda: path.mkdir(), (), "no such model"),
        (lambda: path.rmdir(), (), "no such model"),
        (lambda: path.write_bytes(content), ("--weights", "random"), "leave out --weights"),
        (lambda: path.write_text("a text"), (), "no ONNX model, or is cut off"),
        (lambda: path.write_bytes(bytes(99)), (), "cut off"),
    ):
        make()
        command = ("generate_caption.py", "--image_path", "x", "--model_path", path, *arguments)
        (told,) = run_here(*command, code=1).stderr.splitlines()
        assert message in told
    with path.open("wb") as file:
        file.truncate(2**30 + 1)
    with pytest.raises(InputError, match="more than 1 GB"):
        OnnxCaptioner.load(path)
