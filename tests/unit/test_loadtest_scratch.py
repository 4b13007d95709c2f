"""Folders of runs: gone afterwards, and those of killed runs gone with the next one."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from tritongen.loadtest.scratch import PREFIX, remove_abandoned, scratch_folder


def test_only_folders_whose_lock_is_free_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "lock").touch()
    for name in ("abandoned", "not-locked-yet"):
        (tmp_path / f"{PREFIX}{name}").mkdir()
        (tmp_path / f"{PREFIX}{name}" / "requests.bin").touch()
    (tmp_path / f"{PREFIX}abandoned" / "lock").touch()
    (tmp_path / f"{PREFIX}link").symlink_to(kept)
    (tmp_path / f"{PREFIX}file").touch()
    with scratch_folder() as folder:
        assert folder.stat().st_mode & 0o077 == 0
        remove_abandoned(tmp_path)
        assert folder.is_dir()
        left = {path.name.removeprefix(PREFIX) for path in tmp_path.iterdir() if path != folder}
        assert left == {"kept", "not-locked-yet", "link", "file"}
        assert (kept / "lock").exists()
    assert not folder.exists()
