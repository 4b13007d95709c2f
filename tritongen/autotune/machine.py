"""The machine at hand: what numbers depend on, and what they must never be compared across."""

from __future__ import annotations

import math
import os
import platform
import shutil
import subprocess
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from tritongen.runs.records import Machine

CPU_FEATURES = (
    "avx", "avx2", "avx512f", "avx512bw", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_tile", "amx_int8",
    "amx_bf16", "f16c", "fma", "asimddp", "i8mm", "bf16", "sve",
)  # fmt: skip
"""The flags of /proc/cpuinfo that decide how fast floating-point and integer kernels are."""

_NVIDIA_SMI = ("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader")


def current_machine() -> Machine:
    """The machine that this process runs on; GPUs are asked for only if there is a driver."""
    name, flags = _cpu(_read(Path("/proc/cpuinfo")))
    gpus, driver = _gpus()
    return Machine(
        hostname=platform.node(),
        system=f"{platform.system()} {platform.release()}, {' '.join(platform.libc_ver()) or 'unknown libc'}",
        python=platform.python_version(),
        cpu=name or platform.processor() or platform.machine(),
        cores=usable_cores(),
        cpu_features=tuple(feature for feature in CPU_FEATURES if feature in flags),
        memory_bytes=_memory_bytes(),
        gpus=gpus,
        driver=driver,
    )


def identity(machine: Machine) -> dict[str, object]:
    """The part of a machine that measurements hang on: not its name, its memory, or its patch level."""
    return machine.model_dump(mode="json", exclude={"hostname", "memory_bytes", "system", "python"})


def usable_cores(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Cores that this process may use: its CPU affinity, cut to the container's CPU quota (rounded up)."""
    affinity = len(os.sched_getaffinity(0))
    quota = _cgroup_quota(cgroup)
    return affinity if quota is None else max(1, min(affinity, math.ceil(quota)))


def _cgroup_quota(cgroup: Path) -> float | None:
    """Cores of a cgroup's quota (v2 `cpu.max`, v1 `cpu.cfs_quota_us`), None where there is none."""
    quota, _, period = _read(cgroup / "cpu.max").strip().partition(" ")
    if not period:
        quota = _read(cgroup / "cpu" / "cpu.cfs_quota_us").strip()
        period = _read(cgroup / "cpu" / "cpu.cfs_period_us").strip()
    if not quota.isdigit() or not period.isdigit() or int(period) == 0:
        return None
    return int(quota) / int(period)


def _memory_bytes(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Memory of the machine, cut to the container's limit."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = (_read(cgroup / name).strip() for name in ("memory.max", "memory/memory.limit_in_bytes"))
    return min([physical, *(int(limit) for limit in limits if limit.isdigit())])


def _cpu(cpuinfo: str) -> tuple[str, frozenset[str]]:
    """The CPU's name and its flags from the text of /proc/cpuinfo."""
    fields: dict[str, str] = {}
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    flags = fields.get("flags", fields.get("Features", ""))
    return fields.get("model name", fields.get("CPU part", "")), frozenset(flags.split())


def _gpus() -> tuple[tuple[str, ...], str | None]:
    """GPU names and the driver's version; asked only where a driver is loaded, as asking takes its time."""
    if not Path("/dev/nvidiactl").exists():
        return (), None
    return _gpus_by_nvml() if find_spec("pynvml") else _gpus_by_smi()


def _gpus_by_nvml() -> tuple[tuple[str, ...], str | None]:
    pynvml = import_module("pynvml")
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return (), None
    try:
        handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        return tuple(str(pynvml.nvmlDeviceGetName(handle)) for handle in handles), str(
            pynvml.nvmlSystemGetDriverVersion()
        )
    except pynvml.NVMLError:
        return (), None
    finally:
        pynvml.nvmlShutdown()


def _gpus_by_smi() -> tuple[tuple[str, ...], str | None]:
    if shutil.which(_NVIDIA_SMI[0]) is None:
        return (), None
    try:
        answer = subprocess.run(_NVIDIA_SMI, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.SubprocessError):
        return (), None
    rows = [line.split(", ") for line in answer.stdout.splitlines() if ", " in line]
    return tuple(row[0] for row in rows), rows[0][1] if rows else None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
