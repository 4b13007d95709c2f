"""Files that are whole or absent: digests, and writing beside and renaming into place."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tritongen.errors import InputError

_CHUNK_BYTES = 1 << 20


def digest_files(paths: Iterable[Path]) -> str:
    """SHA-256 over the contents of `paths` in the given order, hexadecimal; OSError if one cannot be read."""
    total = hashlib.sha256()
    for path in paths:
        with path.open("rb") as stream:
            for chunk in iter(lambda: stream.read(_CHUNK_BYTES), b""):
                total.update(chunk)
    return total.hexdigest()


def digest_json(value: Any) -> str:
    """SHA-256 over the canonical JSON form of `value`, hexadecimal."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def check_writable(path: Path) -> None:
    """InputError, before the work whose result is to go there, for a place that cannot take a file."""
    if path.is_dir():
        raise InputError("a folder is where a file is to be written", found=str(path), fix="name a file")
    if not path.parent.is_dir():
        raise InputError(
            "there is no such folder to write to", found=str(path.parent), fix=f"mkdir -p {path.parent}"
        )
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise InputError("the folder cannot be written to", found=str(path.parent), fix="choose another")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place when the block ends well, else vanishes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` so that a kill at any moment leaves the old file or the new one."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
        temporary.chmod(0o644)  # mkstemp makes 0600, which a container's user could not read


def sync(path: Path) -> None:
    """Flush a file's or a folder's content to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
