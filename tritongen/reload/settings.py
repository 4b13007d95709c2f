"""What a server runs against what a config.pbtxt says: settings that differ, and what clients lose."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tritongen.tensors import from_triton

_COMPLETED = ("dynamic_batching", "optimization", "instance_group")
"""Blocks that the server completes with its own defaults: only what the file says is compared."""


def changed_fields(written: Any, in_force: Mapping[str, Any]) -> tuple[str, ...]:
    """Fields of the parsed config.pbtxt that the server runs otherwise, by name.

    They differ when the file has changed since it was loaded, or when a client loaded the model with a
    configuration of its own: that one stays until the model's files change or it is unloaded.
    """
    running = _parsed(in_force, type(written))
    return tuple(
        field.name
        for field, value in written.ListFields()
        if not _as_written(value, getattr(running, field.name), completed=field.name in _COMPLETED)
    )


def lost_to_clients(written: Any, in_force: Mapping[str, Any]) -> tuple[str, ...]:
    """What clients of the model as it runs send or read that the parsed config.pbtxt has no more."""
    running = _parsed(in_force, type(written))
    return (
        *_smaller_batches(running.max_batch_size, written.max_batch_size),
        *_other_tensors("input", running.input, written.input),
        *_other_tensors("output", running.output, written.output),
        *_new_inputs(running.input, written.input),
    )


def _smaller_batches(before: int, after: int) -> Iterator[str]:
    if after < before:
        larger = "requests with larger batches get" if after else "requests with a batch axis may get"
        yield f"max_batch_size is {after} and was {before}: {larger} errors"


def _other_tensors(kind: str, before: Any, after: Any) -> Iterator[str]:
    known = {tensor.name: tensor for tensor in after}
    for old in before:
        new = known.get(old.name)
        if new is None:
            yield f"{kind} '{old.name}' is gone"
        elif (new.data_type, len(new.dims)) != (old.data_type, len(old.dims)) or any(
            size not in (-1, was) for was, size in zip(old.dims, new.dims, strict=True)
        ):
            yield f"{kind} '{old.name}' is {_text(new)} and was {_text(old)}"


def _new_inputs(before: Any, after: Any) -> Iterator[str]:
    known = {tensor.name for tensor in before}
    for new in after:
        if new.name not in known and not new.optional:
            yield f"input '{new.name}' is new, and requests without it get errors"


def _text(tensor: Any) -> str:
    types = type(tensor).DESCRIPTOR.fields_by_name["data_type"].enum_type.values_by_number
    sizes = "x".join(str(size) for size in tensor.dims)
    return f"{from_triton(types[tensor.data_type].name)} [{sizes}]"


def _parsed(in_force: Mapping[str, Any], kind: type[Any]) -> Any:
    from google.protobuf import json_format

    return json_format.ParseDict(dict(in_force), kind(), ignore_unknown_fields=True)


def _as_written(written: Any, running: Any, *, completed: bool) -> bool:
    if not completed:
        return bool(written == running)
    if hasattr(written, "ListFields"):
        return all(getattr(running, field.name) == value for field, value in written.ListFields())
    return len(written) == len(running) and all(
        _as_written(one, other, completed=True) for one, other in zip(written, running, strict=True)
    )
