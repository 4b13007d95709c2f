"""The journal of a run: every progress event as one JSON line, beside whatever a person sees."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path

from tritongen.runs.events import Event, EventSink


@contextmanager
def journal(path: Path, shown: EventSink) -> Iterator[EventSink]:
    """A sink that appends each event, with its UTC time, to `path` and hands it on to `shown`."""
    with path.open("a", encoding="utf-8", buffering=1) as stream:

        def record(event: Event) -> None:
            now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
            stream.write(json.dumps({"time": now, **event.to_json()}) + "\n")
            shown(event)

        yield record
