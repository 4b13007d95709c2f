"""Progress events: what a stage says while it works. Renderers decide how it looks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Status = Literal["started", "progress", "finished", "failed", "skipped", "note", "warning"]


@dataclass(frozen=True)
class Event:
    """One step of a stage."""

    stage: str
    """`inspect`, `calibrate`, `trial`, `select`, `write`, `serve`, `loadtest`, …"""
    status: Status
    message: str
    subject: str | None = None
    """What it is about: a model, a candidate."""
    fraction: float | None = None
    """0 … 1 where it is known."""
    data: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {key: value for key, value in asdict(self).items() if value not in (None, {})}


def number(value: float) -> str:
    """Three significant digits, or all digits before the point ("0.0123", "12.3", "1,234")."""
    return f"{value:,.0f}" if abs(value) >= 999.5 else f"{value:.3g}"  # noqa: PLR2004 - from here on .3g says 1e+03


EventSink = Callable[[Event], None]


def discard(_event: Event) -> None:
    """An event sink that shows nothing."""
