"""`tritongen build` as a process: the whole command, interrupted, killed, resumed, and fed with bad input."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import models
from tritongen.errors import ExitCode
from tritongen.files import digest_files
from tritongen.runs.build import Build
from tritongen.runs.records import Outcome

QUICK = ("--effort", "quick", "--max-batch-size", "1")
COMMAND = (sys.executable, "-m", "tritongen", "build")


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*COMMAND, *arguments], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def build(folder: Path, *arguments: str, code: int = 0) -> Build:
    """Run a build with `--json` to its end and read what it says."""
    done = run(folder, *arguments, "--json", code=code)
    return Build.model_validate_json(done.stdout)


def run(folder: Path, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [*COMMAND, *arguments], cwd=folder, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def is_complete(repository: Path, name: str) -> bool:
    """Whether the model's folder holds a config, and each file as the manifest has it."""
    folder = repository / name
    files = json.loads((folder / "manifest.json").read_text())["files"]
    return "config.pbtxt" in files and all(
        digest_files([folder / one]) == entry["digest"] for one, entry in files.items()
    )


@pytest.fixture
def work(tmp_path: Path) -> Path:
    models.save(models.linear(), tmp_path / "linear.onnx")
    return tmp_path


@pytest.fixture
def data(work: Path) -> Path:
    """A convolutional net with data to calibrate it and to judge it by."""
    random_numbers = np.random.default_rng(3)
    images = random_numbers.standard_normal((96, 16, 8, 8)).astype(np.float32)
    models.save(models.convolutional((16, 16, 16)), work / "conv.onnx")
    np.savez(work / "calibration.npz", images=images[:48])
    np.savez(work / "validation.npz", images=images[48:])
    return work


def test_only_what_changed_is_built_and_measured_again(work: Path) -> None:
    first = build(work, "linear.onnx", *QUICK).models[0]
    assert first.status == "built"
    assert first.selection is not None
    assert first.selection.winner.startswith("onnxruntime-fp32")
    assert is_complete(work / "model_repository", "linear")
    kept = json.loads((work / ".tritongen/linear/build.json").read_text())
    assert (kept["seconds"], kept["selection"]["notes"]) == (first.seconds, list(first.selection.notes))
    before = snapshot(work / "model_repository")
    os.utime(work / "linear.onnx")  # touched, not changed
    second = build(work, "linear.onnx", *QUICK).models[0]
    assert (second.status, second.trials) == ("unchanged", first.trials)
    assert snapshot(work / "model_repository") == before

    shutil.rmtree(work / "model_repository")
    told = run(work, "linear.onnx", *QUICK).stdout
    assert "measured before" in told
    assert "int8 is not tried" in told.partition("is selected")[2]  # the summary, minutes after the note
    assert is_complete(work / "model_repository", "linear")
    models.save(models.linear(seed=5), work / "linear.onnx")
    assert "measured before" not in run(work, "linear.onnx", *QUICK).stdout
    assert is_complete(work / "model_repository", "linear")


def test_int8_is_judged_and_everyone_gets_a_sentence(data: Path) -> None:
    arguments = ("conv.onnx", "--calibration-data", "calibration.npz", "--validation-data", "validation.npz")
    model = build(data, *arguments, *QUICK, "--keep-candidates").models[0]
    assert model.selection is not None
    assert {trial.candidate.precision.value for trial in model.trials} == {"fp32", "int8"}
    judged = [model.selection.winner, *(loser.candidate for loser in model.selection.losers)]
    assert sorted(judged) == sorted(trial.candidate.id for trial in model.trials)
    for trial in model.trials:
        assert trial.outcome is not Outcome.FAILED, trial.reason
        assert trial.accuracy is not None
        assert trial.accuracy.samples == 48
        assert trial.peak_memory_bytes is not None
        folder = data / ".tritongen" / "conv" / "trials" / trial.candidate.id
        with np.load(folder / "samples.npz") as samples:
            assert all(len(samples[str(p.samples)]) == p.iterations for p in trial.curve)
    events = [json.loads(line) for line in (data / ".tritongen/conv/events.jsonl").read_text().splitlines()]
    assert {"inspect", "calibrate", "trial", "latency", "select", "write"} <= {e["stage"] for e in events}


def test_one_failing_model_does_not_lose_the_others(work: Path) -> None:
    (work / "bad.onnx").write_text("this is no model")
    built = build(work, "bad.onnx", "linear.onnx", *QUICK, code=ExitCode.USAGE)
    assert [model.status for model in built.models] == ["failed", "built"]
    assert built.models[0].error is not None
    assert "bad.onnx" in built.models[0].error
    assert is_complete(work / "model_repository", "linear")


def test_ctrl_c_stops_cleanly_and_the_next_build_resumes(data: Path) -> None:
    process = start(data, "conv.onnx", *QUICK)
    first = data / ".tritongen/conv/trials/onnxruntime-fp32/trial.json"
    second = data / ".tritongen/conv/trials/onnxruntime-fp32-extended/job.json"
    wait_for(lambda: first.exists() and second.exists(), process)
    stops_cleanly(process, signal.SIGINT)
    assert not (data / "model_repository").exists()
    resumed = run(data, "conv.onnx", *QUICK)
    assert "measured before" in resumed.stdout
    assert is_complete(data / "model_repository", "conv")


def stops_cleanly(process: subprocess.Popen[str], number: int) -> None:
    process.send_signal(number)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 128 + number, out + err
    assert "run the same command again" in err
    assert "Traceback" not in err
    wait_until_no_children(process.pid)


def test_a_second_build_at_the_same_time_says_who_is_at_work(data: Path) -> None:
    process = start(data, "conv.onnx", *QUICK)
    wait_for((data / ".tritongen/conv/spec.json").exists, process)
    process.send_signal(signal.SIGSTOP)  # or it might end before the other one begins
    refused = run(data, "conv.onnx", *QUICK, code=ExitCode.FAILURE)
    assert f"process {process.pid}" in refused.stderr
    process.send_signal(signal.SIGCONT)
    stops_cleanly(process, signal.SIGTERM)


@pytest.mark.slow
def test_kill_9_at_any_moment_leaves_the_old_state_or_the_new_one(work: Path) -> None:
    began = time.monotonic()
    run(work, "linear.onnx", *QUICK)
    duration = time.monotonic() - began
    repository = work / "model_repository"
    moments = [*(random.Random(11).uniform(0.1, 0.9) for _ in range(2)), 0.93, 1.0]
    for seed, moment in enumerate(moments, start=1):
        before = snapshot(repository)
        models.save(models.linear(seed=seed), work / "linear.onnx")
        process = start(work, "linear.onnx", *QUICK)
        time.sleep(moment * duration)
        process.kill()
        process.communicate()
        assert is_complete(repository, "linear")
        if snapshot(repository) != before:
            served = (work / "model_repository/linear").glob("*/model.onnx")
            assert (work / "linear.onnx").read_bytes() in [path.read_bytes() for path in served]
        wait_until_no_children(process.pid)
    run(work, "linear.onnx", *QUICK)
    assert is_complete(repository, "linear")
    assert [path.name for path in repository.iterdir()] == ["linear"]


def wait_for(condition: Any, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def children_of(pid: int) -> list[int]:
    """Living stages of the build with that process number."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if str(pid).encode() in words and any(b"tritongen.autotune." in word for word in words):
            found.append(int(entry.name))
    return found


def wait_until_no_children(pid: int) -> None:
    deadline = time.monotonic() + 60
    while children_of(pid):
        assert time.monotonic() < deadline
        time.sleep(0.02)
