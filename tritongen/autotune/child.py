"""A stage in a process of its own, so that a crash, a leak or a hang of native code is data and not the end.

The child leads its own session: Ctrl-C on the terminal reaches only the parent, which then ends the child and
all that it started. Should the parent be killed, the kernel kills the child (PR_SET_PDEATHSIG).
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import importlib
import json
import os
import resource
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tritongen import errors
from tritongen.autotune.budget import TIMED_OUT
from tritongen.errors import TritongenError
from tritongen.files import write_text
from tritongen.runs.events import Event, EventSink

Main = Callable[[Path, EventSink], None]
"""What a child runs: the job file, and where its progress goes. Results are files."""

_BOOTSTRAP = """
import json, os, sys
sys.path[:] = json.loads(sys.argv[1])
device = sys.argv.pop()
if device:  # before anything loads CUDA
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    os.environ["CUDA_VISIBLE_DEVICES"] = visible.split(",")[int(device)].strip() if visible else device
from tritongen.autotune.child import enter
enter(*sys.argv[2:])
"""
_PR_SET_PDEATHSIG = 1
_INTERRUPTS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_SENTENCES = {
    signal.SIGSEGV: "crashed with a segmentation fault (SIGSEGV)",
    signal.SIGBUS: "crashed with a bus error (SIGBUS)",
    signal.SIGILL: "ran an instruction that this CPU does not have (SIGILL)",
    signal.SIGFPE: "crashed with an arithmetic error (SIGFPE)",
    signal.SIGABRT: "aborted itself (SIGABRT)",
    signal.SIGXCPU: "used up its limit of CPU time (SIGXCPU)",
    signal.SIGXFSZ: "wrote a file larger than its limit (SIGXFSZ)",
}

_FAULTHANDLER = (" ", "Extension modules", "Current thread", "Thread", "Fatal Python error")


@dataclass(frozen=True)
class Failure:
    """How a child died."""

    reason: str
    """A clause to follow the child's name: "crashed with a segmentation fault (SIGSEGV) after …"."""


def run_child(
    main: str,
    job: Path,
    *,
    timeout_s: float,
    events: EventSink,
    subject: str | None = None,
    device: int | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> Failure | None:
    """Run `main` ("module:function") on `job` in a child and wait; None if it ended well.

    `device`: the only GPU that the child sees, counted among those that this process sees. `cancelled` is
    asked often, and ends the child when it says so.

    Output goes to log.txt beside `job`. A `TritongenError` that the child raised is raised here again.
    Whatever ends this call, an interrupt included, the child and its process group are gone afterwards.
    """
    error_file = job.parent / "error.json"
    error_file.unlink(missing_ok=True)
    kills_before = _oom_kills()
    steps: list[str] = []
    with (job.parent / "log.txt").open("wb") as log:
        # An interrupt waits until the child is in our hands: what is not known cannot be ended.
        signal.pthread_sigmask(signal.SIG_BLOCK, _INTERRUPTS)
        try:
            process, channel = _start(main, job, log.fileno(), device)
        except BaseException:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _INTERRUPTS)
            raise
        try:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _INTERRUPTS)
            remembering = _remembering(events, steps, subject)
            timed_out = not _follow(process, channel, timeout_s, remembering, cancelled)
        finally:
            _end(process)
            os.close(channel)
    if error_file.exists():
        raise _revive(error_file)
    if timed_out:
        return Failure(f"{TIMED_OUT} {timeout_s:.0f} s{_after(steps)}")
    if process.returncode == 0:
        return None
    oom = _oom_kills() > kills_before
    return Failure(_cause(process.returncode, oom=oom) + _after(steps) + _last_words(job.parent / "log.txt"))


def enter(main: str, job: str, channel: str, parent: str) -> None:
    """The child's side: bind its life to the parent's, run `main`, and write down the error it raises."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != int(parent):  # it died before the line above
        return
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    faulthandler.enable()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError):  # where memory runs out, let it be this process that goes
        Path("/proc/self/oom_score_adj").write_text("800", encoding="ascii")
    module, _, function = main.partition(":")
    try:
        getattr(importlib.import_module(module), function)(Path(job), _sender(int(channel)))
    except TritongenError as error:
        kind = next(base.__name__ for base in type(error).__mro__ if hasattr(errors, base.__name__))
        fields = {"kind": kind, "message": error.message}
        fields |= {"found": error.found or "", "expected": error.expected or "", "fix": error.fix or ""}
        write_text(Path(job).parent / "error.json", json.dumps(fields))


def _start(main: str, job: Path, log: int, device: int | None) -> tuple[subprocess.Popen[bytes], int]:
    reader, writer = os.pipe()
    try:
        process = subprocess.Popen(
            [
                *(sys.executable, "-c", _BOOTSTRAP, json.dumps(sys.path)),
                *(main, str(job), str(writer), str(os.getpid()), "" if device is None else str(device)),
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=(writer,),
            start_new_session=True,
        )
    except BaseException:
        os.close(reader)
        raise
    finally:
        os.close(writer)
    return process, reader


def _follow(
    process: subprocess.Popen[bytes],
    channel: int,
    timeout_s: float,
    events: EventSink,
    cancelled: Callable[[], bool] | None,
) -> bool:
    """Pass on the child's events until it ends; False if the time is up first, or it was cancelled."""
    deadline = time.monotonic() + timeout_s
    buffer, is_open = b"", True
    while time.monotonic() < deadline and not (cancelled is not None and cancelled()):
        if is_open and select.select([channel], [], [], 0.1)[0]:
            chunk = os.read(channel, 1 << 16)
            is_open = bool(chunk)
            *lines, buffer = (buffer + chunk).split(b"\n")
            for line in lines:
                events(Event(**json.loads(line)))
        elif _has_ended(process):
            return True
        elif not is_open:
            time.sleep(0.01)
    return _has_ended(process)


def _has_ended(process: subprocess.Popen[bytes]) -> bool:
    """Without reaping it, so that its process group's number stays taken until `_end`."""
    return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _sender(channel: int) -> EventSink:
    def send(event: Event) -> None:
        with contextlib.suppress(BrokenPipeError):
            os.write(channel, json.dumps(event.to_json()).encode() + b"\n")

    return send


def _remembering(events: EventSink, steps: list[str], subject: str | None) -> EventSink:
    def pass_on(event: Event) -> None:
        steps[:] = [event.message]
        if event.subject is None and subject is not None:
            event = Event(**{**event.to_json(), "subject": subject})
        events(event)

    return pass_on


def _revive(path: Path) -> TritongenError:
    fields = json.loads(path.read_text(encoding="utf-8"))
    kind = getattr(errors, fields["kind"], TritongenError)
    details = {key: fields[key] or None for key in ("found", "expected", "fix")}
    error: TritongenError = kind(fields["message"], **details)
    return error


def _cause(returncode: int, *, oom: bool) -> str:
    if returncode >= 0:
        return "stopped on an error" if returncode == 1 else f"ended with exit code {returncode}"
    if -returncode == signal.SIGKILL:
        if oom:
            return "was killed by the system because memory ran out (SIGKILL)"
        return "was killed from outside (SIGKILL), as a container's memory limit or `kill -9` do"
    try:
        return _SENTENCES.get(signal.Signals(-returncode), f"ended by {signal.Signals(-returncode).name}")
    except ValueError:
        return f"ended by signal {-returncode}"


def _after(steps: list[str]) -> str:
    return f" after: {steps[-1]}" if steps else ""


def _last_words(log: Path) -> str:
    """The last line of a traceback, or what C++ says when it gives up; nothing if the log is silent."""
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    telling = [line for line in lines if line.startswith(("terminate called", "  what()"))]
    telling = telling or [line for line in _raised(lines)[-1:] if not line.startswith(_FAULTHANDLER)]
    return f" ({telling[-1].strip()[:300]})" if telling else ""


def _raised(lines: Sequence[str]) -> list[str]:
    """The lines without what destructors raised: a half-written .npz complains so after the full disk."""
    kept: list[str] = []
    ignored = False
    for line in lines:
        if line.startswith("Exception ignored in"):
            ignored = True
        elif not ignored:
            kept.append(line)
        elif not line.startswith(("Traceback", " ")):
            ignored = False  # the exception's own line, which ends its traceback
    return kept


def _oom_kills() -> int:
    """How many processes the kernel has killed for want of memory since boot."""
    try:
        text = Path("/proc/vmstat").read_text(encoding="ascii")
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("oom_kill "))
