"""The folder that a run's workers read and write; those of runs that were killed are removed."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

PREFIX = "tritongen-loadtest-"
_LOCK = "lock"


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """A folder that only this user can read, gone on leaving; a kill leaves it to the next run."""
    remove_abandoned(Path(tempfile.gettempdir()))
    with tempfile.TemporaryDirectory(prefix=PREFIX) as name:
        folder = Path(name)
        held = _hold(folder)
        try:
            yield folder
        finally:
            if held is not None:
                os.close(held)


def remove_abandoned(parent: Path) -> None:
    """Remove this user's folders in `parent` whose lock nobody holds: the kernel frees it as a process ends.

    A folder without a lock is left alone.
    """
    for folder in parent.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):
            found = folder.lstat()
            if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
                continue
            lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder)
            finally:
                os.close(lock)


def _hold(folder: Path) -> int | None:
    """The lock's descriptor; the file bears its name only once it is locked. None where that cannot be."""
    new = folder / "unlocked"
    lock = os.open(new, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        new.rename(folder / _LOCK)
    except OSError:  # a file system without locks
        os.close(lock)
        return None
    return lock
