"""One load test from settings to report: the Python API of `tritongen loadtest`."""

from __future__ import annotations

import os
import resource
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

from tritongen.errors import InputError, ServerError
from tritongen.loadtest.explain import Knobs
from tritongen.loadtest.fleet import Fleet
from tritongen.loadtest.inputs import Inputs
from tritongen.loadtest.job import Job
from tritongen.loadtest.monitor import Monitor
from tritongen.loadtest.plan import make_plan, too_short
from tritongen.loadtest.probe import probe
from tritongen.loadtest.record import Measurement, Subject, make_report
from tritongen.loadtest.sample_export import check_samples_file, write_samples
from tritongen.loadtest.schedule import Schedule
from tritongen.loadtest.settings import Settings
from tritongen.loadtest.target import Address, ServedModel, parse_address
from tritongen.loadtest.watch import Watch
from tritongen.loadtest.workload import Workload, encoded, make_schedule, prepare_workload
from tritongen.loadtest.wrong_port import explain_wrong_port
from tritongen.runs.events import Event, EventSink, discard
from tritongen.runs.loadtest import LoadReport
from tritongen.runs.records import Machine
from tritongen.scratch import Scratch
from tritongen.serving.access import Access
from tritongen.serving.control import ServerControl, connect

_SCRATCH_PREFIX = "tritongen-loadtest-"
_LEAST_PROBE_TIMEOUT_S = 10.0
_CONTROL_TIMEOUT_S = 5.0
_FILES_OF_A_WORKER = 32
"""Beside its connections."""


def run_load_test(
    settings: Settings,
    *,
    events: EventSink = discard,
    machine: Machine | None = None,
    samples_file: Path | None = None,
) -> LoadReport:
    """Offer the load, measure, judge. Ctrl-C (KeyboardInterrupt) gives a partial report marked so.

    `samples_file` (.npz) gets every request, warm-up included.

    InputError for settings or data that cannot be used, ServerError if the server or model is not ready.
    """
    report, measurement = measure(settings, events=events, machine=machine, samples_file=samples_file)
    if samples_file is not None:
        write_samples(samples_file, measurement.samples, measurement.start_ns)
    return report


def measure(
    settings: Settings,
    *,
    events: EventSink,
    machine: Machine | None,
    samples_file: Path | None = None,
    patience_s: float = 0.0,
) -> tuple[LoadReport, Measurement]:
    """`run_load_test`, and what it rests on; that `samples_file` can take it is checked, not yet written.

    The first answer may take as long as any, ten seconds, or `patience_s`, whichever is most.
    """
    settings.check()
    if samples_file is not None:
        check_samples_file(samples_file)
    address = parse_address(settings.url, settings.protocol)
    settings.check_transport(address.protocol, secure=address.secure)
    _check_open_files(settings, address)
    started = datetime.now(timezone.utc).isoformat(timespec="seconds")
    control = connect(address.url, _CONTROL_TIMEOUT_S, _uncompressed(settings.access))
    try:
        workload = _workload(settings, control, address)
        model, inputs = workload.groups[0].model, workload.inputs
        knobs = _knobs(control, model)
        schedule = make_schedule(settings, workload)
        with encoded(settings, address, control, workload) as requests:
            job = _job(settings, address, workload, requests)
            for group in workload.groups:
                longest_s = max(settings.timeout_s, _LEAST_PROBE_TIMEOUT_S, patience_s)
                probe(group.model, address, requests[group.first], longest_s, job)
            events(Event("loadtest", "started", _announcement(settings, model, inputs), subject=model.name))
            measurement = _offer(settings, job, control, requests, schedule, events)
        gone = _server_gone(control, model)
    finally:
        control.close()
    subject = Subject(model, address, inputs, started, machine, knobs, workload.first_model_count)
    return make_report(settings, subject, measurement, server_gone=gone), measurement


def _uncompressed(access: Access) -> Access:
    """For questions beside the load, whose answers are read as they come."""
    headers = [(name, value) for name, value in access.headers if name.lower() != "accept-encoding"]
    return replace(access, headers=headers)


def _announcement(settings: Settings, model: ServedModel, inputs: Inputs) -> str:
    rate = settings.offered_rate
    load = f"{rate:.6g} requests/s" if rate is not None else f"{settings.effective_concurrency} in flight"
    if settings.rate_shape is not None:
        load = f"{settings.rate_shape.text} requests/s"
    return f"{load} for {settings.duration_s:g} s to {model.name} ({model.server}), inputs: {inputs.source}"


def _workload(settings: Settings, control: ServerControl, address: Address) -> Workload:
    try:
        return prepare_workload(settings, control)
    except ServerError as error:
        raise explain_wrong_port(error, address) from None


def _workers(settings: Settings) -> int:
    return settings.worker_count(len(os.sched_getaffinity(0)))


def _job(settings: Settings, address: Address, workload: Workload, requests: list[bytes]) -> Job:
    return Job(
        protocol=address.protocol,
        host=address.host,
        port=address.port,
        batches=workload.batches,
        order=workload.cycle(settings.seed),
        timeout_ns=round(settings.timeout_s * 1e9),
        max_in_flight=_most_in_flight(settings),
        duration_ns=round(settings.duration_s * 1e9),
        request_sizes=tuple(map(len, requests)),
        grpc_client=settings.grpc_client,
        access=replace(settings.access, secure=address.secure),
        compression=settings.compression,
        streaming=settings.streaming,
    )


def _most_in_flight(settings: Settings) -> int:
    """Of one worker; in a closed loop all that it has to keep in flight."""
    if settings.offered_rate is None:
        return -(-settings.effective_concurrency // _workers(settings))
    return max(1, settings.max_in_flight // _workers(settings))


def _check_open_files(settings: Settings, address: Address) -> None:
    """InputError where a closed loop over HTTP needs more connections than a process may open."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = _most_in_flight(settings) + _FILES_OF_A_WORKER
    if address.protocol == "http" and settings.offered_rate is None and 0 <= most < needed:
        raise InputError(
            "--concurrency needs more connections than this machine lets a process open",
            found=f"{most} open files (ulimit -Hn)",
            expected=f"{needed} or more",
            fix="raise that limit, give more --workers or a lower --concurrency, or use gRPC",
        )


def _offer(  # noqa: PLR0917
    settings: Settings,
    job: Job,
    control: ServerControl,
    requests: list[bytes],
    schedule: Schedule | None,
    events: EventSink,
) -> Measurement:
    workers = _workers(settings)
    plan = make_plan(settings, schedule)
    if (why := too_short(settings, plan, schedule)) is not None:
        events(Event("loadtest", "note", why))
    monitor = Monitor(control, settings.model, settings.version, metrics_url=settings.metrics_url)
    with (
        Scratch(_SCRATCH_PREFIX) as folder,
        Fleet(folder, job, requests, _shares(settings, workers, schedule)) as fleet,
    ):
        return Watch(settings, fleet, monitor, plan, events).run()


def _shares(settings: Settings, workers: int, schedule: Schedule | None) -> list[Schedule | int]:
    if schedule is None:
        whole, rest = divmod(settings.effective_concurrency, workers)
        return [whole + (worker < rest) for worker in range(workers)]
    return [schedule.shard(worker, workers) for worker in range(workers)]


def _knobs(control: ServerControl, model: ServedModel) -> Knobs:
    """What the configuration says about batching; it is an extension of Triton."""
    try:
        return Knobs.from_config(control.model_config(model.name, model.version))
    except ServerError:
        return Knobs()


def _server_gone(control: ServerControl, model: ServedModel) -> str | None:
    """Why the model does not take requests any more after the run, None if it does."""
    try:
        control.check_ready(model.name, model.version)
    except ServerError as error:
        return error.found or error.message
    return None
