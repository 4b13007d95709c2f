"""The closing summary of a build: what was tried, what won and why, and what to do next."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tritongen.runs.build import Build, ModelBuild
from tritongen.runs.records import Accuracy, LatencyPoint, Outcome, Selection, Trial

_MEGABYTE = 1 << 20
_FIRST_RATE = 200
"""Requests per second that any server of a quick model carries: a first load test should not be a defeat."""


def print_build(console: Console, build: Build, *, repository: str) -> None:
    """Each built model's candidates, its winner, and the commands to try next."""
    served = [model for model in build.models if model.status != "failed"]
    for model in served:
        console.print()
        _print_model(console, model)
    if served:
        console.print()
        console.print(f"[bold]Repository[/] {escape(repository)}, ready to serve. Next:")
        for command in _next_commands(served, repository):
            console.print(f"  {escape(command)}", highlight=False, soft_wrap=True)


def _print_model(console: Console, model: ModelBuild) -> None:
    selection = model.selection
    if selection is None:
        return
    console.print(_table(model.name, model.trials, selection))
    console.print("[dim]in brackets: change in points; batch size x instances at once[/]", highlight=False)
    for line in _verdicts(selection):
        console.print(line, highlight=False, soft_wrap=True)
    for line in _facts(model, selection):
        console.print(f"  {escape(line)}", highlight=False, soft_wrap=True)


def _table(name: str, trials: tuple[Trial, ...], selection: Selection) -> Table:
    engines = sorted({trial.candidate.engine for trial in trials})
    title = f"{name}: {len(trials)} candidate{'s' * (len(trials) != 1)} on {' and '.join(engines)}"
    table = Table(
        title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, padding=(0, 1, 0, 0)
    )
    table.add_column("candidate", no_wrap=True)
    table.add_column("accuracy")
    table.add_column("batch 1 (ms)\nmedian / P99", justify="right")
    table.add_column("best\ninferences/s", justify="right")
    table.add_column("memory", justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for trial in trials:
        won = trial.candidate.id == selection.winner
        name = trial.candidate.id
        table.add_row(
            escape(name.removeprefix(f"{engines[0]}-") if len(engines) == 1 else name),
            escape(_accuracy(trial.accuracy)),
            _batch_one(trial),
            _throughput(trial),
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
        loss = f" ({-accuracy.loss:+.2f})" if accuracy.loss else ""
        return f"{accuracy.metric} {100 * accuracy.value:.2f} %{loss}"
    if accuracy.basis == "synthetic":
        return "no data"
    if accuracy.outputs:
        worst = max(accuracy.outputs, key=lambda o: (not o.passed, o.value / o.limit if o.limit else 0.0))
        return f"{worst.measure} {worst.value:.3g}"
    return "passed" if accuracy.passed else "not passed"


def _batch_one(trial: Trial) -> str:
    smallest = min((p.batch_size for p in trial.curve), default=None)
    points = [p for p in trial.curve if p.batch_size == smallest and p.instances == 1] or [
        p for p in trial.curve if p.batch_size == smallest
    ]
    if not points:
        return "-"
    best = min(points, key=lambda p: p.median_ms)
    return f"{best.median_ms:.3g} / {best.p99_ms:.3g}"


def best_point(trial: Trial) -> LatencyPoint | None:
    """The point of the curve with the highest throughput."""
    return max(trial.curve, key=lambda p: p.throughput, default=None)


def _throughput(trial: Trial) -> str:
    best = best_point(trial)
    if best is None:
        return "-"
    return f"{best.throughput:,.0f} ({best.batch_size}x{best.instances})"


def _memory(size: int | None) -> str:
    if size is None:
        return "-"
    return f"{size / _MEGABYTE:,.0f} MB" if size >= _MEGABYTE else "< 1 MB"


def _outcome(trial: Trial, *, won: bool) -> str:
    if won:
        return "selected"
    return {Outcome.PASSED: "passed", Outcome.REJECTED: "rejected", Outcome.FAILED: "failed"}[trial.outcome]


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
    if model.status == "unchanged":
        yield f"unchanged since the last build, recognised in {model.seconds:.1f} s; --fresh measures again"


def _next_commands(models: list[ModelBuild], repository: str) -> Iterator[str]:
    """What a newcomer types next; a server should carry half of a slow engine's throughput."""
    where = "" if repository == "model_repository" else f" {shlex.quote(repository)}"
    yield f"tritongen serve{where} --background"
    best = best_point(_winner(models[0])) if models[0].selection else None
    if best is not None:
        rate = min(_FIRST_RATE, _round_down(best.throughput / 2))
        yield f"tritongen loadtest {models[0].name} --rate {rate}"
    yield "tritongen stop"


def _winner(model: ModelBuild) -> Trial:
    winner = model.selection.winner if model.selection else None
    return next(trial for trial in model.trials if trial.candidate.id == winner)


def _round_down(rate: float) -> int:
    """To one significant digit, at least 1."""
    whole = max(1, int(rate))
    power: int = 10 ** (len(str(whole)) - 1)
    return whole // power * power
