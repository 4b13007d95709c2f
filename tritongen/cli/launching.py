"""`tritongen verify --image`: what is known of the image, of this machine, and of the compose files here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tritongen.repository.findings import Finding
    from tritongen.repository.manifest import Manifest
    from tritongen.serving.container.host import Host
    from tritongen.serving.container.identification import Identified
    from tritongen.serving.container.service import Service


@dataclass(frozen=True)
class Serving:
    """An image, and the machine that is to run it."""

    image: Identified
    host: Host
    compose_files: tuple[Path, ...]


def look(image: str, compose_files: Sequence[Path]) -> Serving:
    """Identify the image and look at this machine; SpecError for an image that nobody knows."""
    from tritongen.serving.container import host as hosts
    from tritongen.serving.container.identification import identify

    host = hosts.look()
    return Serving(identify(image, host.engine), host, tuple(compose_files))


def launch_findings(serving: Serving, repository: Path, names: Sequence[str]) -> Iterator[Finding]:
    """Findings about starting the image on this machine with the repository and the compose files."""
    from tritongen.serving.container.checks import check_launch
    from tritongen.serving.container.launch import Launch

    service, problems = _service(serving)
    yield from problems
    manifests = _manifests(repository, names)
    launch = Launch(serving.image, service, repository, manifests, serving.host)
    yield from check_launch(launch)


def _service(serving: Serving) -> tuple[Service, list[Finding]]:
    """How the compose files (given, or lying here) start the container; Docker's defaults without any."""
    from tritongen.errors import TritongenError
    from tritongen.serving.container.launch import unknown
    from tritongen.serving.container.service import docker_defaults, image_variable, service_of
    from tritongen.serving.container.session import compose_project

    files = serving.compose_files or _files_here(own=serving.image.own)
    if not files or serving.host.compose is None:
        return docker_defaults(), []
    project = compose_project(files, Path(), serving.host.compose)
    try:
        service = service_of(project.config(), " + ".join(project.files))
        texts = ((project.folder / name).read_text(encoding="utf-8") for name in project.files)
        variable = image_variable(texts)
        return replace(service, image_variable=variable, folder=project.folder.resolve()), []
    except TritongenError as error:
        if serving.compose_files:
            raise
        why = "ports, shared memory and user are checked by Docker's defaults"
        return docker_defaults(), [unknown("compose", str(error.message), why, error.fix or "mend the file")]


def _files_here(*, own: bool) -> tuple[Path, ...]:
    from tritongen.serving.container.compose import CPU_FILE, GPU_FILE

    path = Path(CPU_FILE if own else GPU_FILE)
    return (path,) if path.is_file() else ()


def _manifests(repository: Path, names: Sequence[str]) -> list[Manifest]:
    """Those that can be read; what is wrong with the others is found elsewhere."""
    from tritongen.repository.verify import model_names

    read = (_manifest(repository / name) for name in names or model_names(repository))
    return [manifest for manifest in read if manifest is not None]


def _manifest(folder: Path) -> Manifest | None:
    from tritongen.errors import RepositoryError
    from tritongen.repository.manifest import read_manifest

    try:
        return read_manifest(folder)
    except RepositoryError:
        return None
