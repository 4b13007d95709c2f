"""Collecting activations: run the model on calibration data, keep the range of each tensor that needs one.

One collection serves all range methods: two passes over the data give histograms, and the four methods read
those. Results are kept as JSON by model, data and tensors, so that a second candidate does not run it again.
"""

from __future__ import annotations

import contextlib
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tritongen.engines.onnxruntime.session import OnnxRuntimeRunner
from tritongen.errors import DataError, TritongenError
from tritongen.files import digest_json
from tritongen.precision.calibration import METHODS, Histogram, RangeCollector
from tritongen.precision.int8 import prepared
from tritongen.precision.placement import place
from tritongen.precision.prepare import load, save
from tritongen.precision.recipe import Int8Recipe
from tritongen.runs.events import Event, EventSink, discard
from tritongen.runs.records import Calibration, TensorRanges
from tritongen.runs.store import read_record, write_record

if TYPE_CHECKING:
    from tritongen.samples import Dataset

MAX_SAMPLES = 512
"""More do not move ranges noticeably; they are taken evenly over a larger data set."""

_CHUNK_BYTES = 512 << 20
_PROBE_TENSORS = 32

Arrays = Mapping[str, NDArray[np.generic]]


def calibrate(
    model: Path,
    recipe: Int8Recipe,
    dataset: Dataset,
    folder: Path,
    *,
    model_digest: str,
    batch_size: int = 1,
    max_samples: int = MAX_SAMPLES,
    events: EventSink = discard,
) -> Calibration:
    """The ranges that `recipe` needs, from `folder` if they were collected before.

    DataError naming the tensor where a value is not finite, BuildError if there is nothing to quantize.
    """
    folder.mkdir(parents=True, exist_ok=True)
    symmetric = recipe.symmetric_activations
    with prepared(model, recipe, beside=folder / "x") as ready:
        tensors = place(load(ready, weights=False), recipe, model.name).activations
        asked = [model_digest, dataset.digest, symmetric, recipe.min_opset, tensors, max_samples]
        path = folder / f"{digest_json(asked)[:16]}.json"
        found = _kept(path, model_digest, dataset.digest)
        if found is not None:
            events(Event("calibrate", "skipped", f"ranges of {len(found.tensors)} tensors are known already"))
            return found
        events(Event("calibrate", "started", f"collecting the ranges of {len(tensors)} tensors"))
        source = _Source(dataset, batch_size, max_samples)
        histograms = _collect(ready, tensors, source, folder, events)
    result = Calibration(
        model=model_digest,
        data=dataset.digest,
        symmetric=symmetric,
        samples=source.used,
        tensors={name: _ranges(one, symmetric=symmetric) for name, one in histograms.items()},
    )
    write_record(path, result)
    events(Event("calibrate", "finished", f"{len(tensors)} ranges from {source.used} samples"))
    return result


class _Source:
    """The batches that are used, spread evenly over the data set."""

    def __init__(self, dataset: Dataset, batch_size: int, max_samples: int) -> None:
        self.dataset = dataset
        self.batch_size = batch_size
        self.stride = max(1, math.ceil(dataset.count / max(max_samples, 1)))
        self.used = min(math.ceil(dataset.count / self.stride), dataset.count)

    def batches(self) -> Iterator[Arrays]:
        return islice(self.dataset.batches(self.batch_size), 0, None, self.stride)


def _collect(
    model: Path, tensors: Sequence[str], source: _Source, folder: Path, events: EventSink
) -> dict[str, Histogram]:
    """Histograms by tensor, from two passes for each group of tensors that fits in memory together."""
    collector = RangeCollector()
    first = next(iter(source.batches()), None)
    if first is None:
        raise DataError("the calibration data hold no sample", expected="at least one")
    inputs = [name for name in tensors if name in first]
    inner = [name for name in tensors if name not in first]
    groups = _groups(model, inner, first, folder) or [[]]
    passes: list[tuple[str, Callable[[str, NDArray[np.generic]], None]]] = [
        ("extent", collector.observe_extent),
        ("histogram", collector.observe),
    ]
    total = len(groups) * len(passes) * max(source.used, 1)
    done = 0
    for index, group in enumerate(groups):
        with _observed(model, group, folder) as observe:
            for what, see in passes:
                for batch in source.batches():
                    values = {
                        **({name: batch[name] for name in inputs} if index == 0 else {}),
                        **observe(batch),
                    }
                    for name, value in values.items():
                        see(name, value)
                    done += source.batch_size
                    fraction = min(done / total, 1.0)
                    events(Event("calibrate", "progress", f"{what} of activations", fraction=fraction))
    return collector.histograms()


def _groups(model: Path, tensors: Sequence[str], batch: Arrays, folder: Path) -> list[list[str]]:
    """The tensors in groups whose values for one batch stay under 512 MiB together, by measuring them."""
    groups: list[list[str]] = []
    room = 0
    for start in range(0, len(tensors), _PROBE_TENSORS):
        probe = list(tensors[start : start + _PROBE_TENSORS])
        with _observed(model, probe, folder) as observe:
            sizes = {name: value.nbytes for name, value in observe(batch).items()}
        for name in probe:
            if not groups or sizes[name] > room:
                groups.append([])
                room = _CHUNK_BYTES
            groups[-1].append(name)
            room -= sizes[name]
    return groups


@contextlib.contextmanager
def _observed(
    model: Path, tensors: Sequence[str], folder: Path
) -> Iterator[Callable[[Arrays], dict[str, NDArray[np.generic]]]]:
    """A function from inputs to the values of `tensors`: the model, run with those as its outputs."""
    if not tensors:
        yield lambda _batch: {}
        return
    proto = load(model)
    known = {value.name: value for value in (*proto.graph.value_info, *proto.graph.output)}
    del proto.graph.output[:]
    proto.graph.output.extend(known[name] for name in tensors)
    with tempfile.TemporaryDirectory(prefix=".calibrate-", dir=folder) as scratch:
        augmented = save(proto, Path(scratch) / "augmented.onnx")
        del proto
        with OnnxRuntimeRunner(augmented) as runner:
            yield runner.infer


def _ranges(histogram: Histogram, *, symmetric: bool) -> TensorRanges:
    seen = int(histogram.counts.sum()) + histogram.zeros
    return TensorRanges(
        minimum=histogram.minimum,
        maximum=histogram.maximum,
        zeros=round(histogram.zeros / seen, 6) if seen else 0.0,
        ranges={name: method(histogram, symmetric=symmetric) for name, method in METHODS.items()},
    )


def _kept(path: Path, model: str, data: str) -> Calibration | None:
    """What an earlier run wrote, unless the file is unreadable or of another model or data set."""
    with contextlib.suppress(TritongenError, OSError):
        found = read_record(path, Calibration)
        if (found.model, found.data) == (model, data):
            return found
    return None
