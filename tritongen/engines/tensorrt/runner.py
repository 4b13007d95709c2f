"""A plan ready to infer: one context per profile, pinned buffers, CUDA graphs, times by CUDA events."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from tritongen.engines.tensorrt import api, cuda
from tritongen.engines.tensorrt.plan import Binding, Plan, load_plan
from tritongen.engines.tensorrt.profiles import Profile, Shape, profile_for
from tritongen.errors import BuildError, DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from typing_extensions import Self

    from tritongen.engines import Tensors


class TensorRTRunner:
    """An `engines.Runner`; `transfers` says whether `step` includes the copies to and from the GPU."""

    def __init__(
        self,
        path: Path,
        *,
        cuda_graph: bool = True,
        transfers: bool = True,
        device: int = 0,
        module: str = "tensorrt",
        plugins: Sequence[Path] = (),
        host_code: bool = False,
    ) -> None:
        self._path = path
        self._cuda_graph = cuda_graph
        self._transfers = transfers
        self._device = device
        self._module = module
        self._plugins = plugins
        self._host_code = host_code
        self._plan: Plan | None = None
        self._contexts: dict[int, Any] = {}
        self._buffers: dict[str, cuda.Buffer] = {}
        self._shapes: dict[str, Shape] = {}
        self._graph: cuda.Graph | None = None
        self._context: Any = None
        self._stream: cuda.Stream | None = None
        self._free_before = 0
        self.device_bytes: int | None = None
        """GPU memory taken since it was opened, as of the last `prepare`: weights, activations, buffers."""
        self.gpu: str | None = None
        """PCI bus id of the GPU, while it is open."""

    def __enter__(self) -> Self:
        cuda.use_device(self._device)
        self.gpu = cuda.pci_bus_id(self._device)
        self._free_before = cuda.memory_info()[0]
        try:
            self._plan = load_plan(
                api.load(self._module), self._path, plugins=self._plugins, host_code=self._host_code
            )
            self._stream = cuda.Stream()
            self._context = self._context_of(0)
        except BaseException:  # a context that was not entered is not left: what was taken goes back here
            self._free()
            raise
        self.device_bytes = self._taken()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._free()

    def _free(self) -> None:
        if self._stream is not None:
            with suppress(BuildError):  # a GPU that failed must not keep the rest from being freed
                self._stream.synchronize()
        self._drop_graph()
        for buffer in self._buffers.values():
            buffer.free()
        self._buffers.clear()
        self._contexts.clear()
        self._context = self._plan = None
        if self._stream is not None:
            self._stream.free()
            self._stream = None

    def _taken(self) -> int:
        return max(self._free_before - cuda.memory_info()[0], 0)

    @property
    def bindings(self) -> tuple[Binding, ...]:
        return self._opened.bindings

    @property
    def profiles(self) -> tuple[Profile, ...]:
        return self._opened.profiles

    @property
    def engine(self) -> Any:
        """TensorRT's own engine object, for inspection."""
        return self._opened.engine

    @property
    def context(self) -> Any:
        """TensorRT's execution context of the profile that was used last."""
        return self._context

    def infer(self, inputs: Tensors) -> dict[str, NDArray[np.generic]]:
        """All outputs by name; DataError if an input does not fit, BuildError if no profile takes it."""
        cuda.use_device(self._device)
        self._drop_graph()
        self._bind(inputs)
        self._upload()
        self._enqueue()
        self._download()
        self._the_stream.synchronize()
        return {b.name: self._view(b).copy() for b in self.bindings if not b.is_input}

    def prepare(self, inputs: Tensors) -> None:
        """Bind `inputs` in pinned memory and capture the CUDA graph, if there is to be one."""
        cuda.use_device(self._device)
        self._drop_graph()
        self._bind(inputs)
        self._upload()
        self._enqueue()  # the first call of a shape allocates, which cannot be captured
        self._the_stream.synchronize()
        if self._cuda_graph:
            graph = cuda.Graph(self._the_stream)
            with graph:
                self._work()
            self._graph = graph
        self.device_bytes = self._taken()

    def step(self) -> int:
        """Run the prepared inputs once; nanoseconds by CUDA events."""
        stream = self._the_stream
        stream.start()
        if self._graph is not None:
            self._graph.launch()
        else:
            self._work()
        return stream.stop_ns()

    def _work(self) -> None:
        if self._transfers:
            self._upload()
        self._enqueue()
        if self._transfers:
            self._download()

    @property
    def _opened(self) -> Plan:
        if self._plan is None:
            raise BuildError("the engine is not open")
        return self._plan

    @property
    def _the_stream(self) -> cuda.Stream:
        if self._stream is None:
            raise BuildError("the engine is not open")
        return self._stream

    def _context_of(self, profile: int) -> Any:
        if profile not in self._contexts:
            context = self._opened.engine.create_execution_context()
            if context is None:
                raise BuildError(
                    f"no execution context for profile {profile}",
                    found=self._opened.log.errors(),
                    fix="free GPU memory, or build for a smaller maximal batch size",
                )
            if profile and not context.set_optimization_profile_async(profile, self._the_stream.handle):
                raise BuildError(f"profile {profile} cannot be used", found=self._opened.log.errors())
            self._the_stream.synchronize()
            self._contexts[profile] = context
        return self._contexts[profile]

    def _bind(self, inputs: Tensors) -> None:
        feeds = {b.name: feed(b, inputs) for b in self.bindings if b.is_input}
        shapes = {name: array.shape for name, array in feeds.items()}
        context = self._context = self._context_of(profile_for(self._opened.profiles, shapes))
        for name, shape in shapes.items():
            if not context.set_input_shape(name, shape):
                raise DataError(f"input '{name}' cannot have the shape {list(shape)}")
        for binding in self.bindings:
            shape = tuple(int(size) for size in context.get_tensor_shape(binding.name))
            if min(shape, default=0) < 0:
                raise BuildError(f"the size of '{binding.name}' depends on the data, which is not supported")
            self._shapes[binding.name] = shape
            self._reserve(binding.name, self._nbytes(binding))
            context.set_tensor_address(binding.name, self._buffers[binding.name].device)
        for binding in self.bindings:
            if binding.is_input:
                self._view(binding)[...] = feeds[binding.name]

    def _reserve(self, name: str, nbytes: int) -> None:
        held = self._buffers.get(name)
        if held is None or held.nbytes < nbytes:
            if held is not None:
                self._buffers.pop(name).free()
            self._buffers[name] = cuda.Buffer(nbytes)

    def _nbytes(self, binding: Binding) -> int:
        return math.prod(self._shapes[binding.name]) * _dtype(binding.dtype).itemsize

    def _view(self, binding: Binding) -> NDArray[np.generic]:
        return self._buffers[binding.name].view(self._shapes[binding.name], _dtype(binding.dtype))

    def _upload(self) -> None:
        for binding in self.bindings:
            if binding.is_input:
                self._buffers[binding.name].upload(self._nbytes(binding), self._the_stream.handle)

    def _download(self) -> None:
        for binding in self.bindings:
            if not binding.is_input:
                self._buffers[binding.name].download(self._nbytes(binding), self._the_stream.handle)

    def _enqueue(self) -> None:
        if not self._context.execute_async_v3(self._the_stream.handle):
            raise BuildError(f"TensorRT failed on {self._path.name}", found=self._opened.log.errors())

    def _drop_graph(self) -> None:
        if self._graph is not None:
            self._graph.free()
            self._graph = None


def feed(binding: Binding, inputs: Tensors) -> NDArray[np.generic]:
    """The input as the plan takes it; 8.6 narrows INT64 to INT32. DataError if it does not fit."""
    if binding.name not in inputs:
        raise DataError(f"input '{binding.name}' is missing", found=", ".join(inputs) or "no input")
    array, wanted = inputs[binding.name], _dtype(binding.dtype)
    if array.dtype == np.int64 and wanted == np.int32:
        if array.size and max(-int(array.min()) - 1, int(array.max())) >= 2**31:
            raise DataError(f"input '{binding.name}' holds values beyond 32 bits, which the plan narrows")
        array = array.astype(np.int32)
    if array.dtype != wanted:
        raise DataError(
            f"input '{binding.name}' has the wrong type", found=str(array.dtype), expected=str(wanted)
        )
    if array.ndim != len(binding.shape):
        raise DataError(
            f"input '{binding.name}' has the wrong rank",
            found=str(list(array.shape)),
            expected=str(list(binding.shape)),
        )
    return np.ascontiguousarray(array)


@functools.cache
def _dtype(name: str) -> np.dtype[np.generic]:
    if name == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)
