"""Made-up samples: seeded, within the value ranges, the same whatever batch size they are asked for in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from tritongen.files import digest_json
from tritongen.samples import Array, Arrays
from tritongen.shapes import ResolvedInput, Shape


class SyntheticDataset:
    """A `Dataset` of made-up samples; sample i depends only on the seed, the input's place and i."""

    synthetic = True
    labels = None

    def __init__(self, inputs: tuple[ResolvedInput, ...], count: int, *, batched: bool, seed: int) -> None:
        if count < 1:
            raise ValueError("a synthetic data set needs at least one sample")
        self.inputs = inputs
        self.count = count
        self._batched = batched
        self._seed = seed

    @property
    def digest(self) -> str:
        """SHA-256 over what the samples are made from."""
        form = [(i.spec.name, i.spec.dtype.name, i.opt, i.value_range) for i in self.inputs]
        return digest_json(["synthetic/1", form, self.count, self._batched, self._seed])

    @property
    def shapes(self) -> Mapping[str, Mapping[Shape, int]]:
        return {entry.spec.name: {entry.opt: self.count} for entry in self.inputs}

    @property
    def value_ranges(self) -> Mapping[str, tuple[int, int]]:
        return {entry.spec.name: entry.value_range for entry in self.inputs if entry.value_range is not None}

    def batches(self, size: int) -> Iterator[Arrays]:
        """As `Dataset.batches`."""
        step = max(size, 1) if self._batched else 1
        for start in range(0, self.count, step):
            indices = range(start, min(start + step, self.count))
            yield {
                entry.spec.name: self._items(place, entry, indices) for place, entry in enumerate(self.inputs)
            }

    def _items(self, place: int, entry: ResolvedInput, indices: range) -> Array:
        items = [self._item(place, entry, index) for index in indices]
        return np.stack(items) if self._batched else items[0]

    def _item(self, place: int, entry: ResolvedInput, index: int) -> Array:
        random = np.random.default_rng([self._seed, place, index])
        dtype, shape = entry.spec.dtype, entry.opt
        if dtype.name == "string":
            return np.full(shape, f"sample {index}", dtype=object)
        if dtype.name == "bool":
            return np.asarray(random.integers(0, 2, shape, dtype=np.uint8), dtype=bool)
        if dtype.is_integer:
            low, high = entry.value_range or (0, 1)
            return np.asarray(random.integers(low, high, shape, dtype=dtype.numpy, endpoint=True))  # type: ignore[arg-type]
        return np.asarray(random.standard_normal(shape, dtype=np.float32)).astype(dtype.numpy)
