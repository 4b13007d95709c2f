"""Samples → the figures of a report. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tritongen.loadtest import statistics
from tritongen.loadtest.correlation import above_headroom
from tritongen.loadtest.samples import OK, STOPPED, Samples, cause
from tritongen.runs.loadtest import Failure, Latency, SeriesPoint, ServerFigures, WarmUpResult
from tritongen.serving.statistics import ModelStatistics
from tritongen.slo import Slo

PERCENTS = (50.0, 90.0, 95.0, 99.0, 99.9)
_MOST_SLICES = 600


def percents_of(slos: Sequence[Slo]) -> list[float]:
    """The usual percentiles and those that are promised, in order."""
    return sorted({*PERCENTS, *(slo.percentile for slo in slos if slo.percentile is not None)})


def latency(values: NDArray[np.float64], percents: Sequence[float] = PERCENTS) -> Latency:
    """Mean, percentiles and maximum of milliseconds, infinite where a request failed."""
    answered = values[np.isfinite(values)]
    return Latency(
        mean=float(answered.mean()) if len(answered) else None,
        percentiles={
            f"p{percent:.15g}": finite(statistics.percentile(values, percent)) for percent in percents
        },
        maximum=float(answered.max()) if len(answered) else None,
    )


def finite(value: float) -> float | None:
    """The value, or None where it is infinite or not a number (JSON has neither)."""
    return value if math.isfinite(value) else None


def failures(samples: Samples, messages: dict[int, str]) -> tuple[Failure, ...]:
    """Failed requests by cause, the most frequent first."""
    statuses, counts = np.unique(samples.rows["status"], return_counts=True)
    found = [
        Failure(cause=cause(int(status)), count=int(count), message=messages.get(int(status), "")[:500])
        for status, count in zip(statuses, counts, strict=True)
        if status != OK
    ]
    return tuple(sorted(found, key=lambda failure: -failure.count))


def finished(samples: Samples) -> Samples:
    """Without what the user's own stop cut off."""
    return Samples(samples.rows[samples.rows["status"] != STOPPED])


def warm_up(
    samples: Samples, start_ns: int, warmup_s: float, timeout_ms: float, limit_ms: float | None = None
) -> WarmUpResult:
    """What the warm-up left out, and whether the run had settled by then, by MSER-5 on twice its length.

    The whole warm-up is dropped, not only what MSER-5 would drop: a cut that looks at the latencies takes
    away slow requests and so biases what is left. `limit_ms` is the strictest objective's: what stays far
    below it has settled.
    """
    left_out = len(samples.between(start_ns, start_ns + round(warmup_s * 1e9)))
    prefix = samples.between(start_ns, start_ns + round(2 * warmup_s * 1e9)).response_ms
    prefix = np.minimum(prefix, timeout_ms)
    settled = statistics.mser5(prefix if limit_ms is None else above_headroom(prefix, limit_ms))
    return WarmUpResult(
        seconds=warmup_s,
        requests=left_out,
        settled_after=settled.settled,
        settled=settled.stable,
    )


def server_figures(before: ModelStatistics, after: ModelStatistics) -> ServerFigures:
    """Triton's own counts between two moments; times are means per request."""
    window = after - before
    answered = window.success.count > 0

    def mean(name: str) -> float | None:
        return float(getattr(window, name).mean_ms) if answered else None

    return ServerFigures(
        inferences=window.inference_count,
        executions=window.execution_count,
        mean_batch=window.mean_batch if window.execution_count else None,
        queue_ms=mean("queue"),
        compute_input_ms=mean("compute_input"),
        compute_infer_ms=mean("compute_infer"),
        compute_output_ms=mean("compute_output"),
        failures=window.fail.count,
        batch_sizes={each.batch_size: each.compute_infer.count for each in window.batches},
        cache_hits=window.cache_hit.count,
        cache_misses=window.cache_miss.count,
    )


def series(samples: Samples, start_ns: int, end_ns: int, window_ns: int) -> tuple[SeriesPoint, ...]:
    """Rate, P99 and failures of every second of the schedule; of longer slices where that were too many."""
    seconds = max((end_ns - start_ns) / 1e9, 1e-9)
    slice_ns = round(max(1, math.ceil(seconds / _MOST_SLICES)) * 1e9)
    scheduled, response_ms = samples.rows["scheduled_ns"], samples.response_ms
    points = []
    for begin in range(start_ns, end_ns, slice_ns):
        end = min(begin + slice_ns, end_ns)
        first, last = np.searchsorted(scheduled, (begin, end))
        values = response_ms[first:last]
        points.append(
            SeriesPoint(
                at_s=(begin - window_ns) / 1e9,
                rate=len(values) / ((end - begin) / 1e9),
                p99_ms=finite(statistics.percentile(values, 99)),
                failed=int(np.isinf(values).sum()),
            )
        )
    return tuple(points)


def answers_in(samples: Samples, start_ns: int, end_ns: int) -> tuple[int, int]:
    """How many good answers came in [start_ns, end_ns), whenever they were asked for; and their items."""
    done = samples.rows["done_ns"]
    there = samples.ok & (done >= start_ns) & (done < end_ns)
    return int(there.sum()), int(samples.rows["batch"][there].sum())
