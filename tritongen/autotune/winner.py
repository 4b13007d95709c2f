"""One model, from its ONNX file to its winner: inspect, prepare, try, compare, select."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from tritongen.autotune import jobs, stages
from tritongen.autotune.budget import Budget
from tritongen.autotune.candidates import RANGES, SearchSpace, search_space
from tritongen.autotune.changes import change_notes
from tritongen.autotune.evidence import doubt, weighed
from tritongen.autotune.follow_ups import instead_of_fp16, mixtures, second_builds
from tritongen.autotune.gpu_watch import unwatched
from tritongen.autotune.judging import Goal
from tritongen.autotune.parsing import accepting_engine
from tritongen.autotune.selection import select
from tritongen.autotune.stages import Setting
from tritongen.autotune.tradeoff import tradeoffs
from tritongen.autotune.trials import Search, Tried, check_memory, run_trials
from tritongen.engines import ENGINE_NAMES, Engine, engine_name, load_engine
from tritongen.errors import RequirementError
from tritongen.graph import Graph, inspect_model
from tritongen.runs.build import Preparation
from tritongen.runs.events import Event
from tritongen.runs.records import Candidate, Selection, Tradeoff, Trial
from tritongen.runs.store import RunDirectory, write_record
from tritongen.shapes import ResolvedInput
from tritongen.spec import ModelSpec


@dataclass(frozen=True)
class SelectedModel:
    """All that is known of a model once its winner is chosen."""

    name: str
    spec: ModelSpec
    graph: Graph
    """With the batch axis confirmed or ruled out."""
    inputs: tuple[ResolvedInput, ...]
    selection: Selection
    trials: Mapping[str, Trial]
    """By candidate."""
    engine: Engine
    run: RunDirectory
    adaptation: tuple[str, ...] = ()
    """What was changed in the ONNX file for the serving target, one sentence each."""
    tradeoffs: tuple[Tradeoff, ...] = ()
    left_out: tuple[str, ...] = ()
    """Candidates that did not fit into the build budget."""

    @property
    def winner(self) -> Trial:
        return self.trials[self.selection.winner]


def choose_winner(setting: Setting) -> tuple[SelectedModel, Preparation]:
    """The selected model, and how it was prepared; BuildError, among others, if no trial passed."""
    spec = setting.spec
    engine, graph, preparation, refusals = _prepared(setting)
    space = _space(spec, engine, graph, preparation)
    gpus = engine.devices()
    devices, aside = usable_devices(gpus)
    setting = replace(setting, devices=devices)
    notes = [*change_notes(setting.run, engine.versions()), *refusals, *space.notes]
    notes += [
        *_data_notes(spec, graph),
        *_batching_notes(spec, graph),
        *idle_settings(spec, engine.name),
        *aside,
        *unwatched(gpus),
    ]
    if any(RANGES in one.options for one in space.candidates):
        notes += preparation.warnings
    _tell(setting, notes)
    goal = Goal.of(spec)
    search = Search(setting, engine, graph, preparation, Budget(spec.build_budget_minutes))
    check_memory(search)
    tried = _tried(search, space.candidates, goal)
    more = [*tried.notes, *_budget_notes(search.budget, tried.left_out)]
    _tell(setting, more)
    selection = _selection(search, tried.trials, goal, [*notes, *more])
    trials = {trial.candidate.id: trial for trial in tried.trials}
    doubts = tuple(filter(None, [doubt(trials[selection.winner])]))
    _tell(setting, doubts)
    selection = selection.model_copy(update={"notes": (*selection.notes, *doubts)})
    write_record(setting.run.selection, selection)
    setting.events(Event("select", "finished", f"{selection.winner}: {selection.reason}", setting.name))
    selected = SelectedModel(
        name=setting.name,
        spec=spec,
        graph=graph,
        inputs=jobs.resolved_inputs(graph, preparation),
        selection=selection,
        trials=trials,
        engine=engine,
        run=setting.run,
        tradeoffs=tradeoffs(tried.trials, goal),
        left_out=tried.left_out,
    )
    return selected, preparation


def _prepared(setting: Setting) -> tuple[Engine, Graph, Preparation, tuple[str, ...]]:
    """The configured engine, the prepared graph, how it was prepared, and why it is not the first engine."""
    spec = setting.spec
    engine = find_engine(engine_name(spec.engine, spec.execution_provider))
    inspect_model(spec.path)  # complain about the file before any process is started
    engine, refusals = accepting_engine(setting, engine)
    preparation = stages.prepare_model(setting)
    graph = jobs.prepared_graph(spec, preparation)
    largest = stages.largest_batch(spec, batched=graph.batched)
    inputs = jobs.resolved_inputs(graph, preparation)
    return engine.configured(spec, setting.effort).with_shapes(inputs, largest), graph, preparation, refusals


def _space(spec: ModelSpec, engine: Engine, graph: Graph, preparation: Preparation) -> SearchSpace:
    return search_space(
        engine,
        graph,
        precisions=spec.precision,
        calibrated=preparation.calibration is not None,
        validated=preparation.validation is not None,
        has_reference=spec.accuracy.reference is not None,
    )


def _tried(search: Search, candidates: Sequence[Candidate], goal: Goal) -> Tried:
    """All candidates, and what their trials suggest to try in addition."""
    tried = weighed(search, run_trials(search, candidates), goal)
    tried = weighed(search, tried + instead_of_fp16(search, tried.trials), goal)
    tried = weighed(search, tried + mixtures(search, tried.trials, goal), goal)
    return weighed(search, tried + second_builds(search, tried.trials, goal), goal)


def _selection(search: Search, trials: Sequence[Trial], goal: Goal, notes: Sequence[str]) -> Selection:
    setting, spec = search.setting, search.setting.spec
    return select(
        trials,
        objective=spec.objective,
        slo=spec.slo,
        max_batch_size=stages.largest_batch(spec, batched=search.graph.batched),
        max_batch_size_is_asked_for=spec.max_batch_size is not None,
        instances=spec.serving.instances,
        comparisons=stages.compare_leaders(setting, trials, search.preparation, goal, search.budget),
        notes=notes,
    )


def _tell(setting: Setting, notes: Iterable[str]) -> None:
    for note in notes:
        setting.events(Event("build", "note", note, setting.name))


def _budget_notes(budget: Budget, left_out: Sequence[str]) -> Iterator[str]:
    yield from filter(None, [budget.exceeded()])
    if left_out:
        yield budget.not_tried(left_out)


def find_engine(wanted: str) -> Engine:
    """The engine by its name, or the first usable one for "auto"; RequirementError if there is none."""
    reasons: list[str] = []
    for name in ENGINE_NAMES if wanted == "auto" else (wanted,):
        try:
            engine = load_engine(name)
        except RequirementError as error:
            if wanted != "auto":
                raise
            reasons.append(error.message)
            continue
        reason = engine.unavailable_reason()
        if reason is None:
            return engine
        reasons.append(reason)
    raise RequirementError(
        "no engine works on this machine" if wanted == "auto" else f"engine '{wanted}' does not work here",
        found="; ".join(reasons),
        fix="`tritongen doctor` names what is missing",
    )


def usable_devices(names: Sequence[str]) -> tuple[int, tuple[str, ...]]:
    """(over how many GPUs trials may be spread, what is to be said about it)."""
    if len(set(names)) > 1:
        told = f"{len(names)} GPUs of different models ({', '.join(names)}): only the first is used, since"
        return 1, (f"{told} what one measures does not hold on another; CUDA_VISIBLE_DEVICES chooses",)
    return max(1, len(names)), ((f"trials are spread over {len(names)} × {names[0]}",) if names[1:] else ())


def _data_notes(spec: ModelSpec, graph: Graph) -> Iterator[str]:
    if spec.data.validation is None and spec.data.calibration is not None and not graph.quantized:
        yield "accuracy is judged on the calibration data, since there are no validation data"


def _batching_notes(spec: ModelSpec, graph: Graph) -> Iterator[str]:
    if not graph.batched and spec.max_batch_size:
        yield f"max_batch_size {spec.max_batch_size} was asked for and is not used: {graph.batch.reason}"


def idle_settings(spec: ModelSpec, engine: str) -> tuple[str, ...]:
    """The note on settings of TensorRT's plans that another engine leaves aside."""
    given = sorted(spec.tensorrt.model_dump(exclude_defaults=True))
    if not given or engine == "tensorrt":
        return ()
    return (f"tensorrt: {', '.join(given)} without effect: the engine is {engine}",)
