"""The batch axis, confirmed or refuted by running real models."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests import models
from tests.models import ints, model, save, value, weights
from tritongen.autotune.batch_axis import Infer, Tensors, confirm_batch_axis
from tritongen.graph import BatchAxis, BatchStatus, Graph, inspect_model
from tritongen.samples import open_dataset
from tritongen.shapes import resolve_inputs


def runner(path: Path) -> Infer:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda inputs: dict(zip(names, session.run(names, dict(inputs)), strict=True))


def confirmed(
    proto: onnx.ModelProto, folder: Path, infer: Infer | None = None, shapes: dict[str, str] | None = None
) -> BatchAxis:
    path = save(proto, folder / "m.onnx")
    graph = inspect_model(path)
    return confirm_batch_axis(graph, resolve_inputs(graph, shapes or {}, {}), infer or runner(path))


@pytest.mark.parametrize(
    ("proto", "shapes"),
    [
        (models.linear(), {}),
        (models.relu(), {}),
        (models.one_per_item(), {}),
        (models.two_in_two_out(), {}),
        (models.strings(), {}),
        (models.tokens(), {"ids": "6"}),
        (models.convolutional(size="any"), {"images": "3x8x12"}),
        (models.quantized(), {}),
        (models.half_precision(), {}),
        (models.branching(), {"x": "5"}),
        (models.looping(), {}),
    ],
)
def test_models_that_batch(proto: onnx.ModelProto, shapes: dict[str, str], tmp_path: Path) -> None:
    batch = confirmed(proto, tmp_path, shapes=shapes)
    assert batch.status is BatchStatus.CONFIRMED, batch.reason
    assert batch.usable
    assert "3 times a batch of 1" in batch.reason


def one_node(
    op_type: str, dims: list[Any], *inputs: Any, dtype: int = TensorProto.FLOAT, **attributes: Any
) -> Any:
    """x [N, 4] → y, by one operator, with further constant inputs."""
    node = helper.make_node(op_type, ["x", *(tensor.name for tensor in inputs)], ["y"], **attributes)
    return model([node], [value("x", ["N", 4])], [value("y", dims, dtype)], list(inputs))


@pytest.mark.parametrize(
    ("proto", "words"),
    [
        (models.mixes_batch(), "output 'y' differs"),
        (one_node("Softmax", ["N", 4], axis=0), "output 'y' differs"),
        (
            one_node("ArgMax", ["M", 4], dtype=TensorProto.INT64, axis=0),
            "axis 0 of output 'y' is 1 for a batch of 3",
        ),
        (one_node("Transpose", ["a", "b"]), "axis 0 of output 'y' is 4"),
        (one_node("Reshape", ["a", "b"], ints("shape", 2, -1)), "axis 0 of output 'y' is 2"),
        (one_node("Reshape", ["a", "b"], ints("shape", 1, 4)), "a batch of 3 does not run"),
        (one_node("Add", ["N", 4], weights("four", (5, 4))), "does not run"),
        (one_node("NonZero", ["a", "b"], dtype=TensorProto.INT64), "axis 0 of output 'y' is 2"),
        (models.batch_on_axis_1(), "axis 0 of output 'y' is 4"),
        (models.recurrent(), "output 'y' differs"),
    ],
)
def test_models_that_do_not(proto: onnx.ModelProto, words: str, tmp_path: Path) -> None:
    path = save(proto, tmp_path / "m.onnx")
    graph = declared(inspect_model(path))
    shapes = {spec.name: "x".join("4" if isinstance(dim, str) else str(dim) for dim in spec.shape[1:])
              for spec in graph.inputs if len(spec.dynamic_axes) > 1}  # fmt: skip
    batch = confirm_batch_axis(graph, resolve_inputs(graph, shapes, {}), runner(path))
    assert batch.status is BatchStatus.REFUTED
    assert words in batch.reason
    assert "\n" not in batch.reason


def declared(graph: Graph) -> Graph:
    return replace(graph, batch=BatchAxis(BatchStatus.DECLARED, ""))


def test_rows_that_depend_on_the_data_are_refuted(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("NonZero", ["x"], ["where"]),
        helper.make_node("Transpose", ["where"], ["y"]),
    ]
    proto = model(nodes, [value("x", ["N", 4])], [value("y", ["found", 2], TensorProto.INT64)])
    batch = confirmed(proto, tmp_path)
    assert batch.status is BatchStatus.REFUTED
    assert "axis 0 of output 'y' is 12 for a batch of 3" in batch.reason


def test_sizes_that_depend_on_the_other_items_are_refuted(tmp_path: Path) -> None:
    """A matrix of all pairs: [N, N]."""
    nodes = [helper.make_node("Transpose", ["x"], ["t"]), helper.make_node("MatMul", ["x", "t"], ["y"])]
    batch = confirmed(model(nodes, [value("x", ["N", 4])], [value("y", ["N", "M"])]), tmp_path)
    assert "its size depends on the other items" in batch.reason


def test_real_samples_are_used_where_there_are_three(tmp_path: Path) -> None:
    graph = inspect_model(save(models.relu(), tmp_path / "m.onnx"))
    seen: list[float] = []

    def infer(inputs: Tensors) -> dict[str, Any]:
        x = np.asarray(inputs["x"], np.float32)
        seen.append(float(x.max()))
        return {"y": x}

    for count, real in ((5, True), (2, False)):
        seen.clear()
        np.save(tmp_path / "d.npy", np.full((count, 4), 1000, np.float32))
        data = open_dataset(str(tmp_path / "d.npy"), graph)
        assert confirm_batch_axis(graph, resolve_inputs(graph, {}, {}), infer, dataset=data).usable
        assert (seen == [1000.0] * 4) is real


def test_random_graphs_are_refuted_with_a_hint(tmp_path: Path) -> None:
    proto = one_node("RandomNormalLike", ["N", 4])
    assert "draws random numbers: RandomNormalLike" in confirmed(proto, tmp_path).reason


def test_outputs_that_are_nan_tell_nothing(tmp_path: Path) -> None:
    nothing = numpy_helper.from_array(np.full(4, np.nan, np.float32), "nothing")
    assert "nowhere finite" in confirmed(one_node("Add", ["N", 4], nothing), tmp_path).reason


def test_token_ids_stay_within_the_table(tmp_path: Path) -> None:
    """An index beyond the table would make ONNX Runtime fail."""
    for seed in range(20):
        path = save(models.tokens(vocabulary=2), tmp_path / "m.onnx")
        graph = inspect_model(path)
        batch = confirm_batch_axis(graph, resolve_inputs(graph, {"ids": "16"}, {}), runner(path), seed)
        assert batch.usable


def test_whatever_the_engine_raises_refutes_in_one_line(tmp_path: Path) -> None:
    def crash(inputs: Tensors) -> dict[str, Any]:
        raise RuntimeError("first line\nsecond line")

    batch = confirmed(models.relu(), tmp_path, crash)
    assert batch.reason == "a batch of 1 does not run: first line"
    assert "gave no output 'y'" in confirmed(models.relu(), tmp_path, lambda _inputs: {}).reason


def test_rounding_is_forgiven_and_mixing_is_not(tmp_path: Path) -> None:
    def offset(share: float) -> Infer:
        return lambda inputs: {"y": np.asarray(inputs["x"], np.float32) + share * (len(inputs["x"]) == 3)}

    assert confirmed(models.relu(), tmp_path, offset(1e-6)).usable
    assert not confirmed(models.relu(), tmp_path, offset(1e-2)).usable


def test_what_the_shapes_rule_out_is_not_run(tmp_path: Path) -> None:
    def never(inputs: Tensors) -> dict[str, Any]:
        raise AssertionError

    batch = confirmed(models.static_batch(), tmp_path, never)
    assert batch.status is BatchStatus.ABSENT
