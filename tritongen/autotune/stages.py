"""The stages of one model's build that run in child processes: preparation, trials, the final comparison."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tritongen.autotune import jobs
from tritongen.autotune.budget import Budget
from tritongen.autotune.child import run_child
from tritongen.autotune.judging import Goal, Judged
from tritongen.autotune.selection import close_call
from tritongen.errors import BuildError, RequirementError, SpecError, TritongenError
from tritongen.graph import BatchStatus
from tritongen.runs.build import Preparation
from tritongen.runs.events import Event, EventSink
from tritongen.runs.records import Comparison, Machine, Record, Trial
from tritongen.runs.store import RunDirectory, read_record, write_record
from tritongen.spec import ModelSpec

DEFAULT_MAX_BATCH_SIZE = 8
_PREPARE_TIMEOUT_S = 1800.0
_COMPARISON_TIMEOUT_S = 600.0
_COMPARISON_S = 30.0
"""What one takes at most, the opening of the engines apart."""
_MOST_COMPARISONS = {"quick": 1, "normal": 4, "thorough": 8}
"""By effort; on a calm machine one or none is needed."""
_FULL = ("No space left on device", "Disk quota exceeded", "File too large", "SIGXFSZ")


@dataclass(frozen=True)
class Setting:
    """What all stages of one model share."""

    name: str
    spec: ModelSpec
    run: RunDirectory
    machine: Machine
    events: EventSink
    effort: str = "normal"
    devices: int = 1
    """GPUs of one model that trials may be spread over."""


def prepare_model(setting: Setting) -> Preparation:
    """Data, shapes and batch axis, looked at in a child; raises what is wrong with them."""
    folder = setting.run.preparation
    setting.events(Event("inspect", "started", "looking at the data and the batch axis", setting.name))
    failure = in_child(setting, folder, jobs.PreparationJob(spec=setting.spec), "preparation:prepare",
                        subject=setting.name, timeout_s=_PREPARE_TIMEOUT_S)  # fmt: skip
    if failure is not None:
        raise BuildError(
            f"{setting.spec.path} and its data could not be looked at: the process that did so {failure}",
            expected="data that can be read, and a model that ONNX Runtime runs on this machine",
            fix=f"read {folder / 'log.txt'}",
        )
    prepared = read_record(folder / "preparation.json", Preparation)
    setting.events(Event("inspect", "finished", prepared.batch_reason, setting.name))
    return prepared


def largest_batch(spec: ModelSpec, *, batched: bool) -> int:
    """`max_batch_size` for a model: the spec's, its default, or 0 where the model does not batch.

    SpecError if latency is to be judged at a batch size beyond it.
    """
    wanted = Goal.parse(spec.objective).batch_size or 1
    if not batched:
        largest = 0
    elif spec.max_batch_size is None:
        largest = max(DEFAULT_MAX_BATCH_SIZE, wanted)
    else:
        largest = spec.max_batch_size
    if wanted > max(1, largest):
        raise SpecError(
            f"the objective {spec.objective} lies beyond the largest batch",
            found=f"max_batch_size {largest}" if batched else "a model that does not batch",
            expected=f"a batch of at most {max(1, largest)}",
            fix=f"use --objective latency@{max(1, largest)}{' or raise --max-batch-size' * batched}",
        )
    return largest


def compare_leaders(
    setting: Setting, trials: Sequence[Trial], preparation: Preparation, goal: Goal, budget: Budget
) -> tuple[Comparison, ...]:
    """Candidates measured in alternation, two at a time, where curves are too close or too noisy to tell.

    The first pair is measured whatever the budget says; how many more depends on the effort.
    """
    shutil.rmtree(setting.run.comparison, ignore_errors=True)
    found: list[Comparison] = []
    tried: set[frozenset[str]] = set()
    while len(tried) < _MOST_COMPARISONS[setting.effort]:
        call = close_call(trials, goal, found, tried)
        if call is None or (tried and not budget.fits([_COMPARISON_S])):
            break
        tried.add(frozenset(one.id for one in call))
        folder = setting.run.comparison / str(len(tried))
        found += filter(None, [_compared(setting, call, preparation, goal, folder)])
    return tuple(found)


def _compared(
    setting: Setting, call: tuple[Judged, Judged], preparation: Preparation, goal: Goal, folder: Path
) -> Comparison | None:
    """Two candidates, measured in alternation in a child; None if that failed."""
    one, other = call
    about = f"{one.id} (batch {one.point.batch_size}) against {other.id} (batch {other.point.batch_size})"
    setting.events(Event("compare", "started", f"too close to tell: {about}", setting.name))
    batched = BatchStatus(preparation.batch_status) is BatchStatus.CONFIRMED
    job = jobs.ComparisonJob(
        spec=setting.spec,
        preparation=preparation,
        max_batch_size=largest_batch(setting.spec, batched=batched),
        by_latency=goal.batch_size is not None,
        contenders=(_contender(setting, one), _contender(setting, other)),
    )
    try:
        failure = in_child(setting, folder, job, "comparison:compare",
                            subject=setting.name, timeout_s=_COMPARISON_TIMEOUT_S)  # fmt: skip
    except RequirementError:
        raise
    except TritongenError as error:  # two at once may need more memory than there is: the curves stand
        failure = f"failed: {error.message}" + (f" ({error.found})" if error.found else "")
    if failure is not None:
        setting.events(Event("compare", "warning", f"{about}: the comparison {failure}", setting.name))
        return None
    found = read_record(folder / "comparison.json", Comparison)
    setting.events(Event("compare", "finished", f"{about}: ratio {found.ratio:.3f} "
                         f"({found.low:.3f} to {found.high:.3f})", setting.name))  # fmt: skip
    return found


def in_child(
    setting: Setting,
    folder: Path,
    job: Record,
    main: str,
    *,
    subject: str,
    timeout_s: float,
    device: int | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> str | None:
    """Run a stage in an emptied folder; why it died, or None. RequirementError if the disk is full.

    `device`: the only GPU that it sees, counted among those that this process sees.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    write_record(folder / jobs.FILENAME, job)
    try:
        failure = run_child(
            f"tritongen.autotune.{main}",
            folder / jobs.FILENAME,
            timeout_s=timeout_s,
            events=setting.events,
            subject=subject,
            device=device,
            cancelled=cancelled,
        )
        reason = failure.reason if failure else None
    except BuildError as error:
        if not _is_full(f"{error.message} {error.found}"):
            raise
        reason = error.found
    if reason is not None and _is_full(reason):
        raise RequirementError(
            f"{folder} could not be written: the disk is full",
            found=reason,
            fix="make room, or choose another folder with --run-dir",
        )
    return reason


def _is_full(text: str) -> bool:
    return any(sign in text for sign in _FULL)


def _contender(setting: Setting, one: Judged) -> jobs.Contender:
    trial = one.trial
    if trial.artifact is None:
        raise BuildError(f"{one.id} passed without an artifact")
    return jobs.Contender(
        candidate=one.id,
        folder=setting.run.trial(one.id).absolute(),
        engine=trial.candidate.engine,
        artifact=trial.artifact,
        runtime=one.point.runtime,
        instances=one.point.instances,
        batch_size=one.point.batch_size,
    )
