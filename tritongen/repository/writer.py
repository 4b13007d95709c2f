"""Writes a model into the repository: all of it, or none of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tritongen.repository.assembly import Assembly
from tritongen.repository.contents import Contents
from tritongen.repository.existing import examine
from tritongen.repository.kept import ASIDE, highest_version, keep, recover_kept
from tritongen.repository.manifest import Manifest
from tritongen.repository.request import BuiltCandidate, ModelToWrite
from tritongen.repository.swap import locked, place, recover, staged
from tritongen.runs.events import Event, EventSink, discard
from tritongen.spec import check_model_name

__all__ = ["BuiltCandidate", "ModelToWrite", "Written", "write_model"]


@dataclass(frozen=True)
class Written:
    """What `write_model` did."""

    folder: Path
    version: int
    manifest: Manifest
    replaced: str | None
    """Why older versions could not stay although `keep_versions` asked for them; None if none had to go."""


def write_model(
    repository: Path, model: ModelToWrite, *, force: bool = False, events: EventSink = discard
) -> Written:
    """Write one model; a kill at any moment leaves the folder that was there, or the new one.

    RepositoryError for what the file system refuses and for a folder that tritongen did not write (unless
    `force`); SpecError or ModelError for a configuration that Triton would refuse.
    """
    check_model_name(model.name)
    with locked(repository):
        for name in (*recover(repository), *recover_kept(repository)):
            events(Event("write", "note", "put back after an interrupted write", subject=name))
        target = repository / model.name
        existing = examine(target, force=force)
        with staged(repository, model.name) as folder:
            used = highest_version(repository, model.name)
            assembly = Assembly(model, Contents(folder), existing, events, highest_version=used)
            manifest = assembly.run()
            place(folder, target)
            if existing is not None and existing.manifest.files != manifest.files:
                keep(folder if folder.exists() else folder.parent / ASIDE, repository)
    version = manifest.version
    events(
        Event(
            "write",
            "finished",
            f"version {version} written to {target}",
            subject=model.name,
            data={"version": version, "folder": str(target)},
        )
    )
    return Written(target, version, manifest, assembly.replaced)
