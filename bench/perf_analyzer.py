"""perf_analyzer 2.49 without a container: from the tritonclient wheel, with the libraries that it wants."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from importlib.util import find_spec
from pathlib import Path

WHEEL = "tritonclient==2.49.0"


def fetch() -> tuple[Path, Path]:
    """The program and the folder of its libraries; fetched once, into the folder for temporary files."""
    scratch = Path(tempfile.gettempdir()) / "tritongen-bench-perf-analyzer"
    scratch.mkdir(exist_ok=True)
    program, libraries = scratch / "perf_analyzer", scratch / "libs"
    libraries.mkdir(exist_ok=True)
    if not program.exists():
        options = ["--no-deps", "--only-binary=:all:", "--platform=manylinux1_x86_64", "--quiet"]
        subprocess.run([sys.executable, "-m", "pip", "download", *options, "-d", scratch, WHEEL], check=True)
        with zipfile.ZipFile(next(scratch.glob("tritonclient-*.whl"))) as wheel:
            name = next(each for each in wheel.namelist() if each.endswith("bin/perf_analyzer"))
            program.write_bytes(wheel.read(name))
        program.chmod(0o755)
    if not (libraries / "libb64.so.0d").exists():
        subprocess.run(["apt-get", "-qq", "download", "libb64-0d"], cwd=scratch, check=True)
        subprocess.run(["dpkg", "-x", next(scratch.glob("libb64-0d*.deb")), scratch / "deb"], check=True)
        found = next(scratch.glob("deb/**/libb64.so.0d"))
        (libraries / found.name).write_bytes(found.read_bytes())
    runtime = libraries / "libcudart.so.12"
    if not runtime.exists():
        runtime.symlink_to(_cuda_runtime())
    return program, libraries


def _cuda_runtime() -> Path:
    """A CUDA 12 runtime; nvidia-pytriton's wheel has one."""
    spec = find_spec("pytriton")
    if spec is None or spec.origin is None:
        raise SystemExit("perf_analyzer needs libcudart.so.12: pip install nvidia-pytriton")
    return next((Path(spec.origin).parent.parent / "nvidia_pytriton.libs").glob("libcudart*.so.12*"))
