"""TensorRT's own entropy calibrator, fed from our data (8.6 and 10; gone in 11)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tritongen.engines.tensorrt import cuda
from tritongen.engines.tensorrt.profiles import Profile, Shape
from tritongen.errors import BuildError
from tritongen.files import digest_json, replacing

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Batches = Iterator[Mapping[str, NDArray[np.generic]]]
    Call = dict[str, NDArray[np.generic]]


def calibration_calls(model: Path, profiles: Sequence[Profile]) -> tuple[list[Call], Path] | None:
    """(batches of the first profile's usual shapes, the cache's file) beside a model, if there are samples.

    BuildError if no samples make up those shapes: TensorRT calibrates at them alone.
    """
    described = model.with_suffix(".calibration.json")
    if not described.exists():
        return None
    found = json.loads(described.read_text(encoding="utf-8"))
    samples: dict[str, Call] = {}
    with np.load(found["samples"]) as stored:
        for key in stored.files:
            index, _, name = key.partition("/")
            samples.setdefault(index, {})[name] = stored[key]
    usual = {name: extent.opt for name, extent in profiles[0].items()} if profiles else None
    counts = {index: 1 if usual is None else _share(_shapes(one), usual) for index, one in samples.items()}
    count = max(counts.values(), default=0)
    if not count:
        raise BuildError(
            "TensorRT's own calibrator has no sample that fits",
            found=", ".join(sorted({str(_shapes(one)) for one in samples.values()})),
            expected=str(usual),
            fix="give calibration data of the usual shapes (--shape)",
        )
    fitting = [one for index, one in samples.items() if counts[index] == count]
    # The ranges depend on which samples fit, and not on the batches that they are shown in.
    shapes = digest_json(sorted({json.dumps(_shapes(one), sort_keys=True) for one in fitting}))
    cache = Path(found["cache"])
    return _batches(fitting, count), cache.with_name(f"{cache.stem}-{shapes[:8]}{cache.suffix}")


def _shapes(call: Call) -> dict[str, Shape]:
    return {name: array.shape for name, array in call.items()}


def _share(sample: Mapping[str, Shape], usual: Mapping[str, Shape]) -> int:
    """How many samples of these shapes, one behind the other, have the usual ones; 0: no number of them."""
    if sample == usual:
        return 1
    counts = set()
    for name, shape in usual.items():
        one = sample.get(name, ())
        fits = len(one) > 0 and one[1:] == shape[1:] and shape[0] % one[0] == 0
        counts.add(shape[0] // one[0] if fits else 0)
    return counts.pop() if len(counts) == 1 else 0


def _batches(samples: list[Call], count: int) -> list[Call]:
    """Batches of `count` samples each; the last one is filled up from the front."""
    if count == 1:
        return samples
    rows = [
        [samples[(start + i) % len(samples)] for i in range(count)] for start in range(0, len(samples), count)
    ]
    return [{name: np.concatenate([one[name] for one in row]) for name in row[0]} for row in rows]


def make_calibrator(trt: Any, calls: Sequence[Call], cache: Path) -> Any:
    """An entropy calibrator over `calls`; its cache belongs to this version of TensorRT."""
    cache = cache.with_name(f"{cache.stem}-{trt.__version__}{cache.suffix}")
    cache.parent.mkdir(parents=True, exist_ok=True)
    return entropy_calibrator(trt, iter(calls), len(next(iter(calls[0].values()))), cache)


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
                self._free()
                return None
            return [self._upload(name, np.ascontiguousarray(batch[name])) for name in names]

        def read_calibration_cache(self) -> bytes | None:
            return cache.read_bytes() if cache.exists() else None

        def write_calibration_cache(self, content: bytes) -> None:
            with replacing(cache) as temporary:
                temporary.write_bytes(bytes(content))

        def _free(self) -> None:
            """The GPU's memory is the builder's from here on."""
            for buffer in self._buffers.values():
                buffer.free()
            self._buffers.clear()

        def _upload(self, name: str, array: NDArray[np.generic]) -> int:
            self._stream = self._stream or cuda.Stream()
            buffer = self._buffers.get(name) or self._buffers.setdefault(name, cuda.Buffer(array.nbytes))
            buffer.view(array.shape, array.dtype)[...] = array
            buffer.upload(array.nbytes, self._stream.handle)
            self._stream.synchronize()
            return buffer.device

    return Calibrator()
