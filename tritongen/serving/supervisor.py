"""The process between tritongen and tritonserver: nothing outlives either of them.

Run as a script (`python -I -S supervisor.py JOB`), so it imports the standard library only and stays small.
It starts tritonserver and ends it when the lifeline (a pipe from the process that asked for the server)
closes, however that process died; unless DETACH came through it before. As a subreaper it inherits Triton's
Python stubs when tritonserver is killed, so that they can be ended too. Then it removes the shared memory
segments and the scratch folder. If the supervisor itself is killed, the kernel sends SIGTERM to
tritonserver, which then ends its stubs.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

DETACH = b"d"
"""Through the lifeline: the server outlives the process that asked for it."""
PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
POLL_S = 0.5
ENDING_POLL_S = 0.05


def main(job: dict[str, Any]) -> int:
    """Run one server to its end; its exit code (128 + signal if a signal ended it), 0 if asked to end."""
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    wakeup = _wake_on_signals()
    stop = _StopFlag()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, stop.set)
    supervisor = os.getpid()

    def die_with_supervisor() -> None:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != supervisor:
            os._exit(1)

    # This process has one thread, so running code between fork and exec is safe here.
    with subprocess.Popen(
        job["command"],
        env=_environment(job),
        stdin=subprocess.DEVNULL,
        preexec_fn=die_with_supervisor,  # noqa: PLW1509
        # Of the scratch folder: nobody may remove it while one of us lives.
        pass_fds=() if job["lock"] is None else (job["lock"],),
    ) as server:
        code = _watch(server, job, wakeup, stop)
    _end_children()
    _remove_shared_memory(job["shm_prefix"])
    if stop.wanted or job["lifeline"] is None:
        shutil.rmtree(job["scratch"], ignore_errors=True)
    # Otherwise the server ended by itself, and whoever started it will read the log there, then remove it.
    if stop.wanted:
        return 0
    return code if code >= 0 else 128 - code


class _StopFlag:
    """Set by the signals that ask for the end."""

    wanted = False

    def set(self, _number: int, _frame: object) -> None:
        self.wanted = True


def _wake_on_signals() -> int:
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    os.set_blocking(read_end, False)
    signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
    return read_end


def _environment(job: dict[str, Any]) -> dict[str, str]:
    environment = dict(os.environ)
    for name, folders in job["prepend"].items():
        rest = [environment[name]] if environment.get(name) else []
        environment[name] = os.pathsep.join([*folders, *rest])
    return environment


def _watch(server: subprocess.Popen[bytes], job: dict[str, Any], wakeup: int, stop: _StopFlag) -> int:
    """Wait for the server's end; ask for it when the lifeline closes or a signal came."""
    lifeline = job["lifeline"]
    watched = [wakeup, lifeline]
    while (code := server.poll()) is None:
        ready, _, _ = select.select(watched, [], [], POLL_S)
        if wakeup in ready:
            with contextlib.suppress(BlockingIOError):
                os.read(wakeup, 512)
        if lifeline in ready:
            stop.wanted |= os.read(lifeline, len(DETACH)) != DETACH
            watched.remove(lifeline)
            job["lifeline"] = None
        if stop.wanted:
            return _end(server, job["grace_s"])
    return code


def _end(server: subprocess.Popen[bytes], grace_s: float) -> int:
    """Ask the server to end, give it `grace_s` for the requests in flight, then kill it."""
    stubs = children(server.pid)
    server.terminate()
    deadline = time.monotonic() + grace_s
    while (code := server.poll()) is None:
        # Triton unloads its models last, and then sleeps on: without its stubs it has nothing left to do.
        if time.monotonic() > deadline or (stubs and not children(server.pid)):
            server.kill()
        time.sleep(ENDING_POLL_S)
    return code


def _end_children() -> None:
    """Kill the stubs that the server left behind; they are our children now."""
    while True:
        for pid in children(os.getpid()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def children(parent: int) -> list[int]:
    """PIDs of a process's children, those included that have ended and were not waited for."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                # The name in parentheses may hold spaces; the parent is the second field after it.
                if (entry / "stat").read_text().rpartition(")")[2].split()[1] == str(parent):
                    found.append(int(entry.name))
    return found


def _remove_shared_memory(prefix: str) -> None:
    for segment in Path("/dev/shm").glob(prefix + "*"):  # noqa: S108
        segment.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
