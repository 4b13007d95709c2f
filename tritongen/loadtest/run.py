"""One load test from settings to report: the Python API of `tritongen loadtest`."""

from __future__ import annotations

import os
import tempfile
import time
from datetime import datetime, timezone
from pathlib import Path

from tritongen.errors import RequirementError, ServerError
from tritongen.loadtest.fleet import Fleet
from tritongen.loadtest.inputs import Inputs, prepare_inputs
from tritongen.loadtest.job import Job
from tritongen.loadtest.probe import probe
from tritongen.loadtest.record import Measurement, Subject, make_report
from tritongen.loadtest.request import encode
from tritongen.loadtest.schedule import Schedule, open_loop
from tritongen.loadtest.settings import Settings
from tritongen.loadtest.target import Address, ServedModel, check_batch_size, describe, parse_address
from tritongen.runs.events import Event, EventSink, discard
from tritongen.runs.loadtest import LoadReport
from tritongen.runs.records import Machine
from tritongen.serving.control import ServerControl, connect
from tritongen.serving.statistics import ModelStatistics

_TICK_S = 0.25
_LEAST_PROBE_TIMEOUT_S = 10.0
_CONTROL_TIMEOUT_S = 5.0
_GRACE_S = 10.0
"""Beyond schedule and time-out: after that the workers themselves have failed."""


def run_load_test(
    settings: Settings, *, events: EventSink = discard, machine: Machine | None = None
) -> LoadReport:
    """Offer the load, measure, judge. Ctrl-C (KeyboardInterrupt) gives a partial report marked so.

    InputError for settings or data that cannot be used, ServerError if the server or model is not ready.
    """
    settings.check()
    address = parse_address(settings.url, settings.protocol)
    started = datetime.now(timezone.utc).isoformat(timespec="seconds")
    control = connect(f"{address.protocol}://{address.host_header}{address.prefix}", _CONTROL_TIMEOUT_S)
    try:
        model = describe(control, settings.model, settings.version)
        check_batch_size(model, settings.batch_size)
        inputs = prepare_inputs(
            model,
            settings.batch_size,
            shapes=settings.shapes,
            ranges=settings.ranges,
            data=settings.data,
            seed=settings.seed,
        )
        requests = [encode(model, address, arrays) for arrays in inputs.batches]
        probe(model, address, requests[0], max(settings.timeout_s, _LEAST_PROBE_TIMEOUT_S))
        events(Event("loadtest", "started", _announcement(settings, model, inputs), subject=model.name))
        measurement = _offer(settings, address, control, requests, events)
        gone = _server_gone(control, model)
    finally:
        control.close()
    subject = Subject(model, address, inputs, started, machine)
    return make_report(settings, subject, measurement, server_gone=gone)


def _announcement(settings: Settings, model: ServedModel, inputs: Inputs) -> str:
    rate = settings.offered_rate
    load = f"{rate:g} requests/s" if rate is not None else f"{settings.effective_concurrency} in flight"
    return f"{load} for {settings.duration_s:g} s to {model.name} ({model.server}), inputs: {inputs.source}"


def _offer(
    settings: Settings, address: Address, control: ServerControl, requests: list[bytes], events: EventSink
) -> Measurement:
    workers = settings.worker_count(len(os.sched_getaffinity(0)))
    job = Job(
        protocol=address.protocol,
        host=address.host,
        port=address.port,
        batch=settings.batch_size,
        timeout_ns=round(settings.timeout_s * 1e9),
        max_in_flight=max(1, settings.max_in_flight // workers),
        duration_ns=round(settings.duration_s * 1e9),
        request_sizes=tuple(map(len, requests)),
    )
    with (
        tempfile.TemporaryDirectory(prefix="tritongen-loadtest-") as folder,
        Fleet(Path(folder), job, requests, _shares(settings, workers, len(requests))) as fleet,
    ):
        return _watch(settings, control, fleet, events)


def _shares(settings: Settings, workers: int, prepared: int) -> list[Schedule | int]:
    rate = settings.offered_rate
    if rate is None:
        whole, rest = divmod(settings.effective_concurrency, workers)
        return [whole + (worker < rest) for worker in range(workers)]
    schedule = open_loop(rate, settings.duration_s, settings.arrival, settings.seed, prepared)
    return [schedule.shard(worker, workers) for worker in range(workers)]


def _watch(settings: Settings, control: ServerControl, fleet: Fleet, events: EventSink) -> Measurement:
    """Wait for the workers; take Triton's statistics at both ends of the measured window."""
    start_ns = fleet.start()
    window_ns = start_ns + round(settings.effective_warmup_s * 1e9)
    end_ns = start_ns + round(settings.duration_s * 1e9)
    last_ns = end_ns + round((settings.timeout_s + _GRACE_S) * 1e9)
    before = after = None
    stopped = asked = False
    try:
        while not fleet.wait(_next_tick(window_ns)) and time.monotonic_ns() < last_ns:
            now = time.monotonic_ns()
            if not asked and now >= window_ns:
                asked = True
                before = _statistics(control, settings)
            done = min(1.0, max(0.0, (now - start_ns) / (end_ns - start_ns)))
            message = f"{done * settings.duration_s:.0f} of {settings.duration_s:g} s"
            events(Event("loadtest", "progress", message, fraction=done))
        if not fleet.wait(0):
            raise RequirementError(
                "the load workers did not finish in time",
                found=f"still busy {settings.timeout_s + _GRACE_S:g} s after the end of the schedule",
                fix="use more --workers or a lower --rate",
            )
    except KeyboardInterrupt:
        stopped = True
        end_ns = min(end_ns, time.monotonic_ns())
        fleet.stop()
        fleet.wait(_GRACE_S)
    after = _statistics(control, settings)
    return Measurement(fleet.samples(), fleet.messages(), start_ns, end_ns, before, after, stopped)


def _next_tick(window_ns: int) -> float:
    """Seconds to wait: to the beginning of the window if that is next, for its first snapshot."""
    left = (window_ns - time.monotonic_ns()) / 1e9
    return min(_TICK_S, left) if left > 0 else _TICK_S


def _statistics(control: ServerControl, settings: Settings) -> ModelStatistics | None:
    try:
        return control.statistics(settings.model, settings.version)
    except ServerError:
        return None


def _server_gone(control: ServerControl, model: ServedModel) -> str | None:
    """Why the model does not take requests any more after the run, None if it does."""
    try:
        control.check_ready(model.name, model.version)
    except ServerError as error:
        return error.found or error.message
    return None
