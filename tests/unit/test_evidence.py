"""What outputs and speed say of a precision that a plan does not show, in a real build on the stand-ins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import models
from tests.repository_models import MACHINE
from tritongen.autotune import trials
from tritongen.autotune.evidence import Likeness, doubt, likeness, outputs_text
from tritongen.autotune.stages import Setting
from tritongen.autotune.winner import SelectedModel, choose_winner
from tritongen.runs.events import Event
from tritongen.runs.records import Artifact, Candidate, Outcome, Selection, Trial
from tritongen.runs.store import RunDirectory, read_record
from tritongen.spec import ModelSpec, Precision

X = np.arange(8, dtype=np.float32).reshape(2, 4)
THIRDS = X / 3


def reference(outputs: Any, inputs: Any = X) -> dict[str, Any]:
    return {"input/x": inputs, "output/y": outputs}


@pytest.mark.parametrize(
    ("one", "other", "equal", "telling"),
    [
        (THIRDS, THIRDS, True, True),
        (THIRDS.astype(np.float16).astype(np.float32), THIRDS, False, False),
        (X, X, True, False),  # whole numbers, as FP16 has them too
        (X.astype(np.int64), X.astype(np.int64), True, False),
        (np.full_like(X, np.nan), np.full_like(X, np.nan), True, False),
    ],
    ids=["thirds", "rounded", "whole", "integers", "nan"],
)
def test_equal_bits_tell_only_where_a_lower_precision_could_not_give_them(
    one: Any, other: Any, equal: bool, telling: bool
) -> None:
    alike = likeness(reference(one), reference(other))
    assert alike is not None
    assert (alike.equal, alike.telling) == (equal, telling)


def test_answers_to_other_questions_are_not_compared() -> None:
    assert likeness(reference(X), reference(X, inputs=X + 1)) is None
    assert likeness(reference(X), {}) is None
    assert likeness({}, {}) is None
    assert likeness(reference(X), reference(X[:1])) is None


def trial(**told: Any) -> Trial:
    artifact = Artifact(
        file="model.plan", digest="0", size_bytes=1, build_seconds=1.0, versions={},
        details={"precision": {"asked": "int8", **told}},
    )  # fmt: skip
    return Trial(
        key="k", candidate=Candidate(id="c", engine="tensorrt", precision=Precision.INT8), artifact=artifact,
        outcome=Outcome.PASSED, reason="passed", machine=MACHINE, seconds=1.0,
    )  # fmt: skip


def test_a_small_share_and_an_unproven_precision_are_said_of_the_winner() -> None:
    assert doubt(trial(evidence="PROVEN", share=0.5, summary="50 %")) is None
    assert doubt(trial(evidence="PROVEN", share=0.02, summary="2 % of all run in int8")) == (
        "c: only 2 % of all run in int8"
    )
    opaque = doubt(trial(evidence="OPAQUE", summary="1 fused"))
    assert "int8 is not proven: 1 fused; there is no plan in FP32" in str(opaque)
    assert doubt(trial().model_copy(update={"artifact": None})) is None


@pytest.mark.parametrize(
    ("alike", "words"),
    [
        (Likeness(equal=True, telling=True, distance=0.0), "every bit of its outputs is that of c"),
        (
            Likeness(equal=True, telling=False, distance=0.0),
            "its outputs equal those of c, and are too round",
        ),
        (Likeness(equal=False, telling=True, distance=1e-3), "differ from those of c by 0.1 % (relative L2)"),
        (
            Likeness(equal=False, telling=True, distance=2e-7),
            "2e-05 % (relative L2), no more than those of two",
        ),
    ],
)
def test_what_outputs_say_is_told_in_words(alike: Likeness, words: str) -> None:
    assert words in outputs_text(trial(), alike)


def chosen(folder: Path, *, again: bool = False) -> tuple[SelectedModel, list[Event]]:
    if not again:
        models.save(models.convolutional(), folder / "m.onnx")
    seen: list[Event] = []
    spec = ModelSpec.model_validate(
        {"path": str(folder / "m.onnx"), "engine": "tensorrt", "max_batch_size": 1, "precision": ["fp16"]}
    )
    setting = Setting("m", spec, RunDirectory(folder / "run"), MACHINE, seen.append, "quick")
    return choose_winner(setting)[0], seen


def test_a_plan_that_hides_its_precision_and_answers_like_fp32_fails(
    standin: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STANDIN_TOLD", "opaque")
    monkeypatch.setenv("HOME", str(tmp_path))
    selected, _ = chosen(tmp_path)
    assert selected.selection.winner == "tensorrt-fp32"
    for name, asked in (("tensorrt-fp16", "fp16"), ("tensorrt-fp32-tf32", "tf32")):
        found = selected.trials[name]
        assert found.outcome is Outcome.FAILED
        assert f"{asked} is not in it: every bit of its outputs is that of tensorrt-fp32" in found.reason
        assert found.artifact is not None
        told = found.artifact.details["precision"]
        assert told["evidence"] == "ABSENT"
        assert told["beside"] in found.reason
        assert read_record(tmp_path / "run" / "trials" / name / "trial.json", Trial) == found
    # It stays so, and is not built again.
    selected, seen = chosen(tmp_path, again=True)
    assert selected.trials["tensorrt-fp16"].outcome is Outcome.FAILED
    assert [event.subject for event in seen if event.stage == "trial" and event.status == "started"] == []


def test_a_plan_that_hides_its_precision_and_rounds_is_kept_with_what_speaks_for_it(
    standin: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STANDIN_TOLD", "opaque")
    monkeypatch.setenv("STANDIN_ROUNDS", "1")
    monkeypatch.setattr(standin, "CAPABILITY", (7, 5))  # no TF32
    monkeypatch.setenv("STANDIN_CAPABILITY", "7.5")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(trials, "_TRIAL_TIMEOUT_S", 0.01)  # no bound on an engine that builds for hours
    selected, seen = chosen(tmp_path)
    assert list(selected.trials) == ["tensorrt-fp32", "tensorrt-fp16"]
    winner = selected.winner  # FP32 is slow here
    assert winner.candidate.id == "tensorrt-fp16"
    assert winner.artifact is not None
    told = winner.artifact.details["precision"]
    assert told["evidence"] == "OPAQUE"
    assert "outputs differ from those of tensorrt-fp32 by 0.0" in told["beside"]
    assert float(told["beside"].rpartition(", at ")[2].partition(" × its speed")[0]) > 1
    note = doubt(winner)
    assert note is not None
    assert note in selected.selection.notes
    assert read_record(tmp_path / "run" / "selection.json", Selection) == selected.selection
    assert any(event.status == "note" and event.message == note for event in seen)
