"""Plans as the stand-in writes them, for tests that do not load it themselves."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
"""To be first on the path of whatever is to find the stand-ins."""


def plan_bytes(
    model: Path,
    profiles: Sequence[Mapping[str, Any]],
    *,
    version: str = "8.6.0",
    capability: Sequence[int] = (9, 0),
    flags: Sequence[str] = ("FP16",),
    plugins: Sequence[str] = (),
) -> bytes:
    """A plan of an ONNX file; `profiles` are `engines.tensorrt.profiles.Profile`s.

    It loads only where libraries of the names in `plugins` were loaded.
    """
    return json.dumps(
        {
            "stand-in": version,
            "capability": list(capability),
            "model": base64.b64encode(model.read_bytes()).decode(),
            "profiles": [
                {name: [list(extent.min), list(extent.opt), list(extent.max)] for name, extent in one.items()}
                for one in profiles
            ],
            "flags": list(flags),
            "plugins": list(plugins),
        }
    ).encode()
