"""How much requests resemble their neighbours, and which of their swings matter. Pure functions of batches.

All of these work on the last axis, so that simulations judge many runs at once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]

BATCHES = 32
"""K, the number of equal consecutive batches."""
HEADROOM = 1 / 3
"""Latencies below this part of a limit that swings cannot reach are all alike to it."""
FURTHER = 10
"""How many times as far as they were seen to swing, batches must stay within the limit."""
NOTICED = 1.28 / math.sqrt(BATCHES)
"""Lag-1 autocorrelation of batch means that one independent series in ten exceeds."""
TOO_SLOW = 0.5
"""Beyond this, K batches tell too little of the swings themselves to pay for them."""
_REFERENCE_PERCENTS = (80.0, 90.0, 95.0)
_CORRELATION_PERCENT = 90.0


def batch_means(values: Values) -> Values:
    """The mean of each of K equal consecutive batches; a short rest is left out."""
    size = values.shape[-1] // BATCHES
    return np.asarray(values[..., : size * BATCHES].reshape(*values.shape[:-1], BATCHES, size).mean(axis=-1))


def batch_shares(over: NDArray[np.bool_]) -> Values:
    """The share that is over a limit in each batch."""
    return batch_means(over)  # type: ignore[arg-type]


def above_headroom(values: Values, limit: float) -> Values:
    """`values` without the swings that cannot matter to `limit`: the one place that says which those are.

    Real servers swing slowly all the time (clocks, caches, neighbours), by parts of a millisecond that no
    run averages out. Where the limit is far away that is no reason to refuse a verdict. A queue near its
    limit swings as slowly, but widely. What tells them apart, with m_b the means of K batches of min(v, X):

        max m + 10·(max m - min m) ≤ X    swings ten times as large would not take a batch to the limit X.

    Then max(v, X/3) is returned: below a third of the limit all are alike, beyond it everything counts in
    full, with its clustering. Otherwise nothing is taken away. Whatever asks how values swing (design effect,
    autocorrelation, drift, settling) asks this first; no percentile, share or mean is ever made of it. For a
    lower limit (answers per second), give the inverse of both.

    Exponential tails at their P99 (M/M/1 and M/D/1 at loads from 0.5 to 0.9) have a fifth of all requests
    beyond a third of it and pass no more often than without; docs/loadtest.md has the simulated rates.
    """
    if values.shape[-1] < BATCHES:
        return values
    means = batch_means(np.minimum(values, limit))
    highest = means.max(axis=-1)
    far = highest + FURTHER * (highest - means.min(axis=-1)) <= limit
    return np.maximum(values, np.where(far, HEADROOM * limit, -math.inf)[..., None])


def far_over(values: Values, limit: float) -> bool:
    """Whether swings ten times as large would not take a batch down to the limit: headroom's other side."""
    if len(values) < BATCHES:
        return False
    means = batch_means(values)
    return bool(means.min() - FURTHER * (means.max() - means.min()) >= limit)


@dataclass(frozen=True)
class Correlation:
    """How much requests resemble their neighbours; each field has the shape of the runs."""

    effect: Values
    """How many correlated requests tell as much as one independent one."""
    lag_1: Values
    """Autocorrelation of the batch means of the exceedance of P90."""


def correlation_of(values: Values, over: NDArray[np.bool_]) -> Correlation:
    """max(1, (n/K)·s²/(p(1-p))) over `over` and P80, P90, P95, so that it is defined even if nothing is over.

    s² is the variance over the batches of the share above.
    """
    count = values.shape[-1]
    ranks = [max(1, math.ceil(count * percent / 100 - 1e-9)) - 1 for percent in _REFERENCE_PERCENTS]
    ordered = np.partition(values, ranks, axis=-1)
    effect = np.maximum(1.0, _effect(over, batch_shares(over)))
    lag_1 = np.zeros_like(effect)
    for percent, rank in zip(_REFERENCE_PERCENTS, ranks, strict=True):
        above = values > ordered[..., rank, None]
        shares = batch_shares(above)
        effect = np.maximum(effect, _effect(above, shares))
        if percent == _CORRELATION_PERCENT:
            lag_1 = autocorrelations(shares)
    return Correlation(effect, lag_1)


def _effect(over: NDArray[np.bool_], shares: Values) -> Values:
    share = over.mean(axis=-1)
    spread = share * (1 - share)
    size = over.shape[-1] // BATCHES
    variance = shares.var(axis=-1, ddof=1)
    return np.asarray(np.divide(size * variance, spread, out=np.ones_like(spread), where=spread > 0))


def autocorrelations(means: Values) -> Values:
    """The lag-1 autocorrelation of batch means; 0 where they do not vary."""
    deviations = means - means.mean(axis=-1, keepdims=True)
    total = np.asarray((deviations**2).sum(axis=-1))
    lagged = np.asarray((deviations[..., :-1] * deviations[..., 1:]).sum(axis=-1))
    return np.asarray(np.divide(lagged, total, out=np.zeros_like(total), where=total > 0))


def swing_cost(lag_1: Values) -> Values:
    """(1+r)/(1-r): by how much more the mean of batches varies when they resemble their neighbours.

    So it is in a first-order autoregression. 1 for what chance does; r is the seen autocorrelation without
    its bias of -1/K, and at most 0.9.
    """
    r = np.minimum(lag_1 + 1 / BATCHES, 0.9)
    return np.asarray(np.where(lag_1 > NOTICED, (1 + r) / (1 - r), 1.0))
