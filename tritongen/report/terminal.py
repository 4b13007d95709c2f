"""Progress for a person: a live line on a terminal, plain lines in a log."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from tritongen.runs.events import Event, EventSink

_SIGNS = {
    "finished": "[green]✓[/]",
    "failed": "[red]✗[/]",
    "skipped": "[dim]–[/]",
    "warning": "[yellow]![/]",
    "note": "[cyan]·[/]",
}
_SECONDS_BETWEEN_LINES = 10
_WORDS = {"failed": "failed: ", "warning": "warning: ", "note": "note: "}


@contextmanager
def progress(console: Console) -> Iterator[EventSink]:
    """A sink that shows events on `console`: live where it is a terminal, one line each elsewhere."""
    if console.is_terminal:
        with _live(console) as bar:
            yield _LiveLine(bar)
    else:
        yield _PlainLines(console)


class _LiveLine:
    """What is at work now in one line that moves; what has ended stays above it."""

    def __init__(self, bar: Progress) -> None:
        self._bar = bar
        self._task = bar.add_task("", total=None, visible=False)

    def __call__(self, event: Event) -> None:
        if event.status in ("started", "progress"):
            self._bar.update(
                self._task,
                description=_subject(event) + escape(event.message),
                total=None if event.fraction is None else 1.0,
                completed=event.fraction or 0.0,
                visible=True,
            )
            return
        self._bar.update(self._task, visible=False)
        self._bar.console.print(f"{_SIGNS[event.status]} {_subject(event)}{escape(event.message)}")


class _PlainLines:
    """Each step in one line; what moves within a step only every ten seconds."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._shown = time.monotonic()

    def __call__(self, event: Event) -> None:
        if event.status == "progress" and time.monotonic() - self._shown < _SECONDS_BETWEEN_LINES:
            return
        self._shown = time.monotonic()
        subject = f"{event.subject}: " if event.subject else ""
        text = f"{event.stage:<9} {subject}{_WORDS.get(event.status, '')}{event.message}"
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


def _live(console: Console) -> Progress:
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", table_column=None),
        BarColumn(bar_width=20),
        TimeElapsedColumn(),
        console=console,
        transient=True,
    )


def _subject(event: Event) -> str:
    return f"[bold]{escape(event.subject)}[/]: " if event.subject else ""
