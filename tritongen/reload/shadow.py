"""The new version under another name, which no client asks for: `<model>.reload` in the same repository.

The highest version takes the traffic as soon as it is loaded, whatever the version policy: under its own name
a version can only be looked at once clients get it. Under another name it loads beside the old one, from the
same files (hard links) and with the same configuration, which is handed over with the `load` call.

What the shadow's own config.pbtxt says counts only for a server that starts while the shadow is there (both
sides were killed): then it is one more name for the version that is in service already.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tritongen.errors import RepositoryError, ServerError
from tritongen.files import write_text
from tritongen.repository.config_text import parse
from tritongen.repository.existing import CONFIG
from tritongen.repository.kept import SHADOW_MARK, is_shadow, shadow_name
from tritongen.repository.manifest import Manifest
from tritongen.repository.swap import explained, place, staged
from tritongen.serving.control import RefusedError, ServerControl

_LEFT_OUT = (CONFIG, "manifest.json", "reference.npz")


@dataclass(frozen=True)
class State:
    """A model's folder and what its manifest says."""

    folder: Path
    manifest: Manifest

    @property
    def version(self) -> int:
        return self.manifest.version

    @property
    def config(self) -> Any:
        """The parsed config.pbtxt."""
        path = self.folder / CONFIG
        return parse(path.read_text(encoding="utf-8"), str(path))


@dataclass
class Shadow:
    """The name under which `new` is looked at while `old` serves."""

    repository: Path
    control: ServerControl
    new: State
    old: State | None
    """What the server runs now, if its files are still at hand."""
    timeout_s: float
    spoiled: bool = False
    """Whether the server says for good that it is not ready, since the new version did not load."""
    unseen: bool = False
    """Whether the server does not see what is written into this repository."""

    @property
    def name(self) -> str:
        return shadow_name(self.new.manifest.name)

    @contextmanager
    def loaded(self) -> Iterator[None]:
        """The new version under the shadow's name; RefusedError, with Triton's words, if it does not load."""
        try:
            self._place(self.new, self.new.version)
            try:
                self.control.load(self.name, config_json(self.new, self.name), self.timeout_s)
            except RefusedError:
                self.unseen = all(entry.name != self.name for entry in self.control.index())
                self.spoiled = not (self.control.is_ready() or self._heal())
                raise
            yield
        finally:
            self._remove()

    def _heal(self) -> bool:
        """Let a server be ready again that counts a version which failed to load; whether it is.

        With strict readiness (Triton's default) only a successful load of that very version takes it back, so
        the old files are loaded under its name and number.
        """
        if self.old is None:
            return False
        self._place(self.old, self.new.version)
        try:
            self.control.load(self.name, config_json(self.old, self.name, self.new.version), self.timeout_s)
        except ServerError:
            return False
        return True

    def _place(self, state: State, version: int) -> None:
        """Put the files of a state into the repository under the shadow's name, as version `version`."""
        at_rest = self.old or state
        with staged(self.repository, self.name) as folder, explained(self.repository):
            _link(state, folder, version)
            if at_rest is not state and at_rest.version != version:
                _link_version(at_rest, folder, at_rest.version)
            write_text(folder / SHADOW_MARK, f"version {version} of {state.manifest.name} is being checked\n")
            number = version if at_rest is state else at_rest.version
            write_text(folder / CONFIG, _text(_config(at_rest, self.name, number, plain=True)))
            place(folder, self.repository / self.name)

    def _remove(self) -> None:
        try:
            self.control.unload(self.name, self.timeout_s)
        except ServerError:
            pass  # the server is gone, or never had it
        finally:
            remove_shadow(self.repository, self.new.manifest.name)


def remove_shadow(repository: Path, model: str) -> bool:
    """Take the shadow's folder out of the repository, as one step; whether there was one.

    RepositoryError if a model of the user's has the name. Call it under `locked`.
    """
    folder = repository / shadow_name(model)
    if not folder.exists():
        return False
    if not is_shadow(folder):
        raise RepositoryError(
            f"{folder} is in the way",
            found="a model of that name",
            expected="a name that is free while a new version is checked",
            fix="rename that model",
        )
    with staged(repository, folder.name) as workspace, explained(repository):
        folder.rename(workspace / "shadow")
    return True


def config_json(state: State, name: str, version: int | None = None) -> str:
    """The state's configuration under another name, serving one version only, as the `load` call takes it."""
    from google.protobuf import json_format

    proto = _config(state, name, state.version if version is None else version)
    config: dict[str, Any] = json_format.MessageToDict(proto, preserving_proto_field_name=True)
    # A zero says that the model does not batch; left out, the server may choose a size by itself.
    return json.dumps({**config, "max_batch_size": proto.max_batch_size})


def _config(state: State, name: str, version: int, *, plain: bool = False) -> Any:
    """A copy of the parsed configuration; a plain one has nothing that only takes time or memory."""
    proto = state.config
    proto.name = name
    proto.version_policy.specific.versions[:] = [version]
    if plain:
        proto.ClearField("model_warmup")
        for group in proto.instance_group:
            group.count = 1
    return proto


def _text(proto: Any) -> str:
    from google.protobuf import text_format

    zero = "" if proto.max_batch_size else "max_batch_size: 0\n"
    return str(text_format.MessageToString(proto, as_utf8=True)) + zero


def _link(state: State, target: Path, version: int) -> None:
    """A state's files as version `version`: linked where the file system can, copied elsewhere."""
    for entry in state.folder.iterdir():
        if entry.is_dir() and not entry.name.isdecimal():
            shutil.copytree(entry, target / entry.name, copy_function=_link_file, dirs_exist_ok=True)
        elif entry.is_file() and entry.name not in _LEFT_OUT:
            _link_file(entry, target / entry.name)
    _link_version(state, target, version)


def _link_version(state: State, target: Path, version: int) -> None:
    source = state.folder / str(state.version)
    shutil.copytree(source, target / str(version), copy_function=_link_file)


def _link_file(source: str | Path, target: str | Path) -> str | Path:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
    return target
