"""When one candidate is better than another beyond noise: by alternation where measured, else by curves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from tritongen.autotune.judging import CLOSE, MIN_GAIN, Goal, Judged, judge, noise, rank
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
        return next((p.ratio for p in self._measurements if p.one is one and p.other is other), None)

    def precedent(self, one: Judged, other: Judged) -> Precedent | None:
        """What was measured in alternation and settles these two, if anything was."""
        if one.meets_slo != other.meets_slo:
            return None
        ratio = self.measured(one, other)
        if ratio is not None:
            return Precedent(one, other, ratio)
        if one.precision is other.precision:
            return None
        return next((each for each in self._measurements if self._speaks(each, one, other)), None)

    def _speaks(self, each: Precedent, one: Judged, other: Judged) -> bool:
        """Whether a measurement says of two others what it says of those that it is of."""
        if (each.one.precision, each.other.precision) != (one.precision, other.precision):
            return False
        if each.ratio.wins:  # `one` must then be no worse than its winner, `other` no better than its loser
            return not self._clearly(each.one, one) and not self._clearly(other, each.other)
        return not self._clearly(one, each.one) and not self._clearly(each.other, other)

    @cached_property
    def _measurements(self) -> tuple[Precedent, ...]:
        """Every comparison of two of these, both ways round."""
        by_side = {_side(one): one for one in self.ranked}
        found = []
        for c in self.comparisons:
            one = by_side.get((c.candidate, c.batch_size))
            other = by_side.get((c.against, c.against_batch_size))
            if one is not None and other is not None:
                found.append(Precedent(one, other, Ratio(c.ratio, c.low, c.high)))
                found.append(Precedent(other, one, Ratio(1 / c.ratio, 1 / c.high, 1 / c.low)))
        return tuple(found)

    def _clearly(self, one: Judged, other: Judged) -> bool:
        """As `beats`, by these two alone."""
        if one.meets_slo != other.meets_slo:
            return one.meets_slo
        ratio = self.measured(one, other)
        if ratio is not None:
            return ratio.wins
        return one.score > other.undisturbed_score * (1 + max(MIN_GAIN, noise(one.point, other.point)))


def worth_comparing(one: Judged, other: Judged) -> bool:
    """Whether two should be measured in alternation: noise and drift may reach from one curve to the other.

    Two of one precision only where noise hides more than drift does: on a calm machine their curves do.
    """
    if one is other or one.meets_slo != other.meets_slo:
        return False
    spread = noise(one.point, other.point)
    if one.precision is other.precision and max(spread, one.taken, other.taken) <= CLOSE:
        return False
    margin = 1 + max(CLOSE, 2 * spread)
    return one.score < other.undisturbed_score * margin and other.score < one.undisturbed_score * margin


def _side(one: Judged) -> tuple[str, int]:
    return one.id, one.point.batch_size
