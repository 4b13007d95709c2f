"""Load tests: `run_load_test(Settings("model", rate=200, slos=[parse_slo("p99<=20ms")]))`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tritongen.loadtest.run import run_load_test
    from tritongen.loadtest.settings import Settings

__all__ = ["Settings", "run_load_test"]


def __getattr__(name: str) -> Any:
    """Imported when asked for: the workers, which import this package too, start faster without."""
    if name == "run_load_test":
        from tritongen.loadtest.run import run_load_test

        return run_load_test
    if name == "Settings":
        from tritongen.loadtest.settings import Settings

        return Settings
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
