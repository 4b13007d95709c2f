"""Error against speed: what each candidate loses in accuracy for what it gains, and which are dominated."""

from __future__ import annotations

from collections.abc import Sequence

from tritongen.autotune.judging import UNUSABLE, Goal, Judged, error_percent, judge
from tritongen.runs.records import Outcome, Tradeoff, Trial


def tradeoffs(trials: Sequence[Trial], goal: Goal) -> tuple[Tradeoff, ...]:
    """Every measured candidate, most exact first; on the front if no other is more exact and faster."""
    measured = [
        (error_percent(trial.accuracy), judge(trial, goal))
        for trial in trials
        if trial.outcome is not Outcome.FAILED and trial.curve and trial.accuracy is not None
    ]
    measured = sorted(
        ((error, one) for error, one in measured if error < UNUSABLE),
        key=lambda pair: (pair[0], -pair[1].score, pair[1].id),
    )
    best = 0.0
    found = []
    for error, one in measured:
        found.append(_tradeoff(one, error, on_front=one.score > best))
        best = max(best, one.score)
    return tuple(found)


def _tradeoff(one: Judged, error: float, *, on_front: bool) -> Tradeoff:
    return Tradeoff(
        candidate=one.id,
        error=error,
        median_ms=one.point.median_ms,
        throughput=one.point.throughput,
        batch_size=one.point.batch_size,
        instances=one.point.instances,
        passed=one.trial.outcome is Outcome.PASSED,
        on_front=on_front,
    )
