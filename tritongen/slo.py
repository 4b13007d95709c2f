"""Service-level objectives: the one parser of texts such as `p99<=20ms` and `throughput>=500/s`."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

from tritongen.errors import SpecError

Comparison = Literal["<=", ">="]
Unit = Literal["ms", "fraction", "inferences/s", "requests/s"]

EXPECTED = (
    "p50|p95|p99|p99.9|mean <= TIME (ns, us, ms, s), error_rate <= SHARE (0.001 or 0.1%), "
    "throughput >= RATE (/s or inf/s: inferences/s; req/s: requests/s)"
)
_EXAMPLES = "write for example 'p99<=20ms', 'error_rate<=0.1%' or 'throughput>=500/s'"

_NUMBER = r"(?P<number>[0-9]+(?:\.[0-9]*)?(?:[eE][+-]?[0-9]+)?|\.[0-9]+(?:[eE][+-]?[0-9]+)?)"
_PATTERN = re.compile(
    rf"\s*(?P<metric>[A-Za-z][A-Za-z0-9._-]*)\s*(?P<comparison><=|>=|≤|≥|==|=|<|>)\s*{_NUMBER}\s*(?P<unit>[^\s0-9][^0-9]*)?\s*"
)
_MILLISECONDS = {"ns": 1e-6, "us": 1e-3, "µs": 1e-3, "μs": 1e-3, "ms": 1.0, "s": 1e3}
_RATES: dict[str, Unit] = {
    "/s": "inferences/s",
    "inf/s": "inferences/s",
    "inferences/s": "inferences/s",
    "req/s": "requests/s",
    "requests/s": "requests/s",
}


@dataclass(frozen=True)
class Slo:
    """One promise about a load test: `metric` `comparison` `limit`, in base units."""

    metric: str
    """`p50`, `p95`, `p99`, `p99.9` or any other `pNN`; `mean`; `error_rate`; `throughput`."""
    comparison: Comparison
    """`>=` for throughput, `<=` for all others."""
    limit: float
    """Milliseconds for latencies, 0 … 1 for the error rate, per second for throughput."""
    unit: Unit
    """What `limit` counts; for throughput it tells inferences/s from requests/s."""
    text: str
    """As it was written."""

    @property
    def percentile(self) -> float | None:
        """The percentile in percent (99.9 for `p99.9`), None for every other metric."""
        return float(self.metric[1:]) if re.fullmatch(r"p[0-9.]+", self.metric) else None

    def holds(self, value: float) -> bool:
        """Whether a measured value, in the unit of `limit`, meets the promise; NaN never does."""
        return value <= self.limit if self.comparison == "<=" else value >= self.limit

    def __str__(self) -> str:
        limit = f"{self.limit:.15g}"
        if self.unit == "fraction":
            return f"{self.metric}{self.comparison}{limit}"
        unit = {"ms": "ms", "inferences/s": " inferences/s", "requests/s": " requests/s"}[self.unit]
        return f"{self.metric}{self.comparison}{limit}{unit}"


def parse_slo(text: str) -> Slo:
    """The objective that `text` states, or SpecError; `throughput>=500/s` means inferences/s."""
    match = _PATTERN.fullmatch(text)
    if match is None:
        raise _error("is not a service-level objective", text)
    metric = _metric(match["metric"], text)
    comparison: Comparison = ">=" if metric == "throughput" else "<="
    written_unit = (match["unit"] or "").strip()
    _check_comparison(match["comparison"], comparison, metric, text, unit=written_unit)
    limit, unit = _limit(metric, float(match["number"]), written_unit, text)
    return Slo(metric, comparison, limit, unit, text.strip())


def _metric(name: str, text: str) -> str:
    lowered = name.lower().replace("-", "_")
    if lowered in ("mean", "error_rate", "throughput"):
        return lowered
    if match := re.fullmatch(r"p([0-9]{1,2}(?:\.[0-9]+)?)", lowered):
        percentile = f"{float(match[1]):.15g}"
        if "e" not in percentile and percentile not in ("0", "100"):  # to which enough nines are rounded
            return f"p{percentile}"
    raise _error(f"names an unknown metric '{name}'", text)


def _check_comparison(written: str, meant: Comparison, metric: str, text: str, *, unit: str) -> None:
    if {"≤": "<=", "≥": ">="}.get(written, written) == meant:
        return
    missing = "" if unit else {"throughput": "/s", "error_rate": ""}.get(metric, "ms")
    bound = "a lower bound" if meant == ">=" else "an upper bound"
    raise SpecError(
        f"the objective '{text.strip()}' compares with '{written}', and {metric} takes {bound}",
        found=written,
        expected=meant,
        fix=f"write '{text.strip().replace(written, meant, 1)}{missing}'",
    )


def _limit(metric: str, number: float, unit: str, text: str) -> tuple[float, Unit]:
    if metric == "throughput":
        limit, kind = number, _RATES.get(unit.replace(" ", ""))
    elif metric == "error_rate":
        limit = number / 100 if unit == "%" else number
        kind = "fraction" if unit in ("", "%") and limit <= 1 else None
    else:
        factor = _MILLISECONDS.get(unit)
        limit, kind = number * (factor or 0), "ms" if factor else None
    if kind is None:
        problem = f"has an unknown unit '{unit}'" if unit else "has no unit"
        if metric == "error_rate" and unit in ("", "%"):
            problem = "allows more errors than there are requests"
        raise _error(problem, text)
    if not math.isfinite(limit) or (limit <= 0 and metric != "error_rate"):
        raise _error("has a limit that nothing can meet or miss", text)
    return limit, kind


def _error(problem: str, text: str) -> SpecError:
    return SpecError(
        f"the objective '{text.strip()}' {problem}", found=text.strip(), expected=EXPECTED, fix=_EXAMPLES
    )
