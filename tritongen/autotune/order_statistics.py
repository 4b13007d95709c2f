"""Percentiles and a distribution-free confidence interval of the median, from raw samples."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Samples = NDArray[np.int64] | NDArray[np.float64]

Z_95 = 1.959964
"""The 97.5 % quantile of the standard normal distribution."""
_EXACT_UP_TO = 1000
"""Beyond this many samples the normal approximation is off by less than one rank."""


def percentile(samples: Samples, percent: float) -> float:
    """The nearest-rank percentile: the smallest sample that at least `percent` % of all do not exceed."""
    return float(np.percentile(samples, percent, method="inverted_cdf"))


def median_ranks(count: int) -> tuple[int, int]:
    """1-based ranks (l, u) of the sorted samples between which the median lies with 95 % confidence.

    The number of samples below the median is Binomial(n, 1/2), whatever the distribution
    (Conover, Practical Nonparametric Statistics, 3rd ed., section 3.2; Hahn & Meeker, 1991, section 5.2):
    P(X_(l) <= median <= X_(u)) >= 0.95 for the largest l with P(B < l) <= 0.025, and u = n + 1 - l.
    Below six samples no such interval exists; then it is the whole range.
    """
    if count > _EXACT_UP_TO:
        low = math.floor((count - Z_95 * math.sqrt(count)) / 2)
        return low, count + 1 - low
    below, low = 0, 0
    while (below + math.comb(count, low)) * 40 <= 1 << count:
        below += math.comb(count, low)
        low += 1
    return max(1, low), count + 1 - max(1, low)


def median_interval(samples: Samples) -> tuple[float, float]:
    """The 95 % confidence interval of the median, in the samples' unit (assumes independent samples)."""
    ordered = np.sort(samples)
    low, high = median_ranks(len(ordered))
    return float(ordered[low - 1]), float(ordered[high - 1])


def median_spread(samples: Samples) -> float:
    """Half-width of the 95 % confidence interval of the median, as a fraction of the median."""
    low, high = median_interval(samples)
    middle = float(np.median(samples))
    return (high - low) / 2 / middle if middle > 0 else 0.0
