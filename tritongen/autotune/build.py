"""Models from their ONNX files to a selection, every risky step in a child; then they are handed on."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from tritongen.errors import InputError, RequirementError, TritongenError
from tritongen.files import digest_json, shortened
from tritongen.runs import fingerprint
from tritongen.runs.build import Build, ModelBuild
from tritongen.runs.events import Event, EventSink
from tritongen.runs.journal import journal
from tritongen.runs.lock import exclusive
from tritongen.runs.records import Machine
from tritongen.runs.store import RunDirectory, read_record, write_record
from tritongen.spec import ModelSpec, Spec, is_function

if TYPE_CHECKING:
    from tritongen.autotune.winner import SelectedModel


_LOCK = ".lock"


@dataclass(frozen=True)
class Published:
    """Where a model went."""

    folder: Path
    version: int | None = None
    notes: tuple[str, ...] = ()


Adapt = Callable[[ModelSpec, RunDirectory], tuple[Path, tuple[str, ...]]]
"""The ONNX file in a form that the serving target reads, and what was changed for that."""

Publish: TypeAlias = "Callable[[SelectedModel, EventSink], Published]"
"""Writes a selected model into the repository."""


@dataclass(frozen=True)
class Plan:
    """What holds for all models of a build."""

    spec: Spec
    adapt: Adapt
    publish: Publish
    machine: Machine
    fresh: bool = False
    """Measure everything again."""
    effort: str = "normal"
    """How long each point is measured: a key of `latency.EFFORTS`."""


def build_models(
    spec: Spec,
    adapt: Adapt,
    publish: Publish,
    events: EventSink,
    *,
    fresh: bool = False,
    effort: str = "normal",
) -> Build:
    """Build the models of a spec one after the other; one that fails does not keep the others from it.

    KeyboardInterrupt passes through: finished trials are kept. RequirementError if another build is at work
    in the run directory.
    """
    from tritongen.autotune.machine import current_machine

    plan = Plan(spec, adapt, publish, current_machine(), fresh, effort)
    with _explained(spec.run_dir):
        spec.run_dir.mkdir(parents=True, exist_ok=True)
        (spec.run_dir / _LOCK).touch()
    with exclusive(spec.run_dir / _LOCK):
        return Build(machine=plan.machine, models=tuple(_build(name, plan, events) for name in spec.models))


def _build(name: str, plan: Plan, events: EventSink) -> ModelBuild:
    """One model, with whatever went wrong as its outcome."""
    started = time.perf_counter()
    try:
        return _build_model(name, plan, events, started)
    except TritongenError as error:
        if len(plan.spec.models) > 1:
            events(Event("build", "failed", error.message, name))
        seconds = time.perf_counter() - started
        return ModelBuild(
            name=name, status="failed", seconds=seconds, error=str(error), exit_code=error.exit_code
        )


def _build_model(name: str, plan: Plan, events: EventSink, started: float) -> ModelBuild:
    """`started`: when, by `time.perf_counter`."""
    # What is heavy is imported once it is needed: recognising an unchanged model must take no time.
    model, run = plan.spec.models[name], RunDirectory(plan.spec.run_dir / name)
    settings = _settings(name, plan)
    before = None if plan.fresh else _unchanged(run, settings)
    if before is not None:
        seconds = time.perf_counter() - started
        return before.model_copy(update={"status": "unchanged", "seconds": seconds})
    from tritongen.autotune.changes import narrower_notes
    from tritongen.autotune.stages import Setting
    from tritongen.autotune.winner import choose_winner

    with _writable(run, events) as recorded:
        run.fingerprint.unlink(missing_ok=True)
        if plan.fresh:
            _forget(run)
        write_record(run.spec, model)
        path, adaptation = plan.adapt(model, run)
        readable = model.model_copy(update={"path": path})
        setting = Setting(name, readable, run, plan.machine, recorded, plan.effort)
        selected, preparation = choose_winner(setting)
        published = plan.publish(replace(selected, adaptation=adaptation), recorded)
        outcome = ModelBuild(
            name=name,
            status="built",
            seconds=time.perf_counter() - started,
            repository=str(published.folder),
            version=published.version,
            batching=preparation.batch_reason,
            selection=selected.selection,
            trials=tuple(selected.trials.values()),
            tradeoffs=selected.tradeoffs,
            notes=(*published.notes, *narrower_notes(run, selected.selection)),
        )
        write_record(run.result, outcome)
        # What did not fit into the budget is tried when the same command runs again.
        roots = None if selected.left_out else _roots(model)
        if roots is not None:
            write_record(run.fingerprint, fingerprint.take(settings, roots, published.folder))
    return outcome


def _unchanged(run: RunDirectory, settings: str) -> ModelBuild | None:
    """The last build, if the same build would come out again."""
    from tritongen.autotune.changes import made_elsewhere

    # A plan is made for what its engine finds, which NVML and the installed packages need not show.
    if not fingerprint.unchanged(run.fingerprint, settings) or made_elsewhere(run):
        return None
    try:
        return read_record(run.result, ModelBuild)
    except (OSError, TritongenError):  # an interrupted write, or a record of another version
        return None


def _settings(name: str, plan: Plan) -> str:
    """Digest of what was asked for, of where it goes, and of the machine."""
    from tritongen.autotune.machine import identity

    asked = plan.spec.models[name].model_dump(mode="json")
    places = [str(plan.spec.repository.absolute()), str(Path.cwd())]
    return digest_json([name, asked, plan.effort, places, identity(plan.machine)])


def _roots(spec: ModelSpec) -> list[Path] | None:
    """The files that a build depends on; None if a user's function brings data, which no file stamp shows."""
    from tritongen.autotune.trials import metric_file
    from tritongen.graph import inspect_model

    data = [source for source in (spec.data.calibration, spec.data.validation) if source is not None]
    if any(is_function(source) for source in data):
        return None
    files = list(map(Path, data))
    for path in filter(None, (spec.path, spec.accuracy.reference)):
        files += [path, *(path.parent / name for name in inspect_model(path).external_data)]
    files += spec.tensorrt.plugins
    files += [path for path in (spec.serving.template, metric_file(spec)) if path is not None]
    return files


def _forget(run: RunDirectory) -> None:
    """Let every trial be measured again."""
    for record in run.root.glob("trials/*/trial.json"):
        record.unlink()


@contextmanager
def _writable(run: RunDirectory, events: EventSink) -> Iterator[EventSink]:
    """The model's run directory, made, its journal open; what the file system refuses is explained."""
    with _explained(run.root):
        run.root.mkdir(parents=True, exist_ok=True)
        with journal(run.events, events) as recorded:
            yield recorded


@contextmanager
def _explained(folder: Path) -> Iterator[None]:
    """OSError → RequirementError; InputError where a file is in the way of `folder`."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise InputError(
                f"the folder of this build's files, {shortened(folder)}, cannot be made",
                found=error.strerror,
                fix="choose a folder with a shorter name with --run-dir",
            ) from error
        in_the_way = isinstance(error, (FileExistsError, NotADirectoryError))
        raise (InputError if in_the_way else RequirementError)(
            f"a file of this build could not be read or written: {error.strerror or error}",
            found=str(error.filename or folder),
            expected=f"a disk with room, and a folder {folder} that this user may write to",
            fix="move what is in the way, or choose another folder with --run-dir"
            if in_the_way
            else "make room or set its permissions, or choose another folder with --run-dir",
        ) from error
