"""FP16 graphs: same inputs and outputs, close results, refusals; and INT8 with FP16 scales."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from tests import models
from tritongen.engines.onnxruntime.session import OnnxRuntimeRunner
from tritongen.engines.tensorrt.recipes import half_recipe, int8_recipes
from tritongen.errors import BuildError, ModelError
from tritongen.graph import inspect_model
from tritongen.precision.fp16 import to_half
from tritongen.precision.int8 import quantize, tensors_to_calibrate

Feeds = dict[str, NDArray[np.float32]]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return models.save(models.convolutional(), tmp_path / "m.onnx")


def inputs(model: Path, batch: int = 3) -> Feeds:
    (x,) = onnx.load(model).graph.input
    dims = [d.dim_value or 8 for d in x.type.tensor_type.shape.dim][1:]
    return {x.name: np.random.default_rng(0).standard_normal((batch, *dims)).astype(np.float32)}


def difference(one: Path, other: Path, feeds: Feeds) -> float:
    with OnnxRuntimeRunner(one) as a, OnnxRuntimeRunner(other) as b:
        (wanted,), (found,) = a.infer(feeds).values(), b.infer(feeds).values()
    exact = wanted.astype(np.float64)
    return float(np.linalg.norm(found.astype(np.float64) - exact) / np.linalg.norm(exact))


def test_half_keeps_inputs_and_outputs_and_stays_close(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "half.onnx"
    summary = to_half(model, half_recipe(), out)
    before, after = inspect_model(model), inspect_model(out)
    assert [(t.name, t.dtype) for t in after.inputs] == [(t.name, t.dtype) for t in before.inputs]
    assert [(t.name, t.dtype) for t in after.outputs] == [(t.name, t.dtype) for t in before.outputs]
    assert after.half
    assert summary.half_weights > 0
    assert 0 < difference(model, out, inputs(model)) < 5e-3


def test_operators_that_are_kept_stay_in_fp32(model: Path, tmp_path: Path) -> None:
    summary = to_half(model, replace(half_recipe(), keep_fp32=("Conv",)), tmp_path / "half.onnx")
    assert summary.kept_fp32["Conv"] > 0


def test_weights_beyond_fp16_are_refused_not_clamped(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])],
        [numpy_helper.from_array(np.array([[1, 1e6], [0, 1]], np.float32), "w")],
    )  # fmt: skip
    onnx.save(
        helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)]),
        tmp_path / "m.onnx",
    )
    with pytest.raises(ModelError, match="does not fit into FP16"):
        to_half(tmp_path / "m.onnx", half_recipe(), tmp_path / "half.onnx")


def test_lone_numbers_beyond_fp16_are_masks_and_clamped(tmp_path: Path) -> None:
    proto = models.model(
        [helper.make_node("Max", ["x", "least"], ["m"]), helper.make_node("MatMul", ["m", "w"], ["y"])],
        [models.value("x", ["n", 4])],
        [models.value("y", ["n", 4])],
        [numpy_helper.from_array(np.float32(-3.4e38), "least"), models.weights("w", (4, 4))],
    )
    model, out = models.save(proto, tmp_path / "m.onnx"), tmp_path / "half.onnx"
    to_half(model, half_recipe(), out)
    assert difference(model, out, {"x": np.ones((2, 4), np.float32)}) < 5e-3


@pytest.mark.parametrize("masked", [-np.inf, np.finfo(np.float32).min])
def test_a_mask_of_infinities_or_extreme_floats_masks_in_fp16_as_well(masked: float, tmp_path: Path) -> None:
    """A causal attention mask: what comes later gets no weight at all."""
    mask = np.triu(np.full((4, 4), masked, np.float32), 1)
    proto = models.model(
        [
            helper.make_node("MatMul", ["x", "w"], ["scores"]),
            helper.make_node("Add", ["scores", "mask"], ["masked"]),
            helper.make_node("Softmax", ["masked"], ["y"], axis=-1),
        ],
        [models.value("x", ["n", 4, 4])],
        [models.value("y", ["n", 4, 4])],
        [numpy_helper.from_array(mask, "mask"), models.weights("w", (4, 4))],
    )
    model, out = models.save(proto, tmp_path / "m.onnx"), tmp_path / "half.onnx"
    to_half(model, half_recipe(), out)
    feeds = {"x": np.random.default_rng(0).standard_normal((2, 4, 4)).astype(np.float32)}
    assert difference(model, out, feeds) < 5e-3
    with OnnxRuntimeRunner(out) as half:
        (found,) = half.infer(feeds).values()
    assert np.all(found[:, mask != 0] == 0)


@pytest.mark.parametrize("bad", [np.nan, -1e9])
def test_arrays_with_what_fp16_cannot_carry_are_refused(bad: float, tmp_path: Path) -> None:
    proto = models.model(
        [helper.make_node("Add", ["x", "b"], ["y"])],
        [models.value("x", ["n", 2])],
        [models.value("y", ["n", 2])],
        [numpy_helper.from_array(np.array([-np.inf, bad], np.float32), "b")],
    )
    with pytest.raises(ModelError, match="weight 'b' does not fit into FP16"):
        to_half(models.save(proto, tmp_path / "m.onnx"), half_recipe(), tmp_path / "half.onnx")


def quantized(model: Path, out: Path, opset: int) -> Path:
    recipe = replace(int8_recipes()[0], min_opset=opset)
    names = tensors_to_calibrate(model, recipe)
    quantize(model, dict.fromkeys(names, (-4.0, 4.0)), recipe, out)
    return out


def test_int8_with_fp16_beside_it_from_opset_19_on(model: Path, tmp_path: Path) -> None:
    int8 = quantized(model, tmp_path / "int8.onnx", 19)
    both = tmp_path / "both.onnx"
    to_half(int8, half_recipe(), both)
    graph = onnx.load(both).graph
    weights = {tensor.name: tensor.data_type for tensor in graph.initializer}
    scales = {weights[node.input[1]] for node in graph.node if node.op_type == "QuantizeLinear"}
    assert scales == {TensorProto.FLOAT16}
    # By onnx's own evaluator, as ONNX Runtime 1.23 computes FP16 QuantizeLinear per channel wrongly.
    (found,) = ReferenceEvaluator(str(both)).run(None, inputs(model))
    with OnnxRuntimeRunner(model) as exact:
        (wanted,) = (array.astype(np.float64) for array in exact.infer(inputs(model)).values())
    assert np.linalg.norm(found - wanted) / np.linalg.norm(wanted) < 0.05


def test_older_q_dq_nodes_are_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="opset"):
        to_half(quantized(model, tmp_path / "int8.onnx", 13), half_recipe(), tmp_path / "both.onnx")
