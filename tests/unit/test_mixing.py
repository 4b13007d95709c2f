"""Mixed precision in a build: when it is looked for, and the fewest blocks held until the gate holds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests import models
from tests.unit.test_selection import point, trial
from tritongen.autotune import trials
from tritongen.autotune.budget import Budget
from tritongen.autotune.follow_ups import base_for_mixing, fp16_fell_through, mixtures
from tritongen.autotune.jobs import prepared_graph
from tritongen.autotune.judging import Goal
from tritongen.autotune.machine import current_machine
from tritongen.autotune.selection import selectable
from tritongen.autotune.stages import Setting, prepare_model
from tritongen.autotune.tradeoff import tradeoffs
from tritongen.engines import load_engine
from tritongen.runs.events import Event
from tritongen.runs.records import Accuracy, Outcome, Sensitivity, Trial
from tritongen.runs.store import RunDirectory, read_record
from tritongen.spec import AccuracySpec, DataSpec, ModelSpec

ENGINE = load_engine("onnxruntime")
GOAL = Goal.parse("throughput")
WIDTH, RUINED = 512, 2


@pytest.fixture
def setting(tmp_path: Path) -> Setting:
    rng = np.random.default_rng(1)
    for name in ("calibration", "validation"):
        np.savez(tmp_path / f"{name}.npz", x=rng.standard_normal((48, WIDTH)).astype(np.float32))
    spec = ModelSpec(
        path=models.save(models.hostile_to_int8(), tmp_path / "m.onnx"),
        max_batch_size=4,
        data=DataSpec(
            calibration=str(tmp_path / "calibration.npz"), validation=str(tmp_path / "validation.npz")
        ),
        accuracy=AccuracySpec(metric="relative_l2"),
    )
    return Setting("m", spec, RunDirectory(tmp_path / "run"), current_machine(), _quiet, "quick")


def _quiet(event: Event) -> None:
    pass


class _Ending(Budget):
    """Ends while the analysis runs."""

    def allowed_s(self, earlier_s: Sequence[float]) -> float:  # noqa: ARG002
        return 0.05

    def left_s(self) -> float:
        return 0.0


def test_the_fewest_blocks_are_held_until_the_gate_holds(setting: Setting) -> None:
    """With a real ONNX Runtime: INT8 throughout is rejected, the mixture passes."""
    from tritongen.autotune.candidates import search_space

    preparation = prepare_model(setting)
    graph = prepared_graph(setting.spec, preparation)
    space = search_space(ENGINE, graph, calibrated=True)
    chosen = [space.candidates[0], next(one for one in space.candidates if one.id.endswith("-mse"))]
    search = trials.Search(setting, ENGINE, graph, preparation, Budget())
    done = trials.run_trials(search, chosen).trials
    int8 = next(one for one in done if one.candidate.id.endswith("mse"))
    assert int8.outcome is Outcome.REJECTED, int8.reason
    slow = [one.model_copy(update={"curve": (point(4, 1000.0),)}) if one is not int8 else one for one in done]
    cut = mixtures(trials.Search(setting, ENGINE, graph, preparation, _Ending()), slow, GOAL)
    assert cut.left_out == (f"mixtures of {int8.candidate.id}",)  # the next run goes on with it
    assert not cut.notes
    found = mixtures(search, slow, GOAL)
    (mixed,) = found.trials
    assert selectable(mixed), mixed.reason
    assert mixed.candidate.id.startswith(int8.candidate.id + "-mixed1of")
    assert f"matmul{RUINED}" in mixed.candidate.held
    kinds = onnx.load(setting.run.trial(mixed.candidate.id) / "model.onnx").graph.node
    assert {n.op_type for n in kinds} >= {"MatMul", "QuantizeLinear"}
    record = read_record(setting.run.sensitivity / "sensitivity.json", Sensitivity)
    assert record.held == 1
    assert record.blocks[0].error > 3 * record.blocks[1].error
    seen: list[Event] = []
    again = mixtures(trials.Search(_with(setting, seen), ENGINE, graph, preparation, Budget()), slow, GOAL)
    assert again.trials == found.trials  # nothing is analysed or measured twice
    assert {event.status for event in seen} == {"skipped"}


def _with(setting: Setting, seen: list[Event]) -> Setting:
    from dataclasses import replace

    return replace(setting, events=seen.append)


def rejected(name: str, batch_8_ms: float, error: float) -> Trial:
    accuracy = Accuracy(basis="labels", passed=False, summary="s", loss=error)
    made = trial(name, [point(8, batch_8_ms)], outcome=Outcome.REJECTED)
    candidate = made.candidate.model_copy(
        update={"options": {"recipe": ENGINE.recipes(made.candidate.precision)[0].name, "ranges": "mse"}}
    )
    return made.model_copy(update={"accuracy": accuracy, "candidate": candidate})


FP32 = trial("fp32", [point(8, 40.0)], loss=0.0)


def test_the_most_exact_of_the_faster_ones_is_mixed() -> None:
    exact, fast = rejected("int8-mse", 20.0, 2.0), rejected("int8-minmax", 10.0, 9.0)
    assert base_for_mixing(ENGINE, [FP32, fast, exact], GOAL) == exact


def test_what_is_no_faster_is_not_mixed_and_it_is_said() -> None:
    found = base_for_mixing(ENGINE, [FP32, rejected("int8-mse", 39.5, 2.0)], GOAL)
    assert isinstance(found, str)
    assert "no faster than fp32" in found


def test_where_int8_passed_there_is_no_need() -> None:
    passed = trial("int8-entropy", [point(8, 30.0)], loss=0.5)
    assert base_for_mixing(ENGINE, [FP32, passed, rejected("int8-mse", 20.0, 2.0)], GOAL) is None
    assert base_for_mixing(ENGINE, [FP32], GOAL) is None


def test_the_front_holds_what_nothing_dominates() -> None:
    int8, slow = rejected("int8-mse", 10.0, 5.0), rejected("int8-minmax", 45.0, 7.0)
    mixed = trial("int8-mse-mixed1of4", [point(8, 20.0)], loss=0.5)
    found = tradeoffs([slow, int8, FP32, mixed], GOAL)
    assert [(one.candidate, one.on_front) for one in found] == [
        ("fp32", True), ("int8-mse-mixed1of4", True), ("int8-mse", True), ("int8-minmax", False),
    ]  # fmt: skip
    assert [one.error for one in found] == [0.0, 0.5, 5.0, 7.0]
    assert [one.passed for one in found] == [True, True, False, False]


def test_fp16_that_did_not_pass_calls_for_bf16() -> None:
    rejected_fp16 = trial("fp16", [point(8, 20.0)], outcome=Outcome.REJECTED)
    assert fp16_fell_through([FP32, rejected_fp16])
    assert fp16_fell_through([FP32, trial("fp16", [], outcome=Outcome.FAILED)])
    assert not fp16_fell_through([FP32])
    assert not fp16_fell_through([FP32, rejected_fp16, trial("fp16-b", [point(8, 20.0)])])
