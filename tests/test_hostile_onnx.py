"""An .onnx from a stranger that is no captioner, or lies: refused in one line."""

import json

import numpy as np
import pytest
from helpers import check_refused, run_here, tiny_photos
from onnx import TensorProto, helper, numpy_helper

from captioning.files import InputError
from captioning.onnx_captioner import OnnxCaptioner


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
def test_a_crafted_file_is_refused_in_one_line_and_little_memory(
    onnx_model, tmp_path, spoil, message
):
    spoil(onnx_model)
    check_refused(onnx_model, tmp_path / "m.onnx", message)


def test_as_it_was_it_is_read(onnx_content, tmp_path):
    (tmp_path / "m.onnx").write_bytes(onnx_content)
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
def test_a_graph_that_lies_is_told_of(onnx_model, spoil, message):
    spoil(onnx_model)
    captioner = OnnxCaptioner.parse(onnx_model.SerializeToString())
    with pytest.raises(InputError, match=message):
        captioner.decode_photos(tiny_photos(2), 2)


@pytest.mark.parametrize("keep", [0, 7, 2000, -1000])
def test_a_file_that_is_cut_off_is_refused(onnx_content, tmp_path, keep):
    path = tmp_path / "m.onnx"
    path.write_bytes(onnx_content[:keep])
    done = run_here("generate_caption.py", "--image_path", "x", "--model_path", path, code=1)
    assert done.stderr.startswith(f"error: {path} is not a captioner that export.py wrote")
    assert len(done.stderr.splitlines()) == 1


def test_other_files_and_wrong_use_are_named(onnx_content, tmp_path):
    path = tmp_path / "m.onnx"
    for make, arguments, message in (
        (lambda: path.mkdir(), (), "no such model"),
        (lambda: path.rmdir(), (), "no such model"),
        (lambda: path.write_bytes(onnx_content), ("--weights", "random"), "leave out --weights"),
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
