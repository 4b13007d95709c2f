"""Warm-up requests that are safe for the model: Triton runs them before it calls an instance ready."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tritongen.shapes import ResolvedInput
    from tritongen.tensors import DataType


@dataclass(frozen=True)
class WarmupInput:
    """One input of a warm-up request: zeros, or the bytes of a file in `warmup/`."""

    name: str
    data_type: str
    dims: tuple[int, ...]
    """Without the batch axis; never dynamic."""
    file: str | None = None


@dataclass(frozen=True)
class Warmup:
    """One `model_warmup` sample; Triton sends it as `batch_size` requests of batch 1, joined in one batch."""

    name: str
    batch_size: int
    inputs: tuple[WarmupInput, ...]


def warmup_batch_sizes(max_batch_size: int) -> tuple[int, ...]:
    """1, the powers of two below the maximum, and the maximum; just 1 for models that do not batch."""
    sizes = {1, max(1, max_batch_size)}
    size = 2
    while size < max_batch_size:
        sizes.add(size)
        size *= 2
    return tuple(sorted(sizes))


def make_warmups(
    inputs: Sequence[ResolvedInput],
    max_batch_size: int,
    sample: Mapping[str, NDArray[Any]] | None = None,
    served: Mapping[str, DataType] | None = None,
) -> tuple[tuple[Warmup, ...], dict[str, bytes]]:
    """Warm-up samples for the sizes that will be served, and the data files that they name.

    `random_data` is never used: Triton fills tensors with random *bits*, so that floats come out as 1e36 or
    NaN and integers out of any range. Zeros do, unless 0 lies outside an integer input's range. `served` are
    the types that clients send, where they differ from the graph's (TensorRT 8.6 narrows INT64 to INT32).
    """
    files: dict[str, bytes] = {}
    tensors = []
    for index, resolved in enumerate(inputs):
        dims = _dims(resolved, batching=max_batch_size > 0)
        kind = (served or {}).get(resolved.spec.name, resolved.spec.dtype)
        data = _data(resolved, kind, dims, None if sample is None else sample.get(resolved.spec.name))
        file = None if data is None else f"input_{index}"
        if data is not None:
            files[f"input_{index}"] = data
        tensors.append(WarmupInput(resolved.spec.name, kind.config, dims, file))
    sizes = warmup_batch_sizes(max_batch_size)
    return tuple(Warmup(f"batch_{size}", size, tuple(tensors)) for size in sizes), files


def _dims(resolved: ResolvedInput, *, batching: bool) -> tuple[int, ...]:
    """The optimal shape as config.pbtxt counts it: no batch axis when batching, never empty."""
    opt, rank = tuple(resolved.opt), resolved.spec.rank
    if batching and len(opt) == rank:
        opt = opt[1:]
    elif not batching and len(opt) == rank - 1:
        opt = (1, *opt)
    return opt or (1,)


def _data(
    resolved: ResolvedInput, kind: DataType, dims: tuple[int, ...], sample: NDArray[Any] | None
) -> bytes | None:
    """Raw bytes of one item, or None where zeros are safe."""
    if kind.name == "string":
        return None if sample is None else _strings(sample, prod(dims))
    if not kind.is_integer or resolved.value_range is None:
        return None
    low, high = resolved.value_range
    if low <= 0 <= high:
        return None
    return np.full(dims, low, dtype=kind.numpy).tobytes()


def _strings(sample: NDArray[Any], count: int) -> bytes | None:
    """`count` strings as Triton wants them: each as a little-endian 32-bit length and its UTF-8 bytes."""
    values = list(np.asarray(sample, dtype=object).ravel())
    if not values:
        return None
    encoded = [value if isinstance(value, bytes) else str(value).encode() for value in values]
    repeated = (encoded[i % len(encoded)] for i in range(count))
    return b"".join(struct.pack("<I", len(text)) + text for text in repeated)
