"""Trials in children: several at once where there are several GPUs, and only what the budget has room for."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests import models
from tritongen.autotune import trials
from tritongen.autotune.budget import Budget
from tritongen.autotune.candidates import search_space
from tritongen.autotune.jobs import prepared_graph
from tritongen.autotune.machine import current_machine
from tritongen.autotune.stages import Setting, prepare_model
from tritongen.autotune.trials import Search, run_trials
from tritongen.autotune.winner import choose_winner, idle_settings, usable_devices
from tritongen.engines import load_engine
from tritongen.runs.events import Event
from tritongen.runs.records import Candidate, Outcome
from tritongen.runs.store import RunDirectory
from tritongen.spec import DataSpec, ModelSpec, TensorRTSpec

ENGINE = load_engine("onnxruntime")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Search, tuple[Candidate, ...]]:
    folder = tmp_path_factory.mktemp("trials")
    path = models.save(models.convolutional(), folder / "m.onnx")
    spec = ModelSpec(path=path, max_batch_size=1)
    setting = Setting("m", spec, RunDirectory(folder), current_machine(), lambda _event: None, "quick")
    preparation = prepare_model(setting)
    graph = prepared_graph(spec, preparation)
    space = search_space(ENGINE, graph, calibrated=False)
    assert len(space.candidates) == 2
    return Search(setting, ENGINE, graph, preparation, Budget()), space.candidates


def searched(
    search: Search, folder: Path, *, budget: Budget | None = None, devices: int = 1
) -> tuple[Search, list[Event]]:
    seen: list[Event] = []
    setting = replace(search.setting, run=RunDirectory(folder), events=seen.append, devices=devices)
    return replace(search, setting=setting, budget=budget or Budget()), seen


def test_several_gpus_work_at_once(prepared: tuple[Search, tuple[Candidate, ...]], tmp_path: Path) -> None:
    search, (fallback, other) = prepared
    candidates = [fallback, *(other.model_copy(update={"id": f"{other.id}-{i}"}) for i in range(3))]
    search, seen = searched(search, tmp_path, devices=2)
    tried = run_trials(search, candidates)
    assert [trial.candidate.id for trial in tried.trials] == [one.id for one in candidates]
    assert {trial.outcome for trial in tried.trials} == {Outcome.PASSED}
    order = [(event.status, event.subject) for event in seen if event.status in ("started", "finished")]
    most = 0
    open_at_once: set[str | None] = set()
    for status, subject in order:
        (open_at_once.add if status == "started" else open_at_once.discard)(subject)
        most = max(most, len(open_at_once))
    assert most == 2


def test_the_fallback_shares_the_budget_with_others_on_other_gpus(
    prepared: tuple[Search, tuple[Candidate, ...]], tmp_path: Path
) -> None:
    search, (fallback, other) = prepared
    roomy, seen = searched(search, tmp_path / "roomy", budget=Budget(10), devices=2)
    assert len(run_trials(roomy, [fallback, other]).trials) == 2
    assert [event.status for event in seen if event.status in ("started", "finished")][:2] == ["started"] * 2
    # The fallback is this run's progress, so that nothing else may outlive the budget.
    spent, _ = searched(search, tmp_path / "spent", budget=Budget(0.001), devices=2)
    assert run_trials(spent, [fallback, other]).left_out == (other.id,)
    # It is known then, and the next run's progress is the other.
    again, _ = searched(search, tmp_path / "spent", budget=Budget(0.001), devices=2)
    assert run_trials(again, [fallback, other]).left_out == ()


def test_an_interrupt_ends_all_trials_at_work(
    prepared: tuple[Search, tuple[Candidate, ...]], tmp_path: Path
) -> None:
    search, (fallback, other) = prepared
    candidates = [fallback, *(other.model_copy(update={"id": f"{other.id}-{i}"}) for i in range(4))]
    search, _ = searched(search, tmp_path, devices=2)

    def stop(event: Event) -> None:
        if event.status == "started" and event.subject == candidates[2].id:
            raise KeyboardInterrupt

    search = replace(search, setting=replace(search.setting, events=stop))
    before = set(threading.enumerate())  # other tests' servers and channels
    with pytest.raises(KeyboardInterrupt):
        run_trials(search, candidates)
    assert set(threading.enumerate()) <= before
    assert not (tmp_path / "trials" / candidates[4].id).exists()  # nothing new was started


def test_a_spent_budget_leaves_the_fallback_and_names_the_rest(
    prepared: tuple[Search, tuple[Candidate, ...]], tmp_path: Path
) -> None:
    search, (fallback, other) = prepared
    budget = Budget(0.01)
    time.sleep(0.7)
    search, seen = searched(search, tmp_path, budget=budget)
    tried = run_trials(search, [fallback, other])
    assert [trial.candidate for trial in tried.trials] == [fallback]
    assert tried.left_out == (other.id,)
    assert any(event.status == "skipped" and event.subject == other.id for event in seen)
    # What is known from an earlier run costs nothing, and is used whatever the budget says.
    roomy, _ = searched(search, tmp_path)
    assert run_trials(roomy, [fallback, other]).left_out == ()
    again, _ = searched(search, tmp_path, budget=budget)
    assert len(run_trials(again, [fallback, other]).trials) == 2


def test_each_run_gets_one_trial_further_however_small_its_budget(
    prepared: tuple[Search, tuple[Candidate, ...]], tmp_path: Path
) -> None:
    search, (fallback, other) = prepared
    for done in (1, 2):
        search, _ = searched(search, tmp_path, budget=Budget(0.001))
        assert len(run_trials(search, [fallback, other]).trials) == done
        assert search.budget.exceeded()


def test_what_runs_for_an_hour_hangs_unless_the_budget_is_longer(
    prepared: tuple[Search, tuple[Candidate, ...]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    search, (fallback, _) = prepared
    monkeypatch.setattr(trials, "_TRIAL_TIMEOUT_S", 0.01)
    search, _ = searched(search, tmp_path)
    (trial,) = run_trials(search, [fallback]).trials
    assert trial.reason.startswith("its process did not end within")
    longer, _ = searched(search, tmp_path, budget=Budget(10))
    (trial,) = run_trials(longer, [fallback]).trials
    assert trial.outcome is Outcome.PASSED


def test_a_trial_that_outlives_the_budget_is_not_a_failure(
    prepared: tuple[Search, tuple[Candidate, ...]], tmp_path: Path
) -> None:
    search, (_, other) = prepared
    # The clock jumps once the trial has been started, so that it is ended at once.
    readings = iter([0.0, 0.0, 0.0, 59.99])
    budget = Budget(1.0, clock=lambda: next(readings, 1000.0))
    budget.progressed()
    search, _ = searched(search, tmp_path, budget=budget)
    tried = run_trials(search, [other], fallback=False)
    assert (tried.trials, tried.left_out) == ((), (other.id,))
    assert not (tmp_path / "trials" / other.id / "trial.json").exists()


def test_without_validation_data_floats_are_judged_on_the_calibration_data(tmp_path: Path) -> None:
    """Real samples beat made-up ones, and no float candidate was calibrated on them; 8 bits stay out."""
    samples = np.random.default_rng(0).standard_normal((40, 4)).astype(np.float32)
    np.savez(tmp_path / "calibration.npz", x=samples)
    path = models.save(models.linear(), tmp_path / "m.onnx")
    data = DataSpec(calibration=str(tmp_path / "calibration.npz"))
    spec = ModelSpec(path=path, max_batch_size=1, data=data)
    setting = Setting("m", spec, RunDirectory(tmp_path), current_machine(), lambda _event: None, "quick")
    selected, _ = choose_winner(setting)
    (trial,) = selected.trials.values()
    assert trial.accuracy is not None
    assert (trial.accuracy.basis, trial.accuracy.samples) == ("reference", 40)
    notes = " ".join(selected.selection.notes)
    assert "int8 is not tried" in notes
    assert "judged on the calibration data" in notes


def test_gpus_of_different_models_are_not_mixed() -> None:
    assert usable_devices(()) == (1, ())
    assert usable_devices(("H100",)) == (1, ())
    assert usable_devices(("H100", "H100"))[0] == 2
    count, (note,) = usable_devices(("H100", "L4"))
    assert count == 1
    assert "H100, L4" in note


def test_settings_of_tensorrt_that_another_engine_leaves_aside_are_named() -> None:
    spec = ModelSpec(path=Path("m.onnx"), tensorrt=TensorRTSpec(optimization_level=5))
    (note,) = idle_settings(spec, "onnxruntime")
    assert "optimization_level without effect: the engine is onnxruntime" in note
    assert (
        idle_settings(spec, "tensorrt") == idle_settings(ModelSpec(path=Path("m.onnx")), "onnxruntime") == ()
    )
