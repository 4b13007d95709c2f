"""Load tests: `run_load_test(Settings("model", rate=200, slos=[parse_slo("p99<=20ms")]))`."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tritongen.loadtest.peak import find_max
    from tritongen.loadtest.run import run_load_test
    from tritongen.loadtest.settings import Settings
    from tritongen.loadtest.shape import parse_rate
    from tritongen.loadtest.trace import read_trace
    from tritongen.serving.access import Access
    from tritongen.slo import parse_slo

__all__ = ["Access", "Settings", "find_max", "parse_rate", "parse_slo", "read_trace", "run_load_test"]

_HOMES = {
    "Access": "tritongen.serving.access",
    "Settings": "tritongen.loadtest.settings",
    "find_max": "tritongen.loadtest.peak",
    "parse_rate": "tritongen.loadtest.shape",
    "parse_slo": "tritongen.slo",
    "read_trace": "tritongen.loadtest.trace",
    "run_load_test": "tritongen.loadtest.run",
}


def __getattr__(name: str) -> Any:
    """Imported when asked for: the workers, which import this package too, start faster without."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
