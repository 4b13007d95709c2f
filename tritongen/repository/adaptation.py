"""Makes an ONNX file readable for a serving target, or says why that cannot be done without loss."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tritongen.errors import ModelError
from tritongen.files import digest_json, write_text
from tritongen.repository.contents import is_inside
from tritongen.repository.onnx_versions import external_tensors, load_proto, needed_ir_version, onnx_versions
from tritongen.repository.targets import find_target
from tritongen.runs.store import RunDirectory

if TYPE_CHECKING:
    from tritongen.repository.targets import Target
    from tritongen.spec import ModelSpec


@dataclass(frozen=True)
class Adapted:
    """An ONNX file that the target reads."""

    path: Path
    notes: tuple[str, ...] = ()
    """What was changed, one sentence each; empty: the file is the one that was given."""


def adapt_for_target(model: ModelSpec, run: RunDirectory) -> Adapted:
    """The model's ONNX file, or a copy that its serving target can read where that one cannot be.

    Copies lie in the run directory, under a key of what they were made from, so that a second build finds
    them. Files that are no ONNX are left to the inspection, which explains more.
    """
    try:
        ir_version, opsets = onnx_versions(model.path)
    except (ModelError, OSError):
        return Adapted(model.path)
    opset = opsets.get("", 0)
    if model.target is None and ir_version <= _SAFE_IR_VERSION and opset <= _SAFE_OPSET:
        return Adapted(model.path)
    target = find_target(model.target)
    if target.why_unreadable(ir_version, opset) is None:
        return Adapted(model.path)
    folder = run.root / "adapted" / _key(model.path, target)
    if (folder / _NOTES).is_file():
        return Adapted(folder / model.path.name, tuple((folder / _NOTES).read_text("utf-8").splitlines()))
    adapted = adapt_model(model.path, target, folder)
    write_text(folder / _NOTES, "\n".join(adapted.notes) + "\n")  # last, as it says that the copy is whole
    return adapted


_NOTES = "adapted.txt"
_SAFE_IR_VERSION, _SAFE_OPSET = 10, 21
"""What the oldest ONNX Runtime that tritongen supports (1.20) reads; asking the installed one takes time."""


def _key(path: Path, target: Target) -> str:
    files = [path, *(path.parent / name for name in _external_files(load_proto(path)))]
    stamps = [[stat.st_size, stat.st_mtime_ns] for stat in (file.stat() for file in files if file.exists())]
    return digest_json([str(path.resolve()), stamps, target.name, str(target.onnxruntime)])[:16]


def _external_files(proto: Any) -> list[str]:
    """The files in the model's folder that hold its weights."""
    entries = (entry for tensor in external_tensors(proto) for entry in tensor.external_data)
    return sorted({entry.value for entry in entries if entry.key == "location" and is_inside(entry.value)})


def adapt_model(model: Path, target: Target, folder: Path) -> Adapted:
    """`model`, or a changed copy in `folder` that `target` reads; ModelError where that would lose something.

    The IR version is set down when the file uses nothing newer. The opset is converted down by
    onnx.version_converter, which refuses what it has no exact rule for. Measure the adapted file, not the
    one that it came from.
    """
    before, opsets = onnx_versions(model)
    opset = opsets.get("", 0)
    if target.why_unreadable(before, opset) is None:
        return Adapted(model)
    proto = load_proto(model)
    notes = []
    if target.max_opset is not None and opset > target.max_opset:
        proto = _converted(model, target, target.max_opset)
        notes.append(f"opset converted from {opset} down to {target.max_opset} for {target.name}")
    if lower_ir_version(proto, target, model):
        notes.append(ir_note(before, proto.ir_version, target))
    return Adapted(_save(proto, model, folder), tuple(notes))


def lower_ir_version(proto: Any, target: Target, source: Path) -> bool:
    """Set the IR version down to what `target` reads; False if it need not, ModelError if it cannot be."""
    limit = target.max_ir_version
    if limit is None or proto.ir_version <= limit:
        return False
    needed = needed_ir_version(proto)
    if needed > limit:
        raise ModelError(
            f"{source} cannot be served by {target.name}",
            found=f"it uses element types or features of IR version {needed}",
            expected=f"IR version {limit} or less, for ONNX Runtime {target.onnxruntime}",
            fix="export it without them, or choose a newer serving image",
        )
    proto.ir_version = limit
    return True


def ir_note(before: int, after: int, target: Target) -> str:
    """One sentence for the manifest."""
    return f"IR version set from {before} down to {after} for {target.name}; the file uses nothing newer"


def _converted(model: Path, target: Target, opset: int) -> Any:
    import onnx
    from onnx import version_converter

    try:
        whole = onnx.load(model)
        converted = version_converter.convert_version(whole, opset)
        onnx.checker.check_model(converted)
    except Exception as error:  # the converter raises RuntimeError, ConvertError and others, by version
        raise ModelError(
            f"{model} cannot be served by {target.name}",
            found=f"its opset cannot be converted down exactly: {_first_line(error)}",
            expected=f"opset {opset} or less, for ONNX Runtime {target.onnxruntime}",
            fix=f"export it with opset {opset}, or choose a newer serving image",
        ) from error
    return converted


def _first_line(error: Exception) -> str:
    """What the converter says, without the place in its source and the assertion that did not hold."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return _ASSERTION.sub("", lines[0]) if lines else type(error).__name__


_ASSERTION = re.compile(r"^\S+:\d+: \S+: Assertion `.*?` failed: (?:Warning: )?")


def _save(proto: Any, source: Path, folder: Path) -> Path:
    import onnx

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / source.name
    for name in _external_files(proto):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source.parent / name, folder / name)
    onnx.save_model(proto, path)
    return path
