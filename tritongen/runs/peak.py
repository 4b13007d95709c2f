"""The record of a search for the highest rate that keeps a promise."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tritongen.runs.loadtest import LoadOutcome
from tritongen.runs.records import Machine, Record


class PeakProbe(Record):
    """One load test of the search."""

    rate: float
    """Requests per second, offered."""
    outcome: LoadOutcome
    reason: str
    requests: int
    requests_per_s: float | None = None
    p50_ms: float | None = None
    p99_ms: float | None = None
    mean_batch: float | None = None
    alpha: float
    seed: int
    confirms: bool = False
    client_limited: bool = False


class PeakReport(Record):
    """The bracket, its confidence, and the curve of latency against rate."""

    schema_: Literal["tritongen/peak/1"] = Field(default="tritongen/peak/1", alias="schema")
    model: str
    url: str
    slos: tuple[str, ...]
    outcome: LoadOutcome
    """PASS: the peak is confirmed; FAIL: no rate passed; INVALID: it could not be told."""
    passed: float | None
    """The highest rate that passed."""
    failed: float | None
    """The lowest rate above it that failed."""
    confirmed: bool
    confidence: float
    """That all probes together, and the confirmation, are right at their limits."""
    knee: float | None
    """The rate from which on latency grows faster than the load."""
    reason: str
    partial: bool = False
    """Stopped before its time."""
    probes: tuple[PeakProbe, ...]
    """In the order in which they ran."""
    started: str
    """ISO 8601, UTC."""
    machine: Machine | None = None
