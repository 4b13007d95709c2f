"""A load test's report as text that reads in ten seconds and ends in the verdict."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tritongen.runs.loadtest import GpuFigures, Latency, Load, LoadOutcome, LoadReport, ServerFigures

_MEANINGS = {
    LoadOutcome.PASS: "every objective is met",
    LoadOutcome.FAIL: "an objective is missed",
    LoadOutcome.INVALID: "this run cannot tell",
    LoadOutcome.ERROR: "the server did not answer",
    LoadOutcome.MEASURED: "no objective was set",
}
_SHOWN_FAILURES = 5
_SHOWN_BATCHES = 6


def render(report: LoadReport) -> str:
    """Plain text, the outcome in the last paragraph."""
    if report.partial and not report.requests:
        return "stopped before anything was measured"
    lines = [*_header(report), "", *_throughput(report), *_latencies(report), *_server(report)]
    lines += _failures(report)
    lines += [f"note: {note}" for note in report.notes]
    return "\n".join([*lines, "", *_verdict(report)])


def _header(report: LoadReport) -> Iterator[str]:
    load = report.load
    yield f"{report.model} at {report.url} ({report.server or 'unknown server'}, {report.protocol})"
    yield (
        f"offered   {_offered(load)}, batch {_weights(load.batch_sizes) or load.batch_size}, "
        f"{load.prepared_requests} different requests, inputs: {load.inputs}"
    )
    if load.mix:
        yield f"mix       {_weights(load.mix)}; the server's figures are of {report.model} alone"
    settled = "settled" if report.warm_up.settled else "NOT settled"
    yield (
        f"window    {report.window_s:.1f} s after {report.warm_up.seconds:.1f} s of warm-up "
        f"({report.warm_up.requests} requests left out; {settled})"
        + ("; PARTIAL: stopped before its time" if report.partial else "")
    )


def _weights(weights: Mapping[Any, float]) -> str:
    """`a=3, b=1`."""
    return ", ".join(f"{name}={weight:g}" for name, weight in weights.items())


def _offered(load: Load) -> str:
    if load.mode == "concurrency":
        return f"{load.concurrency} in flight (closed loop)"
    if load.trace_requests is not None:
        return f"a trace of {load.trace_requests} requests (mean {load.rate:.6g}/s, open loop)"
    if load.shape is not None:
        return f"{load.shape} requests/s (mean {load.rate:.6g}/s, {load.arrival}, open loop)"
    return f"{load.rate:g} requests/s ({load.arrival}, open loop)"


def _throughput(report: LoadReport) -> Iterator[str]:
    share = report.answered / report.requests if report.requests else 0.0
    yield (
        f"answered  {report.answered} of {report.requests} requests ({share:.2%}): "
        f"{report.requests_per_s:.1f} requests/s, {report.inferences_per_s:.1f} inferences/s"
    )


def _latencies(report: LoadReport) -> Iterator[str]:
    names = ["mean", *report.response_ms.percentiles, "max"]
    widths = [max(9, len(name) + 2) for name in names]
    yield "ms        " + "".join(map(str.rjust, names, widths))
    rows = [
        ("response", report.response_ms),
        ("service", report.service_ms),
        ("send lag", report.sender_lag_ms),
    ]
    for label, latency in rows if report.load.mode == "rate" else rows[:1]:
        yield f"{label:<10}" + "".join(map(str.rjust, map(_ms, _values(latency)), widths))
    low, high = report.p99_interval_ms
    yield f"          95 % confidence interval of the response P99: {_interval(low, high)}"


def _interval(low: float | None, high: float | None) -> str:
    if low is None:
        return "beyond all answers"
    if not low and high is None:
        return "too few requests for one"
    return f"{_ms(low)} to {_ms(high)} ms" if high is not None else f"from {_ms(low)} ms, no upper bound yet"


def _values(latency: Latency) -> list[float | None]:
    return [latency.mean, *latency.percentiles.values(), latency.maximum]


def _ms(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if value < 10 else f"{value:.1f}"  # noqa: PLR2004


def _server(report: LoadReport) -> Iterator[str]:
    figures = report.server_figures
    if figures is None:
        yield f"server    {report.server_figures_note}"
        return
    yield (
        f"server    mean batch {figures.mean_batch or 0:.2f} ({figures.inferences} inferences in "
        f"{figures.executions} executions{_batches(figures)})" + _cache(figures)
    )
    for gpu in figures.gpus:
        yield f"          {_gpu(gpu)}"
    parts = report.waterfall
    if parts is not None:
        steps = (
            ("send lag", parts.sender_lag_ms),
            ("network", parts.network_ms),
            ("queue", parts.queue_ms),
            ("input", parts.compute_input_ms),
            ("compute", parts.compute_infer_ms),
            ("output", parts.compute_output_ms),
        )
        yield "mean ms   " + " → ".join(f"{name} {_ms(value)}" for name, value in steps)
    if report.bottleneck:
        yield f"limit     {report.bottleneck}"


def _batches(figures: ServerFigures) -> str:
    """The batch sizes that really ran, by how often."""
    if len(figures.batch_sizes) <= 1:
        return ""
    most = sorted(figures.batch_sizes.items(), key=lambda item: -item[1])[:_SHOWN_BATCHES]
    shown = ", ".join(f"{count} of {size}" for size, count in most)
    return f": {shown}" + (", …" if len(figures.batch_sizes) > len(most) else "")


def _cache(figures: ServerFigures) -> str:
    asked = figures.cache_hits + figures.cache_misses
    return f"; cache {figures.cache_hits / asked:.1%} of {asked} hit" if asked else ""


def _gpu(gpu: GpuFigures) -> str:
    parts = [f"GPU {gpu.gpu}:"]
    if gpu.utilization_mean is not None:
        parts.append(f"{gpu.utilization_mean:.0%} busy")
    if gpu.memory_bytes is not None:
        parts.append(f"{gpu.memory_bytes / 2**30:.1f} GiB")
    if gpu.power_w_mean is not None:
        parts.append(f"{gpu.power_w_mean:.0f} W")
    return " ".join(parts)


def _failures(report: LoadReport) -> Iterator[str]:
    for failure in report.failures[:_SHOWN_FAILURES]:
        said = _one_line(failure.message)[:160]
        yield f"failed    {failure.count} × {failure.cause}{f': {said}' if said else ''}"
    if len(report.failures) > _SHOWN_FAILURES:
        yield f"failed    … and {len(report.failures) - _SHOWN_FAILURES} more causes"


def _one_line(text: str) -> str:
    """What a server said, without what would move the cursor or colour the terminal."""
    return " ".join("".join(char if char.isprintable() else " " for char in text).split())


def _verdict(report: LoadReport) -> Iterator[str]:
    told = []
    for objective in report.objectives:
        told.append(f"{objective.slo}: {objective.reason}")
        yield f"{objective.outcome:<9} {told[-1]}"
    if report.outcome is not LoadOutcome.MEASURED:
        yield from (f"why       {reason}" for reason in report.reasons if reason not in told)
    covered = f" in the {report.window_s:.0f} s that were measured"
    if len(report.looks) > 1:
        yield "looks     " + ", ".join(f"{look.outcome.value} at {look.requests}" for look in report.looks)
    yield f"{report.outcome.value}: {_MEANINGS[report.outcome]}" + (
        covered if report.outcome is LoadOutcome.PASS else ""
    )
