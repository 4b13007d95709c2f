"""Where in a run its looks are: requests of the schedule, or seconds, turned into moments. Pure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tritongen.loadtest.looks import EARLY_PART, early_times, plan_looks, plan_times
from tritongen.loadtest.schedule import Schedule
from tritongen.loadtest.settings import Settings
from tritongen.loadtest.statistics import FEWEST_TO_FAIL, FIRST_LOOK, fewest_to_pass
from tritongen.slo import Slo

_MORE = 1.1
"""As many requests are asked for as a PASS takes, and some, since arrivals swing."""


@dataclass(frozen=True)
class LookPoint:
    """One look: what was scheduled until then is what it judges."""

    offset_ns: int
    """After the start of the schedule."""
    scheduled: int | None
    """Requests until then, warm-up included; None in a closed loop, where nobody knows."""
    early: bool = False
    """It may find a plain miss, and decides nothing else."""


@dataclass(frozen=True)
class LookPlan:
    """The looks of a run, fixed before it starts; the last one is at its end."""

    points: tuple[LookPoint, ...]
    alpha: float
    """That each look may spend, on either side."""
    early_alpha: float = 0.0
    """That each early one may spend."""

    def alpha_of(self, point: LookPoint) -> float:
        """What this look may spend."""
        return self.early_alpha if point.early else self.alpha


def make_plan(settings: Settings, schedule: Schedule | None) -> LookPlan:
    """One look at the end, or several from the shortest window on if the settings have one."""
    end_ns = round(settings.duration_s * 1e9)
    warmup_s = settings.effective_warmup_s
    end = LookPoint(end_ns, None if schedule is None else len(schedule))
    varies = settings.rate_shape is not None or settings.trace is not None  # the whole of it is the test
    if settings.min_duration_s is None or not settings.slos or varies:
        return LookPlan((end,), settings.alpha)
    window_s = settings.duration_s - warmup_s
    least_s = min(settings.min_duration_s, window_s)
    if schedule is None:
        # No early looks: a closed loop that gets faster sends more, and may outweigh any miss.
        times = plan_times(window_s, least_s, settings.alpha)
        points = [LookPoint(round((warmup_s + at) * 1e9), None) for at in times.at[:-1]]
        return LookPlan((*points, end), times.alpha)
    first = int(np.searchsorted(schedule.offsets_ns, round(warmup_s * 1e9)))
    least = int(np.searchsorted(schedule.offsets_ns, round((warmup_s + least_s) * 1e9))) - first
    looks = plan_looks(len(schedule) - first, least, settings.alpha * (1 - EARLY_PART))
    counts = [first + round(at) for at in looks.at[:-1]]
    points = [_at(edge_ns, schedule) for edge_ns in schedule.offsets_ns[counts].tolist()]
    return _with_early([*points, end], looks.alpha, settings, schedule)


def _at(offset_ns: int, schedule: Schedule, *, early: bool = False) -> LookPoint:
    """A look at this moment. Where several are due at that very moment, those before it are fewer."""
    return LookPoint(offset_ns, int(np.searchsorted(schedule.offsets_ns, offset_ns)), early)


def _with_early(points: list[LookPoint], alpha: float, settings: Settings, schedule: Schedule) -> LookPlan:
    """The plan, with early looks where they have enough requests to fail by."""
    warmup_ns = round(settings.effective_warmup_s * 1e9)
    first_s = (points[0].offset_ns - warmup_ns) / 1e9
    edges_ns = [warmup_ns + round(at * 1e9) for at in early_times(first_s)]
    first = int(np.searchsorted(schedule.offsets_ns, warmup_ns))
    counts = np.searchsorted(schedule.offsets_ns, edges_ns) - first
    kept = [edge for edge, count in zip(edges_ns, counts, strict=True) if count >= FEWEST_TO_FAIL]
    early = [_at(edge_ns, schedule, early=True) for edge_ns in kept]
    return LookPlan((*early, *points), alpha, settings.alpha * EARLY_PART / max(1, len(early)))


def too_short(settings: Settings, plan: LookPlan, schedule: Schedule | None) -> str | None:
    """Why this run cannot end in PASS, however good the server, and how long one that can takes."""
    if schedule is None or not settings.slos:
        return None
    warmup_s = settings.effective_warmup_s
    requests = len(schedule) - int(np.searchsorted(schedule.offsets_ns, round(warmup_s * 1e9)))
    needed = max(_fewest_to_pass(slo, plan.alpha / len(settings.slos)) for slo in settings.slos)
    if requests >= needed:
        return None
    window_s = settings.duration_s - warmup_s
    longer = "a longer trace"
    if settings.trace is None:
        flag = "--duration" if settings.min_duration_s is None else "--max-duration"
        longer = f"{flag} {settings.duration_with(needed * _MORE / max(requests, 1) * window_s)}s"
    return (
        f"this run cannot end in PASS, only show a miss: a PASS takes at least {needed} requests, and "
        f"{requests} are sent in the {window_s:g} s that are measured; it takes {longer}"
    )


def _fewest_to_pass(slo: Slo, alpha: float) -> int:
    if slo.percentile is not None:
        return fewest_to_pass(1 - slo.percentile / 100, alpha)
    return fewest_to_pass(slo.limit, alpha) if slo.metric == "error_rate" and slo.limit > 0 else FIRST_LOOK
