"""Before minutes of trials: what would keep their result from being written, and nothing is touched."""

from __future__ import annotations

import errno
import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from tritongen.errors import InputError, ModelError
from tritongen.repository.config_text import parse, parse_rendered, render
from tritongen.repository.existing import examine
from tritongen.repository.model_config import probe_config
from tritongen.repository.rules import check_rules, refuse
from tritongen.repository.swap import explained, staging_folder
from tritongen.spec import ServingSpec

if TYPE_CHECKING:
    from tritongen.spec import ModelSpec, Spec

_LARGEST_BATCH = 1 << 16
"""Stands for a largest batch that only the trials decide."""


def check_destination(spec: Spec, *, force: bool) -> None:
    """Raise what writing the models of `spec` would raise after the trials, as far as it can be known.

    InputError for a path that can be no repository and for a bad template or serving.raw; RepositoryError
    for what this machine refuses and for folders that tritongen did not write (unless `force`).
    """
    check_writable(spec.repository)
    for name, model in spec.models.items():
        examine(spec.repository / name, force=force)
        if model.serving != ServingSpec():
            _check_config(name, model)


def check_writable(repository: Path) -> None:
    """Make and remove an empty folder where the repository is or would be; nothing else is touched."""
    with explained(repository, place=True):  # before Python 3.12, a name that is too long raises
        there = repository.is_dir()
    if there:
        with explained(repository):
            _try(staging_folder(repository).parent)
            if not os.access(repository, os.W_OK | os.X_OK):
                raise OSError(errno.EACCES, os.strerror(errno.EACCES), str(repository))
        return
    nearest = next(path for path in (repository.absolute(), *repository.absolute().parents) if _exists(path))
    if not nearest.is_dir():
        raise InputError(
            f"{repository} cannot be a model repository: {nearest} is in the way",
            found="a symbolic link to nothing" if nearest.is_symlink() else "a file",
            expected="a folder, or nothing",
            fix="name another folder with --repository, or move that away",
        )
    with explained(repository, place=True):
        _try(nearest)


def _exists(path: Path) -> bool:
    try:
        return os.path.lexists(path)
    except OSError:
        return False


def _try(folder: Path) -> None:
    Path(tempfile.mkdtemp(prefix=".tritongen.", dir=folder)).rmdir()


def _check_config(name: str, model: ModelSpec) -> None:
    """Render and parse a configuration like the one to come."""
    from tritongen.graph import inspect_model

    try:
        graph = inspect_model(model.path)
    except ModelError:
        return  # its own build says so, and the other models are built
    largest = _LARGEST_BATCH if model.max_batch_size is None else model.max_batch_size
    config = probe_config(name, model.serving, graph, largest)
    if model.serving.parameters and model.engine != "tensorrt":
        parsed = parse(render(replace(config, raw="")))
        refuse(name, [one for one in check_rules(parsed) if one.rule == "onnxruntime-parameters"])
    if model.serving.raw or model.serving.template:
        parse_rendered(render(config, model.serving.template), config, model.serving.template)
