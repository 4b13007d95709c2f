"""Temporary folders: gone afterwards, and those of killed processes gone with the next one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tritongen.scratch import Scratch, remove_abandoned

PREFIX = "tritongen-test-"


def test_only_folders_whose_lock_is_free_are_removed(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "lock").touch()
    for name in ("abandoned", "not-locked-yet"):
        (tmp_path / f"{PREFIX}{name}").mkdir()
        (tmp_path / f"{PREFIX}{name}" / "requests.bin").touch()
    (tmp_path / f"{PREFIX}abandoned" / "lock").touch()
    (tmp_path / f"{PREFIX}link").symlink_to(kept)
    (tmp_path / f"{PREFIX}file").touch()
    with Scratch(PREFIX, str(tmp_path)) as folder:
        assert folder.stat().st_mode & 0o077 == 0
        remove_abandoned(tmp_path, PREFIX)
        assert folder.is_dir()
        left = {path.name.removeprefix(PREFIX) for path in tmp_path.iterdir() if path != folder}
        assert left == {"kept", "not-locked-yet", "link", "file"}
        assert (kept / "lock").exists()
    assert not folder.exists()


def test_a_folder_stays_as_long_as_a_process_that_was_given_its_lock(tmp_path: Path) -> None:
    maker = (
        "import subprocess, sys, time\nfrom tritongen.scratch import Scratch\n"
        "scratch = Scratch(*sys.argv[1:])\n"
        "subprocess.Popen(['cat'], pass_fds=[scratch.lock])\n"
        "print(scratch.path, flush=True)\ntime.sleep(600)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", maker, PREFIX, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as parent:
        assert parent.stdin is not None
        assert parent.stdout is not None
        folder = Path(parent.stdout.readline().strip())
        parent.kill()
        parent.wait()
        remove_abandoned(tmp_path, PREFIX)
        assert folder.is_dir()
        parent.stdin.close()  # which ends the child
        assert parent.stdout.read() == ""
    while folder.exists():  # a moment after its end, at the latest
        remove_abandoned(tmp_path, PREFIX)
