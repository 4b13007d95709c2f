"""What is sent: arrays from the user's data, or made up within the sizes and ranges that were given."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tritongen.errors import DataError
from tritongen.graph import BatchAxis, BatchStatus, Graph
from tritongen.loadtest.target import ServedModel
from tritongen.samples import Arrays, Dataset, open_dataset, synthetic_dataset
from tritongen.shapes import resolve_inputs

MADE_UP_REQUESTS = 16
MOST_REQUESTS = 1024
MOST_BYTES = 256 << 20
"""Prepared requests are held by every worker."""


@dataclass(frozen=True)
class Inputs:
    """Whole requests' worth of arrays, and where they came from."""

    batches: tuple[Arrays, ...]
    source: str


def prepare_inputs(
    model: ServedModel,
    batch_size: int,
    *,
    shapes: Mapping[str, str],
    ranges: Mapping[str, str],
    data: str | None,
    seed: int,
) -> Inputs:
    """Requests to send in rotation; SpecError or DataError names the input and the flag that helps."""
    if data is not None:
        dataset: Dataset = open_dataset(data, model.inputs, batched=model.batches)
        source = f"data {data}"
    else:
        resolved = resolve_inputs(as_graph(model), shapes, ranges)
        dataset = synthetic_dataset(resolved, MADE_UP_REQUESTS * batch_size, batched=model.batches, seed=seed)
        source = "synthetic"
    batches = tuple(_enough(dataset, batch_size, batched=model.batches))
    if not batches:
        raise DataError(
            f"the data do not fill one request of batch {batch_size}",
            found=f"{dataset.count} samples in {data}",
            expected=f"at least {batch_size} samples of equal shapes",
            fix="give more data, or a smaller --batch-size",
        )
    return Inputs(batches, source)


def as_graph(model: ServedModel) -> Graph:
    """A served model in the form in which sizes and ranges are resolved; only its inputs are known."""
    status = BatchStatus.CONFIRMED if model.batches else BatchStatus.ABSENT
    return Graph(
        path=Path(model.name),
        digest="",
        inputs=model.inputs,
        outputs=(),
        ir_version=0,
        opsets={},
        operators={},
        parameters=0,
        size_bytes=0,
        external_data=(),
        quantized=False,
        half=False,
        batch=BatchAxis(status, "as the server says"),
    )


def _enough(dataset: Dataset, batch_size: int, *, batched: bool) -> Iterator[Arrays]:
    """Full requests until there are enough of them, or they take too much memory."""
    taken = 0
    for count, arrays in enumerate(dataset.batches(batch_size)):
        taken += sum(array.nbytes for array in arrays.values())
        if count and (count >= MOST_REQUESTS or taken > MOST_BYTES):
            return
        if not batched or all(len(array) == batch_size for array in arrays.values()):
            yield arrays
