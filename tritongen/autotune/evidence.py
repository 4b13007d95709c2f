"""The other evidence for a precision that a built file does not show: its outputs and speed beside FP32's.

Equal bits are no accident where the numbers have more digits than the lower precision could give. Bits that
differ prove less: two FP32 builds with other kernels differ too, by far less than a lower precision does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tritongen.autotune.judging import Goal, judge
from tritongen.autotune.sensitivity import relative_l2
from tritongen.autotune.trial import FILENAME, REFERENCE
from tritongen.autotune.trials import Search, Tried
from tritongen.runs.events import Event
from tritongen.runs.records import Outcome, Trial
from tritongen.runs.store import write_record
from tritongen.spec import Precision

Arrays = Mapping[str, NDArray[np.generic]]

_AS_NEAR_AS_FP32 = 1e-5
"""Relative L2 below which two FP32 builds may lie apart; FP16 and TF32 round to 5e-4."""
_BEYOND_HALF = 0x1FFF
"""The bits of an FP32 mantissa that neither FP16 nor TF32 has, and BF16 less so."""
_LOW_SHARE = 0.5


@dataclass(frozen=True)
class Likeness:
    """Two artifacts' outputs for the same inputs."""

    equal: bool
    """In every bit."""
    telling: bool
    """Some numbers have digits that no lower precision could have given."""
    distance: float
    """Relative L2."""


def weighed(search: Search, tried: Tried, goal: Goal) -> Tried:
    """The trials, each OPAQUE one with what outputs and speed say; FAILED if they are those of FP32."""
    trials = tuple(_weighed(search, trial, tried.trials, goal) for trial in tried.trials)
    return Tried(trials, tried.left_out, tried.notes)


def doubt(trial: Trial) -> str | None:
    """What is to be said of a winner whose precision is OPAQUE, or in less than half of its layers."""
    told, name = _told(trial), trial.candidate.id
    if told.get("evidence") == "OPAQUE":
        beside = told.get("beside", "there is no plan in FP32 to hold its outputs against")
        return f"{name}: that it runs in {_asked(trial)} is not proven: {told.get('summary')}; {beside}"
    if told.get("evidence") == "PROVEN" and told.get("share", 1.0) < _LOW_SHARE:
        return f"{name}: only {told.get('summary')}"
    return None


def likeness(one: Arrays, other: Arrays) -> Likeness | None:
    """How two references (inputs and outputs) compare; None if they do not answer the same inputs."""
    if set(one) != set(other) or not all(_equal(one[name], other[name]) for name in one if _is_input(name)):
        return None
    outputs = [name for name in one if not _is_input(name)]
    if not outputs or any(one[name].shape != other[name].shape for name in outputs):
        return None
    numbers = [one[name] for name in outputs if one[name].dtype == np.float32]
    return Likeness(
        equal=all(_equal(one[name], other[name]) for name in outputs),
        telling=any(
            bool((array.view(np.uint32)[np.isfinite(array)] & _BEYOND_HALF).any()) for array in numbers
        ),
        distance=relative_l2([{n: one[n] for n in outputs}], [{n: other[n] for n in outputs}]),
    )


def _weighed(search: Search, trial: Trial, trials: Sequence[Trial], goal: Goal) -> Trial:
    told = _told(trial)
    if trial.outcome is Outcome.FAILED or trial.artifact is None or told.get("evidence") != "OPAQUE":
        return trial
    run = search.setting.run
    own = _reference(run.trial(trial.candidate.id))
    found = [
        (other, alike)
        for other in trials
        if other.candidate.precision is Precision.FP32 and _asked(other) != _asked(trial)
        if (alike := likeness(own, _reference(run.trial(other.candidate.id)))) is not None
    ]
    if not found:
        return trial
    same = [pair for pair in found if pair[1].equal and pair[1].telling]
    absent, (other, alike) = bool(same), (same or found)[0]
    beside = f"{outputs_text(other, alike)}, at {_speed(trial, other, goal)} its speed"
    changes: dict[str, Any] = {}
    if absent:
        reason = f"{_asked(trial)} is not in it: {beside} ({told.get('summary')})"
        changes = {"outcome": Outcome.FAILED, "reason": reason}
    told = {**told, "beside": beside, **({"evidence": "ABSENT"} if absent else {})}
    details = {**trial.artifact.details, "precision": told}
    changes["artifact"] = trial.artifact.model_copy(update={"details": details})
    new = trial.model_copy(update=changes)
    if new != trial:
        write_record(run.trial(trial.candidate.id) / FILENAME, new)
    if absent:
        search.setting.events(Event("trial", "failed", new.reason, trial.candidate.id))
    return new


def outputs_text(other: Trial, alike: Likeness) -> str:
    """How the outputs compare with another trial's, as a clause."""
    name = other.candidate.id
    if alike.equal and alike.telling:
        return f"every bit of its outputs is that of {name}"
    if alike.equal:
        return f"its outputs equal those of {name}, and are too round to tell"
    words = f"its outputs differ from those of {name} by {100 * alike.distance:.2g} % (relative L2)"
    if alike.distance < _AS_NEAR_AS_FP32:
        words += ", no more than those of two FP32 builds may"
    return words


def _speed(trial: Trial, other: Trial, goal: Goal) -> str:
    if not trial.curve or not other.curve:
        return "an unmeasured share of"
    return f"{judge(trial, goal).score / max(judge(other, goal).score, 1e-9):.2f} ×"


def _asked(trial: Trial) -> str:
    """`tf32`, or the candidate's precision."""
    return str(_told(trial).get("asked", trial.candidate.precision))


def _told(trial: Trial) -> dict[str, Any]:
    """What the engine found out about the precision of its artifact (`tritongen.engines.tensorrt`)."""
    told = trial.artifact.details.get("precision") if trial.artifact else None
    return told if isinstance(told, dict) else {}


def _reference(folder: Path) -> dict[str, NDArray[np.generic]]:
    try:
        with np.load(folder / REFERENCE) as stored:
            return dict(stored)
    except OSError:
        return {}


def _is_input(name: str) -> bool:
    return name.startswith("input/")


def _equal(one: NDArray[np.generic], other: NDArray[np.generic]) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
