"""Sample inputs: read from .npz and .npy files, folders or `module:function`, or made up (seeded).

`sources` brings arrays in, `checking` holds them against the model, `streaming` cuts them into batches,
`synthetic` makes them up.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from tritongen.graph import BatchStatus, Graph
from tritongen.shapes import ResolvedInput
from tritongen.tensors import TensorSpec

if TYPE_CHECKING:
    from tritongen.samples.streaming import StreamedDataset
    from tritongen.samples.synthetic import SyntheticDataset

Array = NDArray[np.generic]
Arrays = dict[str, Array]


class Dataset(Protocol):
    """Samples in the form in which the model takes them; every pass gives the same ones in the same order."""

    @property
    def count(self) -> int:
        """Samples: items for a batching model, complete calls for any other."""
        ...

    @property
    def synthetic(self) -> bool:
        """Whether the samples are made up; they prove no accuracy."""
        ...

    @property
    def digest(self) -> str:
        """SHA-256 over names, types, shapes and values, hexadecimal."""
        ...

    @property
    def labels(self) -> Array | None:
        """One entry per sample (or per item of a static batch) along axis 0, or None."""
        ...

    def batches(self, size: int) -> Iterator[Arrays]:
        """Calls of up to `size` items (fewer at the end and where shapes change) for a batching model.

        For any other model each dict is one complete call whatever `size` says.
        """
        ...


def open_dataset(
    source: str,
    model: Graph | Sequence[TensorSpec],
    *,
    batched: bool | None = None,
    labels: str = "labels",
    folder: Path | None = None,
    seed: int = 0,
) -> StreamedDataset:
    """The data set at `source`, read through once to check, count and digest it; DataError names the tensor.

    `source` is a .npz or .npy file, a folder of them, or `module:function` (looked for in the working
    directory and in `folder`). `batched` is needed where only tensors are given: whether axis 0 is the batch.
    Arrays hold samples along axis 0: for a batching model its batch axis, for a static batch a
    multiple of it; for any other model an extra leading axis, or one complete call without it.
    """
    from tritongen.samples.checking import Layout
    from tritongen.samples.sources import find_source
    from tritongen.samples.streaming import StreamedDataset

    if isinstance(model, Graph):
        inputs, batched = model.inputs, model.batched
        call_size = 1 if model.batch.status is BatchStatus.REFUTED else None
    else:
        inputs, call_size = tuple(model), None
        if batched is None:
            raise TypeError("open_dataset needs batched= where only tensors are given")
    layout = Layout(tuple(inputs), batched=batched, call_size=call_size, labels=labels)
    return StreamedDataset(find_source(source, layout, folder=folder, seed=seed), layout)


def synthetic_dataset(
    inputs: Sequence[ResolvedInput], count: int, *, batched: bool, seed: int = 0
) -> SyntheticDataset:
    """`count` made-up samples at the usual (opt) shapes, the same for the same seed, whatever the batch size.

    Floats are standard normal, integers uniform within their value range, bools fair, strings "sample N".
    """
    from tritongen.samples.synthetic import SyntheticDataset

    return SyntheticDataset(tuple(inputs), count, batched=batched, seed=seed)


def stack(samples: Sequence[Mapping[str, Array]]) -> Arrays:
    """Several calls of a batching model as one, joined along axis 0; all must have equal item shapes."""
    return {name: np.concatenate([sample[name] for sample in samples]) for name in samples[0]}
