"""Replay of a recorded trace: when requests came, what they asked for. CSV with a header, or JSON lines."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tritongen.errors import DataError, InputError

_TIMES = {
    "timestamp": 1.0,
    "timestamp_s": 1.0,
    "timestamp_ms": 1e-3,
    "timestamp_us": 1e-6,
    "timestamp_ns": 1e-9,
}
_FIELDS = ("model", "batch_size", "sample")
_FIX = 'write for example the lines timestamp_ms,model and 12,bert, or {"timestamp_ms": 12, "model": "bert"}'


@dataclass(frozen=True)
class Arrival:
    """One line of a trace."""

    offset_s: float
    """After the first one."""
    model: str | None = None
    batch_size: int | None = None
    sample: int | None = None
    """Which of the model's prepared requests; counted from 0, and round again."""


def read_trace(path: Path) -> tuple[Arrival, ...]:
    """The arrivals of a trace in the order of their times.

    InputError if there is no such file, DataError with the line for what cannot be understood.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"the trace {path} cannot be read", found=str(error), fix="name a CSV or JSON-lines file"
        ) from None
    lines = _json_lines(text) if text.lstrip().startswith("{") else _csv_lines(text)
    found = sorted(
        (_arrival(path, number, fields) for number, fields in lines), key=lambda each: each.offset_s
    )
    if not found:
        raise DataError(f"the trace {path} is empty", expected="a line for each request", fix=_FIX)
    first = found[0].offset_s
    return tuple(Arrival(each.offset_s - first, each.model, each.batch_size, each.sample) for each in found)


def _csv_lines(text: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for number, row in enumerate(csv.DictReader(text.splitlines()), 2):
        yield number, {str(key).strip(): value for key, value in row.items() if value not in ("", None)}


def _json_lines(text: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                fields = json.loads(line)
            except ValueError:
                fields = None
            yield number, fields if isinstance(fields, dict) else {}


def _arrival(path: Path, number: int, fields: Mapping[str, Any]) -> Arrival:
    name = next((each for each in _TIMES if each in fields), None)
    try:
        seconds = float(fields[name]) * _TIMES[name] if name else float("nan")
        size, sample = (None if fields.get(each) is None else int(fields[each]) for each in _FIELDS[1:])
    except (TypeError, ValueError):
        seconds = float("nan")
        size = sample = None
    if (
        not abs(seconds) < float("inf")
        or (size is not None and size < 1)
        or (sample is not None and sample < 0)
    ):
        raise DataError(
            f"line {number} of the trace {path} is none",
            found=", ".join(f"{key}={value}" for key, value in fields.items()) or "no fields",
            expected=f"{' or '.join(_TIMES)}, and perhaps {', '.join(_FIELDS)}",
            fix=_FIX,
        )
    model = fields.get("model")
    return Arrival(seconds, None if model is None else str(model), size, sample)
