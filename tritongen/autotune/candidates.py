"""The search space: what could be built of a model, small by default, with a note for what is left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from tritongen.errors import BuildError, SpecError
from tritongen.precision.recipe import Int8Recipe, Recipe
from tritongen.runs.records import Candidate, Options
from tritongen.spec import Precision

if TYPE_CHECKING:
    from tritongen.engines import Engine
    from tritongen.graph import Graph

RANGE_METHODS = Int8Recipe.methods
"""How activation ranges are chosen; none wins everywhere, so all four are candidates by default."""

ON_REQUEST = (Precision.BF16,)
"""Tried where it is asked for, or where FP16 did not pass: as fast as FP16, and less exact."""

RECIPE, RANGES = "recipe", "ranges"
"""Options that say how the graph is rewritten; all others are the engine's build options."""


@dataclass(frozen=True)
class SearchSpace:
    """What will be tried, and what will not be, with the reason."""

    candidates: tuple[Candidate, ...]
    notes: tuple[str, ...] = field(default=())


def search_space(
    engine: Engine,
    graph: Graph,
    *,
    precisions: Sequence[Precision] | None = None,
    calibrated: bool,
    validated: bool = True,
    has_reference: bool = False,
) -> SearchSpace:
    """Every candidate of `engine` for `graph`, FP32 first; SpecError or BuildError if nothing can be tried.

    `calibrated`, `validated`: there are real data to collect ranges from, to judge by.
    `has_reference`: an FP32 model to judge against was given.
    """
    if graph.quantized or graph.half:
        return _as_it_is(engine, graph, precisions, has_reference=has_reference)
    asked = precisions if precisions is not None else [p for p in Precision if p not in ON_REQUEST]
    wanted = [p for p in engine.precisions() if p in asked]
    notes = [
        f"{p} was asked for and is not tried: {engine.name} gains nothing from it on this machine"
        for p in precisions or ()
        if p not in engine.precisions()
    ]
    eight_bits = [p for p in wanted if p in (Precision.INT8, Precision.FP8)]
    if eight_bits and not (calibrated and validated):
        wanted = [p for p in wanted if p not in eight_bits]
        needs = _needed(calibrated=calibrated, validated=validated)
        verb = "is not tried: it needs" if len(eight_bits) == 1 else "are not tried: they need"
        notes.append(f"{' and '.join(map(str, eight_bits))} {verb} {needs}")
        if not wanted:
            raise SpecError(
                f"none of the precisions that were asked for ({', '.join(map(str, asked))}) can be tried",
                found="; ".join(notes),
                expected="data to calibrate and to judge 8 bits, or another precision",
                fix=f"add {needs}, or leave --precision out: what needs no data is then built",
            )
    if Precision.FP32 not in wanted and Precision.FP32 in engine.precisions():
        # Without the fallback a rejected INT8 model would leave nothing to serve.
        wanted.insert(0, Precision.FP32)
        notes.append("fp32 is tried as well: it is the fallback and the measure of every gain")
    found = [one for precision in wanted for one in of_precision(engine, graph, precision)]
    if not found:
        raise BuildError(
            f"there is nothing to try on {engine.name}",
            found="; ".join(notes) or None,
            expected=f"at least one of {', '.join(map(str, engine.precisions()))}",
        )
    return SearchSpace(tuple(found), tuple(notes))


def _needed(*, calibrated: bool, validated: bool) -> str:
    """The data that 8 bits lack."""
    calibration = [] if calibrated else ["calibration data (--calibration-data)"]
    return " and ".join([*calibration, *([] if validated else ["data to be judged by (--validation-data)"])])


def of_precision(engine: Engine, graph: Graph, precision: Precision) -> list[Candidate]:
    """Every candidate of one precision."""
    rewrites: list[Options] = [
        _rewrite(recipe, method)
        for recipe in _distinct(engine.recipes(precision), graph)
        for method in (recipe.methods if isinstance(recipe, Int8Recipe) else (None,))
    ] or [{}]
    builds = list(engine.build_options(precision, graph)) or [{}]
    return [
        Candidate(
            id=_identifier(engine.name, precision, rewrite, build, rewrites=rewrites, builds=builds),
            engine=engine.name,
            precision=precision,
            options={**rewrite, **build},
        )
        for rewrite in rewrites
        for build in builds
    ]


def _distinct(recipes: Sequence[Recipe], graph: Graph) -> list[Recipe]:
    """The recipes without those that come to the same as an earlier one on this graph's operators."""
    kept: dict[Recipe, Recipe] = {}
    for recipe in recipes:
        form = recipe
        if isinstance(recipe, Int8Recipe):
            present = tuple(sorted(op for op in recipe.operators if op in graph.operators))
            form = replace(recipe, name="", methods=(), operators=present)
        kept.setdefault(form, recipe)
    return list(kept.values())


def _rewrite(recipe: Recipe, method: str | None) -> Options:
    return {RECIPE: recipe.name} if method is None else {RECIPE: recipe.name, RANGES: method}


def _identifier(
    engine: str,
    precision: Precision,
    rewrite: Options,
    build: Options,
    *,
    rewrites: Sequence[Options],
    builds: Sequence[Options],
) -> str:
    """Readable and unique: only what differs in the search space is named ("onnxruntime-int8-entropy")."""
    parts = [engine, str(precision)]
    if len({options.get(RECIPE) for options in rewrites}) > 1:
        parts.append(str(rewrite[RECIPE]))
    if RANGES in rewrite:
        parts.append(str(rewrite[RANGES]))
    parts += [str(value) for key, value in build.items() if value != builds[0].get(key)]
    return "-".join(parts)


def _as_it_is(
    engine: Engine, graph: Graph, precisions: Sequence[Precision] | None, *, has_reference: bool
) -> SearchSpace:
    """A model that was rewritten already: taken as it is, its own reference unless one is given."""
    precision = Precision.INT8 if graph.quantized else Precision.FP16
    kind = "quantized" if graph.quantized else "FP16"
    if precisions is not None and precision not in precisions:
        raise SpecError(
            f"the model is already {kind} and is only tried as it is",
            found=f"precision {', '.join(map(str, precisions))}",
            expected=str(precision),
            fix="leave --precision out, or give the FP32 model",
        )
    judged = "the reference that was given" if has_reference else "itself"
    builds = list(engine.build_options(precision, graph)) or [{}]
    found = [
        Candidate(
            id=_identifier(engine.name, precision, {}, build, rewrites=[{}], builds=builds),
            engine=engine.name,
            precision=precision,
            options=dict(build),
        )
        for build in builds
    ]
    return SearchSpace(tuple(found), (f"the model is already {kind}: taken as it is, judged by {judged}",))
