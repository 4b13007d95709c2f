"""Whether INT8 was worth it on this machine: one sentence from a build's records, with its numbers."""

from __future__ import annotations

from pathlib import Path

from tritongen.runs.records import LatencyPoint, Outcome, Selection, Trial
from tritongen.runs.store import RunDirectory, read_record
from tritongen.spec import Precision


def int8_verdict(run: Path) -> str:
    """INT8 against FP32, from the run directory of one model."""
    directory = RunDirectory(run)
    selection = read_record(directory.selection, Selection)
    trials = [read_record(path, Trial) for path in sorted((run / "trials").glob("*/trial.json"))]
    return tell(trials, selection)


def tell(trials: list[Trial], selection: Selection) -> str:
    """Which of the three happened: INT8 won, INT8 lost on speed, INT8 was not accurate enough."""
    int8 = [trial for trial in trials if trial.candidate.precision is Precision.INT8]
    winner = next(trial for trial in trials if trial.candidate.id == selection.winner)
    fp32 = next((trial for trial in trials if trial.candidate.precision is Precision.FP32), winner)
    passed = [trial for trial in int8 if trial.outcome is Outcome.PASSED and trial.curve]
    if winner in passed:
        return f"INT8 won: {_speeds(winner, fp32, selection)}, {_accuracies(winner)}."
    if passed:
        best = max(passed, key=lambda trial: _peak(trial).throughput)
        return (
            f"INT8 passed the gate and lost on speed: {_speeds(best, fp32, selection)}, {_accuracies(best)}."
        )
    if int8:
        closest = min(int8, key=_loss)
        return f"INT8 lost: none of {len(int8)} candidates passed the accuracy gate; {_accuracies(closest)}."
    return "INT8 was not tried."


def _speeds(one: Trial, other: Trial, selection: Selection) -> str:
    for pair in selection.comparisons:  # measured in alternation: this is what the selection went by
        if pair.candidate == one.candidate.id and "fp32" in pair.against:
            return f"{pair.ratio:.2f} times FP32's inferences/s, measured in alternation"
    a, b = _peak(one), _peak(other)
    return (
        f"{a.throughput:,.0f} inferences/s at batch {a.batch_size} against FP32's {b.throughput:,.0f} at "
        f"batch {b.batch_size} ({a.throughput / b.throughput:.2f} times)"
    )


def _accuracies(trial: Trial) -> str:
    accuracy = trial.accuracy
    if accuracy is None or accuracy.value is None or accuracy.reference_value is None:
        return accuracy.summary if accuracy else trial.reason
    return (
        f"{accuracy.metric} {accuracy.value:.2%} on the held-out data against FP32's "
        f"{accuracy.reference_value:.2%} (the gate allows a loss of {accuracy.limit:g})"
    )


def _peak(trial: Trial) -> LatencyPoint:
    return max(trial.curve, key=lambda point: point.throughput)


def _loss(trial: Trial) -> float:
    loss = trial.accuracy.loss if trial.accuracy else None
    return float("inf") if loss is None else loss
