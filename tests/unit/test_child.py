"""Stages in child processes: real crashes, limits, time-outs and orphans."""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tritongen.autotune.child import run_child
from tritongen.errors import DataError
from tritongen.runs.events import Event, EventSink, discard


def ends_well(job: Path, events: EventSink) -> None:
    events(Event("trial", "progress", "half way", fraction=0.5))
    (job.parent / "result").write_text("done")


def segfaults(_job: Path, events: EventSink) -> None:
    events(Event("trial", "progress", "opening the model"))
    ctypes.string_at(0)


def is_killed(_job: Path, _events: EventSink) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def outgrows_its_limit(_job: Path, _events: EventSink) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
    bytearray(8 << 30)


def hangs(job: Path, _events: EventSink) -> None:
    helper = subprocess.Popen(["sleep", "600"])
    (job.parent / "pids").write_text(f"{os.getpid()} {helper.pid}")
    time.sleep(600)


def raises(_job: Path, _events: EventSink) -> None:
    raise ValueError("this is not what was meant")


class _Archive:
    """As np.savez's: it tries to write its end when it is thrown away."""

    def __del__(self) -> None:
        raise ValueError("seek of closed file")


def fills_the_disk(_job: Path, _events: EventSink) -> None:
    _archive = _Archive()
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def explains(_job: Path, _events: EventSink) -> None:
    raise DataError("input 'x' holds NaN", found="3 of 8 samples", fix="clean the data")


class NoiseError(DataError):
    """A kind that only this module knows."""


def explains_in_own_words(_job: Path, _events: EventSink) -> None:
    raise NoiseError("too loud")


def tells_its_gpus(job: Path, _events: EventSink) -> None:
    (job.parent / "gpus").write_text(os.environ.get("CUDA_VISIBLE_DEVICES", "all"))


def is_gone(pid: int) -> bool:
    """Whether a process has ended (a zombie has)."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return True
    return state in "ZX"


def wait_until_gone(*pids: int) -> None:
    deadline = time.monotonic() + 60
    while not all(map(is_gone, pids)):
        assert time.monotonic() < deadline, f"still there: {[pid for pid in pids if not is_gone(pid)]}"
        time.sleep(0.02)


def run(function: str, folder: Path, timeout_s: float = 60, events: EventSink = discard) -> str | None:
    failure = run_child(f"{__name__}:{function}", folder / "job.json", timeout_s=timeout_s, events=events)
    return failure.reason if failure else None


def test_it_ends_well_and_its_events_arrive(tmp_path: Path) -> None:
    seen: list[Event] = []
    assert run("ends_well", tmp_path, events=seen.append) is None
    assert (tmp_path / "result").read_text() == "done"
    assert [(event.message, event.fraction) for event in seen] == [("half way", 0.5)]


@pytest.mark.parametrize(
    ("function", "telling"),
    [
        ("segfaults", "segmentation fault (SIGSEGV) after: opening the model"),
        ("is_killed", "SIGKILL"),
        ("outgrows_its_limit", "MemoryError"),
        ("raises", "ValueError: this is not what was meant"),
        ("fills_the_disk", "No space left on device"),
    ],
)
def test_how_it_died_is_told(function: str, telling: str, tmp_path: Path) -> None:
    assert telling in (run(function, tmp_path) or "")


def test_a_segfault_leaves_a_stack_in_the_log(tmp_path: Path) -> None:
    run("segfaults", tmp_path)
    assert "in segfaults" in (tmp_path / "log.txt").read_text()


def test_an_explained_error_comes_back_whole(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        run("explains", tmp_path)
    assert (caught.value.found, caught.value.fix) == ("3 of 8 samples", "clean the data")


def test_an_error_of_a_rooms_own_kind_keeps_its_exit_code(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="too loud"):
        run("explains_in_own_words", tmp_path)


def test_a_time_out_ends_the_whole_family(tmp_path: Path) -> None:
    for patience_s in (2, 10, 50):  # a busy machine takes longer to start anything
        assert f"did not end within {patience_s} s" in (run("hangs", tmp_path, timeout_s=patience_s) or "")
        if (tmp_path / "pids").exists():
            break
    wait_until_gone(*map(int, (tmp_path / "pids").read_text().split()))


def test_no_orphan_survives_a_killed_parent(tmp_path: Path) -> None:
    code = f"from tests.unit.test_child import *; run('hangs', Path({str(tmp_path)!r}))"
    parent = subprocess.Popen([sys.executable, "-c", code])
    pids = tmp_path / "pids"
    while not (pids.exists() and pids.read_text().count(" ")):
        assert parent.poll() is None
        time.sleep(0.02)
    parent.kill()
    parent.wait()
    child, helper = map(int, pids.read_text().split())
    wait_until_gone(child)
    os.kill(helper, signal.SIGKILL)  # what a killed child had started is beyond its reach


@pytest.mark.parametrize(
    ("visible", "device", "seen"),
    [(None, None, "all"), (None, 1, "1"), ("3,5", 1, "5"), ("GPU-a,GPU-b", 0, "GPU-a"), ("4", None, "4")],
)
def test_a_child_sees_only_the_gpu_that_it_was_given(
    visible: str | None, device: int | None, seen: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    job = tmp_path / "job.json"
    assert run_child(f"{__name__}:tells_its_gpus", job, timeout_s=60, events=discard, device=device) is None
    assert (tmp_path / "gpus").read_text() == seen


def test_a_child_that_is_not_wanted_any_more_is_ended(tmp_path: Path) -> None:
    job, pids = tmp_path / "job.json", tmp_path / "pids"

    def started() -> bool:
        return pids.exists() and pids.read_text() != ""

    assert run_child(f"{__name__}:hangs", job, timeout_s=60, events=discard, cancelled=started) is not None
    wait_until_gone(*map(int, pids.read_text().split()))
