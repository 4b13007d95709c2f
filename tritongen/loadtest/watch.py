"""From the start of a fleet to its end: progress, looks that may end it early, edges of the window."""

from __future__ import annotations

import math
import time
from dataclasses import asdict

from tritongen.errors import RequirementError
from tritongen.loadtest.evidence import late_ms
from tritongen.loadtest.fleet import Fleet
from tritongen.loadtest.live import Live, LiveFigures
from tritongen.loadtest.monitor import Monitor
from tritongen.loadtest.plan import LookPlan, LookPoint
from tritongen.loadtest.record import Measurement, look_result, make_evidence
from tritongen.loadtest.samples import Samples
from tritongen.loadtest.settings import Settings
from tritongen.loadtest.verdict import plain_miss, reach_verdict
from tritongen.runs.events import Event, EventSink
from tritongen.runs.loadtest import LookResult

_TICK_S = 0.5
_GRACE_S = 10.0
"""Beyond schedule and time-out: after that the workers themselves have failed."""


class Watch:
    """One run, from setting the workers off to what they measured."""

    def __init__(
        self, settings: Settings, fleet: Fleet, monitor: Monitor, plan: LookPlan, events: EventSink
    ) -> None:
        self._settings, self._fleet, self._monitor = settings, fleet, monitor
        self._plan, self._events = plan, events
        self._live = Live(fleet.sample_paths(), late_ms(settings.slos))
        self._looks: list[LookResult] = []
        self._waiting = list(plan.points[:-1])
        self._start_ns = 0
        self._told = False

    def run(self) -> Measurement:
        """Wait for the workers or for a look that decides; KeyboardInterrupt ends it early."""
        settings = self._settings
        start_ns = self._start_ns = self._fleet.start()
        window_ns = start_ns + round(settings.effective_warmup_s * 1e9)
        end_ns = start_ns + self._plan.points[-1].offset_ns
        self._monitor.start([window_ns, *(start_ns + point.offset_ns for point in self._plan.points)])
        stopped, alpha, early = False, self._plan.alpha, False
        try:
            decided = self._wait(end_ns + round((settings.timeout_s + _GRACE_S) * 1e9))
            if decided is not None:
                end_ns = start_ns + decided.offset_ns
                alpha, early = self._plan.alpha_of(decided), decided.early
                self._finish_early()
        except KeyboardInterrupt:
            stopped = True
            end_ns = min(end_ns, time.monotonic_ns())
            self._finish_early()
        finally:
            self._monitor.stop()
        # The last answer of a schedule often comes before its end: then the counts are already final.
        after = None if stopped else self._monitor.statistics(end_ns)
        after = after or self._monitor.now()
        return Measurement(
            samples=self._fleet.samples(),
            messages=self._fleet.messages(),
            start_ns=start_ns,
            end_ns=end_ns,
            before=self._monitor.statistics(window_ns),
            after=after,
            stopped=stopped,
            begun_anew=self._monitor.begun_anew,
            alpha=alpha,
            looks=tuple(self._looks),
            gpus=self._monitor.gpus(window_ns, end_ns),
            early=early,
        )

    def _finish_early(self) -> None:
        self._fleet.stop()
        self._fleet.wait(_GRACE_S)

    def _wait(self, last_ns: int) -> LookPoint | None:
        """The look that decided; None when the whole schedule was run."""
        while not self._fleet.wait(_TICK_S):
            now = time.monotonic_ns()
            if now > last_ns:
                raise RequirementError(
                    "the load workers did not finish in time",
                    found=f"busy {self._settings.timeout_s + _GRACE_S:g} s after the end of the schedule",
                    fix="use more --workers or a lower --rate",
                )
            self._show(now)
            if self._waiting and now > self._start_ns + self._waiting[0].offset_ns:
                point = self._waiting[0]
                samples = self._complete(point, now)
                if samples is not None:
                    self._waiting.pop(0)
                    if self._decides(point, samples):
                        return point
        return None

    def _complete(self, point: LookPoint, now: int) -> Samples | None:
        """The requests until this look, once all of them have ended, by answer or by time-out."""
        edge_ns = self._start_ns + point.offset_ns
        if point.scheduled is None:
            # A closed loop writes a request down when it ends: only then is it known to have begun.
            ended = now > edge_ns + round((self._settings.timeout_s + _TICK_S) * 1e9)
            return self._fleet.samples().between(self._start_ns, edge_ns) if ended else None
        samples = self._fleet.samples().between(self._start_ns, edge_ns)
        return samples if len(samples) >= point.scheduled else None

    def _decides(self, point: LookPoint, samples: Samples) -> bool:
        edge_ns = self._start_ns + point.offset_ns
        seen = Measurement(samples, {}, self._start_ns, edge_ns, None, None, stopped=False, early=point.early)
        evidence = make_evidence(self._settings, seen)
        slos, alpha = self._settings.slos, self._plan.alpha_of(point)
        if point.early:
            longest_s = self._plan.points[-1].offset_ns / 1e9 - self._settings.effective_warmup_s
            return plain_miss(evidence, slos, alpha, evidence.seconds / longest_s)
        verdict = reach_verdict(evidence, slos, alpha)
        if verdict.final:
            return True  # the report judges it again, as its last look
        look = look_result(evidence, verdict, alpha)
        self._looks.append(look)
        text = f"look at {look.requests} requests ({look.at_s:.0f} s): not decided yet; {look.reason}"
        self._events(Event("loadtest", "note", text))
        return False

    def _show(self, now: int) -> None:
        """The last seconds in one line, and what is waited for."""
        elapsed = max(0.0, (now - self._start_ns) / 1e9)
        length = self._plan.points[-1].offset_ns / 1e9
        parts = [f"{min(elapsed, length):.0f} of {length:g} s"]
        figures = self._live.look(self._start_ns, now)
        data: dict[str, float | None] = {}
        if figures is not None:
            parts += _in_words(figures)
            finite = math.isfinite(figures.p99_ms)
            data = {**asdict(figures), "p99_ms": figures.p99_ms if finite else None}
        if elapsed > length:
            parts.append(self._awaited(elapsed - length))
        elif waiting := [point for point in self._waiting if not point.early]:
            at_s = waiting[0].offset_ns / 1e9
            parts.append(
                f"may decide at {at_s:.0f} s"
                if elapsed < at_s
                else f"the look at {at_s:.0f} s waits for its last answers"
            )
        fraction = min(1.0, elapsed / length)
        self._events(Event("loadtest", "progress", " · ".join(parts), fraction=fraction, data=data))

    def _awaited(self, since_s: float) -> str:
        """What a run waits for, so long after the end of its schedule; once also as a line that stays."""
        left_s = max(0, math.ceil(self._settings.timeout_s - since_s))
        count = None if self._plan.points[-1].scheduled is None else self._live.pending()
        answers = "the last answers" if count is None else f"{count} answer{'s' * (count != 1)}"
        text = f"waiting for {answers}, at most {left_s} s more"
        if not self._told and since_s > _TICK_S:
            self._told = True
            self._events(Event("loadtest", "note", f"everything is sent; {text} (--timeout)"))
        return text


def _in_words(figures: LiveFigures) -> list[str]:
    finite = math.isfinite(figures.p99_ms)
    return [
        f"{figures.rate:.0f} answers/s",
        f"P99 {figures.p99_ms:.1f} ms" if finite else "P99 beyond all answers",
        f"{figures.failed} errors",
        *([f"{figures.unsent} not sent"] if figures.unsent else []),
        *([f"{figures.late} sent late"] if figures.late else []),
    ]
