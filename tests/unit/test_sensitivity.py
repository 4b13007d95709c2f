"""Sensitivity and mixed precision on a real net with one layer that INT8 ruins."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from tritongen.autotune.sensitivity import block_costs, mix, relative_l2, run_exactly
from tritongen.engines.tensorrt.recipes import int8_recipes
from tritongen.errors import BuildError
from tritongen.precision.calibration import Range
from tritongen.precision.prepare import prepare

LAYERS = 4
RUINED = 2
Feeds = dict[str, NDArray[np.float32]]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """x [n, 32] through four MatMuls with Tanh between."""
    rng = np.random.default_rng(0)
    nodes, weights, x = [], [], "x"
    for i in range(LAYERS):
        weights.append(
            numpy_helper.from_array(rng.normal(scale=0.2, size=(32, 32)).astype(np.float32), f"w{i}")
        )
        y = "y" if i == LAYERS - 1 else f"t{i}"
        nodes.append(helper.make_node("MatMul", [x, f"w{i}"], [f"m{i}" if y != "y" else "y"], f"matmul{i}"))
        if y != "y":
            nodes.append(helper.make_node("Tanh", [f"m{i}"], [y], f"tanh{i}"))
        x = y
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 32])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 32])],
        weights,
    )  # fmt: skip
    raw = tmp_path / "raw.onnx"
    onnx.save(helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)]), raw)
    return prepare(raw, tmp_path / "m.onnx", min_opset=13)


@pytest.fixture
def ranges() -> dict[str, Range]:
    """Right for every activation but the one that layer RUINED reads: its grid is far too coarse."""
    found = {"x": (-4.0, 4.0), "t0": (-1.0, 1.0), "t1": (-1.0, 1.0), "t2": (-1.0, 1.0)}
    return {**found, f"t{RUINED - 1}": (-200.0, 200.0)}


@pytest.fixture
def batches() -> list[Feeds]:
    rng = np.random.default_rng(1)
    return [{"x": rng.standard_normal((8, 32)).astype(np.float32)} for _ in range(2)]


def error_of(model: Path, path: Path, batches: list[Feeds]) -> float:
    return relative_l2(run_exactly(path, batches), run_exactly(model, batches))


def test_the_ruined_layer_is_the_dearest(model: Path, ranges: dict[str, Range], batches: list[Feeds]) -> None:
    costs = block_costs(model, ranges, int8_recipes()[0], batches)
    assert len(costs) == LAYERS
    assert costs[0].nodes == (f"matmul{RUINED}",)
    assert costs[0].error > 10 * costs[1].error


def test_only_the_dearest_is_held_back(
    model: Path, ranges: dict[str, Range], batches: list[Feeds], tmp_path: Path
) -> None:
    recipe, out = int8_recipes()[0], tmp_path / "mixed.onnx"
    costs = block_costs(model, ranges, recipe, batches)

    def accept(path: Path) -> tuple[bool, float]:
        error = error_of(model, path, batches)
        return error < 0.05, error

    mixture = mix(model, ranges, recipe, costs=costs, accept=accept, out=out)
    assert mixture.held == (f"matmul{RUINED}",)
    assert error_of(model, out, batches) < 0.05
    kinds = [node.op_type for node in onnx.load(out).graph.node]
    assert kinds.count("MatMul") == LAYERS
    assert [point.held for point in mixture.points] == sorted(point.held for point in mixture.points)


def test_blocks_hold_several_layers(model: Path, ranges: dict[str, Range], batches: list[Feeds]) -> None:
    costs = block_costs(model, ranges, int8_recipes()[0], batches, block=2)
    assert sorted(len(cost.nodes) for cost in costs) == [2, 2]


def test_where_nothing_passes_it_says_so(
    model: Path, ranges: dict[str, Range], batches: list[Feeds], tmp_path: Path
) -> None:
    recipe = int8_recipes()[0]
    costs = block_costs(model, ranges, recipe, batches)
    with pytest.raises(BuildError, match="no mixture"):
        mix(model, ranges, recipe, costs=costs, accept=lambda _path: (False, 1.0), out=tmp_path / "m2.onnx")
