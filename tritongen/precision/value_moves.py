"""Operators that only move values, and the tensors of a graph that therefore can share one INT8 scale.

A grid is left by none of their results, so that they run on integers. TensorRT moves a QuantizeLinear up
through them to the operator that computes the values; if another consumer of these asks for another scale, it
quantizes and writes the tensor twice.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

_ONE_TO_ONE = ("MaxPool", "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze")
"""A QuantizeLinear passes through these by itself: they need no pair in front."""
_BRANCHING = ("Concat", "Split", "Slice")
"""These join or part tensors: a pair in front keeps what they read in INT8."""


@dataclass(frozen=True)
class ValueMoves:
    """What lies before the tensors that are wanted in INT8."""

    read: tuple[str, ...]
    """Tensors that joining and parting operators read, in graph order."""
    groups: tuple[tuple[str, ...], ...]
    """Tensors between which values are only moved."""
    joins: Mapping[str, tuple[str, ...]]
    """A Concat's result → its inputs."""
    sums: tuple[str, ...]
    """Of the sums that were asked about, those whose result is wanted in INT8."""


def moved_inputs(node: Any) -> tuple[str, ...]:
    """The inputs whose values the node's results consist of; empty if it computes new ones."""
    if node.domain not in ("", "ai.onnx") or not node.input:
        return ()
    if node.op_type == "Concat":
        return tuple(node.input)
    if node.op_type == "Resize":
        mode = next((entry.s for entry in node.attribute if entry.name == "mode"), b"nearest")
        return tuple(node.input[:1]) if mode == b"nearest" else ()
    return tuple(node.input[:1]) if node.op_type in (*_ONE_TO_ONE, *_BRANCHING) else ()


def value_moves(
    graph: Any,
    wanted: Collection[str],
    sums: Mapping[str, Collection[str]],
    is_activation: Callable[[str], bool],
    float_readers: Collection[str] = (),
) -> ValueMoves:
    """Follow the `wanted` tensors back through operators that move values.

    `sums`: the inputs of additions by node name; one whose result is wanted makes its inputs wanted, too.
    `float_readers`: operator types that want nothing in INT8; what they read and write is one group still.
    """
    needed, groups = set(wanted), _Sets()
    read: dict[str, None] = {}
    joins, used = {}, []
    for node in reversed(graph.node):
        if needed.isdisjoint(node.output):
            continue
        if node.name in sums:
            used.append(node.name)
            needed.update(sums[node.name])
        inputs = moved_inputs(node)
        if not inputs or not all(map(is_activation, inputs)):
            continue
        groups.join(*inputs, *node.output)
        if node.op_type in float_readers:
            continue
        needed.update(inputs)
        if node.op_type == "Concat":
            joins[node.output[0]] = inputs
        if node.op_type in _BRANCHING:
            read.update(dict.fromkeys(reversed(inputs)))
    return ValueMoves(tuple(reversed(read)), groups.all(), joins, tuple(reversed(used)))


class _Sets:
    """Disjoint sets of names, by union-find."""

    def __init__(self) -> None:
        self._parents: dict[str, str] = {}

    def join(self, first: str, *others: str) -> None:
        for other in others:
            self._parents[self._root(other)] = self._root(first)

    def all(self) -> tuple[tuple[str, ...], ...]:
        found: dict[str, list[str]] = {}
        for name in self._parents:
            found.setdefault(self._root(name), []).append(name)
        return tuple(map(tuple, found.values()))

    def _root(self, name: str) -> str:
        self._parents.setdefault(name, name)
        while self._parents[name] != name:
            self._parents[name] = self._parents[self._parents[name]]
            name = self._parents[name]
        return name
