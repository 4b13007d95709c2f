"""What was asked for, made effective: frozen once, then handed down."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tritongen.errors import InputError
from tritongen.loadtest.job import Compression, GrpcClient, Protocol, SharedMemory
from tritongen.loadtest.schedule import Arrival
from tritongen.loadtest.shape import RateShape
from tritongen.loadtest.statistics import ALPHA
from tritongen.loadtest.trace import Arrival as TraceArrival
from tritongen.serving.access import PLAIN, Access
from tritongen.serving.control import check_metrics_url
from tritongen.slo import Slo

DEFAULT_DURATION_S = 60.0
"""Stalls are rare: a shorter window does not see them."""
DEFAULT_MAX_DURATION_S = 300.0
"""How long an objective that is not decided yet is followed."""
DEFAULT_TIMEOUT_S = 10.0
DEFAULT_MAX_IN_FLIGHT = 1024
_LONGEST_WARMUP_S = 5.0
_WARMUP_SHARE = 0.1
_RATE_PER_WORKER = 2000.0
_CONCURRENCY_PER_WORKER = 16
_LONGEST_S = 1e9
"""Thirty years; ten times as long no longer fits into the samples' nanoseconds."""
_MOST_WORKERS = 256
"""Each is a Python process; more would take longer to start than they are waited for."""


@dataclass(frozen=True)
class Settings:
    """One load test, as asked for. Exactly one of `rate` and `concurrency`, or neither: see `mode`."""

    model: str
    url: str = "http://127.0.0.1:8000"
    protocol: Protocol | None = None
    version: str = ""
    rate: float | None = None
    """Requests per second, open loop."""
    rate_shape: RateShape | None = None
    """A rate that changes; instead of `rate`."""
    trace: Sequence[TraceArrival] | None = field(default=None, repr=False)
    """Arrivals to replay; instead of `rate`."""
    concurrency: int | None = None
    """Calls in flight, closed loop."""
    arrival: Arrival = "poisson"
    duration_s: float = DEFAULT_DURATION_S
    """Warm-up included. With `min_duration_s`, the longest that it may take."""
    min_duration_s: float | None = None
    """The shortest window that may decide: looks begin there, and the first that decides ends the run."""
    alpha: float = ALPHA
    """Probability of a wrong PASS when the truth is exactly at the limit, and of a wrong FAIL."""
    warmup_s: float | None = None
    """Left out at the start; default: a tenth of the duration, at most five seconds."""
    slos: Sequence[Slo] = ()
    mix: Mapping[str, float] = field(default_factory=dict)
    """Weights of several models; `model`, whose name the test bears, has 1 unless it is among them."""
    batch_size: int = 1
    batch_sizes: Mapping[int, float] = field(default_factory=dict)
    """Weights of several batch sizes; instead of `batch_size`."""
    shapes: Mapping[str, str] = field(default_factory=dict)
    """Sizes by INPUT of every model, or by MODEL:INPUT, which counts more; so are ranges."""
    ranges: Mapping[str, str] = field(default_factory=dict)
    data: str | None = None
    timeout_s: float = DEFAULT_TIMEOUT_S
    max_in_flight: int = DEFAULT_MAX_IN_FLIGHT
    """Over all workers."""
    workers: int | None = None
    seed: int = 0
    grpc_client: GrpcClient = "h2"
    """Framed by hand, or grpcio as the reference."""
    access: Access = PLAIN
    """TLS and headers."""
    compression: Compression | None = None
    streaming: bool = False
    """For decoupled models, over gRPC: a request ends with its last answer."""
    shared_memory: SharedMemory | None = None
    """Inputs and outputs in memory that the server shares, instead of in requests and answers."""
    metrics_url: str | None = None
    """Triton's Prometheus page, for what its GPUs did in the window."""

    @property
    def effective_warmup_s(self) -> float:
        if self.warmup_s is not None:
            return self.warmup_s
        return min(_LONGEST_WARMUP_S, self.duration_s * _WARMUP_SHARE)

    def duration_with(self, window_s: float) -> int:
        """The duration (s) that leaves such a window after its warm-up."""
        usual_s = min(_LONGEST_WARMUP_S, window_s * _WARMUP_SHARE / (1 - _WARMUP_SHARE))
        return math.ceil(window_s + (usual_s if self.warmup_s is None else self.warmup_s))

    @property
    def offered_rate(self) -> float | None:
        """The open-loop rate: as given, else what a throughput objective promises; None in a closed loop."""
        if self.trace is not None:
            return sum(each.offset_s < self.duration_s for each in self.trace) / self.duration_s
        if self.rate_shape is not None:
            return self.rate_shape.over(self.duration_s).requests / self.duration_s
        if self.rate is not None or self.concurrency is not None:
            return self.rate
        promised = [slo.limit / self.items(slo) for slo in self.slos if slo.metric == "throughput"]
        return max(promised) if promised else None

    @property
    def effective_concurrency(self) -> int:
        """Calls in flight of a closed loop; 1 unless given."""
        return self.concurrency or 1

    @property
    def batch_weights(self) -> Mapping[int, float]:
        """Every batch size with its weight."""
        return self.batch_sizes or {self.batch_size: 1.0}

    @property
    def mean_batch(self) -> float:
        """Items in a request on average."""
        weights = self.batch_weights
        if self.trace:
            first = next(iter(weights))
            return sum(each.batch_size or first for each in self.trace) / len(self.trace)
        return sum(size * weight for size, weight in weights.items()) / sum(weights.values())

    @property
    def model_weights(self) -> Mapping[str, float]:
        """Every model with its weight, the one whose name the test bears first."""
        return {self.model: self.mix.get(self.model, 1.0), **self.mix}

    def items(self, slo: Slo) -> float:
        """How many units of a throughput objective one request is (on average)."""
        return self.mean_batch if slo.unit == "inferences/s" else 1

    def worker_count(self, cores: int) -> int:
        """As given, else few enough to leave cores to a server on the same machine."""
        rate = self.offered_rate
        if self.workers is not None:
            wanted, most = self.workers, self.workers
        elif rate is not None:
            wanted, most = math.ceil(rate / _RATE_PER_WORKER), max(1, cores // 2)
        else:
            wanted = math.ceil(self.effective_concurrency / _CONCURRENCY_PER_WORKER)
            most = max(1, cores // 2)
        return max(
            1, min(wanted, most, self.max_in_flight, self.effective_concurrency if rate is None else wanted)
        )

    def check(self) -> None:
        """InputError for what cannot be run."""
        loads = (self.rate, self.rate_shape, self.trace, self.concurrency)
        if sum(each is not None for each in loads) > 1:
            raise InputError(
                "an open and a closed loop at once" if self.concurrency else "two open loops at once",
                found=", ".join(self._given_loads()),
                expected="one of them",
                fix="use --rate to test a promise at a rate, --concurrency to see what a few callers get",
            )
        self._check_numbers()
        if not 0 <= self.effective_warmup_s < self.duration_s:
            raise InputError(
                "the warm-up leaves nothing to measure",
                found=f"--warmup {self.effective_warmup_s:g}s of --duration {self.duration_s:g}s",
                expected="a warm-up shorter than the duration",
            )
        self._check_loop()
        self.access.check()
        if self.metrics_url is not None:
            check_metrics_url(self.metrics_url)

    def _check_numbers(self) -> None:
        for name, value in (
            ("--rate", self.rate),
            ("--concurrency", self.concurrency),
            ("--duration", self.duration_s),
            ("--min-duration", self.min_duration_s),
            ("--timeout", self.timeout_s),
            ("--max-in-flight", self.max_in_flight),
            ("--batch-size", self.batch_size),
            ("--workers", self.workers),
            *(("--mix", weight) for weight in self.mix.values()),
            *(("--batch-size", value) for each in self.batch_sizes.items() for value in each),
        ):
            if value is not None and not 0 < value < math.inf:
                raise InputError(f"{name} must be positive", found=f"{value:g}", expected="more than 0")
        if self.duration_s > _LONGEST_S:
            raise InputError(
                "no run takes so long",
                found=f"{self.duration_s:g} s",
                expected=f"at most {_LONGEST_S:g} s",
                fix="see to --duration, or to the times of --trace",
            )
        if self.seed < 0:
            raise InputError("--seed must not be negative", found=str(self.seed), expected="0 or more")
        if self.workers is not None and self.workers > _MOST_WORKERS:
            raise InputError(
                "so many --workers are of no use",
                found=str(self.workers),
                expected=f"at most {_MOST_WORKERS}, and no more than there are cores for them",
            )

    def _given_loads(self) -> list[str]:
        rate = self.rate_shape.text if self.rate_shape else f"{self.rate:g}" if self.rate else None
        trace = "" if self.trace is not None else None
        given = {"--rate": rate, "--trace": trace, "--concurrency": self.concurrency}
        return [f"{flag} {value}".strip() for flag, value in given.items() if value is not None]

    def check_transport(self, protocol: Protocol, *, secure: bool) -> None:
        """InputError for what cannot travel this way."""
        if self.streaming and protocol != "grpc":
            raise InputError(
                "streams need gRPC",
                found=self.url,
                fix="give the server's gRPC address: --url grpc://HOST:8001",
            )
        if self.grpc_client == "grpcio" and protocol != "grpc":
            raise InputError(
                "the reference client is one for gRPC",
                found=f"--grpc-client grpcio with {self.url}",
                fix="give the server's gRPC address, or leave --grpc-client away",
            )
        special = self.streaming or self.compression or secure or self.access.headers
        if self.grpc_client == "grpcio" and special:
            raise InputError(
                "the reference client only sends plain unary calls",
                found="--grpc-client grpcio with TLS, headers, compression or streaming",
                fix="leave --grpc-client away",
            )

    def _check_loop(self) -> None:
        rate = self.offered_rate
        if rate is None and self.effective_concurrency > self.max_in_flight:
            raise InputError(
                "--max-in-flight is below --concurrency",
                found=f"{self.max_in_flight} and {self.effective_concurrency}",
                fix="raise --max-in-flight or lower --concurrency",
            )
        for slo in self.slos:
            if (
                rate is not None
                and slo.metric == "throughput"
                and rate * self.items(slo) < slo.limit * (1 - 1e-9)
            ):
                raise InputError(
                    f"the offered load cannot show '{slo.text}'",
                    found=f"{rate:g} requests/s of batch {self.mean_batch:g}",
                    expected=f"at least {slo.limit:g} {slo.unit}",
                    fix=f"use --rate {math.ceil(slo.limit / self.items(slo))} or more",
                )
