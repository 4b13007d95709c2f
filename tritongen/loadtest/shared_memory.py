"""Tensors in memory that the server shares: inputs laid down once, room for outputs, always taken back."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tritongen.errors import RequirementError, ServerError
from tritongen.loadtest.job import SharedMemory
from tritongen.loadtest.request import Arrays, Places, raw_bytes
from tritongen.loadtest.target import ServedModel
from tritongen.serving.control import RefusedError, ServerControl

_FOLDER = Path("/dev/shm")  # noqa: S108  (where Linux has POSIX shared memory)
_ALIGNMENT = 64
_OUTPUT_PLACES = 16
"""Requests with outputs of equal sizes take turns with so many places: nobody reads what is there."""
_DEVICE = 0
"""The first GPU that this process sees (CUDA_VISIBLE_DEVICES)."""

Requests = Sequence[tuple[ServedModel, Arrays]]


@contextlib.contextmanager
def shared_tensors(
    kind: SharedMemory, control: ServerControl, requests: Requests, *, with_outputs: bool
) -> Iterator[tuple[str, list[Places]]]:
    """The region's name and, for each request, where its tensors are in it; gone again on leaving.

    RequirementError if there is no room or no GPU, ServerError if the server cannot use the memory.
    """
    name = f"tritongen-{os.getpid()}-{secrets.token_hex(4)}"
    layout = _Layout()
    inputs = [layout.put_inputs(*request) for request in requests]
    sizes = _output_sizes(control, requests) if with_outputs else [{} for _ in requests]
    places = [Places(mine, layout.make_room(wanted)) for mine, wanted in zip(inputs, sizes, strict=True)]
    region = _in_system_memory if kind == "system" else _in_cuda_memory
    with region(control, name, layout):
        yield name, places


@dataclass
class _Layout:
    """What is in a region: the inputs' bytes, then room for outputs."""

    content: list[bytes] = field(default_factory=list)
    size: int = 0
    rooms: dict[tuple[tuple[str, int], ...], list[Mapping[str, tuple[int, int]]]] = field(
        default_factory=dict
    )
    given: int = 0

    def put_inputs(self, model: ServedModel, arrays: Arrays) -> dict[str, int]:
        """Where each input begins."""
        found = {}
        for spec in model.inputs:
            raw = raw_bytes(spec.dtype.triton, arrays[spec.name])
            found[spec.name] = self._reserve(len(raw))
            self.content += [raw, bytes(self.size - found[spec.name] - len(raw))]
        return found

    def make_room(self, sizes: Mapping[str, int]) -> Mapping[str, tuple[int, int]]:
        """Where each output may go."""
        rooms = self.rooms.setdefault(tuple(sizes.items()), [])
        self.given += 1
        if len(rooms) < _OUTPUT_PLACES:
            rooms.append({name: (self._reserve(size), size) for name, size in sizes.items()})
            return rooms[-1]
        return rooms[self.given % _OUTPUT_PLACES]

    def _reserve(self, size: int) -> int:
        start = self.size
        self.size += size + -size % _ALIGNMENT
        return start


def _output_sizes(control: ServerControl, requests: Requests) -> list[dict[str, int]]:
    """Bytes of each request's outputs, asked once for all requests of equal shapes.

    Text is left out: how long it is depends on what it says.
    """
    known: dict[tuple[object, ...], dict[str, int]] = {}
    found = []
    for model, arrays in requests:
        shapes = (model.name, *((name, array.shape) for name, array in arrays.items()))
        if shapes not in known:
            given = {spec.name: np.asarray(arrays[spec.name]) for spec in model.inputs}
            answer = control.infer(model.name, model.version, given)
            known[shapes] = {
                name: answer[name].nbytes
                for name in model.outputs
                if name in answer and answer[name].dtype != np.object_ and answer[name].nbytes
            }
        found.append(known[shapes])
    return found


@contextlib.contextmanager
def _in_system_memory(control: ServerControl, name: str, layout: _Layout) -> Iterator[None]:
    path = _FOLDER / name
    try:
        _fill(path, layout)
        _share(control, name, max(1, layout.size))
        try:
            yield
        finally:
            with contextlib.suppress(ServerError):  # it may be gone, and the region with it
                control.unshare_memory(name)
    finally:
        path.unlink(missing_ok=True)


def _fill(path: Path, layout: _Layout) -> None:
    try:
        # Others' eyes stay out; a server under another user than ours cannot read it, and says so.
        handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
        with open(handle, "wb") as file:  # noqa: PTH123
            # All of it now: where a write finds no room later, the server dies of it.
            os.posix_fallocate(handle, 0, max(1, layout.size))
            file.writelines(layout.content)
    except OSError as error:
        raise RequirementError(
            "the tensors do not fit into shared memory",
            found=f"{error}; {layout.size / 2**20:.0f} MiB are wanted",
            fix="leave --shared-memory away",
        ) from None
    layout.content.clear()


def _share(control: ServerControl, name: str, size: int) -> None:
    try:
        control.share_memory(name, f"/{name}", size)
    except RefusedError as error:
        raise RefusedError(
            "the server cannot open the shared memory",
            found=error.found,
            expected="a server that sees this machine's /dev/shm and may read what is ours",
            fix="a container has its own /dev/shm: leave --shared-memory away, or share it (--ipc=host)",
        ) from None


@contextlib.contextmanager
def _in_cuda_memory(control: ServerControl, name: str, layout: _Layout) -> Iterator[None]:
    try:
        from tritonclient.utils import cuda_shared_memory as cuda
    except (ImportError, RuntimeError) as error:
        raise RequirementError(
            "CUDA shared memory needs cuda-python", found=str(error), fix="pip install 'tritonclient[cuda]'"
        ) from None
    size = max(1, layout.size)
    content = np.frombuffer(b"".join(layout.content), np.uint8)
    layout.content.clear()
    try:
        region = cuda.create_shared_memory_region(name, size, _DEVICE)
        if content.size:
            cuda.set_shared_memory_region(region, [content])
        handle = cuda.get_raw_handle(region)
    except (cuda.CudaSharedMemoryException, RuntimeError) as error:
        raise RequirementError(
            "CUDA shared memory cannot be had on this machine",
            found=_cuda_words(error),
            expected=f"an NVIDIA GPU with {size / 2**20:.0f} MiB free, and a server on the same machine",
            fix="use --shared-memory system, or leave it away",
        ) from None
    try:
        control.share_cuda_memory(name, handle, _DEVICE, size)
        try:
            yield
        finally:
            with contextlib.suppress(ServerError):
                control.unshare_cuda_memory(name)
    finally:
        cuda.destroy_shared_memory_region(region)


def _cuda_words(error: BaseException) -> str:
    """CUDA's own words; tritonclient hides them in the cause."""
    said = error.__cause__.args[0] if error.__cause__ and error.__cause__.args else str(error)
    return said.decode(errors="replace") if isinstance(said, bytes) else str(said)
