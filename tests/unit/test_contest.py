"""Candidates that curves cannot tell apart: what is measured in alternation, and what follows from it."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from tests.unit.test_selection import FAST_INT8, SLOW_FP32, choose, point, trial, trials
from tritongen.autotune.judging import Goal
from tritongen.autotune.selection import close_call
from tritongen.runs.records import Comparison, Outcome, Selection, Trial


def in_alternation(one: str, other: str, ratio: float, half_width: float = 0.01) -> Comparison:
    return Comparison(
        candidate=one, against=other, batch_size=8, against_batch_size=8, rounds=24,
        ratio=ratio, low=ratio - half_width, high=ratio + half_width,
    )  # fmt: skip


def settle(trials: Sequence[Trial], truth: dict[str, float], most: int = 4) -> tuple[Selection, list[str]]:
    """What is selected once every call that is too close was measured, and the pairs in their order."""
    found: list[Comparison] = []
    while len(found) < most and (call := close_call(trials, Goal.parse("throughput"), found, tried(found))):
        one, other = (judged.id for judged in call)
        found.append(in_alternation(one, other, truth[one] / truth[other]))
    return choose(trials, comparisons=found), [f"{c.candidate} / {c.against}" for c in found]


def tried(found: Sequence[Comparison]) -> list[frozenset[str]]:
    return [frozenset((one.candidate, one.against)) for one in found]


def test_measuring_in_alternation_overrules_the_curves() -> None:
    close = trial("int8-mse", [point(8, 41.0)])
    call = close_call([SLOW_FP32, close], Goal.parse("throughput"))
    assert call is not None
    assert (call[0].id, call[1].id) == ("int8-mse", "fp32")
    measured = in_alternation("int8-mse", "fp32", 1.09, 0.03)
    assert choose([SLOW_FP32, close]).winner == "fp32"
    chosen = choose([SLOW_FP32, close], comparisons=[measured])
    assert chosen.winner == "int8-mse"
    assert "9.0 % faster in alternation" in chosen.reason
    assert close_call([SLOW_FP32, FAST_INT8], Goal.parse("throughput")) is None


def test_a_comparison_that_settles_nothing_is_told_with_its_interval() -> None:
    close = trial("int8-mse", [point(8, 36.0)])
    measured = in_alternation("int8-mse", "fp32", 0.85, 0.16)
    chosen = choose([SLOW_FP32, close], comparisons=[measured])
    assert chosen.winner == "fp32"
    assert "15.0 % slower in alternation than fp32: not beyond noise (×0.69 to ×1.01)" in str(chosen.losers)


def test_what_others_took_is_noise_however_narrow_the_interval() -> None:
    """Half the processor taken doubles a latency: the curve alone must not decide."""
    disturbed = trial("fp32", [point(8, 80.0, spread=0.01, taken=0.5)])
    calm = trial("int8-mse", [point(8, 50.0, spread=0.01)])
    chosen = choose([disturbed, calm])
    assert chosen.winner == "fp32"
    assert (
        "60.0 % faster than fp32: not beyond noise (±3 %, and other processes had" in chosen.losers[0].reason
    )
    assert chosen.notes[0].startswith(
        "the machine was busy: other processes had the processor for up to 50 % of the time while 1 of 2"
    )
    assert "±1 % at worst" in chosen.notes[0]
    disturbance, advice = chosen.notes[0].split(". ")
    assert max(len(disturbance.split()), len(advice.split())) < 40
    assert "--fresh" in advice
    assert not choose([SLOW_FP32, FAST_INT8]).notes


def test_noise_without_a_cause_is_told_as_well() -> None:
    (note,) = choose([trial("fp32", [point(8, 40.0, spread=0.4)])]).notes
    assert note.startswith("the machine was noisy: medians are known to ±40 % at worst")


def test_under_noise_two_of_one_precision_are_measured_in_alternation() -> None:
    calm = [trial("fp32", [point(8, 40.0)]), trial("fp32-extended", [point(8, 35.0)])]
    assert close_call(calm, Goal.parse("throughput")) is None
    noisy = [trial(one.candidate.id, [point(8, one.curve[0].median_ms, taken=0.4)]) for one in calm]
    chosen, asked = settle(noisy, {"fp32": 1.0, "fp32-extended": 1.5})
    assert asked == ["fp32 / fp32-extended"]
    assert chosen.winner == "fp32-extended"
    assert "1 pair was measured again in alternation" in chosen.notes[0]
    assert settle(noisy, {"fp32": 1.0, "fp32-extended": 1.0})[0].winner == "fp32"


def test_what_leaders_of_two_precisions_showed_in_alternation_holds_for_their_equals() -> None:
    """On a busy machine no curve tells anything, and four pairs must be enough."""
    names = {"fp32": 1.0, "fp32-extended": 0.9, "int8-a": 1.5, "int8-b": 1.5, "int8-c": 1.5}
    noisy = [
        trial(name, [point(8, ms, taken=0.8)], loss=0.1 * place)
        for place, (name, ms) in enumerate(zip(names, (30.0, 33.0, 28.0, 27.0, 26.0), strict=True))
    ]
    chosen, asked = settle(noisy, names)
    assert asked[0] == "int8-c / fp32"
    assert chosen.winner == "int8-a"
    for name in ("fp32", "fp32-extended"):
        told = next(one.reason for one in chosen.losers if one.candidate == name)
        assert "there fp32 was 33.3 % slower than int8-c" in told
    equal, _ = settle(noisy, dict.fromkeys(names, 1.0))
    assert equal.winner == "fp32"
    # One pair is enough for the precision.
    assert settle(noisy, names, most=1)[0].winner.startswith("int8")


def test_a_sibling_does_not_win_by_its_curve_what_the_leader_lost_in_alternation() -> None:
    trials = [trial("fp32", [point(8, 40.0)]), trial("int8-a", [point(8, 36.0)], loss=0.1),
              trial("int8-b", [point(8, 36.5)], loss=0.2)]  # fmt: skip
    assert choose(trials).winner == "int8-a"
    chosen = choose(trials, comparisons=[in_alternation("int8-a", "fp32", 0.99)])
    assert chosen.winner == "fp32"
    sibling = next(one.reason for one in chosen.losers if one.candidate == "int8-b")
    assert (  # its own curve's figure; what was compared was another
        "9.6 % faster than fp32 by the curves (this pair was not compared in alternation; there int8-a was "
        "1.0 % slower than fp32): not beyond noise (×0.98 to ×1.00 there), so the more exact" in sibling
    )


def test_only_what_was_compared_itself_is_told_with_a_ratio_in_alternation() -> None:
    """The curves of int8-a and int8-b are far apart, and one ratio cannot be that of both to fp32."""
    rates = {"fp32": 5572.0, "int8-a": 5504.0, "int8-b": 1938.0}
    busy = [trial(name, [point(8, 8000 / rate, taken=0.7)]) for name, rate in rates.items()]
    chosen = choose(busy, comparisons=[in_alternation("int8-b", "fp32", 0.885)])
    assert chosen.winner == "fp32"
    assert chosen.reason.endswith("13.0 % faster in alternation than int8-b")
    told = {one.candidate: one.reason.partition("batch 8, ")[2] for one in chosen.losers}
    assert told["int8-b"] == "11.5 % slower in alternation than fp32"
    assert told["int8-a"] == (
        "1.2 % slower than fp32 by the curves (this pair was not compared in alternation; there int8-b was "
        "11.5 % slower than fp32)"
    )


def test_what_the_last_of_a_chain_of_near_equals_beats_is_not_called_noise() -> None:
    """106 beats 101, but not 103.5 between them, which is as exact as 101 and no better than it."""
    chain = {"fp32": 101.0, "fp32-extended": 103.5, "int8-a": 106.0}
    chosen = choose([trial(name, [point(8, 8000 / rate)]) for name, rate in chain.items()])
    told = "5.0 % faster{}, but 2.4 % faster than fp32-extended{} not beyond noise"
    assert chosen.winner == "fp32"
    assert told.format("", ", which is") in chosen.reason
    assert told.format(" than fp32", ":") in next(
        one.reason for one in chosen.losers if one.candidate == "int8-a"
    )


def test_the_winner_lost_to_no_equal_of_the_leader_in_alternation() -> None:
    rates = {"fp32": 100.0, "fp32-extended": 104.0, "fp32-all": 102.0}
    noisy = [trial(name, [point(8, 8000 / rate, taken=0.4)]) for name, rate in rates.items()]
    assert choose(noisy).winner == "fp32"
    chosen = choose(noisy, comparisons=[in_alternation("fp32-all", "fp32", 1.10)])
    assert chosen.winner == "fp32-all"
    assert "9.1 % slower in alternation" in next(
        one.reason for one in chosen.losers if one.candidate == "fp32"
    )


def test_a_noisy_leader_does_not_shield_what_another_beats() -> None:
    found = [trial("fp32", [point(8, 80.0)]), trial("fp32-extended", [point(8, 77.0, spread=0.2)]),
             trial("fp32-all", [point(8, 77.1)])]  # fmt: skip
    assert choose(found).winner == "fp32-all"


def test_a_circle_of_wins_ends_with_the_one_that_won_in_alternation() -> None:
    found = [trial("fp32", [point(8, 80.0)]), trial("fp32-extended", [point(8, 77.0)]),
             trial("fp32-all", [point(8, 74.0)])]  # fmt: skip
    assert choose(found, comparisons=[in_alternation("fp32", "fp32-all", 1.05)]).winner == "fp32"


@given(data=st.data(), found=trials())
def test_what_is_measured_in_alternation_ends_and_depends_on_no_order(
    data: st.DataObject, found: list[Trial]
) -> None:
    if all(one.outcome is not Outcome.PASSED for one in found):
        assert close_call(found, Goal.parse("throughput")) is None
        return
    truth = {one.candidate.id: data.draw(st.floats(0.5, 2)) for one in found}

    def settled(order: Sequence[Trial]) -> tuple[str, int]:
        comparisons: list[Comparison] = []
        while call := close_call(order, Goal.parse("throughput"), comparisons):
            one, other = call
            measured = in_alternation(one.id, other.id, truth[one.id] / truth[other.id], 0.0)
            sizes = {"batch_size": one.point.batch_size, "against_batch_size": other.point.batch_size}
            comparisons.append(measured.model_copy(update=sizes))
            assert len(comparisons) <= len(found) ** 2
        return choose(order, comparisons=comparisons).winner, len(comparisons)

    assert settled(found) == settled(data.draw(st.permutations(found)))
