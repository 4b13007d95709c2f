"""Files that are whole or absent: digests, and writing beside and renaming into place."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shlex
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tritongen.errors import InputError, TritongenError

_CHUNK_BYTES = 1 << 20
_LONGEST_TOLD = 300
"""A name may have 255 bytes; a path that is usable is rarely longer than that."""


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


def shortened(path: str | Path) -> str:
    """A path for a message: what is too long for any file system is cut in the middle."""
    text = str(path)
    return text if len(text) <= _LONGEST_TOLD else f"{text[:80]}…{text[-40:]} ({len(text)} characters)"


def check_writable(path: Path) -> None:
    """InputError, before the work whose result is to go there, for a place that cannot take a file."""
    if path.is_dir():
        raise InputError("a folder is where a file is to be written", found=str(path), fix="name a file")
    if path.exists() and not path.is_file():
        if not os.access(path, os.W_OK):
            raise InputError("that cannot be written to", found=str(path), fix="choose another")
        return
    target = Path(os.path.realpath(path))
    if not target.parent.is_dir():
        raise InputError(
            "there is no such folder to write to",
            found=str(target.parent),
            fix=f"mkdir -p {shlex.quote(str(target.parent))}",
        )
    try:
        _beside(target).unlink()
    except OSError as error:
        raise InputError(
            "no file can be made in that folder",
            found=f"{target.parent}: {error.strerror}",
            fix="choose another",
        ) from None


def write_output(path: Path, content: str | bytes) -> None:
    """Write where a user wants a result: a file whole or not at all, a pipe or a device straight into.

    A link stays, and what it points to is replaced. TritongenError if it cannot be written.
    """
    data = content.encode() if isinstance(content, str) else content
    try:
        if path.exists() and (number := _standard_stream(path)) is not None:
            with os.fdopen(os.dup(number), "wb") as stream:
                stream.write(data)
        elif path.exists() and not path.is_file():
            with path.open("wb") as stream:
                stream.write(data)
        else:
            with replacing(Path(os.path.realpath(path))) as temporary:
                temporary.write_bytes(data)
                temporary.chmod(0o644)
    except OSError as error:
        raise TritongenError(
            "the result could not be written", found=f"{path}: {error.strerror}", fix="choose another place"
        ) from None


def _standard_stream(path: Path) -> int | None:
    """1 or 2 if `path` is what that stream goes to: /dev/stdout, or the file behind it."""
    for number in (1, 2):
        with suppress(OSError):  # closed
            if os.path.samestat(path.stat(), os.fstat(number)):
                return number
    return None


def _beside(path: Path) -> Path:
    """A new, empty, hidden file in the folder of `path`."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    os.close(handle)
    return Path(name)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place when the block ends well, else vanishes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _beside(path)
    try:
        yield temporary
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Alone with what the lock file guards, after waiting for other processes; its folder is made.

    The kernel releases it when the holder ends, however it ends: there is no stale lock to remove.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


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
