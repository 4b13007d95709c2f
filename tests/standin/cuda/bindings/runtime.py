"""CUDA's runtime on a CPU: memory by address, streams that work at once, graphs that replay what they saw."""

# ruff: noqa: N801, N802, N815, N816
from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from enum import IntEnum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

cudaStreamNonBlocking = 1
CAPABILITY = tuple(map(int, os.environ.get("STANDIN_CAPABILITY", "9.0").split(".")))
IDLE = bool(os.environ.get("STANDIN_IDLE"))
"""Nothing that is enqueued is done, and takes no time: what is left is the host's own work."""
FAULT = Path(os.environ.get("STANDIN_FAULT", os.devnull))
"""A process whose work comes across such a file has lost its context for good, as after an illegal access."""

_lost = False
_memory: dict[int, Any] = {}
_recording: dict[int, list[Callable[[], None]]] = {}
_graphs: dict[int, list[Callable[[], None]]] = {}


class Status(IntEnum):
    cudaSuccess = 0
    cudaErrorInvalidValue = 1
    cudaErrorMemoryAllocation = 2
    cudaErrorIllegalAddress = 700


class cudaMemcpyKind(IntEnum):
    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2


class cudaStreamCaptureMode(IntEnum):
    cudaStreamCaptureModeThreadLocal = 1


OK = Status.cudaSuccess


def live_allocations() -> int:
    """How many allocations were not freed."""
    return len(_memory)


def enqueue(stream: int, work: Callable[[], None]) -> None:
    """Do it now, or record it while the stream is captured."""
    if IDLE:
        return
    if stream in _recording:
        _recording[stream].append(work)
    else:
        work()


def _allocate(nbytes: int) -> tuple[Status, int]:
    block = ctypes.create_string_buffer(b"\xff" * nbytes, nbytes)  # as if used before
    address = ctypes.addressof(block)
    _memory[address] = block
    return OK, address


cudaMalloc = cudaMallocHost = _allocate


def cudaFree(address: int) -> tuple[Status]:
    return (OK if _memory.pop(address, None) is not None else Status.cudaErrorInvalidValue,)


cudaFreeHost = cudaFree


def cudaMemcpyAsync(
    target: int, source: int, nbytes: int, kind: cudaMemcpyKind, stream: int
) -> tuple[Status]:
    assert target in _memory
    assert source in _memory
    assert nbytes <= min(len(_memory[target]), len(_memory[source]))
    enqueue(stream, lambda: void(ctypes.memmove(target, source, nbytes)))
    return (OK,)


def void(_: object) -> None:
    """Nothing."""


def cudaStreamCreateWithFlags(flags: int) -> tuple[Status, int]:
    return OK, 1000 + len(_memory)


def cudaStreamBeginCapture(stream: int, mode: cudaStreamCaptureMode) -> tuple[Status]:
    _recording[stream] = []
    return (OK,)


def cudaStreamEndCapture(stream: int) -> tuple[Status, int]:
    recorded = _recording.pop(stream)
    _graphs[id(recorded)] = recorded
    return OK, id(recorded)


def cudaGraphInstantiate(graph: int, flags: int) -> tuple[Status, int]:
    executable = list(_graphs[graph])
    _graphs[id(executable)] = executable
    return OK, id(executable)


def cudaGraphLaunch(executable: int, stream: int) -> tuple[Status]:
    for work in _graphs[executable]:
        work()
    return (OK,)


def cudaGraphExecDestroy(graph: int) -> tuple[Status]:
    _graphs.pop(graph)
    return (OK,)


cudaGraphDestroy = cudaGraphExecDestroy


def cudaGetDeviceProperties(device: int) -> tuple[Status, Any]:
    return OK, SimpleNamespace(name=b"stand-in\0", major=CAPABILITY[0], minor=CAPABILITY[1])


def cudaGetErrorName(status: Status) -> tuple[Status, bytes]:
    return OK, Status(status).name.encode()


def cudaGetDeviceCount() -> tuple[Status, int]:
    return OK, 1


def cudaDeviceGetPCIBusId(length: int, device: int) -> tuple[Status, bytes]:
    return OK, b"0000:00:00.0"


def cudaDriverGetVersion() -> tuple[Status, int]:
    return OK, 13000


def cudaMemGetInfo() -> tuple[Status, int, int]:
    return OK, 70 << 30, 80 << 30


def cudaEventCreate() -> tuple[Status, list[float]]:
    return OK, [0.0]


def cudaEventRecord(event: list[float], stream: int) -> tuple[Status]:
    import time

    event[0] = time.perf_counter()
    return (OK,)


def cudaEventElapsedTime(start: list[float], end: list[float]) -> tuple[Status, float]:
    return OK, 1000 * (end[0] - start[0])


def _nothing(*_: object) -> tuple[Status]:
    return (OK,)


def cudaStreamSynchronize(stream: int) -> tuple[Status]:
    global _lost  # noqa: PLW0603
    _lost = _lost or FAULT.is_file()
    return (Status.cudaErrorIllegalAddress if _lost else OK,)


cudaSetDevice = cudaStreamDestroy = cudaEventSynchronize = cudaEventDestroy = _nothing
