"""The files of `tritongen compose init`: Compose files, Dockerfiles, monitoring, and `triton.env`.

The Compose files are the same everywhere. What depends on the models (the image, its flags) and on the
machine (ports, addresses) stands in `triton.env`, which is made from the manifests; `.env` is the user's.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tritongen.errors import RepositoryError, RequirementError, SpecError, TritongenError
from tritongen.files import write_text
from tritongen.serving.container.engine import find_compose
from tritongen.serving.container.images import choose_image
from tritongen.serving.registry import DEFAULT_REPOSITORY

if TYPE_CHECKING:
    from tritongen.repository.manifest import Manifest
    from tritongen.serving.container.images import ImageChoice

ENV_FILE = "triton.env"
GPU_FILE = "docker-compose.yml"
HARDENED_FILE = "docker-compose.hardened.yml"
CPU_FILE = "docker-compose.cpu.yml"
RECORD = Path("docker/.written.json")
"""What `write_files` wrote, so that it can tell its own files from edited ones."""
SCHEMA = "tritongen/compose/1"

_PACKAGE = Path(__file__).parents[2]
SOURCES = (_PACKAGE / "compose", _PACKAGE.parent)
"""Where the wheel and where a checkout keep the files."""
_SHARED = (
    "docker/cpu.Dockerfile",
    "docker/wheelhouse/README.md",
    "docker/monitoring/prometheus.yml",
    "docker/monitoring/grafana-datasource.yml",
    "docker/monitoring/grafana-dashboards.yml",
    "docker/monitoring/triton-dashboard.json",
)
FILES: dict[Literal["gpu", "cpu"], tuple[str, ...]] = {
    "gpu": (GPU_FILE, HARDENED_FILE, "docker/build.Dockerfile", *_SHARED),
    "cpu": (CPU_FILE, *_SHARED),
}

_MARK = "# Written by tritongen"
BUILDER_IMAGE = "nvcr.io/nvidia/tensorrt"
SETTINGS: dict[str, str] = {
    "BIND_ADDRESS": "127.0.0.1",
    "HTTP_PORT": "8000",
    "GRPC_PORT": "8001",
    "METRICS_PORT": "8002",
    "TRITON_CONTROL": "--model-control-mode=explicit --load-model=* --strict-readiness=false",
    "SHM_SIZE": "1g",
}
"""Those of triton.env that are the user's, as they are until somebody changes them."""
REPOSITORY_VARIABLE = "MODEL_REPOSITORY"
"""Names the repository that the Compose files mount; without it, the one in their own folder."""


@dataclass(frozen=True)
class Written:
    """One file, and what became of it."""

    path: Path
    what: Literal["written", "replaced", "unchanged"]


def source(name: str) -> Path:
    """Where the original of a file is; RequirementError if this installation has lost it."""
    for folder in SOURCES:
        if (folder / name).is_file():
            return folder / name
    raise RequirementError(
        f"tritongen's {name} is missing",
        expected=" or ".join(str(folder / name) for folder in SOURCES),
        fix="install tritongen again",
    )


def init(
    folder: Path, repository: Path, kind: Literal["gpu", "cpu"], *, force: bool = False
) -> list[Written]:
    """Write the files of `kind` and a triton.env for the models of `repository` into `folder`.

    SpecError, before anything is written, if one of them is there and not ours (as we left it); `force`
    replaces those too, but for what a triton.env sets and remarks. RepositoryError if `kind` is "gpu" and no
    image can load every model.
    """
    texts = {name: source(name).read_text(encoding="utf-8") for name in FILES[kind]}
    recorded = _recorded(folder)
    plan = {name: _plan(folder / name, text, recorded.get(name)) for name, text in texts.items()}
    _refuse(folder, plan, force=force)
    env_file = folder / ENV_FILE
    before = _own_lines(env_file, without=(REPOSITORY_VARIABLE,))
    mounted = [*_assignments(_mounted(folder, repository))]
    environment = _environment_text(repository, [*before, *mounted], must_fit=kind == "gpu")
    try:
        for name, text in texts.items():
            if plan[name] != "unchanged":
                _write(folder / name, text)
        digests = {**recorded, **{name: _digest(text) for name, text in texts.items()}}
        record = {"schema": SCHEMA, "files": dict(sorted(digests.items()))}
        write_text(folder / RECORD, json.dumps(record, indent=2) + "\n")
        written = [Written(folder / name, what or "replaced") for name, what in plan.items()]
        return [*written, _write_environment(env_file, environment)]
    except OSError as error:
        raise RequirementError(
            f"cannot write into {folder}",
            found=str(error),
            fix="make room or give write permission; run it again",
        ) from error


def up_command(*, cpu: bool) -> str:
    """What starts the server, in the folder of the files, in the words of the Compose on this machine."""
    try:
        words = find_compose().words
    except RequirementError:
        words = "docker compose"
    file, build = (f"-f {CPU_FILE} ", " --build") if cpu else ("", "")
    return f"{words} {file}--env-file {ENV_FILE} up -d{build}"


def _refuse(folder: Path, plan: Mapping[str, str | None], *, force: bool) -> None:
    """SpecError for files in the way: those that are not ours, unless `force`, and what is no file at all."""
    foreign = [name for name, what in plan.items() if what is None]
    env_file = folder / ENV_FILE
    if env_file.exists() and not is_ours(env_file):
        foreign.append(ENV_FILE)
    if foreign and not force:
        raise SpecError(
            f"{folder} has files that tritongen did not write, or that were edited since",
            found=", ".join(foreign),
            fix="move them away, choose another folder, or replace them with --force",
        )
    places = {name: folder / name for name in (*plan, ENV_FILE)}
    irregular = [name for name, path in places.items() if path.exists() and not path.is_file()]
    if irregular:
        raise SpecError(
            f"{folder} has something else than files where files are to be written",
            found=", ".join(irregular),
            fix="move it away, or choose another folder",
        )


def _write(path: Path, text: str) -> None:
    """Write a file whole; a link stays, and what it points to is replaced."""
    write_text(Path(os.path.realpath(path)), text)


def _plan(path: Path, text: str, digest: str | None) -> Literal["written", "replaced", "unchanged"] | None:
    """What is to be done to the file; None if it is not ours."""
    try:
        present = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return "written"
    except (OSError, UnicodeError):
        return None
    if present == text:
        return "unchanged"
    return "replaced" if _digest(present) == digest else None


def _recorded(folder: Path) -> dict[str, str]:
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        return dict(record["files"]) if record["schema"] == SCHEMA else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _digest(text: str) -> str:
    return sha256(text.encode()).hexdigest()


# triton.env


_DERIVED = ("TRITON_IMAGE", "TENSORRT_IMAGE", "TRITON_ARGS")


def derived(choice: ImageChoice) -> dict[str, str]:
    """What the models ask for: images and flags."""
    builder = f"{BUILDER_IMAGE}:{choice.image.rpartition(':')[2]}"
    arguments = " ".join(f"--backend-config={each}" for each in choice.backend_config)
    return dict(zip(_DERIVED, (choice.image, builder, arguments), strict=True))


def render_environment(choice: ImageChoice, own: Sequence[str] = ()) -> str:
    """The text of triton.env: what the models ask for, then the user's `own` lines, as far as they go."""
    lines = [
        f"{_MARK}: `docker compose --env-file {ENV_FILE} up -d`.",
        "",
        _FROM_MODELS,
        f"# {choice.image}: {choice.reason}{'' if choice.sure else ' (unverified)'}.",
        *_assignments(derived(choice)),
        "",
        *_OWN,
        *own,
    ]
    given = {match[1] for line in own if (match := _ASSIGNMENT.fullmatch(line))}
    lines += _assignments({name: value for name, value in SETTINGS.items() if name not in given})
    return "\n".join(lines) + "\n"


_FROM_MODELS = "# By the models; every `tritongen build` writes these anew."
_OWN = (
    "# Yours; kept as they are. BIND_ADDRESS=0.0.0.0 opens the ports to the network: Triton asks for no",
    "# password, and as TRITON_CONTROL stands, whoever reaches it may load models: programs, that is.",
)
_ASSIGNMENT = re.compile(r"\s*(?:export\s+)?([A-Za-z_]\w*)\s*=\s*(.*?)\s*")
_CHOICE = re.compile(r"# \S+:\d\d\.\d\d-py3: .*")


def _own_lines(path: Path, without: Sequence[str] = ()) -> list[str]:
    """The lines of an env file that the user wrote or may change, but for what the models settle."""
    own = []
    for line in _lines(path):
        match = _ASSIGNMENT.fullmatch(line)
        ours = line.startswith(_MARK) or line in (_FROM_MODELS, *_OWN) or _CHOICE.fullmatch(line)
        if not (ours or (match and match[1] in (*_DERIVED, *without))):
            own.append(line)
    return "\n".join(own).strip("\n").splitlines()


def _assignments(variables: Mapping[str, str]) -> Iterable[str]:
    return (f"{name}={value}" for name, value in variables.items())


def read_environment(path: Path) -> dict[str, str]:
    """The variables of an env file, as Compose reads them; none if it is not there or is no text."""
    matches = (_ASSIGNMENT.fullmatch(line) for line in _lines(path))
    return {match[1]: _value(match[2]) for match in matches if match}


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeError):
        return []


def _value(text: str) -> str:
    """Quotes are taken off; what follows a # after a space is a remark."""
    quoted = re.match(r"""(['"])(.*?)\1""", text)
    return quoted[2] if quoted else re.sub(r"(^|\s+)#.*", "", text)


def _environment_text(repository: Path, own: Sequence[str], *, must_fit: bool) -> str:
    """What triton.env is to say, with the user's `own` lines."""
    try:
        choice = choose_image(manifests_of(repository))
    except RepositoryError as error:
        if must_fit:
            raise
        choice = replace(choose_image([]), reason=f"the newest, though {error.message}: use {CPU_FILE}")
    return render_environment(choice, own)


def repository_of(folder: Path) -> Path:
    """The repository that the Compose files in `folder` mount, by the triton.env there."""
    named = read_environment(folder / ENV_FILE).get(REPOSITORY_VARIABLE)
    return folder / (named or DEFAULT_REPOSITORY)


def _mounted(folder: Path, repository: Path) -> dict[str, str]:
    """The variable that has Compose mount `repository`, seen from `folder`; none where it does by itself."""
    if repository.resolve() == (folder / DEFAULT_REPOSITORY).resolve():
        return {}
    path = os.path.relpath(repository.resolve(), folder.resolve())
    return {REPOSITORY_VARIABLE: path if path.startswith("..") else f"./{path}"}  # else a volume's name


def _write_environment(path: Path, text: str) -> Written:
    existed = path.exists()
    if existed and path.read_text(encoding="utf-8", errors="replace") == text:
        return Written(path, "unchanged")
    _write(path, text)
    return Written(path, "replaced" if existed else "written")


def refresh_environment(repository: Path) -> str | None:
    """Bring a triton.env of ours beside the repository up to date; what became of it, None if nothing did.

    For `tritongen build`, which must not fail for it: what is in the way is told in the sentence.
    """
    path = repository.parent / ENV_FILE
    if not is_ours(path) or repository_of(path.parent).resolve() != repository.resolve():
        return None
    try:
        must_fit = (path.parent / GPU_FILE).is_file()
        text = _environment_text(repository, _own_lines(path), must_fit=must_fit)
        written = _write_environment(path, text)
    except TritongenError as error:
        return f"{path} is left as it was: {error.message}"
    except OSError as error:
        return f"{path} cannot be written: {error}"
    if written.what == "unchanged":
        return None
    return f"{path} now says {read_environment(path)['TRITON_IMAGE']}"


def is_ours(path: Path) -> bool:
    """Whether tritongen wrote this env file; False if there is none."""
    try:
        return path.read_text(encoding="utf-8").startswith(_MARK)
    except (OSError, UnicodeError):
        return False


def manifests_of(repository: Path) -> list[Manifest]:
    """The manifests of a repository's models; models that others wrote, which have none, are passed over."""
    from tritongen.repository.manifest import FILENAME, read_manifest

    if not repository.is_dir():
        return []
    folders = sorted(path.parent for path in repository.glob(f"*/{FILENAME}"))
    return [read_manifest(folder) for folder in folders]
