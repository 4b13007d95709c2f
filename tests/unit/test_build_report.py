"""Progress and the closing summary: plain where there is no terminal, complete, and never broken by names."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, Literal

import pytest
from rich.console import Console
from rich.table import Table

from tests.unit.test_selection import FAST_INT8, MACHINE, SLOW_FP32, choose, point, trial
from tritongen.autotune.changes import narrower_notes
from tritongen.autotune.judging import Goal
from tritongen.autotune.tradeoff import tradeoffs
from tritongen.loadtest.settings import DEFAULT_MAX_DURATION_S
from tritongen.loadtest.statistics import FIRST_LOOK
from tritongen.report.build import _PASS_REQUESTS, _USUAL_S, first_load_test, print_build
from tritongen.report.console import console
from tritongen.report.terminal import progress
from tritongen.runs.build import Build, ModelBuild
from tritongen.runs.events import Event
from tritongen.runs.records import Accuracy, Comparison, Outcome, OutputError, Tradeoff, Trial
from tritongen.runs.store import RunDirectory, write_record


def summary(*models: ModelBuild, width: int = 80) -> str:
    stream = io.StringIO()
    console = Console(file=stream, width=width)
    print_build(console, Build(machine=MACHINE, models=models), repository="model_repository")
    return stream.getvalue()


def shown(trials: tuple[Trial, ...], objective: str) -> str:
    """The summary of a model that was built from these trials."""
    model = ModelBuild(
        name="net", status="built", seconds=1, selection=choose(trials, objective), trials=trials,
        tradeoffs=tradeoffs(trials, Goal.parse(objective)),
    )  # fmt: skip
    return summary(model, width=400)


def test_everything_that_was_tried_is_shown_with_its_numbers() -> None:
    failed = trial("fp16", [], outcome=Outcome.FAILED)
    trials = (SLOW_FP32, FAST_INT8, failed)
    model = ModelBuild(
        name="net", status="built", seconds=1, repository="model_repository/net", version=3,
        batching="confirmed by a run", selection=choose(trials, notes=["fp8 is not tried"]), trials=trials,
        tradeoffs=tradeoffs(trials, Goal.parse("throughput")),
    )  # fmt: skip
    text = summary(model)
    assert "3 candidates on onnxruntime" in text
    for telling in ("selected", "passed", "failed: because", "5 / 7.5", "400 (8x1)", "fp8 is not tried"):
        assert telling in text, text
    assert "tritongen loadtest net --rate 60  # a third of the 200 calls/s" in text
    assert "(version 3)" in text
    assert max(len(line) for line in text.splitlines() if "(8x1)" in line) <= 80


def test_long_names_are_folded_and_numbers_are_not() -> None:
    name = "int8-percentile-" + "Q" * 60
    long = FAST_INT8.model_copy(
        update={"candidate": FAST_INT8.candidate.model_copy(update={"id": f"onnxruntime-{name}"})}
    )
    trials = (SLOW_FP32, long)
    text = summary(
        ModelBuild(
            name="net", status="built", seconds=1, selection=choose(trials), trials=trials,
            tradeoffs=tradeoffs(trials, Goal.parse("throughput")),
        )
    )  # fmt: skip
    assert "5 / 7.5" in text
    assert "400 (8x1)" in text
    table = text.partition("in brackets")[0]
    assert "…" not in table
    assert table.count("Q") == 60


def built(status: Literal["built", "unchanged"] = "built") -> ModelBuild:
    trials = (SLOW_FP32, FAST_INT8)
    return ModelBuild(
        name="net", status=status, seconds=0.1, repository="model_repository/net", version=3,
        selection=choose(trials, notes=["fp8 is not tried"]), trials=trials,
    )  # fmt: skip


def test_an_unchanged_model_takes_one_line() -> None:
    (line,) = summary(built("unchanged"), width=400).splitlines()
    assert "net: unchanged since the last build" in line
    assert "version 3 in model_repository/net" in line


def test_what_to_do_next_goes_by_what_serves() -> None:
    def told(repository: str, **serving: Any) -> str:
        stream = io.StringIO()
        build = Build(machine=MACHINE, models=(built(),))
        print_build(Console(file=stream), build, repository=repository, **serving)
        return stream.getvalue().partition("Next:")[2]

    assert told("a b").split("\n")[1] == "  tritongen serve 'a b' --background"
    running = told("a b", served=True, compose="docker compose up")
    assert running.split("\n")[1] == "  tritongen reload net -r 'a b'"
    assert "serve" not in running
    assert "stop" not in running
    assert told("model_repository", compose="docker compose up").split("\n")[1] == "  docker compose up"


def test_the_ratio_that_decides_stands_under_a_table_that_says_otherwise() -> None:
    trials = (trial("fp32", [point(8, 40.0, taken=0.5)]), trial("fp32-extended", [point(8, 25.0)]))
    again = Comparison(
        candidate="fp32-extended", against="fp32", batch_size=8, against_batch_size=8, rounds=24,
        ratio=0.705, low=0.678, high=0.81,
    )  # fmt: skip
    selection = choose(trials, comparisons=[again])
    assert selection.winner == "fp32"
    text = summary(ModelBuild(name="net", status="built", seconds=1, selection=selection, trials=trials))
    assert (
        "fp32-extended (batch 8) is ×0.70 as fast as fp32 (batch 8), ×0.68 to ×0.81 at 95 %"
        in text.partition("is selected")[0]
    )
    assert "in alternation" not in summary(built())


@pytest.mark.parametrize(
    ("calls", "rate"),
    [(9000.0, "200"), (31.0, "10  # a third of the 31 calls/s"), (0.8, "0.2  # a third of the 0.8 calls/s")],
)
def test_the_first_load_test_is_within_reach(calls: float, rate: str) -> None:
    alone = SLOW_FP32.curve[0].model_copy(update={"throughput": calls})
    served = alone.runtime, alone.instances
    others = alone.model_copy(update={"throughput": 5 * calls, "instances": 4})
    batches = alone.model_copy(update={"throughput": 9 * calls, "batch_size": 8})
    told = first_load_test("net", (others, alone, batches), served=served)
    assert told.startswith(f"tritongen loadtest net --rate {rate}")
    assert ("to prove a promise it takes --max-duration 230m" in told) == (calls < 1)
    assert (_PASS_REQUESTS, _USUAL_S) == (FIRST_LOOK, DEFAULT_MAX_DURATION_S)  # a report imports no room
    assert "other models" in first_load_test("net", (alone,), served=served, others=2)


def test_a_model_that_nobody_measured_gets_a_careful_load_test() -> None:
    assert first_load_test("net", (), served=({}, 1)) == "tritongen loadtest net --rate 10"


def test_a_largest_batch_that_falls_from_build_to_build_is_told(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    now = choose([SLOW_FP32])
    assert not list(narrower_notes(run, now))
    write_record(run.result, built())  # it served batches up to 8
    assert not list(narrower_notes(run, now))
    (note,) = narrower_notes(run, now.model_copy(update={"max_batch_size": 4}))
    assert note.startswith(
        "max_batch_size is 4 and was 8 in the last build: clients that send larger batches"
    )
    assert "--max-batch-size 8 keeps it" in note
    (note,) = narrower_notes(run, now.model_copy(update={"max_batch_size": 0}))
    assert note.endswith("was 8 in the last build: clients that send batches get errors")


def test_the_table_has_the_figures_that_the_sentences_compare() -> None:
    """Its own best is elsewhere on the curve: the larger batch is taken, and latency is judged at batch 1."""
    curve = [point(1, 10.0), point(4, 20.0), point(8, 41.0)]
    trials = (trial("fp32", curve, loss=0.0), FAST_INT8)
    for objective, figure, sentence in (
        ("throughput", "195 (8x1)", "195 inferences/s at batch 8"),
        ("latency", "10 (1x1)", "median 10 ms at batch 1"),
    ):
        text = shown(trials, objective)
        assert figure in text
        assert sentence in text


@pytest.mark.parametrize(("objective", "figure"), [("throughput", "0.719 (1x1)"), ("latency", "1,390 (1x1)")])
def test_slow_models_have_figures_of_three_digits(objective: str, figure: str) -> None:
    text = shown((trial("fp32", [point(1, 1390.4)], loss=0.0),), objective)
    assert figure in text
    assert "1,390 / 2,086" in text


def test_what_is_piped_is_neither_wrapped_nor_padded(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table("a", "b", box=None)
    table.add_row("/long" * 100, "x")
    table.add_row("short", "y")
    console().print(table)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert "/long" * 100 in lines[1]
    assert lines == [line.rstrip() for line in lines]


def test_a_failed_model_takes_no_room_in_the_summary() -> None:
    assert summary(ModelBuild(name="bad", status="failed", seconds=1, error="[broken]")) == ""


def test_plain_lines_hold_what_ended_and_no_markup() -> None:
    stream = io.StringIO()
    with progress(Console(file=stream)) as events:
        for i in range(50):
            events(Event("trial", "progress", f"step {i}", "fp32", fraction=i / 50))
        events(Event("trial", "failed", "crashed [in] the middle", "int8"))
    assert stream.getvalue() == "trial     int8: failed: crashed [in] the middle\n"


def test_a_terminal_shows_a_moving_line_and_keeps_what_ended() -> None:
    stream = io.StringIO()
    with progress(Console(file=stream, force_terminal=True, width=100, highlight=False)) as events:
        events(Event("trial", "started", "starting", "fp32", fraction=0.0))
        events(Event("trial", "finished", "passed [all]", "fp32"))
    assert "passed [all]" in stream.getvalue()


def test_a_faster_candidate_that_was_too_inexact_is_shown_on_the_front() -> None:
    model = built()
    front = [
        Tradeoff(candidate=name, error=error, median_ms=1, throughput=rate, batch_size=8, passed=passed,
                 on_front=on_front)
        for name, error, rate, passed, on_front in (
            ("fp32", 0.0, 200, True, True), ("int8-mixed2of8", 3.9, 350, True, True),
            ("int8-minmax", 9.0, 300, False, False), ("int8-mse", 7.0, 400, False, True),
        )
    ]  # fmt: skip
    text = summary(model.model_copy(update={"tradeoffs": tuple(front)}), width=400)
    assert "fp32 0 % at 200/s; int8-mixed2of8 3.9 % at 350/s; int8-mse 7 % at 400/s (rejected)" in text
    assert "error against speed" not in summary(model, width=400)


def test_a_candidate_that_made_up_inputs_judged_shows_by_how_much_it_differs() -> None:
    accuracy = Accuracy(
        basis="synthetic", passed=True, summary="differs", metric="relative_l2", value=0.0, samples=16
    )
    judged = SLOW_FP32.model_copy(update={"accuracy": accuracy})
    model = ModelBuild(name="net", status="built", seconds=1, selection=choose([judged]), trials=(judged,))
    assert "relative_l2 0 (made-up inputs)" in summary(model, width=200)


def test_the_output_that_the_gate_found_worst_is_shown() -> None:
    """Agreements are shares and distances are not: they cannot be held against each other as they are."""
    outputs = (
        OutputError(output="logits", measure="top1_agreement", value=1.0, limit=0.98, passed=True),
        OutputError(output="pooled", measure="relative_l2", value=0.031, limit=0.05, passed=True),
    )
    accuracy = Accuracy(
        basis="reference", passed=True, summary="", metric="relative_l2", value=0.031, outputs=outputs
    )
    judged = SLOW_FP32.model_copy(update={"accuracy": accuracy})
    model = ModelBuild(name="net", status="built", seconds=1, selection=choose([judged]), trials=(judged,))
    assert "relative_l2 0.031" in summary(model, width=200)
