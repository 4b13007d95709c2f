"""How long a build may take: what is left, and whether one more trial fits."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median

TIMED_OUT = "did not end within"
"""How the reason of a trial begins whose time was up."""

_SHORTEST_S = 20.0
"""Nothing is started with less than this left: starting a process and opening a model take their time."""


@dataclass
class Budget:
    """The time that a model's trials may take; without `minutes` it never ends."""

    minutes: float | None = None
    clock: Callable[[], float] = time.monotonic
    _began: float = field(init=False)
    _progressed: bool = field(default=False, init=False)
    _exceeded_s: float | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self._began = self.clock()

    def left_s(self) -> float:
        """Seconds left, infinite without a bound; never negative."""
        if self.minutes is None:
            return math.inf
        return max(0.0, 60 * self.minutes - (self.clock() - self._began))

    def fits(self, earlier_s: Sequence[float]) -> bool:
        """Whether one more trial fits, which takes as long as the earlier ones did (their median)."""
        if self.minutes is None:
            return True
        return self.left_s() >= max(_SHORTEST_S, median(earlier_s) if earlier_s else 0.0)

    def allowed_s(self, earlier_s: Sequence[float]) -> float | None:
        """Seconds that one more trial may take; None: no room.

        Infinite until one new trial has come to its end: repeated runs get on, however small the budget is.
        """
        if not self._progressed:
            return math.inf
        return self.left_s() if self.fits(earlier_s) else None

    def progressed(self) -> None:
        """Something new has come to its end, and will not be repeated by the next run."""
        if not self._progressed and self.left_s() <= 0:
            self._exceeded_s = self.clock() - self._began
        self._progressed = True

    def exceeded(self) -> str | None:
        """The note on a first new trial that took longer than the budget."""
        if self._exceeded_s is None:
            return None
        return (
            f"the build budget of {self.minutes:g} min was exceeded ({self._exceeded_s / 60:.2g} min): "
            "the fallback, or else one new trial in each run, is always tried to its end"
        )

    def not_tried(self, candidates: Sequence[str]) -> str:
        """The note on what did not fit."""
        return (
            f"not tried: {', '.join(candidates)}: the build budget of {self.minutes:g} min ended before; "
            "the same command again goes on with them, --build-budget widens it"
        )
