"""One build at a time in a run directory."""

from __future__ import annotations

import fcntl
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tritongen.errors import RequirementError


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold the lock file; RequirementError naming the holder if another process has it.

    The kernel releases it when the holder ends, however it ends: there is no stale lock to remove.
    """
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(handle, 200).decode(errors="replace").strip()
            raise RequirementError(
                f"another build is at work in {path.parent}",
                found=holder or "a process that has just started",
                fix="wait for it to end, or give this build a --run-dir of its own",
            ) from None
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"process {os.getpid()} on {platform.node()} since {since}\n".encode(), 0)
        yield
    finally:
        os.close(handle)
