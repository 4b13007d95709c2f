"""Memory: what this process has, what the machine has free, and whether the largest batch fits into it."""

from __future__ import annotations

import ctypes
import gc
import math
import resource
from collections.abc import Sequence
from pathlib import Path

from tritongen.errors import SpecError
from tritongen.graph import Graph
from tritongen.runs.records import Machine
from tritongen.shapes import ResolvedInput
from tritongen.tensors import TensorSpec

_LARGEST_ADVISED_BYTES = 1 << 28
"""Inputs and outputs of a batch that is likely still measured in reasonable time."""

_STRING_BYTES = 8
"""The least that a string takes: a pointer."""


def resident_bytes() -> int:
    """Resident memory now, after everything that is free was given back to the system."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc only
    if trim is not None:
        trim(0)
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize()


def peak_bytes() -> int:
    """The most memory that was ever resident in this process (VmHWM)."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def available_bytes(machine: Machine) -> int:
    """Memory that new work may take without swapping, within the container's limit."""
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable:"):
            return min(machine.memory_bytes, int(line.split()[1]) * 1024)
    return machine.memory_bytes


def check_largest_batch(
    graph: Graph, inputs: Sequence[ResolvedInput], largest: int, *, instances: int, available: int
) -> None:
    """SpecError if the inputs and outputs of the largest batch alone exceed `available` bytes.

    What the engine needs in between is not known before it runs, nor are outputs of dynamic sizes counted:
    what passes here may still be too large, and is then a trial that failed.
    """
    fed = sum(_bytes(entry.spec, entry.opt) for entry in inputs)
    answered = sum(
        _bytes(spec, [dim for dim in spec.shape[1 if graph.batched else 0 :] if isinstance(dim, int)])
        for spec in graph.outputs
    )
    # The batch itself, and what each instance is given and gives.
    item = fed + instances * (fed + answered)
    needed = item * max(1, largest)
    if needed <= available:
        return
    most = min(available // 2 // item, max(1, _LARGEST_ADVISED_BYTES // item))
    fitting = 1 << (most.bit_length() - 1) if most else 0
    raise SpecError(
        f"batches of {max(1, largest)} are more than the memory of this machine holds",
        found=f"at least {_gigabytes(needed)} for the inputs and outputs of one such batch "
        f"({item / 1e6:.3g} MB an item, {instances} instance{'s' * (instances != 1)} at once)",
        expected=f"at most {_gigabytes(available)}, which are free",
        fix=f"use --max-batch-size {fitting} at the very most, which is a bound by memory and no "
        "recommendation: a batch takes longer the larger it is, and every power of 2 up to it is measured"
        if graph.batched and fitting
        else "use a machine with more memory, or smaller inputs (--shape)",
    )


def _bytes(spec: TensorSpec, shape: Sequence[int]) -> int:
    return math.prod(shape) * (spec.dtype.itemsize or _STRING_BYTES)


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:,.3g} GB" if size < 1e12 else f"{size / 1e9:,.0f} GB"  # noqa: PLR2004
