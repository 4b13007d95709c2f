"""A candidate's options, between the spec's words, the search's variations and the builder's settings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tritongen.engines.tensorrt import api
from tritongen.engines.tensorrt.building import Settings, read_ranges
from tritongen.engines.tensorrt.profiles import from_text, profiles_per_batch_size, to_text, wide_profile
from tritongen.runs.records import Candidate, Options
from tritongen.spec import Precision, TensorRTSpec

if TYPE_CHECKING:
    from tritongen.shapes import ResolvedInput

PROFILES = "profiles"
"""The option that carries the optimization profiles, as text."""
MATH = "math"
"""The option that says what FP32 layers may compute in: `fp32` or `tf32`."""
FRESH = "fresh_build"
"""The option of a build that looks at no timing cache; its number only tells such builds apart."""

_PLAIN = (
    "optimization_level", "timing_iterations", "aux_streams", "workspace_mb", "tiling", "build_route",
)  # fmt: skip
_SWITCHES = ("sparsity", "refit", "version_compatible", "hardware_compatible")


def builder_options(spec: TensorRTSpec) -> Options:
    """What the spec says of the builder; only what differs from its defaults."""
    found: Options = {name: value for name in _PLAIN if (value := getattr(spec, name)) is not None}
    found |= {name: True for name in _SWITCHES if getattr(spec, name)}
    if spec.tactic_sources:
        found["tactic_sources"] = ",".join(spec.tactic_sources)
    if spec.plugins:
        found["plugins"] = ";".join(str(plugin.absolute()) for plugin in spec.plugins)
    return found


def settings_of(candidate: Candidate, model: Path) -> Settings:
    """What a candidate's options mean to the builder; a ranges file beside the model makes INT8 implicit."""
    options = candidate.options
    workspace_mb = _whole(options, "workspace_mb")
    ranges = model.with_suffix(".ranges.json")
    implicit = candidate.precision is Precision.INT8 and ranges.exists()
    return Settings(
        precision=candidate.precision,
        tf32=options.get(MATH, "tf32") == "tf32",
        profiles=from_text(str(options.get(PROFILES, ""))),
        optimization_level=_whole(options, "optimization_level"),
        timing_iterations=_whole(options, "timing_iterations"),
        workspace_bytes=None if workspace_mb is None else workspace_mb << 20,
        aux_streams=_whole(options, "aux_streams"),
        sparsity=bool(options.get("sparsity", False)),
        tiling_level=_text(options, "tiling"),
        build_route=_text(options, "build_route"),
        tactic_sources=tuple(str(options.get("tactic_sources", ",".join(api.OWN_SOURCES))).split(",")),
        refittable=bool(options.get("refit", False)),
        version_compatible=bool(options.get("version_compatible", False)),
        hardware_compatible=bool(options.get("hardware_compatible", False)),
        ranges=read_ranges(ranges) if implicit else None,
        plugins=tuple(Path(path) for path in str(options.get("plugins", "")).split(";") if path),
    )


def variations(
    candidate: Candidate,
    has: api.Features,
    *,
    best_of: int,
    thorough: bool,
    inputs: Sequence[ResolvedInput],
    max_batch_size: int,
) -> list[tuple[str, Options]]:
    """(name, changed options) of other builds of a candidate: fresh ones, and each tuning axis alone."""
    found: list[tuple[str, Options]] = [(f"build{n}", {FRESH: n}) for n in range(2, best_of + 1)]
    if not thorough:
        return found
    axes: list[tuple[str, Options]] = [
        ("level5", {"optimization_level": 5}),
        ("timing8", {"timing_iterations": 8}),
        ("aux0", {"aux_streams": 0}),
    ]
    if has.tiling:
        axes.append(("tiling", {"tiling": "FULL"}))
    if inputs and max_batch_size > 1:
        sizes = [1 << i for i in range(max_batch_size.bit_length())]
        each = profiles_per_batch_size(inputs, sorted({*sizes[:-1], max_batch_size}))
        axes.append(("one-profile", {PROFILES: to_text([wide_profile(inputs, max_batch_size)])}))
        axes.append(("profile-per-size", {PROFILES: to_text(each)}))
    known = candidate.options
    # What the spec or the first guess set already is no variation.
    return found + [
        (name, change)
        for name, change in axes
        if all(
            known.get(key) != value and (key == PROFILES or key not in known) for key, value in change.items()
        )
    ]


def _whole(options: Options, name: str) -> int | None:
    return int(options[name]) if name in options else None


def _text(options: Options, name: str) -> str | None:
    return str(options[name]) if name in options else None
