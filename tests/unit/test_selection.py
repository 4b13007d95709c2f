"""The winner: pure, whatever the order, beyond noise, and never one that failed the gate."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tritongen.autotune.cpu_watch import disturbance
from tritongen.autotune.judging import MIN_GAIN, Goal, judge
from tritongen.autotune.selection import select
from tritongen.errors import BuildError
from tritongen.runs.records import (
    Accuracy,
    Candidate,
    LatencyPoint,
    Machine,
    Outcome,
    OutputError,
    Selection,
    Trial,
)
from tritongen.spec import Precision

MACHINE = Machine(hostname="h", system="s", python="3", cpu="c", cores=2, memory_bytes=1)


def point(
    batch: int, median_ms: float, *, instances: int = 1, spread: float = 0.0, taken: float | None = None
) -> LatencyPoint:
    """A point whose throughput follows from its median and whose P99 is 1.5 times that."""
    return LatencyPoint(
        batch_size=batch,
        instances=instances,
        runtime={"intra_op_threads": 2 // instances},
        iterations=100,
        mean_ms=median_ms,
        median_ms=median_ms,
        p99_ms=1.5 * median_ms,
        throughput=instances * batch * 1000 / median_ms,
        spread=spread,
        cpu_taken=taken,
        noisy=disturbance(taken),
    )


def trial(
    name: str,
    curve: Sequence[LatencyPoint],
    *,
    outcome: Outcome = Outcome.PASSED,
    loss: float | None = None,
) -> Trial:
    """A trial of a candidate such as "fp32" or "int8-mse"."""
    accuracy = Accuracy(
        basis="labels", passed=outcome is Outcome.PASSED, summary=f"top1 lost {loss} points", loss=loss
    )
    precision = Precision(name.split("-", maxsplit=1)[0])
    return Trial(
        key=name,
        candidate=Candidate(id=name, engine="onnxruntime", precision=precision),
        outcome=outcome,
        reason="because",
        accuracy=accuracy,
        curve=tuple(curve),
        machine=MACHINE,
        seconds=1.0,
    )


def choose(trials: Sequence[Trial], objective: str = "throughput", **settings: object) -> Selection:
    return select(trials, objective=objective, **{"max_batch_size": 8, **settings})  # type: ignore[arg-type]


SLOW_FP32 = trial("fp32", [point(1, 10.0), point(8, 40.0)])
FAST_INT8 = trial("int8-mse", [point(1, 5.0), point(8, 20.0)], loss=0.2)


def test_a_faster_candidate_that_passed_wins_and_the_fallback_gets_its_sentence() -> None:
    chosen = choose([SLOW_FP32, FAST_INT8])
    assert (chosen.winner, chosen.batch_size, chosen.max_batch_size) == ("int8-mse", 8, 8)
    assert "400 inferences/s at batch 8" in chosen.reason
    assert "100.0 % faster than fp32" in chosen.reason
    assert chosen.losers[0].reason == "200 inferences/s at batch 8, 50.0 % slower than int8-mse"
    assert chosen.runners_up == ("fp32",)


@pytest.mark.parametrize(("gain", "winner"), [(MIN_GAIN / 2, "fp32"), (2 * MIN_GAIN, "int8-mse")])
def test_a_gain_within_noise_keeps_the_more_exact_one_and_says_so(gain: float, winner: str) -> None:
    close = trial("int8-mse", [point(8, 40.0 / (1 + gain))])
    chosen = choose([SLOW_FP32, close])
    assert chosen.winner == winner
    assert ("beyond noise" in chosen.reason) == (winner == "fp32")


def test_wide_intervals_are_noise_too() -> None:
    noisy = trial("int8-mse", [point(8, 36.0, spread=0.2)])
    assert choose([SLOW_FP32, noisy]).winner == "fp32"


@pytest.mark.parametrize("outcome", [Outcome.REJECTED, Outcome.FAILED])
def test_a_rejected_or_failed_one_never_wins(outcome: Outcome) -> None:
    fast = trial("int8-mse", [point(8, 1.0)], outcome=outcome)
    chosen = choose([fast, SLOW_FP32])
    assert chosen.winner == "fp32"
    assert chosen.losers[0].reason == f"{outcome.value}: because"
    assert not chosen.runners_up
    assert "no other candidate passed" in chosen.reason
    assert "the only candidate that was tried" in choose([SLOW_FP32]).reason


def test_nothing_passed_is_an_error_with_every_cause() -> None:
    with pytest.raises(BuildError, match="int8-mse rejected: because"):
        choose([trial("int8-mse", [point(8, 1.0)], outcome=Outcome.REJECTED)])
    with pytest.raises(BuildError, match="no candidate to try"):
        choose([])


def test_the_remedy_follows_from_how_the_trials_ended() -> None:
    rejected = trial("int8-mse", [point(8, 1.0)], outcome=Outcome.REJECTED)
    late = trial("fp32", [], outcome=Outcome.FAILED).model_copy(
        update={"reason": "its process did not end within 3600 s"}
    )
    with pytest.raises(BuildError) as raised:
        choose([rejected])
    assert raised.value.fix == "loosen --accuracy-limit if the loss is acceptable"
    with pytest.raises(BuildError) as raised:
        choose([late])
    assert "log.txt" in str(raised.value.fix)
    assert "--effort quick or a smaller --max-batch-size" in str(raised.value.fix)


def test_throughput_is_judged_at_the_batch_that_gives_most_and_the_server_is_told_so() -> None:
    fp32 = trial("fp32", [point(1, 10.0), point(4, 20.0), point(8, 80.0)])
    chosen = choose([fp32])
    assert (chosen.batch_size, chosen.max_batch_size) == (4, 4)
    assert "larger batches are no faster" in chosen.notes[0]
    asked = choose([fp32], max_batch_size_is_asked_for=True)
    assert (asked.batch_size, asked.max_batch_size) == (8, 8)
    near = trial("fp32", [point(4, 40.0), point(8, 82.0)])
    assert choose([near]).max_batch_size == 8


def test_throughput_is_judged_at_the_largest_batch_that_the_slo_allows() -> None:
    fp32 = trial("fp32", [point(1, 10.0), point(4, 12.0), point(8, 40.0)])
    chosen = choose([fp32], slo=["p99<=20ms", "error_rate<=1%"])
    assert (chosen.batch_size, chosen.max_batch_size) == (4, 4)
    asked = choose([fp32], slo=["p99<=20ms"], max_batch_size_is_asked_for=True)
    assert (asked.batch_size, asked.max_batch_size) == (4, 8)


def test_one_that_meets_the_slo_beats_a_faster_one_that_cannot() -> None:
    steady, burst = trial("fp32", [point(1, 10.0)]), trial("int8-mse", [point(1, 30.0), point(8, 31.0)])
    chosen = choose([steady, burst], slo=["p99<=20ms"])
    assert chosen.winner == "fp32"
    assert "rules out p99<=20ms" in chosen.losers[0].reason


def test_an_slo_that_nothing_meets_still_yields_a_winner_that_says_so() -> None:
    chosen = choose([SLOW_FP32], slo=["p99<=1ms"])
    assert chosen.batch_size == 1
    assert "no candidate meets p99<=1ms" in chosen.reason
    assert chosen.notes[0].startswith("max_batch_size is 1: no batch size meets p99<=1ms")


@pytest.mark.parametrize("promise", ["throughput>=401/s", "throughput>=401 req/s"])
def test_a_throughput_that_the_engine_alone_does_not_give_is_out_of_reach(promise: str) -> None:
    fp32 = trial("fp32", [point(1, 10.0), point(4, 10.0)])  # 400 inferences/s
    assert (
        "is out of its reach: its engine alone gives 400 inferences/s" in choose([fp32], slo=[promise]).reason
    )
    assert "out of its reach" not in choose([fp32], slo=["throughput>=400/s"]).reason


def test_a_missed_slo_names_the_point_whose_p99_it_tells() -> None:
    """The table shows one instance; the point that is judged may be of several."""
    alone, two = point(1, 13.0), point(1, 16.0, instances=2)
    chosen = choose([trial("fp32", [alone, two])], slo=["p99<=1ms"])
    assert chosen.instances == 2
    assert "its P99 at batch 1 x 2 instances is 24 ms" in chosen.reason


def test_latency_objectives_judge_at_their_batch_size() -> None:
    fp32 = trial("fp32", [point(1, 5.0), point(8, 40.0)])
    int8 = trial("int8-mse", [point(1, 8.0), point(8, 20.0)])
    assert choose([fp32, int8], "latency").winner == "fp32"
    assert choose([fp32, int8], "latency@8").winner == "int8-mse"
    assert choose([fp32, int8], "latency@8").max_batch_size == 8


def test_the_best_pair_of_runtime_and_instances_is_chosen() -> None:
    fp32 = trial("fp32", [point(8, 40.0), point(8, 50.0, instances=2)])
    chosen = choose([fp32])
    assert (chosen.instances, chosen.runtime) == (2, {"intra_op_threads": 1})
    assert choose([fp32], "latency@8").instances == 1
    assert choose([fp32], instances=1).instances == 1


def test_a_model_that_does_not_batch() -> None:
    chosen = choose([trial("fp32", [point(1, 10.0)])], max_batch_size=0)
    assert (chosen.batch_size, chosen.max_batch_size) == (1, 0)


def test_among_equals_of_one_precision_the_smaller_loss_is_kept() -> None:
    better = trial("int8-mse", [point(8, 20.0)], loss=0.1)
    worse = trial("int8-minmax", [point(8, 19.9)], loss=0.6)
    assert choose([worse, SLOW_FP32, better]).winner == "int8-mse"


def test_among_equals_without_labels_the_smaller_error_is_kept() -> None:
    def int8(name: str, median_ms: float, error: float) -> Trial:
        output = OutputError(output="y", measure="relative_l2", value=error, limit=0.05, passed=True)
        accuracy = Accuracy(basis="reference", passed=True, summary="", outputs=(output,))
        return trial(name, [point(8, median_ms)]).model_copy(update={"accuracy": accuracy})

    chosen = choose([int8("int8-mse", 19.9, 0.04), SLOW_FP32, int8("int8-entropy", 20.0, 0.03)])
    assert chosen.winner == "int8-entropy"


def test_a_chain_of_near_equals_ends_at_the_most_exact_one() -> None:
    """INT8 beats FP32 and not FP16, which does not beat FP32."""
    chain = [trial(name, [point(8, ms)]) for name, ms in (("fp32", 20.0), ("fp16", 19.5), ("int8-a", 19.0))]
    assert choose(chain).winner == "fp32"


def test_among_equals_the_plainest_is_kept() -> None:
    plain = trial("fp32", [point(8, 40.0, spread=0.1)])
    tuned = trial("fp32-extended", [point(8, 39.0, spread=0.1)])
    chosen = choose([tuned, plain])
    assert chosen.winner == "fp32"
    assert "fp32-extended is 2.6 % faster, which is not beyond noise" in chosen.reason


def test_a_larger_batch_is_kept_where_noise_hides_the_difference() -> None:
    def at(spread: float) -> int:
        curve = [point(1, 1.0, spread=spread), point(8, 8.9, spread=spread)]  # 10 % behind
        return choose([trial("fp32", curve)], max_batch_size=8).max_batch_size

    assert (at(0.01), at(0.1)) == (1, 8)


medians = st.floats(0.1, 100, allow_nan=False)


@st.composite
def trials(draw: st.DrawFn) -> list[Trial]:
    names = draw(
        st.lists(st.sampled_from(["fp32", "fp32-b", "int8-a", "int8-b", "fp16"]), unique=True, min_size=1)
    )
    return [
        trial(
            name,
            [
                point(
                    batch,
                    draw(medians),
                    spread=draw(st.floats(0, 0.3)),
                    taken=draw(st.none() | st.floats(0, 1)),
                )
                for batch in (1, 2, 8)
            ],
            outcome=draw(st.sampled_from(list(Outcome))),
            loss=draw(st.none() | st.floats(0, 2)),
        )
        for name in names
    ]


@given(
    data=st.data(),
    found=trials(),
    objective=st.sampled_from(["throughput", "latency", "latency@4"]),
    slo=st.sampled_from([(), ("p99<=20ms",)]),
)
def test_properties(data: st.DataObject, found: list[Trial], objective: str, slo: tuple[str, ...]) -> None:
    if all(one.outcome is not Outcome.PASSED for one in found):
        with pytest.raises(BuildError):
            choose(found, objective, slo=slo)
        return
    chosen = choose(found, objective, slo=slo)
    by_id = {one.candidate.id: one for one in found}
    assert by_id[chosen.winner].outcome is Outcome.PASSED
    assert chosen.winner not in chosen.runners_up
    assert sorted([chosen.winner, *(loser.candidate for loser in chosen.losers)]) == sorted(by_id)
    assert all(by_id[name].outcome is Outcome.PASSED for name in chosen.runners_up)
    assert choose(data.draw(st.permutations(found)), objective, slo=slo) == chosen


@given(found=trials())
def test_a_less_exact_winner_is_better_than_each_more_exact_one(found: list[Trial]) -> None:
    if all(one.outcome is not Outcome.PASSED for one in found):
        return
    chosen = choose(found)
    score = {
        one.candidate.id: judge(one, Goal.parse("throughput")).score
        for one in found
        if one.outcome is Outcome.PASSED
    }
    rank = [Precision.FP32, Precision.FP16, Precision.INT8]
    by_id = {one.candidate.id: one for one in found}
    for name, value in score.items():
        if rank.index(by_id[name].candidate.precision) < rank.index(by_id[chosen.winner].candidate.precision):
            assert score[chosen.winner] > value * (1 + MIN_GAIN)
