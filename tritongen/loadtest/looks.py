"""When a run looks at its data: few times, fixed beforehand, sharing the error probability. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tritongen.loadtest.statistics import ALPHA, FIRST_LOOK

EARLY_PART = 0.01
"""Of alpha: what the early looks share, which can only find a plain miss."""
_EARLY_DIVISORS = (8, 4, 2)
_EARLIEST_S = 5.0
"""A shorter window may be one hiccup of a good server."""


@dataclass(frozen=True)
class Looks:
    """The looks of one run, in requests or (closed loop) in seconds of the measured window."""

    at: tuple[float, ...]
    alpha: float
    """That each look may spend, on either side."""


def look_sizes(requests: int, least: int = FIRST_LOOK) -> list[int]:
    """The looks of a run of at least `least` and at most `requests`: 2500·2^j in between, and both ends."""
    if requests < FIRST_LOOK:
        return []
    sizes = [min(max(least, FIRST_LOOK), requests)]
    size = FIRST_LOOK
    # A look that the next end makes worthless would only cost alpha.
    while size <= requests:
        if size > sizes[0] and size * 2 <= requests:
            sizes.append(size)
        size *= 2
    return [*sizes, requests] if requests > sizes[0] else sizes


def plan_looks(requests: int, least: int, alpha: float = ALPHA) -> Looks:
    """Looks at numbers of requests; one, at the end, where there are too few for a first look."""
    sizes = look_sizes(requests, least) or [requests]
    return Looks(tuple(map(float, sizes)), alpha / len(sizes))


def plan_times(window_s: float, least_s: float, alpha: float = ALPHA) -> Looks:
    """Looks at times of the window, for a closed loop, whose number of requests nobody knows beforehand."""
    least_s = min(least_s, window_s)
    doublings = math.floor(math.log2(window_s / least_s) + 1e-9)
    times = [least_s * 2**j for j in range(doublings + 1)]
    # The last doubling and the end would be nearly the same look.
    times = [*times[:-1], window_s] if len(times) > 1 else [*times, window_s][: 1 + (window_s > least_s)]
    return Looks(tuple(times), alpha / len(times))


def early_times(first_s: float) -> list[float]:
    """When, in seconds of the window, a plain miss is looked for before the first look."""
    return [first_s / divisor for divisor in _EARLY_DIVISORS if first_s / divisor >= _EARLIEST_S]
