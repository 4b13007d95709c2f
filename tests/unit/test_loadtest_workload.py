"""What is sent and when: rates that change, traces, mixes of models and batch sizes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tritongen.errors import DataError, InputError, SpecError
from tritongen.loadtest.inputs import Inputs
from tritongen.loadtest.schedule import open_loop, shaped
from tritongen.loadtest.settings import Settings
from tritongen.loadtest.shape import RateShape, Segment, parse_rate
from tritongen.loadtest.target import ServedModel
from tritongen.loadtest.trace import Arrival, read_trace
from tritongen.loadtest.workload import Group, Workload, check_named, make_schedule, of_model
from tritongen.tensors import TensorSpec, from_triton

RATES = st.one_of(st.just(0.0), st.floats(0.5, 3000))
SEGMENTS = st.builds(Segment, RATES, RATES, st.one_of(st.none(), st.floats(0.1, 5)))


def group(name: str, size: int, weight: float, first: int, count: int = 4) -> Group:
    model = ServedModel(name, "", (), (), batches=True, max_batch_size=8, binary=True, server="")
    return Group(model, size, weight, Inputs(({},) * count, "synthetic"), first)


MIX = Workload((group("a", 1, 3, 0), group("a", 8, 1, 4), group("b", 1, 4, 8, count=3)))


def test_rates_are_parsed() -> None:
    assert parse_rate("500").steady == 500
    assert parse_rate(" 100..2000 @ 1m ").segments == (Segment(100, 2000, 60),)
    assert parse_rate("100@30s,500..1e".replace("1e", "10@500ms")).segments[1] == Segment(500, 10, 0.5)
    for nonsense in ("", "fast", "1,,2", "1..", "-5", "100@", "100@5x", "0", "5@0s", "1e3"):
        with pytest.raises(InputError):
            parse_rate(nonsense)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(SEGMENTS, min_size=1, max_size=4).map(tuple),
    st.floats(0.5, 12),
    st.sampled_from(["poisson", "constant"]),
    st.integers(0, 99),
)
def test_shaped_schedules(segments: tuple[Segment, ...], duration_s: float, arrival: str, seed: int) -> None:
    shape = RateShape(segments, "shape")
    try:
        expected = shape.over(duration_s).requests
        offsets = shaped(shape, duration_s, arrival, seed)  # type: ignore[arg-type]
    except InputError:
        return
    assert (np.diff(offsets) >= 0).all()
    assert len(offsets) == 0 or 0 <= offsets[0] <= offsets[-1] <= duration_s * 1e9 + 1
    assert abs(len(offsets) - expected) <= (2 if arrival == "constant" else 6 * expected**0.5 + 5)
    again = shaped(shape, duration_s, arrival, seed)  # type: ignore[arg-type]
    assert np.array_equal(offsets, again)


def test_a_steady_shape_is_the_plain_schedule() -> None:
    plain = open_loop(300, 5, "poisson", 3)
    assert np.array_equal(shaped(parse_rate("300@2s,300"), 5, "poisson", 3), plain)


def test_ramps_steps_and_spikes_have_their_rates() -> None:
    ramp = shaped(parse_rate("100..2000"), 10, "constant", 0) / 1e9
    assert len(ramp) == pytest.approx(10_500, abs=2)
    counts = np.histogram(ramp, bins=10, range=(0, 10))[0]
    assert counts == pytest.approx(np.arange(195, 2000, 190), abs=2)
    spikes = shaped(parse_rate("100@0.9s,1000@0.1s"), 3, "constant", 0) / 1e9
    assert np.histogram(spikes, bins=3, range=(0, 3))[0] == pytest.approx(190, abs=2)
    assert ((spikes % 1 >= 0.9).sum()) == pytest.approx(300, abs=4)
    steps = shaped(parse_rate("100,300"), 4, "constant", 0) / 1e9
    assert np.histogram(steps, bins=2, range=(0, 4))[0] == pytest.approx([200, 600], abs=2)
    assert len(shaped(parse_rate("0@1s,50@1s"), 2, "constant", 0)) == 50


def test_steps_without_room() -> None:
    with pytest.raises(InputError, match="fill the whole run"):
        parse_rate("100@30s,500").over(20)
    with pytest.raises(InputError, match=r"(?s)before the last step.*--duration 7s"):
        parse_rate("100@5s,1000@2s").over(4)


def test_mixes_have_their_weights_and_rotate() -> None:
    order = MIX.order(40_000, 7)
    counts = Counter(order.tolist())
    for place in range(4):
        assert counts[place] == pytest.approx(40_000 * 3 / 8 / 4, rel=0.1)
        assert counts[4 + place] == pytest.approx(40_000 / 8 / 4, rel=0.1)
    assert sum(counts[8 + place] for place in range(3)) == pytest.approx(20_000, rel=0.1)
    assert order[order < 4][:6].tolist() == [0, 1, 2, 3, 0, 1]
    assert np.array_equal(MIX.order(100, 7), order[:100])
    assert not np.array_equal(MIX.order(100, 8), order[:100])
    assert MIX.batches == (1,) * 4 + (8,) * 4 + (1,) * 3
    assert Workload((group("a", 1, 1, 0, count=3),)).cycle(0) == (0, 1, 2)
    assert len(MIX.cycle(0)) == 8192
    assert MIX.first_model_count == 8


def test_sizes_are_of_every_model_of_a_mix_or_of_one() -> None:
    def served(name: str, *inputs: str) -> ServedModel:
        specs = tuple(TensorSpec(each, from_triton("INT64"), ("?", "?")) for each in inputs)
        return ServedModel(name, "", specs, (), batches=True, max_batch_size=8, binary=True, server="")

    bert, gpt = served("bert", "ids", "mask:0"), served("gpt", "ids")
    named = {"ids": "1", "gpt:ids": "2", "mask:0": "3", "bert:mask:0": "4"}
    assert of_model(named, bert) == {"ids": "1", "mask:0": "4"}
    assert of_model(named, gpt) == {"ids": "2"}
    check_named(named, (bert, gpt), "--shape")
    for wrong, near in (("idz", None), ("gpt:mask:0", "bert:mask:0"), ("bart:ids", "bert:ids")):
        with pytest.raises(SpecError, match=f"--shape names the input '{wrong}'") as caught:
            check_named({wrong: "1"}, (bert, gpt), "--shape")
        assert caught.value.expected == "bert:ids, bert:mask:0, gpt:ids"
        assert near is None or near in str(caught.value.fix)
    with pytest.raises(SpecError, match="'idz'"):
        check_named({"idz": "1"}, (gpt,), "--range")


def test_settings_know_the_mean_batch() -> None:
    wanted = Settings("a", rate=10, batch_sizes={1: 3, 8: 1}, mix={"b": 4})
    wanted.check()
    assert wanted.mean_batch == pytest.approx(11 / 4)
    assert wanted.model_weights == {"a": 1.0, "b": 4}
    assert Settings("a", mix={"b": 1, "a": 3}).model_weights == {"a": 3, "b": 1}
    for wrong in (
        Settings("a", mix={"b": 0}),
        Settings("a", batch_sizes={0: 1}),
        Settings("a", mix={"b": -1}),
    ):
        with pytest.raises(InputError, match="positive"):
            wrong.check()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("t.csv", "timestamp,model,batch_size,sample\n10,b,,\n11.5,a,8,6\n10.25,,,\n"),
        ("t.csv", "timestamp_ms,model,batch_size,sample\n10000,b\n11500,a,8,6\n10250\n"),
        (
            "t.jsonl",
            '{"timestamp": 10, "model": "b"}\n\n'  # noqa: ISC004
            '{"timestamp": 11.5, "model": "a", "batch_size": 8, "sample": 6}\n{"timestamp": 10.25}\n',
        ),
    ],
)
def test_traces_are_replayed(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    trace = read_trace(tmp_path / name)
    assert trace == (Arrival(0, "b"), Arrival(0.25), Arrival(1.5, "a", 8, 6))
    schedule = make_schedule(Settings("a", trace=trace, duration_s=10), MIX)
    assert schedule is not None
    assert schedule.offsets_ns.tolist() == [0, 250_000_000, 1_500_000_000]
    assert schedule.requests.tolist() == [8, 0, 6]
    assert Settings("a", trace=trace, duration_s=2).offered_rate == 1.5
    cut = make_schedule(Settings("a", trace=trace, duration_s=1), MIX)
    assert cut is not None
    assert len(cut) == 2
    sizes = Settings("a", trace=trace, batch_sizes={1: 1, 8: 1})
    assert sizes.mean_batch == pytest.approx(10 / 3)


@pytest.mark.parametrize("more", [{"rate": 0.001}, {"rate": 4.0, "warmup_s": 0.9, "arrival": "constant"}])
def test_a_run_that_would_measure_nothing_is_refused(more: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="no request would be measured"):
        make_schedule(Settings("a", duration_s=1, **more), MIX)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "time\n1\n",
        "timestamp\nsoon\n",
        "timestamp\nnan\n",
        "timestamp,batch_size\n1,0\n",
        '{"a": 1}\n',
        "{\n",
    ],
)
def test_traces_that_are_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "trace").write_text(text)
    with pytest.raises(DataError):
        read_trace(tmp_path / "trace")
    with pytest.raises(InputError, match="cannot be read"):
        read_trace(tmp_path / "no")


def test_a_trace_of_unknown_models() -> None:
    with pytest.raises(InputError, match="not prepared"):
        MIX.replay((Arrival(0, "c"),), 1)
    with pytest.raises(InputError, match="not prepared"):
        MIX.replay((Arrival(0, "b", 8),), 1)
