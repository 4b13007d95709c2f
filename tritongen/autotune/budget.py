"""How long a build may take: what is left, and whether one more trial fits."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median

_SHORTEST_S = 20.0
"""Nothing is started with less than this left: starting a process and opening a model take their time."""


@dataclass
class Budget:
    """The time that a model's trials may take; without `minutes` it never ends."""

    minutes: float | None = None
    clock: Callable[[], float] = time.monotonic
    _began: float = field(init=False)

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

    def not_tried(self, candidates: Sequence[str]) -> str:
        """The note on what did not fit."""
        return (
            f"not tried: {', '.join(candidates)}: the build budget of {self.minutes:g} min ended before; "
            "the same command again goes on with them, --build-budget widens it"
        )
