"""What works on this machine, what is missing, and the command that brings it."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib import metadata, util
from pathlib import Path
from typing import Any, Literal

from tritongen.errors import RequirementError, TritongenError
from tritongen.serving import installation
from tritongen.serving.container import host as hosts
from tritongen.serving.ports import check_port, holder

State = Literal["ok", "missing", "warning", "absent"]

PYTHONS = ((3, 10), (3, 13))
SHM = "/dev/shm"  # noqa: S108
DEFAULT_PORTS = ((8000, "HTTP"), (8001, "gRPC"), (8002, "metrics"))
MARKS_OF_A_CONTAINER = (Path("/.dockerenv"), Path("/run/.containerenv"))
"""What Docker and Podman put into one."""
PROBE_TIMEOUT_S = 10
MINIMUM_DISK_BYTES = 2 << 30
# Each instance of the embedded server starts with a segment of 1 MB, which grows with its requests.
MINIMUM_SHM_BYTES = 64 << 20


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    name: str
    state: State
    """`missing`: build, serve or loadtest cannot work without it. `absent`: only an extra needs it."""
    found: str
    needed_for: str
    fix: str | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


# Distribution, what it is needed for, and whether the base road (build, serve, loadtest) needs it.
LIBRARIES = (
    ("numpy", "everything", "tritongen"),
    ("onnx", "reading and rewriting models", "tritongen"),
    ("onnxruntime", "building and serving on the CPU", "tritongen"),
    ("pydantic", "specs and records", "tritongen"),
    ("PyYAML", "specs", "tritongen"),
    ("Jinja2", "config.pbtxt", "tritongen"),
    ("rich", "progress", "tritongen"),
    ("tritonclient", "load tests over gRPC", "tritongen"),
    ("grpcio", "load tests over gRPC", "tritongen"),
)


def examine() -> list[Check]:
    """Look at everything; nothing raises, nothing is changed."""
    return [
        _python(),
        _virtual_environments(),
        *(_library(*each) for each in LIBRARIES),
        *_embedded_server(),
        *_ports(),
        _shared_memory(),
        _disk(),
        _processor(),
        _gpu(),
        _tensorrt(),
        *_containers(),
    ]


def road_works(checks: list[Check]) -> bool:
    """Whether build, serve and loadtest work here."""
    return all(check.state != "missing" for check in checks)


def _python() -> Check:
    version = platform.python_version()
    fits = PYTHONS[0] <= sys.version_info[:2] <= PYTHONS[1]
    state: State = "ok" if fits else "warning"
    return Check(
        "Python",
        state,
        f"{version} ({sys.executable})",
        "everything",
        None if fits else "use 3.10 – 3.13; serve: 3.12 at most",
    )


def _virtual_environments() -> Check:
    found = [name for name in ("venv", "ensurepip") if util.find_spec(name)]
    if len(found) == 2:  # noqa: PLR2004
        return Check("venv", "ok", "venv and ensurepip", "make demo, make test")
    fix = f"apt-get install python{installation.python_version()}-venv"
    return Check("venv", "absent", "no ensurepip", "make demo, make test", fix)


def _library(distribution: str, purpose: str, requirement: str) -> Check:
    if version := _version(distribution):
        return Check(distribution, "ok", version, purpose)
    return Check(distribution, "missing", "not installed", purpose, f"pip install {requirement}")


def _embedded_server() -> Iterator[Check]:
    purpose = "serving without Docker"

    def probe(name: str, look: Callable[[], str]) -> Check:
        try:
            return Check(name, "ok", look(), purpose)
        except TritongenError as error:
            found = f"{error.message}: {error.found}" if error.found else error.message
            return Check(name, "missing", found, purpose, error.fix)

    def platform_found() -> str:
        installation.check_platform()
        version = installation.glibc_version()
        return f"glibc {version[0]}.{version[1]}, {platform.machine()}" if version else ""

    yield probe("C library", platform_found)
    yield probe("libpython", lambda: str(installation.find_libpython()))
    yield probe("tritonserver", lambda: f"nvidia-pytriton {_version('nvidia-pytriton')} ({_server().binary})")


def _server() -> installation.Installation:
    found = installation.find_installation()
    if not os.access(found.binary, os.X_OK):
        raise RequirementError(
            "tritonserver may not be executed", found=str(found.binary), fix=f"chmod +x {found.binary}"
        )
    return found


def _ports() -> Iterator[Check]:
    for port, protocol in DEFAULT_PORTS:
        purpose = f"{protocol} (default of `tritongen serve`)"
        flag = f"--{protocol.lower()}-port"
        try:
            check_port(port, "127.0.0.1", flag)
        except TritongenError:
            found = f"held by {holder(port) or 'a process of another user'}"
            yield Check(f"port {port}", "warning", found, purpose, f"tritongen serve {flag} 0")
        else:
            yield Check(f"port {port}", "ok", "free", purpose)


def _shared_memory() -> Check:
    purpose = "passing tensors inside the embedded server"
    try:
        size = shutil.disk_usage(SHM)
    except OSError as error:
        return Check(SHM, "missing", str(error), purpose, "mount -t tmpfs tmpfs /dev/shm")
    found = f"{_size(size.free)} free of {_size(size.total)}"
    if size.free < MINIMUM_SHM_BYTES:
        fix = "free it, or start the container with a larger --shm-size"
        return Check(SHM, "warning", found, purpose, fix)
    return Check(SHM, "ok", found, purpose)


def _disk() -> Check:
    purpose = "trials and repositories"
    try:
        places = {"here": ".", "temporary": tempfile.gettempdir()}
        free = {name: shutil.disk_usage(path).free for name, path in places.items()}
    except OSError as error:
        return Check("disk", "warning", str(error), purpose, "set TMPDIR to a folder that can be written to")
    found = ", ".join(f"{_size(size)} free {name}" for name, size in free.items())
    if min(free.values()) < MINIMUM_DISK_BYTES:
        return Check("disk", "warning", found, purpose, "free some, or set TMPDIR")
    return Check("disk", "ok", found, purpose)


def _processor() -> Check:
    cores = len(os.sched_getaffinity(0))
    flags = set(_cpu_flags())
    int8 = next((name for name in ("amx_int8", "avx512_vnni", "avx_vnni") if name in flags), None)
    vector = next((name for name in ("avx512f", "avx2") if name in flags), "no AVX2")
    found = f"{cores} usable cores, {vector}, {int8 or 'no VNNI (INT8 gains little)'}"
    return Check("processor", "ok", found, "building and serving on the CPU")


def _cpu_flags() -> list[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []
    return next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), [])


def _gpu() -> Check:
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    found = _output(query)
    if found:
        return Check("GPU", "ok", "; ".join(found.splitlines()), "TensorRT")
    return Check("GPU", "absent", "no NVIDIA GPU or driver", "TensorRT")


def _tensorrt() -> Check:
    for distribution in ("tensorrt", "tensorrt-cu13", "tensorrt-cu12"):
        if version := _version(distribution):
            return Check("TensorRT", "ok", f"{distribution} {version}", "the TensorRT engine")
    fix = "pip install 'tritongen[tensorrt]' (only useful with a GPU)"
    return Check("TensorRT", "absent", "not installed", "the TensorRT engine", fix)


def _containers() -> Iterator[Check]:
    purpose = "serving in a container"
    host = hosts.look()
    if host.engine is None and any(mark.exists() for mark in MARKS_OF_A_CONTAINER):
        return  # nobody starts containers from in here, or Docker would be here
    engine = f"engine {host.engine.version}" if host.engine else None
    yield _found_or_absent("Docker", engine, host.engine_problem, purpose)
    version = ".".join(map(str, host.compose.version)) if host.compose else ""
    compose = f"{host.compose.words} {version}" if host.compose else None
    yield _found_or_absent("Docker Compose", compose, host.compose_problem, purpose)
    purpose = "the GPU in a container"
    if host.container_gpus:
        yield Check("NVIDIA container runtime", "ok", host.container_gpus, purpose)
    elif host.engine is None:
        yield Check("NVIDIA container runtime", "absent", "unknown without Docker", purpose)
    else:
        found = f"Docker has {', '.join(host.engine.runtimes)}, and there is no CDI specification"
        yield Check("NVIDIA container runtime", "absent", found, purpose, hosts.INSTALL_TOOLKIT)


def _found_or_absent(name: str, found: str | None, problem: TritongenError | None, purpose: str) -> Check:
    if problem is None:
        return Check(name, "ok", found or "", purpose)
    said = f"{problem.message}: {problem.found}" if problem.found else problem.message
    return Check(name, "absent", said, purpose, problem.fix)


def _output(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PROBE_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _size(count: int) -> str:
    return f"{count / (1 << 30):.1f} GB"
