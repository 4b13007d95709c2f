"""A container that is about to be started on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tritongen.repository.findings import Finding

if TYPE_CHECKING:
    from tritongen.repository.manifest import Manifest
    from tritongen.serving.container.host import Host
    from tritongen.serving.container.identification import Identified
    from tritongen.serving.container.service import Service


@dataclass(frozen=True)
class Launch:
    """Everything that decides whether it can serve the repository here."""

    image: Identified
    service: Service
    repository: Path
    manifests: Sequence[Manifest]
    host: Host

    @property
    def plans(self) -> list[Manifest]:
        """The models that are TensorRT plans."""
        return [manifest for manifest in self.manifests if manifest.backend == "tensorrt"]

    @property
    def gpu_models(self) -> list[Manifest]:
        """The models that run on a GPU."""
        return [manifest for manifest in self.manifests if needs_gpu(manifest)]

    @property
    def user(self) -> str | None:
        """The container's user as Docker takes it ("" is root); None where it is unknown."""
        if self.service.user is not None:
            return self.service.user
        return None if self.image.local is None else self.image.local.user


def needs_gpu(manifest: Manifest) -> bool:
    """A plan, or an ONNX file for ONNX Runtime's CUDA or TensorRT provider (engine "onnxruntime-cuda")."""
    return manifest.backend == "tensorrt" or manifest.engine.startswith("onnxruntime-")


def unknown(check: str, message: str, why: str, fix: str, model: str | None = None) -> Finding:
    """A finding about something that could not be found out on this machine."""
    return Finding(model, check, message, why, fix, "unknown")


def size_text(count: int) -> str:
    """Bytes as people read them ("64 MB")."""
    return f"{count / (1 << 30):.1f} GB" if count >= 1 << 30 else f"{count / (1 << 20):.0f} MB"
