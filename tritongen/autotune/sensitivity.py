"""Mixed precision: what quantizing each block alone costs, and the fewest blocks to leave out of INT8.

Run by ONNX Runtime on the same Q/DQ nodes that the engine gets, so that no engine has to be built on the way.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tritongen.engines.onnxruntime.session import OnnxRuntimeRunner
from tritongen.errors import BuildError
from tritongen.precision.calibration import Range
from tritongen.precision.int8 import quantize
from tritongen.precision.placement import place
from tritongen.precision.prepare import load
from tritongen.precision.recipe import Int8Recipe
from tritongen.precision.weights import WEIGHTED
from tritongen.runs.events import Event, EventSink, discard
from tritongen.runs.records import BlockCost, MixedPoint

Arrays = Mapping[str, NDArray[np.generic]]
Accept = Callable[[Path], tuple[bool, float]]
"""A quantized file → (does the gate hold?, its error)."""


@dataclass(frozen=True)
class Mixture:
    """The mixture with the fewest blocks in floating point that passes, and all that was tried."""

    quantized: tuple[str, ...]
    held: tuple[str, ...]
    points: tuple[MixedPoint, ...]


def block_costs(
    model: Path,
    ranges: Mapping[str, Range],
    recipe: Int8Recipe,
    batches: Sequence[Arrays],
    *,
    block: int = 1,
    events: EventSink = discard,
) -> tuple[BlockCost, ...]:
    """The cost of each block of `block` weighted nodes, dearest first; `model` is as `prepare` made it."""
    blocks = list(_blocks(model, ranges, recipe, block))
    wanted = run_exactly(model, batches)
    costs = []
    with tempfile.TemporaryDirectory() as folder:
        for index, nodes in enumerate(blocks):
            out = Path(folder) / "one.onnx"
            quantize(model, ranges, recipe, out, only=nodes)
            error = relative_l2(run_exactly(out, batches), wanted)
            costs.append(BlockCost(nodes=nodes, error=error))
            events(
                Event("sensitivity", "progress", "quantizing each block alone", fraction=index / len(blocks))
            )
    return tuple(sorted(costs, key=lambda cost: -cost.error))


def mix(
    model: Path,
    ranges: Mapping[str, Range],
    recipe: Int8Recipe,
    *,
    costs: Sequence[BlockCost],
    accept: Accept,
    out: Path,
    fewest: int = 0,
) -> Mixture:
    """Write to `out` the mixture with the fewest blocks held back, dearest first, that `accept` lets pass.

    Found by bisection from `fewest` on, as holding back more costs less accuracy; BuildError if not even one
    block can stay.
    """
    points: dict[int, MixedPoint] = {}

    def tried(held: int) -> MixedPoint:
        if held not in points:
            quantize(model, ranges, recipe, out, only=_nodes(costs[held:]))
            passed, error = accept(out)
            points[held] = MixedPoint(held=held, error=error, passed=passed)
        return points[held]

    low, high = fewest, len(costs) - 1
    if low > high or not tried(high).passed:
        raise BuildError("no mixture of INT8 and floating point passes", found=f"{len(costs)} blocks")
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if tried(middle).passed else (middle + 1, high)
    if list(points)[-1] != low:
        quantize(model, ranges, recipe, out, only=_nodes(costs[low:]))
    ordered = tuple(points[held] for held in sorted(points))
    return Mixture(tuple(_nodes(costs[low:])), tuple(_nodes(costs[:low])), ordered)


def relative_l2(found: Sequence[Arrays], wanted: Sequence[Arrays]) -> float:
    """‖found − wanted‖ ÷ ‖wanted‖ over all floating-point outputs of all batches."""
    distance = size = 0.0
    for one, other in zip(found, wanted, strict=True):
        for name, exact in other.items():
            if exact.dtype.kind == "f":
                reference = exact.astype(np.float64)
                distance += float(np.sum((one[name].astype(np.float64) - reference) ** 2))
                size += float(np.sum(reference**2))
    return float(np.sqrt(distance / size)) if size else 0.0


def _blocks(
    model: Path, ranges: Mapping[str, Range], recipe: Int8Recipe, block: int
) -> Iterator[tuple[str, ...]]:
    """The nodes that would be quantized, in graph order: `block` weighted ones and what lies between them."""
    proto = load(model, weights=False)
    kinds = {node.name: node.op_type for node in proto.graph.node}
    nodes: list[str] = []
    weighted = 0
    for name in place(proto, recipe, model.name, ranges).nodes:
        if kinds[name] in WEIGHTED and weighted == block:
            yield tuple(nodes)
            nodes, weighted = [], 0
        nodes.append(name)
        weighted += kinds[name] in WEIGHTED
    if weighted:
        yield tuple(nodes)


def _nodes(costs: Sequence[BlockCost]) -> list[str]:
    return [node for cost in costs for node in cost.nodes]


def run_exactly(model: Path, batches: Sequence[Arrays]) -> list[Arrays]:
    """Outputs by batch, Q/DQ nodes computed in floating point as they are written."""
    # Optimized, a CPU without VNNI would run integer kernels whose 16-bit sums saturate.
    with OnnxRuntimeRunner(model, graph_optimization_level="disabled") as runner:
        return [runner.infer(batch) for batch in batches]
