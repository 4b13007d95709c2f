"""SIGTERM as Ctrl-C: what was started and written for the time of a command is taken away first."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType

import click

_INTERRUPTED, _TERMINATED = 130, 143


def until_stopped(work: Callable[[], int]) -> int:
    """The exit code of `work`, to which SIGTERM is a KeyboardInterrupt; 143 where that ended it."""
    if threading.current_thread() is not threading.main_thread():
        return work()  # only the main thread is told of signals
    terminated = False

    def terminate(_number: int, _frame: FrameType | None) -> None:
        nonlocal terminated
        terminated = True
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        code = work()
    except KeyboardInterrupt:
        if not terminated:
            raise
        click.echo("stopped", err=True)
        return _TERMINATED
    finally:
        signal.signal(signal.SIGTERM, before)
    return _TERMINATED if terminated and code == _INTERRUPTED else code
