"""A plan in memory: its tensors and profiles, and TensorRT's load errors in the user's words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tritongen.engines.tensorrt import api
from tritongen.engines.tensorrt.building import Log, load_plugin, make_logger
from tritongen.engines.tensorrt.profiles import Extent, Profile
from tritongen.errors import BuildError, ModelError
from tritongen.plan_errors import explain


@dataclass(frozen=True)
class Binding:
    """An input or output of a plan; dynamic axes are -1."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    is_input: bool


@dataclass(frozen=True)
class Plan:
    """A deserialized engine with what must outlive it."""

    engine: Any
    runtime: Any
    logger: Any
    log: Log
    bindings: tuple[Binding, ...]
    profiles: tuple[Profile, ...]


def load_plan(trt: Any, path: Path, *, plugins: Sequence[Path] = (), host_code: bool = False) -> Plan:
    """Deserialize `path`; ModelError that explains a version, GPU or file mismatch.

    `host_code`: trust the code that a version-compatible plan carries.
    """
    log = Log()
    logger = make_logger(trt, log)
    for plugin in plugins:
        load_plugin(trt, logger, plugin)
    trt.init_libnvinfer_plugins(logger, "")
    runtime = trt.Runtime(logger)
    if host_code:
        runtime.engine_host_code_allowed = True
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path} cannot be read", found=str(error)) from error
    engine = runtime.deserialize_cuda_engine(content)
    if engine is None:
        raise load_error(path, log.errors(), str(trt.__version__))
    bindings = _bindings(trt, engine)
    return Plan(engine, runtime, logger, log, bindings, _profiles(engine, bindings))


def load_error(path: Path, said: str, version: str) -> ModelError:
    """What TensorRT's words for a plan that does not load mean, and what to do."""
    known = explain(said, path.name)
    if known is not None:
        return ModelError(known.message, found=known.found, expected=known.expected, fix=known.fix)
    return ModelError(
        f"TensorRT {version} cannot load {path.name}",
        found=said or "no reason given",
        expected="a plan that this TensorRT built for this GPU",
        fix="build it again on this machine",
    )


def _bindings(trt: Any, engine: Any) -> tuple[Binding, ...]:
    dtypes = api.tensor_dtypes(trt)
    made = []
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        dtype = engine.get_tensor_dtype(name)
        if dtype not in dtypes:
            raise BuildError(f"tensor '{name}' has a type that Triton cannot carry", found=str(dtype))
        made.append(
            Binding(
                name,
                dtypes[dtype],
                tuple(int(size) for size in engine.get_tensor_shape(name)),
                engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT,
            )
        )
    return tuple(made)


def _profiles(engine: Any, bindings: tuple[Binding, ...]) -> tuple[Profile, ...]:
    return tuple(
        {binding.name: _extent(engine, binding, index) for binding in bindings if binding.is_input}
        for index in range(engine.num_optimization_profiles)
    )


def _extent(engine: Any, binding: Binding, profile: int) -> Extent:
    if -1 not in binding.shape:
        return Extent(binding.shape, binding.shape, binding.shape)
    shapes = engine.get_tensor_profile_shape(binding.name, profile)
    low, usual, high = (tuple(int(size) for size in shape) for shape in shapes)
    return Extent(low, usual, high)
