"""Where in a run its looks are: requests of the schedule, or seconds, turned into moments. Pure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tritongen.loadtest.looks import plan_looks, plan_times
from tritongen.loadtest.schedule import Schedule
from tritongen.loadtest.settings import Settings


@dataclass(frozen=True)
class LookPoint:
    """One look: what was scheduled until then is what it judges."""

    offset_ns: int
    """After the start of the schedule."""
    scheduled: int | None
    """Requests until then, warm-up included; None in a closed loop, where nobody knows."""


@dataclass(frozen=True)
class LookPlan:
    """The looks of a run, fixed before it starts; the last one is at its end."""

    points: tuple[LookPoint, ...]
    alpha: float
    """That each look may spend, on either side."""


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
        times = plan_times(window_s, least_s, settings.alpha)
        points = [LookPoint(round((warmup_s + at) * 1e9), None) for at in times.at[:-1]]
        return LookPlan((*points, end), times.alpha)
    first = int(np.searchsorted(schedule.offsets_ns, round(warmup_s * 1e9)))
    least = int(np.searchsorted(schedule.offsets_ns, round((warmup_s + least_s) * 1e9))) - first
    looks = plan_looks(len(schedule) - first, least, settings.alpha)
    counts = [first + round(at) for at in looks.at[:-1]]
    edges_ns = schedule.offsets_ns[counts]
    # Where several are due at that very moment, those before it are fewer.
    until = np.searchsorted(schedule.offsets_ns, edges_ns).tolist()
    points = [LookPoint(edge_ns, count) for edge_ns, count in zip(edges_ns.tolist(), until, strict=True)]
    return LookPlan((*points, end), looks.alpha)
