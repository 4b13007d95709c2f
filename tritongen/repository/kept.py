"""Whole states of a model beside the repository: replaced by a build, set aside or refused by a reload.

No Triton looks there. Each has a folder of its own:

    .<repository>.kept/<model>.<version>/new        the model's folder, as it stood in the repository
                                        candidate   a file: `reload` has set it aside until it is checked
                                        rejected    a file with the reason: the server did not take it over
                                        before      a file: it served until the last reload, not since

Folders change places with the one in the repository by one system call, so that a kill at any moment leaves
one of the two states whole; which version a folder holds is therefore read from its manifest, never its name.
Where the repository is a mount point of its own nothing can be kept, as nothing can be renamed out of it.

In the repository itself there may be, for the length of a reload, a shadow: `<model>.reload`, the new version
under another name.
"""

from __future__ import annotations

import shutil
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tritongen.errors import RepositoryError
from tritongen.files import digest_files, write_text
from tritongen.repository.contents import entry_of
from tritongen.repository.findings import REBUILD
from tritongen.repository.manifest import FILENAME, Manifest, read_manifest
from tritongen.repository.swap import explained, place, staging_folder

STATE, ASIDE = "new", "old"
SHADOW_MARK = "shadow.txt"
"""In a shadow's folder: tells it from a model that happens to have such a name."""
_SHADOW_SUFFIX = ".reload"
_CANDIDATE, _REJECTED, _BEFORE = "candidate", "rejected", "before"
_MOST = 2
"""Replaced states per model: the first since a reload (a server may run it still), and the last."""


@dataclass(frozen=True)
class Kept:
    """One state of a model beside the repository."""

    slot: Path
    manifest: Manifest

    @property
    def folder(self) -> Path:
        return self.slot / STATE

    @property
    def version(self) -> int:
        return self.manifest.version

    @property
    def rejected(self) -> str | None:
        """Why a server did not take it over; None if none was asked."""
        return _read(self.slot / _REJECTED)

    @property
    def is_candidate(self) -> bool:
        """Whether a reload set it aside and was stopped before it decided."""
        return _read(self.slot / _CANDIDATE) == _identity(self.folder)

    @property
    def served_before(self) -> bool:
        """Whether it served until the last reload, so that no server runs it still."""
        return _read(self.slot / _BEFORE) == _identity(self.folder)


def shadow_name(model: str) -> str:
    """The name under which `reload` looks at a new version of `model`."""
    return f"{model}{_SHADOW_SUFFIX}"


def is_shadow(folder: Path) -> bool:
    """Whether a folder of a repository is one that `reload` made."""
    return folder.name.endswith(_SHADOW_SUFFIX) and (folder / SHADOW_MARK).is_file()


def kept_root(repository: Path) -> Path | None:
    """Where states of `repository` are kept; None where nothing can be renamed out of it."""
    staging = staging_folder(repository)
    beside = staging.parent
    return None if beside == repository.resolve() else beside / f".{repository.resolve().name}.kept"


def kept_states(repository: Path, name: str) -> tuple[Kept, ...]:
    """Every readable state of model `name` beside the repository, by version."""
    root = kept_root(repository)
    found = []
    for slot in _slots(root, name):
        with suppress(RepositoryError):  # being filled when its writer was killed: nothing to go back to
            found.append(Kept(slot, read_manifest(slot / STATE)))
    return tuple(sorted(found, key=lambda kept: (kept.version, kept.slot.name)))


def highest_version(repository: Path, name: str) -> int:
    """The highest version number in the repository or in a state beside it, readable or not; 0 if none."""
    folders = (repository / name, *(slot / STATE for slot in _slots(kept_root(repository), name)))
    return max(map(_highest_in, folders))


def _slots(root: Path | None, name: str) -> tuple[Path, ...]:
    """What is kept of model `name`, readable or not."""
    found = root.glob(f"{name}.*") if root is not None else ()
    return tuple(slot for slot in found if slot.name.rpartition(".")[0] == name)


def _highest_in(folder: Path) -> int:
    """The highest version number in a model's folder, 0 if none: the manifest may be unreadable."""
    return max((int(path.name) for path in folder.glob("*") if path.name.isdecimal()), default=0)


def damage(folder: Path, manifest: Manifest) -> RepositoryError | None:
    """The first file that is not what the build wrote; None if the state is whole."""
    for path, entry in manifest.files.items():
        try:
            found = entry_of(folder / path).digest
        except OSError as error:
            found = str(error.strerror or error)
        if found != entry.digest:
            return RepositoryError(
                f"{folder / path} is not what was built",
                found=f"SHA-256 {found[:12]}…" if len(found) == len(entry.digest) else found,
                expected=f"{entry.digest[:12]}…, as its manifest says",
                fix=REBUILD,
            )
    return None


def keep(folder: Path, repository: Path) -> None:
    """Keep the folder that has just been replaced (in its staging workspace), and forget those in between.

    A damaged one is not kept: nothing goes back to it. RepositoryError if the file system refuses. Call it
    under `locked`.
    """
    root = kept_root(repository)
    if root is None:
        return
    manifest = read_manifest(folder)
    if damage(folder, manifest) is not None:
        return
    with explained(repository):
        for older in kept_states(repository, manifest.name):
            if older.version == manifest.version and not older.is_candidate:
                shutil.rmtree(older.slot)
        folder.rename(_new_slot(root, manifest) / STATE)
        useful = [each for each in kept_states(repository, manifest.name) if each.rejected is None]
        replaced = [each for each in useful if not each.served_before]
        surplus = [each for each in useful if each.served_before] if len(replaced) >= _MOST else []
        for each in (*surplus, *replaced[1 : 1 - _MOST]):
            shutil.rmtree(each.slot)


def _new_slot(root: Path, manifest: Manifest) -> Path:
    root.mkdir(exist_ok=True)
    slot = root / f"{manifest.name}.{manifest.version}"
    try:
        slot.mkdir()
    except FileExistsError:
        return Path(tempfile.mkdtemp(prefix=f"{manifest.name}.", dir=root))
    return slot


def put_in_service(kept: Kept, repository: Path, *, sets_aside: bool = False) -> Kept | None:
    """Let a kept state and the one in the repository change places; the latter, as it is kept now.

    None if there was none, or if its manifest cannot be read: then it lies in the slot of `kept`, and nothing
    goes back to it. With `sets_aside` it is marked as a candidate that a reload has yet to decide on.
    """
    target = repository / kept.manifest.name
    try:
        leaving = read_manifest(target)
    except RepositoryError:
        leaving = None
    with explained(repository):
        if sets_aside:  # written first: it counts once the slot holds what it names
            _mark(kept.slot, _CANDIDATE, _identity(target))
        _mark(kept.slot, _REJECTED, None)
        replaces = target.exists()
        place(kept.folder, target)
        if not replaces:
            shutil.rmtree(kept.slot)
            return None
        if not kept.folder.exists():
            (kept.slot / ASIDE).rename(kept.folder)
        if not sets_aside:
            _mark(kept.slot, _CANDIDATE, None)
        if leaving is None:
            _mark(kept.slot, _REJECTED, f"its {FILENAME} cannot be read")
            return None
        return Kept(_named_after(kept.slot, leaving), leaving)


def _named_after(slot: Path, manifest: Manifest) -> Path:
    """The slot under the name of what it holds now, where that is free."""
    better = slot.with_name(f"{manifest.name}.{manifest.version}")
    return slot if better.exists() else slot.rename(better)


def reject(kept: Kept, reason: str) -> None:
    """Remember why a server did not take this state over; of such states it and newer ones stay."""
    repository_root = kept.slot.parent
    with explained(repository_root):
        _mark(kept.slot, _REJECTED, reason)
        _mark(kept.slot, _CANDIDATE, None)
        for slot in _slots(repository_root, kept.manifest.name):
            is_older = slot != kept.slot and _highest_in(slot / STATE) <= kept.version
            if is_older and (slot / _REJECTED).exists():
                shutil.rmtree(slot)


def confirm(repository: Path, name: str, before: Kept | None, *, served: int | None) -> None:
    """The state in the repository is in service: keep only the one `before` it, to go back to.

    And those of higher numbers than it and the one `served` until now: they were refused, or built and never
    served, and their numbers are not to be used again.
    """
    newest = max(read_manifest(repository / name).version, served or 0)
    with explained(repository):
        for slot in _slots(kept_root(repository), name):
            is_before = before is not None and slot == before.slot
            if is_before or _highest_in(slot / STATE) > newest:
                _mark(slot, _CANDIDATE, None)
            else:
                shutil.rmtree(slot)
        if before is not None:
            _mark(before.slot, _BEFORE, _identity(before.folder))


def recover_kept(repository: Path) -> tuple[str, ...]:
    """Put back what a kill between two renames left (file systems without exchange); the models' names."""
    root = kept_root(repository)
    restored = []
    with explained(repository):
        for slot in sorted(root.iterdir()) if root is not None and root.is_dir() else ():
            name, aside = slot.name.rpartition(".")[0], slot / ASIDE
            if not aside.is_dir():
                continue
            if not (repository / name).exists():
                aside.rename(repository / name)
                restored.append(name)
            elif not (slot / STATE).exists():
                aside.rename(slot / STATE)
    return tuple(restored)


def _identity(folder: Path) -> str:
    """What tells one state of a model from another, also of the same version."""
    return digest_files([folder / FILENAME])


def _mark(slot: Path, name: str, text: str | None) -> None:
    if text is None:
        (slot / name).unlink(missing_ok=True)
    else:
        write_text(slot / name, text)


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return None
