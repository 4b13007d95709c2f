"""The files of a model's folder while it is built: copied, digested and synced in one pass each."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from tritongen.errors import RepositoryError
from tritongen.files import digest_files, sync
from tritongen.repository.manifest import FileEntry

FILE_MODE, FOLDER_MODE = 0o644, 0o755
"""Whatever the umask says: the user of a container must be able to read the repository."""

_CHUNK_BYTES = 1 << 20


@dataclass
class Contents:
    """A folder being filled, and the digest of each file in it."""

    folder: Path
    files: dict[str, FileEntry] = field(default_factory=dict)
    """By path relative to the folder."""

    def write(self, path: str, data: bytes) -> None:
        """Write one file."""
        target = self._claim(path)
        with target.open("wb") as stream:
            stream.write(data)
        self._record(path, target, hashlib.sha256(data).hexdigest())

    def rewrite(self, path: str, data: bytes) -> None:
        """Write a file that is already there anew."""
        del self.files[path]
        (self.folder / path).unlink()
        self.write(path, data)

    def copy(self, sources: Iterable[tuple[Path, str]]) -> str:
        """Copy files, and the SHA-256 over their contents in the given order, hexadecimal.

        Copied, never linked: a file of the run directory that is edited in place must not change what is
        served, nor the other way round.
        """
        total = hashlib.sha256()
        for source, path in sources:
            target, own = self._claim(path), hashlib.sha256()
            with source.open("rb") as reader, target.open("wb") as writer:
                for chunk in iter(lambda reader=reader: reader.read(_CHUNK_BYTES), b""):  # type: ignore[misc]
                    writer.write(chunk)
                    own.update(chunk)
                    total.update(chunk)
            self._record(path, target, own.hexdigest())
        return total.hexdigest()

    def link(self, source: Path, path: str, entry: FileEntry | None) -> None:
        """Take over a file of the folder that this one replaces; with `entry` it is listed as ours.

        Linked where the file system can: the old folder is deleted right after. A symbolic link stays one.
        """
        target = self._claim(path)
        try:
            os.link(source, target, follow_symlinks=False)
        except OSError:
            shutil.copyfile(source, target, follow_symlinks=False)
            if not target.is_symlink():
                target.chmod(FILE_MODE)
        if entry is not None:
            self.files[path] = entry

    def sync(self) -> None:
        """Flush every file and folder to the disk, but no pipe (it would block) and nothing behind links."""
        for path in sorted(self.folder.rglob("*"), reverse=True):
            if not path.is_symlink() and (path.is_file() or path.is_dir()):
                sync(path)
        sync(self.folder)

    def _claim(self, path: str) -> Path:
        if not is_inside(path):
            raise RepositoryError(
                "a file would be written outside the model's folder",
                found=path,
                expected="a relative path without '..'",
            )
        target = self.folder / path
        if target.exists():
            raise RepositoryError(
                "two files of one model would have the same name in the repository", found=path
            )
        for parent in reversed(target.relative_to(self.folder).parents[:-1]):
            folder = self.folder / parent
            folder.mkdir(exist_ok=True)
            folder.chmod(FOLDER_MODE)
        return target

    def _record(self, path: str, target: Path, digest: str) -> None:
        target.chmod(FILE_MODE)
        self.files[path] = FileEntry(digest=digest, size_bytes=target.stat().st_size)


def is_inside(path: str) -> bool:
    """Whether a relative path stays in the folder that it counts from."""
    pure = PurePosixPath(path)
    return bool(pure.parts) and not pure.is_absolute() and ".." not in pure.parts


def listing(folder: Path) -> list[str]:
    """Every file and symbolic link below `folder`, relative to it, in order."""
    return sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_symlink() or not path.is_dir()
    )


def entry_of(path: Path) -> FileEntry:
    """Digest and size of a file on disk; OSError if it cannot be read."""
    return FileEntry(digest=digest_files([path]), size_bytes=path.stat().st_size)
