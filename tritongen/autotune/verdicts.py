"""One sentence per candidate: why it won, why it lost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tritongen.autotune.budget import TIMED_OUT
from tritongen.autotune.contest import Contest
from tritongen.autotune.cpu_watch import DISTURBED
from tritongen.autotune.gpu_watch import noise_in
from tritongen.autotune.judging import CLOSE, MIN_GAIN, Goal, Judged, exactness, more_exact, noise
from tritongen.errors import BuildError
from tritongen.runs.events import number
from tritongen.runs.records import Loser, Outcome, Trial
from tritongen.spec import Precision


def figure(one: Judged, goal: Goal) -> str:
    """The number that decides, in words ("1,204 inferences/s at batch 8 x 2 instances")."""
    if goal.batch_size is None:
        return f"{number(one.point.throughput)} inferences/s at {_setting(one)}"
    return f"median {number(one.point.median_ms)} ms at {_setting(one)}"


def _setting(one: Judged) -> str:
    """Where on its curve a candidate is judged ("batch 8 x 2 instances")."""
    instances = one.point.instances
    return f"batch {one.point.batch_size}" + (f" x {instances} instances" if instances > 1 else "")


def why_won(
    winner: Judged,
    best: Judged,
    losers: Sequence[Judged],
    goal: Goal,
    contest: Contest,
    *,
    alone: bool,
) -> str:
    """The winner's sentence; `alone`: nothing else was tried."""
    if winner is not best:
        barrier = _barrier(best, winner, contest)
        reason = (
            f"{figure(winner, goal)}; {best.id} is {_gain(best, winner, contest, than='')}"
            f"{_but(best, winner, barrier, contest)}, which is not beyond noise, "
            f"so the {_virtue(winner, best)} candidate is kept"
        )
    elif losers:
        rival = min(losers, key=lambda one: _telling(one, winner, contest))
        reason = f"{figure(winner, goal)}, {_gain(winner, rival, contest)}"
    else:
        rest = "the only candidate that was tried" if alone else "no other candidate passed"
        reason = f"{figure(winner, goal)}; {rest}"
    accuracy = winner.trial.accuracy
    if accuracy is not None and (accuracy.loss or winner.trial.candidate.precision is not Precision.FP32):
        reason += f"; {accuracy.summary}"
    if not winner.meets_slo:
        missed = ", ".join(str(slo) for slo in goal.latency_slos)
        reason += f"; no candidate meets {missed}: its P99 at {_setting(winner)} is "
        reason += f"{number(winner.point.p99_ms)} ms"
    # A request holds an inference at least, so this bounds requests/s as well; the server adds its own costs.
    most = max(point.throughput for point in winner.trial.curve)
    for slo in goal.throughput_slos:
        if not slo.holds(most):
            reason += f"; {slo} is out of its reach: its engine alone gives {most:,.0f} inferences/s at most"
    return reason


def why_lost(one: Judged, winner: Judged, goal: Goal, contest: Contest) -> str:
    """The sentence of a candidate that passed the gate and was not selected."""
    if winner.meets_slo and not one.meets_slo:
        missed = ", ".join(str(slo) for slo in goal.latency_slos)
        return (
            f"P99 {number(one.point.p99_ms)} ms at {_setting(one)} rules out {missed}, "
            f"which {winner.id} leaves possible"
        )
    if contest.beats(winner, one):
        return f"{figure(one, goal)}, {_gain(one, winner, contest)}"
    barrier = _barrier(one, winner, contest)
    return (
        f"{figure(one, goal)}, {_gain(one, winner, contest)}"
        f"{_but(one, winner, barrier, contest)}: not beyond noise "
        f"({_interval(one, barrier, contest)}), so the {_virtue(winner, one)} candidate is kept"
    )


def _barrier(one: Judged, winner: Judged, contest: Contest) -> Judged:
    """Whom `one` had to beat beyond noise and did not: the winner, or another more exact candidate."""
    if contest.beats(one, winner):
        for other in contest.ranked:
            if more_exact(other, one) and not contest.beats(one, other):
                return other
    return winner


def _but(one: Judged, winner: Judged, barrier: Judged, contest: Contest) -> str:
    return "" if barrier is winner else f", but {_gain(one, barrier, contest)}"


def _interval(one: Judged, other: Judged, contest: Contest) -> str:
    """How far noise reaches: the interval in alternation, or that of the medians and what others took."""
    precedent = contest.precedent(one, other)
    if precedent is not None:
        own = (precedent.one, precedent.other) == (one, other)
        return f"×{precedent.ratio.low:.2f} to ×{precedent.ratio.high:.2f}{'' if own else ' there'}"
    interval = f"±{100 * max(MIN_GAIN, noise(one.point, other.point)):.0f} %"
    taken = max(one.taken, other.taken)
    if taken > DISTURBED:
        interval += f", and other processes had the processor for up to {100 * taken:.0f} % of the time"
    return interval


def _virtue(kept: Judged, other: Judged) -> str:
    return "more exact" if exactness(kept.trial) < exactness(other.trial) else "plainer"


def excluded(trial: Trial) -> Loser:
    """The sentence of a candidate that was rejected or failed."""
    verb = {Outcome.REJECTED: "rejected", Outcome.FAILED: "failed", Outcome.PASSED: "was not measured"}
    return Loser(candidate=trial.candidate.id, reason=f"{verb[trial.outcome]}: {trial.reason}")


def nothing_passed(trials: Sequence[Trial]) -> BuildError:
    """The error for a model of which no candidate can be served."""
    causes = sorted({f"{trial.candidate.id} {excluded(trial).reason}" for trial in trials})
    return BuildError(
        "no candidate passed" if trials else "there was no candidate to try",
        found="\n            ".join(causes) or None,
        expected="at least one candidate that builds, runs and is accurate enough",
        fix="; ".join(_remedies(trials)) or None,
    )


def _remedies(trials: Sequence[Trial]) -> Iterator[str]:
    """What may help, by how the trials ended."""
    outcomes = {trial.outcome for trial in trials}
    if Outcome.REJECTED in outcomes:
        yield "loosen --accuracy-limit if the loss is acceptable"
    if Outcome.FAILED in outcomes:
        yield "read log.txt in the trial's folder"
    if any(TIMED_OUT in trial.reason for trial in trials if trial.outcome is Outcome.FAILED):
        yield "--effort quick or a smaller --max-batch-size measures less; --build-budget 120 allows more"


def _telling(one: Judged, winner: Judged, contest: Contest) -> tuple[object, ...]:
    """Sort key: of the most exact precision, and there first what the winner itself was measured against."""
    exact = exactness(one.trial)
    return exact[0], contest.measured(winner, one) is None, exact


def _gain(one: Judged, other: Judged, contest: Contest, *, than: str | None = None) -> str:
    """How much faster or slower `one` is than `other`, in words: in alternation where they were compared.

    Where two others settle it, the curves of these are told, and that these were not compared.
    """
    than = f" than {other.id}" if than is None else than
    precedent = contest.precedent(one, other)
    if precedent is not None and (precedent.one, precedent.other) == (one, other):
        return f"{_change(precedent.ratio.value)} in alternation{than}"
    told = f"{_change(one.score / other.score if other.score > 0 else 1.0)}{than}"
    if precedent is None:
        return told
    stand_in = f"{precedent.one.id} was {_change(precedent.ratio.value)} than {precedent.other.id}"
    return f"{told} by the curves (this pair was not compared in alternation; there {stand_in})"


def _change(ratio: float) -> str:
    percent = 100 * (ratio - 1)
    return f"{abs(percent):.1f} % {'faster' if percent >= 0 else 'slower'}"


def noise_note(contest: Contest) -> str | None:
    """What disturbed the measurements that were compared, and what that means; None on a calm machine."""
    points = [one.point for one in contest.ranked]
    disturbed = [point for point in points if point.noisy]
    widest = max((point.spread for point in points), default=0.0)
    if not disturbed and widest <= CLOSE:
        return None
    seen = sorted({why for point in disturbed if point.gpu for why in noise_in(point.gpu)})
    taken = max((point.cpu_taken or 0.0 for point in disturbed), default=0.0)
    if taken > DISTURBED:
        seen.append(f"other processes had the processor for up to {100 * taken:.0f} % of the time")
    told = f"the machine was noisy: medians are known to ±{100 * widest:.0f} % at worst"
    if seen:
        told = (
            f"the machine was busy: {', '.join(seen)} while {len(disturbed)} of {len(points)} compared "
            f"points were measured; medians are known to ±{100 * widest:.0f} % at worst"
        )
    again = len(contest.comparisons)
    if again:
        told += f"; {again} pair{'s were' if again > 1 else ' was'} measured again in alternation"
    return (
        f"{told}. The candidate, its threads and instances and the largest batch may come out otherwise on a "
        "quiet machine: accept that, or measure again there with `tritongen build --fresh`"
    )
