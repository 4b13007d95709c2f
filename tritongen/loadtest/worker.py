"""A load worker: one process, one event loop. Sends when the schedule says, and writes down what came of it.

It is a process of its own and talks with its parent over one socket, a line at a time:
worker → `{"ready": true}`, parent → `start <CLOCK_MONOTONIC ns>`, worker → `{"done": true, …}`; `stop`, or
the end of the connection, ends the run at any time, so that no worker outlives its parent.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import resource
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tritongen.loadtest import samples
from tritongen.loadtest.alarm import Alarm
from tritongen.loadtest.job import Job, read_job, read_share, samples_path
from tritongen.loadtest.samples import NoRoomError, SampleFile
from tritongen.loadtest.schedule import Schedule
from tritongen.loadtest.transport import Transport, open_transport

now_ns = time.monotonic_ns
_SWEEP_S = 0.005
"""Between looks for requests that are past their time-out, when one is near it."""
_IDLE_SWEEP_S = 0.05
_BURST = 64
"""Sends in a row before answers are looked at again, when the sender is behind."""
_CLOSED_LOOP_PAUSE_S = 0.01
"""After a failure, so that a refusing server is not hammered."""
_CONNECTIONS = 8
_FAREWELL_S = 0.5
"""How long a run that is stopped waits for answers."""


class Sender:
    """The bookkeeping that open and closed loop share: what is in flight, since when, and how it ended."""

    def __init__(self, job: Job, file: SampleFile) -> None:
        self.job = job
        self.transport: Transport
        self.in_flight: dict[int, tuple[int, int, int]] = {}
        self.messages: dict[int, str] = {}
        self.idle = asyncio.Event()
        self.no_more = False
        self.stopped = False
        self.failure: NoRoomError | None = None
        self._write = file.write
        self._batches = job.batches
        self._timeout_ns = job.timeout_ns
        self._max_in_flight = job.max_in_flight

    def begin(self, row: int, scheduled: int, request: int) -> None:
        """Send now, or write down why not."""
        sent = now_ns()
        if len(self.in_flight) >= self._max_in_flight:
            self._write(row, scheduled, sent, sent, samples.NOT_SENT, request, self._batches[request])
        elif sent - scheduled >= self._timeout_ns:  # its answer would be too late at once
            self._write(row, scheduled, sent, sent, samples.LATE, request, self._batches[request])
        else:
            self.in_flight[row] = (scheduled, sent, request)
            self.transport.send(row, request)

    def finish(self, row: int, status: int, detail: str) -> None:
        """An answer or a failure came in."""
        done = now_ns()
        scheduled, sent, request = self.in_flight.pop(row)
        if status == samples.OK and done - scheduled > self._timeout_ns:  # before `sweep` saw it
            status = samples.TIMEOUT
        self._write(row, scheduled, sent, done, status, request, self._batches[request])
        if status != samples.OK:
            self.messages.setdefault(status, detail)
        self.after(status)

    def after(self, _status: int) -> None:
        """What the loop does when a request has ended."""
        if self.no_more and not self.in_flight:
            self.idle.set()

    def sweep(self) -> float:
        """Give up on requests that are past their time-out; returns the seconds until the next look."""
        now = now_ns()
        while self.in_flight:
            row = next(iter(self.in_flight))  # they were scheduled in the order in which they began
            left_ns = self.in_flight[row][0] + self._timeout_ns - now
            if left_ns > 0:
                return min(_IDLE_SWEEP_S, max(_SWEEP_S, left_ns / 1e9))
            self.transport.abandon(row)
            self.finish(row, samples.TIMEOUT, "")
        return _IDLE_SWEEP_S

    def end(self) -> None:
        """No more sends; the run is over when nothing is in flight."""
        self.no_more = True
        self.after(samples.OK)

    def failed(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """An exception in a callback: the loop only logs it, but there is no going on without samples."""
        loop.default_exception_handler(context)
        if isinstance(error := context.get("exception"), NoRoomError):
            self.failure = error
            self.idle.set()

    def stop(self) -> None:
        """Send no more and end soon; answers get a moment, since servers suffer when callers vanish."""
        self.stopped = True
        self.end()
        asyncio.get_running_loop().call_later(_FAREWELL_S, self._give_up)

    def _give_up(self) -> None:
        """What is still in flight is written down as stopped."""
        for row in list(self.in_flight):
            self.transport.abandon(row)
            self.finish(row, samples.STOPPED, "")
        self.idle.set()


class OpenLoop(Sender):
    """Sends at the scheduled times, whether or not answers come."""

    def __init__(self, job: Job, file: SampleFile, share: Schedule) -> None:
        super().__init__(job, file)
        # Views and not lists: a long schedule would be millions of Python integers.
        self._offsets = np.ascontiguousarray(share.offsets_ns).data
        self._requests = np.ascontiguousarray(share.requests).data
        self._next = 0
        self._start = 0
        self._loop = asyncio.get_running_loop()
        self._alarm = Alarm(self._loop, self._send_due)

    def start(self, start_ns: int) -> None:
        """Begin the schedule at this time."""
        self._start = start_ns
        self._wait()

    def _wait(self) -> None:
        if self._next < len(self._offsets):
            self._alarm.set(self._start + self._offsets[self._next])
        else:
            self.end()

    def _send_due(self) -> None:
        if self.stopped:
            return
        elapsed = now_ns() - self._start
        last = min(self._next + _BURST, len(self._offsets))
        while self._next < last and self._offsets[self._next] <= elapsed:
            row = self._next
            self._next += 1
            self.begin(row, self._start + self._offsets[row], self._requests[row])
        self._wait()


class ClosedLoop(Sender):
    """Keeps a number of calls in flight: each answer sends the next."""

    def __init__(self, job: Job, file: SampleFile, concurrency: int) -> None:
        super().__init__(job, file)
        self._concurrency = concurrency
        self._rows = 0
        self._order = job.order
        self._end = 0
        self._loop = asyncio.get_running_loop()
        self._alarm = Alarm(self._loop, self._launch)
        self._launched = False

    def start(self, start_ns: int) -> None:
        """Begin at this time and send for the job's duration."""
        self._end = start_ns + self.job.duration_ns
        self._alarm.set(start_ns)

    def after(self, status: int) -> None:
        """The call that has ended sends the next one."""
        if status == samples.OK:
            self._send()
        elif not self.no_more:
            self._loop.call_later(_CLOSED_LOOP_PAUSE_S, self._send)
        super().after(status)

    def _launch(self) -> None:
        if self._launched:
            self.end()
            return
        self._launched = True
        self._alarm.set(self._end)
        for _ in range(self._concurrency):
            self._send()

    def _send(self) -> None:
        now = now_ns()
        if self.no_more or now >= self._end:
            return
        row = self._rows
        self._rows += 1
        self.begin(row, now, self._order[row % len(self._order)])


def main(folder: str, worker: int, handle: int) -> None:
    """Run worker number `worker` of the job in `folder`, talking over the inherited socket `handle`."""
    # The parent hears them too, where a terminal or `timeout` tells the whole group, and decides.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    loop = _event_loop()
    try:
        loop.run_until_complete(_work(Path(folder), worker, socket.socket(fileno=handle)))
    finally:
        loop.close()


def _event_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop


async def _work(folder: Path, worker: int, control: socket.socket) -> None:
    job, requests = read_job(folder)
    share = read_share(folder, worker)
    rows = [len(share)] if isinstance(share, Schedule) else []
    file = SampleFile(samples_path(folder, worker), *rows)
    sender = OpenLoop(job, file, share) if isinstance(share, Schedule) else ClosedLoop(job, file, share)
    asyncio.get_running_loop().set_exception_handler(sender.failed)
    sender.transport = open_transport(job, requests, sender.finish)
    del requests  # the transport may have them in another form
    connections = _CONNECTIONS if isinstance(share, Schedule) else share
    await sender.transport.open(min(connections, job.max_in_flight))
    # What exists now lives on: a collection in mid-run would only walk over it and delay a send.
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
    reader, writer = await asyncio.open_connection(sock=control)
    writer.write(b'{"ready": true}\n')
    await _conversation(sender, reader)
    if sender.failure is not None:
        raise sender.failure
    report = {"done": True, "messages": sender.messages}
    writer.write(json.dumps(report).encode() + b"\n")
    with contextlib.suppress(ConnectionError):  # the parent is gone: nobody reads the samples either
        await writer.drain()
    sender.transport.close()
    file.close()
    writer.close()


async def _conversation(sender: OpenLoop | ClosedLoop, reader: asyncio.StreamReader) -> None:
    """Start when told, sweep time-outs, stop when told or orphaned; returns when all is over."""
    line = await reader.readline()
    if not line.startswith(b"start "):
        return
    sender.start(int(line.split()[1]))
    orders = asyncio.ensure_future(_obey(sender.stop, reader))
    sweeper = asyncio.ensure_future(_sweep(sender))
    await sender.idle.wait()
    orders.cancel()
    sweeper.cancel()


async def _obey(stop: Callable[[], None], reader: asyncio.StreamReader) -> None:
    await reader.readline()  # "stop", or nothing: the parent is gone
    stop()


async def _sweep(sender: Sender) -> None:
    pause_s = 0.0
    while True:
        await asyncio.sleep(pause_s)
        pause_s = sender.sweep()
