"""Whole folders put in place at once: a kill at any moment leaves the old folder or the new one.

A folder is built in a staging folder *beside* the repository, never inside it: Triton takes every folder in
its repository, hidden ones too, for a model, and refuses to start when one of them is not (seen with 2.51).
Where the repository is a mount point of its own, nothing beside it can be renamed into it; then the staging
folder lies inside for the short time of writing.

The swap itself is one system call: `rename` where there was nothing, `renameat2(RENAME_EXCHANGE)` where there
was a folder. File systems without the latter (NFS, some overlays) get two renames; a kill between them is
undone by `recover`, which every writer calls first.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tritongen.errors import InputError, RepositoryError, TritongenError
from tritongen.files import shortened, sync

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_LOCK_SECONDS = 60.0
_POLL_SECONDS = 0.05
_NO_EXCHANGE = frozenset({errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EXDEV})


@contextmanager
def locked(repository: Path, wait_seconds: float = _LOCK_SECONDS) -> Iterator[None]:
    """Hold the repository against other writers; RepositoryError if one does not finish in time."""
    descriptor = _open_lock(repository)
    try:
        deadline = time.monotonic() + wait_seconds
        while not _try_lock(descriptor):
            if time.monotonic() > deadline:
                raise RepositoryError(
                    f"another tritongen is writing to {repository}",
                    found=f"its lock has been held for more than {wait_seconds:.0f} s",
                    fix="wait until the other one has finished, or stop it",
                )
            time.sleep(_POLL_SECONDS)
        yield
    finally:
        os.close(descriptor)


def _open_lock(repository: Path) -> int:
    """A descriptor to lock: the folder itself, so that no lock file is left behind."""
    with explained(repository, place=True):
        is_new = not repository.is_dir()
        repository.mkdir(parents=True, exist_ok=True)
        if is_new:
            repository.chmod(0o755)  # whatever the umask says, as all that goes into it
        descriptor = os.open(repository, os.O_RDONLY | os.O_DIRECTORY)
    try:
        _try_lock(descriptor)
    except OSError:  # NFS locks only files that are open for writing
        os.close(descriptor)
        with explained(repository):
            staging = staging_folder(repository)
            staging.mkdir(exist_ok=True)
            return os.open(staging / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    return descriptor


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def staging_folder(repository: Path) -> Path:
    """Where folders for `repository` are built: beside it, or inside where that is another mount."""
    repository = repository.resolve()
    beside = repository.parent
    if _mount(repository) == _mount(beside) and os.access(beside, os.W_OK):
        return beside / f".{repository.name}.tritongen"
    return repository / ".tritongen"


def _mount(folder: Path) -> str:
    """What tells mounts apart: nothing is renamed across them, not even within one file system."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for line in Path(f"/proc/self/fdinfo/{descriptor}").read_text(encoding="ascii").splitlines():
            if line.startswith("mnt_id:"):
                return line
    except OSError:
        pass  # no /proc: the device has to do
    finally:
        os.close(descriptor)
    return str(folder.stat().st_dev)


@contextmanager
def staged(repository: Path, name: str) -> Iterator[Path]:
    """An empty folder to build model `name` in; it vanishes at the end, whatever is left in it.

    Call it under `locked`. RepositoryError for whatever the file system refuses meanwhile.
    """
    with explained(repository):
        root = staging_folder(repository)
        root.mkdir(mode=0o755, exist_ok=True)
        workspace = Path(tempfile.mkdtemp(prefix=f"{name}.", dir=root))
    try:
        with explained(repository):
            folder = workspace / "new"
            folder.mkdir(mode=0o755)
            folder.chmod(0o755)
            yield folder
    finally:
        shutil.rmtree(workspace, ignore_errors=True)
        _remove_if_empty(root)


def place(folder: Path, target: Path) -> None:
    """Make the finished `folder` (from `staged`) the folder `target`; the one before it goes to staging.

    Everything must be synced. RepositoryError if the file system refuses.
    """
    with explained(target.parent):
        if not target.exists():
            folder.rename(target)
        elif not _exchange(folder, target):
            _replace_in_two_steps(folder, target)
        sync(target.parent)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two folders in one step; False where the file system or the C library cannot."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):
        return False
    result = libc.renameat2(
        _AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), ctypes.c_uint(_RENAME_EXCHANGE)
    )
    if result == 0:
        return True
    code = ctypes.get_errno()
    if code in _NO_EXCHANGE:
        return False
    raise OSError(code, os.strerror(code), str(other))


def _replace_in_two_steps(folder: Path, target: Path) -> None:
    aside = folder.parent / "old"
    target.rename(aside)
    try:
        folder.rename(target)
    except OSError:
        aside.rename(target)
        raise


def recover(repository: Path) -> tuple[str, ...]:
    """Undo what a killed writer left; the names of models that were put back. Call it under `locked`."""
    restored = []
    with explained(repository):
        root = staging_folder(repository)
        for workspace in sorted(root.iterdir()) if root.is_dir() else ():
            if not workspace.is_dir():
                continue
            name, aside = workspace.name.rpartition(".")[0], workspace / "old"
            if aside.is_dir() and not (repository / name).exists():
                aside.rename(repository / name)
                restored.append(name)
            shutil.rmtree(workspace, ignore_errors=True)
        _remove_if_empty(root)
    return tuple(restored)


def _remove_if_empty(root: Path) -> None:
    try:
        root.rmdir()
    except OSError:
        return


@contextmanager
def explained(repository: Path, *, place: bool = False) -> Iterator[None]:
    """OSError → RepositoryError in plain words; with `place`, InputError where no folder can be made."""
    try:
        yield
    except TritongenError:
        raise
    except OSError as error:
        kind = InputError if place and error.errno in _NO_PLACE else RepositoryError
        raise kind(
            f"the model repository {shortened(repository)} could not be written; "
            "what was there before is untouched",
            found=f"{error.strerror or error}{f' ({shortened(error.filename)})' if error.filename else ''}",
            fix=_FIXES.get(error.errno or 0, "check the disk and the permissions of the folder"),
        ) from error


_ELSEWHERE = "a file is in the way: choose another folder with --repository, or move it away"
_FIXES = {
    errno.ENOSPC: "make room on that disk, or choose another folder with --repository",
    errno.EDQUOT: "make room in your disk quota, or choose another folder with --repository",
    errno.EROFS: "it is mounted read-only: choose another folder with --repository",
    errno.EACCES: "give yourself write permission, or choose another folder with --repository",
    errno.EPERM: "give yourself write permission, or choose another folder with --repository",
    errno.EBUSY: "the model's own folder is a mount point: mount the repository as a whole instead",
    errno.ENOTDIR: _ELSEWHERE,
    errno.EEXIST: _ELSEWHERE,
    errno.ENOENT: "no folder can be made there: choose another with --repository",
    errno.ENAMETOOLONG: "choose a folder with a shorter name with --repository",
}
_NO_PLACE = frozenset({errno.ENOTDIR, errno.EEXIST, errno.ENOENT, errno.ENAMETOOLONG, errno.ELOOP})
