"""Latencies of known truth: the processes at whose limit the verdict's rule is tried. Pure, vectorised.

Each process has a limit that exactly 1 % of its requests exceed in the long run, begins in its steady state,
and gives many runs at once (one a row).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal, localcontext
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tritongen.loadtest.correlation import above_headroom, batch_shares, correlation_of
from tritongen.loadtest.statistics import Decision, decide_share, misses_always, unseen_over

Values = NDArray[np.float64]
Service = Literal["M", "D"]


@dataclass(frozen=True)
class Process:
    """Latencies in the order of arrival, in units of the mean service time."""

    name: str
    draw: Callable[[np.random.Generator, int, int], Values]
    """(random, runs, requests) → latencies, shape (runs, requests)."""
    limit: Callable[[float], float]
    """The latency that exactly this share of requests exceeds."""


def independent() -> Process:
    """Exponential latencies that do not resemble their neighbours."""
    return Process(
        "i.i.d.", lambda random, *shape: random.standard_exponential(shape), lambda q: -math.log(q)
    )


def queue(service: Service, rho: float) -> Process:
    """Response times of an M/M/1 or M/D/1 queue at load `rho`."""

    def draw(random: np.random.Generator, runs: int, requests: int) -> Values:
        def serve() -> Values:
            exponential = service == "M"
            return random.standard_exponential((runs, requests)) if exponential else np.ones((runs, requests))

        served = serve()
        steps = np.zeros((runs, requests))
        steps[:, 1:] = served[:, :-1] - random.standard_exponential((runs, requests - 1)) / rho
        np.cumsum(steps, axis=1, out=steps)
        # Lindley's recursion, unrolled: W_n = max(W_0 + S_n, S_n - min_{k≤n} S_k).
        lowest = np.minimum.accumulate(steps, axis=1)
        np.minimum(lowest, -_first_waits(random, runs, service, rho)[:, None], out=lowest)
        steps -= lowest
        steps += served
        return steps

    limit = (lambda q: -math.log(q) / (1 - rho)) if service == "M" else (lambda q: _md1_limit(rho, q))
    return Process(f"M/{service}/1 at {rho:g}", draw, limit)


def _first_waits(random: np.random.Generator, runs: int, service: Service, rho: float) -> Values:
    """Steady-state waits by Pollaczek and Khinchine: a geometric number of residual service times."""
    counts = random.geometric(1 - rho, runs) - 1
    if service == "M":
        return random.standard_gamma(counts)
    residuals = random.random((runs, int(counts.max()) + 1))
    residuals[np.arange(residuals.shape[1]) >= counts[:, None]] = 0
    return np.asarray(residuals.sum(axis=1))


@lru_cache
def _md1_limit(rho: float, share: float) -> float:
    """The quantile of the M/D/1 response time, by bisection on Erlang's series."""
    low, high = 1.0, 1.0 + 10 / (1 - rho) * -math.log(share)
    while high - low > 1e-10:  # noqa: PLR2004
        middle = (low + high) / 2
        low, high = (middle, high) if 1 - md1_wait_cdf(rho, middle - 1) > share else (low, middle)
    return high


def md1_wait_cdf(rho: float, wait: float) -> float:
    """P(W ≤ wait) in an M/D/1 queue: (1-ρ) Σ_{k ≤ t} (ρ(k-t))^k/k! · e^{-ρ(k-t)}, k from 0 (Erlang, 1909).

    The terms alternate and are huge, so they are summed with a hundred digits.
    """
    with localcontext() as context:
        context.prec = 100
        load, time = Decimal(rho), Decimal(wait)
        total, factorial = Decimal(0), Decimal(1)
        for k in range(math.floor(wait) + 1):
            factorial *= max(k, 1)
            x = load * (k - time)
            total += (x**k if k else Decimal(1)) / factorial * (-x).exp()
        return float((1 - load) * total)


def stalls(length: float, cycle: float) -> Process:
    """A server that is quick, but stalls: `length` requests on average in every `cycle` wait too long.

    Both phases have geometric lengths, so that nothing is regular. The share of stalled requests is
    length ÷ cycle: quick answers take less than 1, stalled ones more.
    """

    part = length / cycle

    def draw(random: np.random.Generator, runs: int, requests: int) -> Values:
        stalled = _phases(random, runs, requests, length, cycle - length)
        values = random.random((runs, requests))
        values[stalled] = 1 + random.standard_exponential(int(stalled.sum()))
        return values

    def limit(share: float) -> float:
        return 1 - (share - part) / (1 - part) if share > part else 1 - math.log(share / part)

    return Process(f"stalls of {length:g} in {cycle:g} requests", draw, limit)


def swings_below(length: float, cycle: float) -> Process:
    """Such stalls of a server whose quick answers take a tenth of the limit and swing slowly by a fifth.

    The swings last 3,000 requests on average: no batch averages them out, and none of them matters.
    """

    def draw(random: np.random.Generator, runs: int, requests: int) -> Values:
        slow = _phases(random, runs, requests, 3000, 3000)
        values: Values = 0.1 * (0.5 + random.random((runs, requests))) * np.where(slow, 1.2, 1.0)
        stalled = _phases(random, runs, requests, length, cycle - length)
        values[stalled] = 1 + random.standard_exponential(int(stalled.sum()))
        return values

    def limit(share: float) -> float:
        return 1 - math.log(share * cycle / length)

    return Process(f"stalls of {length:g} in {cycle:g} above slow swings", draw, limit)


def _phases(
    random: np.random.Generator, runs: int, requests: int, length: float, gap: float
) -> NDArray[np.bool_]:
    """Whether each request falls into a stall: two phases that take turns, from the steady state."""
    turns = 2 * (8 + math.ceil(3 * requests / (length + gap)))
    lengths = np.empty((runs, turns), np.int64)
    lengths[:, 0::2] = random.geometric(1 / gap, (runs, turns // 2))
    lengths[:, 1::2] = random.geometric(1 / length, (runs, turns // 2))
    # Geometric phases have no memory: to begin in a stall is to skip the first gap.
    lengths[random.random(runs) < length / (length + gap), 0] = 0
    edges = np.minimum(np.cumsum(lengths, axis=1), requests)
    changes = np.zeros((runs, requests + 1), np.int8)
    rows = np.repeat(np.arange(runs), turns // 2)
    np.add.at(changes, (rows, edges[:, 0::2].ravel()), 1)
    np.add.at(changes, (rows, edges[:, 1::2].ravel()), -1)
    return np.asarray(np.cumsum(changes[:, :-1], axis=1), bool)


@dataclass(frozen=True)
class Outcomes:
    """How many of the runs ended in which way, and at which look."""

    runs: int
    passed: tuple[int, ...]
    """By look."""
    failed: tuple[int, ...]

    def __add__(self, other: Outcomes) -> Outcomes:
        return Outcomes(
            self.runs + other.runs,
            tuple(map(sum, zip(self.passed, other.passed, strict=True))),
            tuple(map(sum, zip(self.failed, other.failed, strict=True))),
        )


def try_rule(
    process: Process,
    share: float,
    looks: Sequence[int],
    runs: int,
    random: np.random.Generator,
    *,
    allowed: float = 0.01,
    alpha: float = 0.01,
) -> Outcomes:
    """Judge `runs` runs whose true share over the limit is `share`, at these looks, as the load test does."""
    values = process.draw(random, runs, looks[-1])
    threshold = process.limit(share)
    counts = {Decision.PASS: [0] * len(looks), Decision.FAIL: [0] * len(looks)}
    for number, look in enumerate(looks):
        over = values[:, :look] > threshold
        seen = correlation_of(above_headroom(values[:, :look], threshold), over)
        shares = batch_shares(over)
        hits, unseen = over.sum(axis=1), unseen_over(shares, look)
        steady_miss = misses_always(shares, allowed)
        undecided = []
        for run in range(len(values)):
            decision = decide_share(
                over=float(hits[run]),
                unseen=float(unseen[run]),
                requests=look,
                effect=float(seen.effect[run]),
                lag_1=float(seen.lag_1[run]),
                allowed=allowed,
                alpha=alpha / len(looks),
                steady_miss=bool(steady_miss[run]),
            )
            if decision is Decision.UNDECIDED:
                undecided.append(run)
            else:
                counts[decision][number] += 1
        values = values[undecided]
    return Outcomes(runs, tuple(counts[Decision.PASS]), tuple(counts[Decision.FAIL]))


def try_early(
    process: Process,
    share: float,
    looks: Sequence[int],
    runs: int,
    random: np.random.Generator,
    *,
    allowed: float = 0.01,
) -> Outcomes:
    """In how many runs most requests of every batch miss at one of these early looks.

    More than that is asked for where a load test ends by it: these are the most that can.
    """
    over = process.draw(random, runs, looks[-1]) > process.limit(share)
    failed = []
    for look in looks:
        missed = misses_always(batch_shares(over[:, :look]), allowed)
        failed.append(int(missed.sum()))
        over = over[~missed]
    return Outcomes(runs, (0,) * len(looks), tuple(failed))
