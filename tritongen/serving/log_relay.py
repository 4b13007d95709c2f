"""Triton's log passed on as it comes, for a foreground server whose output somebody collects."""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from typing_extensions import Self

KEPT_BYTES = 4 << 20
"""Of the beginning, in which the cause of a failed start is looked for."""
_CHUNK_BYTES = 1 << 16
_LAST_WORDS_S = 2.0


class LogRelay:
    """The write end of a pipe that goes on to `stream`; its beginning is kept in the file `kept` as well."""

    def __init__(self, stream: BinaryIO, kept: Path) -> None:
        read_end, write_end = os.pipe()
        self._write_end = os.fdopen(write_end, "wb")
        self._thread = threading.Thread(target=_pass_on, args=(read_end, stream, kept), daemon=True)
        self._thread.start()

    def __enter__(self) -> BinaryIO:
        return self._write_end

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close this process's copy of the write end: what comes is then up to those who inherited it."""
        self._write_end.close()

    def finish(self) -> Self:
        """Wait a moment for the last words of writers that have ended."""
        self._thread.join(_LAST_WORDS_S)
        return self


def _pass_on(read_end: int, stream: BinaryIO, kept: Path) -> None:
    room = KEPT_BYTES
    with os.fdopen(read_end, "rb", buffering=0) as source, kept.open("ab", buffering=0) as beginning:
        while chunk := source.read(_CHUNK_BYTES):
            # A reader of our output that went away must not block Triton, which waits when the pipe is full.
            with contextlib.suppress(OSError, ValueError):
                stream.write(chunk)
                stream.flush()
            if room > 0:
                with contextlib.suppress(OSError):  # a full disk costs the diagnosis only
                    beginning.write(chunk[:room])
                room -= len(chunk)
