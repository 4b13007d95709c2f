"""Where Q/DQ pairs go: TensorRT's two placements, on tiny real graphs and on ResNet-50."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from bench.models import resnet50
from tests import models
from tests.unit.test_int8 import ranges_on, relative_l2, run
from tritongen.engines.tensorrt.recipes import int8_recipes, shared_recipe
from tritongen.errors import BuildError
from tritongen.precision.int8 import quantize, tensors_to_calibrate
from tritongen.precision.placement import Placement, place, shared_ranges
from tritongen.precision.prepare import infer_shapes
from tritongen.precision.value_moves import moved_inputs

RESIDUAL, SHARED = int8_recipes()[0], shared_recipe()
IMAGES = {"x": np.random.default_rng(0).standard_normal((4, 8, 6, 6)).astype(np.float32)}


def conv(x: str, y: str, weight: str = "w8") -> Any:
    return helper.make_node("Conv", [x, weight], [y], name=y)


def silu(x: str, y: str) -> list[Any]:
    return [helper.make_node("Sigmoid", [x], [f"{y}.s"]), helper.make_node("Mul", [x, f"{y}.s"], [y])]


def node(op_type: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: Any) -> Any:
    return helper.make_node(op_type, inputs, outputs, name=outputs[0], **attributes)


def graph(nodes: Sequence[Any], outputs: Sequence[str] = ("y",)) -> Any:
    """x [n, 8, 6, 6] → outputs; weights: wN takes N channels, but w1 gives one."""
    proto = models.model(
        nodes,
        [models.value("x", ["n", 8, 6, 6])],
        [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in outputs],
        [
            models.weights("w1", (1, 8, 1, 1)),
            models.weights("w4", (4, 4, 1, 1)),
            *(models.weights(f"w{count}", (8, count, 1, 1)) for count in (8, 12, 16)),
            models.ints("halves", 4, 4),
            numpy_helper.from_array(np.ones((1, 8, 6, 6), np.float32), "ones"),
            numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), "twice"),
        ],
    )
    infer_shapes(proto)
    return proto


def bottleneck() -> Any:
    """As in YOLOv8: a Split whose halves meet again in a Concat, one of them behind conv → SiLU → Add too."""
    return graph(
        [
            conv("x", "a"), *silu("a", "a.act"),
            node("Split", ["a.act", "halves"], ["left", "right"], axis=1),
            conv("right", "b", "w4"), *silu("b", "b.act"),
            node("Add", ["right", "b.act"], ["sum"]),
            node("Concat", ["left", "right", "sum"], ["all"], axis=1),
            conv("all", "y", "w12"),
        ]
    )  # fmt: skip


def placed(proto: Any, recipe: Any = SHARED, **how: Any) -> Placement:
    return place(proto, recipe, "m", **how)


def scales_demanded(model: Path) -> dict[str, set[float]]:
    """Tensor → the scales that its QuantizeLinear nodes have, those moved up through moving operators too."""
    proto = onnx.load(model).graph
    scales = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.initializer}
    found: dict[str, set[float]] = {}
    sources: dict[str, str] = {}
    for one in proto.node:
        if one.op_type == "QuantizeLinear" and one.input[0] not in scales:
            found.setdefault(one.input[0], set()).add(float(scales[one.input[1]]))
            sources[one.output[0]] = one.input[0]
    for one in proto.node:
        if one.op_type == "DequantizeLinear" and one.input[0] in sources:
            sources[one.output[0]] = sources[one.input[0]]
    for one in reversed(proto.node):
        for tensor in moved_inputs(one) if one.op_type != "QuantizeLinear" else ():
            for output in one.output:
                found.setdefault(sources.get(tensor, tensor), set()).update(found.get(output, ()))
    return found


def test_every_tensor_of_a_bottleneck_has_one_scale(tmp_path: Path) -> None:
    model = models.save(bottleneck(), tmp_path / "m.onnx")
    expected = run(model, IMAGES)
    twice = {}
    for recipe in (RESIDUAL, SHARED):
        out = tmp_path / f"{recipe.name}.onnx"
        quantize(model, ranges_on(model, IMAGES, recipe, tmp_path), recipe, out)
        twice[recipe.name] = {name for name, scales in scales_demanded(out).items() if len(scales) > 1}
        assert relative_l2(expected, run(out, IMAGES)) < 0.03
    assert twice == {"s8-residual": {"a.act", "right"}, "s8-shared": set()}


def test_pairs_of_a_bottleneck_are_where_values_come_from() -> None:
    found = placed(bottleneck())
    assert set(found.activations) == {"x", "a.act", "left", "right", "b.act", "sum", "all"}
    assert set(found.moved) == {"a.act", "left", "sum"}
    assert [set(group) for group in found.groups] == [{"a.act", "left", "right", "sum", "all"}]


def test_a_groups_range_is_that_of_the_joined_and_of_what_is_not_joined() -> None:
    found = placed(bottleneck())
    assert set(found.joined) == {"left", "right", "sum"}
    ranges = dict.fromkeys(found.activations, (-1.0, 9.0)) | {"all": (-2.0, 3.0), "a.act": (-1.0, 4.0)}
    shared = shared_ranges(found, ranges)
    assert {shared[name] for name in found.groups[0]} == {(-2.0, 4.0)}
    assert {shared[name] for name in ("x", "b.act")} == {(-1.0, 9.0)}


def test_without_a_joined_tensor_a_groups_range_is_the_union() -> None:
    nodes = [
        *silu("x", "a"), node("Split", ["a", "halves"], ["left", "right"], axis=1),
        conv("left", "y", "w4"), conv("right", "z", "w4"),
    ]  # fmt: skip
    found = placed(graph(nodes, ["y", "z"]))
    shared = shared_ranges(found, {"a": (-1.0, 1.0), "left": (0.0, 2.0), "right": (-3.0, 0.0)})
    assert shared == dict.fromkeys(("a", "left", "right"), (-3.0, 2.0))


def test_a_sum_that_only_floating_point_reads_stays_there() -> None:
    nodes = [conv("x", "a"), *silu("a", "a.act"), node("Add", ["x", "a.act"], ["sum"])]
    assert placed(graph([*nodes, node("Exp", ["sum"], ["y"])])).activations == ("x",)
    assert set(placed(graph([*nodes, conv("sum", "y")])).activations) == {"x", "a.act", "sum"}


def test_a_sum_with_a_constant_stays_in_floating_point() -> None:
    nodes = [*silu("x", "a"), node("Add", ["a", "ones"], ["sum"]), conv("sum", "y")]
    assert placed(graph(nodes)).activations == ("sum",)


@pytest.mark.parametrize("recipe", [RESIDUAL, SHARED])
def test_the_constant_of_a_sum_in_floating_point_is_not_rounded(recipe: Any, tmp_path: Path) -> None:
    nodes = [*silu("x", "a"), node("Add", ["a", "ones"], ["sum"]), conv("sum", "y")]
    out = tmp_path / "int8.onnx"
    summary = quantize(models.save(graph(nodes), tmp_path / "m.onnx"), {"sum": (-3.0, 3.0)}, recipe, out)
    assert summary.operators == {"Conv": 1}
    assert "1 × Add: no input of it is quantized" in summary.notes
    rounded = {one.input[0] for one in onnx.load(out).graph.node if one.op_type == "QuantizeLinear"}
    assert rounded == {"sum", "w8"}


def test_a_convolutions_kernel_still_takes_the_sum() -> None:
    nodes = [
        conv("x", "a"), node("Relu", ["a"], ["r"]), conv("r", "b"),
        node("Add", ["b", "x"], ["sum"]), node("Relu", ["sum"], ["out"]), conv("out", "y"),
    ]  # fmt: skip
    assert placed(graph(nodes)) == placed(graph(nodes), RESIDUAL)
    assert set(placed(graph(nodes)).activations) == {"x", "r", "out"}


def test_resnet50_has_the_same_pairs() -> None:
    proto = resnet50.resnet50()
    infer_shapes(proto)
    residual, shared = placed(proto, RESIDUAL), placed(proto)
    # A MaxPool's input was listed and got no pair, as nothing had quantized it before.
    assert set(residual.activations) - set(shared.activations) == {"stem.relu"}
    assert set(shared.activations) < set(residual.activations)
    assert [name for name in residual.nodes if name != "pool"] == list(shared.nodes)
    assert (shared.moved, shared.groups) == ((), ())


def test_a_small_resnet_becomes_the_same_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resnet50, "STAGES", ((8, 1), (16, 2)))
    model = models.save(resnet50.resnet50(), tmp_path / "m.onnx")
    names = tensors_to_calibrate(model, RESIDUAL)
    ranges = {name: (-1.0, 1.0 + i) for i, name in enumerate(names)}
    files = []
    for recipe in (RESIDUAL, SHARED):
        quantize(model, ranges, recipe, tmp_path / "q.onnx")
        files.append((tmp_path / "q.onnx").read_bytes())
    assert files[0] == files[1]


@pytest.mark.parametrize(
    ("nodes", "reason"),
    [
        ([conv("x", "y", "w1")], "fewer than 4 output channels"),
        ([node("Softmax", ["x"], ["p"]), conv("p", "y")], "its input comes out of a Softmax"),
        (
            [
                node("Softmax", ["x"], ["p"]),
                node("Transpose", ["p"], ["t"], perm=[0, 1, 3, 2]),
                conv("t", "y"),
            ],
            "its input comes out of a Softmax",
        ),
    ],
    ids=["one channel", "softmax", "softmax, transposed"],
)
def test_convolutions_that_gain_nothing_stay_out(nodes: list[Any], reason: str) -> None:
    found = placed(graph([*nodes, conv("x", "z")], ["y", "z"]))
    assert found.notes == (f"1 × Conv: {reason}",)
    assert found.nodes == ("z",)
    assert "y" in placed(graph(nodes), RESIDUAL).nodes
    with pytest.raises(BuildError, match="nothing to quantize"):
        placed(graph(nodes))


def test_what_only_floating_point_reads_joins_no_group() -> None:
    """A Concat that no quantized node reads would widen the ranges of what goes into it."""
    nodes = [*silu("x", "a"), conv("a", "z"), node("Concat", ["a", "x"], ["y"], axis=1)]
    found = placed(graph(nodes, ["y", "z"]))
    assert (found.activations, found.groups) == (("a",), ())


def test_values_are_followed_through_every_operator_that_moves_them() -> None:
    nodes = [
        *silu("x", "a"), node("MaxPool", ["a"], ["pool"], kernel_shape=[1, 1]),
        node("Transpose", ["pool"], ["t"], perm=[0, 1, 3, 2]),
        node("Concat", ["a", "t"], ["all"], axis=1), conv("all", "y", "w16"),
    ]  # fmt: skip
    found = placed(graph(nodes))
    assert set(found.activations) == {"a", "t", "all"}
    assert [set(group) for group in found.groups] == [{"a", "t", "all"}]


def test_a_resize_reads_floating_point_where_others_read_a_pair(tmp_path: Path) -> None:
    """Between two pairs, TensorRT 8.6 has no kernel for it."""
    nodes = [
        *silu("x", "a"), node("Resize", ["a", "", "twice"], ["big"], mode="nearest"),
        conv("big", "y"), conv("a", "z"),
    ]  # fmt: skip
    found = placed(graph(nodes, ["y", "z"]))
    assert set(found.activations) == {"a", "big"}
    assert [set(group) for group in found.groups] == [{"a", "big"}]
    model = models.save(graph(nodes, ["y", "z"]), tmp_path / "m.onnx")
    for recipe, source in ((RESIDUAL, "a_DequantizeLinear_Output"), (SHARED, "a")):
        quantize(model, {"a": (-1.0, 1.0), "big": (-1.0, 1.0)}, recipe, tmp_path / "q.onnx")
        readers = {one.op_type: one.input[0] for one in onnx.load(tmp_path / "q.onnx").graph.node}
        assert readers["Resize"] == source
    assert run(tmp_path / "q.onnx", IMAGES).shape == (4, 8, 12, 12)


def test_only_the_nearest_value_is_a_value_that_was_there() -> None:
    for mode, moved in (("nearest", ("a",)), ("linear", ())):
        assert moved_inputs(node("Resize", ["a", "", "twice"], ["big"], mode=mode)) == moved


def test_what_is_held_in_floating_point_asks_for_nothing() -> None:
    found = placed(bottleneck(), held=["y"])
    assert set(found.activations) == {"x", "a.act", "right"}
    assert [set(group) for group in found.groups] == [{"a.act", "right"}]
    assert set(placed(bottleneck(), held=["sum"]).activations) == {
        "x",
        "a.act",
        "left",
        "right",
        "sum",
        "all",
    }


def test_tensors_without_a_range_get_no_pair(tmp_path: Path) -> None:
    ranges = dict.fromkeys(placed(bottleneck()).activations, (-1.0, 1.0))
    for missing, left in (("left", {"left"}), ("b.act", {"b.act"}), ("all", {"all", "left", "sum"})):
        known = {name: extent for name, extent in ranges.items() if name != missing}
        found = placed(bottleneck(), ranges=known)
        assert set(ranges) - set(found.activations) >= left
        quantize(models.save(bottleneck(), tmp_path / "m.onnx"), known, SHARED, tmp_path / "q.onnx")


def test_what_clients_read_keeps_its_full_precision() -> None:
    nodes = [*silu("x", "a"), node("Concat", ["a", "x"], ["all"], axis=1), conv("all", "y", "w16")]
    assert set(placed(graph(nodes, ["y", "a"])).activations) == {"x", "all"}


def test_without_the_option_nothing_moves() -> None:
    found = placed(bottleneck(), replace(SHARED, shared_ranges=False))
    assert (found.moved, found.groups) == ((), ())
    assert set(found.activations) == {"x", "right", "all"}
