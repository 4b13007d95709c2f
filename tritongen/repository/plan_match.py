"""Whether a TensorRT plan still loads on this machine: TensorRT, driver, GPU and capability, each by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from tritongen.repository.findings import Finding

_REBUILD = "build it here with `tritongen build`"

# Version key in the manifest → (what it is called, whether another one stops the plan from loading).
_PARTS = {
    "tensorrt": ("TensorRT", True),
    "compute_capability": ("compute capability", True),
    "gpu": ("GPU", False),
    "cuda_driver": ("CUDA driver", False),
}


def check_plan_here(name: str, built: Mapping[str, str]) -> Iterator[Finding]:
    """Findings about serving, on this machine, a plan that was built with the versions `built`."""
    from tritongen.engines import load_engine

    engine = load_engine("tensorrt")
    reason = engine.unavailable_reason()
    if reason is not None:
        yield Finding(
            name, "target", f"this machine cannot serve a plan: {reason}", "the model will not load",
            "serve it where it was built, or name the image that will serve it with --image",
        )  # fmt: skip
        return
    yield from compare(name, built, engine.versions())


def compare(name: str, built: Mapping[str, str], here: Mapping[str, str]) -> Iterator[Finding]:
    """A finding for each part that differs: an error where the plan will not load, else a warning."""
    for key, (words, fatal) in _PARTS.items():
        if key in built and key in here and built[key] != here[key]:
            yield Finding(
                name,
                "target",
                f"the plan was built with {words} {built[key]}, and this machine has {here[key]}",
                "it will not load"
                if fatal
                else "it was tuned for the other one: it may be slower, or not load",
                _REBUILD,
                "error" if fatal else "warning",
            )
