"""TensorRT's parser is asked first: a graph that it refuses costs seconds, not a build for each candidate."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tritongen.autotune.jobs import PreparationJob
from tritongen.autotune.stages import in_child
from tritongen.engines import VARIANTS, load_engine
from tritongen.errors import BuildError, ModelError, RequirementError
from tritongen.runs.events import Event, EventSink
from tritongen.runs.store import read_record

if TYPE_CHECKING:
    from tritongen.autotune.stages import Setting
    from tritongen.engines import Engine

_TIMEOUT_S = 600.0


def accepting_engine(setting: Setting, engine: Engine) -> tuple[Engine, tuple[str, ...]]:
    """The engine, or where TensorRT was chosen by `auto` and refuses the graph the next one, with a note.

    ModelError that names the refused nodes where TensorRT was asked for.
    """
    if engine.name != "tensorrt":
        return engine, ()
    events, folder = setting.events, setting.run.root / "parser"
    events(Event("inspect", "started", "asking TensorRT's parser", setting.name))
    job = PreparationJob(spec=setting.spec)
    try:
        in_child(setting, folder, job, "parsing:ask", subject=setting.name, timeout_s=_TIMEOUT_S)
    except ModelError as refusal:
        if setting.spec.engine != "auto":
            raise
        other = next_engine()
        return other, (f"{refusal.message} ({_first_line(refusal)}): {other.name} takes its place",)
    except (BuildError, RequirementError) as error:
        # The first trial meets it again, and its record explains it.
        events(Event("inspect", "warning", f"{error.message} ({error.found})", setting.name))
    return engine, ()


def next_engine() -> Engine:
    """ONNX Runtime on the best execution provider that it has here."""
    engines = [load_engine(name) for name in (*VARIANTS, "onnxruntime")]
    return next((engine for engine in engines if engine.unavailable_reason() is None), engines[-1])


def ask(job_file: Path, events: EventSink) -> None:  # noqa: ARG001
    """In a child process: ModelError if the parser refuses the model of the job."""
    from tritongen.engines.tensorrt.report import check_graph

    spec = read_record(job_file, PreparationJob).spec
    report = check_graph(spec.path, spec.tensorrt.plugins)
    if report.problems:
        raise report.refusal(spec.path)


def _first_line(error: ModelError) -> str:
    lines = str(error.found).splitlines()
    more = f" and {len(lines) - 1} more" if len(lines) > 1 else ""
    return lines[0].strip() + more
