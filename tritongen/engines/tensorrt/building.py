"""ONNX file → plan: parse, set up, build, look whether the precision that was asked for is in it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tritongen.engines import NoKernelError
from tritongen.engines.tensorrt import api
from tritongen.engines.tensorrt.kernels import layers_without_kernel
from tritongen.engines.tensorrt.profiles import Profile
from tritongen.engines.tensorrt.progress import TIMING, Phases, Rounds, monitor
from tritongen.errors import BuildError, ModelError, RequirementError
from tritongen.files import locked, replacing
from tritongen.runs.events import Event, EventSink, discard
from tritongen.spec import Precision

_WORKSPACE_SHARE = 0.5
"""Of the GPU's free memory; the rest is for weights, activations and whoever else is on the GPU."""
_LONGEST_LIST = 2000
"""Characters of TensorRT's list of build routes that an error shows."""


@dataclass(frozen=True)
class Settings:
    """How a plan is built; defaults are the builder's own."""

    precision: Precision = Precision.FP32
    tf32: bool = True
    strongly_typed: bool = False
    profiles: Sequence[Profile] = ()
    optimization_level: int | None = None
    """0–5; higher levels compile and time more tactics."""
    timing_iterations: int | None = None
    """How often a tactic is timed; more give steadier choices and slower builds."""
    workspace_bytes: int | None = None
    aux_streams: int | None = None
    sparsity: bool = False
    tiling_level: str | None = None
    build_route: str | None = None
    tactic_sources: Sequence[str] = api.OWN_SOURCES
    refittable: bool = False
    version_compatible: bool = False
    hardware_compatible: bool = False
    ranges: Mapping[str, tuple[float, float]] | None = None
    """Implicit INT8: the range of every tensor."""
    calibrator: Any = None
    """Implicit INT8: an IInt8Calibrator that finds the ranges itself."""
    compute_capability: str | None = None
    """Build for this one in place of the GPU at hand, where the version can ("8.9")."""
    plugins: Sequence[Path] = ()


@dataclass
class Log:
    """What TensorRT said while it worked."""

    lines: list[tuple[str, str]] = field(default_factory=list)

    def errors(self) -> str:
        """Its errors in one line, the last ones first."""
        said = [text for severity, text in self.lines if severity in ("ERROR", "INTERNAL_ERROR")]
        return "; ".join(dict.fromkeys(reversed(said[-3:])))


def make_logger(trt: Any, log: Log, events: EventSink = discard) -> Any:
    """A TensorRT logger that keeps warnings and errors instead of printing them."""
    verbose = trt.ILogger.Severity.VERBOSE
    # Newer versions tell their phases themselves.
    rounds = None if api.features(trt).progress_monitor else Rounds(events)

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, text: str) -> None:
            if severity == verbose:  # tens of thousands of lines
                if rounds is not None and TIMING in text:
                    rounds.one(text)
                return
            name = str(severity).rpartition(".")[2]
            if name in ("ERROR", "INTERNAL_ERROR", "WARNING"):
                log.lines.append((name, text))

    return Logger()


def build_plan(
    trt: Any,
    model: Path,
    settings: Settings,
    *,
    timing_cache: Path | None = None,
    events: EventSink = discard,
) -> bytes:
    """The serialized engine; ModelError if the parser refuses the graph, BuildError if the build fails.

    `timing_cache` is read if it is there, and written back with what was timed.
    """
    log = Log()
    logger = make_logger(trt, log, events)
    for plugin in settings.plugins:
        load_plugin(trt, logger, plugin)
    builder = start_builder(trt, logger, log)
    network = api.create_network(trt, builder, strongly_typed=settings.strongly_typed)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(model)):
        raise refusal(model, api.parser_problems(parser), str(trt.__version__))
    if settings.ranges is not None and not set_ranges(network, settings.ranges):
        raise BuildError(
            f"no tensor of {model.name} has one of the ranges that were found",
            found=", ".join(list(settings.ranges)[:3]),
            expected="the names of the network's tensors",
        )
    config = configure(trt, builder, network, settings)
    watching = monitor(trt, Phases(events))  # must live as long as the configuration
    if watching is not None:
        config.progress_monitor = watching
    cache = _attach_cache(config, timing_cache)
    events(Event("trial", "progress", f"TensorRT {trt.__version__}: building {network.num_layers} layers"))
    plan = builder.build_serialized_network(network, config)
    if cache is not None and timing_cache is not None:
        # Of a build that failed, too: another attempt need not time it again.
        _store_cache(config, timing_cache)
    if plan is None:
        raise could_not_build(model.name, log, str(trt.__version__))
    return bytes(plan)


def could_not_build(name: str, log: Log, version: str) -> BuildError:
    """The error for a build that failed, with what helps; NoKernelError if TensorRT named the layers."""
    said, engine = log.errors(), f"TensorRT {version}"
    message, found = f"{engine} could not build {name}", said or "no reason given"
    fix = "try a smaller maximal batch size, another precision, or --engine onnxruntime"
    if "libnvinfer_lean" in said:  # version-compatible plans carry a runtime of their own
        fix = f"`pip install tensorrt-lean=={version}` brings the library, or leave version_compatible out"
    layers = layers_without_kernel(text for _, text in log.lines)
    if layers:
        fix = "another precision, a higher --tensorrt optimization_level, or --engine onnxruntime"
        return NoKernelError(message, engine=engine, layers=layers, found=found, fix=fix)
    return BuildError(message, found=found, fix=fix)


def configure(trt: Any, builder: Any, network: Any, settings: Settings) -> Any:
    """The builder configuration of `settings`, as far as this version has each of them."""
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    api.set_precision(
        trt, config, settings.precision, tf32=settings.tf32, strongly_typed=settings.strongly_typed
    )
    api.set_tactic_sources(trt, config, settings.tactic_sources)
    if settings.compute_capability is not None:
        api.target_without_gpu(trt, config, settings.compute_capability)
    workspace = settings.workspace_bytes or _default_workspace(settings)
    if workspace is not None:
        api.set_workspace(trt, config, workspace)
    for name, value in (
        ("builder_optimization_level", settings.optimization_level),
        ("avg_timing_iterations", settings.timing_iterations),
        ("max_aux_streams", settings.aux_streams),
    ):
        if value is not None:
            setattr(config, name, value)
    _set_flags(trt, config, settings)
    if settings.tiling_level is not None:
        config.tiling_optimization_level = getattr(trt.TilingOptimizationLevel, settings.tiling_level)
    if settings.build_route is not None:
        _set_route(trt, config, settings.build_route)
    profiles = [_add_profile(builder, config, network, profile) for profile in settings.profiles]
    if settings.calibrator is not None:
        config.int8_calibrator = settings.calibrator
        if profiles:
            # With dynamic shapes the calibrator runs at this profile's opt shape; without it the build fails.
            config.set_calibration_profile(profiles[0])
    return config


def load_plugin(trt: Any, logger: Any, plugin: Path) -> None:
    """Register the operators of a plugin library; BuildError if it cannot be loaded."""
    import ctypes

    try:
        # Of a name without a folder, dlopen would look in its own folders alone.
        ctypes.CDLL(str(plugin.absolute()), mode=ctypes.RTLD_GLOBAL)
    except OSError as error:
        raise BuildError(f"the plugin {plugin} cannot be loaded", found=str(error)) from error
    trt.init_libnvinfer_plugins(logger, "")


def refusal(model: Path, problems: Sequence[Mapping[str, str]], version: str) -> ModelError:
    """The error for a graph that TensorRT's parser refuses: which nodes, why, and the choices."""
    words = [f"{api.node_text(model, problem)}: {problem['reason']}" for problem in problems]
    return ModelError(
        f"TensorRT {version} refuses {model.name}",
        found="\n            ".join(words) or "no reason given",
        expected="operators that this TensorRT has",
        fix="give the missing operators as a plugin (--plugin lib.so), or use --engine onnxruntime",
    )


def set_ranges(network: Any, ranges: Mapping[str, tuple[float, float]]) -> int:
    """Give every tensor its (symmetric) dynamic range for implicit INT8; how many got one."""
    count = 0
    for tensor in _tensors(network):
        if tensor.name in ranges:
            low, high = ranges[tensor.name]
            limit = max(abs(low), abs(high)) or 1.0
            tensor.dynamic_range = (-limit, limit)
            count += 1
    return count


def _set_flags(trt: Any, config: Any, settings: Settings) -> None:
    wanted = {
        "SPARSE_WEIGHTS": settings.sparsity,
        "REFIT": settings.refittable,
        "VERSION_COMPATIBLE": settings.version_compatible,
    }
    for name, on in wanted.items():
        if on:
            if not hasattr(trt.BuilderFlag, name):
                raise BuildError(f"TensorRT {trt.__version__} has no {name}")
            config.set_flag(getattr(trt.BuilderFlag, name))
    if settings.hardware_compatible:
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS


def _set_route(trt: Any, config: Any, route: str) -> None:
    """RequirementError for a route that this version does not know: it would build another one in silence."""
    config.build_route = route
    if route and not config.build_route:
        raise RequirementError(
            f"TensorRT {trt.__version__} has no build route '{route}'",
            expected=str(config.all_build_routes)[:_LONGEST_LIST] or "none: it lists none",
            fix="leave tensorrt.build_route out, or take knobs and values from that list",
        )


def _default_workspace(settings: Settings) -> int | None:
    if settings.compute_capability is not None:
        return None
    from tritongen.engines.tensorrt import cuda

    return int(cuda.memory_info()[0] * _WORKSPACE_SHARE)


def start_builder(trt: Any, logger: Any, log: Log) -> Any:
    """TensorRT's builder; BuildError where it finds no GPU that it can use."""
    try:
        return trt.Builder(logger)
    except TypeError as error:  # what pybind11 makes of a null pointer
        said = "; ".join(text for severity, text in log.lines if "CUDA" in text)
        raise BuildError(
            f"TensorRT {trt.__version__} cannot start here",
            found=said or str(error),
            expected="a GPU with a driver that this TensorRT knows",
        ) from error


def _add_profile(builder: Any, config: Any, network: Any, profile: Profile) -> Any:
    made = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        if tensor.name not in profile:
            raise BuildError(f"no sizes were given for the input '{tensor.name}'")
        if tensor.is_shape_tensor:
            raise BuildError(
                f"the values of the input '{tensor.name}' decide the sizes of other tensors",
                expected="inputs whose shapes alone decide sizes: a plan takes such values on the host",
                fix=f"make '{tensor.name}' a constant of the graph, or use --engine onnxruntime",
            )
        extent = profile[tensor.name]
        made.set_shape(tensor.name, extent.min, extent.opt, extent.max)
    if config.add_optimization_profile(made) < 0:
        raise BuildError(
            "TensorRT refuses the optimization profile",
            found=", ".join(f"{name} {extent}" for name, extent in profile.items()),
        )
    return made


def _tensors(network: Any) -> list[Any]:
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    return inputs + [layer.get_output(i) for layer in layers for i in range(layer.num_outputs)]


def _attach_cache(config: Any, path: Path | None) -> Any:
    if path is None:
        return None
    stored = path.read_bytes() if path.exists() else b""
    cache = config.create_timing_cache(stored)
    # pybind11 takes the flags by position. A file that is damaged or of another version starts anew.
    if cache is None or not config.set_timing_cache(cache, False):  # noqa: FBT003
        cache = config.create_timing_cache(b"")
        config.set_timing_cache(cache, False)  # noqa: FBT003
    return cache


def _store_cache(config: Any, path: Path) -> None:
    """Write the timing cache back, together with what another build may have stored meanwhile."""
    cache = config.get_timing_cache()
    if cache is None:  # as a build that failed may leave it
        return
    with locked(path.with_suffix(".lock")):  # builds on several GPUs may end at once
        stored = config.create_timing_cache(path.read_bytes()) if path.exists() else None
        if stored is not None:
            # What was timed elsewhere stays out: it was refused when it was attached, too.
            cache.combine(stored, False)  # noqa: FBT003
        content = cache.serialize()
        if content is not None:
            with replacing(path) as temporary:
                temporary.write_bytes(bytes(content))


def read_ranges(path: Path) -> dict[str, tuple[float, float]]:
    """The ranges file beside a model: tensor name → [low, high]."""
    stored = json.loads(path.read_text(encoding="utf-8"))
    return {str(name): (float(low), float(high)) for name, (low, high) in stored["ranges"].items()}
