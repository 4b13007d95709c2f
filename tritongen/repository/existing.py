"""What already lies where a model is to be written, and whether it may be replaced."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tritongen.errors import RepositoryError
from tritongen.files import digest_files
from tritongen.repository import manifest as manifests
from tritongen.repository.config_text import parse
from tritongen.repository.contents import listing
from tritongen.repository.manifest import Manifest

CONFIG = "config.pbtxt"
_FORCE = "use --force to replace it"


@dataclass(frozen=True)
class Existing:
    """A folder that tritongen wrote earlier."""

    folder: Path
    manifest: Manifest
    foreign: tuple[str, ...]
    """Files that tritongen did not write; they move along."""

    @property
    def config(self) -> Any:
        """The parsed config.pbtxt."""
        path = self.folder / CONFIG
        return parse(path.read_text(encoding="utf-8"), str(path))

    @property
    def config_digest(self) -> str:
        return self.manifest.files[CONFIG].digest


def examine(folder: Path, *, force: bool) -> Existing | None:
    """What `folder` holds; None if nothing worth keeping; RepositoryError if something would be lost."""
    if not folder.exists() and not folder.is_symlink():
        return None
    if folder.is_symlink() or not folder.is_dir():
        raise RepositoryError(
            f"{folder} is in the way",
            found="a symbolic link" if folder.is_symlink() else "a file",
            expected="a folder, or nothing",
            fix="move it away, or choose another --name",
        )
    try:
        existing = _ours(folder)
    except RepositoryError:
        if force or not any(folder.iterdir()):
            return None
        raise
    return existing if not force else Existing(folder, existing.manifest, ())


def _ours(folder: Path) -> Existing:
    if not (folder / manifests.FILENAME).is_file():
        raise RepositoryError(
            f"{folder} was not written by tritongen",
            found=f"{', '.join(sorted(p.name for p in folder.iterdir())[:5])}, but no {manifests.FILENAME}",
            fix=f"choose another --name or --repository, or {_FORCE}",
        )
    manifest = manifests.read_manifest(folder)
    config = manifest.files.get(CONFIG)
    if config is None or not (folder / CONFIG).is_file() or digest_files([folder / CONFIG]) != config.digest:
        raise RepositoryError(
            f"{folder / CONFIG} was changed by hand since tritongen wrote it",
            fix=f"put the change into the spec (serving.raw, serving.parameters or a template), or {_FORCE}",
        )
    foreign = [path for path in listing(folder) if path not in {*manifest.files, manifests.FILENAME}]
    versions = sorted({path.split("/")[0] for path in foreign if path.split("/")[0].isdecimal()})
    if versions:
        raise RepositoryError(
            f"{folder} holds files in version folders that tritongen did not write",
            found=", ".join(versions),
            fix=f"move them away, or {_FORCE}",
        )
    return Existing(folder, manifest, tuple(foreign))


def why_incompatible(existing: Existing, config: Any, model_file: str) -> str | None:
    """None if `config` (parsed) serves the old versions too, otherwise what changed, in one sentence."""
    changed = why_other_contract(existing, config)
    if changed is None and existing.manifest.model_file != model_file:
        return f"the model file is now {model_file} and was {existing.manifest.model_file}"
    return changed


def why_other_contract(existing: Existing, config: Any) -> str | None:
    """None if backend, tensors and batching are what they were, otherwise what changed, in one sentence."""
    old = existing.config
    for field, meaning in (
        ("backend", "backend"),
        ("max_batch_size", "max_batch_size"),
        ("input", "inputs"),
        ("output", "outputs"),
    ):
        before, after = getattr(old, field), getattr(config, field)
        if before != after:
            shown = f" from {before} to {after}" if isinstance(after, (str, int)) else ""
            return f"the {meaning} in config.pbtxt changed{shown}, and all versions share one config.pbtxt"
    return None
