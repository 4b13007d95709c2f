"""Temporary folders: gone when they are left, and those of killed processes gone with the next one made."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
from pathlib import Path
from types import TracebackType

_LOCK = "lock"


class Scratch:
    """A new folder in `parent` that only this user can read; OSError where it cannot be made.

    A process that is given `lock` keeps the folder for as long as it lives.
    """

    def __init__(self, prefix: str, parent: str | None = None) -> None:
        parent = parent or tempfile.gettempdir()
        remove_abandoned(Path(parent), prefix)
        self.path = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        self.lock = _hold(self.path)
        """A descriptor; None on a file system without locks."""

    def __enter__(self) -> Path:
        return self.path

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    def remove(self) -> None:
        """Remove the folder and what is in it; nothing happens if it is gone."""
        if self.lock is not None:
            os.close(self.lock)
            self.lock = None
        shutil.rmtree(self.path, ignore_errors=True)


def remove_abandoned(parent: Path, prefix: str) -> None:
    """Remove this user's folders in `parent` whose lock nobody holds: the kernel frees it as processes end.

    A folder without a lock is left alone.
    """
    for folder in parent.glob(f"{prefix}*"):
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
