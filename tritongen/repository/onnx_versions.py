"""The IR version and opsets of an ONNX file, and setting the IR version down where nothing is lost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tritongen.errors import ModelError


def onnx_versions(path: Path) -> tuple[int, dict[str, int]]:
    """IR version and opset by domain ("" is ONNX's own); (0, {}) for files that are not ONNX."""
    if path.suffix != ".onnx":
        return 0, {}
    proto = load_proto(path)
    return proto.ir_version, opsets_of(proto)


def load_proto(path: Path) -> Any:
    """The ModelProto without its external data; ModelError if the file is not one."""
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        return onnx.load(path, load_external_data=False)
    except (DecodeError, OSError) as error:
        raise ModelError(f"{path} cannot be read as ONNX", found=str(error)) from error


def opsets_of(proto: Any) -> dict[str, int]:
    """Opset version by domain, with ONNX's own domain as ""."""
    return {"" if entry.domain == "ai.onnx" else entry.domain: entry.version for entry in proto.opset_import}
