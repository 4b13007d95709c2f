"""Where this machine's tritonserver is, and what around it is missing."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from importlib import util
from pathlib import Path

from tritongen.errors import RequirementError

MINIMUM_GLIBC = (2, 35)
SUPPORTED_PYTHONS = ((3, 10), (3, 11), (3, 12))
INSTALL_COMMAND = "pip install 'tritongen[serve]'"
REINSTALL_COMMAND = "pip install --force-reinstall --no-deps 'nvidia-pytriton>=0.7,<0.8'"
"""With the range of pyproject.toml; tritongen itself need not be in any index."""


@dataclass(frozen=True)
class Installation:
    """The files of an embedded tritonserver."""

    binary: Path
    libraries: Path
    python_backend: Path
    stub: Path
    caches: Path
    libpython: Path


def find_installation() -> Installation:
    """The tritonserver of the nvidia-pytriton wheel; RequirementError naming the first missing piece."""
    check_platform()
    package = _package_folder()
    server = package / "tritonserver"
    stub = server / "python_backend_stubs" / python_version() / "triton_python_backend_stub"
    found = Installation(
        binary=server / "bin" / "tritonserver",
        libraries=package.parent / "nvidia_pytriton.libs",
        python_backend=server / "backends" / "python",
        stub=stub,
        caches=server / "caches",
        libpython=find_libpython(),
    )
    for path in (found.binary, found.libraries, found.python_backend, found.stub):
        if not path.exists():
            raise RequirementError(
                "the embedded Triton's wheel (nvidia-pytriton) is not complete",
                found=f"no {path.relative_to(package.parent)}",
                fix=REINSTALL_COMMAND,
            )
    if shutil.which("bash") is None:
        raise RequirementError(
            "the embedded Triton starts its Python processes through bash, and there is none",
            fix="apt-get install bash",
        )
    return found


def check_platform() -> None:
    """RequirementError if this Python or this C library cannot carry the embedded server."""
    if sys.version_info[:2] not in SUPPORTED_PYTHONS:
        raise RequirementError(
            "the embedded Triton has no wheel for this Python (it needs numpy < 2)",
            found=f"Python {python_version()}",
            expected="Python 3.10, 3.11 or 3.12",
            fix="make the environment with one of these, or serve with the official container",
        )
    if platform.machine() not in ("x86_64", "AMD64"):
        raise RequirementError(
            "the embedded Triton has no wheel for this processor",
            found=platform.machine(),
            expected="x86_64",
            fix="serve with the official container",
        )
    if (glibc := glibc_version()) is None or glibc < MINIMUM_GLIBC:
        raise RequirementError(
            "the embedded Triton needs a newer C library",
            found="no glibc" if glibc is None else f"glibc {glibc[0]}.{glibc[1]}",
            expected="glibc 2.35 or newer (Debian 12, Ubuntu 22.04)",
            fix="serve with the official container",
        )


def python_version() -> str:
    """Major and minor of the running Python ("3.11")."""
    return ".".join(map(str, sys.version_info[:2]))


def glibc_version() -> tuple[int, int] | None:
    """The C library's version, or None where it is not glibc."""
    try:
        match = re.fullmatch(r"glibc (\d+)\.(\d+)", os.confstr("CS_GNU_LIBC_VERSION") or "")
    except (ValueError, OSError):
        return None
    return (int(match[1]), int(match[2])) if match else None


def find_libpython() -> Path:
    """The running Python version's shared library; RequirementError naming the package that has it."""
    name = f"libpython{python_version()}.so.1.0"
    folders = [sysconfig.get_config_var("LIBDIR"), f"{sys.base_prefix}/lib", *_system_library_folders(name)]
    for folder in folders:
        if folder and (path := Path(folder, name)).is_file():
            return path
    raise RequirementError(
        f"the embedded Triton needs {name}, which this Python was installed without",
        found=f"none in {', '.join(dict.fromkeys(f for f in folders if f))}",
        fix=f"apt-get install libpython{python_version()}",
    )


def _system_library_folders(name: str) -> list[str]:
    """Where the dynamic linker knows `name`."""
    ldconfig = shutil.which("ldconfig") or "/sbin/ldconfig"
    try:
        listing = subprocess.run([ldconfig, "-p"], capture_output=True, text=True, check=False).stdout
    except OSError:
        listing = ""
    known = re.findall(rf"^\s*{re.escape(name)} .* => (\S+)$", listing, re.MULTILINE)
    multiarch = sysconfig.get_config_var("MULTIARCH") or "x86_64-linux-gnu"
    return [
        *(str(Path(path).parent) for path in known),
        f"/usr/lib/{multiarch}",
        "/usr/lib64",
        "/usr/local/lib",
    ]


def _package_folder() -> Path:
    # Importing pytriton has side effects (it changes the environment); its place is all we need.
    spec = util.find_spec("pytriton")
    if spec is None or spec.origin is None:
        raise RequirementError(
            "the embedded Triton is not installed", found="no nvidia-pytriton", fix=INSTALL_COMMAND
        )
    return Path(spec.origin).parent
