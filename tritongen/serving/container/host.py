"""What this machine offers a container: the Docker engine, its GPUs and their driver."""

from __future__ import annotations

import csv
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from tritongen.errors import RequirementError, TritongenError
from tritongen.serving.container.engine import Compose, Engine, call, find_compose, find_engine

Found = TypeVar("Found")
INSTALL_TOOLKIT = (
    "install the NVIDIA container toolkit, then: sudo nvidia-ctk runtime configure --runtime=docker && "
    "sudo systemctl restart docker"
)
_DRIVER = Path("/proc/driver/nvidia/version")
_CDI = (Path("/etc/cdi"), Path("/var/run/cdi"))
_SELINUX = Path("/sys/fs/selinux/enforce")
_PROBE_TIMEOUT_S = 20.0


@dataclass(frozen=True)
class Gpu:
    """One NVIDIA GPU."""

    name: str
    driver: str
    compute_capability: str | None
    """ "9.0"; None where the driver is too old to say."""


@dataclass(frozen=True)
class Host:
    """This machine, looked at once."""

    engine: Engine | None
    engine_problem: TritongenError | None
    """Why there is no engine."""
    compose: Compose | None
    compose_problem: TritongenError | None
    gpus: tuple[Gpu, ...]
    gpu_problem: str | None
    """Why nothing is known about GPUs; None if it is known (also that there is none)."""
    container_gpus: str | None
    """How containers get at the GPUs ("nvidia runtime", "CDI"); None if not at all."""
    selinux_enforcing: bool


def look() -> Host:
    """Look at this machine; nothing raises, nothing is changed."""
    engine, engine_problem = _found(find_engine)
    compose, compose_problem = _found(find_compose)
    gpus, gpu_problem = look_for_gpus()
    return Host(
        engine=engine,
        engine_problem=engine_problem,
        compose=compose,
        compose_problem=compose_problem,
        gpus=gpus,
        gpu_problem=gpu_problem,
        container_gpus=container_gpus(engine),
        selinux_enforcing=_read(_SELINUX) == "1",
    )


def look_for_gpus() -> tuple[tuple[Gpu, ...], str | None]:
    """The GPUs by `nvidia-smi`, and why nothing is known about them (None: it is known)."""
    if shutil.which("nvidia-smi") is None:
        driver = re.search(r"Kernel Module\D*([\d.]+)", _read(_DRIVER))
        return (), f"there is driver {driver[1]}, and no nvidia-smi to ask about GPUs" if driver else None
    for fields in ("name,driver_version,compute_cap", "name,driver_version"):
        try:
            answer = call(
                ("nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"),
                check=False,
                timeout_s=_PROBE_TIMEOUT_S,
            )
        except RequirementError as error:
            return (), error.message
        if answer.code == 0:
            return tuple(_gpus(answer.stdout)), None
    return (), f"nvidia-smi failed: {answer.last_line}"


def has_no_gpu() -> bool:
    """Whether this machine is known to have no GPU: files that ask for one cannot start here."""
    return look_for_gpus() == ((), None)


def container_gpus(engine: Engine | None) -> str | None:
    """How a container gets at the GPUs: by the nvidia runtime, by a CDI specification, or not (None)."""
    if engine is not None and "nvidia" in engine.runtimes:
        return "nvidia runtime"
    if any(path.name.startswith("nvidia") for folder in _CDI for path in _entries(folder)):
        return "CDI"
    return None


def _gpus(text: str) -> Iterator[Gpu]:
    for row in csv.reader(text.splitlines(), skipinitialspace=True):
        if len(row) > 1:
            capability = row[2].strip() if len(row) > 2 else ""  # noqa: PLR2004
            known = re.fullmatch(r"\d+\.\d+", capability)
            yield Gpu(row[0].strip(), row[1].strip(), capability if known else None)


def _found(look_for: Callable[[], Found]) -> tuple[Found | None, TritongenError | None]:
    try:
        return look_for(), None
    except TritongenError as error:
        return None, error


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []
