"""What the sender needs of a transport: start a ready-made request, and report how it ended."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

Finish = Callable[[int, int, str], None]
"""finish(row, status, detail): called once per request, never from inside `send`, never after `abandon`."""


class Transport(Protocol):
    """Carries ready-made requests; knows nothing of schedules or statistics."""

    async def open(self, connections: int) -> None:
        """Prepare `connections` connections where the transport has them; failures show when sending."""
        ...

    def send(self, row: int, request: int) -> None:
        """Send prepared request `request` now; its end is reported under the number `row`."""
        ...

    def abandon(self, row: int) -> None:
        """Give up on a request that is in flight; nothing more is reported of it."""
        ...

    def close(self) -> None:
        """Drop every connection."""
        ...
