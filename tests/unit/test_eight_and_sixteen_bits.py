"""BF16 and FP8 graphs: checked by ONNX, and FP8 computed by ONNX Runtime's own Q/DQ operators."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from tests import models
from tritongen.autotune.sensitivity import relative_l2, run_exactly
from tritongen.engines.onnxruntime.session import OnnxRuntimeRunner
from tritongen.engines.tensorrt import api, precisions_of
from tritongen.engines.tensorrt.recipes import float8_recipe, half_recipe, recipes_for
from tritongen.precision.fp8 import LARGEST
from tritongen.precision.fp16 import to_half
from tritongen.precision.int8 import quantize, tensors_to_calibrate
from tritongen.precision.recipe import Fp16Recipe
from tritongen.spec import Precision

BRAIN = Fp16Recipe(name="brain", brain=True)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return models.save(models.convolutional((16, 16, 16)), tmp_path / "m.onnx")


def sample(model: Path) -> dict[str, NDArray[np.float32]]:
    (x,) = onnx.load(model).graph.input
    dims = [d.dim_value or 4 for d in x.type.tensor_type.shape.dim]
    return {x.name: np.random.default_rng(1).standard_normal(dims).astype(np.float32)}


def test_bf16_has_the_types_of_fp16_and_weights_rounded_once(model: Path, tmp_path: Path) -> None:
    to_half(model, half_recipe(), tmp_path / "half.onnx")
    summary = to_half(model, BRAIN, tmp_path / "brain.onnx")
    half, brain = (onnx.load(tmp_path / name) for name in ("half.onnx", "brain.onnx"))
    onnx.checker.check_model(brain)  # BF16 convolutions are ONNX from opset 22 on, and TensorRT's before
    assert [node.op_type for node in brain.graph.node] == [node.op_type for node in half.graph.node]
    assert summary.half_weights > 0
    types = {value.type.tensor_type.elem_type for value in (*brain.graph.input, *brain.graph.output)}
    assert types == {onnx.TensorProto.FLOAT}
    assert all(w.data_type != onnx.TensorProto.FLOAT16 for w in brain.graph.initializer)
    assert onnx.TensorProto.BFLOAT16 in {w.data_type for w in brain.graph.initializer}
    originals = {w.name: onnx.numpy_helper.to_array(w) for w in onnx.load(model).graph.initializer}
    for tensor in brain.graph.initializer:
        if tensor.name in originals and tensor.data_type == onnx.TensorProto.BFLOAT16:
            wanted = originals[tensor.name].astype(ml_dtypes.bfloat16).tobytes()
            assert tensor.raw_data == wanted


def test_weights_beyond_fp16_are_no_obstacle_for_bf16(tmp_path: Path) -> None:
    proto = models.linear()
    large = onnx.numpy_helper.to_array(proto.graph.initializer[0]) * 1e6
    proto.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(large, "w"))
    path = models.save(proto, tmp_path / "large.onnx")
    to_half(path, BRAIN, tmp_path / "brain.onnx")
    (weight,) = (w for w in onnx.load(tmp_path / "brain.onnx").graph.initializer if w.name == "w")
    found = np.frombuffer(weight.raw_data, ml_dtypes.bfloat16).astype(np.float32)
    np.testing.assert_allclose(found.reshape(large.shape), large, rtol=2**-8)


def test_fp8_takes_the_places_of_int8_with_a_grid_that_ends_at_448(model: Path, tmp_path: Path) -> None:
    recipe, out = float8_recipe(), tmp_path / "f8.onnx"
    feeds = sample(model)
    names = tensors_to_calibrate(model, recipe)
    summary = quantize(model, dict.fromkeys(names, (-4.48, 4.48)), recipe, out)
    proto = onnx.load(out)
    assert summary.opset >= 19
    kinds = Counter(w.data_type for w in proto.graph.initializer)
    assert kinds[onnx.TensorProto.INT8] == 0
    assert kinds[onnx.TensorProto.FLOAT8E4M3FN] > 0
    scales = {w.name: onnx.numpy_helper.to_array(w) for w in proto.graph.initializer}
    first = next(n for n in proto.graph.node if n.op_type == "QuantizeLinear" and n.input[0] in names)
    assert float(scales[first.input[1]]) == pytest.approx(4.48 / LARGEST, rel=1e-6)
    error = relative_l2(run_exactly(out, [feeds]), run_exactly(model, [feeds]))
    assert 1e-3 < error < 0.1  # three bits of mantissa: a few percent


def test_the_rest_of_an_fp8_graph_becomes_fp16(model: Path, tmp_path: Path) -> None:
    recipe, out = float8_recipe(), tmp_path / "f8.onnx"
    quantize(model, dict.fromkeys(tensors_to_calibrate(model, recipe), (-4.0, 4.0)), recipe, out)
    to_half(out, half_recipe(), out)
    proto = onnx.load(out)
    onnx.checker.check_model(proto)
    scales = {n.input[1] for n in proto.graph.node if n.op_type == "QuantizeLinear"}
    types = {w.data_type for w in proto.graph.initializer if w.name in scales}
    assert types == {onnx.TensorProto.FLOAT16}
    with OnnxRuntimeRunner(out, graph_optimization_level="disabled") as runner:
        assert all(np.isfinite(value).all() for value in runner.infer(sample(model)).values())


def features(*, weakly: bool, strongly: bool, bf16: bool, fp8: bool) -> api.Features:
    return api.Features(
        weakly_typed=weakly, strongly_typed=strongly, explicit_batch_flag=weakly, implicit_int8=weakly,
        bf16=bf16, fp8=fp8, build_routes=False, progress_monitor=False, tiling=False, tactic_sources=(),
    )  # fmt: skip


EIGHT = features(weakly=True, strongly=False, bf16=False, fp8=False)
TEN = features(weakly=True, strongly=True, bf16=True, fp8=True)
ELEVEN = features(weakly=False, strongly=True, bf16=True, fp8=True)


@pytest.mark.parametrize(
    ("has", "capability", "more"),
    [
        (EIGHT, (9, 0), []), (TEN, (9, 0), ["bf16", "fp8"]), (TEN, (8, 6), ["bf16"]), (TEN, (7, 5), []),
        (ELEVEN, (8, 9), ["bf16", "fp8"]), (ELEVEN, (12, 0), ["bf16", "fp8"]),
    ],
)  # fmt: skip
def test_precisions_are_those_of_version_and_gpu(
    has: api.Features, capability: tuple[int, ...], more: list[str]
) -> None:
    assert set(map(str, precisions_of(has, capability))) == {"fp32", "fp16", "int8", *more}


def test_recipes_by_version() -> None:
    assert recipes_for(Precision.BF16, TEN) == ()  # a builder flag does it
    assert [r.name for r in recipes_for(Precision.BF16, ELEVEN)] == ["brain"]
    assert [r.name for r in recipes_for(Precision.FP8, TEN)] == ["f8"]
    assert recipes_for(Precision.FP8, EIGHT) == ()
