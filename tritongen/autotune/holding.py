"""8-bit candidates for which the engine lacks a kernel, built again with its layer in floating point."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from tritongen.engines import NoKernelError
from tritongen.errors import BuildError
from tritongen.precision.calibration import Range
from tritongen.precision.holding import Layer, anything_left, nodes_to_hold
from tritongen.precision.int8 import prepared
from tritongen.precision.placement import Placement, place
from tritongen.precision.prepare import load
from tritongen.precision.recipe import Int8Recipe
from tritongen.runs.events import Event, EventSink, discard

T = TypeVar("T")
_AGAIN = 3
"""So often a build is tried again: a failure names one layer. The last time all of its type are held."""
_NAMED, _LONGEST = 3, 100


@dataclass(frozen=True)
class Built(Generic[T]):
    """What was built, with which nodes in floating point beyond the recipe's, and why."""

    result: T
    held: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def build_holding(
    model: Path,
    recipe: Int8Recipe,
    *,
    write: Callable[[Collection[str]], Path],
    build: Callable[[Path], T],
    ranges: Mapping[str, Range] | None = None,
    only: Collection[str] | None = None,
    held: Sequence[str] = (),
    events: EventSink = discard,
) -> Built[T]:
    """`build(write(held))`, and again with more held as long as the engine names layers it has no kernel for.

    `write` rewrites `model` with these nodes in floating point. BuildError if nothing is left to hold or to
    quantize, or after three times, with what was tried.
    """
    held, notes = tuple(held), list[str]()

    def more_to_hold(layers: Sequence[Layer], *, alike: bool) -> tuple[str, ...]:
        with prepared(model, recipe) as ready:
            proto = load(ready, weights=False)
        placement = place(proto, recipe, model.name, ranges, only=only, held=held)
        return _more(layers, proto, placement, recipe, alike=alike)

    while True:
        try:
            return Built(build(write(held)), held, tuple(notes))
        except NoKernelError as error:
            left = _AGAIN - len(notes)
            more = more_to_hold(error.layers, alike=left == 1) if left else ()
            if not more:
                raise _in_vain(error, notes) from error
            note = _note(error, recipe, more)
        held, notes = (*held, *more), [*notes, note]
        events(Event("trial", "note", note))


def _more(
    layers: Sequence[Layer], proto: Any, placement: Placement, recipe: Int8Recipe, *, alike: bool
) -> tuple[str, ...]:
    """What else to hold; empty if the layers are unknown, or no node with weights would stay in 8 bits."""
    for all_alike in (True, False) if alike else (False,):
        found = [nodes_to_hold(proto, placement, recipe, layer, alike=all_alike) for layer in layers]
        more = tuple(dict.fromkeys(name for names in found for name in names))
        if more and anything_left(proto, placement, more):
            return more
    return ()


def _note(error: NoKernelError, recipe: Int8Recipe, more: Sequence[str]) -> str:
    layers = " and ".join(_short(layer.name) for layer in error.layers)
    rest = f" and {len(more) - _NAMED} more" if len(more) > _NAMED else ""
    nodes = f"{', '.join(more[:_NAMED])}{rest} {'stays' if len(more) == 1 else 'stay'}"
    return f"{error.engine} has no {'FP8' if recipe.float8 else 'INT8'} kernel for {layers}: {nodes} in FP16"


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST // 2]}…{name[-_LONGEST // 2 :]}"


def _in_vain(error: NoKernelError, notes: Sequence[str]) -> BuildError:
    found = "; then ".join(filter(None, [*notes, error.found])) if notes else error.found
    return BuildError(error.message, found=found, expected=error.expected, fix=error.fix)
