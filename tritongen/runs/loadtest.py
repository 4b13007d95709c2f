"""The record of a load test: what was asked, what was measured, what it means."""

from __future__ import annotations

from enum import Enum
from typing import Literal

from pydantic import Field

from tritongen.runs.records import Machine, Record


class LoadOutcome(str, Enum):
    """How a load test ended."""

    PASS = "PASS"  # noqa: S105
    """Every objective is met."""
    FAIL = "FAIL"
    """An objective is missed."""
    INVALID = "INVALID"
    """It cannot be told whether the objectives are met; the reasons say why."""
    ERROR = "ERROR"
    """The server stopped answering."""
    MEASURED = "MEASURED"
    """There was no objective to judge."""


class Load(Record):
    """The load that was offered."""

    mode: Literal["rate", "concurrency"]
    """Open loop (requests leave on schedule) or closed loop (each answer sends the next request)."""
    rate: float | None = None
    """Requests per second of an open loop; where it changes, the mean."""
    shape: str | None = None
    """The rate as it was asked for, if it changes."""
    trace_requests: int | None = None
    """Arrivals of the trace that were replayed, if there is one."""
    arrival: Literal["poisson", "constant"] | None = None
    """How requests were spaced, unless by a trace."""
    concurrency: int | None = None
    """Calls in flight of a closed loop."""
    batch_size: int
    """Items (inferences) in each request; of several sizes the first."""
    batch_sizes: dict[int, float] = Field(default_factory=dict)
    """Weights of several batch sizes; those of a trace are its own."""
    mix: dict[str, float] = Field(default_factory=dict)
    """Weights of several models; those of a trace are its own."""
    duration_s: float
    """Warm-up included; with `min_duration_s` the most that it might have taken."""
    min_duration_s: float | None = None
    """The shortest window that may decide; None: one look, at the end."""
    warmup_s: float
    timeout_s: float
    max_in_flight: int
    workers: int
    seed: int
    inputs: str
    """Where the inputs came from."""
    prepared_requests: int
    """Different requests that were sent in rotation."""


class Latency(Record):
    """A distribution in milliseconds; None where so many requests failed that there is no such figure."""

    mean: float | None
    """Over answered requests only."""
    percentiles: dict[str, float | None]
    """By name ("p99"), over all requests; a failed one is slower than every answered one."""
    maximum: float | None
    """The slowest answered request."""


class Failure(Record):
    """Requests that failed for one cause."""

    cause: str
    count: int
    message: str = ""
    """What the first of them said."""


class Objective(Record):
    """One objective and what the measurement says about it."""

    slo: str
    outcome: Literal["pass", "fail", "undecided"]
    reason: str
    measured: float | None
    """In the unit of the objective."""
    unit: str
    requests: int
    """How many requests it was judged on."""
    share_over: float | None = None
    """The share of requests over the limit."""
    share_allowed: float | None = None
    share_low: float | None = None
    share_high: float | None = None
    """Bounds of the true share over the limit, each with confidence 1 - alpha."""
    low: float | None = None
    high: float | None = None
    """Bounds of the measured figure, each with confidence 1 - alpha, where it is not a share."""
    alpha: float
    """Probability that this decision is wrong when the truth is exactly at the limit."""
    confidence: float | None = None
    """That the objective is met, or that it is missed, whichever is likelier; for a share."""
    design_effect: float | None = None
    """How many of these (correlated) requests tell as much as one independent one."""
    autocorrelation: float | None = None
    """Lag 1, of the batch means."""
    requests_needed: int | None = None
    """About how many requests would decide it."""


class WarmUpResult(Record):
    """What was left out at the start, and whether the run had settled by then (MSER-5)."""

    seconds: float
    requests: int
    settled_after: int
    """Requests until the series settled, by MSER-5 on the first 2 × warm-up."""
    settled: bool


class LookResult(Record):
    """One look at the data."""

    at_s: float
    """Of the measured window."""
    requests: int
    alpha: float
    outcome: LoadOutcome
    reason: str


class SeriesPoint(Record):
    """The requests that were scheduled in one slice of the run, warm-up included."""

    at_s: float
    """When the slice begins; negative in the warm-up."""
    rate: float
    """Scheduled requests per second."""
    p99_ms: float | None
    """None where so many failed that there is no such figure."""
    failed: int


class Waterfall(Record):
    """Where the mean response time goes, in milliseconds per request; the parts add up to it."""

    sender_lag_ms: float
    network_ms: float
    """Network, serialization and whatever the server's statistics do not count."""
    queue_ms: float
    compute_input_ms: float
    compute_infer_ms: float
    compute_output_ms: float


class GpuFigures(Record):
    """One GPU over the measured window, by Triton's metrics."""

    gpu: str
    utilization_mean: float | None = None
    """0 … 1."""
    memory_bytes: float | None = None
    """The most that was used."""
    power_w_mean: float | None = None


class ServerFigures(Record):
    """Triton's own statistics over the measured window; times are means per request."""

    inferences: int
    executions: int
    mean_batch: float | None
    """Inferences per execution."""
    queue_ms: float | None
    compute_input_ms: float | None
    compute_infer_ms: float | None
    compute_output_ms: float | None
    failures: int = 0
    batch_sizes: dict[int, int] = Field(default_factory=dict)
    """Executions by the size of the batch that really ran."""
    cache_hits: int = 0
    cache_misses: int = 0
    gpus: tuple[GpuFigures, ...] = ()


class LoadReport(Record):
    """Everything about one load test."""

    schema_: Literal["tritongen/loadtest/1"] = Field(default="tritongen/loadtest/1", alias="schema")
    model: str
    version: str | None = None
    url: str
    protocol: Literal["http", "grpc"]
    server: str | None = None
    """Name and version, as it says itself."""
    load: Load
    outcome: LoadOutcome
    reasons: tuple[str, ...]
    notes: tuple[str, ...] = ()
    """What a reader should know that does not change the outcome."""
    partial: bool = False
    """Stopped before its time."""
    started: str
    """ISO 8601, UTC."""
    window_s: float
    """The measured window: from the end of the warm-up to the end of the schedule."""
    requests: int
    """Scheduled in the window."""
    answered: int
    requests_per_s: float
    """Answers in the window ÷ its length."""
    inferences_per_s: float
    response_ms: Latency
    """From the scheduled send time (closed loop: from the send)."""
    service_ms: Latency
    """From the real send."""
    sender_lag_ms: Latency
    """How late requests left."""
    p99_interval_ms: tuple[float | None, float | None]
    """95 % confidence interval of the response time's P99, autocorrelation respected."""
    failures: tuple[Failure, ...]
    warm_up: WarmUpResult
    objectives: tuple[Objective, ...]
    server_figures: ServerFigures | None = None
    server_figures_note: str | None = None
    """Why there are none."""
    waterfall: Waterfall | None = None
    bottleneck: str | None = None
    """What limits the latency, and the knob that moves it."""
    looks: tuple[LookResult, ...] = ()
    series: tuple[SeriesPoint, ...] = ()
    machine: Machine | None = None
    """Where the load came from."""
