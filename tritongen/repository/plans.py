"""Plans for several GPUs in one model folder: which ones stay when another is built, and their file names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tritongen.repository.existing import why_other_contract
from tritongen.repository.manifest import BuiltPlan, now

if TYPE_CHECKING:
    from tritongen.repository.existing import Existing
    from tritongen.runs.records import Selection, Trial

FILENAME = "model.plan"
"""Of the only plan."""


@dataclass(frozen=True)
class PlanSet:
    """This build's plan, and the plans for other GPUs that stay beside it."""

    own: BuiltPlan
    carried: tuple[tuple[str, BuiltPlan], ...] = ()
    """(path in the old folder, plan) of each that stays; the plan with its new file name."""
    notes: tuple[str, ...] = ()
    """Why plans for other GPUs could not stay, one sentence each."""

    @property
    def plans(self) -> tuple[BuiltPlan, ...]:
        return (self.own, *(plan for _, plan in self.carried))

    @property
    def filenames(self) -> Mapping[str, str]:
        """Plan file by compute capability; empty for one plan alone."""
        return {plan.compute_capability: plan.file for plan in self.plans} if self.carried else {}


def plan_filename(capability: str) -> str:
    """The file name of one of several plans: `model.cc90.plan` for compute capability 9.0."""
    return f"model.cc{capability.replace('.', '')}.plan"


def built_plan(trial: Trial, selection: Selection) -> BuiltPlan:
    """What the manifest says of the plan that a trial built."""
    artifact = trial.artifact
    if artifact is None:
        raise TypeError("a plan without an artifact")
    return BuiltPlan(
        file=FILENAME,
        digest=artifact.digest,
        candidate=trial.candidate,
        versions=artifact.versions,
        machine=trial.machine,
        created=now(),
        instances=selection.instances,
        accuracy=trial.accuracy,
        curve=trial.curve,
        details=artifact.details,
    )


def plan_set(
    own: BuiltPlan, plugins: Mapping[str, str], existing: Existing | None, source_digest: str, config: Any
) -> PlanSet:
    """The plans that will lie side by side; `config` is the parsed config.pbtxt of this build's plan.

    `plugins`: the digests of this build's plugins, by file name. A plan for another compute capability stays
    if the same ONNX file was built by the same TensorRT with the same profiles, for the same tensors and with
    no other plugins, since all share one config.pbtxt and one server.
    """
    if existing is None:
        return PlanSet(own)
    manifest, notes, kept = existing.manifest, [], []
    for plan in manifest.plans:
        if not plan.compute_capability or plan.compute_capability == own.compute_capability:
            continue
        reason = (
            _why_not(plan, own, manifest.source.digest == source_digest)
            or _why_not_loaded(plan, own, existing, plugins)
            or why_other_contract(existing, config)
        )
        if reason is None:
            kept.append((f"{manifest.version}/{plan.file}", plan))
        else:
            notes.append(
                f"the plan for compute capability {plan.compute_capability} "
                f"({plan.versions.get('gpu', 'unknown GPU')}) goes: {reason}; build again on that GPU"
            )
    if not kept:
        return PlanSet(own, notes=tuple(notes))
    return PlanSet(
        _named(own), tuple((path, _named(plan)) for path, plan in kept), (*notes, *_differences(own, kept))
    )


def _why_not(plan: BuiltPlan, own: BuiltPlan, same_source: bool) -> str | None:
    """Why a plan cannot be served beside `own`, in one clause; None if it can."""
    if not same_source:
        return "it was built from another ONNX file"
    before, after = plan.versions.get("tensorrt"), own.versions.get("tensorrt")
    if before != after:
        return f"it was built by TensorRT {before}, and one server has one TensorRT ({after} here)"
    if plan.details.get("profiles") != own.details.get("profiles"):
        return "it has other optimization profiles, and all plans share one config.pbtxt"
    return None


def _why_not_loaded(
    plan: BuiltPlan, own: BuiltPlan, existing: Existing, plugins: Mapping[str, str]
) -> str | None:
    """Why a server that is told what `own` needs would not load `plan`, in one clause; None if it would."""
    if plan.details.get("version_compatible") and not own.details.get("version_compatible"):
        return (
            "it is version-compatible and this build is not, so that the server is not told to trust its code"
        )
    for name in plan.details.get("plugins", ()):
        entry = existing.manifest.files.get(f"{existing.manifest.version}/{name}")
        if name not in plugins:
            return f"it needs the plugin {name}, and this build was made without"
        if entry is None or entry.digest != plugins[name]:
            return f"it needs another {name} than the plugin that this build was made with"
    return None


def _differences(own: BuiltPlan, kept: Sequence[tuple[str, BuiltPlan]]) -> list[str]:
    """What the shared config.pbtxt takes from this build although another GPU's trials found otherwise."""
    return [
        f"instance count {own.instances} is this GPU's best; for compute capability "
        f"{plan.compute_capability} {plan.instances} was"
        for _, plan in kept
        if plan.instances != own.instances
    ]


def _named(plan: BuiltPlan) -> BuiltPlan:
    return plan.model_copy(update={"file": plan_filename(plan.compute_capability)})
