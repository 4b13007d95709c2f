"""Recognising in a moment that nothing has changed since a build ended."""

from __future__ import annotations

import os
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from tritongen.errors import TritongenError
from tritongen.files import digest_files
from tritongen.runs.records import Record
from tritongen.runs.store import read_record

_LIBRARIES = (
    "tritongen", "numpy", "onnx", "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-cu12",
    "tensorrt-cu13", "jinja2", "tritonclient",
)  # fmt: skip


class FileStamp(Record):
    """A file as it was: the digest is read only where size, time and inode do not settle it."""

    size_bytes: int
    mtime_ns: int
    inode: int
    digest: str | None = None
    """None: a file of which only the stamp counts."""


class Fingerprint(Record):
    """Everything that a finished build depended on, and what it wrote."""

    schema_: Literal["tritongen/fingerprint/1"] = Field(default="tritongen/fingerprint/1", alias="schema")
    settings: str
    """Digest of the effective spec and of the machine."""
    versions: dict[str, str]
    roots: tuple[str, ...]
    """Model, data, template as they were given: files and folders."""
    sources: dict[str, FileStamp]
    """Every file in `roots`, by absolute path."""
    folder: str
    """The model's folder in the repository."""
    outputs: dict[str, FileStamp]
    """Every file in `folder`."""


def library_versions() -> dict[str, str]:
    """Versions of the installed libraries that results depend on, without importing them."""
    return {name: installed for name in _LIBRARIES if (installed := _version(name)) is not None}


def take(settings: str, roots: Iterable[Path], folder: Path) -> Fingerprint:
    """The fingerprint of a build that has just ended; OSError if a file has gone."""
    given = [path.absolute() for path in roots]
    return Fingerprint(
        settings=settings,
        versions=library_versions(),
        roots=tuple(map(str, given)),
        sources={str(path): _stamp(path, digest=True) for path in expand(given)},
        folder=str(folder.absolute()),
        outputs={str(path): _stamp(path, digest=False) for path in expand([folder])},
    )


def unchanged(path: Path, settings: str) -> bool:
    """Whether the fingerprint stored at `path` still holds: settings, versions, sources and outputs."""
    try:
        stored = read_record(path, Fingerprint)
    except (OSError, TritongenError):
        return False
    return (
        stored.settings == settings
        and stored.versions == library_versions()
        and _same(stored.sources, expand(map(Path, stored.roots)))
        and _same(stored.outputs, expand([Path(stored.folder)]))
    )


def expand(paths: Iterable[Path]) -> list[Path]:
    """Files as they are, folders as all files in them; absolute, sorted, each once."""
    found: set[Path] = set()
    for path in paths:
        if path.is_dir():
            found.update(Path(folder, name) for folder, _, names in os.walk(path) for name in names)
        else:
            found.add(path)
    return sorted(path.absolute() for path in found)


def _version(library: str) -> str | None:
    try:
        return version(library)
    except PackageNotFoundError:
        return None


def _stamp(path: Path, *, digest: bool) -> FileStamp:
    status = path.stat()
    return FileStamp(
        size_bytes=status.st_size,
        mtime_ns=status.st_mtime_ns,
        inode=status.st_ino,
        digest=digest_files([path]) if digest else None,
    )


def _same(stored: dict[str, FileStamp], paths: list[Path]) -> bool:
    return [str(path) for path in paths] == sorted(stored) and all(
        _is(path, stored[str(path)]) for path in paths
    )


def _is(path: Path, stored: FileStamp) -> bool:
    try:
        found: dict[str, Any] = _stamp(path, digest=False).model_dump(exclude={"digest"})
    except OSError:
        return False
    if found == stored.model_dump(exclude={"digest"}):
        return True
    return (
        stored.digest is not None
        and found["size_bytes"] == stored.size_bytes
        and digest_files([path]) == stored.digest
    )
