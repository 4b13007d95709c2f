"""The report as text, and what a manifest adds to the command line."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tritongen.cli.loadtest import _seconds
from tritongen.cli.loadtest_settings import _known_ranges, _known_shapes
from tritongen.loadtest import samples
from tritongen.loadtest.inputs import Inputs
from tritongen.loadtest.record import Measurement, Subject, make_report
from tritongen.loadtest.samples import DTYPE, Samples
from tritongen.loadtest.settings import Settings
from tritongen.loadtest.target import ServedModel, parse_address
from tritongen.report.loadtest import render
from tritongen.repository.manifest import InputEntry, Manifest
from tritongen.runs.loadtest import LoadOutcome, LoadReport
from tritongen.serving.statistics import BatchStatistics, ModelStatistics, Timing
from tritongen.slo import parse_slo

MODEL = ServedModel("digits", "", (), ("y",), True, 8, True, "triton 2.51.0")  # noqa: FBT003


def report(
    *slos: str, failed: int = 0, triton: bool = True, min_duration_s: float | None = None, **changes: Any
) -> LoadReport:
    """A minute at 100/s, 5 to 10 ms each; this many of the last requests failed."""
    promised = [parse_slo(text) for text in slos]
    settings = Settings("digits", rate=100, slos=promised, batch_size=2, min_duration_s=min_duration_s)
    rows = np.zeros(6000, DTYPE)
    rows["scheduled_ns"] = np.arange(6000) * 10**7
    rows["sent_ns"] = rows["scheduled_ns"] + 50_000
    rows["done_ns"] = rows["scheduled_ns"] + np.random.default_rng(0).integers(5 * 10**6, 10**7, 6000)
    rows["status"] = samples.OK
    rows["batch"] = 2
    if failed:
        rows["status"][-failed:] = 503
    after = ModelStatistics(
        "digits", "1", inference_count=10_800, execution_count=2700, success=Timing(5400, 10**9),
        queue=Timing(5400, 54 * 10**8),
    )  # fmt: skip
    fields: dict[str, Any] = {
        "samples": Samples(rows),
        "messages": {503: '{"error": "full"}'},
        "start_ns": 0,
        "end_ns": 60 * 10**9,
        "before": ModelStatistics("digits", "1") if triton else None,
        "after": after if triton else None,
        "stopped": False,
    }
    own = changes.pop("own_requests", 1 << 16)
    subject = Subject(
        MODEL, parse_address(settings.url), Inputs((), "synthetic"), "now", None, own_requests=own
    )
    return make_report(settings, subject, Measurement(**{**fields, **changes}), server_gone=None)


def executions(batch_size: int, count: int) -> BatchStatistics:
    return BatchStatistics(batch_size, Timing(count, count), Timing(count, count), Timing(count, count))


def test_others_who_use_the_model_are_noted() -> None:
    assert not any("others used" in note for note in report("p99<=20ms").notes)
    busy = ModelStatistics("digits", "1", inference_count=16_000, execution_count=9000, success=Timing(8000))
    (note,) = (note for note in report("p99<=20ms", after=busy).notes if "others used" in note)
    assert "counted 16000 inferences in the window, at most 11000 of them of this test" in note


def test_a_report_ends_in_the_verdict_and_survives_json() -> None:
    found = report("p99<=20ms", "throughput>=200/s")
    assert found.outcome is LoadOutcome.PASS
    assert found.requests == 5500
    assert found.requests_per_s == pytest.approx(100, rel=0.01)
    assert found.inferences_per_s == pytest.approx(200, rel=0.01)
    assert found.server_figures is not None
    assert found.server_figures.mean_batch == 4
    assert found.server_figures.queue_ms == 1.0
    assert found.sender_lag_ms.mean == pytest.approx(0.05)
    text = render(found)
    assert text.splitlines()[-1] == "PASS: every objective is met in the 55 s that were measured"
    for shown in ("digits", "5500 of 5500", "mean batch 4.00", "queue 1.000", "p99.9", "100 requests/s"):
        assert shown in text
    assert LoadReport.model_validate_json(found.model_dump_json(by_alias=True)) == found


def test_the_waterfall_is_of_what_the_server_counted() -> None:
    """Not of what it answered after the window, nor of another model of the mix."""
    rows = np.zeros(6000, DTYPE)
    rows["scheduled_ns"] = rows["sent_ns"] = np.arange(6000) * 10**7
    rows["done_ns"] = rows["sent_ns"] + 2 * 10**6
    rows["done_ns"][3000:] += 60 * 10**9
    rows["done_ns"][1000:2000] += 10**9
    rows["request"][1000:2000] = 5
    rows["status"], rows["batch"] = samples.OK, 2
    found = report(samples=Samples(rows), own_requests=5)
    assert found.waterfall is not None
    assert found.waterfall.network_ms == pytest.approx(1)  # 2 ms, of which 1 ms in the queue
    assert found.response_ms.mean is not None
    assert found.response_ms.mean > 10_000


def test_every_promised_percentile_is_in_the_table() -> None:
    found = report("p98.5<=20ms", "p99.99999<=20ms", "p99<=20ms", "mean<=20ms")
    assert list(found.response_ms.percentiles) == ["p50", "p90", "p95", "p98.5", "p99", "p99.9", "p99.99999"]
    (measured,) = [each.measured for each in found.objectives if each.slo == "p98.5<=20ms"]
    assert found.response_ms.percentiles["p98.5"] == measured
    lines = render(found).splitlines()
    (start,) = [number for number, line in enumerate(lines) if line.startswith("ms  ")]
    table = lines[start : start + 4]
    assert "    p98.5      p99 " in table[0]
    assert len({len(line) for line in table}) == 1


def test_failures_are_listed_by_cause() -> None:
    found = report("error_rate<=1%", failed=600, triton=False)
    text = render(found)
    assert "600 × HTTP 503: " in text
    assert "full" in text
    assert "no statistics" in text
    assert found.response_ms.percentiles["p99"] is None
    assert text.splitlines()[-1].startswith(("FAIL", "INVALID"))


@pytest.mark.parametrize(
    "after",
    [
        ModelStatistics("digits", "1", inference_count=900, execution_count=9, success=Timing(90, 10**6)),
        ModelStatistics("digits", "1", 10_800, 2700, Timing(5400, 10**9), queue=Timing(5400, 10**6)),
        ModelStatistics("digits", "2", 10_800, 2700, Timing(5400, 10**9), queue=Timing(5400, 10**9)),
    ],
)
def test_counts_that_began_anew_explain_nothing(after: ModelStatistics) -> None:
    before = ModelStatistics("digits", "1", 1000, 250, Timing(500, 10**8), queue=Timing(500, 54 * 10**7))
    found = report("p99<=20ms", before=before, after=after)
    assert (found.server_figures, found.waterfall, found.bottleneck) == (None, None, None)
    assert "the server was restarted" in render(found)
    assert "limit " not in render(found)
    assert ("version 1 at its beginning, 2 at its end" in render(found)) == (after.version == "2")


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"begun_anew": True}, "the server was restarted in it, or loaded the model again"),
        (
            {"after": ModelStatistics("digits", "1", 2000, 1900, Timing(1000, 10**9))},
            "the server counted 1000 answers in it and gave 5500; it was restarted",
        ),
        (
            {"after": ModelStatistics("digits", "1", 10_800, 1200, Timing(5400, 10**9))},
            "9 inferences an execution, and max_batch_size is 8",
        ),
        (
            {
                "before": ModelStatistics("digits", "1", batches=(executions(1, 700), executions(2, 9))),
                "after": ModelStatistics(
                    "digits", "1", 10_800, 2700, Timing(5400, 10**9), batches=(executions(1, 600),)
                ),
            },
            "the server was restarted in it, or loaded the model again",
        ),
    ],
)
def test_counts_that_cannot_be_true_explain_nothing(changes: dict[str, Any], why: str) -> None:
    """New counts that have passed the old ones by the end of the window look as if they went on."""
    found = report("p99<=20ms", **changes)
    assert (found.server_figures, found.waterfall, found.bottleneck) == (None, None, None)
    assert found.server_figures_note is not None
    assert f"no statistics of the window: {why}" in found.server_figures_note


def test_a_stopped_run_is_marked() -> None:
    found = report("p99<=20ms", stopped=True, end_ns=30 * 10**9)
    assert found.partial
    assert found.window_s == 25
    assert found.outcome is LoadOutcome.INVALID
    assert "PARTIAL" in render(found)


def test_a_run_that_was_stopped_in_its_warm_up_says_just_that() -> None:
    found = report("p99<=20ms", stopped=True, end_ns=2 * 10**9, before=None)
    assert found.partial
    assert render(found) == "stopped before anything was measured"


@pytest.mark.parametrize(("least_s", "flag"), [(None, "(--duration "), (1.0, "(--max-duration ")])
def test_the_advised_flag_is_the_one_in_use(least_s: float | None, flag: str) -> None:
    found = report("p99<=9.96ms", min_duration_s=least_s)
    assert flag in found.objectives[0].reason


def test_executions_that_are_not_counted_yet_are_no_contradiction() -> None:
    """Triton counts the inferences of a batch first, and may be asked in between."""
    full = ModelStatistics("digits", "1", 8 * 1351, 1350, Timing(5400, 10**9), queue=Timing(5400, 10**9))
    assert report("p99<=20ms", after=full).server_figures is not None


def test_where_only_days_would_decide_something_else_is_advised() -> None:
    """One long stall, with nearly as many requests over the limit as are allowed."""
    rows = np.zeros(6000, DTYPE)
    rows["scheduled_ns"] = rows["sent_ns"] = np.arange(6000) * 10**7
    rows["done_ns"] = rows["sent_ns"] + 10**6
    rows["done_ns"][2000:2050] += 10**9
    rows["status"], rows["batch"] = samples.OK, 2
    (objective,) = report("p99<=20ms", samples=Samples(rows)).objectives
    assert objective.outcome == "undecided"
    assert "requests should decide it, " in objective.reason
    assert " h at this rate: rather use a quieter machine or a looser limit" in objective.reason
    assert "duration" not in objective.reason


def test_a_manifest_gives_sizes_and_ranges() -> None:
    entry: dict[str, Any] = {"min_shape": (1,), "max_shape": (512,)}
    inputs = (
        InputEntry(name="ids", dtype="INT64", dims=(-1,), opt_shape=(128,), value_range=(0, 99), **entry),
        InputEntry(name="image", dtype="FP32", dims=(3, 8, 8), opt_shape=(3, 8, 8), **entry),
    )
    known: dict[str, Any] = {"name": "bert", "inputs": inputs}
    manifest = Manifest.model_construct(**known)
    assert _known_shapes({}, manifest) == {"bert:ids": "128"}
    assert _known_ranges({}, manifest) == {"bert:ids": "0..99"}
    assert _known_shapes({}, None) == _known_ranges({}, None) == {}
    other = InputEntry(name="ids", dtype="INT64", dims=(-1,), opt_shape=(7,), value_range=(0, 5), **entry)
    others: dict[str, Any] = {"name": "gpt", "inputs": (other, other.model_copy(update={"name": "more"}))}
    mixed = Manifest.model_construct(**others)
    known_shapes = {"gpt:ids": "7", "gpt:more": "7", "bert:ids": "128"}
    assert _known_shapes({}, mixed, None, manifest) == known_shapes
    assert _known_shapes({"ids": "9"}, mixed, manifest) == {"gpt:more": "7"}


@pytest.mark.parametrize(
    ("text", "seconds"), [("60", 60), ("60s", 60), ("500ms", 0.5), ("2m", 120), ("1.5 min", 90), ("1h", 3600)]
)
def test_times(text: str, seconds: float) -> None:
    assert _seconds(None, None, text) == seconds  # type: ignore[arg-type]


def test_what_was_offered_is_said_as_it_was_asked_for() -> None:
    found = report("p99<=20ms")
    assert "offered   100 requests/s (poisson, open loop)" in render(found)
    changing = found.load.model_copy(update={"shape": "50..150@10s"})
    assert "50..150@10s requests/s (mean 100/s, poisson" in render(
        found.model_copy(update={"load": changing})
    )
    replayed = found.load.model_copy(update={"trace_requests": 6000, "arrival": None})
    text = render(found.model_copy(update={"load": replayed}))
    assert "a trace of 6000 requests (mean 100/s, open loop)" in text
    assert "poisson" not in text


def test_an_interval_without_an_end_says_so() -> None:
    few = render(report("p99<=20ms").model_copy(update={"p99_interval_ms": (0.0, None)}))
    assert "confidence interval of the response P99: too few requests for one" in few
    text = render(report("p99<=20ms").model_copy(update={"p99_interval_ms": (1.0, None)}))
    assert "from 1.000 ms, no upper bound yet" in text


def test_missing_statistics_say_why() -> None:
    assert "extension of Triton" in render(report(triton=False))
    assert "stopped in its warm-up" in render(report(before=None, stopped=True))
    assert "at its end" in render(report(after=None))
