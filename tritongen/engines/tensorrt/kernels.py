"""Which layers TensorRT says that it has no kernel for, from the names that it gives its fused layers."""

from __future__ import annotations

import re
from collections.abc import Iterable

from tritongen.precision.holding import Layer

_NO_KERNEL = re.compile(
    r"could not find any implementation for node (.+?)\.(?:\)?\s*$| In \w+ at )", re.IGNORECASE | re.DOTALL
)
_STRETCH = re.compile(r"\{ForeignNode\[(.*?)(?:\.\.\.(.*))?\]\}", re.DOTALL)
"""Many nodes that one compiler takes: from the first to the last of them."""
_UNNAMED = re.compile(r"\(Unnamed Layer\* \d+\) \[[^\]]*\]")
_BETWEEN = re.compile(r"\s\+\s|\s\|\|\s|,\s|\bPWN\(")


def layers_without_kernel(said: Iterable[str]) -> tuple[Layer, ...]:
    """The layers that TensorRT's error messages name, each once; not those that want more workspace."""
    names = [
        found[1]
        for text in said
        if "insufficient workspace" not in text
        if (found := _NO_KERNEL.search(text))
    ]
    return tuple(_layer(name) for name in dict.fromkeys(names))


def _layer(name: str) -> Layer:
    stretch = _STRETCH.fullmatch(name)
    if stretch is None:
        return Layer(name, _members(name))
    return Layer(name, _members(stretch[1]), _members(stretch[2] or ""))


def _members(name: str) -> tuple[str, ...]:
    """The nodes and tensors in a fused layer's name: "A + B", "A || B", "PWN(PWN(A), B)"."""
    parts = (_alone(part) for part in _BETWEEN.split(_UNNAMED.sub("", name)))
    return tuple(dict.fromkeys(part for part in parts if part))


def _alone(part: str) -> str:
    part = part.strip(" +|").removesuffix(" copy")
    while part.endswith(")") and part.count(")") > part.count("("):
        part = part[:-1]
    return part
