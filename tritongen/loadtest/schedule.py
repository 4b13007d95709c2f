"""When requests leave: arrival times from a seed, and which prepared request each one sends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tritongen.errors import InputError
from tritongen.loadtest.shape import RateShape

Arrival = Literal["poisson", "constant"]

NS_PER_S = 1_000_000_000
MAX_REQUESTS = 200_000_000
_BLOCK = 8192
"""Gaps are drawn in blocks of this fixed size, so that a longer schedule begins with the shorter one."""


@dataclass(frozen=True)
class Schedule:
    """An open-loop schedule: request `requests[i]` leaves `offsets_ns[i]` after the start."""

    offsets_ns: NDArray[np.int64]
    """Ascending, from 0."""
    requests: NDArray[np.uint16]
    """Index of the prepared request that each arrival sends."""

    def __len__(self) -> int:
        return len(self.offsets_ns)

    def shard(self, worker: int, workers: int) -> Schedule:
        """Every `workers`-th arrival from the `worker`-th on; the shards together are the schedule."""
        return Schedule(self.offsets_ns[worker::workers], self.requests[worker::workers])


def open_loop(rate: float, duration_s: float, arrival: Arrival, seed: int) -> NDArray[np.int64]:
    """When requests are due (ns, ascending) at `rate`/s for `duration_s`. Same seed, same times.

    InputError when that would be no request at all, or more than fit into memory.
    """
    expected = rate * duration_s
    if not 0 < expected <= MAX_REQUESTS:
        raise InputError(
            "this rate and duration make no usable schedule",
            found=f"{rate:g} requests/s for {duration_s:g} s",
            expected=f"between 1 and {MAX_REQUESTS} requests",
            fix="change --rate or --duration",
        )
    gap_ns = NS_PER_S / rate
    end_ns = round(duration_s * NS_PER_S)
    if arrival == "constant":
        offsets = np.floor(np.arange(int(np.ceil(end_ns / gap_ns))) * gap_ns)
    else:
        offsets = _poisson(gap_ns, end_ns, seed)
    # Cut before the cast: at a very low rate the times that are left over do not fit into int64.
    return np.asarray(offsets[: int(np.searchsorted(offsets, end_ns))].astype(np.int64))


def shaped(shape: RateShape, duration_s: float, arrival: Arrival, seed: int) -> NDArray[np.int64]:
    """`open_loop` with a rate that changes over time: an even or Poisson process, its time stretched by it.

    InputError when that would be no request at all, or more than fit into memory.
    """
    steady = shape.steady
    if steady is not None:
        return open_loop(steady, duration_s, arrival, seed)
    curve = shape.over(duration_s)
    if not 1 <= curve.requests <= MAX_REQUESTS:
        raise InputError(
            "this rate and duration make no usable schedule",
            found=f"{shape.text} for {duration_s:g} s",
            expected=f"between 1 and {MAX_REQUESTS} requests",
            fix="change --rate or --duration",
        )
    if arrival == "constant":
        counts = np.arange(int(np.ceil(curve.requests)), dtype=float)
    else:
        counts = _poisson(1.0, int(curve.requests) + 1, seed)
        counts = counts[: int(np.searchsorted(counts, curve.requests))]
    return np.asarray(np.floor(curve.times(counts) * NS_PER_S).astype(np.int64))


def _poisson(gap_ns: float, end_ns: int, seed: int) -> NDArray[np.float64]:
    """Arrival times of a Poisson process, in nanoseconds, at least up to `end_ns`."""
    random = np.random.default_rng(seed)
    blocks: list[NDArray[np.float64]] = []
    reached = 0.0
    while reached <= end_ns:
        block = reached + np.cumsum(random.exponential(gap_ns, _BLOCK))
        blocks.append(block)
        reached = float(block[-1])
    return np.concatenate(blocks)
