"""Which quantized nodes to hold in floating point where an engine has no 8-bit kernel for a layer."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any

from tritongen.precision.placement import Placement
from tritongen.precision.recipe import Int8Recipe
from tritongen.precision.value_moves import moved_inputs
from tritongen.precision.weights import WEIGHTED

_PAIR = re.compile(r"_(?:Q|Deq)uantizeLinear(?:_\d+)?$")
"""What the emitter appends to a tensor's name for the nodes of its Q/DQ pair."""


@dataclass(frozen=True)
class Layer:
    """A layer for which an engine has no kernel, and what of the graph is in it."""

    name: str
    """In the engine's words."""
    members: tuple[str, ...]
    """Nodes and tensors of the graph, or names that are in no graph."""
    last: tuple[str, ...] = ()
    """Of a stretch of nodes, the last ones, `members` being the first; empty: the members are all."""


def nodes_to_hold(
    proto: Any, placement: Placement, recipe: Int8Recipe, layer: Layer, *, alike: bool = False
) -> tuple[str, ...]:
    """Quantized nodes of the prepared model that bring 8 bits into `layer`, in graph order; none if unknown.

    Those in the layer; if there are none (any more), those that take the tensors beside it in 8 bits.
    `alike`: for all nodes of their type, where it is one that only follows its neighbours (a Resize).
    """
    graph = _Links(proto)
    concerned = graph.stretch(layer) if layer.last else graph.named(layer.members)
    quantized = [name for name in placement.nodes if _takes_pairs(graph.nodes[name], placement)]
    inside = tuple(name for name in quantized if name in concerned)
    if inside:
        return inside
    if alike and not layer.last:
        types = {graph.nodes[name].op_type for name in concerned} - set(recipe.operators)
        concerned |= {name for name, node in graph.nodes.items() if node.op_type in types}
    beside = graph.beside(concerned)
    return tuple(name for name in quantized if not beside.isdisjoint(_pairs(graph.nodes[name], placement)))


def anything_left(proto: Any, placement: Placement, held: Collection[str]) -> bool:
    """Whether a node with weights is still quantized with these held."""
    types = {node.name: node.op_type for node in proto.graph.node}
    return any(types[name] in WEIGHTED for name in placement.nodes if name not in held)


def _takes_pairs(node: Any, placement: Placement) -> bool:
    """An Add of which nothing is quantized may be placed all the same: holding it changes nothing."""
    return node.op_type in WEIGHTED or bool(_pairs(node, placement))


def _pairs(node: Any, placement: Placement) -> set[str]:
    """What the node takes through Q/DQ pairs."""
    return set(node.input) & set(placement.activations)


class _Links:
    """A graph's nodes by name, and who makes and takes each tensor."""

    def __init__(self, proto: Any) -> None:
        self.nodes = {node.name: node for node in proto.graph.node}
        self._maker = {output: node.name for node in proto.graph.node for output in node.output}
        self._takers: dict[str, set[str]] = {}
        for node in proto.graph.node:
            for tensor in node.input:
                self._takers.setdefault(tensor, set()).add(node.name)

    def named(self, members: Iterable[str]) -> set[str]:
        """The nodes of these names, and those that take the tensors of these names."""
        found: set[str] = set()
        for member in members:
            known = {member} if member in self.nodes else self._takers.get(_PAIR.sub("", member), set())
            found |= known
        return found

    def stretch(self, layer: Layer) -> set[str]:
        """What lies between a layer's first and last nodes, with both; one end, if the other is unknown."""
        first, last = self.named(layer.members), self.named(layer.last)
        onward, back = self._reached(first, self._after), self._reached(last, self._before)
        return first | last | (onward & back)

    def beside(self, names: Collection[str]) -> set[str]:
        """The tensors that these nodes take and make, also past operators that only move values."""
        before = self._reached(names, self._before, self._moves)
        after = self._reached(names, self._after, self._moves)
        taken = {tensor for name in (*names, *before) for tensor in self.nodes[name].input}
        return taken | {tensor for name in (*names, *after) for tensor in self.nodes[name].output}

    def _after(self, name: str) -> set[str]:
        return {taker for tensor in self.nodes[name].output for taker in self._takers.get(tensor, ())}

    def _before(self, name: str) -> set[str]:
        return {self._maker[tensor] for tensor in self.nodes[name].input if tensor in self._maker}

    def _moves(self, name: str) -> bool:
        """An engine moves Q/DQ pairs past these."""
        return bool(moved_inputs(self.nodes[name]))

    @staticmethod
    def _reached(
        start: Collection[str],
        step: Callable[[str], set[str]],
        through: Callable[[str], bool] = lambda _name: True,
    ) -> set[str]:
        found: set[str] = set()
        waiting = list(start)
        while waiting:
            new = {name for name in step(waiting.pop()) if name not in found and through(name)}
            found |= new
            waiting += new
        return found
