"""Whether a container can serve a repository here: each obstacle, why, and the command that mends it.

What cannot be found out is a finding of severity `unknown`; nothing passes silently.
"""

from __future__ import annotations

import math
import re
import shlex
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tritongen.errors import TritongenError
from tritongen.repository.findings import Finding
from tritongen.serving.container.gpu_checks import check_gpu
from tritongen.serving.container.launch import Launch, size_text, unknown
from tritongen.serving.container.permissions import NOBODY, leading_out, unreadable, who_reads
from tritongen.serving.ports import check_port, holder
from tritongen.tensors import from_triton

if TYPE_CHECKING:
    from tritongen.repository.manifest import Manifest
    from tritongen.serving.container.engine import Engine
    from tritongen.serving.container.service import Published, Service

SHM = Path("/dev/shm")  # noqa: S108
# An instance of a Python backend starts with a segment of 1 MB, which grows with its requests.
_INSTANCE_SHM_BYTES = 1 << 20
_STRING_BYTES = 256
# Rules of thumb: what an official image takes while it is pulled and unpacked, and room to run at all.
_OFFICIAL_IMAGE_BYTES = 25 << 30
_ROOM_BYTES = 1 << 30


def check_launch(launch: Launch) -> Iterator[Finding]:
    """Findings about starting the container here, the most fundamental first."""
    for check in (
        check_docker,
        check_image,
        check_gpu,
        check_ports,
        check_shared_memory,
        check_disk,
        check_mount,
    ):
        yield from check(launch)


def check_docker(launch: Launch) -> Iterator[Finding]:
    """The engine and Compose; without them much stays unknown."""
    host = launch.host
    if host.engine_problem is not None:
        why = (
            "whether the image is here, what it says of its versions and its user, whether there is room "
            "for it, and whether containers get the GPU are unknown"
        )
        yield _problem("docker", host.engine_problem, why)
    if host.compose_problem is not None:
        why = "`docker compose up` does not work, and the compose files cannot be read"
        yield _problem("compose", host.compose_problem, why)


def check_image(launch: Launch) -> Iterator[Finding]:
    """Whether the image is here, and is what the compose file starts."""
    image, started = launch.image, launch.service.image
    if launch.host.engine is not None and image.local is None:
        why = "its versions here are those of the table; what the image says itself would win"
        message = f"{image.reference} is not on this machine"
        yield unknown("image", message, why, f"docker pull {image.reference}")
    elif image.local is not None and image.target.triton is None:
        why = "whether there is a tritonserver in it, and which, is unknown"
        ask = f"docker run --rm {image.reference} tritonserver --version"
        yield unknown("image", f"{image.reference} does not say that it is a Triton image", why, ask)
    if started is not None and _with_tag(started) != _with_tag(image.reference):
        variable = launch.service.image_variable
        change = f"set {variable}={image.reference} in triton.env" if variable else "change `image:` there"
        yield Finding(
            None,
            "image",
            f"{launch.service.source} starts {started}, not {image.reference}",
            "what is checked here is not what will run",
            f"{change}, or check {started}",
            "warning",
        )


def check_ports(launch: Launch) -> Iterator[Finding]:
    """Whether the ports that it publishes are free."""
    yield from taken_ports(launch.service, launch.host.engine)


def taken_ports(service: Service, engine: Engine | None) -> Iterator[Finding]:
    """A finding for each port that the service cannot have on this machine, with who holds it."""
    for published in service.ports:
        if (error := _port_problem(published)) is not None:
            yield _taken(engine, service, published, error)


def check_shared_memory(launch: Launch) -> Iterator[Finding]:
    """Whether its /dev/shm holds the segments of Python backends (C++ backends need none)."""
    if launch.image.official:
        return
    needed = needed_shm_bytes(launch.manifests)
    given = launch.service.shm_bytes
    if given is None:
        given, where = shutil.disk_usage(SHM).free, "this machine's /dev/shm, which the container shares, has"
        fix = f"sudo mount -o remount,size={_with_room(needed)} {SHM}"
    else:
        where = f"{launch.service.source}: /dev/shm has"
        fix = f"set `shm_size: {_with_room(needed)}` in the compose file (docker run: --shm-size)"
    if given < needed:
        yield Finding(
            None,
            "shared-memory",
            f"{where} {size_text(given)}, and the instances need {size_text(needed)}",
            "requests fail, or instances die, once inputs and outputs of the largest batch lie there",
            fix,
        )


def check_disk(launch: Launch) -> Iterator[Finding]:
    """Whether there is room to pull and unpack the image."""
    engine = launch.host.engine
    if engine is None:
        return  # said by check_docker
    pulled = launch.image.local is not None
    needed = _ROOM_BYTES if pulled else _OFFICIAL_IMAGE_BYTES
    try:
        free = shutil.disk_usage(engine.root).free
    except OSError:
        message = f"the engine keeps its images in {engine.root or 'a place it does not name'}, not seen here"
        yield unknown("disk", message, "whether there is room is unknown", "docker system df")
        return
    if free < needed:
        yield Finding(
            None,
            "disk",
            f"{size_text(free)} free in {engine.root}, and about {size_text(needed)} are needed",
            "the container cannot write" if pulled else "docker pull fails: no space left on device",
            "docker system prune",
            "warning",
        )


def check_mount(launch: Launch) -> Iterator[Finding]:
    """Whether the container's user can read the repository that is mounted into it."""
    path = launch.repository
    if launch.host.selinux_enforcing:
        why = "a container may not read a mounted folder that is not labelled for it"
        fix = f"chcon -Rt container_file_t {path}, or mount it with :z"
        yield Finding(None, "mount", "SELinux is enforcing on this machine", why, fix, "warning")
    if links := leading_out(path, launch.service.mounts):
        yield Finding(
            None,
            "mount",
            f"{_paths(links)} is a link to {links[0].readlink()}, which the container does not have",
            "only the repository is mounted: there is nothing behind the link for Triton",
            "put there what the link leads to (cp -rL), or mount that at the same place as well",
        )
    reader = who_reads(launch.user)
    fix = f"chmod -R a+rX {shlex.quote(str(path))}"
    if reader is None:
        closed = unreadable(path, NOBODY)
        who = f"the container's user '{launch.user}' has a number that only the image knows"
        who = "the container's user is unknown" if launch.user is None else who
        if closed:
            why = "whether it may read them is unknown"
            yield unknown("mount", f"{who}, and {_paths(closed)} is not for everybody", why, fix)
        return
    # Root with its capabilities reads everything.
    bound = reader.uid != 0 or launch.service.drops_all_capabilities
    if bound and (closed := unreadable(path, reader)):
        message = f"user {reader.uid} of the container may not read {_paths(closed)}"
        yield Finding(None, "mount", message, "Triton cannot load the model, or does not start", fix)


def needed_shm_bytes(manifests: Sequence[Manifest]) -> int:
    """Shared memory of all Python instances: a segment each, with a largest batch in and out of it."""
    return sum(manifest.instances * (_INSTANCE_SHM_BYTES + _batch_bytes(manifest)) for manifest in manifests)


def _batch_bytes(manifest: Manifest) -> int:
    """Inputs and outputs of one request of the largest batch; a dynamic output axis counts as 1."""
    shapes = [(entry.dtype, entry.max_shape) for entry in manifest.inputs]
    shapes += [(entry.dtype, entry.dims) for entry in manifest.outputs]
    item = sum(
        (from_triton(dtype).itemsize or _STRING_BYTES) * math.prod(max(1, dim) for dim in shape)
        for dtype, shape in shapes
    )
    return max(1, manifest.max_batch_size) * item


def _problem(check: str, error: TritongenError, why: str) -> Finding:
    message = f"{error.message} ({error.found})" if error.found else error.message
    return unknown(check, message, why, error.fix or "tritongen doctor")


def _port_problem(published: Published) -> TritongenError | None:
    try:
        check_port(published.port, published.address, published.variable)
    except TritongenError as error:
        # Ports below 1024 are opened by Docker, not by this user.
        return None if isinstance(error.__cause__, PermissionError) else error
    return None


def _taken(engine: Engine | None, service: Service, published: Published, error: TritongenError) -> Finding:
    containers = engine.containers(f"publish={published.port}") if engine is not None else ()
    port = f"port {published.port} ({published.protocol})"
    another = f"set {published.variable} in triton.env to another port"
    for container in containers:
        if container.folder is not None and container.folder.resolve() == service.folder:
            message = f"{port} is held by container {container.name} of this very project"
            why = "`up` replaces it: what it serves is gone for a moment"
            return Finding(None, "port", message, why, f"nothing, or {another}", "warning")
    by = f"container {containers[0].name}" if containers else holder(published.port)
    message = f"{port} is held by {by or 'a process of another user'}"
    if "taken" not in error.message:
        message = f"{port}: {error.message}"
    return Finding(
        None,
        "port",
        message,
        "the container does not start: port is already allocated",
        f"stop it, or {another}",
    )


def _with_tag(reference: str) -> str:
    """ "tritongen-cpu" → "tritongen-cpu:latest", as Docker takes it."""
    return reference if re.search(r"[:@][^/]*$", reference) else f"{reference}:latest"


def _paths(paths: Sequence[Path]) -> str:
    return f"{paths[0]}{f' (and {len(paths) - 1} more)' if len(paths) > 1 else ''}"


def _with_room(count: int) -> str:
    """A quarter more, in steps of 64 MB, as Docker takes sizes."""
    return f"{64 * math.ceil(count * 1.25 / (64 << 20))}m"
