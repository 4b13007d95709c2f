"""What the disk holds of one model: the state in the repository, and whole states beside it to go back to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tritongen.errors import InputError, RepositoryError
from tritongen.reload.shadow import State
from tritongen.repository.findings import REBUILD
from tritongen.repository.kept import Kept, damage, kept_states, put_in_service, reject
from tritongen.repository.manifest import check_repository, read_manifest
from tritongen.repository.verify import how_to_rebuild


def check_model(repository: Path, name: str) -> None:
    """InputError unless the repository, or what is kept beside it, holds the model."""
    check_repository(repository)
    if not (repository / name).is_dir() and not kept_states(repository, name):
        models = sorted(path.name for path in repository.iterdir() if path.is_dir())
        raise InputError(
            f"{repository} holds no model '{name}'",
            found=", ".join(models) or "no models",
            fix="build it with `tritongen build`, or name another repository with --repository",
        )


@dataclass(frozen=True)
class Disk:
    """The states of model `name` in a repository and beside it."""

    repository: Path
    name: str

    @property
    def folder(self) -> Path:
        """Where the repository holds the model."""
        return self.repository / self.name

    def kept(self) -> tuple[Kept, ...]:
        """The states beside the repository, by version."""
        return kept_states(self.repository, self.name)

    def live(self) -> State:
        """What the repository holds; RepositoryError if no manifest tells."""
        return State(self.folder, read_manifest(self.folder))

    def found(self) -> tuple[State | None, RepositoryError | None]:
        """What the repository holds, None if no manifest tells; and what is wrong with it, if anything is."""
        if not self.folder.exists():
            return None, RepositoryError(f"{self.folder} is gone", found="nothing", expected="a folder")
        try:
            live = self.live()
        except RepositoryError as error:
            return None, error
        return live, damage(live.folder, live.manifest)

    def put_back(self, served: int | None, damaged: RepositoryError) -> RepositoryError:
        """The served state takes the damaged one's place if it is kept; the error that says what was done."""
        whole = [k for k in self.kept() if k.rejected is None and damage(k.folder, k.manifest) is None]
        rebuild = how_to_rebuild(self.folder)
        old = next((k for k in whole if k.version == served and not k.is_candidate), None)
        if old is not None:
            left = self.folder.exists()
            taken = put_in_service(old, self.repository)
            if taken is not None:
                reject(taken, f"{damaged.message}: {damaged.found}")
            return RepositoryError(
                f"{damaged.message}; version {served} serves on, and the repository holds it again",
                found=damaged.found,
                expected=damaged.expected,
                fix=f"{f'the damaged one is in {(taken or old).slot}; ' if left else ''}{REBUILD}",
            )
        others = " or ".join(f"`tritongen reload {self.name} --to {k.version}`" for k in whole)
        goes_on = "nothing of it is served" if served is None else f"version {served} serves on"
        after = "the damaged one" if self.folder.exists() else "nothing of it"
        return RepositoryError(
            f"{damaged.message}; {goes_on}, but a restart would bring up {after}",
            found=damaged.found,
            expected=damaged.expected,
            fix=f"{f'go back with {others}, or ' if others else ''}{rebuild}",
        )

    def check_whole(self, state: State) -> None:
        """RepositoryError unless every file of a kept state is what the build wrote."""
        damaged = damage(state.folder, state.manifest)
        if damaged is not None:
            raise RepositoryError(
                f"version {state.version} of '{self.name}' is kept, but damaged: {damaged.message}",
                found=damaged.found,
                expected=damaged.expected,
                fix=how_to_rebuild(self.folder),
            )

    def choose(self, served: int | None, live: State | None, to: int | None) -> tuple[State, Kept | None]:
        """The state to take over, and where it lies if that is beside the repository."""
        kept = {each.version: each for each in self.kept()}
        if live is None or (to is not None and to != live.version):
            if to is None or to not in kept:
                held = f"{live.version}, which the repository holds, or " if live is not None else ""
                raise InputError(
                    f"version {to} of '{self.name}' is not kept",
                    found=", ".join(map(str, kept)) or "no other version",
                    expected=f"{held}one of these",
                    fix=how_to_rebuild(self.folder),
                )
            return state_of(kept[to]), kept[to]
        interrupted = [each for each in kept.values() if each.is_candidate]
        if to is None and interrupted and served == live.version:
            return state_of(interrupted[-1]), interrupted[-1]
        return live, None


def state_of(kept: Kept) -> State:
    """A kept state, to be taken over."""
    return State(kept.folder, kept.manifest)
