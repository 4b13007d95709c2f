"""A search's report: the bracket, and latency against rate as a table, in the terminal and as an SVG."""

from __future__ import annotations

import math
from collections.abc import Iterator
from html import escape

from tritongen.runs.loadtest import LoadOutcome
from tritongen.runs.peak import PeakProbe, PeakReport

_BAR = 40
_WIDTH, _HEIGHT, _MARGIN = 640, 400, 60
_COLOURS = {LoadOutcome.PASS: "#2a7f3f", LoadOutcome.FAIL: "#b3261e"}
_OTHER_COLOUR = "#8a6d00"


def render(report: PeakReport) -> str:
    """Plain text: the curve, then the bracket in the last line."""
    lines = [f"{report.model} at {report.url}: the highest rate with {', '.join(report.slos)}", ""]
    return "\n".join([*lines, *_table(report), "", *_ending(report)])


def _table(report: PeakReport) -> Iterator[str]:
    probes = sorted(report.probes, key=lambda probe: (probe.rate, probe.confirms))
    yield f"{'requests/s':>10} {'P50 ms':>9} {'P99 ms':>9} {'batch':>6} {'requests':>9}  outcome"
    most = max((math.log1p(probe.p99_ms) for probe in probes if probe.p99_ms), default=1.0)
    for probe in probes:
        bar = "█" * round(_BAR * math.log1p(probe.p99_ms) / most) if probe.p99_ms else ""
        marks = " (confirmation)" if probe.confirms else ""
        marks += " ← knee" if probe.rate == report.knee and not probe.confirms else ""
        yield (
            f"{probe.rate:>10.1f} {_number(probe.p50_ms):>9} {_number(probe.p99_ms):>9} "
            f"{_number(probe.mean_batch):>6} {probe.requests:>9}  {probe.outcome.value:<8} {bar}{marks}"
        )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _ending(report: PeakReport) -> Iterator[str]:
    if report.knee is not None:
        yield f"knee      latency bends at about {report.knee:.6g} requests/s"
    yield f"ended     {report.reason}"
    if report.passed is None:
        yield f"{report.outcome.value}: no rate was seen to keep the promise"
        return
    upper = f"{report.failed:.6g}" if report.failed is not None else "unknown"
    yield (
        f"{report.outcome.value}: the promise holds at {report.passed:.6g} requests/s"
        f"{'' if report.confirmed else ' (not confirmed)'} and fails at {upper} "
        f"({report.confidence:.0%} confidence)"
    )


def curve_svg(report: PeakReport) -> str:
    """Latency (P99, logarithmic) against rate, one dot a probe."""
    probes = [probe for probe in report.probes if not probe.confirms and probe.p99_ms]
    points = sorted({probe.rate: probe for probe in probes}.values(), key=lambda probe: probe.rate)
    rates = [probe.rate for probe in points] or [1.0]
    heights = [math.log10(probe.p99_ms or 1) for probe in points] or [0.0]
    right, low, high = max(rates), math.floor(min(heights)), math.ceil(max(heights) + 1e-9)

    def place(probe: PeakProbe) -> tuple[float, float]:
        x = _MARGIN + (_WIDTH - 2 * _MARGIN) * probe.rate / right
        part = (math.log10(probe.p99_ms or 1) - low) / max(high - low, 1)
        return x, _HEIGHT - _MARGIN - (_HEIGHT - 2 * _MARGIN) * part

    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in map(place, points))
    size = f'width="{_WIDTH}" height="{_HEIGHT}"'
    bottom, span = _HEIGHT - _MARGIN, _HEIGHT - 2 * _MARGIN
    steps = range(high - low + 1)
    ticks = [(bottom - span * step / (high - low) + 4, 10.0 ** (low + step)) for step in steps]
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="12">',
        f'<rect {size} fill="#fff"/>',
        f'<text x="{_MARGIN}" y="24">{escape(report.model)}: P99 (ms) against requests/s</text>',
        f'<path d="M{_MARGIN},{_MARGIN}V{bottom}H{_WIDTH - _MARGIN}" fill="none" stroke="#444"/>',
        *(f'<text x="{_MARGIN - 8}" y="{y:.1f}" text-anchor="end">{value:g}</text>' for y, value in ticks),
        f'<text x="{_WIDTH - _MARGIN}" y="{bottom + 20}" text-anchor="end">{right:.6g}</text>',
        f'<polyline points="{path}" fill="none" stroke="#567"/>',
    ]
    for probe in points:
        x, y = place(probe)
        colour = _COLOURS.get(probe.outcome, _OTHER_COLOUR)
        label = f"{probe.rate:.1f}/s: P99 {probe.p99_ms:.2f} ms, {probe.outcome.value}"
        parts.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"><title>{label}</title></circle>'
        )
        if probe.rate == report.knee:
            parts.append(f'<text x="{x:.1f}" y="{y - 10:.1f}" text-anchor="middle">knee</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"
