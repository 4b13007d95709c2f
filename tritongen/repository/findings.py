"""What `verify` finds: what is wrong, why it will fail, and the command that mends it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

Severity = Literal["error", "warning", "unknown"]

BUILD, FORCED_BUILD = "`tritongen build`", "`tritongen build --force`"
FROM_SOURCE = f"{BUILD} and its spec (or its ONNX file and flags)"
"""A manifest knows neither the spec's path nor the flags."""
REBUILD = f"build it again with {FROM_SOURCE}"
BUILD_HERE = f"build it here with {FROM_SOURCE}"


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong (error), that one should know (warning), or that could not be found out."""

    model: str | None
    """None for the repository as a whole."""
    check: str
    """Stable short name: `digest`, `config`, `rule:reshape`, `tensors`, `target`, …"""
    message: str
    """What was found."""
    why: str
    """What will happen because of it."""
    fix: str
    """The command or the change that mends it."""
    severity: Severity = "error"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        subject = "" if self.model is None else f"{self.model}: "
        return f"{self.severity}: {subject}{self.message}\n  why:    {self.why}\n  to fix: {self.fix}"
