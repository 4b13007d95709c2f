"""Reading an ONNX file safely: what it is if it is not one, and whether its external data are all there."""

from __future__ import annotations

import math
import stat
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path, PurePosixPath, PureWindowsPath

import onnx
from google.protobuf.message import DecodeError
from onnx import GraphProto, ModelProto, NodeProto, TensorProto

from tritongen.errors import ModelError

_PROTOBUF_LIMIT_BYTES = 2**31 - 1

_T = TensorProto
_BITS: dict[int, int] = {
    _T.FLOAT: 32, _T.UINT8: 8, _T.INT8: 8, _T.UINT16: 16, _T.INT16: 16, _T.INT32: 32, _T.INT64: 64,
    _T.BOOL: 8, _T.FLOAT16: 16, _T.DOUBLE: 64, _T.UINT32: 32, _T.UINT64: 64, _T.COMPLEX64: 64,
    _T.COMPLEX128: 128, _T.BFLOAT16: 16, _T.FLOAT8E4M3FN: 8, _T.FLOAT8E4M3FNUZ: 8, _T.FLOAT8E5M2: 8,
    _T.FLOAT8E5M2FNUZ: 8, _T.UINT4: 4, _T.INT4: 4,
}  # fmt: skip
"""Bits per element; types that are not listed are not checked for their length."""

_SIGNATURES: tuple[tuple[int, bytes, str, str], ...] = (
    (0, b"version https://git-lfs", "a Git LFS pointer, not the model itself", "fetch it: git lfs pull"),
    (
        0,
        b"PK\x03\x04",
        "a zip archive (a PyTorch checkpoint?)",
        "unpack it, or export it with torch.onnx.export",
    ),
    (0, b"\x1f\x8b", "gzip data", "unpack it first: gunzip FILE"),
    (0, b"\x89HDF", "an HDF5 file (a Keras model?)", "convert it: python -m tf2onnx.convert"),
    (4, b"ORTM", "an ONNX Runtime .ort file", "give the .onnx file that it was made from"),
    (4, b"TFL3", "a TensorFlow Lite model", "convert it: python -m tf2onnx.convert --tflite FILE"),
    (0, b"ftrt", "a TensorRT plan", "give the .onnx file that it was built from"),
)


def read_model(path: Path) -> ModelProto:
    """The model at `path` without its external data; ModelError if the file is missing or is not ONNX."""
    _check_is_file(path)
    with path.open("rb") as stream:
        head = stream.read(4096)
    try:
        model = onnx.load(str(path), format="protobuf", load_external_data=False)
    except DecodeError as error:
        found, fix = _recognise(head)
        raise _not_onnx(path, found, fix) from error
    if not model.HasField("graph") or not (model.ir_version or model.opset_import):
        raise _not_onnx(path, *_recognise(head))
    _check_text(model, path)
    return model


def _check_text(model: ModelProto, path: Path) -> None:
    """ModelError if a name is not UTF-8: protobuf then gives bytes where everybody expects text."""
    if not all(isinstance(text, str) for text in _texts(model)):
        raise ModelError(
            f"{path} is damaged: it holds a name that is not text",
            expected="names in UTF-8",
            fix="copy, download or export the file again",
        )


def _texts(model: ModelProto) -> Iterator[object]:
    for node, _ in walk_nodes(model):
        yield from (node.name, node.op_type, node.domain, *node.input, *node.output)
        yield from (attribute.name for attribute in node.attribute)
    for tensor in walk_tensors(model):
        yield tensor.name
        yield from (text for entry in tensor.external_data for text in (entry.key, entry.value))
    for graph in walk_graphs(model.graph):
        for value in (*graph.input, *graph.output):
            yield value.name
            yield from (dim.dim_param for dim in value.type.tensor_type.shape.dim)
    yield from (entry.domain for entry in model.opset_import)
    yield from (text for function in model.functions for text in (function.name, function.domain))


def _check_is_file(path: Path) -> None:
    try:
        if path.is_dir():
            raise _is_a_folder(path)
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise ModelError(f"{path} is not a regular file", expected="an .onnx file")
        size = status.st_size
        path.open("rb").close()
    except FileNotFoundError:
        raise ModelError(f"there is no file {path}", expected="an .onnx file", fix="check the path") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise ModelError(
            f"{path} cannot be read",
            found=getattr(error, "strerror", None) or str(error),
            expected="an .onnx file",
            fix="check its permissions" if isinstance(error, PermissionError) else "name another one",
        ) from error
    if size > _PROTOBUF_LIMIT_BYTES:
        raise ModelError(
            f"{path} is larger than a protobuf file can be",
            found=f"{size} bytes in one file",
            expected=f"at most {_PROTOBUF_LIMIT_BYTES} bytes, larger weights beside it",
            fix="save it with external data: onnx.save(model, path, save_as_external_data=True)",
        )


def _is_a_folder(path: Path) -> ModelError:
    candidates = sorted(child.name for child in path.glob("*.onnx"))
    return ModelError(
        f"{path} is a folder, not an ONNX file",
        found=f"a folder with {', '.join(candidates[:5])}" if candidates else "a folder without .onnx files",
        expected="an .onnx file",
        fix=f"give the file: {path / candidates[0]}" if candidates else None,
    )


def _not_onnx(path: Path, found: str, fix: str) -> ModelError:
    return ModelError(f"{path} is not an ONNX model", found=found, expected="an ONNX protobuf", fix=fix)


def _recognise(head: bytes) -> tuple[str, str]:
    """What a file that is not ONNX seems to be, and what to do, from its first bytes."""
    if not head:
        return "an empty file", "copy or export it again"
    for offset, signature, found, fix in _SIGNATURES:
        if head[offset:].startswith(signature):
            return found, fix
    text = head[: head.rfind(b"\n") + 1] or head  # a cut in the middle of a character is no sign of binary
    if b"\0" not in text and _is_text(text):
        first = text.decode().strip().splitlines()[:1]
        return (
            f"a text file that begins with {first[0][:60]!r}" if first else "blank text",
            "give the .onnx file",
        )
    return "data that end too early or are damaged", "copy, download or export the file again"


def _is_text(data: bytes) -> bool:
    try:
        return all(char.isprintable() or char in "\t\r\n\f" for char in data.decode())
    except UnicodeDecodeError:
        return False


def walk_graphs(graph: GraphProto) -> Iterator[GraphProto]:
    """The graph and all graphs inside its nodes' attributes (If, Loop, Scan), outermost first."""
    yield graph
    yield from _inner_graphs(graph.node)


def _inner_graphs(nodes: Iterable[NodeProto]) -> Iterator[GraphProto]:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from walk_graphs(attribute.g)
            for graph in attribute.graphs:
                yield from walk_graphs(graph)


def walk_nodes(model: ModelProto) -> Iterator[tuple[NodeProto, dict[str, int]]]:
    """Every node, those of subgraphs and of local functions included, with the opsets it is read by."""
    opsets = opset_versions(model.opset_import)
    for graph in walk_graphs(model.graph):
        for node in graph.node:
            yield node, opsets
    for function in model.functions:
        inner = opset_versions(function.opset_import)
        for node in function.node:
            yield node, inner
        for graph in _inner_graphs(function.node):
            for node in graph.node:
                yield node, inner


def opset_versions(imports: Iterable[onnx.OperatorSetIdProto]) -> dict[str, int]:
    """Opset version by domain; "ai.onnx" is written as ""; a file without any means opset 1."""
    found = {"" if entry.domain == "ai.onnx" else entry.domain: entry.version for entry in imports}
    return found or {"": 1}


def walk_tensors(model: ModelProto, *, sparse: bool = True) -> Iterator[TensorProto]:
    """Every stored tensor: (sparse) initializers and tensors in attributes, everywhere in the model."""
    inside_functions = (graph for function in model.functions for graph in _inner_graphs(function.node))
    for graph in chain(walk_graphs(model.graph), inside_functions):
        yield from graph.initializer
        if sparse:
            yield from (entry.values for entry in graph.sparse_initializer)
    for node, _ in walk_nodes(model):
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors


def elements(tensor: TensorProto) -> int:
    """How many elements the tensor has, from its dims."""
    return math.prod(tensor.dims)


def size_bytes(tensor: TensorProto) -> int | None:
    """How many bytes the tensor's raw data take; None for types of unknown width."""
    bits = _BITS.get(tensor.data_type)
    return None if bits is None else -(-elements(tensor) * bits // 8)


def external_files(model: ModelProto, path: Path) -> tuple[str, ...]:
    """External data files relative to the model's folder; ModelError if one is missing, short or outside."""
    names: dict[str, int] = {}
    for tensor in walk_tensors(model):
        if tensor.data_location != TensorProto.EXTERNAL:
            _check_inline(tensor, path)
            continue
        entries = {entry.key: entry.value for entry in tensor.external_data}
        name = entries.get("location", "")
        if name not in names:
            names[name] = _external_size(name, tensor.name, path)
        _check_extent(tensor, entries, path.parent / name, names[name])
    return tuple(sorted(names))


def _external_size(name: str, tensor: str, path: Path) -> int:
    """Size in bytes of an external data file that may be read; ModelError otherwise."""
    posix, windows = PurePosixPath(name), PureWindowsPath(name)
    allowed = (path.parent.resolve(), path.resolve().parent)  # the second: a link to a model in a cache
    target = path.parent / name
    wrong = not name or "\0" in name or posix.is_absolute() or windows.is_absolute() or ".." in posix.parts
    if wrong or not any(target.resolve().is_relative_to(folder) for folder in allowed):
        raise ModelError(
            f"{path} keeps weights outside its own folder, which ONNX does not allow",
            found=f"tensor '{tensor}' in {name!r}",
            expected=f"a file inside {path.parent}",
            fix="put the data beside the model: onnx.save_model(..., save_as_external_data=True)",
        )
    if not target.is_file():
        raise ModelError(
            f"{path} keeps its weights in a file that is missing: {name}",
            found="a folder" if target.is_dir() else "no such file",
            expected=f"{target} (tensor '{tensor}')",
            fix=f"copy {name} into {path.parent}",
        )
    return target.stat().st_size


def _check_extent(tensor: TensorProto, entries: dict[str, str], file: Path, available: int) -> None:
    try:
        offset = int(entries.get("offset", "0"))
        length = int(entries["length"]) if "length" in entries else None
    except ValueError as error:
        raise _bad_extent(tensor, file, f"offset and length are not numbers: {entries}") from error
    needed = size_bytes(tensor)
    if offset < 0 or (length is not None and length < 0):
        raise _bad_extent(tensor, file, f"offset {offset}, length {length}")
    if needed is not None and length is not None and length != needed:
        raise _bad_extent(tensor, file, f"{length} bytes for a tensor that takes {needed}")
    end = offset + (length if length is not None else needed or 0)
    if end > available:
        raise ModelError(
            f"{file.name} is too short: weights of the model are cut off",
            found=f"{available} bytes in {file}",
            expected=f"at least {end} (tensor '{tensor.name}')",
            fix=f"copy {file.name} again",
        )


def _bad_extent(tensor: TensorProto, file: Path, found: str) -> ModelError:
    return ModelError(
        f"tensor '{tensor.name}' is described wrongly in its external data ({file.name})",
        found=found,
        fix="save the model again with onnx.save_model(..., save_as_external_data=True)",
    )


def _check_inline(tensor: TensorProto, path: Path) -> None:
    """ModelError if the raw data of a tensor do not fit its dims: ONNX Runtime would read past the end."""
    needed = size_bytes(tensor)
    if tensor.HasField("raw_data") and needed is not None and len(tensor.raw_data) != needed:
        raise ModelError(
            f"{path} is damaged: tensor '{tensor.name}' does not fit its shape",
            found=f"{len(tensor.raw_data)} bytes for {list(tensor.dims)}",
            expected=f"{needed} bytes",
            fix="export the model again",
        )
