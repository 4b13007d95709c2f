"""The highest rate that keeps the promise: a bracket with its confidence. Pure: a probe is a callable.

Halve from the first rate until one passes, double until one fails, bisect until both are within the
tolerance; then the highest PASS, or a rate a little below it, must pass once more, with fresh seeds and an
error probability of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from tritongen.loadtest.statistics import ALPHA, FIRST_LOOK
from tritongen.runs.loadtest import LoadOutcome
from tritongen.runs.peak import PeakProbe

MOST_PROBES = 16
"""They share alpha, so their number is fixed beforehand."""
MOST_CONFIRMATIONS = 3
TOLERANCE = 0.05
_HALVINGS = 6


@dataclass(frozen=True)
class ProbeRequest:
    """One load test that the search asks for."""

    rate: float
    alpha: float
    seed: int
    confirms: bool = False


Probe = Callable[[ProbeRequest], PeakProbe | None]
"""None: the user stopped it."""


@dataclass(frozen=True)
class Peak:
    """What the search found."""

    passed: float | None
    """The highest rate that passed."""
    failed: float | None
    """The lowest rate above it that failed."""
    confirmed: bool
    probes: tuple[PeakProbe, ...]
    reason: str
    """Why the search ended where it did."""
    stopped: bool = False
    """By the user."""


class _Ended(Exception):  # noqa: N818  (an ending, and no error)
    """The search cannot go on; the reason is its text."""


class _Stopped(_Ended):
    """Nor can anything be confirmed: the server is gone, or the user has had enough."""


def find_peak(
    probe: Probe, start: float, *, tolerance: float = TOLERANCE, alpha: float = ALPHA, seed: int = 0
) -> Peak:
    """The bracket [highest PASS, lowest FAIL], from a first rate in requests per second."""
    search = _Search(probe, alpha, seed)
    confirmed = False
    try:
        reason = search.narrow_down(start, tolerance)
        if search.passed is not None:
            confirmed, told = search.confirm(tolerance)
            reason = f"{reason}; {told}{search.uncertainty(tolerance)}"
    except _Stopped as ending:
        reason = str(ending)
    return Peak(search.passed, search.failed, confirmed, tuple(search.probes), reason, search.stopped)


class _Search:
    def __init__(self, probe: Probe, alpha: float, seed: int) -> None:
        self._probe = probe
        self._alpha = alpha
        self._seed = seed
        self.probes: list[PeakProbe] = []
        self.passed: float | None = None
        self.failed: float | None = None
        self.stopped = False

    def narrow_down(self, start: float, tolerance: float) -> str:
        """Find the bracket and narrow it; why that ended."""
        try:
            self.bracket(start)
            self.bisect(tolerance)
        except _Stopped:
            raise
        except _Ended as ending:
            return str(ending)
        return f"the bracket is within {tolerance:.0%}"

    def bracket(self, start: float) -> None:
        """Halve until one passes, then double until one fails."""
        rate = start
        for _ in range(_HALVINGS + 1):
            outcome = self._try(rate)
            if outcome is LoadOutcome.PASS:
                break
            if outcome is LoadOutcome.FAIL:
                self.failed = rate
            rate /= 2
        else:
            raise _Ended(f"nothing passed down to {rate * 2:.6g} requests/s")
        while self.failed is None:
            rate *= 2
            outcome = self._try(rate)
            # Undecided while climbing: look for a rate that fails, so that there is an upper end at least.
            if outcome is LoadOutcome.FAIL:
                self.failed = rate
            elif outcome is LoadOutcome.PASS:
                self.passed = rate

    def bisect(self, tolerance: float) -> None:
        """Narrow the bracket; an undecided probe inside it ends this, once the ends are near it."""
        while self.passed is not None and self.failed is not None:
            if self.failed <= self.passed * (1 + tolerance):
                return
            inside = [p.rate for p in self.probes if self.passed < p.rate < self.failed]
            middle = inside[-1] if inside else math.sqrt(self.passed * self.failed)
            if inside or not self._narrow(middle):
                self._close_in(middle, tolerance)
                raise _Ended(f"no clear verdict at {middle:.6g} requests/s, inside the bracket")

    def uncertainty(self, tolerance: float) -> str:
        """How wide the bracket is, where that is more than was wanted."""
        if self.passed is None or self.failed is None or self.failed <= self.passed * (1 + tolerance) * 1.001:
            return ""
        width = self.failed / self.passed - 1
        return f"; that rate is known only to within {width:.0%}: longer probes (--max-duration) tell more"

    def _close_in(self, undecided: float, tolerance: float) -> None:
        """Move the ends of the bracket as near as can be told to a rate that could not be told.

        Steps away from it double until a probe decides: how wide the rates are that cannot be told depends on
        how much the latency changes with the rate, and on how long a probe lasts.
        """
        for direction in (-1, 1):
            for steps in (0.5, 1, 2, 4, 8):
                rate = undecided * (1 + tolerance) ** (direction * steps)
                end = self.passed if direction < 0 else self.failed
                if end is None or (rate - end) * direction >= 0 or self._narrow(rate):
                    break

    def _narrow(self, rate: float) -> bool:
        """Move one end of the bracket to this rate; False if that cannot be told."""
        outcome = self._try(rate)
        if outcome is LoadOutcome.FAIL:
            self.failed = rate
        return outcome in (LoadOutcome.PASS, LoadOutcome.FAIL)

    def confirm(self, tolerance: float) -> tuple[bool, str]:
        """Run the highest PASS again, lower where that cannot tell; where it fails, bisect below it."""
        highest = self.passed
        for attempt in range(MOST_CONFIRMATIONS):
            if self.passed is None:
                break
            try:
                outcome = self._run(
                    self.passed, self._alpha / MOST_CONFIRMATIONS, 1000 + attempt, confirms=True
                )
            except _Stopped:
                raise
            except _Ended as ending:
                return False, f"no confirmation: {ending}"
            if outcome is LoadOutcome.PASS:
                return True, f"confirmed with fresh seeds at {self.passed:.6g} requests/s"
            if outcome is not LoadOutcome.FAIL:
                told = f"the confirmations down to {self.passed:.6g} requests/s could not tell"
                if attempt + 1 == MOST_CONFIRMATIONS:
                    self.passed = highest
                    return False, told
                self.passed /= 1 + tolerance
                continue
            self.failed = self.passed
            passes = [p.rate for p in self.probes if p.outcome is LoadOutcome.PASS]
            lower = [rate for rate in passes if rate < self.failed * (1 - 1e-9)]
            self.passed = max(lower, default=None)
            try:
                self.bisect(tolerance)
            except _Stopped:
                raise
            except _Ended:
                continue
        return False, "no rate passed twice"

    def _try(self, rate: float) -> LoadOutcome:
        if len(self.probes) >= MOST_PROBES:
            raise _Ended(f"{MOST_PROBES} probes are used up")
        outcome = self._run(rate, self._alpha / MOST_PROBES, len(self.probes))
        if outcome is LoadOutcome.PASS:
            self.passed = max(rate, self.passed or 0.0)
        return outcome

    def _run(self, rate: float, alpha: float, number: int, *, confirms: bool = False) -> LoadOutcome:
        found = self._probe(ProbeRequest(rate, alpha, self._seed + number, confirms))
        if found is None:
            self.stopped = True
            raise _Stopped("stopped by the user")
        self.probes.append(found)
        if found.outcome is LoadOutcome.ERROR:
            raise _Stopped(f"at {rate:.6g} requests/s: {found.reason}")
        if found.outcome is LoadOutcome.INVALID and found.requests < FIRST_LOOK:
            raise _Ended(
                f"{found.requests} requests at {rate:.4g}/s are too few for a verdict "
                f"(at least {FIRST_LOOK}): give the probes a longer --max-duration"
            )
        if found.client_limited:
            raise _Ended(f"the load generator's own limit: {found.reason}")
        return found.outcome
