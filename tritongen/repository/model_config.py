"""What a model's `config.pbtxt` says: a frozen description, made from the spec and the selection."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tritongen.errors import ModelError, SpecError
from tritongen.repository.warmup import Warmup, make_warmups

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tritongen.engines import ServingTraits
    from tritongen.graph import Graph
    from tritongen.runs.records import Selection
    from tritongen.shapes import ResolvedInput
    from tritongen.spec import ServingSpec
    from tritongen.tensors import TensorSpec


@dataclass(frozen=True)
class TensorConfig:
    """One `input` or `output` entry; `dims` leave out the batch axis when the model batches."""

    name: str
    data_type: str
    """The name in config.pbtxt ("TYPE_FP32")."""
    dims: tuple[int, ...]
    """−1 for dynamic axes; never empty, as Triton's core refuses that."""
    reshape: tuple[int, ...] | None = None
    """What the model itself takes, where that differs from what clients send."""


@dataclass(frozen=True)
class QueuePolicy:
    """`default_queue_policy`; zero means without limit, as in Triton."""

    max_queue_size: int = 0
    default_timeout_us: int = 0


@dataclass(frozen=True)
class DynamicBatching:
    """`dynamic_batching`; preferred sizes only for engines with one optimization profile per size."""

    preferred_batch_sizes: tuple[int, ...] = ()
    queue_delay_us: int = 0
    priority_levels: int = 0
    default_priority_level: int = 0
    queue_policy: QueuePolicy | None = None


@dataclass(frozen=True)
class InstanceGroup:
    """`instance_group`: how many copies run at once (per GPU for KIND_GPU)."""

    count: int
    kind: str
    profiles: tuple[str, ...] = ()
    """Optimization profiles that each instance uses (TensorRT); empty: the only one."""


@dataclass(frozen=True)
class ModelConfig:
    """Everything that templates/config.pbtxt.j2 writes."""

    name: str
    backend: str
    max_batch_size: int
    inputs: tuple[TensorConfig, ...]
    outputs: tuple[TensorConfig, ...]
    instance_groups: tuple[InstanceGroup, ...]
    dynamic_batching: DynamicBatching | None = None
    warmups: tuple[Warmup, ...] = ()
    warmup_files: Mapping[str, bytes] = field(default_factory=dict)
    """Contents of the model's `warmup/` folder by file name."""
    parameters: Mapping[str, str] = field(default_factory=dict)
    optimization: str = ""
    """Text inside `optimization { }`."""
    response_cache: bool = False
    default_model_filename: str | None = None
    """Only where the file is not the backend's own default."""
    cc_model_filenames: Mapping[str, str] = field(default_factory=dict)
    """TensorRT: plan file by compute capability, where plans for several GPUs lie side by side."""
    raw: str = ""
    """Text of the user's, appended as it is."""


@dataclass(frozen=True)
class ServedTensors:
    """Inputs and outputs with full shapes, as the engine that will serve them reports them."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


def make_model_config(
    name: str,
    *,
    serving: ServingSpec,
    graph: Graph,
    inputs: Sequence[ResolvedInput],
    selection: Selection,
    traits: ServingTraits,
    tensors: ServedTensors | None = None,
    sample: Mapping[str, NDArray[Any]] | None = None,
) -> ModelConfig:
    """The configuration of a selected candidate; SpecError or ModelError for what Triton would refuse.

    `tensors` are the shapes as the engine itself reports them (default: as the graph declares them);
    `sample` is one item per input (as the model takes it, batch axis included), to warm up string inputs.
    """
    tensors = tensors or ServedTensors(graph.inputs, graph.outputs)
    max_batch_size = selection.max_batch_size
    batching = max_batch_size > 0
    if batching and not graph.batch.usable:
        raise ModelError(
            f"model '{name}' cannot be configured for batches",
            found=f"max_batch_size {max_batch_size}, but {graph.batch.reason}",
            expected="max_batch_size 0 for a model whose batch axis is not confirmed",
            fix="set max_batch_size: 0",
        )
    served = {spec.name: spec.dtype for spec in tensors.inputs}
    warmups, files = make_warmups(inputs, max_batch_size, sample, served) if serving.warmup else ((), {})
    return ModelConfig(
        name=name,
        backend=traits.backend,
        max_batch_size=max_batch_size,
        inputs=tuple(tensor_config(spec, batching=batching) for spec in tensors.inputs),
        outputs=tuple(tensor_config(spec, batching=batching) for spec in tensors.outputs),
        instance_groups=(
            InstanceGroup(serving.instances or selection.instances, traits.instance_kind, traits.profiles),
        ),
        dynamic_batching=_dynamic_batching(name, serving, max_batch_size, traits.preferred_batch_sizes),
        warmups=warmups,
        warmup_files=files,
        parameters={**traits.parameters, **serving.parameters},
        optimization=traits.optimization,
        response_cache=serving.response_cache,
        raw=serving.raw.strip(),
    )


def probe_config(name: str, serving: ServingSpec, graph: Graph, max_batch_size: int) -> ModelConfig:
    """A configuration like the one to come, to try the template, serving.raw and the batcher's keys with.

    SpecError for what Triton would refuse whatever the trials find.
    """
    return ModelConfig(
        name=name,
        backend="onnxruntime",
        max_batch_size=max_batch_size,
        inputs=tuple(map(_as_declared, graph.inputs)),
        outputs=tuple(map(_as_declared, graph.outputs)),
        instance_groups=(InstanceGroup(serving.instances or 1, "KIND_CPU"),),
        dynamic_batching=_dynamic_batching(name, serving, max_batch_size),
        parameters=serving.parameters,
        response_cache=serving.response_cache,
        raw=serving.raw.strip(),
    )


def _as_declared(spec: TensorSpec) -> TensorConfig:
    dims = tuple(dim if isinstance(dim, int) else -1 for dim in spec.shape)
    return TensorConfig(spec.name, spec.dtype.config, dims)


def tensor_config(spec: TensorSpec, *, batching: bool) -> TensorConfig:
    """One tensor as config.pbtxt must describe it; ModelError for shapes that Triton cannot serve."""
    if batching and spec.shape[:1] and isinstance(spec.shape[0], int):
        raise ModelError(
            f"tensor '{spec.name}' has a fixed batch axis",
            found=str(spec),
            expected="a dynamic axis 0, which Triton's backends insist on when max_batch_size is not 0",
            fix="export the model with a dynamic batch axis, or set max_batch_size: 0",
        )
    dims = tuple(dim if isinstance(dim, int) else -1 for dim in spec.shape[1 if batching else 0 :])
    if 0 in dims:
        raise ModelError(
            f"tensor '{spec.name}' has an axis of size 0, which Triton refuses",
            found=str(spec),
            expected="axes of size 1 or more, or dynamic ones",
            fix="export the model with that axis dynamic",
        )
    if dims:
        return TensorConfig(spec.name, spec.dtype.config, dims)
    # [N] with batching: clients send [N, 1] and Triton gives the model [N]. Without batching, core refuses
    # an empty reshape ("scalar tensors are not supported"): clients send [1] and the backend, C++ (since
    # 23.10) as well as ours, makes the rank-0 tensor of it.
    return TensorConfig(spec.name, spec.dtype.config, (1,), () if batching else None)


def _dynamic_batching(
    name: str, serving: ServingSpec, max_batch_size: int, tuned_for: Sequence[int] = ()
) -> DynamicBatching | None:
    queue = None
    if serving.max_queue_size or serving.default_queue_timeout_us:
        queue = QueuePolicy(serving.max_queue_size or 0, serving.default_queue_timeout_us or 0)
    asked = {
        "queue_delay_us": serving.queue_delay_us,
        "preferred_batch_sizes": serving.preferred_batch_sizes,
        "max_queue_size, default_queue_timeout_us": queue,
        "priority_levels": serving.priority_levels,
    }
    if max_batch_size == 0 or not serving.dynamic_batching:
        wanted = [key for key, value in asked.items() if value]
        if wanted:
            reason = "dynamic_batching: false" if max_batch_size else "max_batch_size 0"
            raise SpecError(
                f"model '{name}': these settings belong to Triton's dynamic batcher, which is off",
                found=f"serving: {', '.join(wanted)} with {reason}",
                expected="a model that batches, with dynamic batching on",
                fix="remove the settings, or turn batching on",
            )
        return None
    _check_preferred(name, serving.preferred_batch_sizes, max_batch_size)
    return DynamicBatching(
        preferred_batch_sizes=tuple(sorted(set(serving.preferred_batch_sizes or tuned_for))),
        queue_delay_us=serving.queue_delay_us,
        priority_levels=serving.priority_levels,
        default_priority_level=_default_priority(name, serving),
        queue_policy=queue,
    )


def _check_preferred(name: str, sizes: Sequence[int], max_batch_size: int) -> None:
    wrong = [size for size in sizes if not 1 <= size <= max_batch_size]
    if wrong:
        raise SpecError(
            f"model '{name}': a preferred batch size is out of range",
            found=f"serving.preferred_batch_sizes {', '.join(map(str, wrong))}",
            expected=f"1 … {max_batch_size} (max_batch_size)",
            fix="leave preferred_batch_sizes empty unless the engine has one profile per batch size",
        )


def _default_priority(name: str, serving: ServingSpec) -> int:
    """The level of requests that name none: the middle one unless the spec says which."""
    levels, default = serving.priority_levels, serving.default_priority_level
    if default > levels:
        raise SpecError(
            f"model '{name}': the default priority level does not exist",
            found=f"serving.default_priority_level {default} with priority_levels {levels}",
            expected=f"1 … {levels}" if levels else "0 while priority_levels is 0",
            fix="raise priority_levels, or lower default_priority_level",
        )
    return default or (levels + 1) // 2
