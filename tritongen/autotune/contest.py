"""When one candidate is better than another beyond noise: by alternation where measured, else by curves."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tritongen.autotune.judging import CLOSE, MIN_GAIN, Goal, Judged, judge, rank
from tritongen.runs.records import Comparison, Trial


@dataclass(frozen=True)
class Ratio:
    """How much faster one candidate is than another, measured in alternation, with its 95 % interval."""

    value: float
    low: float
    high: float

    @property
    def wins(self) -> bool:
        """Whether the first one is better beyond noise."""
        return self.low > 1 and self.value > 1 + MIN_GAIN


@dataclass(frozen=True)
class Precedent:
    """A measurement in alternation that speaks for another pair of the same two precisions."""

    one: Judged
    other: Judged
    ratio: Ratio


@dataclass(frozen=True)
class Contest:
    """The candidates that may win, best first by their curves, and what was measured in alternation."""

    ranked: tuple[Judged, ...]
    comparisons: tuple[Comparison, ...] = ()

    @classmethod
    def of(cls, trials: Sequence[Trial], goal: Goal, comparisons: Sequence[Comparison] = ()) -> Contest:
        """Of trials that passed, judged under `goal`."""
        judged = (judge(trial, goal) for trial in trials)
        return cls(tuple(sorted(judged, key=rank)), tuple(comparisons))

    def beats(self, one: Judged, other: Judged) -> bool:
        """Whether `one` is better than `other` beyond noise.

        By what was measured of the two in alternation; else of two others of their precisions, if these
        curves do not contradict; else by the curves, and then also if only `other` had been disturbed by
        other processes.
        """
        precedent = self.precedent(one, other)
        return precedent.ratio.wins if precedent is not None else self._clearly(one, other)

    def measured(self, one: Judged, other: Judged) -> Ratio | None:
        """The ratio of the two in alternation, whichever way round it was measured."""
        for c in self.comparisons:
            sides = ((c.candidate, c.batch_size), (c.against, c.against_batch_size))
            if sides == (_side(one), _side(other)):
                return Ratio(c.ratio, c.low, c.high)
            if sides == (_side(other), _side(one)):
                return Ratio(1 / c.ratio, 1 / c.high, 1 / c.low)
        return None

    def precedent(self, one: Judged, other: Judged) -> Precedent | None:
        """What was measured in alternation and settles these two, if anything was."""
        if one.meets_slo != other.meets_slo:
            return None
        return next(self._precedents(one, other), None)

    def _precedents(self, one: Judged, other: Judged) -> Iterator[Precedent]:
        ratio = self.measured(one, other)
        if ratio is not None:
            yield Precedent(one, other, ratio)
        if one.precision is other.precision:
            return
        for like_one in self.ranked:
            for like_other in self.ranked:
                if (like_one.precision, like_other.precision) != (one.precision, other.precision):
                    continue
                ratio = self.measured(like_one, like_other)
                if ratio is None:
                    continue
                if ratio.wins:  # `one` is no worse than the one that won, `other` no better than who lost
                    speaks = not self._clearly(like_one, one) and not self._clearly(other, like_other)
                else:
                    speaks = not self._clearly(one, like_one) and not self._clearly(like_other, other)
                if speaks:
                    yield Precedent(like_one, like_other, ratio)

    def _clearly(self, one: Judged, other: Judged) -> bool:
        """As `beats`, by these two alone."""
        if one.meets_slo != other.meets_slo:
            return one.meets_slo
        ratio = self.measured(one, other)
        if ratio is not None:
            return ratio.wins
        return one.score > other.undisturbed_score * (1 + max(MIN_GAIN, noise(one, other)))


def noise(one: Judged, other: Judged) -> float:
    """Half-width of the 95 % interval of the ratio of two scores, from the spreads of both medians."""
    return math.hypot(one.point.spread, other.point.spread)


def worth_comparing(one: Judged, other: Judged) -> bool:
    """Whether two should be measured in alternation: noise and drift may reach from one curve to the other.

    Two of one precision only where noise hides more than drift does: on a calm machine their curves do.
    """
    if one is other or one.meets_slo != other.meets_slo:
        return False
    spread = noise(one, other)
    if one.precision is other.precision and max(spread, one.taken, other.taken) <= CLOSE:
        return False
    margin = 1 + max(CLOSE, 2 * spread)
    return one.score < other.undisturbed_score * margin and other.score < one.undisturbed_score * margin


def _side(one: Judged) -> tuple[str, int]:
    return one.id, one.point.batch_size
