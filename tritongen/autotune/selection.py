"""The winner: a pure function of trials, comparisons, objective and service-level objectives."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tritongen.autotune.judging import (
    NEAR_BEST,
    Goal,
    Judged,
    beats,
    exactness,
    judge,
    measured_ratio,
    meets,
    rank,
)
from tritongen.autotune.verdicts import excluded, nothing_passed, why_lost, why_won
from tritongen.runs.records import Comparison, Loser, Outcome, Selection, Trial


def select(
    trials: Sequence[Trial],
    *,
    objective: str = "throughput",
    slo: Sequence[str] = (),
    max_batch_size: int,
    max_batch_size_is_asked_for: bool = False,
    instances: int | None = None,
    comparisons: Sequence[Comparison] = (),
    notes: Sequence[str] = (),
) -> Selection:
    """The winner and one sentence per loser; BuildError if no trial passed.

    The most exact passing candidate (FP32, if it passed) is the fallback. Another replaces it only if it is
    better beyond the noise of both: by `MIN_GAIN` and by the combined 95 % intervals of their medians, or,
    where the two were measured in alternation (`comparisons`), by the interval of that ratio.
    """
    goal = Goal.parse(objective, slo, instances, full_batches=max_batch_size_is_asked_for)
    passed = [judge(trial, goal) for trial in trials if selectable(trial)]
    if not passed:
        raise nothing_passed(trials)
    ranked = sorted(passed, key=rank)
    best = _best(ranked, comparisons)
    winner = _winner(best, ranked, comparisons)
    losers = [one for one in ranked if one is not winner]
    served = max_batch_size
    if goal.batch_size is None and not max_batch_size_is_asked_for:
        served = min(winner.point.batch_size, max_batch_size)
    return Selection(
        objective=objective,
        winner=winner.id,
        reason=why_won(winner, best, losers, goal, comparisons, alone=len(trials) == 1),
        runtime=winner.point.runtime,
        instances=goal.instances or winner.point.instances,
        batch_size=winner.point.batch_size,
        max_batch_size=served,
        losers=(
            *(Loser(candidate=one.id, reason=why_lost(one, winner, goal, comparisons)) for one in losers),
            *sorted((excluded(t) for t in trials if not selectable(t)), key=lambda loser: loser.candidate),
        ),
        runners_up=tuple(one.id for one in losers),
        comparisons=tuple(comparisons),
        notes=(*notes, *_batch_notes(winner, goal, served, max_batch_size)),
    )


def selectable(trial: Trial) -> bool:
    """Whether a trial may win at all: it passed the accuracy gate and was measured."""
    return trial.outcome is Outcome.PASSED and bool(trial.curve)


def _batch_notes(winner: Judged, goal: Goal, served: int, measured: int) -> Iterator[str]:
    """Why the largest batch is what it is: the server fills batches up to it."""
    size = winner.point.batch_size
    if goal.batch_size is not None or not winner.meets_slo or size >= measured:
        return
    if any(p.batch_size > size and meets(p, goal.latency_slos) for p in winner.trial.curve):
        why = f"larger batches are no faster (more than {100 * NEAR_BEST:.0f} % behind on the bare engine)"
    else:
        missed = ", ".join(str(slo) for slo in goal.latency_slos)
        why = f"larger batches than {size} miss {missed} on the bare engine already"
    if served < measured:
        yield f"max_batch_size is {served}: {why}"
    else:
        yield f"max_batch_size stays {served} as asked for, but {why}"


def _best(ranked: Sequence[Judged], comparisons: Sequence[Comparison]) -> Judged:
    """The best by its curve, unless one that was measured in alternation with it beat it there."""
    best = ranked[0]
    for one in ranked[1:]:
        if measured_ratio(one, best, comparisons) and beats(one, best, comparisons):
            best = one
    return best


def _winner(best: Judged, ranked: Sequence[Judged], comparisons: Sequence[Comparison]) -> Judged:
    """The most exact of those that the leader does not beat; each must itself beat all that are more exact.

    So must the leader: the best, or where it beats one of them by too little the next one down.
    Among equals the plainest wins, not the one that noise put first: an id names only what differs from the
    engine's first choice, so the shortest one is the plainest.
    """

    def earned(one: Judged) -> bool:
        rivals = (other for other in ranked if exactness(other.trial)[0] < exactness(one.trial)[0])
        return all(beats(one, other, comparisons) for other in rivals)

    deserving = [one for one in ranked if earned(one)]
    leader = best if best in deserving else deserving[0]
    ties = [one for one in deserving if not beats(leader, one, comparisons)]
    return min(ties, key=lambda one: (exactness(one.trial), len(one.id), rank(one)))
