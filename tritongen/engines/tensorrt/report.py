"""What `tritongen inspect` tells: a plan layer by layer, and whether TensorRT's parser takes a graph."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tritongen.engines.tensorrt import api, cuda
from tritongen.engines.tensorrt.building import Log, load_plugin, make_logger, refusal, start_builder
from tritongen.engines.tensorrt.inspection import Layer, profile_layers
from tritongen.engines.tensorrt.runner import TensorRTRunner
from tritongen.errors import BuildError, ModelError, RequirementError

RTX_CAVEAT = "tensorrt_rtx's parser accepts graphs that the parsers of 8.6, 10 and 11 may refuse"


@dataclass(frozen=True)
class PlanReport:
    """A plan's layers with their times at one profile's usual shapes."""

    profile: int
    shapes: dict[str, tuple[int, ...]]
    layers: tuple[Layer, ...]

    def summary(self) -> str:
        """How much of the time goes into which precision, into reformats, and how many nodes were fused."""
        total = sum(layer.time_ms or 0.0 for layer in self.layers)
        kinds: dict[str, float] = {}
        for layer in self.layers:
            kind = "reformats" if layer.reformat else layer.precision
            kinds[kind] = kinds.get(kind, 0.0) + (layer.time_ms or 0.0)
        shares = sorted(kinds.items(), key=lambda entry: -entry[1])
        by_kind = ", ".join(f"{100 * time / total:.0f} % {kind}" for kind, time in shares) if total else ""
        fused = [layer for layer in self.layers if len(layer.fused) > 1]
        nodes = sum(len(layer.fused) for layer in fused)
        words = [f"{len(self.layers)} layers, {total:.3f} ms by the profiler", by_kind]
        if fused:
            words.append(f"{nodes} nodes fused into {len(fused)} layers")
        return "; ".join(filter(None, words))


@dataclass(frozen=True)
class ParserReport:
    """Whether a parser takes a graph."""

    parser: str
    """Module and version that were asked."""
    problems: tuple[str, ...]
    """Refused nodes with the parser's words; empty: accepted."""
    caveat: str = ""
    errors: tuple[dict[str, str], ...] = ()
    """The same as the parser gave it."""

    def refusal(self, model: Path) -> ModelError:
        """The error that names the refused nodes and the choices."""
        return refusal(model, self.errors, self.parser.removeprefix("tensorrt "))


def plan_layers(
    path: Path, profile: int = 0, *, plugins: Sequence[Path] = (), host_code: bool = False
) -> PlanReport:
    """Run a plan at the usual shapes of `profile`; RequirementError without TensorRT or a GPU.

    Its inputs are made up: normally distributed numbers, or zeros where they may be indices.
    `host_code`: trust the code that a version-compatible plan carries.
    """
    trt = api.load()
    reason = cuda.unavailable_reason()
    if reason is not None:
        raise RequirementError(
            "a plan's layers are read by running it on its GPU",
            found=reason,
            fix=f"without --layers, `tritongen inspect {path}` tells what its manifest knows",
        )
    with TensorRTRunner(
        path, cuda_graph=False, transfers=False, plugins=plugins, host_code=host_code
    ) as runner:
        profiles = runner.profiles
        if not 0 <= profile < len(profiles):
            raise BuildError(f"{path.name} has no profile {profile}", expected=f"0 … {len(profiles) - 1}")
        shapes = {name: extent.opt for name, extent in profiles[profile].items()}
        dtypes = {binding.name: binding.dtype for binding in runner.bindings}
        runner.prepare({name: _made_up(shape, dtypes[name]) for name, shape in shapes.items()})
        return PlanReport(profile, shapes, profile_layers(trt, runner))


def _made_up(shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    if not np.issubdtype(dtype, np.floating):
        return np.zeros(shape, dtype)
    # Zeros draw less power than data, and a GPU may run them faster.
    return np.random.default_rng(0).standard_normal(shape).astype(dtype)


def check_graph(model: Path, plugins: Sequence[Path] = ()) -> ParserReport:
    """Ask the parser of TensorRT (needs a GPU), else of tensorrt_rtx; RequirementError without either."""
    trt, name = _parser_module()
    log = Log()
    logger = make_logger(trt, log)
    for plugin in plugins:
        load_plugin(trt, logger, plugin)
    builder = start_builder(trt, logger, log)
    network = api.create_network(trt, builder, strongly_typed=not api.features(trt).weakly_typed)
    parser = trt.OnnxParser(network, logger)
    taken = parser.parse_from_file(str(model))
    errors = () if taken else tuple(api.parser_problems(parser))
    problems = tuple(f"{api.node_text(model, one)}: {one['reason']}" for one in errors)
    caveat = RTX_CAVEAT if name == "tensorrt_rtx" and not problems else ""
    return ParserReport(f"{name} {trt.__version__}", problems, caveat, errors)


def _parser_module() -> tuple[Any, str]:
    """TensorRT, which needs a GPU to start, or tensorrt_rtx, which does not; and its name."""
    for name, usable in (("tensorrt", cuda.unavailable_reason() is None), ("tensorrt_rtx", True)):
        with suppress(RequirementError):
            if usable:
                return api.load(name), name
    raise RequirementError(
        "no TensorRT parser works here",
        found="neither TensorRT with a GPU nor tensorrt_rtx",
        fix="pip install tensorrt-rtx-cu13 brings a parser that needs no GPU",
    )
