"""How a trial is judged under an objective: the point of its curve that speaks for it, and its rank."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tritongen.autotune.closeness import AGREEMENT, EQUAL
from tritongen.runs.records import Accuracy, LatencyPoint, OutputError, Trial
from tritongen.slo import Slo, parse_slo
from tritongen.spec import ModelSpec, Precision, latency_batch

MIN_GAIN = 0.03
"""A less exact candidate must be at least this much better, however narrow the intervals are:
the interval of a median knows the noise within one process, not that between two."""

CLOSE = 0.15
"""Candidates nearer than this are measured again in alternation: a noisy machine drifts by as much."""

NEAR_BEST = 0.05
"""Throughputs nearer than this to the best count as equal, and on a noisy machine those within the noise: the
larger batch is then taken, since a server has a cost per call that the bare engine does not show."""

_MOST_TAKEN = 0.95
"""Of a larger share nothing follows but that the measurement is worth nothing."""

UNUSABLE = 1e9
"""The error of outputs that cannot be compared at all (NaN, another shape); JSON has no infinity."""

_EXACTNESS = {precision: rank for rank, precision in enumerate(Precision)}


@dataclass(frozen=True)
class Judged:
    """A trial at the point of its curve by which the objective judges it."""

    trial: Trial
    point: LatencyPoint
    meets_slo: bool
    score: float
    """Higher is better: inferences per second, or 1000 / median milliseconds."""

    @property
    def id(self) -> str:
        return self.trial.candidate.id

    @property
    def precision(self) -> Precision:
        return self.trial.candidate.precision

    @property
    def taken(self) -> float:
        """Share of the processor time that other processes had while the point was measured."""
        return min(self.point.cpu_taken or 0.0, _MOST_TAKEN)

    @property
    def undisturbed_score(self) -> float:
        """What the score may have been without the other processes: they slow down by the share they take."""
        return self.score / (1 - self.taken)


@dataclass(frozen=True)
class Goal:
    """The objective, taken apart."""

    text: str
    batch_size: int | None
    """The batch size that latency is judged at; None: throughput."""
    latency_slos: tuple[Slo, ...] = ()
    instances: int | None = None
    """Fixed by the spec; None: what the trials find best."""
    full_batches: bool = False
    """Throughput counts at the largest batch that the SLO allows, since the server is told to fill it."""
    throughput_slos: tuple[Slo, ...] = ()

    @classmethod
    def parse(
        cls,
        objective: str,
        slo: Sequence[str] = (),
        instances: int | None = None,
        *,
        full_batches: bool = False,
    ) -> Goal:
        """From the spec's texts; SpecError for an SLO that cannot be read."""
        slos = [parse_slo(text) for text in slo]
        latencies = tuple(one for one in slos if one.unit == "ms")
        rates = tuple(one for one in slos if one.metric == "throughput")
        return cls(objective, latency_batch(objective), latencies, instances, full_batches, rates)

    @classmethod
    def of(cls, spec: ModelSpec) -> Goal:
        """What a model's spec asks for; SpecError as in `parse`."""
        full_batches = spec.max_batch_size is not None
        return cls.parse(spec.objective, spec.slo, spec.serving.instances, full_batches=full_batches)

    def score(self, point: LatencyPoint) -> float:
        return point.throughput if self.batch_size is None else 1000.0 / max(point.median_ms, 1e-9)


def judge(trial: Trial, goal: Goal) -> Judged:
    """The trial at the point that speaks for it under the goal."""
    points = [p for p in trial.curve if goal.instances in (None, p.instances)] or list(trial.curve)
    if goal.batch_size is not None:
        sizes = [p.batch_size for p in points if p.batch_size <= goal.batch_size]
        size = max(sizes, default=min(p.batch_size for p in points))
        allowed, met = [p for p in points if p.batch_size == size], True
    else:
        fitting = [p for p in points if meets(p, goal.latency_slos)]
        met = bool(fitting)
        size = _batch_for_throughput(fitting, goal) if met else min(p.batch_size for p in points)
        allowed = [p for p in (fitting or points) if p.batch_size == size]
    point = max(allowed, key=lambda p: (goal.score(p), -p.p99_ms, -p.instances, str(p.runtime)))
    return Judged(trial, point, met, goal.score(point))


def _batch_for_throughput(fitting: Sequence[LatencyPoint], goal: Goal) -> int:
    """The batch size that throughput is judged at, of points that leave the SLO possible."""
    if goal.full_batches:
        return max(p.batch_size for p in fitting)
    best = max(fitting, key=lambda p: p.throughput)
    return max(p.batch_size for p in fitting if p.throughput >= best.throughput * (1 - _nearness(p, best)))


def _nearness(point: LatencyPoint, best: LatencyPoint) -> float:
    """How far a throughput may lie behind the best one and count as equal: by noise, within bounds."""
    return min(max(NEAR_BEST, noise(point, best), point.cpu_taken or 0.0), CLOSE)


def noise(one: LatencyPoint, other: LatencyPoint) -> float:
    """Half-width of the 95 % interval of the ratio of two points, from the spreads of both medians."""
    return math.hypot(one.spread, other.spread)


def meets(point: LatencyPoint, slos: Sequence[Slo]) -> bool:
    """Whether the bare engine's latencies at this point leave the SLO possible.

    The curve keeps mean, median and P99: percentiles above the median are held against the P99.
    """
    return all(slo.holds(_value(point, slo)) for slo in slos)


def exactness(trial: Trial) -> tuple[float, ...]:
    """Sort key, most exact first: the precision, then the error that the accuracy gate measured."""
    return _EXACTNESS[trial.candidate.precision], error_percent(trial.accuracy) if trial.accuracy else 0.0


def more_exact(one: Judged, other: Judged) -> bool:
    """Whether `one` is of a more exact precision."""
    return exactness(one.trial)[0] < exactness(other.trial)[0]


def error_percent(accuracy: Accuracy) -> float:
    """What was lost, in percent: points of the metric, or the loss of the output that lost most."""
    if accuracy.basis == "labels":
        return max(0.0, accuracy.loss) if accuracy.loss is not None else UNUSABLE
    return max((_loss_percent(one) for one in accuracy.outputs), default=UNUSABLE)


def _loss_percent(one: OutputError) -> float:
    loss = 100 * (1 - one.value) if one.measure in (AGREEMENT, EQUAL) else 100 * one.value
    return min(loss, UNUSABLE)


def rank(one: Judged) -> tuple[bool, float, str]:
    return not one.meets_slo, -one.score, one.id


def _value(point: LatencyPoint, slo: Slo) -> float:
    if slo.metric == "mean":
        return point.mean_ms
    return point.median_ms if (slo.percentile or 0) <= 50 else point.p99_ms  # noqa: PLR2004
