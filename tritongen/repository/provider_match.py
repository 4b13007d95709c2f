"""Whether this machine serves a model that was measured on one of ONNX Runtime's GPU providers."""

from __future__ import annotations

from collections.abc import Iterator

from tritongen.engines import VARIANTS, load_engine
from tritongen.repository.findings import Finding


def check_provider_here(name: str, engine: str) -> Iterator[Finding]:
    """A finding if `engine` (as the manifest names it) needs a provider that ONNX Runtime lacks here."""
    reason = load_engine(engine).unavailable_reason() if engine in VARIANTS else None
    if reason is not None:
        yield Finding(
            name, "target", f"this machine cannot serve it: {reason}", "the model will not load here",
            "serve it where it was built, or name the image that will serve it with --image",
        )  # fmt: skip
