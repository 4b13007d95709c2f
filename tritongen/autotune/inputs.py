"""What the engine is fed with while its latency is measured: real samples of the usual shape, or made-up."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from tritongen.samples import Array, Arrays, Dataset, stack, synthetic_dataset

if TYPE_CHECKING:
    from tritongen.shapes import ResolvedInput

_LOOKED_AT = 256
"""Samples of a data set that are looked at, to find some of the usual shape; and the most that are kept."""


class CallInputs:
    """Batch size → the inputs of one call, made of a few samples over and over."""

    def __init__(self, samples: Sequence[Arrays], *, batched: bool) -> None:
        self.samples = samples
        """Calls of one item each (of whatever the model takes, if it does not batch)."""
        self.batched = batched

    def __call__(self, size: int) -> Arrays:
        if not self.batched:
            return dict(self.samples[0])
        return stack([self.samples[i % len(self.samples)] for i in range(size)])

    def one_item(self) -> Arrays:
        """The first sample without its batch axis."""
        return {name: array[0] if self.batched else array for name, array in self.samples[0].items()}


def call_inputs(
    dataset: Dataset | None, inputs: Sequence[ResolvedInput], *, batched: bool, largest: int, seed: int = 0
) -> CallInputs:
    """At most `largest` (and 256) samples at the usual (opt) shapes: from the data, else made up."""
    leading = (1,) if batched else ()
    usual = {entry.spec.name: (*leading, *entry.opt) for entry in inputs}
    found: list[Arrays] = []
    if dataset is not None:
        calls = (call for call in islice(dataset.batches(1), _LOOKED_AT) if _shapes(call) == usual)
        found = [dict(call) for call in islice(calls, largest)]
    if not found:
        made_up = synthetic_dataset(inputs, min(max(1, largest), _LOOKED_AT), batched=batched, seed=seed)
        found = list(made_up.batches(1))
    return CallInputs(found, batched=batched)


def storable(arrays: Arrays, prefix: str) -> dict[str, Array]:
    """Arrays under prefixed names in a form that .npz keeps without pickling (text with a fixed width)."""
    return {
        f"{prefix}/{name}": array.astype(np.str_) if array.dtype.kind == "O" else array
        for name, array in arrays.items()
    }


def _shapes(call: Arrays) -> dict[str, tuple[int, ...]]:
    return {name: array.shape for name, array in call.items()}
