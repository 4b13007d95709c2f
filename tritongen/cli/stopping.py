"""SIGTERM and SIGHUP as Ctrl-C: what a command started and wrote for its own time goes first."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType

import click

INTERRUPTED = 130
"""The exit code after Ctrl-C, as shells expect it."""
_SIGNALS = (signal.SIGTERM, signal.SIGHUP)


class _StoppedError(KeyboardInterrupt):
    """A KeyboardInterrupt under another name.

    Once a plain one has passed through an `exec`, as that behind a dataclass while modules are imported,
    `python -m` ends itself with SIGINT, whatever the exit code.
    """


def until_stopped(work: Callable[[], int]) -> int:
    """The exit code of `work`, to which SIGTERM and SIGHUP are a KeyboardInterrupt; 143 or 129 after one.

    One that is ignored (`nohup`) stays so.
    """
    if threading.current_thread() is not threading.main_thread():
        return work()  # only the main thread is told of signals
    received: list[int] = []

    def stop(number: int, _frame: FrameType | None) -> None:
        if number != signal.SIGINT:
            received.append(number)
        raise _StoppedError

    heeded = [
        number for number in (signal.SIGINT, *_SIGNALS) if signal.getsignal(number) is not signal.SIG_IGN
    ]
    before = {number: signal.signal(number, stop) for number in heeded}
    try:
        code = work()
    except KeyboardInterrupt:
        if not received:
            raise
        click.echo("stopped", err=True)
        code = INTERRUPTED
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return 128 + received[0] if received and code == INTERRUPTED else code
