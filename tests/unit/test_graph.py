"""Inspection of real ONNX files: what is read from them, and what is refused with which words."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from tests import models
from tests.models import ints, model, save, value, weights
from tritongen.errors import ModelError
from tritongen.graph import BatchStatus, Graph, inspect_model


def inspect(proto: onnx.ModelProto, folder: Path, **kwargs: bool) -> Graph:
    return inspect_model(save(proto, folder / "m.onnx", **kwargs))


def refused(proto: onnx.ModelProto, folder: Path) -> str:
    with pytest.raises(ModelError) as caught:
        inspect(proto, folder)
    return str(caught.value)


def test_describes_a_model(tmp_path: Path) -> None:
    graph = inspect(models.convolutional(size="any"), tmp_path)
    assert [str(spec) for spec in graph.inputs] == ["images: float32[batch, 3, height, width]"]
    assert [str(spec) for spec in graph.outputs] == ["scores: float32[batch, 4]"]
    assert (graph.ir_version, graph.opset) == (8, 17)
    assert graph.operators == {"Conv": 2, "Flatten": 1, "Gemm": 1, "GlobalAveragePool": 1, "Relu": 2}
    assert graph.parameters == 8 * 3 * 9 + 8 * 8 * 9 + 8 * 4 + 4
    assert graph.size_bytes == (tmp_path / "m.onnx").stat().st_size
    assert not graph.quantized
    assert not graph.half


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("[320, 416]", (320, 416)),
        ("640", (640, 640)),
        ("[512]", (512, 512)),
        ("large", None),
        ("[0, 0]", None),
        ("[0,-5]", None),
        ("99999999", None),
    ],
)
def test_the_size_that_metadata_tell(text: str, size: tuple[int, int] | None, tmp_path: Path) -> None:
    proto = models.convolutional(size="any")
    helper.set_model_props(proto, {"task": "detect", "imgsz": text})
    assert inspect(proto, tmp_path).image_size == size
    assert inspect(proto, tmp_path).unusable_image_size == (None if size else text)
    assert inspect(models.linear(), tmp_path).image_size is None
    assert inspect(models.linear(), tmp_path).unusable_image_size is None


def test_every_servable_model_is_accepted(servable_model: Path) -> None:
    assert inspect_model(servable_model).inputs


def test_the_digest_follows_content_and_external_data(tmp_path: Path) -> None:
    one = inspect(models.linear(), tmp_path / "a", external=True)
    same = inspect(models.linear(), tmp_path / "b", external=True)
    other = inspect(models.linear(seed=1), tmp_path / "c", external=True)
    assert one.digest == same.digest != other.digest


def test_initializers_listed_as_inputs_are_not_inputs(tmp_path: Path) -> None:
    proto = models.linear()
    proto.graph.input.append(value("w", [4, 3]))
    assert [spec.name for spec in inspect(proto, tmp_path).inputs] == ["x"]


def test_subgraphs_and_functions_are_counted(tmp_path: Path) -> None:
    assert inspect(models.branching(), tmp_path).operators["Neg"] == 1
    function = helper.make_function(
        "local",
        "Twice",
        ["a"],
        ["b"],
        [helper.make_node("Add", ["a", "a"], ["b"])],
        [helper.make_opsetid("", 17)],
    )
    proto = model(
        [helper.make_node("Twice", ["x"], ["y"], domain="local")],
        [value("x", ["n", 2])], [value("y", ["n", 2])], domains={"local": 1},
    )  # fmt: skip
    proto.functions.append(function)
    assert inspect(proto, tmp_path).operators == {"Add": 1, "local:Twice": 1}


def test_precision_that_a_model_carries(tmp_path: Path) -> None:
    assert inspect(models.quantized(), tmp_path).quantized
    assert inspect(models.half_precision(), tmp_path).half
    half_branch = helper.make_graph(
        [helper.make_node("Cast", ["h"], ["branch_out"], to=TensorProto.FLOAT)],
        "branch", [], [value("branch_out", [2])], [weights("h", (2,), dtype="float16")],
    )  # fmt: skip
    node = helper.make_node("If", ["c"], ["y"], then_branch=half_branch, else_branch=half_branch)
    proto = model([node], [value("c", [], TensorProto.BOOL)], [value("y", [2])])
    assert inspect(proto, tmp_path).half


def test_custom_domains_that_engines_know_are_fine(tmp_path: Path) -> None:
    proto = model(
        [helper.make_node("Gelu", ["x"], ["y"], domain="com.microsoft")],
        [value("x", ["n", 4])],
        [value("y", ["n", 4])],
    )  # its opset import is missing, as some exporters leave it
    assert inspect(proto, tmp_path).operators == {"com.microsoft:Gelu": 1}
    assert inspect(models.strings(), tmp_path).operators["ai.onnx.ml:LabelEncoder"] == 1


def test_shapes_that_the_exporter_left_out_are_inferred(tmp_path: Path) -> None:
    proto = models.convolutional(channels=(3, 64, 64))
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    assert str(inspect(proto, tmp_path).outputs[0]) == "scores: float32[batch, 4]"


def test_minus_one_counts_as_dynamic(tmp_path: Path) -> None:
    proto = models.relu()
    for entry in (proto.graph.input[0], proto.graph.output[0]):
        entry.type.tensor_type.shape.dim[0].dim_value = -1
    graph = inspect(proto, tmp_path)
    assert graph.inputs[0].shape == ("?", 4)
    assert graph.batch.status is BatchStatus.DECLARED


@pytest.mark.parametrize(
    ("proto", "status", "words"),
    [
        (models.two_in_two_out(), BatchStatus.DECLARED, "batch, batch_size, m, n"),
        (models.one_per_item(), BatchStatus.DECLARED, "not yet confirmed"),
        (models.static_batch(), BatchStatus.ABSENT, "axis 0 of input 'x' is fixed at 2"),
        (models.scalar_input(), BatchStatus.ABSENT, "input 'scale' has rank 0"),
        (models.relu(batch=None), BatchStatus.DECLARED, "(?)"),
    ],
)
def test_proposes_the_batch_axis(
    proto: onnx.ModelProto, status: BatchStatus, words: str, tmp_path: Path
) -> None:
    batch = inspect(proto, tmp_path).batch
    assert batch.status is status
    assert words in batch.reason
    assert not batch.usable


def test_a_batch_on_another_axis_is_named(tmp_path: Path) -> None:
    node = helper.make_node("Relu", ["x"], ["y"])
    proto = model([node], [value("x", [3, "batch"])], [value("y", [3, "batch"])])
    assert "varies along axis 1 ('batch')" in inspect(proto, tmp_path).batch.reason


# Value ranges


def test_a_table_tells_the_range_of_its_index(tmp_path: Path) -> None:
    assert inspect(models.tokens(vocabulary=50), tmp_path).value_ranges == {"ids": (0, 49)}


def test_the_smallest_of_several_tables_decides_through_a_chain_of_operators(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Cast", ["ids"], ["wide"], to=TensorProto.INT64),
        helper.make_node("Unsqueeze", ["wide", "axes"], ["more"]),
        helper.make_node("Gather", ["big", "more"], ["a"], axis=0),
        helper.make_node("Reshape", ["wide", "shape"], ["flat"]),
        helper.make_node("DequantizeLinear", ["small_q", "scale"], ["small"]),
        helper.make_node("Gather", ["small", "flat"], ["b"], axis=1),
    ]
    constants = [
        weights("big", (100, 4)), ints("axes", 2), ints("shape", -1),
        numpy_helper.from_array(np.zeros((4, 30), np.int8), "small_q"),
        numpy_helper.from_array(np.float32(1), "scale"),
    ]  # fmt: skip
    outputs = [value("a", ["n", "s", 1, 4]), value("b", [4, "all"])]
    proto = model(nodes, [value("ids", ["n", "s"], TensorProto.INT32)], outputs, constants)
    assert inspect(proto, tmp_path).value_ranges == {"ids": (0, 29)}


@pytest.mark.parametrize("written_out", [False, True])
def test_one_hot_encodings_tell_the_range(written_out: bool, tmp_path: Path) -> None:
    onoff = numpy_helper.from_array(np.asarray([0, 1], np.float32), "onoff")
    if written_out:
        constants = [numpy_helper.from_array(np.arange(7, dtype=np.int64).reshape(1, 7), "classes")]
        nodes = [helper.make_node("Equal", ["ids", "classes"], ["y"])]
        outputs = [value("y", ["n", 7], TensorProto.BOOL)]
    else:
        constants = [numpy_helper.from_array(np.int64(7), "depth"), onoff]
        nodes = [helper.make_node("OneHot", ["ids", "depth", "onoff"], ["y"])]
        outputs = [value("y", ["n", 1, 7])]
    proto = model(nodes, [value("ids", ["n", 1], TensorProto.INT64)], outputs, constants)
    assert inspect(proto, tmp_path).value_ranges == {"ids": (0, 6)}


def test_a_table_inside_a_branch_tells_the_range_too(tmp_path: Path) -> None:
    branch = helper.make_graph(
        [helper.make_node("Gather", ["table", "ids"], ["branch_out"])],
        "b",
        [],
        [value("branch_out", ["n", 2])],
    )
    node = helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)
    inputs = [value("c", [], TensorProto.BOOL), value("ids", ["n"], TensorProto.INT64)]
    proto = model([node], inputs, [value("y", ["n", 2])], [weights("table", (9, 2))])
    assert inspect(proto, tmp_path).value_ranges == {"ids": (0, 8)}


def test_integers_that_index_nothing_have_no_range(tmp_path: Path) -> None:
    assert inspect(models.identity(TensorProto.INT64), tmp_path).value_ranges == {}


# Files that are not models


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="there is no file"):
        inspect_model(tmp_path / "nothing.onnx")
    save(models.relu(), tmp_path / "inside.onnx")
    with pytest.raises(ModelError, match="is a folder") as caught:
        inspect_model(tmp_path)
    assert "inside.onnx" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "an empty file"),
        (b"# just a note\nmore text\n", "a text file that begins with '# just a note'"),
        (b"<!DOCTYPE html><html>", "a text file"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"PK\x03\x04" + bytes(60), "zip archive"),
        (b"\x00\x00\x00\x00ORTM" + bytes(60), ".ort file"),
        (b"\x1f\x8b" + bytes(60), "gzip"),
        (bytes(range(200, 256)) * 4, "damaged"),
    ],
)
def test_files_that_are_something_else_are_recognised(content: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError, match="is not an ONNX model") as caught:
        inspect_model(path)
    assert words in str(caught.value)


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    whole = models.linear().SerializeToString()
    path = tmp_path / "cut.onnx"
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(ModelError):
            inspect_model(path)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=4))
def test_damaged_bytes_are_read_or_refused_but_never_crash(
    tmp_path: Path, edits: list[tuple[int, int]]
) -> None:
    content = bytearray(models.tokens().SerializeToString())
    for place, byte in edits:
        content[place % len(content)] = byte
    path = tmp_path / "damaged.onnx"
    path.write_bytes(bytes(content))
    try:
        inspect_model(path)
    except ModelError:
        return


def test_a_file_beyond_protobufs_limit_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "huge.onnx"
    path.touch()
    os.truncate(path, 2**31)  # sparse: takes no space
    with pytest.raises(ModelError, match="larger than a protobuf file can be"):
        inspect_model(path)


# External data


@pytest.fixture
def external(tmp_path: Path) -> Path:
    return save(models.linear(inputs=64, outputs=64), tmp_path / "m" / "ext.onnx", external=True)


def test_external_data_count_but_are_not_loaded(external: Path) -> None:
    graph = inspect_model(external)
    assert graph.external_data == ("ext.onnx.data",)
    assert graph.parameters == 64 * 64 + 64
    assert graph.size_bytes == external.stat().st_size + external.with_name("ext.onnx.data").stat().st_size


def test_missing_and_short_external_data_are_named(external: Path) -> None:
    data = external.with_name("ext.onnx.data")
    content = data.read_bytes()
    data.write_bytes(content[:-100])
    with pytest.raises(ModelError, match=r"ext\.onnx\.data is too short"):
        inspect_model(external)
    data.unlink()
    with pytest.raises(ModelError, match=r"in a file that is missing: ext\.onnx\.data"):
        inspect_model(external)


def test_external_data_outside_the_folder_are_refused(external: Path, tmp_path: Path) -> None:
    proto = onnx.load(str(external), load_external_data=False)
    outside = tmp_path / "outside.data"
    shutil.copy(external.with_name("ext.onnx.data"), outside)
    for location in ("../outside.data", str(outside), "C:\\outside.data", "a\0b", ""):
        for tensor in proto.graph.initializer:
            tensor.external_data[0].value = location
        external.write_bytes(proto.SerializeToString())
        with pytest.raises(ModelError, match="outside its own folder"):
            inspect_model(external)


def test_a_link_that_leaves_the_folder_is_refused_and_a_cache_of_links_is_not(external: Path) -> None:
    folder = external.parent
    blobs, links, mixed = (folder.parent / name for name in ("blobs", "links", "mixed"))
    for new in (blobs, links, mixed):
        new.mkdir()
    shutil.move(external, blobs / "aaa")
    shutil.move(external.with_name("ext.onnx.data"), blobs / "bbb")
    (links / "ext.onnx").symlink_to(blobs / "aaa")  # as download caches lay them out
    (links / "ext.onnx.data").symlink_to(blobs / "bbb")
    assert inspect_model(links / "ext.onnx").external_data == ("ext.onnx.data",)
    shutil.copy(blobs / "aaa", mixed / "ext.onnx")
    (mixed / "ext.onnx.data").symlink_to(blobs / "bbb")
    with pytest.raises(ModelError, match="outside its own folder"):
        inspect_model(mixed / "ext.onnx")


def test_external_data_of_the_wrong_length_are_refused(external: Path) -> None:
    proto = onnx.load(str(external), load_external_data=False)
    for entry in proto.graph.initializer[0].external_data:
        entry.value = "12" if entry.key == "length" else entry.value
    external.write_bytes(proto.SerializeToString())
    with pytest.raises(ModelError, match="described wrongly") as caught:
        inspect_model(external)
    assert "12 bytes for a tensor that takes 16384" in str(caught.value)


def test_weights_in_branches_may_be_external(tmp_path: Path) -> None:
    proto = models.branching()
    tensor = next(
        tensor
        for attribute in proto.graph.node[3].attribute
        for tensor in attribute.g.initializer
        if tensor.name == "factor"
    )
    (tmp_path / "f.bin").write_bytes(tensor.raw_data)
    onnx.external_data_helper.set_external_data(tensor, "f.bin", length=4)
    tensor.ClearField("raw_data")
    assert inspect(proto, tmp_path).external_data == ("f.bin",)
    (tmp_path / "f.bin").unlink()
    assert "missing: f.bin" in refused(proto, tmp_path)


# Graphs that are not valid, or not servable


def named(
    op_type: str, inputs: list[str], outputs: list[str], name: str, **attributes: int
) -> onnx.NodeProto:
    return helper.make_node(op_type, inputs, outputs, name=name, **attributes)


def around(*nodes: onnx.NodeProto, ir_version: int = 8) -> onnx.ModelProto:
    """A model from x to y."""
    proto: onnx.ModelProto = model(
        nodes, [value("x", ["n", 4])], [value("y", ["n", 4])], ir_version=ir_version
    )
    return proto


@pytest.mark.parametrize(
    ("proto", "words"),
    [
        (around(named("Frobnicate", ["x"], ["y"], "odd")), ["unknown operator 'Frobnicate' (node 'odd')"]),
        (around(named("Rellu", ["x"], ["y"], "")), ["unknown operator 'Rellu'", "makes 'y'", "such as Relu"]),
        (around(named("Gelu", ["x"], ["y"], "act")), ["newer than the model's opset", "'act'", "opset 20"]),
        (around(named("Upsample", ["x", "x"], ["y"], "up")), ["(node 'up') is no longer in ONNX"]),
        (around(named("Relu", ["x"], ["y"], "r", bogus=1)), ["not valid ONNX", "bogus"]),
        (
            around(
                named("Add", ["x", "b"], ["a"], "one"),
                named("Relu", ["a"], ["b"], "two"),
                named("Relu", ["b"], ["y"], "three"),
            ),
            ["the graph runs in a circle", "one", "two"],
        ),
        (around(named("Add", ["x", "ghost"], ["y"], "one")), ["'one' reads 'ghost', which nothing makes"]),
        (
            around(named("Relu", ["a"], ["y"], "late"), named("Relu", ["x"], ["a"], "early")),
            ["not in the order in which they run"],
        ),
        (around(named("Relu", ["x"], ["z"], "r")), ["output 'y' is made by no node"]),
        (around(named("Relu", ["x"], ["y"], "r"), ir_version=99), ["newer ONNX format", "pip install"]),
    ],
)
def test_invalid_graphs_are_explained(proto: onnx.ModelProto, words: list[str], tmp_path: Path) -> None:
    message = refused(proto, tmp_path)
    assert all(word in message for word in words), message


def test_tensors_only(tmp_path: Path) -> None:
    message = refused(models.sequence_output(), tmp_path)
    assert "output 'parts' is a sequence" in message
    kind = helper.make_map_type_proto(
        TensorProto.STRING, helper.make_tensor_type_proto(TensorProto.FLOAT, [])
    )
    proto = models.relu()
    proto.graph.input.append(helper.make_value_info("m", kind))
    assert "input 'm' is a map" in refused(proto, tmp_path)
    proto.graph.input[-1].CopyFrom(
        helper.make_value_info("o", helper.make_optional_type_proto(helper.make_tensor_type_proto(1, [2])))
    )
    assert "input 'o' is an optional" in refused(proto, tmp_path)


def test_unknown_rank_is_refused_with_the_tensor(tmp_path: Path) -> None:
    proto = models.relu()
    proto.graph.input[0].type.tensor_type.ClearField("shape")
    assert "the shape of input 'x' is unknown, its rank included" in refused(proto, tmp_path)


@pytest.mark.parametrize("name", ['a"b', "a\\b", "a\nb", "a\tb"])
def test_names_that_a_config_cannot_carry_are_refused(name: str, tmp_path: Path) -> None:
    proto = model([helper.make_node("Relu", [name], ["y"])], [value(name, ["n"])], [value("y", ["n"])])
    assert "cannot be written into Triton's config.pbtxt" in refused(proto, tmp_path)


@pytest.mark.parametrize("name", ["images:0", "a/b.c-1", "图像", "with space", "输入　名"])
def test_unusual_names_are_fine(name: str, tmp_path: Path) -> None:
    proto = model([helper.make_node("Relu", [name], ["y"])], [value(name, ["n"])], [value("y", ["n"])])
    assert inspect(proto, tmp_path).inputs[0].name == name


def test_nothing_to_send_nothing_to_receive(tmp_path: Path) -> None:
    constant = helper.make_node("Constant", [], ["y"], value=weights("c", (2,)))
    assert "has no inputs" in refused(model([constant], [], [value("y", [2])]), tmp_path)
    proto = models.relu()
    del proto.graph.output[:]
    assert "has no outputs" in refused(proto, tmp_path)


def test_types_and_sizes_that_triton_cannot_carry(tmp_path: Path) -> None:
    assert "complex64" in refused(models.identity(TensorProto.COMPLEX64), tmp_path)
    assert "dimension of size 0" in refused(models.relu(width=0), tmp_path)
    proto = models.two_in_two_out()
    proto.graph.output.append(proto.graph.output[0])
    assert f"output '{proto.graph.output[0].name}' is listed 2 times" in refused(proto, tmp_path)


def test_weights_that_do_not_fit_their_shape_are_named(tmp_path: Path) -> None:
    proto = models.linear()
    proto.graph.initializer[0].raw_data = proto.graph.initializer[0].raw_data[:-4]
    assert "tensor 'w' does not fit its shape" in refused(proto, tmp_path)
