"""The demo's own parts: its sentence about INT8, and the ports that it takes."""

from __future__ import annotations

import importlib
import socket
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tritongen.runs.build import ModelBuild
from tritongen.runs.records import (
    Accuracy,
    Candidate,
    Comparison,
    LatencyPoint,
    Loser,
    Machine,
    Outcome,
    Selection,
    Tradeoff,
    Trial,
)
from tritongen.serving.ports import free_ports
from tritongen.spec import Precision, load_spec

DIGITS = Path(__file__).parents[2] / "examples" / "digits"


@pytest.fixture
def verdict(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return _example("verdict", monkeypatch)


def _example(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(DIGITS))
    monkeypatch.delitem(sys.modules, name, raising=False)
    return importlib.import_module(name)


def _trial(precision: Precision, throughput: float, value: float) -> Trial:
    passed = value > 0.98
    point = LatencyPoint(
        batch_size=8,
        instances=1,
        runtime={},
        iterations=100,
        mean_ms=1.0,
        median_ms=1.0,
        p99_ms=2.0,
        throughput=throughput,
        spread=0.01,
    )
    return Trial(
        key="k",
        candidate=Candidate(id=f"onnxruntime-{precision}", engine="onnxruntime", precision=precision),
        outcome=Outcome.PASSED if passed else Outcome.REJECTED,
        reason="judged",
        accuracy=Accuracy(
            basis="labels",
            passed=passed,
            summary="judged",
            metric="top1",
            reference_value=0.99,
            value=value,
            loss=100 * (0.99 - value),
            limit=1.0,
        ),
        curve=(point,),
        machine=Machine(hostname="h", system="s", python="3", cpu="c", cores=2, memory_bytes=1),
        seconds=1.0,
    )


def _build(trials: list[Trial], winner: str, *pairs: Comparison) -> ModelBuild:
    """As the build records it: the point of the most throughput is ruled out by a promise."""
    selection = Selection(
        objective="throughput",
        winner=f"onnxruntime-{winner}",
        reason="r",
        runtime={},
        instances=1,
        batch_size=8,
        max_batch_size=8,
        losers=(Loser(candidate="other", reason="r"),),
        runners_up=(),
        comparisons=pairs,
    )
    compared = tuple(
        Tradeoff(
            candidate=trial.candidate.id,
            error=0.0,
            median_ms=1.0,
            throughput=trial.curve[0].throughput,
            batch_size=8,
            passed=trial.outcome is Outcome.PASSED,
            on_front=True,
        )
        for trial in trials
    )
    ruled_out = [
        trial.model_copy(
            update={
                "curve": (
                    *trial.curve,
                    trial.curve[0].model_copy(update={"batch_size": 64, "throughput": 9_999.0}),
                )
            }
        )
        for trial in trials
    ]
    return ModelBuild(
        name="digits",
        status="built",
        seconds=1.0,
        selection=selection,
        trials=tuple(ruled_out),
        tradeoffs=compared,
    )


@pytest.mark.parametrize(
    ("throughput", "value", "winner", "expected"),
    [
        (3000.0, 0.985, "int8", ["INT8 won", "3,000", "2,000", "1.50 times", "98.50%", "99.00%"]),
        (1000.0, 0.985, "fp32", ["passed the gate and lost on speed", "1,000", "2,000", "0.50 times"]),
        (3000.0, 0.900, "fp32", ["none of 1 candidates passed", "90.00%", "99.00%", "a loss of 1"]),
    ],
)
def test_the_sentence_has_the_figures_of_the_table(
    verdict: ModuleType, throughput: float, value: float, winner: str, expected: list[str]
) -> None:
    trials = [_trial(Precision.FP32, 2000.0, 0.99), _trial(Precision.INT8, throughput, value)]
    sentence = verdict.tell(_build(trials, winner))
    assert all(part in sentence for part in expected), sentence
    assert "9,999" not in sentence


@pytest.mark.parametrize(
    ("one", "other", "ratio"), [("int8", "fp32", 1.7), ("fp32", "int8", 1 / 1.7), ("int8", "fp16", 9.0)]
)
def test_a_ratio_in_alternation_is_that_of_these_two(
    verdict: ModuleType, one: str, other: str, ratio: float
) -> None:
    trials = [_trial(Precision.FP32, 2000.0, 0.99), _trial(Precision.INT8, 3000.0, 0.985)]
    pair = Comparison(
        candidate=f"onnxruntime-{one}",
        against=f"onnxruntime-{other}",
        batch_size=8,
        against_batch_size=8,
        rounds=9,
        ratio=ratio,
        low=ratio,
        high=ratio,
    )
    sentence = verdict.tell(_build(trials, "int8", pair))
    assert ("1.70 times FP32's measured in alternation" in sentence) == (other != "fp16"), sentence
    assert ("(1.50 times)" in sentence) == (other == "fp16"), sentence


def test_not_tried(verdict: ModuleType) -> None:
    trials = [_trial(Precision.FP32, 2000.0, 0.99)]
    assert verdict.tell(_build(trials, "fp32")) == "INT8 was not tried."


def test_the_load_test_is_of_the_promise_that_the_model_was_built_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    demo = _example("demo", monkeypatch)
    (model,) = load_spec(DIGITS / "tritongen.yaml").models.values()
    assert list(map(str, model.slo)) == [demo.PROMISE]


def test_ports_are_tritons_own_if_all_are_free(monkeypatch: pytest.MonkeyPatch) -> None:
    demo = _example("demo", monkeypatch)
    usual = tuple(free_ports(3))
    monkeypatch.setattr(demo, "TRITON_PORTS", usual)
    assert demo.choose_ports() == usual


def test_ports_are_others_if_one_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    demo = _example("demo", monkeypatch)
    usual = tuple(free_ports(3))
    monkeypatch.setattr(demo, "TRITON_PORTS", usual)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", usual[1]))
        taken.listen()
        chosen = demo.choose_ports()
    assert len({*chosen, *usual}) == 6
