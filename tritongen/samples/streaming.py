"""A data set that is read part by part: checked, counted and digested once, then cut into calls."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from tritongen.errors import DataError
from tritongen.samples import Array, Arrays
from tritongen.samples.arrays import Rows, whole
from tritongen.samples.checking import (
    Layout,
    as_model_takes,
    check_finite,
    check_names,
    count_samples,
    different_counts,
    sample_shape,
)
from tritongen.samples.sources import Part, Source
from tritongen.shapes import Shape
from tritongen.tensors import TensorSpec

_BLOCK_BYTES = 16 << 20


@dataclass
class _Findings:
    """What one pass over the data finds."""

    count: int = 0
    shapes: dict[str, Counter[Shape]] = field(default_factory=dict)
    value_ranges: dict[str, tuple[int, int]] = field(default_factory=dict)
    labels: list[Array] = field(default_factory=list)


class StreamedDataset:
    """A `Dataset` over files or a function; keeps no samples in memory."""

    synthetic = False

    def __init__(self, source: Source, layout: Layout) -> None:
        """Reads everything once; DataError names the tensor that cannot be used."""
        self._source = source
        self._layout = layout
        findings = _Findings(shapes={name: Counter() for name in layout.names})
        digest = hashlib.sha256()
        parts = 0
        for part in source.parts():
            parts += 1
            self._examine(part, findings, digest)
        if findings.count == 0:
            raise DataError(
                "the data hold no samples", found=f"{parts} empty parts" if parts else "nothing",
                expected="at least one sample", fix="check the script that saved them",
            )  # fmt: skip
        self.count = findings.count
        self.digest = digest.hexdigest()
        self.shapes: Mapping[str, Mapping[Shape, int]] = findings.shapes
        self.value_ranges: Mapping[str, tuple[int, int]] = findings.value_ranges
        self.labels = _join_labels(findings)

    def batches(self, size: int) -> Iterator[Arrays]:
        """As `Dataset.batches`; DataError if a function gives other samples than the first time."""
        digest = hashlib.sha256()
        parts = self._source.parts()
        if not self._source.trusted:
            parts = self._digesting(parts, digest)
        yield from self._batched(parts, max(size, 1)) if self._layout.batched else self._calls(parts)
        if not self._source.trusted and digest.hexdigest() != self.digest:
            raise DataError(
                "the function gave other samples than the first time it was called",
                expected="the same samples in the same order on each call",
                fix="seed its random numbers (it may take a parameter named seed)",
            )

    def _digesting(self, parts: Iterator[Part], digest: hashlib._Hash) -> Iterator[Part]:
        for part in parts:
            self._examine(part, _Findings(shapes={name: Counter() for name in self._layout.names}), digest)
            yield part

    def _examine(self, part: Part, findings: _Findings, digest: hashlib._Hash) -> None:
        """Check one part, and add what it holds to the findings and to the digest."""
        layout, where = self._layout, part.where
        check_names(part.arrays, layout, where)
        counts = {
            spec.name: count_samples(part.arrays[spec.name], spec, layout, where) for spec in layout.inputs
        }
        if len(set(counts.values())) > 1:
            raise different_counts(counts, where)
        count = next(iter(counts.values()))
        for spec in layout.inputs:
            rows = part.arrays[spec.name]
            if count:
                findings.shapes[spec.name][sample_shape(rows, spec, layout)] += count
            digest.update(json.dumps([spec.name, str(rows.dtype), rows.shape]).encode())
            for offset, block in _blocks(rows):
                array = as_model_takes(block, spec, where)
                check_finite(array, spec, where, offset)
                _widen(findings.value_ranges, spec, array)
                digest.update(_content(array))
        self._take_labels(part, count, findings, digest)
        findings.count += count

    def _take_labels(self, part: Part, count: int, findings: _Findings, digest: hashlib._Hash) -> None:
        rows = part.arrays.get(self._layout.labels) if self._layout.has_labels else None
        if (rows is None) != (not findings.labels) and findings.count:
            raise DataError(
                f"{part.where} "
                + ("has no labels, and others have" if rows is None else "has labels, others have not"),
                expected=f"'{self._layout.labels}' in all parts or in none",
            )
        if rows is None:
            return
        labels = np.atleast_1d(whole(rows))
        allowed = {count} if self._layout.batched else {count, *self._items(count)}
        if len(labels) not in allowed:
            raise different_counts({"the inputs": count, self._layout.labels: len(labels)}, part.where)
        if labels.dtype.kind == "f" and not np.isfinite(labels).all():
            raise DataError(f"'{self._layout.labels}' in {part.where} holds values that are not finite")
        digest.update(json.dumps(["labels", str(labels.dtype), labels.shape]).encode() + _content(labels))
        findings.labels.append(labels)

    def _items(self, count: int) -> set[int]:
        """How many items `count` calls hold, along the fixed axis 0 of any input."""
        return {count * step for spec in self._layout.inputs if (step := self._layout.items_per_call(spec))}

    def _batched(self, parts: Iterator[Part], size: int) -> Iterator[Arrays]:
        """Batches of `size`, across the borders of parts as long as item shapes stay the same."""
        waiting: list[Arrays] = []
        held = 0
        for part in parts:
            total = part.arrays[self._layout.names[0]].shape[0]
            start = 0
            while start < total:
                piece = self._read(part, start, min(total, start + size - held))
                if waiting and not _same_items(waiting[0], piece):
                    yield _join(waiting)
                    waiting, held = [], 0
                waiting.append(piece)
                taken = len(piece[self._layout.names[0]])
                start, held = start + taken, held + taken
                if held == size:
                    yield _join(waiting)
                    waiting, held = [], 0
        if waiting:
            yield _join(waiting)

    def _read(self, part: Part, start: int, stop: int) -> Arrays:
        return {
            spec.name: as_model_takes(part.arrays[spec.name][start:stop], spec, part.where)
            for spec in self._layout.inputs
        }

    def _calls(self, parts: Iterator[Part]) -> Iterator[Arrays]:
        for part in parts:
            counts = [
                count_samples(part.arrays[spec.name], spec, self._layout, part.where)
                for spec in self._layout.inputs
            ]
            for index in range(counts[0]):
                yield {spec.name: self._call(part, spec, index) for spec in self._layout.inputs}

    def _call(self, part: Part, spec: TensorSpec, index: int) -> Array:
        rows = part.arrays[spec.name]
        step = self._layout.items_per_call(spec)
        if rows.ndim == spec.rank + 1:
            array = rows[index : index + 1][0]
        elif step is None:
            array = whole(rows)
        else:
            array = rows[index * step : (index + 1) * step]
        return as_model_takes(np.asarray(array), spec, part.where)


def _blocks(rows: Rows) -> Iterator[tuple[int, Array]]:
    """(first row, rows) of about 16 MB each."""
    if rows.ndim == 0:
        yield 0, whole(rows)
        return
    row_bytes = max(1, math.prod(rows.shape[1:]) * rows.dtype.itemsize)
    step = max(1, _BLOCK_BYTES // row_bytes)
    for start in range(0, rows.shape[0], step):
        yield start, rows[start : start + step]


def _content(array: Array) -> bytes | memoryview:
    if array.dtype.kind == "O":
        return json.dumps(array.tolist()).encode()
    return np.ascontiguousarray(array).view(np.uint8).data if array.ndim and array.size else array.tobytes()


def _widen(ranges: dict[str, tuple[int, int]], spec: TensorSpec, array: Array) -> None:
    if spec.dtype.is_integer and array.size:
        low, high = int(array.min()), int(array.max())
        seen = ranges.get(spec.name, (low, high))
        ranges[spec.name] = (min(low, seen[0]), max(high, seen[1]))


def _same_items(one: Arrays, other: Arrays) -> bool:
    return all(one[name].shape[1:] == other[name].shape[1:] for name in one)


def _join(pieces: list[Arrays]) -> Arrays:
    if len(pieces) == 1:
        return pieces[0]
    return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}


def _join_labels(findings: _Findings) -> Array | None:
    if not findings.labels:
        return None
    shapes = {labels.shape[1:] for labels in findings.labels}
    if len(shapes) > 1:
        raise DataError(
            "the labels have different shapes in different parts",
            found=", ".join(map(str, sorted(shapes))),
            expected="one shape per sample",
        )
    return np.concatenate(findings.labels)
