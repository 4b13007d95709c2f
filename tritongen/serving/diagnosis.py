"""Triton's log → one error that names the cause."""

from __future__ import annotations

import re
from pathlib import Path

from tritongen.errors import ServerError

_ERROR_LINE = re.compile(r'^E\d{4} [\d:.]+ \d+ [\w.]+:\d+\] "?(?P<text>.*?)"?$', re.MULTILINE)
_LOAD_FAILURE = re.compile(
    r"failed to load '(?P<model>[^']+)' version (?P<version>\d+): (?P<cause>.*)", re.DOTALL
)
_EXCEPTION_PREFIX = re.compile(r"^(\w+( \w+)?: )?(TritonModelException|[\w.]*Error|[\w.]*Exception): ")
_NOISE = ("CudaDriverHelper", "NVML", "DCGM")


def bind_failed(log: str) -> bool:
    """Whether the server ended because it could not open a port."""
    return re.search(r"address already in use|Socket '[^']*' already in use", log, re.IGNORECASE) is not None


def cause_of_failure(log: str, repository: Path, log_file: Path | None) -> ServerError:
    """The error that explains why the server ended before it was ready."""
    return ServerError(f"Triton ended before it was ready, on {repository}", found=log, fix=str(log_file))
