"""Where tables go: a terminal as wide as it is, or a file or pipe whose lines are as long as they need."""

from __future__ import annotations

from typing import Any

from rich.console import Console

_AS_LONG_AS_NEEDED = 10_000


def console(*, stderr: bool = False) -> Console:
    """Standard output (or error): wrapped and coloured on a terminal only, never cut or padded elsewhere."""
    terminal = Console(stderr=stderr, highlight=False)
    return (
        terminal if terminal.is_terminal else _Plain(stderr=stderr, highlight=False, width=_AS_LONG_AS_NEEDED)
    )


class _Plain(Console):
    """Without the blanks that fill table cells at the ends of lines."""

    def print(self, *objects: Any, **options: Any) -> None:
        with self.capture() as captured:
            super().print(*objects, **options)
        self.file.write("".join(_stripped(line) for line in captured.get().splitlines(keepends=True)))
        self.file.flush()  # progress is read while it happens


def _stripped(line: str) -> str:
    return line.rstrip() + "\n" * line.endswith("\n")
