"""An .onnx from a stranger: refused in one line and in little memory, before it is run."""

import json
import os

import numpy as np
import onnx
import pytest
from helpers import CONFIGS, PeakMemory, photographing, run_here, run_script, tiny_photos, untrained
from onnx import TensorProto, helper, numpy_helper

import export
from captioning.files import InputError
from captioning.neighbours import Neighbours
from captioning.onnx_captioner import OnnxCaptioner
from captioning.onnx_file import complete


@pytest.fixture(scope="module")
def content() -> bytes:
    captioner = photographing(untrained(CONFIGS["merge"]))
    captions = {row: [[4 + row // 2, 8], [6]] for row in range(4)}
    features = np.random.default_rng(0).normal(size=(4, 12)).astype(np.float32)
    captioner.neighbours = Neighbours.of(features, captions)
    return complete(export.convert(captioner), captioner, half=False)


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


def external_sparse(model):
    tensor = elsewhere(numpy_helper.from_array(np.zeros(9, np.float32), "hidden"))
    indices = numpy_helper.from_array(np.arange(9))
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(tensor, indices, [9]))


def foreign_operator(model):
    node = helper.make_node("Inverse", ["pixels"], ["x"], domain="com.microsoft")
    model.graph.node.append(node)


def foreign_operator_in_the_loop(model):
    loop(model).node.append(helper.make_node("Any", [], ["x"], domain="evil"))


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
    "an external sparse array": (external_sparse, "'hidden' is in another file"),
    "an operator from elsewhere": (foreign_operator, "operators of 'com.microsoft'"),
    "an operator from elsewhere in the loop": (foreign_operator_in_the_loop, "of 'evil'"),
    "a domain from elsewhere": (foreign_domain, "operators of 'evil'"),
    "an operator from elsewhere for training": (training, "operators of 'evil'"),
    "a function": (function, "brings a function"),
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
    "longer captions": (configure(max_length=30), "not of the sizes in its config"),
    "captions of a million words": (configure(max_length=10**6), "max_length is 1000000"),
    "other features": (configure(feature_size=13), "features are of 12 floats"),
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


def test_words_that_are_not_there_are_not_looked_up(model):
    """The graph's own constants say which word comes next: such a file may say anything."""
    output = named(model.graph.output, "tokens")
    for node in model.graph.node:
        node.output[:] = ["own_tokens" if name == "tokens" else name for name in node.output]
    million = numpy_helper.from_array(np.array(10**6, np.int32), "million")
    model.graph.initializer.append(million)
    model.graph.node.append(helper.make_node("Add", ["own_tokens", "million"], [output.name]))
    captioner = OnnxCaptioner.parse(model.SerializeToString())
    with pytest.raises(InputError, match="words that it does not have"):
        captioner.decode_photos(tiny_photos(1), 2)


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
from captioning.onnx_captioner import OnnxCaptioner

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
        (lambda: path.write_bytes(content), ("--weights", "random"), "has the CNN's weights in it"),
        (lambda: path.write_text("a text"), (), "no ONNX model, or is cut off"),
        (lambda: path.write_bytes(bytes(99)), (), "cut off"),
    ):
        make()
        command = ("generate_caption.py", "--image_path", "x", "--model_path", path, *arguments)
        (told,) = run_here(*command, code=1).stderr.splitlines()
        assert message in told
    with path.open("wb") as file:
        file.truncate(2**31 + 1)
    with pytest.raises(InputError, match="larger than 2 GB"):
        OnnxCaptioner.load(path)
