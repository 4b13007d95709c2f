"""Bad data, crashing code and refusing disks: one clear message from `tritongen build`, no half state."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tests import models
from tests.integration.test_build import QUICK, build, run
from tritongen.errors import ExitCode
from tritongen.runs.records import Outcome

CRASHING = """
import ctypes, os, resource
import numpy as np

def samples(times):
    path = f"calls-{times}"
    with open(path, "a") as stream:
        stream.write("x")
    if os.path.getsize(path) > times:
        crash(times)
    return {"x": np.random.default_rng(1).standard_normal((8, 4)).astype("float32")}

def crash(times):
    ctypes.string_at(0)

def at_once():
    return samples(0)

def later():
    return samples(2)  # read once for its shapes, once for the batch axis

def hungry():
    resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
    return {"x": np.zeros((1 << 32, 4), "float32")}

def killed():
    os.kill(os.getpid(), 9)
"""


@pytest.fixture
def work(tmp_path: Path) -> Path:
    models.save(models.linear(), tmp_path / "linear.onnx")
    (tmp_path / "crashing.py").write_text(CRASHING)
    np.save(tmp_path / "good.npy", np.ones((8, 4), np.float32) * np.arange(8, dtype=np.float32)[:, None])
    return tmp_path


def refused(work: Path, *arguments: str, code: int, says: str) -> str:
    """The message of a build that must leave nothing in the repository."""
    done = run(work, "linear.onnx", *QUICK, *arguments, code=code)
    assert says in done.stderr, done.stderr
    assert not (work / "model_repository").exists()
    assert done.stderr.count("error:") == 1
    return done.stderr


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (np.full((8, 4), np.nan, np.float32), "not finite"),
        (np.ones((8, 4), np.float64), "float64"),
        (np.ones((8, 5), np.float32), "wrong shape"),
        (np.ones((0, 4), np.float32), "no samples"),
    ],
    ids=["nan", "dtype", "shape", "empty"],
)
def test_bad_data(work: Path, array: NDArray[np.float32], says: str) -> None:
    np.savez(work / "bad.npz", x=array)
    refused(work, "--calibration-data", "bad.npz", code=ExitCode.USAGE, says=says)


@pytest.mark.parametrize(
    ("function", "says"),
    [("at_once", "SIGSEGV"), ("killed", "SIGKILL")],
)
def test_code_that_takes_its_process_down(work: Path, function: str, says: str) -> None:
    message = refused(work, "--validation-data", f"crashing:{function}", code=ExitCode.FAILURE, says=says)
    assert "log.txt" in message


def test_code_that_runs_out_of_memory(work: Path) -> None:
    refused(work, "--validation-data", "crashing:hungry", code=ExitCode.USAGE, says="MemoryError")


def test_a_crash_in_some_trials_loses_only_those(work: Path) -> None:
    data = ("--calibration-data", "crashing:later", "--validation-data", "good.npy")
    model = build(work, "linear.onnx", *QUICK, *data).models[0]
    assert model.selection is not None
    assert model.selection.winner.startswith("onnxruntime-fp32")
    failed = [trial for trial in model.trials if trial.outcome is Outcome.FAILED]
    assert failed
    assert all("segmentation fault" in trial.reason for trial in failed)
    assert not model.selection.runners_up


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("--engine", "tensorrt"), ExitCode.FAILURE, "tensorrt"),
        (("--name", "../x"), ExitCode.USAGE, "../x"),
        (("--shape", "nosuch=3"), ExitCode.USAGE, "nosuch"),
        (("--objective", "latency@64"), ExitCode.USAGE, "latency@64"),
        (("--metric", "os:nope"), ExitCode.USAGE, "the metric 'os:nope' cannot be found"),
        (("--metric", "os:path"), ExitCode.USAGE, "the metric 'os:path' is not a function"),
        (("--repository", "/proc/x"), ExitCode.USAGE, "/proc/x could not be written"),
    ],
    ids=["engine", "name", "shape", "objective", "no-metric", "metric", "repository"],
)
def test_requests_that_cannot_be_met(work: Path, arguments: tuple[str, ...], code: int, says: str) -> None:
    if "tensorrt" in arguments and _has_tensorrt():
        pytest.skip("TensorRT is installed here")
    refused(work, *arguments, code=code, says=says)


def _has_tensorrt() -> bool:
    return subprocess.run([sys.executable, "-c", "import tensorrt"], capture_output=True).returncode == 0  # noqa: PLW1510


@pytest.mark.parametrize("flag", ["--run-dir", "--repository"])
def test_a_folder_that_cannot_be_written(work: Path, flag: str) -> None:
    if os.getuid() == 0:  # permissions do not bind root, so a file stands where a folder must be
        (work / "closed").write_text("not a folder")
    else:
        (work / "closed").mkdir(mode=0o500)
    code = ExitCode.USAGE if os.getuid() == 0 else ExitCode.FAILURE
    message = refused(work, flag, "closed/inner", code=code, says="closed")
    assert "to fix" in message
    assert not (work / ".tritongen").exists()


@pytest.mark.parametrize("flag", ["--run-dir", "--repository"])
def test_a_folder_whose_name_is_too_long(work: Path, flag: str) -> None:
    message = refused(work, flag, "x" * 6000, code=ExitCode.USAGE, says="(6000 characters)")
    assert f"choose a folder with a shorter name with {flag}" in message
    assert "x" * 300 not in message


def test_a_file_size_limit_is_a_full_disk(work: Path) -> None:
    models.save(models.linear(inputs=4, outputs=50_000), work / "linear.onnx")

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))

    done = subprocess.run(
        [sys.executable, "-m", "tritongen", "build", "linear.onnx", *QUICK],
        cwd=work, capture_output=True, text=True, preexec_fn=limit, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == ExitCode.FAILURE
    assert "full" in done.stderr
    assert "--run-dir" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (work / "model_repository").exists()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("flag", ["--run-dir", "--repository"])
def test_a_full_disk(work: Path, small_disk: Path, flag: str) -> None:
    models.save(models.linear(inputs=4, outputs=50_000), work / "linear.onnx")
    done = run(work, "linear.onnx", *QUICK, flag, str(small_disk / "inner"), code=ExitCode.FAILURE)
    assert "No space left on device" in done.stderr
    assert not list(small_disk.rglob("config.pbtxt"))
