"""A plan in memory: its tensors and profiles, and TensorRT's load errors in the user's words."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tritongen.engines.tensorrt import api
from tritongen.engines.tensorrt.building import Log, make_logger
from tritongen.engines.tensorrt.profiles import Extent, Profile
from tritongen.errors import BuildError, ModelError


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


def load_plan(trt: Any, path: Path) -> Plan:
    """Deserialize `path`; ModelError that explains a version, GPU or file mismatch."""
    log = Log()
    logger = make_logger(trt, log)
    runtime = trt.Runtime(logger)
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
    built = re.search(r"expecting library version (\S+) got (\S+?)[,;.]?(?:\s|$)", said)
    compute = re.search(r"expecting compute (\d+\.\d+) got compute (\d+\.\d+)", said)
    if built:
        return ModelError(
            f"{path.name} was built by another TensorRT",
            found=f"built by {built[2].rstrip(',.')}, loaded by {built[1]}",
            expected="the very version that built it (or a version-compatible build)",
            fix="build it again on this machine, or serve with the image of the version that built it",
        )
    if compute:
        return ModelError(
            f"{path.name} was built for another GPU",
            found=f"built for compute capability {compute[2]}, this GPU has {compute[1]}",
            fix="build it again on this GPU, or with hardware compatibility (Ampere and newer)",
        )
    if "kSERIALIZATION_VERSION" in said or "Version tag does not match" in said:
        return ModelError(
            f"{path.name} was built by another TensorRT",
            found=f"a serialization format that TensorRT {version} does not read",
            fix="build it again with this version",
        )
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
