"""Whether INT8 was worth it on this machine: one sentence with the figures of the build's record."""

from __future__ import annotations

from pathlib import Path

from tritongen.runs.build import ModelBuild
from tritongen.runs.records import Outcome, Tradeoff, Trial
from tritongen.runs.store import RunDirectory, read_record
from tritongen.spec import Precision


def int8_verdict(run: Path) -> str:
    """INT8 against FP32, from the run directory of one model."""
    return tell(read_record(RunDirectory(run).result, ModelBuild))


def tell(build: ModelBuild) -> str:
    """Which of the three happened: INT8 won, INT8 lost on speed, INT8 was not accurate enough."""
    trials = {trial.candidate.id: trial for trial in build.trials}
    int8 = [trial for trial in build.trials if trial.candidate.precision is Precision.INT8]
    measured = {one.candidate: one for one in build.tradeoffs}
    passed = [
        measured[trial.candidate.id]
        for trial in int8
        if trial.outcome is Outcome.PASSED and trial.candidate.id in measured
    ]
    if passed:
        winner = build.selection.winner if build.selection else None
        won = next((one for one in passed if one.candidate == winner), None)
        best = won or max(passed, key=lambda one: one.throughput)
        what = "INT8 won" if won else "INT8 passed the gate and lost on speed"
        return f"{what}: {_speeds(best, build)}, {_accuracies(trials[best.candidate])}."
    if int8:
        closest = min(int8, key=_loss)
        return f"INT8 lost: none of {len(int8)} candidates passed the accuracy gate; {_accuracies(closest)}."
    return "INT8 was not tried."


def _speeds(one: Tradeoff, build: ModelBuild) -> str:
    """The figures of the build's table; where the two were measured in alternation, that ratio as well."""
    fp32 = {trial.candidate.id for trial in build.trials if trial.candidate.precision is Precision.FP32}
    other = next((each for each in build.tradeoffs if each.candidate in fp32 and each.passed), None)
    if other is None:
        return f"{one.throughput:,.0f} inferences/s"
    text = f"{one.throughput:,.0f} inferences/s against FP32's {other.throughput:,.0f} in the table"
    ratio = one.throughput / other.throughput
    for pair in build.selection.comparisons if build.selection else ():
        if {pair.candidate, pair.against} == {one.candidate, other.candidate}:
            ratio = pair.ratio if pair.candidate == one.candidate else 1 / pair.ratio
            return f"{text}, and {ratio:.2f} times FP32's measured in alternation, which counts"
    return f"{text} ({ratio:.2f} times)"


def _accuracies(trial: Trial) -> str:
    accuracy = trial.accuracy
    if accuracy is None or accuracy.value is None or accuracy.reference_value is None:
        return accuracy.summary if accuracy else trial.reason
    return (
        f"{accuracy.metric} {accuracy.value:.2%} on the held-out data against FP32's "
        f"{accuracy.reference_value:.2%} (the gate allows a loss of {accuracy.limit:g})"
    )


def _loss(trial: Trial) -> float:
    loss = trial.accuracy.loss if trial.accuracy else None
    return float("inf") if loss is None else loss
