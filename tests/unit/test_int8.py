"""ONNX → ONNX with Q/DQ nodes, on tiny real models in real ONNX Runtime."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from tests import models
from tritongen.engines.onnxruntime import OnnxRuntimeEngine
from tritongen.engines.onnxruntime.session import OnnxRuntimeRunner
from tritongen.errors import BuildError, ModelError
from tritongen.precision import prepare as preparing
from tritongen.precision.calibration import Range
from tritongen.precision.int8 import QuantizationSummary, quantize, tensors_to_calibrate
from tritongen.precision.prepare import prepare, save
from tritongen.precision.recipe import Int8Recipe
from tritongen.spec import Precision

RECIPE = Int8Recipe(
    name="test",
    operators=("Conv", "Gemm", "MatMul", "Relu", "Clip"),
    activation="uint8",
    symmetric_activations=False,
    quantize_outputs=True,
    quantize_bias=True,
    reduce_range=True,  # without it, products saturate on CPUs without VNNI, by up to 40 % in one MatMul
)
Array = NDArray[np.generic]
Arrays = Mapping[str, Array]


def run(model: Path, inputs: Arrays) -> Array:
    with OnnxRuntimeRunner(model, intra_op_threads=1) as runner:
        return next(iter(runner.infer(inputs).values()))


def ranges_on(model: Path, inputs: Arrays, recipe: Int8Recipe, folder: Path) -> dict[str, Range]:
    """Min-max by running the prepared model with its inner tensors as outputs; independent of autotune."""
    names = tensors_to_calibrate(model, recipe)
    ready = onnx.load(prepare(model, folder / "ready.onnx", min_opset=recipe.min_opset))
    known = {value.name: value for value in (*ready.graph.value_info, *ready.graph.output)}
    inner = [name for name in names if name not in inputs]
    del ready.graph.output[:]
    ready.graph.output.extend(known[name] for name in inner)
    onnx.save(ready, folder / "observed.onnx")
    seen = dict(inputs)
    if inner:
        with OnnxRuntimeRunner(folder / "observed.onnx") as runner:
            seen |= runner.infer(inputs)
    return {name: (float(seen[name].min()), float(seen[name].max())) for name in names}


def quantized(
    model: Path, inputs: Arrays, folder: Path, recipe: Int8Recipe = RECIPE
) -> tuple[Path, QuantizationSummary]:
    out = folder / "out" / "int8.onnx"
    return out, quantize(model, ranges_on(model, inputs, recipe, folder), recipe, out)


def relative_l2(expected: Array, found: Array) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))  # type: ignore[operator]


def images(count: int = 8) -> Arrays:
    return {"images": np.random.default_rng(0).standard_normal((count, 3, 8, 8)).astype(np.float32)}


def rows(count: int = 64, width: int = 4) -> Arrays:
    return {"x": np.random.default_rng(0).standard_normal((count, width)).astype(np.float32)}


def test_a_convolutional_net_runs_on_integer_kernels_and_stays_close(tmp_path: Path) -> None:
    import onnxruntime

    model = models.save(models.convolutional(), tmp_path / "m.onnx")
    before = model.read_bytes()
    out, summary = quantized(model, images(), tmp_path)
    assert summary.operators == {"Conv": 2, "Relu": 2, "Gemm": 1}
    assert summary.opset == 17
    assert summary.quantize_nodes > 0
    assert 0 < relative_l2(run(model, images()), run(out, images())) < 0.05
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(str(out), options)
    kernels = Counter(node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node)
    assert kernels["QLinearConv"] == 2
    assert kernels["Conv"] == kernels["Relu"] == kernels["Gemm"] == 0
    assert model.read_bytes() == before
    assert [path.name for path in out.parent.iterdir()] == ["int8.onnx"]


@pytest.mark.parametrize("recipe", OnnxRuntimeEngine().recipes(Precision.INT8), ids=lambda r: r.name)
def test_every_recipe_of_the_engine_gives_a_model_that_runs(recipe: Any, tmp_path: Path) -> None:
    model = models.save(models.convolutional(channels=(3, 32, 32)), tmp_path / "m.onnx")
    out, _ = quantized(model, images(), tmp_path, recipe)
    assert relative_l2(run(model, images()), run(out, images())) < 0.08


def test_tensorrts_form_symmetric_pairs_on_weights_and_no_quantized_bias(tmp_path: Path) -> None:
    recipe = Int8Recipe(name="trt", operators=("Conv", "Gemm"), weights_as_pairs=True)
    model = models.save(models.convolutional(), tmp_path / "m.onnx")
    out, summary = quantized(model, images(), tmp_path, recipe)
    proto = onnx.load(out)
    kinds = {tensor.name: tensor.data_type for tensor in proto.graph.initializer}
    points = [n.input[2] for n in proto.graph.node if n.op_type == "QuantizeLinear"]
    assert summary.quantize_nodes == summary.dequantize_nodes == 6
    assert {kinds[name] for name in points} == {TensorProto.INT8}
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    assert all((weights[name] == 0).all() for name in points)
    assert kinds["b"] == TensorProto.FLOAT


def test_old_opset_hidden_weights_and_batch_normalization(tmp_path: Path) -> None:
    """As paddle2onnx writes it: opset 11, weights behind Identity and Constant, normalization apart."""
    kernel = models.weights("kernel", (8, 3, 3, 3))
    statistics = [
        numpy_helper.from_array(np.full(8, fill, np.float32), name)
        for name, fill in (("scale", 1.5), ("shift", 0.1), ("mean", 0.2), ("var", 0.9))
    ]
    nodes = [
        helper.make_node("Constant", [], ["held"], value=kernel),
        helper.make_node("Identity", ["held"], ["w"]),
        helper.make_node("Conv", ["images", "w"], ["c"]),
        helper.make_node("BatchNormalization", ["c", "scale", "shift", "mean", "var"], ["n"]),
        helper.make_node("Relu", ["n"], ["r"]),
        helper.make_node("Squeeze", ["r"], ["s"], axes=[2]),
        helper.make_node("Unsqueeze", ["s"], ["y"], axes=[2]),
    ]
    proto = models.model(
        nodes,
        [models.value("images", ["batch", 3, 3, 3])],
        [models.value("y", ["batch", 8, 1, 1])],
        statistics,
        opset=11,
        ir_version=6,
    )
    inputs = {"images": np.random.default_rng(0).standard_normal((16, 3, 3, 3)).astype(np.float32)}
    model = models.save(proto, tmp_path / "m.onnx")
    out, summary = quantized(model, inputs, tmp_path)
    assert summary.operators["Conv"] == 1
    assert summary.opset >= 13
    assert "BatchNormalization" not in {node.op_type for node in onnx.load(out).graph.node}
    assert relative_l2(run(model, inputs), run(out, inputs)) < 0.03


def test_initializers_listed_as_inputs_become_constants(tmp_path: Path) -> None:
    """IR version 3 asked for that."""
    proto = models.linear()
    proto.graph.input.extend(
        [models.value("w", [4, 3]), models.value("b", [3])],
    )
    proto.ir_version = 3
    proto.opset_import[0].version = 9
    model = models.save(proto, tmp_path / "m.onnx")
    out, summary = quantized(model, rows(), tmp_path)
    assert summary.operators == {"Gemm": 1}
    assert [value.name for value in onnx.load(out).graph.input] == ["x"]


def test_shared_weights_and_biases(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["one"], pads=[1] * 4),
        helper.make_node("Conv", ["one", "w", "b"], ["two"], pads=[1] * 4),
        helper.make_node("Add", ["two", "b4"], ["y"]),
    ]
    shape: list[int | str | None] = ["batch", 8, 6, 6]
    proto = models.model(
        nodes,
        [models.value("x", shape)],
        [models.value("y", shape)],
        [
            models.weights("w", (8, 8, 3, 3)),
            models.weights("b", (8,)),
            numpy_helper.from_array(np.ones((1, 8, 1, 1), np.float32), "b4"),
        ],
    )
    inputs = {"x": np.random.default_rng(0).standard_normal((4, 8, 6, 6)).astype(np.float32)}
    model = models.save(proto, tmp_path / "m.onnx")
    out, summary = quantized(model, inputs, tmp_path)
    assert summary.operators == {"Conv": 2}
    assert relative_l2(run(model, inputs), run(out, inputs)) < 0.03


def test_external_data_is_read_and_the_result_stands_alone(tmp_path: Path) -> None:
    source = tmp_path / "source"
    model = models.save(models.convolutional(), source / "m.onnx", external=True)
    expected = run(model, images())
    out, _ = quantized(model, images(), tmp_path)
    for path in source.iterdir():
        path.unlink()
    assert relative_l2(expected, run(out, images())) < 0.05


def test_models_beyond_protobufs_limit_keep_weights_in_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preparing, "_PROTOBUF_LIMIT_BYTES", 1000)
    model = models.save(models.convolutional(channels=(3, 16, 16)), tmp_path / "m.onnx", external=True)
    out, _ = quantized(model, images(), tmp_path)
    assert sorted(path.name for path in out.parent.iterdir()) == ["int8.onnx", "int8.onnx.data"]
    assert relative_l2(run(model, images()), run(out, images())) < 0.05


def test_what_clients_read_keeps_its_full_precision(tmp_path: Path) -> None:
    model = models.save(models.convolutional(), tmp_path / "m.onnx")
    out, _ = quantized(model, images(), tmp_path)
    last = next(node for node in onnx.load(out).graph.node if "scores" in node.output)
    assert last.op_type == "Gemm"
    assert np.unique(run(out, images(64))).size > 200


@pytest.mark.parametrize("kind", ["relu", "mixes_batch", "strings"])
def test_nothing_to_quantize_is_said(kind: str, tmp_path: Path) -> None:
    model = models.save(getattr(models, kind)(), tmp_path / "m.onnx")
    with pytest.raises(BuildError, match="nothing to quantize") as caught:
        tensors_to_calibrate(model, RECIPE)
    assert caught.value.found
    assert list(tmp_path.iterdir()) == [model]


def test_products_of_two_activations_are_left_alone(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Transpose", ["a"], ["t"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["a", "t"], ["y"]),
    ]
    proto = models.model(
        nodes,
        [models.value("x", ["batch", 5, 4])],
        [models.value("y", ["batch", 5, 5])],
        [models.weights("w", (4, 4))],
    )
    inputs = {"x": np.random.default_rng(0).standard_normal((4, 5, 4)).astype(np.float32)}
    model = models.save(proto, tmp_path / "m.onnx")
    out, summary = quantized(model, inputs, tmp_path)
    assert summary.operators == {"MatMul": 1}
    assert summary.notes == ("1 × MatMul: its weight is computed, not stored",)
    assert relative_l2(run(model, inputs), run(out, inputs)) < 0.05


@pytest.mark.parametrize("shape", [(1, 3), (1,), ()], ids=str)
def test_gemm_with_a_bias_that_is_no_vector_stays_in_floating_point(
    shape: tuple[int, ...], tmp_path: Path
) -> None:
    proto = models.linear()
    bias = numpy_helper.from_array(np.full(shape, 0.5, np.float32), "b")
    proto.graph.initializer[1].CopyFrom(bias)
    model = models.save(proto, tmp_path / "m.onnx")
    with pytest.raises(BuildError, match="its bias is not a stored vector"):
        tensors_to_calibrate(model, RECIPE)


def test_control_flow_bodies_stay_in_floating_point_with_a_note(tmp_path: Path) -> None:
    proto = models.branching()
    proto.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 4
    proto.graph.node.append(helper.make_node("MatMul", ["y", "weight"], ["z"]))
    proto.graph.initializer.append(models.weights("weight", (4, 4)))
    del proto.graph.output[:]
    proto.graph.output.append(models.value("z", ["batch", 4]))
    proto.opset_import[0].version = 11
    model = models.save(proto, tmp_path / "m.onnx")
    out, summary = quantized(model, rows(), tmp_path)
    assert summary.operators == {"MatMul": 1}
    assert any("bodies of If" in note for note in summary.notes) or "If" not in {
        node.op_type for node in onnx.load(out).graph.node
    }
    assert relative_l2(run(model, rows()), run(out, rows())) < 0.03


def test_local_functions_are_inlined(tmp_path: Path) -> None:
    body = helper.make_function(
        "local", "Affine", ["x", "w"], ["y"], [helper.make_node("MatMul", ["x", "w"], ["y"])],
        [helper.make_opsetid("", 17)],
    )  # fmt: skip
    graph = helper.make_graph(
        [helper.make_node("Affine", ["x", "w"], ["y"], domain="local")],
        "g",
        [models.value("x", ["batch", 4])],
        [models.value("y", ["batch", 3])],
        [models.weights("w", (4, 3))],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    proto = helper.make_model(graph, functions=[body], opset_imports=opsets, ir_version=8)
    model = models.save(proto, tmp_path / "m.onnx")
    _, summary = quantized(model, rows(), tmp_path)
    assert summary.operators == {"MatMul": 1}


def test_weights_that_are_not_finite_are_named(tmp_path: Path) -> None:
    proto = models.linear()
    broken = numpy_helper.to_array(proto.graph.initializer[0]).copy()
    broken[1, 1] = np.nan
    proto.graph.initializer[0].CopyFrom(numpy_helper.from_array(broken, "w"))
    model = models.save(proto, tmp_path / "m.onnx")
    with pytest.raises(ModelError, match="weight 'w'"):
        quantize(model, {"x": (-1.0, 1.0), "y": (-1.0, 1.0)}, RECIPE, tmp_path / "out.onnx")
    assert not (tmp_path / "out.onnx").exists()


def test_nodes_without_a_range_stay_in_floating_point(tmp_path: Path) -> None:
    model = models.save(models.convolutional(), tmp_path / "m.onnx")
    ranges = ranges_on(model, images(), RECIPE, tmp_path)
    del ranges["images"]
    summary = quantize(model, ranges, RECIPE, tmp_path / "out.onnx")
    assert summary.operators["Conv"] == 1
    assert summary.notes == ("1 × Conv: no value was ever seen",)
    with pytest.raises(BuildError, match="nothing to quantize"):
        quantize(model, {}, RECIPE, tmp_path / "none.onnx")


def test_narrow_and_depthwise_convolutions_can_be_left_out(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "narrow"], ["a"], pads=[1] * 4),
        helper.make_node("Conv", ["a", "deep"], ["c"], pads=[1] * 4, group=32),
        helper.make_node("Conv", ["c", "wide"], ["y"], pads=[1] * 4),
    ]
    proto = models.model(
        nodes,
        [models.value("x", ["batch", 3, 6, 6])],
        [models.value("y", ["batch", 32, 6, 6])],
        [
            models.weights("narrow", (32, 3, 3, 3)),
            models.weights("deep", (32, 1, 3, 3)),
            models.weights("wide", (32, 32, 3, 3)),
        ],
    )
    model = models.save(proto, tmp_path / "m.onnx")
    recipe = replace(RECIPE, min_channels=16, depthwise=False)
    assert tensors_to_calibrate(model, RECIPE) == ["x", "a", "c", "y"]
    assert tensors_to_calibrate(model, recipe) == ["c", "y"]


def test_preparing_twice_changes_nothing(tmp_path: Path) -> None:
    model = models.save(models.convolutional(), tmp_path / "m.onnx")
    ready = prepare(model, tmp_path / "ready.onnx", min_opset=13)
    assert tensors_to_calibrate(ready, RECIPE) == tensors_to_calibrate(model, RECIPE)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.onnx", "ready.onnx"]
    assert relative_l2(run(model, images()), run(ready, images())) < 1e-5


def test_constant_and_zero_ranges_still_give_a_working_model(tmp_path: Path) -> None:
    model = models.save(models.linear(), tmp_path / "m.onnx")
    for extent in ((0.0, 0.0), (0.0, 3.0), (-2.0, 0.0)):
        out = tmp_path / "out.onnx"
        quantize(model, {"x": extent, "y": extent}, RECIPE, out)
        assert np.isfinite(run(out, rows())).all()


def test_saving_again_replaces_the_external_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """onnx itself writes behind what is in the file."""
    monkeypatch.setattr("tritongen.precision.prepare._PROTOBUF_LIMIT_BYTES", 0)
    out = tmp_path / "m.onnx"
    sizes = []
    for _ in range(2):
        save(models.linear(inputs=64, outputs=64), out)
        sizes.append(out.with_name("m.onnx.data").stat().st_size)
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize("reduce_range", [False, True])
@pytest.mark.parametrize(
    ("op_type", "shape", "axis", "attributes"),
    [
        ("Conv", (6, 4, 3, 3), 0, {}),
        ("ConvTranspose", (4, 6, 3, 3), 1, {}),
        ("Gemm", (4, 6), 1, {}),
        ("Gemm", (6, 4), 0, {"transB": 1}),
        ("MatMul", (4, 6), 1, {}),
    ],
)
def test_weights_are_those_that_onnx_runtime_makes_channel_by_channel(
    op_type: str,
    shape: tuple[int, ...],
    axis: int,
    attributes: dict[str, int],
    *,
    reduce_range: bool,
    tmp_path: Path,
) -> None:
    from onnxruntime.quantization.quant_utils import quantize_data

    weight = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    np.moveaxis(weight, axis, 0)[2] = 0  # a channel that does nothing
    width: models.Dims = ["n", 4, 8, 8] if len(shape) == 4 else ["n", 4]
    proto = models.model(
        [helper.make_node(op_type, ["x", "w"], ["y"], **attributes)],
        [models.value("x", width)],
        [models.value("y", [None] * len(width))],
        [numpy_helper.from_array(weight, "w")],
    )
    out = tmp_path / "q.onnx"
    recipe = replace(RECIPE, operators=(op_type,), reduce_range=reduce_range)
    quantize(models.save(proto, tmp_path / "m.onnx"), {"x": (-1, 1), "y": (-1, 1)}, recipe, out)
    graph = onnx.load(out).graph
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    pair = next(n for n in graph.node if n.op_type == "DequantizeLinear" and n.input[0] in stored)
    integers, scales = stored[pair.input[0]], stored[pair.input[1]]
    assert integers.shape == shape
    assert "w" not in stored
    for i, channel in enumerate(np.moveaxis(weight, axis, 0)):
        _, scale, wanted = quantize_data(
            channel.ravel(), TensorProto.INT8, symmetric=True, reduce_range=reduce_range
        )
        assert scales[i] == scale
        np.testing.assert_array_equal(np.moveaxis(integers, axis, 0)[i].ravel(), wanted)
