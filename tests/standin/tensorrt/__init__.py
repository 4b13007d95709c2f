"""TensorRT 8.6 as far as tritongen asks it, on ONNX Runtime; see README.md beside this folder."""

# ruff: noqa: ARG002, ARG005, G004
from __future__ import annotations

import base64
import ctypes
import json
import math
import os
import time
from enum import Enum, IntEnum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from cuda.bindings import runtime as cuda

__version__ = os.environ.get("STANDIN_TENSORRT", "8.6.0")
TOLD = os.environ.get("STANDIN_TOLD", "truth")
"""What the engine inspector tells of the precision: the truth, nothing ("opaque"), or always "fp32"."""
ROUNDS = bool(os.environ.get("STANDIN_ROUNDS"))
"""Plans that may use TF32, FP16 or INT8 answer with an FP16's digits, and others take 2 ms longer."""


class DataType(Enum):
    FLOAT = "float32"
    HALF = "float16"
    INT8 = "int8"
    INT32 = "int32"
    BOOL = "bool"
    UINT8 = "uint8"


float32, float16 = DataType.FLOAT, DataType.HALF
_NARROWED = {"int64": "int32", "float64": "float32"}


class TensorIOMode(Enum):
    NONE, INPUT, OUTPUT = range(3)


class BuilderFlag(IntEnum):
    FP16, INT8, DEBUG, GPU_FALLBACK, STRICT_TYPES, REFIT, DISABLE_TIMING_CACHE, TF32, SPARSE_WEIGHTS = range(
        9
    )
    OBEY_PRECISION_CONSTRAINTS, VERSION_COMPATIBLE = 12, 17


class NetworkDefinitionCreationFlag(IntEnum):
    EXPLICIT_BATCH = 0


class TacticSource(IntEnum):
    CUBLAS, CUBLAS_LT, CUDNN, EDGE_MASK_CONVOLUTIONS, JIT_CONVOLUTIONS = range(5)


class MemoryPoolType(Enum):
    WORKSPACE = 0


class ProfilingVerbosity(Enum):
    LAYER_NAMES_ONLY, NONE, DETAILED = range(3)


class HardwareCompatibilityLevel(Enum):
    NONE, AMPERE_PLUS = range(2)


class LayerInformationFormat(Enum):
    ONELINE, JSON = range(2)


class ILogger:
    class Severity(Enum):
        INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

    def log(self, severity: Severity, text: str) -> None:
        """Overridden."""


class IProfiler:
    """Overridden."""


class IInt8EntropyCalibrator2:
    """Overridden."""


def init_libnvinfer_plugins(logger: Any, namespace: str) -> bool:
    return True


class IBuilderConfig:
    builder_optimization_level = 3
    avg_timing_iterations = 1
    max_aux_streams = 0

    def __init__(self) -> None:
        self.flags = {BuilderFlag.TF32}
        self.profiles: list[Any] = []
        self.pools: dict[str, int] = {}
        self.tactic_sources = 31
        self.profiling_verbosity = ProfilingVerbosity.LAYER_NAMES_ONLY
        self.hardware_compatibility_level = HardwareCompatibilityLevel.NONE
        self.calibration_profile: Any = None
        self.int8_calibrator: Any = None
        self.cache = _TimingCache(b"")

    def set_flag(self, flag: BuilderFlag) -> None:
        self.flags.add(flag)

    def clear_flag(self, flag: BuilderFlag) -> None:
        self.flags.discard(flag)

    def set_tactic_sources(self, bits: int) -> bool:
        self.tactic_sources = bits
        return True

    def set_memory_pool_limit(self, pool: MemoryPoolType, nbytes: int) -> None:
        assert nbytes > 0
        self.pools[pool.name] = nbytes

    def add_optimization_profile(self, profile: Any) -> int:
        self.profiles.append(profile)
        return len(self.profiles) - 1

    def set_calibration_profile(self, profile: Any) -> bool:
        self.calibration_profile = profile.shapes
        return True

    def create_timing_cache(self, stored: bytes) -> _TimingCache:
        return _TimingCache(stored)

    def set_timing_cache(self, cache: _TimingCache, ignore: bool) -> bool:
        assert not ignore
        self.cache = cache
        return cache.whole

    def get_timing_cache(self) -> _TimingCache:
        return self.cache

    def settings(self) -> dict[str, Any]:
        """What a plan tells of how it was built."""
        return {
            "level": self.builder_optimization_level,
            "timing_iterations": self.avg_timing_iterations,
            "aux_streams": self.max_aux_streams,
            "verbosity": self.profiling_verbosity.name,
            "pools": self.pools,
            "tactic_sources": self.tactic_sources,
            "hardware": self.hardware_compatibility_level.name,
            "calibration_profile": self.calibration_profile,
            # Names that 8.6 lacks, and that a test may give it.
            "tiling": getattr(self, "tiling_optimization_level", None),
            "route": getattr(self, "build_route", None),
        }


class _TimingCache:
    """What was timed, by name; `whole` is false for bytes that are no cache."""

    def __init__(self, stored: bytes) -> None:
        self.whole, self.entries = True, set()
        try:
            self.entries = set(json.loads(stored)) if stored else set()
        except ValueError:
            self.whole = False

    def serialize(self) -> bytes:
        return json.dumps(sorted(self.entries)).encode()

    def combine(self, other: _TimingCache, ignore: bool) -> bool:
        self.entries |= other.entries
        return True


class _Profile:
    def __init__(self) -> None:
        self.shapes: dict[str, Any] = {}

    def set_shape(self, name: str, low: Any, usual: Any, high: Any) -> None:
        self.shapes[name] = [list(low), list(usual), list(high)]


class Builder:
    def __init__(self, logger: ILogger) -> None:
        self.logger = logger

    def create_network(self, bits: int) -> Any:
        assert bits == 1, "8.6 needs explicit batches"
        return SimpleNamespace(num_layers=0, num_inputs=0, proto=None)

    def create_builder_config(self) -> IBuilderConfig:
        return IBuilderConfig()

    def create_optimization_profile(self) -> _Profile:
        return _Profile()

    def build_serialized_network(self, network: Any, config: IBuilderConfig) -> bytes | None:
        inputs = [network.get_input(i) for i in range(network.num_inputs)]
        layers = [network.get_layer(i) for i in range(network.num_layers)]
        tensors = inputs + [layer.get_output(i) for layer in layers for i in range(layer.num_outputs)]
        timed = {f"{layer.name} {sorted(flag.name for flag in config.flags)}" for layer in layers}
        for layer in layers:
            self.logger.log(
                ILogger.Severity.VERBOSE, f"--------------- Timing Runner: {layer.name} (Cask[0x80000009])"
            )
        served = len(timed & config.cache.entries)
        config.cache.entries |= timed
        if BuilderFlag.INT8 in config.flags and (name := _without_int8_kernel(network.proto)):
            said = f"Error Code 10: Internal Error (Could not find any implementation for node {name}.)"
            self.logger.log(ILogger.Severity.ERROR, f"10: [optimizer.cpp::computeCosts::3873] {said}")
            return None
        return json.dumps({
            "stand-in": __version__, "capability": list(cuda.CAPABILITY),
            "model": base64.b64encode(network.proto.SerializeToString()).decode(),
            "profiles": [profile.shapes for profile in config.profiles],
            "flags": sorted(flag.name for flag in config.flags),
            "settings": config.settings(),
            "served": served,
            "ranges": {tensor.name: tensor.dynamic_range for tensor in tensors if tensor.dynamic_range},
            "calibrated": _calibrated(config.int8_calibrator, inputs),
        }).encode()  # fmt: skip


def _without_int8_kernel(proto: Any) -> str | None:
    """The first node that is named so and has a Q/DQ pair before or behind it."""
    pairs = {name for node in proto.graph.node if node.op_type == "DequantizeLinear" for name in node.output}
    pairs |= {node.input[0] for node in proto.graph.node if node.op_type == "QuantizeLinear"}
    return next(
        (n.name for n in proto.graph.node
         if n.name.startswith("no_int8_kernel") and pairs & {*n.input, *n.output}), None
    )  # fmt: skip


def _calibrated(calibrator: Any, inputs: list[Any]) -> int | str | None:
    """How many batches a calibrator gave, or the cache that it had."""
    if calibrator is None:
        return None
    cache = calibrator.read_calibration_cache()
    if cache:
        return bytes(cache).decode()
    count = 0
    while calibrator.get_batch([tensor.name for tensor in inputs]) is not None:
        count += 1
    calibrator.write_calibration_cache(b"found by the stand-in")
    return count


class OnnxParser:
    def __init__(self, network: Any, logger: ILogger) -> None:
        self.network = network
        self.errors: list[int] = []
        self.num_errors = 0

    def parse_from_file(self, path: str) -> bool:
        import onnx

        proto = onnx.load(path)
        domains = () if _loaded("librare.so") else ("rare",)
        self.errors = [i for i, node in enumerate(proto.graph.node)
                       if node.op_type in ("Foo", "NonZero") or node.domain in domains]  # fmt: skip
        self.num_errors = len(self.errors)
        inputs = [SimpleNamespace(name=value.name, is_shape_tensor=False, dynamic_range=None)
                  for value in proto.graph.input]  # fmt: skip
        outputs = [[SimpleNamespace(name=name, dynamic_range=None, dtype=float32) for name in node.output]
                   for node in proto.graph.node]  # fmt: skip
        self.network.proto = proto
        self.network.num_inputs, self.network.num_layers = len(inputs), len(outputs)
        self.network.get_input = inputs.__getitem__
        self.network.get_layer = lambda i: SimpleNamespace(
            name=proto.graph.node[i].name or f"{proto.graph.node[i].op_type}_{i}",
            num_outputs=len(outputs[i]),
            get_output=outputs[i].__getitem__,
        )
        return not self.errors

    def get_error(self, index: int) -> Any:
        return SimpleNamespace(
            node=lambda: self.errors[index], desc=lambda: "Assertion failed: Plugin not found"
        )


def _loaded(library: str) -> bool:
    return f"/{library}\n" in Path("/proc/self/maps").read_text(encoding="utf-8")


class Runtime:
    engine_host_code_allowed = False

    def __init__(self, logger: ILogger) -> None:
        self.logger = logger

    def deserialize_cuda_engine(self, content: bytes) -> Any:
        severity = ILogger.Severity.ERROR
        try:
            stored = json.loads(content)
        except ValueError:
            self.logger.log(severity, "Serialization assertion magicTagRead == kMAGIC_TAG failed.")
            return None
        if stored["stand-in"] != __version__:
            self.logger.log(
                severity, f"expecting library version {__version__} got {stored['stand-in']}, please rebuild"
            )
            return None
        if stored["capability"] != list(cuda.CAPABILITY):
            here, there = (".".join(map(str, c)) for c in (cuda.CAPABILITY, stored["capability"]))
            self.logger.log(severity, f"expecting compute {here} got compute {there}, please rebuild")
            return None
        if "VERSION_COMPATIBLE" in stored["flags"] and not self.engine_host_code_allowed:
            self.logger.log(severity, "IRuntime::setEngineHostCodeAllowed must be true")
            return None
        for plugin in stored.get("plugins", ()):
            if not _loaded(plugin):
                self.logger.log(severity, f"could not find plugin {plugin.partition('.')[0]}")
                return None
        return ICudaEngine(stored, self.logger)


class ICudaEngine:
    def __init__(self, stored: dict[str, Any], logger: ILogger) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 4
        self.session = onnxruntime.InferenceSession(base64.b64decode(stored["model"]), options)
        self.logger, self.flags = logger, stored["flags"]
        self.profiles: list[dict[str, Any]] = stored["profiles"] or [{}]
        self.nodes = {n.name: n for n in (*self.session.get_inputs(), *self.session.get_outputs())}
        self.inputs = [node.name for node in self.session.get_inputs()]
        self.names = list(self.nodes)
        self.num_io_tensors, self.num_optimization_profiles = len(self.names), len(self.profiles)
        self.num_layers, self.device_memory_size = 3, 1 << 20
        self.busy: set[int] = set()

    def get_tensor_name(self, index: int) -> str:
        return str(self.names[index])

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name in self.inputs else TensorIOMode.OUTPUT

    def own_dtype(self, name: str) -> np.dtype[Any]:
        kind = self.nodes[name].type.removeprefix("tensor(").removesuffix(")")
        return np.dtype({"float": "float32", "double": "float64"}.get(kind, kind))

    def get_tensor_dtype(self, name: str) -> DataType:
        kind = self.own_dtype(name).name
        return DataType(_NARROWED.get(kind, kind))

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        shape = tuple(dim if isinstance(dim, int) else -1 for dim in self.nodes[name].shape)
        lows, _, highs = next(iter(self.profiles[0].values()), ([0], 0, [1]))
        if name not in self.inputs and shape and lows[0] == highs[0]:
            return (lows[0], *shape[1:])  # as 8.6: the first profile's batch on outputs
        return shape

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        return [tuple(shape) for shape in self.profiles[profile][name]]

    def create_execution_context(self) -> Any:
        return IExecutionContext(self)

    def create_engine_inspector(self) -> Any:
        text = json.dumps({"Layers": [self.layer()]})
        return SimpleNamespace(get_engine_information=lambda form: text, execution_context=None)

    def layer(self) -> dict[str, Any]:
        kind, tactic = "FP32", "tf32f32" if "TF32" in self.flags else "f32f32"
        if TOLD != "fp32" and {"INT8", "FP16"} & set(self.flags):
            kind = tactic = "Int8" if "INT8" in self.flags else "FP16"
        opaque = TOLD == "opaque"
        return {
            "Name": "{ForeignNode[a...b]}" if opaque else "conv + relu",
            "LayerType": "Myelin" if opaque else "CaskConvolution",
            "TacticName": "" if opaque else f"tactic_{'f32f32' if TOLD == 'fp32' else tactic}",
            "Inputs": [{"Format/Datatype": f"Row major {kind} format"}],
            "Outputs": [],
        }


class IExecutionContext:
    def __init__(self, engine: ICudaEngine) -> None:
        self.engine = engine
        self.profiler: Any = None
        self.profile = -1 if 0 in engine.busy else 0
        engine.busy.add(self.profile)
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}

    def __del__(self) -> None:
        self.engine.busy.discard(self.profile)

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        if profile in self.engine.busy or profile >= len(self.engine.profiles):
            self.engine.logger.log(ILogger.Severity.ERROR, f"profile {profile} is in use or not there")
            return False
        self.engine.busy.discard(self.profile)
        self.profile = profile
        self.engine.busy.add(profile)
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        extent = self.engine.profiles[self.profile].get(name)
        fits = self.profile >= 0 and (
            extent is None or all(a <= s <= b for a, s, b in zip(extent[0], shape, extent[2], strict=True))
        )
        if fits:
            self.shapes[name] = tuple(shape)
        return fits

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        if name in self.shapes:
            return self.shapes[name]
        return tuple(self.outputs()[name].shape) if len(self.shapes) == len(self.engine.inputs) else (-1,)

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def outputs(self, feeds: dict[str, Any] | None = None) -> dict[str, Any]:
        session, names = self.engine.session, [n for n in self.engine.names if n not in self.engine.inputs]
        feeds = feeds or {n: np.zeros(s, self.engine.own_dtype(n)) for n, s in self.shapes.items()}
        values = session.run(names, {n: a.astype(self.engine.own_dtype(n)) for n, a in feeds.items()})
        if ROUNDS and not {"TF32", "FP16", "INT8"} & set(self.engine.flags):
            time.sleep(0.002)
        elif ROUNDS:
            values = [a.astype(np.float16).astype(a.dtype) if a.dtype == np.float32 else a for a in values]
        return dict(zip(names, values, strict=True))

    def execute_async_v3(self, stream: int) -> bool:
        shapes, addresses = dict(self.shapes), dict(self.addresses)

        def work() -> None:
            feeds = {name: _read(addresses[name], shape, self.engine.get_tensor_dtype(name))
                     for name, shape in shapes.items()}  # fmt: skip
            for name, value in self.outputs(feeds).items():
                data = np.ascontiguousarray(value, self.engine.get_tensor_dtype(name).value).tobytes()
                ctypes.memmove(addresses[name], data, len(data))
            if self.profiler is not None:
                self.profiler.report_layer_time("conv + relu", 0.1)

        cuda.enqueue(stream, work)
        return True


def _read(address: int, shape: tuple[int, ...], dtype: DataType) -> Any:
    kind = np.dtype(dtype.value)
    data = ctypes.string_at(address, math.prod(shape) * kind.itemsize)
    return np.frombuffer(data, kind).reshape(shape)
