"""Whether the TensorRT of a serving image loads a model's plan."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from tritongen.repository.findings import REBUILD, Finding
from tritongen.repository.targets import VERSION_COMPATIBLE, find_target, known_tags, same_release

if TYPE_CHECKING:
    from tritongen.repository.manifest import Manifest
    from tritongen.repository.targets import Target

_VERY_VERSION = "a plan loads only in the very TensorRT version that built it"


def check_plan_image(manifest: Manifest, target: Target) -> Iterator[Finding]:
    """Findings about the plan in the image: another TensorRT, an unknown one, or an unverified row."""
    name, built, known = manifest.name, manifest.versions.get("tensorrt"), target.tensorrt
    if known is None:
        message = f"{target.name} is not known to have TensorRT"
        yield Finding(name, "target", message, _VERY_VERSION, f"use {_image_with(built)}")
    elif built is None:
        message = "the manifest does not say which TensorRT built the plan"
        why = f"whether TensorRT {known} of {target.name} loads it is unknown"
        yield Finding(name, "target", message, why, REBUILD, "unknown")
    elif same_release(built, known.version):
        if not known.verified:
            message = f"that {target.name} has TensorRT {known.version} is unverified"
            ask = f"docker run --rm {target.name} printenv TRT_VERSION"
            yield Finding(name, "target", message, "the plan may not load", ask, "warning")
    elif manifest.candidate.options.get("version_compatible") and target.loads_version_compatible(built):
        yield Finding(
            name,
            "target",
            f"the plan is version-compatible: of TensorRT {built}, for {known} of {target.name}",
            "it loads only where the server was told to take such plans, which may carry host code",
            f"start tritonserver with --backend-config={VERSION_COMPATIBLE}",
            "warning",
        )
    else:
        yield Finding(
            name,
            "target",
            f"the plan was built by TensorRT {built}, and {target.name} has {known}",
            _VERY_VERSION,
            f"build it in the image's own TensorRT (docker compose --profile build run --rm build), or use "
            f"{_image_with(built)}",
        )


def _image_with(built: str | None) -> str:
    """The newest image with that TensorRT, in words."""
    targets = [find_target(tag) for tag in reversed(known_tags())] if built else []
    for target in targets:
        if target.tensorrt is not None and same_release(str(built), target.tensorrt.version):
            return target.name
    return f"an image with TensorRT {built} (none of the table has it)" if built else "an image with TensorRT"
