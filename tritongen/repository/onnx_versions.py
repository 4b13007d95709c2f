"""The IR version and opsets of an ONNX file, and setting the IR version down where nothing is lost."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from tritongen.errors import ModelError


def onnx_versions(path: Path) -> tuple[int, dict[str, int]]:
    """IR version and opset by domain ("" is ONNX's own); (0, {}) for files that are not ONNX by name.

    Read from the file's top level alone, passing over the graph: files of any size take no memory.
    ModelError if the file is cut short or no protobuf.
    """
    if path.suffix != ".onnx":
        return 0, {}
    from onnx import OperatorSetIdProto

    ir_version, opsets = 0, {}
    for field, value in _top_level(path):
        if field == _IR_VERSION_FIELD and isinstance(value, int):
            ir_version = value
        elif field == _OPSET_FIELD and isinstance(value, bytes):
            entry = OperatorSetIdProto.FromString(value)
            opsets["" if entry.domain == "ai.onnx" else entry.domain] = entry.version
    return ir_version, opsets


_IR_VERSION_FIELD, _OPSET_FIELD = 1, 8
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def _top_level(path: Path) -> Iterator[tuple[int, int | bytes]]:
    """(field number, value) of a ModelProto's own fields; only opset entries are read, others skipped."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        while stream.tell() < size:
            field, kind = divmod(_varint(stream, path), 8)
            if kind == _VARINT:
                yield field, _varint(stream, path)
                continue
            length = {_FIXED64: 8, _FIXED32: 4}.get(kind, -1)
            if kind == _BYTES:
                length = _varint(stream, path)
            if length < 0 or stream.tell() + length > size:
                raise _not_whole(path)
            if field == _OPSET_FIELD:
                yield field, stream.read(length)
            else:
                stream.seek(length, 1)


def _varint(stream: BinaryIO, path: Path) -> int:
    value = shift = 0
    while True:
        byte = stream.read(1)
        if not byte or shift > 63:  # noqa: PLR2004 a varint has 64 bits at most
            raise _not_whole(path)
        value |= (byte[0] & 0x7F) << shift
        shift += 7
        if byte[0] < 0x80:  # noqa: PLR2004 the high bit says that more follow
            return value


def _not_whole(path: Path) -> ModelError:
    return ModelError(
        f"{path} is not a whole ONNX file",
        found="it is cut short, or something else",
        expected="an ONNX protobuf file",
        fix="copy or build it again",
    )


def load_proto(path: Path) -> Any:
    """The ModelProto without its external data; ModelError if the file is not one."""
    import onnx
    from google.protobuf.message import DecodeError

    try:
        return onnx.load(path, load_external_data=False)
    except (DecodeError, OSError) as error:
        raise ModelError(f"{path} cannot be read as ONNX", found=str(error)) from error


def external_tensors(message: Any) -> Iterator[Any]:
    """Every TensorProto of a model that keeps its values in another file, wherever it hangs."""
    if message.DESCRIPTOR.name == "TensorProto":
        if message.external_data:
            yield message
        return
    for descriptor, value in message.ListFields():
        if descriptor.type == descriptor.TYPE_MESSAGE:
            for child in value if _repeated(value) else (value,):
                yield from external_tensors(child)


def with_external_data_at(path: Path, names: Mapping[str, str]) -> bytes:
    """An ONNX file that looks for its external data under new names."""
    proto = load_proto(path)
    for tensor in external_tensors(proto):
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = names.get(entry.value, entry.value)
    data: bytes = proto.SerializeToString()
    return data


_TYPES = {
    "BFLOAT16": 4,
    "FLOAT8E4M3FN": 9,
    "FLOAT8E4M3FNUZ": 9,
    "FLOAT8E5M2": 9,
    "FLOAT8E5M2FNUZ": 9,
    "UINT4": 10,
    "INT4": 10,
    "FLOAT4E2M1": 11,
    "FLOAT8E8M0": 12,
    "UINT2": 13,
    "INT2": 13,
    "FLOAT6E2M3": 14,
    "FLOAT6E3M2": 14,
}
"""Element type → the IR version that brought it (the comments of onnx.proto)."""

_FIELDS = {
    ("GraphProto", "quantization_annotation"): 5,
    ("GraphProto", "sparse_initializer"): 6,
    ("AttributeProto", "sparse_tensor"): 6,
    ("AttributeProto", "sparse_tensors"): 6,
    ("ModelProto", "training_info"): 7,
    ("ModelProto", "functions"): 8,
    ("TypeProto", "optional_type"): 8,
    ("TypeProto", "sparse_tensor_type"): 8,
    ("FunctionProto", "attribute_proto"): 9,
    ("NodeProto", "overload"): 10,
    ("FunctionProto", "overload"): 10,
    ("ModelProto", "configuration"): 11,
    ("NodeProto", "device_configurations"): 11,
}
"""Fields that change a model's meaning → the IR version that brought them.

Metadata (IR 10) is not among them: a reader that does not know it passes over it.
"""

_BASE = 3
"""Operator sets: every model has them."""


def needed_ir_version(proto: Any) -> int:
    """The smallest IR version whose messages and element types suffice for `proto`.

    The IR version only says what may occur in the file. A file in which nothing newer occurs reads the same
    under the older number, so setting it down to this is lossless.
    """
    inputs = {value.name for value in proto.graph.input}
    hidden = any(tensor.name not in inputs for tensor in proto.graph.initializer)
    return max([_BASE, 4 if hidden else _BASE, *_needs(proto)])


def _needs(message: Any) -> Iterator[int]:
    kind = message.DESCRIPTOR.name
    numbers = _type_numbers()
    for descriptor, value in message.ListFields():
        yield _FIELDS.get((kind, descriptor.name), _BASE)
        if (kind, descriptor.name) in {("TensorProto", "data_type"), ("Tensor", "elem_type")}:
            yield numbers.get(value, _BASE)
        elif descriptor.type == descriptor.TYPE_MESSAGE:
            for child in value if _repeated(value) else (value,):
                yield from _needs(child)


def _repeated(value: Any) -> bool:
    return not hasattr(value, "ListFields")


@functools.cache
def _type_numbers() -> dict[int, int]:
    """ONNX's number of each element type of `_TYPES` that the installed onnx knows → IR version."""
    from onnx import TensorProto

    known = dict(TensorProto.DataType.items())
    return {known[name]: ir_version for name, ir_version in _TYPES.items() if name in known}
