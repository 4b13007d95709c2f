"""Whether a server runs a model with the settings of its config.pbtxt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_COMPLETED = ("dynamic_batching", "optimization", "instance_group")
"""Blocks that the server completes with its own defaults: only what the file says is compared."""


def changed_fields(written: Any, in_force: Mapping[str, Any]) -> tuple[str, ...]:
    """Fields of the parsed config.pbtxt that the server runs otherwise, by name.

    They differ when the file has changed since it was loaded, or when a client loaded the model with a
    configuration of its own: that one stays until the model's files change or it is unloaded.
    """
    from google.protobuf import json_format

    running = json_format.ParseDict(dict(in_force), type(written)(), ignore_unknown_fields=True)
    return tuple(
        field.name
        for field, value in written.ListFields()
        if not _as_written(value, getattr(running, field.name), completed=field.name in _COMPLETED)
    )


def _as_written(written: Any, running: Any, *, completed: bool) -> bool:
    if not completed:
        return bool(written == running)
    if hasattr(written, "ListFields"):
        return all(getattr(running, field.name) == value for field, value in written.ListFields())
    return len(written) == len(running) and all(
        _as_written(one, other, completed=True) for one, other in zip(written, running, strict=True)
    )
