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
        *_smaller_batches(running, written),
        *_other_tensors("input", _tensors(running, "input"), _tensors(written, "input")),
        *_other_tensors("output", _tensors(running, "output"), _tensors(written, "output")),
        *_new_inputs(running.input, written.input),
    )


_Tensor = tuple[str, tuple[int, ...]]
"""Type, and shape with the batch axis."""


def _tensors(config: Any, field: str) -> dict[str, _Tensor]:
    batch = (-1,) if config.max_batch_size else ()
    return {one.name: (_type(one), (*batch, *one.dims)) for one in getattr(config, field)}


def _smaller_batches(running: Any, written: Any) -> Iterator[str]:
    """Without a batching server a dynamic first axis has no limit; other shapes are compared as such."""
    before, after = running.max_batch_size, written.max_batch_size
    unlimited = not before and any(list(one.dims[:1]) == [-1] for one in running.input)
    if 0 < after < before or (after and unlimited):
        yield f"max_batch_size is {after} and was {before}: requests with larger batches get errors"


def _other_tensors(kind: str, before: dict[str, _Tensor], after: dict[str, _Tensor]) -> Iterator[str]:
    for name, old in before.items():
        new = after.get(name)
        if new is None:
            yield f"{kind} '{name}' is gone"
        elif not _takes(new, old):
            yield f"{kind} '{name}' is {_text(new)} and was {_text(old)}"


def _takes(new: _Tensor, old: _Tensor) -> bool:
    (new_type, new_shape), (old_type, old_shape) = new, old
    return (new_type, len(new_shape)) == (old_type, len(old_shape)) and all(
        size in (-1, was) for was, size in zip(old_shape, new_shape, strict=True)
    )


def _new_inputs(before: Any, after: Any) -> Iterator[str]:
    known = {tensor.name for tensor in before}
    for new in after:
        if new.name not in known and not new.optional:
            yield f"input '{new.name}' is new, and requests without it get errors"


def _type(tensor: Any) -> str:
    types = type(tensor).DESCRIPTOR.fields_by_name["data_type"].enum_type.values_by_number
    return str(from_triton(types[tensor.data_type].name))


def _text(tensor: _Tensor) -> str:
    return f"{tensor[0]} [{'x'.join(map(str, tensor[1]))}]"


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
