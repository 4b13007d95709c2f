"""The latency curve: the bare engine per batch size and runtime setting, alone and with k instances at once.

Instances are threads of one process, each with a runner of its own, as in Triton's C++ backends: the engines
release Python's global lock while they compute. Each round starts at one barrier; throughput counts only the
window in which every instance was busy, and a call that straddles its edges by the share that lies inside.
"""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tritongen.autotune.cpu_watch import CpuTimes, Schedule, disturbance, share_taken, this_thread
from tritongen.autotune.gpu_watch import REPEATS, GpuWatch, noise_in, watch_of
from tritongen.autotune.memory import resident_bytes
from tritongen.autotune.order_statistics import median_spread, percentile
from tritongen.runs.events import Event, EventSink, number
from tritongen.runs.records import Artifact, LatencyPoint, Options

if TYPE_CHECKING:
    from tritongen.engines import Engine, Runner

Tensors = Mapping[str, NDArray[np.generic]]
Inputs = Callable[[int], Tensors]
"""batch size → the inputs of one call."""


@dataclass(frozen=True)
class Effort:
    """How long one point of the curve is measured."""

    min_iterations: int = 30
    min_seconds: float = 0.3
    """Enough, once the median's interval is narrower than `precision`."""
    max_seconds: float = 1.0
    """The end, however wide the interval still is, once `floor_iterations` are there."""
    floor_iterations: int = 5
    precision: float = 0.02
    """Aimed-at half-width of the 95 % interval of the median, as a fraction."""
    warmup_seconds: float = 0.05
    max_warmup_seconds: float = 0.5
    round_seconds: float = 0.05


EFFORTS = {
    "quick": Effort(
        min_iterations=10,
        min_seconds=0.03,
        max_seconds=0.1,
        floor_iterations=3,
        precision=0.1,
        warmup_seconds=0.01,
        max_warmup_seconds=0.1,
        round_seconds=0.01,
    ),
    "normal": Effort(),
    "thorough": Effort(min_iterations=300, min_seconds=2.0, max_seconds=10.0, precision=0.005),
}
"""By the name that `--effort` takes."""


@dataclass(frozen=True)
class Round:
    """What k instances did between one barrier and the deadline."""

    starts: tuple[NDArray[np.int64], ...]
    ends: tuple[NDArray[np.int64], ...]
    """Clock readings in nanoseconds around each call, one array per instance."""
    latencies: tuple[NDArray[np.int64], ...]
    """What the engine itself measured, in nanoseconds."""
    schedules: tuple[Schedule, ...] = ()
    """What the kernel did with the threads that called it."""

    def window(self) -> tuple[float, float]:
        """(calls, seconds) of the time in which every instance was busy."""
        begin = max(int(start[0]) for start in self.starts)
        end = min(int(stop[-1]) for stop in self.ends)
        if end <= begin:  # one call each, one after the other: nothing overlapped
            begin = min(int(start[0]) for start in self.starts)
            end = max(int(stop[-1]) for stop in self.ends)
        calls = 0.0
        for start, stop in zip(self.starts, self.ends, strict=True):
            inside = np.minimum(stop, end) - np.maximum(start, begin)
            calls += float(np.sum(np.maximum(inside, 0) / np.maximum(stop - start, 1)))
        return calls, (end - begin) / 1e9


@dataclass(frozen=True)
class Curve:
    """All points, the raw latencies behind them, and what one instance takes."""

    points: tuple[LatencyPoint, ...]
    samples: dict[str, NDArray[np.int64]] = field(default_factory=dict)
    memory_bytes: int | None = None
    """Growth of the resident memory when one instance more was opened and warmed up."""


def batch_sizes(max_batch_size: int) -> tuple[int, ...]:
    """1, 2, 4, … and `max_batch_size` itself; only 1 for a model that does not batch."""
    powers = [1 << i for i in range(max(1, max_batch_size).bit_length())]
    return tuple(sorted({size for size in powers if size <= max_batch_size} | {max(1, max_batch_size)}))


def latency_curve(
    engine: Engine,
    folder: Path,
    artifact: Artifact,
    *,
    inputs: Inputs,
    sizes: Sequence[int],
    runtimes: Sequence[tuple[Options, int]],
    events: EventSink,
    effort: Effort,
) -> Curve:
    """Measure every (batch size, runtime setting, instances); the runners are opened and closed here."""
    points: list[LatencyPoint] = []
    samples: dict[str, NDArray[np.int64]] = {}
    memory: list[int] = []
    for runtime, instances in runtimes:
        with ExitStack() as stack:
            runners = []
            for _ in range(instances):
                runner, growth = _opened(stack, engine.open(folder, artifact, runtime), inputs(max(sizes)))
                runners.append(runner)
                memory.append(growth)
            watch = watch_of(runners[0])
            for size in sizes:
                name = f"p{len(points):03d}"
                once = partial(measure, runners, inputs(size), size, runtime, effort, name=name)
                point, raw = _calmly(once, watch)
                points.append(point)
                samples[str(point.samples)] = raw
                events(_progress(point, len(points) / (len(runtimes) * len(sizes))))
    # The last growth counts: libraries are loaded by then, and no freed heap is left to reuse.
    return Curve(tuple(points), samples, memory[-1] if memory else None)


def _calmly(
    once: Callable[[], tuple[LatencyPoint, NDArray[np.int64]]], watch: GpuWatch | None
) -> tuple[LatencyPoint, NDArray[np.int64]]:
    """Measure, again while the GPU was disturbed; of disturbed ones the fastest is kept, and marked."""
    if watch is None:
        return once()
    disturbed = []
    for repeats in range(REPEATS + 1):
        with watch.watching() as conditions:
            point, raw = once()
        seen = conditions()
        by_gpu = noise_in(seen)
        point = point.model_copy(update={"gpu": seen, "noisy": by_gpu + point.noisy, "repeats": repeats})
        if not by_gpu:
            return point, raw
        disturbed.append((point, raw))
    best, raw = min(disturbed, key=lambda pair: pair[0].median_ms)
    return best.model_copy(update={"repeats": REPEATS}), raw


def measure(
    runners: Sequence[Runner], inputs: Tensors, size: int, runtime: Options, effort: Effort, *, name: str
) -> tuple[LatencyPoint, NDArray[np.int64]]:
    """One point of the curve and its raw latencies; adaptive within the bounds of `effort`."""
    for runner in runners:
        runner.prepare(inputs)
    with _no_garbage_collection():
        _warm_up(runners, effort)
        before = CpuTimes.now()
        rounds = list(_rounds(runners, effort))
        others = CpuTimes.now().share_of_others(before)
    raw = np.concatenate([part for one in rounds for part in one.latencies])
    windows = [one.window() for one in rounds]
    taken = share_taken((each for one in rounds for each in one.schedules), others)
    point = LatencyPoint(
        batch_size=size,
        instances=len(runners),
        runtime=runtime,
        iterations=len(raw),
        mean_ms=float(np.mean(raw)) / 1e6,
        median_ms=float(np.median(raw)) / 1e6,
        p99_ms=percentile(raw, 99) / 1e6,
        throughput=size * sum(calls for calls, _ in windows) / sum(seconds for _, seconds in windows),
        spread=median_spread(raw),
        samples=name,
        cpu_taken=None if taken is None else round(taken, 4),
        noisy=disturbance(taken),
    )
    return point, raw


def run_round(runners: Sequence[Runner], seconds: float) -> Round:
    """Let every runner step until the deadline, all starting at one barrier; at least one step each."""
    if len(runners) == 1:
        parts = [_step_until(runners[0], time.perf_counter_ns() + int(seconds * 1e9))]
    else:
        parts = _together(runners, seconds)
    starts, ends, latencies, schedules = zip(*parts, strict=True)
    return Round(starts, ends, latencies, schedules)


_Part = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], Schedule]


def _step_until(runner: Runner, deadline_ns: int) -> _Part:
    starts: list[int] = []
    ends: list[int] = []
    latencies: list[int] = []
    clock, step = time.perf_counter_ns, runner.step
    before = this_thread()
    while not ends or ends[-1] < deadline_ns:
        starts.append(clock())
        latencies.append(step())
        ends.append(clock())
    schedule = this_thread().since(before)
    return (
        np.asarray(starts, np.int64), np.asarray(ends, np.int64), np.asarray(latencies, np.int64), schedule
    )  # fmt: skip


def _together(runners: Sequence[Runner], seconds: float) -> list[_Part]:
    barrier = threading.Barrier(len(runners))
    parts: dict[int, _Part] = {}
    errors: list[BaseException] = []

    def work(index: int) -> None:
        try:
            barrier.wait()
            parts[index] = _step_until(runners[index], time.perf_counter_ns() + int(seconds * 1e9))
        except BaseException as error:  # noqa: BLE001  (raised again below, in the caller's thread)
            errors.append(error)

    threads = [threading.Thread(target=work, args=(i,), daemon=True) for i in range(len(runners))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return [parts[i] for i in range(len(runners))]


def _warm_up(runners: Sequence[Runner], effort: Effort) -> None:
    """Rounds until two in a row agree on the median within 5 %, or the time is up; all of it is dropped."""
    begin, previous = time.perf_counter(), 0.0
    while time.perf_counter() - begin < effort.max_warmup_seconds:
        one = run_round(runners, effort.warmup_seconds)
        median = float(np.median(np.concatenate(one.latencies)))
        if abs(median - previous) <= 0.05 * median:
            return
        previous = median


def _rounds(runners: Sequence[Runner], effort: Effort) -> Iterator[Round]:
    """Rounds until the median is known well enough or the time is up."""
    begin = time.perf_counter()
    seen: list[NDArray[np.int64]] = []
    while True:
        one = run_round(runners, effort.round_seconds)
        yield one
        seen.extend(one.latencies)
        if _enough(np.concatenate(seen), time.perf_counter() - begin, effort):
            return


def _enough(raw: NDArray[np.int64], seconds: float, effort: Effort) -> bool:
    if seconds >= effort.max_seconds:
        return len(raw) >= effort.floor_iterations
    narrow = median_spread(raw) <= effort.precision
    return narrow and seconds >= effort.min_seconds and len(raw) >= effort.min_iterations


def _opened(stack: ExitStack, runner: Runner, largest: Tensors) -> tuple[Runner, int]:
    """The runner, opened and having run the largest batch, and the memory in bytes that this took."""
    before = resident_bytes()
    stack.enter_context(runner)
    runner.prepare(largest)
    runner.step()
    on_device: int | None = getattr(runner, "device_bytes", None)
    return runner, max(0, resident_bytes() - before) if on_device is None else on_device


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _progress(point: LatencyPoint, fraction: float) -> Event:
    setting = ", ".join(f"{key}={value}" for key, value in point.runtime.items())
    message = (
        f"batch {point.batch_size} x {point.instances} ({setting or 'defaults'}): "
        f"median {number(point.median_ms)} ms, P99 {number(point.p99_ms)} ms, "
        f"{number(point.throughput)} inferences/s"
        + (f"; noisy: {', '.join(point.noisy)}" if point.noisy else "")
    )
    return Event("latency", "progress", message, fraction=fraction)
