"""What a run has to show, and what it says beyond its objectives: late sends, growing backlogs. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tritongen.loadtest import statistics
from tritongen.loadtest.correlation import BATCHES, batch_shares
from tritongen.loadtest.samples import DTYPE, LATE, Samples
from tritongen.runs.loadtest import WarmUpResult
from tritongen.slo import Slo

_LAG_OF_LIMIT = 0.5
"""A send is late when it takes this part of the latency limit, but not below one millisecond."""
_LEAST_LAG_MS = 1.0
_BEHIND_MS = 100.0
"""Without a latency objective: a median lag beyond this means that the sender cannot keep up."""
_TOO_MUCH = "use more --workers, a lower --rate, or another machine for the load"
_INTERRUPTED = "something else keeps this machine busy: make it quiet, or use another machine for the load"
"""Most sends are in time, so that the sender can keep up."""
_BACKLOG_GROWTH = 0.005
"""Of the arrivals; less cannot be told from the swings of a busy queue."""
_LEAST_BACKLOG = 10


@dataclass(frozen=True)
class Evidence:
    """What a run has to show, without the warm-up."""

    samples: Samples
    start_ns: int
    end_ns: int
    """The measured window on the clock of the samples."""
    rate: float | None
    """Offered requests per second; None in a closed loop."""
    batch_size: float
    timeout_ms: float
    warm_up: WarmUpResult
    earlier: Samples = field(default_factory=lambda: Samples(np.empty(0, DTYPE)))
    """Those of the warm-up: some of them are unanswered when the window begins."""
    stopped: bool = False
    """By the user."""
    server_gone: str | None = None
    """Why the server cannot be asked any more."""
    fixed_duration: bool = False
    """The run was to last exactly so long."""
    early: bool = False
    """Shorter than what may decide: only a miss is told."""

    @property
    def seconds(self) -> float:
        return max(self.end_ns - self.start_ns, 1) / 1e9

    @property
    def unanswered(self) -> bool:
        """Whether the server answered nothing of what reached it, though something was sent."""
        sent = len(self.samples) == 0 or bool((self.samples.rows["status"] != LATE).any())
        return sent and not self.stopped and not bool(self.samples.ok.any())


def late_sends(evidence: Evidence, slos: Sequence[Slo]) -> str | None:
    """Why the sender, and not the server, limits this run; judged by the lag of its sends alone."""
    lag_ms = evidence.samples.lag_ms
    if len(lag_ms) == 0 or evidence.rate is None:
        return None
    behind = statistics.percentile(lag_ms, 50)
    for slo in slos:
        if slo.unit != "ms":
            continue
        limit = _late_ms(slo.limit)
        allowed = (1 - (slo.percentile if slo.percentile is not None else 50) / 100) / 2
        share = float((lag_ms > limit).mean())
        if share > allowed:
            fix = _TOO_MUCH if behind > limit else _INTERRUPTED
            return (
                f"client-limited: {share:.2%} of the requests left more than {limit:.3g} ms late "
                f"(at most {allowed:.2%} may, to judge {slo}); {fix}"
            )
    if behind > _BEHIND_MS:
        return f"client-limited: half of the requests left more than {behind:.0f} ms late; {_TOO_MUCH}"
    return None


def out_of_reach(evidence: Evidence, slos: Sequence[Slo], alpha: float) -> list[str]:
    """Limits that the answers miss even from their real send, as surely as any: lateness is no excuse there.

    A sender that is late reads late as well, by about as much: its median lag is taken off. Its own bursts
    cannot do this either: most answers of every batch must miss (for a mean, all of them), and where the
    server keeps up, half of a burst wait no longer for it than the middle one is late. Where most requests
    got no answer, the few say nothing: they may be those of a server that the sender left no processor.
    """
    answered = evidence.samples.ok
    service_ms = evidence.samples.service_ms[answered]
    if len(service_ms) < max(statistics.FEWEST_TO_FAIL, len(answered) / 2):
        return []
    usual_lag = statistics.percentile(evidence.samples.lag_ms, 50)
    found = []
    for slo in slos:
        over = service_ms > slo.limit + usual_lag
        if slo.unit == "ms" and _misses_from_send(service_ms - usual_lag, slo, alpha):
            found.append(
                f"{slo}: {int(over.sum())} of {len(over)} answers took more than that from the real send, "
                f"not counting the {usual_lag:.2g} ms by which half of all requests left late"
            )
    return found


def _misses_from_send(values: NDArray[np.float64], slo: Slo, alpha: float) -> bool:
    if slo.percentile is None:
        return bool(values.min() > slo.limit)
    allowed = 1 - slo.percentile / 100
    judged = statistics.judge_share(values, slo.limit, allowed, alpha)
    throughout = bool(statistics.misses_always(batch_shares(values > slo.limit), allowed))
    return throughout and judged.decision is statistics.Decision.FAIL


def lowest_limit_ms(slos: Sequence[Slo]) -> float | None:
    """The strictest limit on a latency; None where there is none."""
    return min((slo.limit for slo in slos if slo.unit == "ms"), default=None)


def late_ms(slos: Sequence[Slo]) -> float:
    """The lag (ms) from which on a send counts as late: the strictest objective says."""
    limit = lowest_limit_ms(slos)
    return _BEHIND_MS if limit is None else _late_ms(limit)


def _late_ms(limit_ms: float) -> float:
    return max(_LEAST_LAG_MS, limit_ms * _LAG_OF_LIMIT)


def growing_backlog(evidence: Evidence) -> str | None:
    """Why the server cannot keep up with an open loop: unanswered requests pile up from first to last."""
    rows = evidence.samples.rows
    if evidence.rate is None or len(rows) < BATCHES:
        return None
    edges = np.linspace(evidence.start_ns, evidence.end_ns, BATCHES + 1)
    # With those before the window, or a server that is slow but steady would seem to fill up in it.
    whole = np.concatenate([evidence.earlier.rows, rows])
    arrived = np.searchsorted(whole["scheduled_ns"], edges)
    backlog = arrived - np.searchsorted(np.sort(whole["done_ns"]), edges)
    quarters = backlog[1:].reshape(4, -1).mean(axis=1)
    growth = int(backlog[-1] - backlog[1])
    notable = max(_LEAST_BACKLOG, _BACKLOG_GROWTH * len(rows))
    # One stall at the very end is no growth: that raises the last quarter's mean as well.
    grew = growth > notable and quarters[-1] - quarters[0] > notable / 2
    if grew and bool((np.diff(quarters) > 0).all()):
        return (
            f"overload: {int(backlog[-1])} requests were unanswered at the end of the schedule, ever more "
            f"towards the end: the server does not keep up with {evidence.rate:g} requests/s"
        )
    return None
