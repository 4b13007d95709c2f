"""The winner: a pure function of trials, comparisons, objective and service-level objectives."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from tritongen.autotune.contest import Contest, worth_comparing
from tritongen.autotune.judging import NEAR_BEST, Goal, Judged, exactness, meets, more_exact, rank
from tritongen.autotune.verdicts import excluded, noise_note, nothing_passed, why_lost, why_won
from tritongen.runs.records import Comparison, Loser, Outcome, Selection, Trial
from tritongen.spec import Precision


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
    contest = _contest(trials, goal, comparisons)
    if not contest.ranked:
        raise nothing_passed(trials)
    best = _best(contest)
    winner = _winner(best, contest)
    losers = [one for one in contest.ranked if one is not winner]
    served = max_batch_size
    if goal.batch_size is None and not max_batch_size_is_asked_for:
        served = min(winner.point.batch_size, max_batch_size)
    return Selection(
        objective=objective,
        winner=winner.id,
        reason=why_won(winner, best, losers, goal, contest, alone=len(trials) == 1),
        runtime=winner.point.runtime,
        instances=goal.instances or winner.point.instances,
        batch_size=winner.point.batch_size,
        max_batch_size=served,
        losers=(
            *(Loser(candidate=one.id, reason=why_lost(one, winner, goal, contest)) for one in losers),
            *sorted((excluded(t) for t in trials if not selectable(t)), key=lambda loser: loser.candidate),
        ),
        runners_up=tuple(one.id for one in losers),
        comparisons=tuple(comparisons),
        notes=(
            *filter(None, [noise_note(contest)]),
            *notes,
            *dict.fromkeys(note for trial in trials for note in trial.notes),
            *_batch_notes(winner, goal, served, max_batch_size),
        ),
    )


def selectable(trial: Trial) -> bool:
    """Whether a trial may win at all: it passed the accuracy gate and was measured."""
    return trial.outcome is Outcome.PASSED and bool(trial.curve)


def close_call(
    trials: Sequence[Trial],
    goal: Goal,
    comparisons: Sequence[Comparison] = (),
    tried: Collection[frozenset[str]] = (),
) -> tuple[Judged, Judged] | None:
    """(less exact, more exact): the next two to measure in alternation; None: nothing more would be settled.

    First the best one and those that it does not beat, then the winner so far and the leader of each other
    precision. `tried`: pairs of ids that are not asked for again.
    """
    contest = _contest(trials, goal, comparisons)
    if not contest.ranked:
        return None
    for one, other in _open_questions(contest):
        untold = contest.precedent(one, other) is None and frozenset((one.id, other.id)) not in tried
        if untold and worth_comparing(one, other):
            return (one, other) if exactness(one.trial) > exactness(other.trial) else (other, one)
    return None


def _open_questions(contest: Contest) -> Iterator[tuple[Judged, Judged]]:
    """Pairs whose comparison may change the winner, the most telling first."""
    ranked, best = contest.ranked, _best(contest)
    equals = sorted((one for one in ranked if not contest.beats(best, one)), key=_exactest)
    yield from ((best, one) for one in equals)
    wanted = equals[0]
    yield from ((wanted, one) for one in ranked if more_exact(one, wanted) and not contest.beats(wanted, one))
    winner = _winner(best, contest)
    yield from ((winner, one) for one in _leaders(ranked))
    yield from ((winner, one) for one in ranked if one.precision is winner.precision)


def _leaders(ranked: Sequence[Judged]) -> list[Judged]:
    """The best of each precision."""
    by_precision: dict[Precision, Judged] = {}
    for one in ranked:
        by_precision.setdefault(one.precision, one)
    return list(by_precision.values())


def _batch_notes(winner: Judged, goal: Goal, served: int, measured: int) -> Iterator[str]:
    """Why the largest batch is what it is: the server fills batches up to it."""
    size = winner.point.batch_size
    if goal.batch_size is not None or size >= measured:
        return
    missed = ", ".join(str(slo) for slo in goal.latency_slos)
    if not winner.meets_slo:
        why = f"no batch size meets {missed} on the bare engine, so the smallest is served"
    elif any(p.batch_size > size and meets(p, goal.latency_slos) for p in winner.trial.curve):
        why = f"larger batches are no faster (more than {100 * NEAR_BEST:.0f} % behind on the bare engine)"
    else:
        why = f"larger batches than {size} miss {missed} on the bare engine already"
    if served < measured:
        yield f"max_batch_size is {served}: {why}"
    else:
        yield f"max_batch_size stays {served} as asked for, but {why}"


def _contest(trials: Sequence[Trial], goal: Goal, comparisons: Sequence[Comparison]) -> Contest:
    return Contest.of([trial for trial in trials if selectable(trial)], goal, comparisons)


def _best(contest: Contest) -> Judged:
    """The best by its curve, unless one that was measured in alternation with it beat it there."""
    best = contest.ranked[0]
    for one in contest.ranked[1:]:
        if contest.measured(one, best) and contest.beats(one, best):
            best = one
    return best


def _winner(best: Judged, contest: Contest) -> Judged:
    """The most exact, then the plainest, of those that no other beats.

    Only those are asked that beat all of each more exact precision. They may beat one another in a circle,
    where alternation contradicts the curves: then the leader wins.
    """

    def earned(one: Judged) -> bool:
        return all(contest.beats(one, other) for other in contest.ranked if more_exact(other, one))

    deserving = [one for one in contest.ranked if earned(one)]
    unbeaten = [one for one in deserving if not any(contest.beats(other, one) for other in deserving)]
    leader = best if best in deserving else deserving[0]
    return min(unbeaten or [leader], key=_exactest)


def _exactest(one: Judged) -> tuple[object, ...]:
    """Sort key: the most exact first, then the plainest.

    An id names only what differs from the engine's first choice, so the shortest one is the plainest.
    """
    return exactness(one.trial), len(one.id), rank(one)
