"""CUDA as a runner needs it: memory, streams, events, graphs. Every call's status is checked."""

from __future__ import annotations

import functools
import re
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from tritongen.errors import BuildError, RequirementError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from typing_extensions import Self

INSTALL = "pip install 'cuda-bindings>=12.9'"


@functools.cache
def runtime() -> Any:
    """The CUDA runtime's Python bindings; RequirementError where there are none."""
    try:
        from cuda.bindings import runtime as bindings
    except ImportError as error:
        raise RequirementError("CUDA's Python bindings are missing", found=str(error), fix=INSTALL) from error
    return bindings


def unavailable_reason() -> str | None:
    """None if there is a GPU that CUDA can use, otherwise what is missing."""
    try:
        count = check(runtime().cudaGetDeviceCount())
    except RequirementError as error:
        return f"{error.message}; `{INSTALL}` brings them"
    except BuildError as error:
        return f"CUDA finds no GPU ({error.found})"
    return None if count else "CUDA finds no GPU"


def check(result: tuple[Any, ...]) -> Any:
    """What a CUDA call gave; BuildError with CUDA's own name for what went wrong."""
    status, *values = result
    if int(status) != 0:
        with suppress(Exception):
            status = runtime().cudaGetErrorName(status)[1].decode()
        raise BuildError("a CUDA call failed", found=str(status), fix="see nvidia-smi for the GPU's state")
    return values[0] if len(values) == 1 else tuple(values) if values else None


def use_device(device: int) -> None:
    """Make `device` the calling thread's GPU."""
    check(runtime().cudaSetDevice(device))


def memory_info() -> tuple[int, int]:
    """(free, total) bytes of the current GPU's memory."""
    free, total = check(runtime().cudaMemGetInfo())
    return int(free), int(total)


def device_name(device: int = 0) -> tuple[str, str]:
    """The GPU's name and its compute capability ("9.0")."""
    properties = check(runtime().cudaGetDeviceProperties(device))
    name = properties.name.decode() if isinstance(properties.name, bytes) else str(properties.name)
    return name.rstrip("\0"), f"{properties.major}.{properties.minor}"


def driver_release(version_file: Path = Path("/proc/driver/nvidia/version")) -> str | None:
    """The NVIDIA driver's own version ("580.159.04"); None where the system does not tell."""
    with suppress(OSError):
        found = re.search(r"\s(\d+\.\d+(?:\.\d+)*)\s", version_file.read_text(errors="replace") + " ")
        if found:
            return found[1]
    with suppress(Exception):  # whatever NVML lacks or raises: it is only asked where the file is not there
        import pynvml

        pynvml.nvmlInit()
        return str(pynvml.nvmlSystemGetDriverVersion())
    return None


def device_names() -> tuple[str, ...]:
    """The names of all GPUs that CUDA shows to this process."""
    return tuple(device_name(device)[0] for device in range(int(check(runtime().cudaGetDeviceCount()))))


def pci_bus_id(device: int = 0) -> str:
    """The GPU's place on the bus ("0000:1A:00.0"), by which NVML knows it too."""
    found = check(runtime().cudaDeviceGetPCIBusId(32, device))
    return (found.decode() if isinstance(found, bytes) else str(found)).rstrip("\0")


def driver_version() -> str:
    """The CUDA version that the driver supports ("13.0")."""
    number = int(check(runtime().cudaDriverGetVersion()))
    return f"{number // 1000}.{number % 1000 // 10}"


class Buffer:
    """Device memory with a pinned mirror in host memory of the same size."""

    def __init__(self, nbytes: int) -> None:
        self.nbytes = max(nbytes, 1)
        self.device = int(check(runtime().cudaMalloc(self.nbytes)))
        try:
            self._host = int(check(runtime().cudaMallocHost(self.nbytes)))
        except BuildError:
            runtime().cudaFree(self.device)
            raise

    def view(self, shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> NDArray[np.generic]:
        """The pinned mirror as an array of that shape; valid until `free`."""
        import ctypes

        count = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        raw = (ctypes.c_uint8 * max(count, 1)).from_address(self._host)
        flat: NDArray[np.generic] = np.ctypeslib.as_array(raw)[:count].view(dtype)
        return flat.reshape(shape)

    def upload(self, nbytes: int, stream: int) -> None:
        """Host → device, asynchronously."""
        self._copy(self.device, self._host, nbytes, runtime().cudaMemcpyKind.cudaMemcpyHostToDevice, stream)

    def download(self, nbytes: int, stream: int) -> None:
        """Device → host, asynchronously."""
        self._copy(self._host, self.device, nbytes, runtime().cudaMemcpyKind.cudaMemcpyDeviceToHost, stream)

    def free(self) -> None:
        runtime().cudaFree(self.device)
        runtime().cudaFreeHost(self._host)

    @staticmethod
    def _copy(target: int, source: int, nbytes: int, kind: Any, stream: int) -> None:
        if nbytes:
            check(runtime().cudaMemcpyAsync(target, source, nbytes, kind, stream))


class Stream:
    """A stream with two timing events."""

    def __init__(self) -> None:
        cuda = runtime()
        self._owned = check(cuda.cudaStreamCreateWithFlags(cuda.cudaStreamNonBlocking))
        self.handle = int(self._owned)
        # Blocking sync would cost some 50 µs a call; spinning is what trtexec measures with, too.
        self._start = check(cuda.cudaEventCreate())
        self._end = check(cuda.cudaEventCreate())

    def synchronize(self) -> None:
        check(runtime().cudaStreamSynchronize(self.handle))

    def start(self) -> None:
        check(runtime().cudaEventRecord(self._start, self.handle))

    def stop_ns(self) -> int:
        """Nanoseconds of GPU time since `start`, after waiting for all work in between."""
        cuda = runtime()
        check(cuda.cudaEventRecord(self._end, self.handle))
        check(cuda.cudaEventSynchronize(self._end))
        return int(float(check(cuda.cudaEventElapsedTime(self._start, self._end))) * 1e6)

    def free(self) -> None:
        cuda = runtime()
        cuda.cudaEventDestroy(self._start)
        cuda.cudaEventDestroy(self._end)
        cuda.cudaStreamDestroy(self.handle)


class Graph:
    """Work captured from a stream, launched again as one; enters capture with the context."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._executable: Any = None

    def __enter__(self) -> Self:
        cuda = runtime()
        mode = cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        check(cuda.cudaStreamBeginCapture(self._stream.handle, mode))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        cuda = runtime()
        result = cuda.cudaStreamEndCapture(self._stream.handle)
        if error is not None:
            return
        graph = check(result)
        try:
            self._executable = check(cuda.cudaGraphInstantiate(graph, 0))
        finally:
            cuda.cudaGraphDestroy(graph)

    def launch(self) -> None:
        check(runtime().cudaGraphLaunch(self._executable, self._stream.handle))

    def free(self) -> None:
        if self._executable is not None:
            runtime().cudaGraphExecDestroy(self._executable)
            self._executable = None
