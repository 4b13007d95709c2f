"""A load test's report for machines: JUnit XML for CI, and a Prometheus textfile."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from xml.etree import ElementTree as ET

from tritongen.runs.loadtest import LoadOutcome, LoadReport, Objective

_FORBIDDEN = re.compile("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What XML 1.0 cannot hold; servers put such things into messages."""


def junit(report: LoadReport) -> str:
    """One suite, one case per objective (and one for the run itself where it is not the objectives' fault).

    FAIL is a failure, INVALID and ERROR are errors: a CI must not take "cannot tell" for a pass.
    """
    suite = ET.Element("testsuite", name=f"tritongen loadtest {_clean(report.model)}")
    outcomes = {objective.outcome for objective in report.objectives}
    for objective in report.objectives:
        case = _case(suite, report, objective.slo)
        _judge(case, report, objective)
    explained = (report.outcome is LoadOutcome.FAIL and "fail" in outcomes) or (
        report.outcome is LoadOutcome.INVALID and "undecided" in outcomes
    )
    run = _case(suite, report, "the run itself")
    if report.outcome not in (LoadOutcome.PASS, LoadOutcome.MEASURED) and not explained:
        kind = "failure" if report.outcome is LoadOutcome.FAIL else "error"
        _problem(run, kind, report.outcome.value, "; ".join(report.reasons))
    told = {f"{objective.slo}: {objective.reason}" for objective in report.objectives}
    if others := [reason for reason in report.reasons if reason not in told]:
        ET.SubElement(run, "system-out").text = _clean("\n".join(others))
    cases = list(suite)
    counts = {
        "tests": len(cases),
        "failures": sum(case.find("failure") is not None for case in cases),
        "errors": sum(case.find("error") is not None for case in cases),
        "skipped": 0,
    }
    for name, count in counts.items():
        suite.set(name, str(count))
    suite.set("time", f"{report.window_s:.3f}")
    suite.set("timestamp", report.started[:19])
    suites = ET.Element("testsuites", {name: str(count) for name, count in counts.items()})
    suites.append(suite)
    ET.indent(suites)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(suites, encoding="unicode") + "\n"


def _case(suite: ET.Element, report: LoadReport, name: str) -> ET.Element:
    return ET.SubElement(
        suite,
        "testcase",
        classname=f"tritongen.loadtest.{_clean(report.model)}",
        name=_clean(name),
        time=f"{report.window_s:.3f}",
    )


def _judge(case: ET.Element, report: LoadReport, objective: Objective) -> None:
    if objective.outcome == "fail":
        _problem(case, "failure", "FAIL", objective.reason)
    elif objective.outcome == "undecided":
        _problem(case, "error", "INVALID", objective.reason)
    elif report.outcome in (LoadOutcome.ERROR, LoadOutcome.INVALID):
        _problem(case, "error", report.outcome.value, "; ".join(report.reasons))


def _problem(case: ET.Element, kind: str, outcome: str, text: str) -> None:
    """The whole text once, and its first part as the line that is shown of it."""
    element = ET.SubElement(case, kind, type=outcome, message=_clean(text.partition(";")[0]))
    element.text = _clean(text)


def _clean(text: str) -> str:
    return _FORBIDDEN.sub("�", text)


def prometheus(report: LoadReport) -> str:
    """Gauges in Prometheus' text format, for the node exporter's textfile collector."""
    lines: list[str] = []
    for name, text, samples in _families(report):
        lines += [f"# HELP tritongen_loadtest_{name} {text}", f"# TYPE tritongen_loadtest_{name} gauge"]
        for labels, value in samples:
            own = {"model": report.model, "url": report.url, **labels}
            shown = ",".join(f'{label}="{_escape(text)}"' for label, text in own.items())
            lines.append(f"tritongen_loadtest_{name}{{{shown}}} {_value(value)}")
    return "\n".join(lines) + "\n"


Labelled = list[tuple[dict[str, str], float]]


def _families(report: LoadReport) -> Iterator[tuple[str, str, Labelled]]:
    yield (
        "outcome",
        "1 for the outcome of the last load test.",
        [({"outcome": each.value}, float(each is report.outcome)) for each in LoadOutcome],
    )
    if report.load.rate is not None:
        yield "offered_requests_per_second", "Offered rate.", [({}, report.load.rate)]
    yield "requests_per_second", "Answers in the window.", [({}, report.requests_per_s)]
    yield "window_seconds", "Length of the measured window.", [({}, report.window_s)]
    yield "requests", "Requests scheduled in the window.", [({}, float(report.requests))]
    yield "failed_requests", "Failed requests by cause.", [
        ({"cause": each.cause}, float(each.count)) for each in report.failures
    ]  # fmt: skip
    for name, latency in (
        ("response", report.response_ms),
        ("service", report.service_ms),
        ("sender_lag", report.sender_lag_ms),
    ):
        quantiles: Labelled = [
            ({"quantile": f"{float(percent[1:]) / 100:.12g}"}, math.inf if value is None else value / 1000)
            for percent, value in latency.percentiles.items()
        ]
        yield f"{name}_seconds", f"Quantiles of the {name.replace('_', ' ')} time.", quantiles
    yield "objective_met", "1 if met, 0 if missed, -1 if undecided.", [
        ({"slo": each.slo}, {"pass": 1.0, "fail": 0.0, "undecided": -1.0}[each.outcome])
        for each in report.objectives
    ]  # fmt: skip


def _value(value: float) -> str:
    return "+Inf" if value == math.inf else f"{value:.12g}"


def _escape(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
