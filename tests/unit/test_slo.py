"""The one parser of service-level objectives."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tritongen.errors import SpecError
from tritongen.slo import parse_slo


@pytest.mark.parametrize(
    ("text", "metric", "comparison", "limit", "unit"),
    [
        ("p99<=20ms", "p99", "<=", 20.0, "ms"),
        ("P99.90 ≤ 0.5 s", "p99.9", "<=", 500.0, "ms"),
        ("p50<=250us", "p50", "<=", 0.25, "ms"),
        ("p95<=250µs", "p95", "<=", 0.25, "ms"),
        ("mean<=1e3ns", "mean", "<=", 0.001, "ms"),
        ("error_rate<=0.1%", "error_rate", "<=", 0.001, "fraction"),
        ("error-rate<=0", "error_rate", "<=", 0.0, "fraction"),
        ("throughput>=500/s", "throughput", ">=", 500.0, "inferences/s"),
        ("throughput >= 500 inf/s", "throughput", ">=", 500.0, "inferences/s"),
        ("throughput>=500 req/s", "throughput", ">=", 500.0, "requests/s"),
        ("throughput≥.5requests/s", "throughput", ">=", 0.5, "requests/s"),
    ],
)
def test_reads_metric_comparison_limit_and_unit(
    text: str, metric: str, comparison: str, limit: float, unit: str
) -> None:
    slo = parse_slo(text)
    assert (slo.metric, slo.comparison, slo.unit, slo.text) == (metric, comparison, unit, text)
    assert slo.limit == pytest.approx(limit)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is not a service-level objective"),
        ("p99", "is not a service-level objective"),
        ("p99<=-1ms", "is not a service-level objective"),
        ("p99<=1ms2", "is not a service-level objective"),
        ("p99<=20", "has no unit"),
        ("p99<=20 min", "unknown unit 'min'"),
        ("p100<=20ms", "unknown metric 'p100'"),
        ("p99.99999999999999<=20ms", "unknown metric 'p99.9"),
        ("p0.00000000000000001<=20ms", "unknown metric 'p0.0"),
        ("p0<=20ms", "unknown metric 'p0'"),
        ("latency<=20ms", "unknown metric 'latency'"),
        ("p99<20ms", "write 'p99<=20ms'"),
        ("p99<20", "write 'p99<=20ms'"),
        ("throughput<500", "write 'throughput>=500/s'"),
        ("error_rate<0.1", "write 'error_rate<=0.1'"),
        ("p99>=20ms", "takes an upper bound"),
        ("throughput<=500/s", "takes a lower bound"),
        ("throughput>=500", "has no unit"),
        ("throughput>=500 qps", "unknown unit 'qps'"),
        ("throughput>=0/s", "nothing can meet or miss"),
        ("p99<=1e999ms", "nothing can meet or miss"),
        ("error_rate<=2", "more errors than there are requests"),
        ("error_rate<=101%", "more errors than there are requests"),
    ],
)
def test_refuses_what_is_not_an_objective(text: str, words: str) -> None:
    with pytest.raises(SpecError, match="objective") as caught:
        parse_slo(text)
    assert words in str(caught.value)


def test_percentile_and_judgement() -> None:
    assert parse_slo("p99.9<=20ms").percentile == 99.9
    assert parse_slo("mean<=20ms").percentile is None
    assert parse_slo("p99<=20ms").holds(20.0)
    assert not parse_slo("p99<=20ms").holds(20.01)
    assert parse_slo("throughput>=5/s").holds(5.0)
    assert not parse_slo("p99<=20ms").holds(math.nan)


@settings(deadline=None)
@given(
    st.sampled_from(["p50", "p95", "p99", "p99.9", "mean"]),
    st.floats(min_value=1e-6, max_value=1e6),
    st.sampled_from(["ns", "us", "ms", "s"]),
)
def test_printing_and_reading_again_keeps_the_meaning(metric: str, number: float, unit: str) -> None:
    slo = parse_slo(f"{metric}<={number!r}{unit}")
    again = parse_slo(str(slo))
    assert (again.metric, again.comparison, again.unit) == (slo.metric, slo.comparison, slo.unit)
    assert again.limit == pytest.approx(slo.limit, rel=1e-12)


@settings(deadline=None)
@given(st.text(max_size=30))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        slo = parse_slo(text)
    except SpecError:
        return
    assert math.isfinite(slo.limit)
