"""Findings → outcome, by one published table of precedence. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np

from tritongen.errors import ExitCode
from tritongen.loadtest import statistics
from tritongen.loadtest.correlation import above_headroom
from tritongen.loadtest.evidence import Evidence, growing_backlog, late_sends, lowest_limit_ms, out_of_reach
from tritongen.loadtest.objectives import few_bursts, judge_objective, missed_throughout
from tritongen.loadtest.statistics import ALPHA
from tritongen.runs.loadtest import LoadOutcome, Objective
from tritongen.slo import Slo

__all__ = [
    "EXIT_CODES",
    "TRUTH_TABLE",
    "Evidence",
    "Finding",
    "Verdict",
    "decide",
    "judge_objective",
    "plain_miss",
    "reach_verdict",
]


class Finding(Enum):
    """One thing that may be true of a run; several may be at once."""

    SERVER_GONE = "the server or the model stopped taking requests"
    OUT_OF_REACH = "the sender was late, but most answers missed a limit even from their real send"
    CLIENT_LIMITED = "the sender was late: what was offered is not what was asked for"
    UNANSWERED = "not one request was answered"
    MISSED = "an objective is missed"
    OVERLOADED = "the backlog of an open loop grew"
    STOPPED = "stopped by the user"
    UNDECIDED = "an objective is undecided"
    NOT_SETTLED = "latencies had not settled when the warm-up ended"
    DRIFTING = "latencies drift over the whole run"


TRUTH_TABLE: tuple[tuple[Finding, LoadOutcome], ...] = (
    (Finding.SERVER_GONE, LoadOutcome.ERROR),
    (Finding.OUT_OF_REACH, LoadOutcome.FAIL),
    (Finding.CLIENT_LIMITED, LoadOutcome.INVALID),
    (Finding.UNANSWERED, LoadOutcome.ERROR),
    (Finding.MISSED, LoadOutcome.FAIL),
    (Finding.OVERLOADED, LoadOutcome.FAIL),
    (Finding.STOPPED, LoadOutcome.INVALID),
    (Finding.UNDECIDED, LoadOutcome.INVALID),
    (Finding.NOT_SETTLED, LoadOutcome.INVALID),
    (Finding.DRIFTING, LoadOutcome.INVALID),
)
"""From top to bottom: the first finding that is there decides; if none is, it is a PASS."""

_WITHOUT_OBJECTIVES = (Finding.SERVER_GONE, Finding.CLIENT_LIMITED, Finding.UNANSWERED, Finding.STOPPED)
"""All that can go wrong where nothing is to be judged; the other findings are notes then."""
_ALONE = (Finding.OUT_OF_REACH, Finding.CLIENT_LIMITED)
"""What a late sender leaves to say; other findings may be its own doing."""

EXIT_CODES = {
    LoadOutcome.PASS: ExitCode.OK,
    LoadOutcome.MEASURED: ExitCode.OK,
    LoadOutcome.FAIL: ExitCode.MISSED,
    LoadOutcome.INVALID: ExitCode.UNDECIDED,
    LoadOutcome.ERROR: ExitCode.NOT_READY,
}


@dataclass(frozen=True)
class Verdict:
    """The outcome and the reasons for it, the decisive one first."""

    outcome: LoadOutcome
    reasons: tuple[str, ...]
    objectives: tuple[Objective, ...]
    notes: tuple[str, ...] = ()
    decisive: Finding | None = None
    """None: nothing stands against a PASS."""

    @property
    def final(self) -> bool:
        """Whether going on would not change it: everything but what more requests may still settle."""
        return self.decisive not in (Finding.UNDECIDED, Finding.NOT_SETTLED, Finding.DRIFTING)


def decide(findings: Mapping[Finding, Sequence[str]]) -> tuple[LoadOutcome, Finding | None]:
    """The outcome by the truth table, and the finding that decided."""
    for finding, outcome in TRUTH_TABLE:
        if finding in findings:
            return outcome, finding
    return LoadOutcome.PASS, None


def reach_verdict(evidence: Evidence, slos: Sequence[Slo], alpha: float = ALPHA) -> Verdict:
    """Judge every objective, collect the findings and apply the truth table.

    The objectives share alpha, so that it holds for the verdict, however many there are.
    """
    share = alpha / max(1, len(slos))
    objectives = tuple(judge_objective(slo, evidence, share) for slo in slos)
    if evidence.early:
        objectives = tuple(map(_not_yet_passed, objectives))
    findings = find(evidence, slos, objectives, share)
    if not slos:
        return _without_objectives(findings)
    outcome, decisive = decide(findings)
    if decisive is None:
        caveats = tuple(text for slo in slos if (text := few_bursts(slo, evidence)))
        return Verdict(outcome, tuple(map(_sentence, objectives)), objectives, caveats)
    # All that leads to this outcome from here on down, but not what a higher row has overruled.
    rows = [finding for finding, _ in TRUTH_TABLE]
    group = [f for f, result in TRUTH_TABLE[rows.index(decisive) :] if result is outcome and f in findings]
    reasons = group[:1] if decisive in _ALONE else group
    told = tuple(text for finding in reasons for text in findings[finding])
    lateness = findings.get(Finding.CLIENT_LIMITED, ()) if decisive is Finding.OUT_OF_REACH else ()
    return Verdict(outcome, told, objectives, tuple(lateness), decisive)


def plain_miss(evidence: Evidence, slos: Sequence[Slo], alpha: float, part: float) -> bool:
    """Whether an early window, `part` of the longest one, shows that an objective is missed.

    More than a FAIL is asked for: most requests miss all the time, so many that no PASS can come any more.
    """
    verdict = reach_verdict(evidence, slos, alpha)
    return verdict.decisive in (Finding.OUT_OF_REACH, Finding.MISSED) and any(
        judged.outcome == "fail" and missed_throughout(slo, evidence, part)
        for slo, judged in zip(slos, verdict.objectives, strict=True)
    )


def _without_objectives(findings: Mapping[Finding, Sequence[str]]) -> Verdict:
    broken = {finding: findings[finding] for finding in _WITHOUT_OBJECTIVES if finding in findings}
    notes = tuple(text for finding, texts in findings.items() if finding not in broken for text in texts)
    outcome, decisive = decide(broken)
    if decisive is None:
        reason = "no objective was set, so there is nothing to judge"
        return Verdict(LoadOutcome.MEASURED, (reason,), (), notes)
    return Verdict(outcome, tuple(broken[decisive]), (), notes, decisive)


def find(
    evidence: Evidence, slos: Sequence[Slo], objectives: Sequence[Objective], alpha: float = ALPHA
) -> dict[Finding, list[str]]:
    """Everything that stands against a PASS, each with its sentences."""
    late, overload = late_sends(evidence, slos), growing_backlog(evidence)
    found: dict[Finding, list[str]] = {
        Finding.SERVER_GONE: [f"the server stopped answering: {evidence.server_gone}"]
        if evidence.server_gone
        else [],
        Finding.OUT_OF_REACH: out_of_reach(evidence, slos, alpha) if late else [],
        Finding.CLIENT_LIMITED: [late] if late else [],
        Finding.UNANSWERED: ["not one request was answered"] if evidence.unanswered else [],
        Finding.MISSED: [_sentence(each) for each in objectives if each.outcome == "fail"],
        Finding.OVERLOADED: [overload] if overload else [],
        Finding.STOPPED: ["stopped before its time"] if evidence.stopped else [],
        Finding.UNDECIDED: [_sentence(each) for each in objectives if each.outcome == "undecided"],
        Finding.NOT_SETTLED: []
        if evidence.warm_up.settled
        else [
            "latencies had not settled when the warm-up ended (MSER-5); give a longer --warmup and --duration"
        ],
        Finding.DRIFTING: ["latencies drift over the whole run, so no one figure describes it; run longer"]
        if _drifts(evidence, slos)
        else [],
    }
    return {finding: texts for finding, texts in found.items() if texts}


def _drifts(evidence: Evidence, slos: Sequence[Slo]) -> bool:
    values = np.minimum(evidence.samples.response_ms, evidence.timeout_ms)
    limit = lowest_limit_ms(slos)
    swings = values if limit is None else above_headroom(values, limit)
    return len(values) >= statistics.FIRST_LOOK and statistics.drifts(swings)


def _not_yet_passed(objective: Objective) -> Objective:
    if objective.outcome != "pass":
        return objective
    reason = f"{objective.reason}; too early for a PASS"
    return objective.model_copy(update={"outcome": "undecided", "reason": reason})


def _sentence(objective: Objective) -> str:
    return f"{objective.slo}: {objective.reason}"
