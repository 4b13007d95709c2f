"""What is tried once the first trials are in: mixed precision where INT8 failed the accuracy gate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tritongen.autotune.candidates import RANGES, of_precision
from tritongen.autotune.jobs import MixingJob
from tritongen.autotune.judging import MIN_GAIN, UNUSABLE, Goal, Judged, error_percent, judge, rank
from tritongen.autotune.mixing import FILENAME, held_nodes
from tritongen.autotune.selection import selectable
from tritongen.autotune.stages import in_child, largest_batch
from tritongen.autotune.trial import recipe_of
from tritongen.autotune.trials import Search, Tried, run_trials
from tritongen.errors import DataError, RequirementError, SpecError, TritongenError
from tritongen.files import digest_json
from tritongen.precision.recipe import Int8Recipe
from tritongen.runs.events import Event
from tritongen.runs.records import Candidate, Outcome, Sensitivity, Trial
from tritongen.runs.store import read_record
from tritongen.spec import Precision

if TYPE_CHECKING:
    from tritongen.engines import Engine

_TIMEOUT_S = 1800.0
_BLOCKS = {"quick": 8, "normal": 16, "thorough": 48}
"""At most so many blocks are looked at, by effort."""

_MIXTURES = {"quick": 1, "normal": 2, "thorough": 4}
"""At most so many mixtures are built, by effort: the fewest blocks held, and more while the gate fails."""


def mixtures(search: Search, trials: Sequence[Trial], goal: Goal) -> Tried:
    """Where INT8 failed the gate: the INT8 candidate with the fewest blocks held in floating point.

    Nothing where INT8 passed or was not tried; a note where holding back cannot help.
    """
    base = base_for_mixing(search.engine, trials, goal)
    if base is None or isinstance(base, str):
        return Tried(notes=(base,) if base else ())
    found = _sensitivity(search, base)
    if found is None:
        return Tried(left_out=(f"mixtures of {base.candidate.id}",))
    if isinstance(found, str):
        return Tried(notes=(found,))
    if found.held is None:
        rest = "FP32" if search.engine.name == "onnxruntime" else "FP16"
        count = len(found.blocks)
        why = f"no mixture of INT8 and {rest} passes: one block of {count} in INT8 already fails the gate"
        return Tried(notes=(why,))
    return _try(search, base, found)


def instead_of_fp16(search: Search, trials: Sequence[Trial]) -> Tried:
    """BF16 where FP16 was tried and did not pass (it ends at 65,504), unless the spec lists precisions."""
    listed = search.setting.spec.precision is not None
    if listed or not fp16_fell_through(trials) or Precision.BF16 not in search.engine.precisions():
        return Tried()
    search.setting.events(Event("build", "note", "fp16 did not pass: bf16 is tried", search.setting.name))
    candidates = of_precision(search.engine, search.graph, Precision.BF16)
    return run_trials(search, candidates, fallback=False)


def fp16_fell_through(trials: Sequence[Trial]) -> bool:
    """Whether FP16 was tried and no candidate of it can be selected."""
    fp16 = [trial for trial in trials if trial.candidate.precision is Precision.FP16]
    return bool(fp16) and not any(map(selectable, fp16))


def second_builds(search: Search, trials: Sequence[Trial], goal: Goal) -> Tried:
    """Other builds of the leading candidate, as its engine proposes: fresh ones, and single tuning axes."""
    passed = [judge(trial, goal) for trial in trials if selectable(trial)]
    if not passed:
        return Tried()
    leader = min(passed, key=rank).trial.candidate
    others = [
        leader.model_copy(update={"id": f"{leader.id}-{name}", "options": {**leader.options, **changes}})
        for name, changes in search.engine.variations(leader)
    ]
    return run_trials(search, others, fallback=False)


def base_for_mixing(engine: Engine, trials: Sequence[Trial], goal: Goal) -> Trial | str | None:
    """The INT8 trial to start from; the reason why a mixture gains nothing; None where there is no need."""
    int8 = [trial for trial in trials if trial.candidate.precision is Precision.INT8]
    if any(selectable(trial) for trial in int8):
        return None
    failed = [trial for trial in int8 if _can_be_mixed(engine, trial)]
    if not failed:
        return None
    passed = [judge(trial, goal) for trial in trials if selectable(trial)]
    bar = max((one.score for one in passed), default=0.0) * (1 + MIN_GAIN)
    faster = [one for one in (judge(trial, goal) for trial in failed) if one.score > bar]
    if not faster:
        best = max(passed, key=lambda one: one.score)
        return f"no mixed precision is looked for: even INT8 throughout is no faster than {best.id}"
    return min(faster, key=_promise).trial


def _promise(one: Judged) -> tuple[float, float]:
    accuracy = one.trial.accuracy
    return (error_percent(accuracy) if accuracy else UNUSABLE, -one.score)


def _can_be_mixed(engine: Engine, trial: Trial) -> bool:
    if trial.outcome is not Outcome.REJECTED or not trial.curve or RANGES not in trial.candidate.options:
        return False
    recipe = recipe_of(engine, trial.candidate)
    return isinstance(recipe, Int8Recipe) and not recipe.implicit


def _sensitivity(search: Search, base: Trial) -> Sensitivity | str | None:
    """From an earlier run, or from a child; the note on why there is none; None: no room in the budget."""
    setting, job = search.setting, _mixing_job(search, base)
    folder = setting.run.sensitivity
    try:
        known = read_record(folder / FILENAME, Sensitivity)
        if known.key == job.key:
            return known
    except (OSError, TritongenError):
        pass
    allowed_s = search.budget.allowed_s([base.seconds])
    if allowed_s is None:
        return None
    about = f"{base.candidate.id} failed the gate: looking for the blocks that INT8 costs most"
    setting.events(Event("sensitivity", "started", about, setting.name))
    try:
        failure = in_child(
            setting, folder, job, "mixing:analyse",
            subject=setting.name, timeout_s=min(_TIMEOUT_S, allowed_s),
        )  # fmt: skip
    except (DataError, SpecError, RequirementError):
        raise
    except TritongenError as error:
        failure = error.message
    if failure is not None and math.isfinite(allowed_s) and search.budget.left_s() <= 0:
        setting.events(Event("sensitivity", "skipped", "ended before it was done", setting.name))
        return None
    if failure is not None:
        setting.events(Event("sensitivity", "warning", failure, setting.name))
        return f"no mixed precision was found: the sensitivity analysis {failure}"
    search.budget.progressed()
    found = read_record(folder / FILENAME, Sensitivity)
    setting.events(Event("sensitivity", "finished", _told(found), setting.name))
    return found


def _mixing_job(search: Search, base: Trial) -> MixingJob:
    setting = search.setting
    job = MixingJob(
        key="",
        candidate=base.candidate,
        spec=setting.spec,
        preparation=search.preparation,
        max_batch_size=largest_batch(setting.spec, batched=search.graph.batched),
        blocks=_BLOCKS[setting.effort],
        effort=setting.effort,
        # ONNX Runtime opens a file in no time: it is judged as it will be served.
        simulated=search.engine.name != "onnxruntime",
        calibration_folder=setting.run.calibration.absolute(),
    )
    return job.model_copy(update={"key": digest_json([base.key, job.blocks, job.simulated])})


def _told(found: Sensitivity) -> str:
    if found.held is None:
        return f"{len(found.blocks)} blocks looked at: no mixture passes"
    return f"{found.held} of {len(found.blocks)} blocks must stay in floating point"


def _try(search: Search, base: Trial, found: Sensitivity) -> Tried:
    """Build and measure mixtures, each holding back more, until one passes on the engine itself."""
    tried = Tried()
    held = found.held or 1
    for _ in range(_MIXTURES[search.setting.effort]):
        tried += run_trials(search, [mixed(base.candidate, found, held)], fallback=False)
        if tried.left_out or any(map(selectable, tried.trials)) or held >= len(found.blocks) - 1:
            break
        # What passed in ONNX Runtime failed in the engine: half as many blocks more.
        held = min(len(found.blocks) - 1, max(held + 1, (3 * held + 1) // 2))
    return tried


def mixed(base: Candidate, found: Sensitivity, held: int) -> Candidate:
    """The candidate with the `held` dearest blocks in floating point."""
    identifier = f"{base.id}-mixed{held}of{len(found.blocks)}"
    nodes = dict.fromkeys([*base.held, *held_nodes(found, held)])
    return base.model_copy(update={"id": identifier, "held": tuple(nodes)})
