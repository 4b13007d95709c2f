"""Where Q/DQ pairs go: which nodes are quantized, which of their activations, and which share a range."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import onnx

from tritongen.errors import BuildError
from tritongen.precision.calibration import Range
from tritongen.precision.recipe import Int8Recipe
from tritongen.precision.value_moves import moved_inputs, value_moves
from tritongen.precision.weights import WEIGHTED

FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)


@dataclass(frozen=True)
class Placement:
    """Which nodes and which of their activations are quantized."""

    nodes: tuple[str, ...]
    operators: dict[str, int]
    activations: tuple[str, ...]
    notes: tuple[str, ...]
    moved: tuple[str, ...] = ()
    """Of the activations, those that no quantized node reads: operators do that only move their values."""
    groups: tuple[tuple[str, ...], ...] = ()
    """Activations that hold the same values in other places, and so share a range."""
    joined: tuple[str, ...] = ()
    """Of these, those whose values are all in a Concat's result that is in the group, too."""


def place(
    proto: Any,
    recipe: Int8Recipe,
    name: str,
    ranges: Mapping[str, Range] | None = None,
    *,
    only: Collection[str] | None = None,
    held: Collection[str] = (),
) -> Placement:
    """Choose nodes and activations by the recipe; with `ranges`, only nodes whose activations have one.

    With `only`, no others than those nodes; never those that are `held`.
    """
    if recipe.implicit:
        return _place_everywhere(proto)
    graph = _Known(proto.graph)
    nodes: list[Any] = []
    activations: dict[str, None] = {}
    left: Counter[str] = Counter()
    for node in proto.graph.node:
        if node.op_type not in recipe.operators or node.domain not in ("", "ai.onnx"):
            continue
        wanted = _activations(node, recipe, graph)
        if recipe.fused_adds and node.op_type == "Add":
            wanted = _without_fused(wanted, graph)
        reason = _reason_to_skip(node, recipe, graph) or _constant_reason(node, wanted, recipe, graph)
        if reason is None and ranges is not None and any(tensor not in ranges for tensor in wanted):
            reason = "no value was ever seen"
        if reason is None and (node.name in held or (only is not None and node.name not in only)):
            reason = "held in floating point for accuracy"
        if reason is not None:
            left[f"{node.op_type}: {reason}"] += 1
            continue
        nodes.append(node)
        activations.update(dict.fromkeys(wanted))
    operators = Counter(node.op_type for node in nodes)
    _refuse_nothing(proto, recipe, operators, left, name)
    shared = _shared(recipe, graph, nodes, activations, ranges)
    notes = tuple(f"{count} × {reason}" for reason, count in sorted(left.items()))
    return Placement(
        tuple(node.name for node in nodes),
        dict(operators),
        tuple(activations),
        notes + _subgraph_note(proto.graph),
        **shared,
    )


def shared_ranges(placement: Placement, ranges: Mapping[str, Range]) -> dict[str, Range]:
    """`ranges`, with one for all activations of a group: the union of theirs, without what a Concat joins.

    The union clips none of them more than its own range would. What goes into a Concat does not count by
    itself: for its result, the method has weighed clipping against rounding on the values of all inputs.
    """
    found, joined = dict(ranges), set(placement.joined)
    for group in placement.groups:
        counted = [ranges[tensor] for tensor in group if tensor not in joined]
        lows, highs = zip(*counted, strict=True)
        found.update(dict.fromkeys(group, (min(lows), max(highs))))
    return found


class _Known:
    """What placement asks of a graph's tensors."""

    def __init__(self, graph: Any) -> None:
        self.graph = graph
        self.weights = {tensor.name: tensor for tensor in graph.initializer}
        self.floats = _float_activations(graph)
        self.outputs = {value.name for value in graph.output}
        self.producers = {output: node for node in graph.node for output in node.output}

    def is_activation(self, tensor: str) -> bool:
        return tensor in self.floats and tensor not in self.weights

    def source(self, tensor: str) -> str:
        """The type of the operator that computed the tensor's values, others having moved them."""
        node = self.producers.get(tensor)
        while node is not None and (moved := moved_inputs(node)):
            node = self.producers.get(moved[0])
        return node.op_type if node is not None else ""


def _shared(
    recipe: Int8Recipe,
    graph: _Known,
    nodes: list[Any],
    activations: dict[str, None],
    ranges: Mapping[str, Range] | None,
) -> dict[str, Any]:
    """Add to `activations` what sums and moved values bring; a Placement's fields about them."""
    if not recipe.shared_ranges:
        return {}
    sums = {node.name: inputs for node in nodes if (inputs := _summed(node, recipe, graph, ranges))}
    found = value_moves(graph.graph, set(activations), sums, graph.is_activation, recipe.float_readers)
    placed = dict.fromkeys([*activations, *(t for name in found.sums for t in sums[name])])
    moved = [
        tensor
        for tensor in found.read
        if tensor not in placed and tensor not in graph.outputs and (ranges is None or tensor in ranges)
    ]
    activations.update({**placed, **dict.fromkeys(moved)})
    groups = (tuple(tensor for tensor in group if tensor in activations) for group in found.groups)
    joined = (tensor for result, inputs in found.joins.items() if result in activations for tensor in inputs)
    return {
        "moved": tuple(moved),
        "groups": tuple(group for group in groups if len(group) > 1),
        "joined": tuple(dict.fromkeys(joined)),
    }


def _summed(
    node: Any, recipe: Int8Recipe, graph: _Known, ranges: Mapping[str, Range] | None
) -> tuple[str, ...]:
    """Both inputs of an Add of two activations that no weighted operator's kernel takes; empty for others."""
    if node.op_type != "Add":
        return ()
    inputs = tuple(_activations(node, recipe, graph))
    fused = any(_is_weighted(tensor, graph) for tensor in inputs)
    known = ranges is None or all(tensor in ranges for tensor in inputs)
    return inputs if len(inputs) == len(node.input) and known and not fused else ()


def _place_everywhere(proto: Any) -> Placement:
    """Every floating-point activation, for an engine that chooses the nodes itself."""
    graph = proto.graph
    floats = _float_activations(graph)
    constants = {tensor.name for tensor in graph.initializer}
    inputs = [value.name for value in graph.input if value.name in floats - constants]
    inner = [output for node in graph.node for output in node.output if output in floats]
    return Placement((), {}, tuple(dict.fromkeys(inputs + inner)), ())


def _reason_to_skip(node: Any, recipe: Int8Recipe, graph: _Known) -> str | None:
    if node.input[0] not in graph.floats:
        return "its input is not a floating-point activation"
    if node.op_type not in WEIGHTED:
        return None
    weight = graph.weights.get(node.input[1])
    if weight is None or weight.data_type not in FLOATS:
        return "its weight is computed, not stored" if weight is None else "its weight is not floating-point"
    if recipe.float_sources and (source := graph.source(node.input[0])) in recipe.float_sources:
        return f"its input comes out of a {source}"
    return _shape_reason(node, weight, recipe) or _bias_reason(node, graph.weights)


def _constant_reason(node: Any, wanted: list[str], recipe: Int8Recipe, graph: _Known) -> str | None:
    """The emitter would round a constant all the same: a bias, anchors, the 1 of a GELU."""
    constant = not all(map(graph.is_activation, node.input))
    return "no input of it is quantized" if recipe.fused_adds and constant and not wanted else None


def _shape_reason(node: Any, weight: Any, recipe: Int8Recipe) -> str | None:
    if min(_channels(node, weight)) < recipe.min_channels:
        return f"fewer than {recipe.min_channels} channels"
    if _output_channels(node, weight) < recipe.min_output_channels:
        return f"fewer than {recipe.min_output_channels} output channels"
    if not recipe.depthwise and _is_depthwise(node, weight):
        return "depthwise"
    return None


def _bias_reason(node: Any, weights: Mapping[str, Any]) -> str | None:
    if len(node.input) > 2 and node.input[2]:  # noqa: PLR2004
        bias = weights.get(node.input[2])
        if bias is None or len(bias.dims) != 1 or (node.op_type == "Gemm" and bias.dims[0] == 1):
            return "its bias is not a stored vector"
    return None


def _channels(node: Any, weight: Any) -> tuple[int, ...]:
    """Output channels and the inputs that each of them sums over (all groups together)."""
    dims = tuple(weight.dims)
    if node.op_type in ("Conv", "ConvTranspose"):
        groups = _attribute(node, "group", 1)
        return (dims[0], dims[1] * groups)
    return dims[-2:]


def _output_channels(node: Any, weight: Any) -> int:
    if node.op_type == "Gemm":
        return int(weight.dims[0 if _attribute(node, "transB", 0) else 1])
    if node.op_type == "MatMul":
        return int(weight.dims[-1])
    return int(_channels(node, weight)[node.op_type == "ConvTranspose"])


def _is_depthwise(node: Any, weight: Any) -> bool:
    groups = _attribute(node, "group", 1)
    return node.op_type == "Conv" and groups > 1 and weight.dims[1] == 1


def _attribute(node: Any, name: str, default: int) -> int:
    return next((attribute.i for attribute in node.attribute if attribute.name == name), default)


def _activations(node: Any, recipe: Int8Recipe, graph: _Known) -> list[str]:
    """The node's activations that get a Q/DQ pair."""
    inputs = node.input[:1] if node.op_type in WEIGHTED else node.input
    tensors = [tensor for tensor in inputs if graph.is_activation(tensor)]
    if recipe.quantize_outputs and node.op_type not in recipe.float_outputs:
        tensors += [tensor for tensor in node.output if tensor in graph.floats]
    # What a client reads keeps its full precision, except after a convolution, which has no such kernel.
    return [t for t in tensors if t not in graph.outputs or node.op_type.startswith("Conv")]


def _without_fused(inputs: list[str], graph: _Known) -> list[str]:
    """An Add's inputs but the first that a weighted operator computes: its accumulator takes the sum."""
    fused = next((tensor for tensor in inputs if _is_weighted(tensor, graph)), None)
    return [tensor for tensor in inputs if tensor != fused] if fused else []


def _is_weighted(tensor: str, graph: _Known) -> bool:
    return tensor in graph.producers and graph.producers[tensor].op_type in WEIGHTED


def _float_activations(graph: Any) -> set[str]:
    return {
        value.name
        for value in (*graph.input, *graph.value_info, *graph.output)
        if value.type.tensor_type.elem_type in FLOATS
    }


def _subgraph_note(graph: Any) -> tuple[str, ...]:
    holders = [n.op_type for n in graph.node if any(a.HasField("g") or a.graphs for a in n.attribute)]
    return (f"the bodies of {', '.join(sorted(set(holders)))} stay in floating point",) if holders else ()


def _refuse_nothing(
    proto: Any, recipe: Int8Recipe, operators: Mapping[str, int], left: Mapping[str, int], name: str
) -> None:
    if any(op in WEIGHTED for op in operators) or (operators and not set(recipe.operators) & set(WEIGHTED)):
        return
    reasons = "; ".join(f"{count} × {reason}" for reason, count in left.items())
    kinds = Counter(node.op_type for node in proto.graph.node)
    present = ", ".join(f"{op} ×{count}" for op, count in kinds.most_common(5))
    raise BuildError(
        f"nothing to quantize: {name} has no operator that recipe '{recipe.name}' speeds up",
        found=reasons or f"its operators: {present}",
        expected=f"one of {', '.join(op for op in recipe.operators if op in WEIGHTED)} with stored weights",
        fix="leave int8 out of the precisions",
    )
