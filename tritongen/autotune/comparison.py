"""Two built candidates measured in alternation in one child process, so that both meet the same noise."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tritongen.autotune.inputs import call_inputs
from tritongen.autotune.jobs import ComparisonJob, prepared_graph, resolved_inputs
from tritongen.autotune.latency import run_round
from tritongen.autotune.order_statistics import median_interval
from tritongen.engines import load_engine
from tritongen.runs.events import Event, EventSink
from tritongen.runs.records import Comparison
from tritongen.runs.store import read_record, write_record

if TYPE_CHECKING:
    from tritongen.engines import Runner

FILENAME = "comparison.json"
ROUNDS = 24
_FEWEST_ROUNDS = 8
_ROUND_SECONDS = 0.1
_MAX_SECONDS = 30.0
_PAUSE_SECONDS = 0.01
"""Lets the other's threads stop spinning before the next round starts."""


@dataclass(frozen=True)
class Team:
    """The instances of one contender, each with a prepared batch."""

    runners: Sequence[Runner]
    batch_size: int


def compare(job_file: Path, events: EventSink) -> None:
    """Write comparison.json beside `job_file`: the ratio of the two, round by round, and its interval."""
    job = read_record(job_file, ComparisonJob)
    graph = prepared_graph(job.spec, job.preparation)
    shapes = resolved_inputs(graph, job.preparation)
    inputs = call_inputs(
        None,
        shapes,
        batched=graph.batched,
        largest=max(contender.batch_size for contender in job.contenders),
        seed=job.spec.seed,
    )
    with ExitStack() as stack:
        teams: list[Team] = []
        for contender in job.contenders:
            engine = load_engine(contender.engine).with_shapes(shapes, job.max_batch_size)
            runners = [
                stack.enter_context(engine.open(contender.folder, contender.artifact, contender.runtime))
                for _ in range(contender.instances)
            ]
            for runner in runners:
                runner.prepare(inputs(contender.batch_size))
            teams.append(Team(runners, contender.batch_size))
        ratios = _alternate(teams, events, by_latency=job.by_latency)
    low, high = median_interval(np.asarray(ratios))
    one, other = job.contenders
    record = Comparison(
        candidate=one.candidate,
        against=other.candidate,
        batch_size=one.batch_size,
        against_batch_size=other.batch_size,
        rounds=len(ratios),
        ratio=float(np.median(ratios)),
        low=low,
        high=high,
    )
    write_record(job_file.parent / FILENAME, record)


def _alternate(teams: Sequence[Team], events: EventSink, *, by_latency: bool) -> list[float]:
    """Score ratios of the first team to the second; who starts changes from round to round."""
    begin = time.perf_counter()
    for team in teams:
        run_round(team.runners, _ROUND_SECONDS)
    ratios: list[float] = []
    while len(ratios) < ROUNDS:
        order = (0, 1) if len(ratios) % 2 == 0 else (1, 0)
        scores = {index: _score(teams[index], by_latency=by_latency) for index in order}
        ratios.append(scores[0] / scores[1])
        events(Event("compare", "progress", "measuring in alternation", fraction=len(ratios) / ROUNDS))
        if time.perf_counter() - begin > _MAX_SECONDS and len(ratios) >= _FEWEST_ROUNDS:
            break
    return ratios


def _score(team: Team, *, by_latency: bool) -> float:
    """Inferences per second, or one over the median latency, of one round."""
    time.sleep(_PAUSE_SECONDS)
    one = run_round(team.runners, _ROUND_SECONDS)
    if by_latency:
        return 1e9 / max(1.0, float(np.median(np.concatenate(one.latencies))))
    calls, seconds = one.window()
    return team.batch_size * calls / seconds
