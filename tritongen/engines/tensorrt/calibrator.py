"""TensorRT's own entropy calibrator, fed from our data (8.6 and 10; gone in 11)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tritongen.engines.tensorrt import cuda

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Batches = Iterator[Mapping[str, NDArray[np.generic]]]


def entropy_calibrator(trt: Any, batches: Batches, batch_size: int, cache: Path) -> Any:
    """An IInt8EntropyCalibrator2 over `batches`, each of exactly `batch_size`.

    The ranges that it finds are kept in `cache` as text; where the file exists, no data are read.
    """

    class Calibrator(trt.IInt8EntropyCalibrator2):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IInt8EntropyCalibrator2.__init__(self)
            self._buffers: dict[str, cuda.Buffer] = {}
            self._stream: cuda.Stream | None = None

        def get_batch_size(self) -> int:
            return batch_size

        def get_batch(self, names: list[str]) -> list[int] | None:
            batch = next(batches, None)
            if batch is None or len(next(iter(batch.values()))) != batch_size:
                return None
            return [self._upload(name, np.ascontiguousarray(batch[name])) for name in names]

        def read_calibration_cache(self) -> bytes | None:
            return cache.read_bytes() if cache.exists() else None

        def write_calibration_cache(self, content: bytes) -> None:
            cache.write_bytes(bytes(content))

        def _upload(self, name: str, array: NDArray[np.generic]) -> int:
            self._stream = self._stream or cuda.Stream()
            buffer = self._buffers.get(name) or self._buffers.setdefault(name, cuda.Buffer(array.nbytes))
            buffer.view(array.shape, array.dtype)[...] = array
            buffer.upload(array.nbytes, self._stream.handle)
            self._stream.synchronize()
            return buffer.device

    return Calibrator()
