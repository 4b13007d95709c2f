"""The folder that one embedded server lives in: its backends, and paths that Triton can pass on."""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

from tritongen.errors import RequirementError
from tritongen.scratch import Scratch
from tritongen.serving.installation import Installation

PREFIX = "tritongen-serve-"
BACKENDS = Path(__file__).parent / "backends"

# Triton hands these paths to bash without quotes.
_SAFE_PATH = re.compile(r"[\w./+@%:,=-]+", re.ASCII)


def prepare_backends(installation: Installation, scratch: Path) -> Path:
    """A backend folder: the wheel's Python backend with the right stub, and tritongen's own backends.

    Copies, because Triton refuses a library whose real path lies outside the backend folder.
    """
    backends = scratch / "backends"
    python = backends / "python"
    python.mkdir(parents=True)
    for file in installation.python_backend.iterdir():
        if file.is_file() and file.name != "triton_python_backend_utils.py":
            shutil.copy(file, python)
    shutil.copy(installation.stub, python)
    utilities = (installation.python_backend / "triton_python_backend_utils.py").read_text(encoding="utf-8")
    target = python / "triton_python_backend_utils.py"
    target.write_text(_module_path_lines() + utilities, encoding="utf-8")
    for model in BACKENDS.glob("*/model.py"):
        (backends / model.parent.name).mkdir()
        shutil.copy(model, backends / model.parent.name)
    return backends


def _module_path_lines() -> str:
    """Python lines that let a model import what this process can import, after Triton's own module.

    The stub finds its packages through `python3` on PATH, and ignores PYTHONPATH. That is not enough where
    packages do not belong to the interpreter's own prefix (conda, --target, PYTHONPATH, user site).
    """
    mine = [path for path in sys.path if Path(path).is_absolute() and Path(path).exists()]
    return (
        "import sys as _sys\n"
        f"_known = [p for p in _sys.path if not p.endswith('-packages')]\n"
        f"_mine = [p for p in {mine!r} if p not in _known]\n"
        "_sys.path[:] = _known + _mine + [p for p in _sys.path if p not in _known + _mine]\n"
    )


def make_scratch() -> Scratch:
    """A new folder with a path that bash takes unquoted, where programs may be executed."""
    places = (tempfile.gettempdir(), "/tmp", "/var/tmp", str(Path.home()))  # noqa: S108
    for place in places:
        if is_safe(place) and os.access(place, os.W_OK) and not _forbids_programs(place):
            return Scratch(PREFIX, place)
    raise RequirementError(
        "there is no folder for the embedded Triton's own files",
        found=f"none of {', '.join(places)} is writable, free of spaces and mounted without noexec",
        fix="name such a folder: TMPDIR=/some/folder tritongen serve …",
    )


def _forbids_programs(place: str) -> bool:
    return bool(os.statvfs(place).f_flag & os.ST_NOEXEC)


def is_safe(text: str) -> bool:
    """Whether a shell takes `text` unquoted as one word."""
    return _SAFE_PATH.fullmatch(text) is not None


def safe_path(repository: Path, scratch: Path) -> Path:
    """The repository's path, or that of a link to it which a shell takes unquoted."""
    resolved = repository.resolve()
    if is_safe(str(resolved)):
        return resolved
    link = scratch / "repository"
    link.symlink_to(resolved)
    return link


def interpreter_folder(scratch: Path) -> Path:
    """A folder whose `python3` is the running interpreter."""
    folder = Path(sys.executable).parent
    if (folder / "python3").exists() and (folder / "python3").samefile(sys.executable):
        return folder
    link = scratch / "bin" / "python3"
    link.parent.mkdir()
    link.symlink_to(sys.executable)
    return link.parent


def shm_prefix(scratch: Path) -> str:
    """What the names of this server's shared memory segments start with."""
    return scratch.name.replace("-", "_") + "_"
