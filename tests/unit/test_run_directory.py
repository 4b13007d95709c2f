"""The run directory: one build at a time, a journal, and fingerprints that notice every change."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tritongen.errors import RequirementError
from tritongen.runs import fingerprint
from tritongen.runs.events import Event
from tritongen.runs.journal import journal
from tritongen.runs.lock import exclusive
from tritongen.runs.store import write_record


def test_the_lock_names_its_holder_and_goes_with_it(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom tritongen.runs.lock import exclusive\n"
        f"with exclusive(Path({str(lock)!r})):\n    print('held', flush=True)\n    time.sleep(600)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(RequirementError, match=f"process {holder.pid} .*: .* -c import sys"), exclusive(lock):
        pass
    holder.kill()
    holder.communicate()
    with exclusive(lock):
        assert str(os.getpid()) in lock.read_text()


def test_the_journal_appends_and_passes_on(tmp_path: Path) -> None:
    seen: list[Event] = []
    path = tmp_path / "events.jsonl"
    for message in ("one", "two"):
        with journal(path, seen.append) as record:
            record(Event("trial", "note", message, data={"k": 1}))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["message"] for line in lines] == [event.message for event in seen] == ["one", "two"]
    assert all(line["time"].endswith("+00:00") for line in lines)


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.npy").write_bytes(b"a")
    (tmp_path / "model.onnx").write_bytes(b"model")
    (tmp_path / "out" / "1").mkdir(parents=True)
    (tmp_path / "out" / "1" / "model.onnx").write_bytes(b"model")
    roots = [tmp_path / "data", tmp_path / "model.onnx"]
    write_record(tmp_path / "fingerprint.json", fingerprint.take("settings", roots, tmp_path / "out"))
    return tmp_path / "fingerprint.json"


def test_an_unchanged_build_is_recognised_even_when_touched(stored: Path) -> None:
    assert fingerprint.unchanged(stored, "settings")
    os.utime(stored.parent / "model.onnx", (time.time() + 5,) * 2)
    assert fingerprint.unchanged(stored, "settings")


@pytest.mark.parametrize(
    "change",
    [
        lambda root: (root / "model.onnx").write_bytes(b"medol"),
        lambda root: (root / "model.onnx").unlink(),
        lambda root: (root / "data" / "b.npy").write_bytes(b"b"),
        lambda root: (root / "data" / "a.npy").unlink(),
        lambda root: (root / "out" / "1" / "model.onnx").unlink(),
        lambda root: (root / "out" / "config.pbtxt").write_text("edited"),
        lambda root: (root / "fingerprint.json").write_text("{}"),
        lambda root: (root / "fingerprint.json").unlink(),
    ],
    ids=["content", "gone", "more data", "less data", "output gone", "output more", "damaged", "none"],
)
def test_every_change_is_noticed(stored: Path, change: object) -> None:
    change(stored.parent)  # type: ignore[operator]
    assert not fingerprint.unchanged(stored, "settings")


def test_other_settings_are_another_build(stored: Path) -> None:
    assert not fingerprint.unchanged(stored, "other settings")
