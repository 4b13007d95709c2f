"""Where the time goes and which knob moves it; where looks are; what GPUs did."""

from __future__ import annotations

import json
import re
import threading
import time
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import numpy as np
import pytest

from tritongen.loadtest import monitor
from tritongen.loadtest.explain import RULES, Knobs, Scene, bottleneck, waterfall
from tritongen.loadtest.looks import early_times, look_sizes, plan_times
from tritongen.loadtest.monitor import Monitor, parse_gauges, summarize_gauges
from tritongen.loadtest.plan import make_plan, too_short
from tritongen.loadtest.schedule import Schedule, open_loop
from tritongen.loadtest.settings import Settings
from tritongen.loadtest.statistics import Decision, decide_share, fewest_to_pass
from tritongen.runs.loadtest import GpuFigures, ServerFigures, Waterfall
from tritongen.serving.control import connect
from tritongen.slo import parse_slo

PARTS = (
    "sender_lag_ms",
    "network_ms",
    "queue_ms",
    "compute_input_ms",
    "compute_infer_ms",
    "compute_output_ms",
)
BUSY = (GpuFigures(gpu="GPU-1", utilization_mean=0.97),)


def scene(largest: str, knobs: Knobs = Knobs(), **server: Any) -> Scene:  # noqa: B008
    parts = dict.fromkeys(PARTS, 1.0) | {largest: 20.0}
    fields: dict[str, Any] = {
        "inferences": 100,
        "executions": 100,
        "mean_batch": 1.0,
        "queue_ms": 1.0,
        "compute_input_ms": 1.0,
        "compute_infer_ms": 1.0,
        "compute_output_ms": 1.0,
    }
    return Scene(Waterfall(**parts), ServerFigures(**{**fields, **server}), knobs, batch_size=1)


def test_what_is_done_already_is_not_advised() -> None:
    slow = scene("network_ms")
    assert "gRPC" not in bottleneck(replace(slow, grpc=True))
    assert "shared memory" in bottleneck(replace(slow, grpc=True))
    assert "shared memory" not in bottleneck(replace(slow, shared_memory=True))


@pytest.mark.parametrize(
    ("seen", "word"),
    [
        (scene("sender_lag_ms"), "--workers"),
        (scene("network_ms"), "gRPC"),
        (scene("compute_input_ms"), "shared memory"),
        (scene("compute_output_ms"), "fewer outputs"),
        (scene("compute_infer_ms"), "faster engine"),
        (scene("compute_infer_ms", gpus=BUSY), "busy GPU"),
        (scene("queue_ms", Knobs(8, dynamic_batching=True, queue_delay_us=18_000)), "queue_delay"),
        (scene("queue_ms", Knobs(8, dynamic_batching=False)), "dynamic_batching"),
        (scene("queue_ms", Knobs(8, dynamic_batching=True), mean_batch=7.8), "raise max_batch_size"),
        (scene("queue_ms", Knobs(8, dynamic_batching=True), mean_batch=4, gpus=BUSY), "GPU that is busy"),
        (scene("queue_ms", Knobs(8, dynamic_batching=True), mean_batch=4), "instance_group.count"),
    ],
)
def test_the_bottleneck_and_its_knob(seen: Scene, word: str) -> None:
    text = bottleneck(seen)
    assert word in text
    assert text.startswith("80% of the mean response time: ")


def test_every_part_has_a_rule_that_always_applies() -> None:
    assert {part for part, _, _ in RULES} == set(PARTS)
    for part in PARTS:
        assert bottleneck(scene(part, mean_batch=None))


def test_the_waterfall_adds_up() -> None:
    parts = waterfall(0.5, 10.0, scene("queue_ms").server)
    assert parts is not None
    assert sum(parts.model_dump().values()) == pytest.approx(10.5)
    assert parts.network_ms == 6
    assert waterfall(0.5, 10.0, None) is None
    assert waterfall(0.5, None, scene("queue_ms").server) is None


def test_knobs_from_the_configuration() -> None:
    config = {
        "max_batch_size": 16,
        "dynamic_batching": {"max_queue_delay_microseconds": "500"},
        "instance_group": [{"count": 2}, {"count": 1}],
    }
    assert Knobs.from_config(config) == Knobs(16, dynamic_batching=True, queue_delay_us=500, instances=3)
    assert Knobs.from_config({}) == Knobs(0, dynamic_batching=False, queue_delay_us=0, instances=1)
    assert Knobs.from_config(None) == Knobs()


def test_gpu_metrics() -> None:
    text = (
        "# HELP nv_gpu_utilization x\n"
        'nv_gpu_utilization{{gpu_uuid="GPU-1"}} {0}\n'
        'nv_gpu_power_usage{{gpu_uuid="GPU-1"}} {1}\n'
        'nv_gpu_memory_used_bytes{{gpu_uuid="GPU-1"}} {2}\n'
        'nv_inference_count{{model="m",version="1"}} 7\n'
    )
    seen = [parse_gauges(text.format(0.5, 100, 1e9)), parse_gauges(text.format(0.7, 200, 3e9))]
    (gpu,) = summarize_gauges(seen)
    assert gpu.utilization_mean == pytest.approx(0.6)
    assert (gpu.power_w_mean, gpu.memory_bytes) == (150, 3e9)
    assert summarize_gauges([]) == ()
    assert parse_gauges("nonsense") == {}


@pytest.mark.parametrize(("counts", "anew"), [([100, 5, 400], True), ([100, 100, 150, 400], False)])
def test_counts_are_seen_to_fall_in_between(
    monkeypatch: pytest.MonkeyPatch, counts: list[int], *, anew: bool
) -> None:
    """A server restarts in the window; at its end the new counts have passed the old ones."""
    monkeypatch.setattr(monitor, "_PERIOD_S", 0.05)
    told = iter([*counts, *counts[-1:] * 10_000])

    class Server(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps({"model_stats": [{"version": "1", "inference_count": next(told)}]}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        watched = Monitor(connect(f"http://127.0.0.1:{server.server_port}"), "m", "", metrics_url=None)
        begin = time.monotonic_ns()
        end = begin + 10**9
        watched.start([begin, end])
        while watched.statistics(end) is None:
            time.sleep(0.05)
        watched.stop()
        server.shutdown()
    before, after = watched.statistics(begin), watched.statistics(end)
    assert before is not None
    assert after is not None
    assert (before.inference_count, after.inference_count) == (100, 400)
    assert after.continues(before)
    assert watched.begun_anew is anew


@pytest.mark.parametrize(
    ("requests", "least", "sizes"),
    [
        (2499, 1, []),
        (2500, 1, [2500]),
        (20_000, 1, [2500, 5000, 10_000, 20_000]),
        (12_000, 1, [2500, 5000, 12_000]),
        (60_000, 12_000, [12_000, 20_000, 60_000]),
        (12_000, 12_000, [12_000]),
    ],
)
def test_looks_double_between_the_ends(requests: int, least: int, sizes: list[int]) -> None:
    assert look_sizes(requests, least) == sizes


def test_looks_of_a_closed_loop_are_times() -> None:
    assert plan_times(300, 60).at == (60, 120, 300)
    assert plan_times(60, 60).at == (60,)
    assert plan_times(300, 60).alpha == 0.01 / 3


def test_the_plan_of_a_run() -> None:
    slos = [parse_slo("p99<=20ms")]
    settings = Settings("m", rate=100, duration_s=300, min_duration_s=60, slos=slos)
    offsets_ns = open_loop(100, 300, "constant", 0)
    schedule = Schedule(offsets_ns, np.zeros(len(offsets_ns), np.uint16))
    plan = make_plan(settings, schedule)
    # 5 s of warm-up, early looks, then those at 6000, 10,000 and all 29,500 requests.
    assert [point.scheduled for point in plan.points] == [1250, 2000, 3500, 6500, 10_500, 30_000]
    assert [point.offset_ns / 1e9 for point in plan.points] == [12.5, 20, 35, 65, 105, 300]
    assert [point.early for point in plan.points] == 3 * [True] + 3 * [False]
    # They share a hundredth of alpha; together all spend 1 %.
    assert sum(map(plan.alpha_of, plan.points)) == pytest.approx(0.01)
    assert plan.alpha == pytest.approx(0.0033)
    assert len(make_plan(Settings("m", rate=100, slos=slos), schedule).points) == 1
    assert len(make_plan(Settings("m", rate=100, min_duration_s=1), schedule).points) == 1
    # Two at the very moment of the first look: it waits for those before it, which are one less.
    offsets_ns[6499] = offsets_ns[6500]
    late = [point.scheduled for point in make_plan(settings, schedule).points if not point.early]
    assert late == [6499, 10_500, 30_000]


def test_early_looks_have_time_and_requests() -> None:
    assert early_times(60) == [7.5, 15, 30]
    assert early_times(15) == [7.5]
    assert early_times(9) == []
    slos = [parse_slo("p99<=20ms")]
    # Seconds at 100 ms are 0.03 % of a closed loop that then takes 1 ms: a miss may still be outweighed.
    settings = Settings("m", concurrency=4, duration_s=300, min_duration_s=60, slos=slos)
    plan = make_plan(settings, None)
    assert [point.offset_ns / 1e9 for point in plan.points] == [65, 125, 300]
    assert plan.alpha == 0.01 / 3
    slow = Settings("m", rate=5, duration_s=305, min_duration_s=60, slos=slos)
    offsets_ns = open_loop(5, 305, "constant", 0)
    plan = make_plan(slow, Schedule(offsets_ns, np.zeros(len(offsets_ns), np.uint16)))
    # 2500 requests take longer than this: one look, and half of it is enough to fail by, a quarter too.
    assert [point.offset_ns / 1e9 for point in plan.points] == [80, 155, 305]


@pytest.mark.parametrize(
    ("slo", "changes", "says"),
    [
        ("p99<=20ms", {"rate": 9}, None),
        (
            "p99<=20ms",
            {"rate": 3},
            "at least 2500 requests, and 885 are sent in the 295 s .* --max-duration 922s",
        ),
        ("error_rate<=0", {"rate": 3}, "--max-duration 922s"),
        ("error_rate<=1e-310", {"rate": 3}, "at least [0-9]+ requests"),
        ("p99<=20ms", {"rate": 3, "warmup_s": 50.0}, "750 are sent in the 250 s .* --max-duration 967s"),
        ("p99<=20ms", {"rate": 3, "min_duration_s": None}, "--duration 922s"),
        ("p99.9<=20ms", {"rate": 9}, "at least 6024 requests, and 2655"),
        ("p99<=20ms", {"concurrency": 1}, None),
    ],
)
def test_a_run_too_short_for_a_pass_is_told_before_it(
    slo: str, changes: dict[str, Any], says: str | None
) -> None:
    fields: dict[str, Any] = {"duration_s": 300.0, "min_duration_s": 60.0, **changes}
    settings = Settings("m", slos=[parse_slo(slo)], **fields)
    schedule = None
    if (rate := settings.rate) is not None:
        offsets_ns = open_loop(rate, 300, "constant", 0)
        schedule = Schedule(offsets_ns, np.zeros(len(offsets_ns), np.uint16))
    found = too_short(settings, make_plan(settings, schedule), schedule)
    assert (found is None) == (says is None)
    assert found is None or re.search(says or "", found), found


@pytest.mark.parametrize(("allowed", "alpha"), [(0.01, 0.01), (0.001, 0.01), (0.001, 0.0033), (0.9, 0.01)])
def test_the_fewest_requests_of_a_pass(allowed: float, alpha: float) -> None:
    fewest = fewest_to_pass(allowed, alpha)
    for requests, decision in ((fewest, Decision.PASS), (fewest - 1, Decision.UNDECIDED)):
        found = decide_share(
            over=0, unseen=0, requests=requests, effect=1.0, lag_1=0.0, allowed=allowed, alpha=alpha
        )
        assert found is decision
