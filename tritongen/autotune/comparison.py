"""Two built candidates measured in alternation in one child process, so that both meet the same noise."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
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


def compare(job_file: Path, events: EventSink) -> None:
    """Write comparison.json beside `job_file`: the ratio of the two, round by round, and its interval."""
    job = read_record(job_file, ComparisonJob)
    graph = prepared_graph(job.spec, job.preparation)
    shapes = resolved_inputs(graph, job.preparation)
    inputs = call_inputs(
        None,
        shapes,
        batched=graph.batched,
        largest=job.batch_size,
        seed=job.spec.seed,
    )
    with ExitStack() as stack:
        teams: list[list[Runner]] = []
        for contender in job.contenders:
            engine = load_engine(contender.engine).with_shapes(shapes, job.max_batch_size)
            runners = [
                stack.enter_context(engine.open(contender.folder, contender.artifact, contender.runtime))
                for _ in range(contender.instances)
            ]
            for runner in runners:
                runner.prepare(inputs(job.batch_size))
            teams.append(runners)
        ratios = _alternate(teams, events, by_latency=job.by_latency)
    low, high = median_interval(np.asarray(ratios))
    one, other = job.contenders
    record = Comparison(
        candidate=one.candidate,
        against=other.candidate,
        batch_size=job.batch_size,
        rounds=len(ratios),
        ratio=float(np.median(ratios)),
        low=low,
        high=high,
    )
    write_record(job_file.parent / FILENAME, record)


def _alternate(teams: Sequence[Sequence[Runner]], events: EventSink, *, by_latency: bool) -> list[float]:
    """Score ratios of the first team to the second; who starts changes from round to round."""
    begin = time.perf_counter()
    for runners in teams:
        run_round(runners, _ROUND_SECONDS)
    ratios: list[float] = []
    while len(ratios) < ROUNDS:
        order = (0, 1) if len(ratios) % 2 == 0 else (1, 0)
        scores = {team: _score(teams[team], by_latency=by_latency) for team in order}
        ratios.append(scores[0] / scores[1])
        events(Event("compare", "progress", "measuring in alternation", fraction=len(ratios) / ROUNDS))
        if time.perf_counter() - begin > _MAX_SECONDS and len(ratios) >= _FEWEST_ROUNDS:
            break
    return ratios


def _score(runners: Sequence[Runner], *, by_latency: bool) -> float:
    """Calls per second, or one over the median latency, of one round."""
    time.sleep(_PAUSE_SECONDS)
    one = run_round(runners, _ROUND_SECONDS)
    if by_latency:
        return 1e9 / max(1.0, float(np.median(np.concatenate(one.latencies))))
    calls, seconds = one.window()
    return calls / seconds
