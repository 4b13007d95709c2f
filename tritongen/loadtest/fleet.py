"""The worker processes of a run: started, set off together, awaited, and never left behind."""

from __future__ import annotations

import contextlib
import json
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from tritongen.errors import RequirementError
from tritongen.loadtest.job import Job, samples_path, write_job, write_share
from tritongen.loadtest.samples import Samples, merge, read_rows
from tritongen.loadtest.schedule import Schedule

if TYPE_CHECKING:
    from typing_extensions import Self

_READY_S = 60
_HEAD_START_NS = 50_000_000
"""Between telling the workers when to start and starting."""
_FAREWELL_S = 5


class Fleet:
    """Starts one process per share on entering, ends them all on leaving."""

    def __init__(
        self, folder: Path, job: Job, requests: Sequence[bytes], shares: Sequence[Schedule | int]
    ) -> None:
        self._folder = folder
        self._shares = shares
        self._processes: list[subprocess.Popen[bytes]] = []
        self._controls: list[socket.socket] = []
        self._received: list[bytes] = [b"" for _ in shares]
        self._reports: dict[int, dict[str, Any]] = {}
        self._selector = selectors.DefaultSelector()
        try:
            write_job(folder, job, requests)
            for worker, share in enumerate(shares):
                write_share(folder, worker, share)
        except OSError as error:
            raise RequirementError(
                "there is no room for the requests", found=f"{folder.parent}: {error}", fix=self._more_room
            ) from None

    def __enter__(self) -> Self:
        try:
            for worker in range(len(self._shares)):
                self._launch(worker)
            self._await_ready()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def start(self) -> int:
        """Set all workers off at one time, which is returned (CLOCK_MONOTONIC, ns)."""
        start_ns = time.monotonic_ns() + _HEAD_START_NS
        for control in self._controls:
            control.sendall(f"start {start_ns}\n".encode())
        return start_ns

    def wait(self, timeout_s: float) -> bool:
        """Wait for reports; True once every worker is done. RequirementError if one died."""
        deadline = time.monotonic() + timeout_s
        while len(self._reports) < len(self._shares) and (left := deadline - time.monotonic()) > 0:
            for message in self._receive(left):
                self._reports[message[0]] = message[1]
        return len(self._reports) == len(self._shares)

    def stop(self) -> None:
        """Tell all workers to end at once; what is in flight is written down as stopped."""
        for worker, control in enumerate(self._controls):
            if worker not in self._reports:
                with contextlib.suppress(OSError):
                    control.sendall(b"stop\n")

    def samples(self) -> Samples:
        """Everything that was written down so far."""
        return merge([read_rows(samples_path(self._folder, worker)) for worker in range(len(self._shares))])

    def sample_paths(self) -> list[Path]:
        """The workers' sample files, which grow (or fill) while they run."""
        return [samples_path(self._folder, worker) for worker in range(len(self._shares))]

    def messages(self) -> dict[int, str]:
        """For each status that occurred, what the first such answer or failure said."""
        found: dict[int, str] = {}
        for report in self._reports.values():
            for status, text in report["messages"].items():
                found.setdefault(int(status), text)
        return found

    def _launch(self, worker: int) -> None:
        ours, theirs = socket.socketpair()
        # A process of its own and not a fork: threads and event loops of the caller stay out of it. Not
        # multiprocessing either, which would run a caller's script a second time.
        program = (
            f"import sys; sys.path[:] = {sys.path!r}; from tritongen.loadtest.worker import main; "
            f"main({str(self._folder)!r}, {worker}, {theirs.fileno()})"
        )
        with theirs, self._log(worker).open("wb") as log:
            self._processes.append(
                subprocess.Popen(
                    [sys.executable, "-c", program],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    pass_fds=[theirs.fileno()],
                )
            )
        self._controls.append(ours)
        self._selector.register(ours, selectors.EVENT_READ, worker)

    def _await_ready(self) -> None:
        deadline = time.monotonic() + _READY_S
        ready: set[int] = set()
        while len(ready) < len(self._shares):
            left = deadline - time.monotonic()
            if left <= 0:
                raise RequirementError(
                    "the load workers did not start",
                    found=f"{len(ready)} of {len(self._shares)} ready after {_READY_S} s",
                    fix="use fewer --workers, or look whether this machine is overloaded",
                )
            ready.update(worker for worker, _ in self._receive(left))

    def _receive(self, timeout_s: float) -> list[tuple[int, dict[str, Any]]]:
        """Whole messages that came within the time."""
        messages = []
        for key, _ in self._selector.select(timeout_s):
            worker: int = key.data
            try:
                data = self._controls[worker].recv(1 << 16)
            except ConnectionError:  # it died before it had read what we told it
                data = b""
            if not data:
                self._selector.unregister(self._controls[worker])
                if worker not in self._reports:
                    raise self._died(worker)
            *lines, self._received[worker] = (self._received[worker] + data).split(b"\n")
            messages += [(worker, json.loads(line)) for line in lines]
        return messages

    def _died(self, worker: int) -> RequirementError:
        code = self._processes[worker].wait(_FAREWELL_S)
        last = self._log(worker).read_text(encoding="utf-8", errors="replace").strip().splitlines()
        how = f"exit code {code}" if code >= 0 else signal.Signals(-code).name
        return RequirementError(
            "a load worker ended before its work was done",
            found=how + (f"; it said: {last[-1]}" if last else ""),
            fix="if memory ran out, lower --rate, --concurrency or --max-in-flight; "
            f"if the disk did, {self._more_room}",
        )

    @property
    def _more_room(self) -> str:
        return f"make room in {self._folder.parent}, or name another folder in TMPDIR"

    def _log(self, worker: int) -> Path:
        return self._folder / f"worker-{worker}.log"

    def _end(self) -> None:
        for control in self._controls:
            control.close()
        self._selector.close()
        for process in self._processes:
            _await_end(process)


def _await_end(process: subprocess.Popen[bytes]) -> None:
    """Workers end when their connection closes; one that does not is killed."""
    try:
        process.wait(_FAREWELL_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
