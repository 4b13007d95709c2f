"""The demo's own parts: its sentence about INT8, and the ports that it takes."""

from __future__ import annotations

import importlib
import socket
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tritongen.runs.records import (
    Accuracy,
    Candidate,
    LatencyPoint,
    Loser,
    Machine,
    Outcome,
    Selection,
    Trial,
)
from tritongen.serving.ports import free_ports
from tritongen.spec import Precision

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


def _selection(winner: str) -> Selection:
    return Selection(
        objective="throughput",
        winner=f"onnxruntime-{winner}",
        reason="r",
        runtime={},
        instances=1,
        batch_size=8,
        max_batch_size=8,
        losers=(Loser(candidate="other", reason="r"),),
        runners_up=(),
    )


@pytest.mark.parametrize(
    ("throughput", "value", "winner", "expected"),
    [
        (3000.0, 0.985, "int8", ["INT8 won", "3,000", "2,000", "1.50 times", "98.50%", "99.00%"]),
        (1000.0, 0.985, "fp32", ["passed the gate and lost on speed", "1,000", "2,000", "0.50 times"]),
        (3000.0, 0.900, "fp32", ["none of 1 candidates passed", "90.00%", "99.00%", "a loss of 1"]),
    ],
)
def test_sentence(
    verdict: ModuleType, throughput: float, value: float, winner: str, expected: list[str]
) -> None:
    trials = [_trial(Precision.FP32, 2000.0, 0.99), _trial(Precision.INT8, throughput, value)]
    sentence = verdict.tell(trials, _selection(winner))
    assert all(part in sentence for part in expected), sentence


def test_not_tried(verdict: ModuleType) -> None:
    trials = [_trial(Precision.FP32, 2000.0, 0.99)]
    assert verdict.tell(trials, _selection("fp32")) == "INT8 was not tried."


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
