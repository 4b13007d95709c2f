"""The build budget: what fits, the order of promise, and that nothing is left out silently."""

from __future__ import annotations

import math

from tritongen.autotune.budget import Budget
from tritongen.autotune.trials import by_promise
from tritongen.runs.records import Candidate
from tritongen.spec import Precision


def candidate(identifier: str, precision: Precision = Precision.INT8, **options: str) -> Candidate:
    return Candidate(id=identifier, engine="e", precision=precision, options=dict(options))


def test_without_a_bound_everything_fits() -> None:
    budget = Budget()
    assert budget.left_s() == math.inf
    assert budget.fits([1e9])


def test_a_trial_fits_while_the_earlier_ones_say_so() -> None:
    now = [100.0]
    budget = Budget(2.0, clock=lambda: now[0])
    assert budget.left_s() == 120
    assert budget.fits([90, 100, 110])
    now[0] += 30
    assert not budget.fits([90, 100, 110])
    assert budget.fits([90])
    now[0] += 75
    assert not budget.fits([])  # not worth a start
    now[0] += 1000
    assert budget.left_s() == 0
    assert "b, a" in budget.not_tried(["b", "a"])
    assert "2 min" in budget.not_tried(["b"])


def test_one_new_trial_always_has_room_and_says_so_where_it_took_too_long() -> None:
    now = [0.0]
    budget = Budget(0.001, clock=lambda: now[0])
    assert budget.allowed_s([1e9]) == math.inf
    now[0] = 6.0
    budget.progressed()
    assert budget.allowed_s([]) is None
    note = budget.exceeded() or ""
    assert "0.001 min was exceeded (0.1 min)" in note
    roomy = Budget(1.0, clock=lambda: now[0])
    roomy.progressed()
    assert roomy.exceeded() is None
    assert roomy.allowed_s([50.0]) == 60


def test_the_first_guess_of_each_kind_comes_before_the_second_of_any() -> None:
    given = [
        candidate("fp32", Precision.FP32),
        candidate("tf32", Precision.FP32),
        candidate("fp16", Precision.FP16),
        candidate("a-mse", recipe="a"),
        candidate("a-percentile", recipe="a"),
        candidate("b-mse", recipe="b"),
    ]
    assert [one.id for one in by_promise(given)] == ["fp32", "fp16", "a-mse", "b-mse", "tf32", "a-percentile"]
