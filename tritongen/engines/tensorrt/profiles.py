"""Optimization profiles: which shapes an engine takes, and for which it is tuned; pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tritongen.errors import BuildError

if TYPE_CHECKING:
    from tritongen.shapes import ResolvedInput

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Extent:
    """Smallest, tuned-for and largest full shape of one input, the batch axis included."""

    min: Shape
    opt: Shape
    max: Shape

    def holds(self, shape: Shape) -> bool:
        """Whether `shape` lies inside."""
        return len(shape) == len(self.min) and all(
            low <= size <= high for low, size, high in zip(self.min, shape, self.max, strict=True)
        )

    def __str__(self) -> str:
        return ":".join("x".join(map(str, shape)) for shape in (self.min, self.opt, self.max))


Profile = Mapping[str, Extent]
"""One optimization profile: an extent for every input."""


def wide_profile(inputs: Sequence[ResolvedInput], max_batch_size: int) -> Profile:
    """One profile for all batch sizes, tuned for the largest; `max_batch_size` 0: inputs carry no batch."""
    sizes = (1, max_batch_size, max_batch_size) if max_batch_size else None
    return {entry.spec.name: _extent(entry, sizes) for entry in inputs}


def profiles_per_batch_size(
    inputs: Sequence[ResolvedInput], batch_sizes: Sequence[int]
) -> tuple[Profile, ...]:
    """One profile per size, tuned for exactly it, from the next smaller size + 1 on."""
    ordered = sorted(set(batch_sizes))
    lows = [1, *(size + 1 for size in ordered)]
    return tuple(
        {entry.spec.name: _extent(entry, (low, size, size)) for entry in inputs}
        for low, size in zip(lows, ordered, strict=False)
    )


def profile_for(profiles: Sequence[Profile], shapes: Mapping[str, Shape]) -> int:
    """The index of the profile tuned nearest to `shapes`; BuildError if none takes them."""
    fitting = [
        (_volume(profile), index)
        for index, profile in enumerate(profiles)
        if all(extent.holds(shapes.get(name, ())) for name, extent in profile.items())
    ]
    if not fitting:
        raise BuildError(
            "no optimization profile takes these inputs",
            found=", ".join(f"{name} {list(shape)}" for name, shape in shapes.items()),
            expected=" or ".join(to_text([profile]) for profile in profiles),
            fix="give the sizes with --shape and --max-batch-size, and build again",
        )
    return min(fitting)[1]


def to_text(profiles: Sequence[Profile]) -> str:
    """`x=1x3x8x8:4x3x8x8:8x3x8x8,y=…;…`: inputs by comma, profiles by semicolon."""
    return ";".join(",".join(f"{name}={extent}" for name, extent in p.items()) for p in profiles)


def from_text(text: str) -> tuple[Profile, ...]:
    """The profiles that `to_text` wrote; BuildError if the text is of another form."""
    try:
        return tuple(dict(map(_entry, one.split(","))) for one in text.split(";")) if text else ()
    except ValueError as error:
        raise BuildError(
            "the option 'profiles' cannot be read", found=text, expected="INPUT=MIN:OPT:MAX,…;…"
        ) from error


def _entry(text: str) -> tuple[str, Extent]:
    name, equals, shapes = text.rpartition("=")
    if not equals:
        raise ValueError(text)
    low, usual, high = (tuple(int(n) for n in shape.split("x") if n) for shape in shapes.split(":"))
    return name, Extent(low, usual, high)


def _extent(entry: ResolvedInput, batch: tuple[int, int, int] | None) -> Extent:
    if batch is None:
        return Extent(entry.min, entry.opt, entry.max)
    low, usual, high = batch
    return Extent((low, *entry.min), (usual, *entry.opt), (high, *entry.max))


def _volume(profile: Profile) -> int:
    return sum(math.prod(extent.max) for extent in profile.values())
