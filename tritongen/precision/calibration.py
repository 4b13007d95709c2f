"""Range algorithms: what a tensor's values look like → the range that INT8 should cover.

Values are seen twice: the first pass fixes the extent, the second fills a histogram of 2048 bins. Exact
zeros are counted apart: the grid always holds zero, so they cost nothing in any range, and the spike that
a ReLU leaves would pull an entropy threshold far too low.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from tritongen.errors import DataError

Range = tuple[float, float]
Floats = NDArray[np.float64]

BINS = 2048
_CHUNK = 1 << 18
_CANDIDATES = 64
_ENTROPY_SLACK = 1.3


@dataclass(frozen=True)
class Histogram:
    """How a tensor's values are distributed between its smallest and its largest one."""

    minimum: float
    maximum: float
    counts: NDArray[np.int64]
    """Values per bin of equal width from minimum to maximum, exact zeros left out."""
    zeros: int = 0

    @property
    def edges(self) -> Floats:
        return np.linspace(self.minimum, self.maximum, len(self.counts) + 1)

    @property
    def constant(self) -> bool:
        """One value only (or zeros and nothing else): there is nothing to trade off."""
        return self.minimum == self.maximum or not self.counts.any()


@dataclass(frozen=True)
class Grid:
    """The 8-bit numbers that a range gives: `value = scale · (q - zero_point)`."""

    scale: float
    zero_point: int
    lowest: int
    highest: int

    def round(self, values: NDArray[np.generic]) -> Floats:
        """`values` as the grid represents them."""
        q: Floats = np.round(np.asarray(values, np.float64) / self.scale) + self.zero_point
        rounded: Floats = (np.clip(q, self.lowest, self.highest) - self.zero_point) * self.scale
        return rounded


def grid(extent: Range, *, symmetric: bool) -> Grid:
    """The grid of a range: int8 with zero point 0 if symmetric, else uint8; scale 1 for an empty range."""
    lowest, highest = (-127, 127) if symmetric else (0, 255)
    low, high = _with_zero(*extent)
    if symmetric:
        high = max(-low, high)
        low = -high
    scale = high / (highest - lowest) - low / (highest - lowest)
    if scale < np.finfo(np.float32).tiny:
        return Grid(1.0, 0, lowest, highest)
    zero_point = 0 if symmetric else round(lowest - low / scale)
    return Grid(scale, min(max(zero_point, lowest), highest), lowest, highest)


class RangeCollector:
    """Streams named tensors twice: `observe_extent` over all data, then `observe` over the same data."""

    def __init__(self, bins: int = BINS) -> None:
        self._bins = bins
        self._extents: dict[str, Range] = {}
        self._counts: dict[str, NDArray[np.int64]] = {}
        self._zeros: dict[str, int] = {}

    def observe_extent(self, name: str, values: NDArray[np.generic]) -> None:
        """First pass; DataError naming the tensor if a value is not finite."""
        if values.size == 0:
            return
        low, high = float(values.min()), float(values.max())
        if not (np.isfinite(low) and np.isfinite(high)):
            raise DataError(
                f"tensor '{name}' takes values that are not finite on the calibration data",
                found=f"{int(np.count_nonzero(~np.isfinite(values)))} of {values.size} are NaN or infinite",
                fix="look for NaN in the calibration data, or for an overflow inside the model",
            )
        before = self._extents.get(name, (low, high))
        self._extents[name] = (min(before[0], low), max(before[1], high))

    def observe(self, name: str, values: NDArray[np.generic]) -> None:
        """Second pass, over what the first pass saw."""
        if values.size == 0:
            return
        if name not in self._counts:
            self._counts[name] = np.zeros(self._bins, np.int64)
            self._zeros[name] = 0
        low, high = self._extents[name]
        flat = values.reshape(-1)
        for start in range(0, flat.size, _CHUNK):
            self._count(name, flat[start : start + _CHUNK].astype(np.float64), low, high)

    def _count(self, name: str, values: Floats, low: float, high: float) -> None:
        zeros = values.size - int(np.count_nonzero(values))
        self._zeros[name] += zeros
        if low == high:
            return
        bins_per_unit = self._bins / (high - low)
        if zeros:
            zero_bin = min(int((0.0 - low) * bins_per_unit), self._bins - 1)
            self._counts[name][zero_bin] -= zeros
        values -= low
        values *= bins_per_unit
        bins = np.minimum(values.astype(np.intp), self._bins - 1)
        self._counts[name] += np.bincount(bins, minlength=self._bins)

    def histograms(self) -> dict[str, Histogram]:
        """What was seen, by tensor; tensors that never held a value are absent."""
        empty = np.zeros(self._bins, np.int64)
        return {
            name: Histogram(low, high, self._counts.get(name, empty), self._zeros.get(name, 0))
            for name, (low, high) in self._extents.items()
        }


def range_minmax(histogram: Histogram, *, symmetric: bool = False) -> Range:  # noqa: ARG001
    """All that was seen, and zero."""
    return _with_zero(histogram.minimum, histogram.maximum)


def range_percentile(histogram: Histogram, *, symmetric: bool = False, percentile: float = 99.99) -> Range:
    """The range that holds `percentile` percent of the nonzero values, to the bin.

    One-sided tensors lose the rest at their far end, others half of it at each end; symmetric: by magnitude.
    """
    if histogram.constant:
        return range_minmax(histogram)
    outside = 1 - percentile / 100
    edges, counts = histogram.edges, histogram.counts
    if symmetric:
        magnitude = np.maximum(np.abs(edges[:-1]), np.abs(edges[1:]))
        order = np.argsort(magnitude, kind="stable")
        inside = np.searchsorted(np.cumsum(counts[order]), (1 - outside) * counts.sum())
        return _clipped(histogram, float(magnitude[order[min(inside, len(order) - 1)]]))
    one_sided = histogram.minimum >= 0 or histogram.maximum <= 0
    tail = counts.sum() * (outside if one_sided else outside / 2)
    below = np.cumsum(counts)
    above = np.cumsum(counts[::-1])[::-1]
    low = edges[int(np.argmax(below > tail))]
    high = edges[len(counts) - int(np.argmax(above[::-1] > tail))]
    return _with_zero(float(min(low, high)), float(max(low, high)))


def range_mse(histogram: Histogram, *, symmetric: bool = False) -> Range:
    """The range with the smallest expected squared error, rounding and clipping together.

    Both ends are searched in turn over fractions of what was seen, coarsely and then finely.
    """
    if histogram.constant:
        return range_minmax(histogram)
    low, high = range_minmax(histogram)
    below, above = -low, high
    if symmetric:
        best = _search(lambda t: expected_errors(histogram, -t, t, symmetric=True), max(below, above))
        return _clipped(histogram, best)
    for _ in range(2):
        if above > 0:
            high = _search(partial(_errors_above, histogram, low), above)
        if below > 0:
            low = -_search(partial(_errors_below, histogram, high), below)
    return low, high


def _errors_above(histogram: Histogram, low: float, highs: Floats) -> Floats:
    return expected_errors(histogram, np.full_like(highs, low), highs)


def _errors_below(histogram: Histogram, high: float, depths: Floats) -> Floats:
    return expected_errors(histogram, -depths, np.full_like(depths, high))


def range_entropy(histogram: Histogram, *, symmetric: bool = False) -> Range:
    """The range whose 8-bit form loses the least information (S. Migacz, GTC 2017, S7310), with two changes.

    Zeros are left out, and only thresholds whose root-mean-square error is within 1.3 of the best one are
    looked at: the divergence alone clips some one-sided tensors (SiLU) at twice the possible error.
    """
    if histogram.constant:
        return range_minmax(histogram)
    limit = max(np.abs(range_minmax(histogram)))
    thresholds = limit * np.arange(BINS // 16, BINS + 1, 16) / BINS
    ranges = np.array([_clipped(histogram, float(t)) for t in thresholds])
    errors = expected_errors(histogram, ranges[:, 0], ranges[:, 1], symmetric=symmetric)
    allowed = errors <= errors.min() * _ENTROPY_SLACK**2
    divergences = [
        _divergence(histogram, low, high, symmetric=symmetric) if ok else np.inf
        for (low, high), ok in zip(ranges, allowed, strict=True)
    ]
    low, high = ranges[int(np.argmin(divergences))]
    return float(low), float(high)


METHODS: Mapping[str, Callable[..., Range]] = MappingProxyType(
    {
        "minmax": range_minmax,
        "percentile": range_percentile,
        "entropy": range_entropy,
        "mse": range_mse,
    }
)
"""Every calibration method by its name."""


def expected_errors(histogram: Histogram, lows: Floats, highs: Floats, *, symmetric: bool = False) -> Floats:
    """Mean squared error of the nonzero values under each range, as if values were uniform inside a bin.

    Exact for that density: the error is integrated in closed form over each bin, in units of the grid.
    """
    edges, counts = histogram.edges, histogram.counts
    total = max(int(counts.sum()), 1)
    errors = np.empty(len(lows))
    for i, (low, high) in enumerate(zip(lows, highs, strict=True)):
        cells = grid((float(low), float(high)), symmetric=symmetric)
        u = edges / cells.scale
        integral = _integrated_error(u, cells.lowest - cells.zero_point, cells.highest - cells.zero_point)
        widths = np.maximum(np.diff(u), np.finfo(np.float64).tiny)
        errors[i] = cells.scale**2 * float((counts * np.diff(integral) / widths).sum()) / total
    return errors


def _integrated_error(u: Floats, lowest: int, highest: int) -> Floats:
    """∫ (u - q(u))² du from 0, where q rounds to integers between lowest and highest."""
    inside = np.clip(u, lowest - 0.5, highest + 0.5)
    nearest = np.clip(np.round(inside), lowest, highest)
    result: Floats = nearest / 12 + _cubed(inside - nearest) / 3
    if u[-1] > highest:
        result += (_cubed(np.maximum(u - highest, 0.5)) - 0.125) / 3
    if u[0] < lowest:
        result += (_cubed(np.minimum(u - lowest, -0.5)) + 0.125) / 3
    return result


def _cubed(values: Floats) -> Floats:
    result: Floats = values * values * values  # `** 3` takes twenty times as long
    return result


def _search(errors: Callable[[Floats], Floats], limit: float) -> float:
    """The threshold in (0, limit] with the smallest error: a coarse grid, then a fine one around its best."""
    coarse = limit * np.arange(1, _CANDIDATES + 1) / _CANDIDATES
    best = coarse[int(np.argmin(errors(coarse)))]
    step = limit / _CANDIDATES
    fine = np.linspace(max(best - step, step / 16), min(best + step, limit), 17)
    return float(fine[int(np.argmin(errors(fine)))])


def _divergence(histogram: Histogram, low: float, high: float, *, symmetric: bool) -> float:
    """Kullback-Leibler divergence between the clipped histogram and its 8-bit form."""
    edges, counts = histogram.edges, histogram.counts
    first = int(np.searchsorted(edges, low, side="right")) - 1
    last = int(np.searchsorted(edges, high, side="left"))
    first, last = max(first, 0), min(max(last, first + 1), len(counts))
    window = counts[first:last].astype(np.float64)
    clipped = window.copy()
    clipped[0] += counts[:first].sum()
    clipped[-1] += counts[last:].sum()
    cells = grid((low, high), symmetric=symmetric)
    levels = max(round((edges[last] - edges[first]) / cells.scale), 1)
    quantized = _spread(window, clipped > 0, min(levels, len(window)))
    p = clipped / clipped.sum()
    q = np.maximum(quantized / max(quantized.sum(), 1.0), 1e-12)
    seen = p > 0
    return float((p[seen] * np.log(p[seen] / q[seen])).sum())


def _spread(window: Floats, occupied: NDArray[np.bool_], levels: int) -> Floats:
    """The window's bins merged to `levels` and spread back evenly over the occupied bins."""
    starts = (np.arange(levels) * len(window)) // levels
    sums = np.add.reduceat(window, starts)
    occupants = np.maximum(np.add.reduceat(occupied.astype(np.float64), starts), 1)
    lengths = np.diff(np.append(starts, len(window)))
    spread: Floats = np.repeat(sums / occupants, lengths)
    result: Floats = np.where(occupied, spread, 0.0)
    return result


def _with_zero(low: float, high: float) -> Range:
    return min(low, 0.0), max(high, 0.0)


def _clipped(histogram: Histogram, threshold: float) -> Range:
    """What was seen, cut at ± threshold."""
    low, high = range_minmax(histogram)
    return max(low, -threshold), min(high, threshold)
