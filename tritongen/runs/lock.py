"""One build at a time in a run directory, whatever models it builds."""

from __future__ import annotations

import contextlib
import fcntl
import os
import platform
import textwrap
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
            raise RequirementError(
                f"another build is at work in {path.parent}",
                found=_holder(os.pread(handle, 200, 0).decode(errors="replace").strip()),
                expected="one build at a time, as two would spoil each other's timings",
                fix="wait for it to end or stop it (then run this again: finished trials are kept), or, on "
                "another machine, give this build a --run-dir of its own",
            ) from None
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"process {os.getpid()} on {platform.node()} since {since}\n".encode(), 0)
        yield
    finally:
        os.close(handle)


def _holder(written: str) -> str:
    """What the holder wrote about itself, with its command line where it can still be seen."""
    words = written.split()
    with contextlib.suppress(OSError, IndexError):
        if words[3] == platform.node():
            line = (
                Path(f"/proc/{words[1]}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            )
            return f"{written}: {textwrap.shorten(line, 160)}"
    return written or "a process that has just started"
