"""Range algorithms, held against quantizing the values themselves."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from tritongen.errors import DataError
from tritongen.precision.calibration import METHODS, Histogram, Range, RangeCollector, expected_errors, grid

Floats = NDArray[np.float32]

_NORMAL = np.random.default_rng(0).standard_normal(60_000)
_HEAVY = np.random.default_rng(1).standard_t(3, 60_000)
DISTRIBUTIONS: dict[str, NDArray[np.float64]] = {
    "normal": _NORMAL,
    "relu": np.maximum(_NORMAL, 0),
    "silu": _NORMAL / (1 + np.exp(-_NORMAL)),
    "wide silu": 4 * _NORMAL / (1 + np.exp(-4 * _NORMAL)),
    "uniform": np.random.default_rng(2).uniform(-1, 3, 60_000),
    "heavy tail": _HEAVY,
    "relu of heavy tail": np.maximum(_HEAVY, 0),
    "logits": 4 * _NORMAL - 10,
    "relu6": np.clip(4 * _NORMAL, 0, 6),
}


def histogram_of(*batches: NDArray[np.generic]) -> Histogram:
    collector = RangeCollector()
    for batch in batches:
        collector.observe_extent("t", batch)
    for batch in batches:
        collector.observe("t", batch)
    return collector.histograms()["t"]


def root_mean_square_error(values: Floats, extent: Range, *, symmetric: bool) -> float:
    """Plain quantization of every value, with none of the module's arithmetic."""
    levels, zero = (254.0, True) if symmetric else (255.0, False)
    low, high = min(extent[0], 0.0), max(extent[1], 0.0)
    if zero:
        high = max(-low, high)
        low = -high
    scale = (high - low) / levels
    offset = round(-low / scale)
    q = np.clip(np.round(values.astype(np.float64) / scale) + offset, 0, levels)
    return float(np.sqrt(np.mean(((q - offset) * scale - values) ** 2)))


def best_error(values: Floats, *, symmetric: bool) -> float:
    """Brute force over thresholds at both ends."""
    low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
    steps = np.linspace(0.04, 1, 33)
    ends = (
        [(low * s, high * s) for s in steps]
        if symmetric
        else [(low * a, high * b) for a in steps for b in steps]
    )
    if low == 0 or symmetric:
        ends = [(low * s, high * s) for s in np.linspace(0.02, 1, 99)]
    sample = values[:12_000]
    best = min(ends, key=lambda extent: root_mean_square_error(sample, extent, symmetric=symmetric))
    return root_mean_square_error(values, best, symmetric=symmetric)


@pytest.mark.parametrize("symmetric", [False, True], ids=["uint8", "int8"])
@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_entropy_and_mse_stay_near_the_best_possible_error(name: str, symmetric: bool) -> None:
    values = DISTRIBUTIONS[name].astype(np.float32)
    histogram = histogram_of(*np.array_split(values, 7))
    best = best_error(values, symmetric=symmetric)
    mse, entropy = (
        root_mean_square_error(values, METHODS[method](histogram, symmetric=symmetric), symmetric=symmetric)
        for method in ("mse", "entropy")
    )
    assert mse <= 1.05 * best
    assert entropy <= 1.5 * best


def test_zeros_do_not_pull_the_entropy_threshold_down() -> None:
    """As published, relu(N(0,1)) is clipped at 1.9 with a relative error of 12.9 %."""
    values = np.maximum(np.random.default_rng(3).standard_normal(200_000), 0).astype(np.float32)
    low, high = METHODS["entropy"](histogram_of(values), symmetric=True)
    assert low == 0
    assert high > 3.3
    norm = float(np.sqrt(np.mean(values.astype(np.float64) ** 2)))
    assert root_mean_square_error(values, (low, high), symmetric=True) / norm < 0.0125


@pytest.mark.parametrize("symmetric", [False, True])
def test_expected_error_is_the_measured_error(symmetric: bool) -> None:
    values = DISTRIBUTIONS["silu"].astype(np.float32)
    histogram = histogram_of(values)
    for low, high in ((-0.28, 3.0), (-0.1, 4.5), (-0.28, 0.5)):
        extent = (-high, high) if symmetric else (low, high)
        expected = expected_errors(
            histogram, np.array([extent[0]]), np.array([extent[1]]), symmetric=symmetric
        )
        measured = root_mean_square_error(values, extent, symmetric=symmetric)
        assert np.sqrt(expected[0]) == pytest.approx(measured, rel=0.03)


finite = st.floats(-(2.0**100), 2.0**100, width=32)
samples = arrays(np.float32, st.integers(1, 60), elements=finite)


@settings(max_examples=60, deadline=None)
@given(values=samples, method=st.sampled_from(sorted(METHODS)), symmetric=st.booleans())
def test_ranges_hold_zero_stay_within_what_was_seen_and_give_a_usable_grid(
    values: Floats, method: str, symmetric: bool
) -> None:
    low, high = METHODS[method](histogram_of(values), symmetric=symmetric)
    assert np.isfinite([low, high]).all()
    assert low <= 0 <= high
    assert low >= min(float(values.min()), 0.0)
    assert high <= max(float(values.max()), 0.0)
    cells = grid((low, high), symmetric=symmetric)
    assert 0 < cells.scale < np.inf
    assert cells.lowest <= cells.zero_point <= cells.highest
    assert cells.round(np.zeros(1))[0] == 0


@settings(max_examples=50, deadline=None)
@given(values=samples, cuts=st.integers(1, 5))
def test_the_histogram_counts_every_value_once_however_it_is_batched(values: Floats, cuts: int) -> None:
    whole, parts = histogram_of(values), histogram_of(*np.array_split(values, cuts))
    np.testing.assert_array_equal(whole.counts, parts.counts)
    assert whole.zeros == int((values == 0).sum())
    assert (whole.counts >= 0).all()
    if whole.minimum < whole.maximum:
        assert int(whole.counts.sum()) + whole.zeros == values.size


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("symmetric", [False, True])
class TestStrangeTensors:
    """Each has a defined result."""

    def test_all_zero(self, method: str, symmetric: bool) -> None:
        extent = METHODS[method](histogram_of(np.zeros(50, np.float32)), symmetric=symmetric)
        assert extent == (0.0, 0.0)
        assert grid(extent, symmetric=symmetric).scale == 1.0

    @pytest.mark.parametrize(("value", "expected"), [(3.0, (0.0, 3.0)), (-2.0, (-2.0, 0.0))])
    def test_constant(self, method: str, symmetric: bool, value: float, expected: Range) -> None:
        histogram = histogram_of(np.full(50, value, np.float32))
        assert METHODS[method](histogram, symmetric=symmetric) == expected

    def test_far_from_zero(self, method: str, symmetric: bool) -> None:
        values = np.random.default_rng(0).uniform(100, 101, 5000).astype(np.float32)
        low, high = METHODS[method](histogram_of(values), symmetric=symmetric)
        assert low == 0
        assert 99.5 < high <= values.max()

    def test_one_huge_outlier(self, method: str, symmetric: bool) -> None:
        values = np.append(_NORMAL, 1e9).astype(np.float32)
        low, high = METHODS[method](histogram_of(values), symmetric=symmetric)
        assert low <= 0 < high <= 1e9

    def test_saturated(self, method: str, symmetric: bool) -> None:
        values = np.clip(_NORMAL * 100, -1, 1).astype(np.float32)
        low, high = METHODS[method](histogram_of(values), symmetric=symmetric)
        assert (low, high) == pytest.approx((-1, 1), abs=0.02)


def test_percentile_drops_the_tail_and_nothing_else() -> None:
    values = np.append(np.linspace(0, 1, 99_995), [50.0] * 5).astype(np.float32)
    assert METHODS["minmax"](histogram_of(values))[1] == 50
    assert METHODS["percentile"](histogram_of(values))[1] == pytest.approx(1, abs=50 / 2048)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_name_the_tensor(bad: float) -> None:
    values = np.ones(9, np.float32)
    values[4] = bad
    with pytest.raises(DataError, match="'conv_out'") as caught:
        RangeCollector().observe_extent("conv_out", values)
    assert caught.value.found == "1 of 9 are NaN or infinite"


def test_empty_tensors_leave_no_trace() -> None:
    collector = RangeCollector()
    collector.observe_extent("t", np.zeros((0, 4), np.float32))
    collector.observe("t", np.zeros((0, 4), np.float32))
    assert collector.histograms() == {}
