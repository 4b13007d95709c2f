"""The closing summary of a build: what was tried, what won and why, and what to do next."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tritongen.runs.build import Build, ModelBuild
from tritongen.runs.events import number
from tritongen.runs.records import (
    Accuracy,
    Comparison,
    LatencyPoint,
    Options,
    Outcome,
    Selection,
    Tradeoff,
    Trial,
)

_MEGABYTE = 1 << 20
_FIRST_RATE = 200
"""Requests per second that any server of a quick model carries: a first load test should not be a defeat."""

_UNKNOWN_RATE = 10
"""For a model that nobody measured."""
_PASS_REQUESTS, _USUAL_S = 2500, 300
"""What a PASS takes, and how long a load test follows a promise unless --max-duration says otherwise."""
_SHARE = 3
"""A first load test asks for this part of what the engine did: a server has costs of its own."""


def print_build(
    console: Console,
    build: Build,
    *,
    repository: str,
    served: bool = False,
    compose: str | None = None,
) -> None:
    """Each built model's candidates, its winner, and the commands to try next.

    `served`: a server of the repository runs; `compose`: the command that starts the one of Compose.
    """
    usable = [model for model in build.models if model.status != "failed"]
    for model in usable:
        if model.status == "unchanged":
            console.print(escape(_unchanged(model)), highlight=False, soft_wrap=True)
        else:
            console.print()
            _print_model(console, model)
    if any(model.status == "built" for model in usable):
        console.print()
        console.print(f"[bold]Repository[/] {escape(repository)}, ready to serve. Next:", soft_wrap=True)
        for command in _next_commands(usable, repository, served=served, compose=compose):
            console.print(f"  {escape(command)}", highlight=False, soft_wrap=True)


def _print_model(console: Console, model: ModelBuild) -> None:
    selection = model.selection
    if selection is None:
        return
    console.print(_table(model, selection))
    changed = any(_change(trial.accuracy) for trial in model.trials)
    brackets = f"in brackets: {'change in points; ' if changed else ''}batch size x instances at once"
    console.print(f"[dim]{brackets}[/]", highlight=False)
    for one in selection.comparisons:
        told = escape(f"measured again in alternation, which decides: {_ratio(one)}")
        console.print(f"[dim]{told}[/]", highlight=False, soft_wrap=True)
    for line in _verdicts(selection):
        console.print(line, highlight=False, soft_wrap=True)
    front = _front(model)
    if front:
        console.print(f"  {escape(front)}", highlight=False, soft_wrap=True)
    for line in _facts(model, selection):
        console.print(f"  {escape(line)}", highlight=False, soft_wrap=True)


def _table(model: ModelBuild, selection: Selection) -> Table:
    trials = model.trials
    engines = sorted({trial.candidate.engine for trial in trials})
    title = f"{model.name}: {len(trials)} candidate{'s' * (len(trials) != 1)} on {' and '.join(engines)}"
    table = Table(
        title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, padding=(0, 1, 0, 0)
    )
    by_latency = selection.objective.startswith("latency")
    table.add_column("candidate", overflow="fold", min_width=15)  # long names are folded, numbers never
    table.add_column("accuracy")
    table.add_column("batch 1 (ms)\nmedian / P99", justify="right", no_wrap=True)
    table.add_column(
        f"compared by\n{'median (ms)' if by_latency else 'inferences/s'}", justify="right", no_wrap=True
    )
    table.add_column("memory", justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    compared = {one.candidate: one for one in model.tradeoffs}
    for trial in trials:
        won = trial.candidate.id == selection.winner
        name = trial.candidate.id
        table.add_row(
            escape(name.removeprefix(f"{engines[0]}-") if len(engines) == 1 else name),
            escape(_accuracy(trial.accuracy)),
            _batch_one(trial),
            _compared(compared.get(name), by_latency=by_latency),
            _memory(trial.memory_bytes),
            _outcome(trial, won=won),
            style="bold green" if won else None,
        )
    return table


def _accuracy(accuracy: Accuracy | None) -> str:
    """A few words: the metric or the worst output, or what it could not be judged by."""
    if accuracy is None:
        return "-"
    if accuracy.basis == "labels" and accuracy.value is not None:
        return f"{accuracy.metric} {100 * accuracy.value:.2f} %{_change(accuracy)}"
    if accuracy.value is not None:
        made_up = " (made-up inputs)" if accuracy.basis == "synthetic" else ""
        return f"{accuracy.metric} {accuracy.value:.3g}{made_up}"
    return "passed" if accuracy.passed else "not passed"


def _change(accuracy: Accuracy | None) -> str:
    if accuracy is None or accuracy.basis != "labels" or accuracy.value is None or not accuracy.loss:
        return ""
    return f" ({-accuracy.loss:+.2f})"


def _batch_one(trial: Trial) -> str:
    smallest = min((p.batch_size for p in trial.curve), default=None)
    points = [p for p in trial.curve if p.batch_size == smallest and p.instances == 1] or [
        p for p in trial.curve if p.batch_size == smallest
    ]
    if not points:
        return "-"
    best = min(points, key=lambda p: p.median_ms)
    return f"{number(best.median_ms)} / {number(best.p99_ms)}"


def _compared(point: Tradeoff | None, *, by_latency: bool) -> str:
    """The figure that decides, as in the candidate's sentence; outputs that are of no use have none."""
    if point is None:
        return "-"
    figure = number(point.median_ms if by_latency else point.throughput)
    return f"{figure} ({point.batch_size}x{point.instances})"


def _memory(size: int | None) -> str:
    if size is None:
        return "-"
    return f"{size / _MEGABYTE:,.0f} MB" if size >= _MEGABYTE else "< 1 MB"


def _outcome(trial: Trial, *, won: bool) -> str:
    if won:
        return "selected"
    return {Outcome.PASSED: "passed", Outcome.REJECTED: "rejected", Outcome.FAILED: "failed"}[trial.outcome]


def _ratio(one: Comparison) -> str:
    """What two candidates came to where both met the same noise, whatever their curves say."""
    return (
        f"{one.candidate} (batch {one.batch_size}) is ×{one.ratio:.2f} as fast as {one.against} "
        f"(batch {one.against_batch_size}), ×{one.low:.2f} to ×{one.high:.2f} at 95 %"
    )


def _verdicts(selection: Selection) -> Iterator[str]:
    yield f"[green]✓[/] [bold]{escape(selection.winner)}[/] is selected: {escape(selection.reason)}"
    alike: dict[str, list[str]] = {}
    for loser in selection.losers:
        alike.setdefault(loser.reason, []).append(loser.candidate)
    for reason, candidates in alike.items():
        yield f"[dim]✗[/] {escape(', '.join(candidates))}: {escape(reason)}"
    for note in selection.notes:
        yield f"[cyan]·[/] {escape(note)}"


def _facts(model: ModelBuild, selection: Selection) -> Iterator[str]:
    if model.batching:
        yield f"batching: {model.batching}"
    runtime = ", ".join(f"{key} {value}" for key, value in selection.runtime.items())
    yield (
        f"served with max_batch_size {selection.max_batch_size}, {selection.instances} "
        f"{'instance' if selection.instances == 1 else 'instances'}{f' ({runtime})' if runtime else ''}"
    )
    if model.repository:
        version = f" (version {model.version})" if model.version else ""
        yield f"written to {model.repository}{version}"
    yield from model.notes


def _front(model: ModelBuild) -> str:
    """Error against speed of what nothing dominates: after a mixture, or where a faster one was refused."""
    front = [one for one in model.tradeoffs if one.on_front]
    mixed = any(trial.candidate.held for trial in model.trials)
    if not mixed and all(one.passed for one in front):
        return ""
    points = (
        f"{one.candidate} {one.error:.3g} % at {number(one.throughput)}/s"
        + ("" if one.passed else " (rejected)")
        for one in front
    )
    return f"error against speed: {'; '.join(points)}"


def _unchanged(model: ModelBuild) -> str:
    """One line: what was built before, where it is, and how to have it measured again."""
    winner = f": {model.selection.winner}" if model.selection else ""
    version = f", version {model.version}" if model.version else ""
    return (
        f"{model.name}: unchanged since the last build (recognised in {model.seconds:.1f} s)"
        f"{winner}{version} in {model.repository}; --fresh measures again"
    )


def _next_commands(
    models: list[ModelBuild], repository: str, *, served: bool, compose: str | None
) -> Iterator[str]:
    """What a newcomer types next."""
    named = "" if repository == "model_repository" else f" {shlex.quote(repository)}"
    if served:
        option = f" -r{named}" if named else ""
        yield from (f"tritongen reload {each.name}{option}" for each in models if each.status == "built")
    else:
        yield compose or f"tritongen serve{named} --background"
    first = models[0]
    if first.selection is not None:
        chosen = first.selection
        yield first_load_test(
            first.name,
            _winner(first).curve,
            served=(chosen.runtime, chosen.instances),
            others=len(models) - 1,
        )
    if not served and compose is None:
        yield "tritongen stop"


def _winner(model: ModelBuild) -> Trial:
    winner = model.selection.winner if model.selection else None
    return next(trial for trial in model.trials if trial.candidate.id == winner)


def first_load_test(
    name: str, curve: Sequence[LatencyPoint], *, served: tuple[Options, int], others: int = 0
) -> str:
    """A load test that a server should pass: a third of what the engine alone did at its smallest batch.

    `served`: the runtime setting and the instances that it is served with.
    """
    rate, remarks = f"{_UNKNOWN_RATE}", []
    smallest = min((point.batch_size for point in curve), default=None)
    points = [point for point in curve if point.batch_size == smallest]
    points = [point for point in points if (point.runtime, point.instances) == served] or points
    if points:
        # One request is one call, whatever a batch of fixed size holds.
        calls = min(point.throughput / point.batch_size for point in points)
        rate = _round_down(min(_FIRST_RATE, calls / _SHARE))
        if calls / _SHARE < _FIRST_RATE:
            remarks.append(f"a third of the {calls:.3g} calls/s that were measured at batch {smallest}")
        minutes = math.ceil((_PASS_REQUESTS * 1.1 / max(float(rate), 0.001) + 5) / 60)
        if minutes * 60 > _USUAL_S:
            remarks.append(f"to prove a promise it takes --max-duration {minutes}m")
    if others > 0:
        remarks.append("likewise for each of the other models")
    return f"tritongen loadtest {name} --rate {rate}{'  # ' * bool(remarks)}{'; '.join(remarks)}"


def _round_down(rate: float) -> str:
    """To one significant digit ("0.02", "3", "40")."""
    power = math.floor(math.log10(rate)) if rate > 0 else 0
    return f"{math.floor(rate / 10.0**power + 1e-9) * 10.0**power:g}"
