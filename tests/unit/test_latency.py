"""The latency curve: order statistics by their definition, windows by hand, and a real engine."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.conftest import SaveModel
from tritongen.autotune.latency import Effort, Round, batch_sizes, latency_curve
from tritongen.autotune.memory import peak_bytes, resident_bytes
from tritongen.autotune.order_statistics import median_interval, median_ranks, median_spread, percentile
from tritongen.engines import load_engine
from tritongen.errors import TritongenError
from tritongen.runs.events import discard, number
from tritongen.runs.records import Artifact, Candidate
from tritongen.spec import Precision

QUICK = Effort(min_iterations=10, min_seconds=0.02, max_seconds=0.05, max_warmup_seconds=0.05,
               warmup_seconds=0.01, round_seconds=0.01)  # fmt: skip


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.01234, "0.0123"), (3.081, "3.08"), (312.4, "312"), (999.7, "1,000"), (1390, "1,390"), (0, "0")],
)
def test_figures_are_written_without_exponents(value: float, text: str) -> None:
    assert number(value) == text


@given(st.integers(6, 3000))
def test_median_ranks_cover_at_least_95_percent_and_are_the_narrowest(count: int) -> None:
    low, high = median_ranks(count)
    assert 1 <= low < high
    assert low + high == count + 1

    def misses(rank: int) -> float:
        return 2 * sum(math.comb(count, i) for i in range(rank)) / (1 << count) if rank > 0 else 0.0

    if count <= 1000:
        assert misses(low) <= 0.05 < misses(low + 1)


def test_median_interval_holds_what_it_promises() -> None:
    rng = np.random.default_rng(7)
    hits = 0
    for _ in range(2000):
        low, high = median_interval(rng.exponential(1.0, 41))
        hits += low <= math.log(2) <= high
    assert 0.945 <= hits / 2000 <= 0.985  # discrete ranks: never below 95 % in truth


def test_percentile_is_a_sample_and_the_nearest_rank() -> None:
    samples = np.arange(1, 101)
    assert (percentile(samples, 99), percentile(samples, 50)) == (99, 50)
    assert percentile(np.asarray([5, 1]), 99) == 5
    assert median_spread(np.asarray([7, 7, 7])) == 0


@pytest.mark.parametrize(("largest", "sizes"), [(0, (1,)), (1, (1,)), (6, (1, 2, 4, 6)), (8, (1, 2, 4, 8))])
def test_batch_sizes(largest: int, sizes: tuple[int, ...]) -> None:
    assert batch_sizes(largest) == sizes


def stamps(*edges: float) -> NDArray[np.int64]:
    return np.asarray([round(edge * 1e9) for edge in edges], np.int64)


def test_only_the_time_in_which_all_were_busy_counts() -> None:
    # One instance: 0-1, 1-2, 2-3; the other: 0.5-1.5, 1.5-2.5. Together busy: 0.5-2.5.
    starts, ends = (stamps(0, 1, 2), stamps(0.5, 1.5)), (stamps(1, 2, 3), stamps(1.5, 2.5))
    calls, seconds = Round(starts, ends, starts).window()
    assert calls == pytest.approx(4.0)
    assert seconds == pytest.approx(2.0)


def test_calls_that_never_overlapped_are_counted_one_after_the_other() -> None:
    calls, seconds = Round((stamps(0), stamps(2)), (stamps(1), stamps(3)), ()).window()
    assert (calls, seconds) == (2.0, 3.0)


def test_a_real_engine(save_model: SaveModel, tmp_path: Path) -> None:
    engine = load_engine("onnxruntime")
    candidate = Candidate(id="fp32", engine="onnxruntime", precision=Precision.FP32)
    artifact = engine.build(save_model("linear"), candidate, tmp_path / "trial", discard)

    def inputs(size: int) -> Mapping[str, NDArray[np.generic]]:
        return {"x": np.ones((size, 4), np.float32)}

    curve = latency_curve(
        engine,
        tmp_path / "trial",
        artifact,
        inputs=inputs,
        sizes=(1, 2),
        runtimes=[({"intra_op_threads": 1}, 1), ({"intra_op_threads": 1}, 2)],
        events=discard,
        effort=QUICK,
    )
    assert [(p.instances, p.batch_size) for p in curve.points] == [(1, 1), (1, 2), (2, 1), (2, 2)]
    for p in curve.points:
        raw = curve.samples[str(p.samples)]
        assert p.iterations == len(raw) >= QUICK.floor_iterations
        assert p.median_ms == float(np.median(raw)) / 1e6 <= p.p99_ms
        assert p.throughput > 0
    assert curve.memory_bytes is not None


def test_inputs_that_do_not_fit_are_an_explained_error(save_model: SaveModel, tmp_path: Path) -> None:
    engine = load_engine("onnxruntime")
    candidate = Candidate(id="fp32", engine="onnxruntime", precision=Precision.FP32)
    artifact: Artifact = engine.build(save_model("linear"), candidate, tmp_path / "trial", discard)
    with pytest.raises(TritongenError):
        latency_curve(
            engine,
            tmp_path / "trial",
            artifact,
            inputs=lambda size: {"x": np.ones((size, 5), np.float32)},
            sizes=(1,),
            runtimes=[({}, 2)],
            events=discard,
            effort=QUICK,
        )


def test_memory_is_counted() -> None:
    before = resident_bytes()
    block = np.ones(50_000_000, np.uint8)
    assert resident_bytes() - before > 0.9 * block.nbytes
    assert peak_bytes() >= block.nbytes
