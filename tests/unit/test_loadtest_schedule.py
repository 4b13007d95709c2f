"""Schedules: the same from the same seed, whole when split, and of the process that they claim."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tritongen.errors import InputError
from tritongen.loadtest.schedule import Arrival, Schedule, open_loop

ARRIVALS = st.sampled_from(["poisson", "constant"])


@settings(max_examples=40, deadline=None)
@given(
    st.floats(1, 3000),
    st.floats(0.05, 3),
    ARRIVALS,
    st.integers(0, 2**32),
    st.integers(1, 5),
)
def test_shards_are_the_schedule(
    rate: float, duration_s: float, arrival: Arrival, seed: int, workers: int
) -> None:
    offsets_ns = open_loop(rate, duration_s, arrival, seed)
    assert np.array_equal(offsets_ns, open_loop(rate, duration_s, arrival, seed))
    whole = Schedule(offsets_ns, np.zeros(len(offsets_ns), np.uint16))
    assert (np.diff(whole.offsets_ns) >= 0).all()
    assert len(whole) == 0 or 0 <= whole.offsets_ns[0] <= whole.offsets_ns[-1] < duration_s * 1e9 + 1
    shards = [whole.shard(worker, workers) for worker in range(workers)]
    assert np.array_equal(np.sort(np.concatenate([shard.offsets_ns for shard in shards])), whole.offsets_ns)
    assert sum(map(len, shards)) == len(whole)


@settings(max_examples=20, deadline=None)
@given(st.floats(10, 3000), st.floats(0.1, 2), st.floats(0.1, 8), ARRIVALS, st.integers(0, 1000))
def test_a_longer_schedule_begins_with_the_shorter_one(
    rate: float, short_s: float, more_s: float, arrival: Arrival, seed: int
) -> None:
    short, long = (open_loop(rate, seconds, arrival, seed) for seconds in (short_s, short_s + more_s))
    assert np.array_equal(long[: len(short)], short)


def test_a_rate_of_one_in_a_century_makes_no_request_soon() -> None:
    """Its times do not fit into int64 as nanoseconds."""
    assert len(open_loop(1e-9, 2, "poisson", 0)) == 0


def test_a_constant_schedule_keeps_its_gaps() -> None:
    offsets_ns = open_loop(300, 2, "constant", 0)
    assert len(offsets_ns) == 600
    gaps = np.diff(offsets_ns)
    assert gaps.min() >= 3_333_332
    assert gaps.max() <= 3_333_334


def test_a_poisson_schedule_is_one() -> None:
    offsets_ns = open_loop(1000, 60, "poisson", 1)
    gaps_ms = np.diff(offsets_ns) / 1e6
    assert abs(len(offsets_ns) - 60_000) < 5 * 60_000**0.5
    assert gaps_ms.mean() == pytest.approx(1, abs=0.03)
    assert gaps_ms.std() == pytest.approx(1, abs=0.03)
    assert np.mean(gaps_ms > 3) == pytest.approx(np.exp(-3), abs=0.005)
    assert abs(np.corrcoef(gaps_ms[:-1], gaps_ms[1:])[0, 1]) < 0.02
    assert not np.array_equal(offsets_ns, open_loop(1000, 60, "poisson", 2))


@pytest.mark.parametrize(("rate", "duration_s"), [(1e9, 3600), (0, 10), (float("nan"), 10)])
def test_schedules_that_cannot_be(rate: float, duration_s: float) -> None:
    with pytest.raises(InputError, match="no usable schedule"):
        open_loop(rate, duration_s, "poisson", 0)
