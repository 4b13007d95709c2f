"""What Triton refuses in a configuration, as pure checks with their origin.

`core` rules are also proved by loading every generated config in a real tritonserver; the rules of the C++
backends cannot be, where there is no container, and are checked here alone (docs/config.md).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

from tritongen.errors import SpecError

Origin = Literal["core", "onnxruntime", "tensorrt", "tritongen"]


@dataclass(frozen=True)
class Violation:
    """A rule that a configuration breaks."""

    rule: str
    """Stable short name ("preferred-batch-size")."""
    origin: Origin
    """Who refuses it: Triton's core, a C++ backend, or tritongen alone."""
    message: str
    fix: str


@dataclass(frozen=True)
class Rule:
    """One check over a parsed `ModelConfig` message."""

    name: str
    origin: Origin
    summary: str
    """What it demands, in one sentence; docs/config.md lists these."""
    check: Callable[[Any], Iterator[tuple[str, str]]]
    """Yields (message, fix) for each violation."""


def check_rules(config: Any) -> tuple[Violation, ...]:
    """Every rule that a parsed `ModelConfig` message breaks, in the rules' order."""
    return tuple(
        Violation(rule.name, rule.origin, message, fix)
        for rule in RULES
        for message, fix in rule.check(config)
    )


def refuse(model: str, violations: Sequence[Violation]) -> None:
    """SpecError that tells all of them; nothing if there are none."""
    if violations:
        raise SpecError(
            f"the configuration of model '{model}' would not work in Triton",
            found="; ".join(violation.message for violation in violations),
            fix="; ".join(dict.fromkeys(violation.fix for violation in violations)),
        )


def server_options(config: Any) -> tuple[str, ...]:
    """Options that tritonserver must be started with for this configuration to take effect."""
    return ("--cache-config=local,size=104857600",) if config.response_cache.enable else ()


def backend_of(config: Any) -> str:
    """The backend's name, also where only the older `platform` is given."""
    platforms = {"tensorrt_plan": "tensorrt", "onnxruntime_onnx": "onnxruntime"}
    return str(config.backend or platforms.get(config.platform, config.platform))


def _tensors(config: Any) -> Iterator[tuple[str, Any]]:
    yield from (("input", tensor) for tensor in config.input)
    yield from (("output", tensor) for tensor in config.output)


def _backend(config: Any) -> Iterator[tuple[str, str]]:
    if not config.backend and config.platform != "ensemble":
        yield "no backend is named", 'write backend: "onnxruntime" (platform is the older form)'


def _max_batch(config: Any) -> Iterator[tuple[str, str]]:
    if config.max_batch_size < 0:
        yield f"max_batch_size is {config.max_batch_size}", "use 0 for no batching, or 1 and more"


def _dims(config: Any) -> Iterator[tuple[str, str]]:
    for kind, tensor in _tensors(config):
        if not tensor.name:
            yield f"an {kind} has no name", "name it as the model does"
        if not tensor.dims:
            yield f"{kind} '{tensor.name}' has no dims", "use dims: [ 1 ], with reshape when batching"
        wrong = [dim for dim in tensor.dims if dim < 1 and dim != -1]
        if wrong:
            yield f"{kind} '{tensor.name}' has dims {wrong}", "use sizes of 1 or more, or -1"


def _reshape(config: Any) -> Iterator[tuple[str, str]]:
    for kind, tensor in _tensors(config):
        if not tensor.HasField("reshape"):
            continue
        shape = tuple(tensor.reshape.shape)
        if not shape and config.max_batch_size == 0:
            yield (
                f"{kind} '{tensor.name}' has an empty reshape without batching",
                "leave reshape out: dims: [ 1 ] stands for a rank-0 tensor there",
            )
        elif -1 not in (*shape, *tensor.dims) and prod(shape) != prod(tensor.dims):
            yield (
                f"{kind} '{tensor.name}' is reshaped from {list(tensor.dims)} to {list(shape)}",
                "keep the number of elements",
            )


def _unique_tensors(config: Any) -> Iterator[tuple[str, str]]:
    for kind, tensors in (("input", config.input), ("output", config.output)):
        for name, count in Counter(tensor.name for tensor in tensors).items():
            if count > 1:
                yield f"{kind} '{name}' occurs {count} times", "name each tensor once"


def _preferred(config: Any) -> Iterator[tuple[str, str]]:
    for size in config.dynamic_batching.preferred_batch_size:
        if not 1 <= size <= config.max_batch_size:
            yield f"preferred_batch_size {size}", f"use 1 … {config.max_batch_size} (max_batch_size)"


def _priorities(config: Any) -> Iterator[tuple[str, str]]:
    batching = config.dynamic_batching
    levels, default = batching.priority_levels, batching.default_priority_level
    if levels and not 1 <= default <= levels:
        yield f"default_priority_level is {default} of {levels}", f"use 1 … {levels}"


def _priority_without_levels(config: Any) -> Iterator[tuple[str, str]]:
    batching = config.dynamic_batching
    if batching.default_priority_level and not batching.priority_levels:
        yield "default_priority_level without priority_levels does nothing", "set priority_levels"


def _groups(config: Any) -> Iterator[tuple[str, str]]:
    kinds = type(config).DESCRIPTOR.fields_by_name["instance_group"].message_type.enum_types_by_name["Kind"]
    for group in config.instance_group:
        kind = kinds.values_by_number[group.kind].name
        if kind == "KIND_CPU" and group.gpus:
            yield "an instance group of KIND_CPU names GPUs", "remove gpus, or use KIND_GPU"
        if kind == "KIND_MODEL" and backend_of(config) == "onnxruntime":
            yield "the onnxruntime backend has no KIND_MODEL", "use KIND_CPU or KIND_GPU"


def _gpu_only(config: Any) -> Iterator[tuple[str, str]]:
    if backend_of(config) != "tensorrt":
        return
    for group in config.instance_group:
        if group.kind not in (0, 1):  # KIND_AUTO, KIND_GPU
            yield "TensorRT runs only on GPUs", "use instance_group { kind: KIND_GPU }"


def _versions(config: Any) -> Iterator[tuple[str, str]]:
    policy = config.version_policy
    if policy.HasField("latest") and policy.latest.num_versions == 0:
        yield "version_policy serves the latest 0 versions: none", "use num_versions: 1 or more"
    if policy.HasField("specific") and not policy.specific.versions:
        yield "version_policy specific names no version: none is served", "name one"


def _warmup(config: Any) -> Iterator[tuple[str, str]]:
    required = {tensor.name for tensor in config.input if not tensor.optional}
    for sample in config.model_warmup:
        missing = sorted(required - set(sample.inputs))
        if missing:
            yield f"warm-up '{sample.name}' lacks {', '.join(missing)}", "give a value for every input"
        if sample.batch_size > max(1, config.max_batch_size):
            yield (
                f"warm-up '{sample.name}' has batch size {sample.batch_size}",
                f"use at most {max(1, config.max_batch_size)}",
            )
        for name, tensor in sample.inputs.items():
            if any(dim < 1 for dim in tensor.dims):
                yield f"warm-up '{sample.name}' has a dynamic dim in '{name}'", "give real sizes"


def _random_warmup(config: Any) -> Iterator[tuple[str, str]]:
    for sample in config.model_warmup:
        for name, tensor in sample.inputs.items():
            if tensor.random_data:
                yield (
                    f"warm-up '{sample.name}' fills '{name}' with random bits: NaN, integers out of range",
                    "use zero_data or input_data_file",
                )


def _tensorrt_only(config: Any) -> Iterator[tuple[str, str]]:
    if backend_of(config) == "tensorrt":
        return
    for kind, tensor in _tensors(config):
        for flag in ("is_shape_tensor", "is_non_linear_format_io"):
            if getattr(tensor, flag):
                yield f"{kind} '{tensor.name}' sets {flag}, which only TensorRT knows", f"remove {flag}"
    if any(group.profile for group in config.instance_group):
        yield "instance_group sets profile, which only TensorRT knows", "remove profile"


def _tensorrt_profiles(config: Any) -> Iterator[tuple[str, str]]:
    if backend_of(config) != "tensorrt":
        return
    for group in config.instance_group:
        for profile in group.profile:
            if not profile.isdecimal():
                yield f"profile '{profile}' is not the index of a profile", 'use profile: ["0"]'


def _tensorrt_graphs(config: Any) -> Iterator[tuple[str, str]]:
    cuda = config.optimization.cuda
    if backend_of(config) != "tensorrt":
        if cuda.graphs:
            yield "CUDA graphs are a setting of the TensorRT backend", "remove optimization.cuda.graphs"
        return
    for spec in cuda.graph_spec:
        if spec.batch_size > config.max_batch_size:
            yield f"graph_spec has batch size {spec.batch_size}", f"use at most {config.max_batch_size}"


_INTEGER_PARAMETERS = ("intra_op_thread_count", "inter_op_thread_count", "execution_mode")


def _onnxruntime_parameters(config: Any) -> Iterator[tuple[str, str]]:
    if backend_of(config) != "onnxruntime":
        return
    for key in _INTEGER_PARAMETERS:
        if key in config.parameters and not config.parameters[key].string_value.isdecimal():
            yield (
                f"parameter {key} is '{config.parameters[key].string_value}'",
                "use a whole number, 0 or more",
            )
    mode = config.parameters["execution_mode"].string_value if "execution_mode" in config.parameters else "0"
    if mode.isdecimal() and mode not in ("0", "1"):
        yield f"parameter execution_mode is '{mode}'", "use 0 (sequential) or 1 (parallel)"


def _onnxruntime_optional(config: Any) -> Iterator[tuple[str, str]]:
    if backend_of(config) == "onnxruntime" and config.max_batch_size > 0:
        for tensor in config.input:
            if tensor.optional:
                yield (
                    f"input '{tensor.name}' is optional in a model that batches",
                    "set max_batch_size: 0, or make it required",
                )


def _onnxruntime_level(config: Any) -> Iterator[tuple[str, str]]:
    level = config.optimization.graph.level
    if backend_of(config) == "onnxruntime" and level not in (-1, 0, 1, 2):
        yield f"optimization.graph.level {level} means nothing", "use -1, 1, 2, or leave it out"


def _capabilities(config: Any) -> Iterator[tuple[str, str]]:
    for capability, file in config.cc_model_filenames.items():
        major, dot, minor = capability.partition(".")
        if not (dot and major.isdecimal() and minor.isdecimal()):
            yield f"cc_model_filenames has the key '{capability}'", 'write it as "9.0": MAJOR.MINOR'
        elif not file:
            yield f"cc_model_filenames names no file for '{capability}'", "name a file in the version folder"


_ACCELERATORS = {"gpu": ("tensorrt", "cuda"), "cpu": ("openvino",)}
_PRECISION_MODES = ("FP32", "FP16", "INT8")


def _onnxruntime_accelerators(config: Any) -> Iterator[tuple[str, str]]:
    accelerators = config.optimization.execution_accelerators
    on_gpu, on_cpu = accelerators.gpu_execution_accelerator, accelerators.cpu_execution_accelerator
    if backend_of(config) != "onnxruntime":
        if on_gpu or on_cpu:
            yield "execution_accelerators do nothing for this backend", "remove execution_accelerators"
        return
    for kind, named in (("gpu", on_gpu), ("cpu", on_cpu)):
        for one in named:
            known = _ACCELERATORS[kind]
            if one.name not in known:
                yield f"{kind}_execution_accelerator '{one.name}' is unknown", f"use {' or '.join(known)}"
            mode = one.parameters.get("precision_mode", "FP32")
            if mode not in _PRECISION_MODES:
                yield f"precision_mode is '{mode}'", f"use {', '.join(_PRECISION_MODES)}"
    if on_gpu and any(group.kind == 2 for group in config.instance_group):  # noqa: PLR2004  KIND_CPU
        yield "a gpu_execution_accelerator with instances of KIND_CPU does nothing", "use KIND_GPU"


RULES: tuple[Rule, ...] = (
    Rule(
        "backend",
        "tritongen",
        "The backend is named; platform is its older form (an ensemble has no backend).",
        _backend,
    ),
    Rule("max-batch-size", "core", "max_batch_size is not negative.", _max_batch),
    Rule("dims", "core", "Every tensor has a name and dims of 1 or more, or -1.", _dims),
    Rule("reshape", "core", "A reshape keeps the number of elements; empty only when batching.", _reshape),
    Rule("unique-tensors", "tritongen", "No tensor is listed twice (core does not notice).", _unique_tensors),
    Rule("preferred-batch-size", "core", "Preferred sizes lie in 1 … max_batch_size.", _preferred),
    Rule("priority", "core", "With priority levels, the default is one of them.", _priorities),
    Rule(
        "priority-without-levels",
        "tritongen",
        "A default priority needs priority levels (core ignores it).",
        _priority_without_levels,
    ),
    Rule("instance-group", "core", "KIND_CPU names no GPUs; the kind suits the backend.", _groups),
    Rule(
        "versions",
        "tritongen",
        "The version policy serves something (core loads nothing, silently).",
        _versions,
    ),
    Rule("warmup", "core", "Warm-up gives every input, real sizes, and fits max_batch_size.", _warmup),
    Rule("random-warmup", "tritongen", "Warm-up uses no random_data: it is random bits.", _random_warmup),
    Rule(
        "tensorrt-only",
        "core",
        "is_shape_tensor, is_non_linear_format_io, profile: TensorRT only.",
        _tensorrt_only,
    ),
    Rule("tensorrt-gpu", "tensorrt", "TensorRT models run on KIND_GPU.", _gpu_only),
    Rule("tensorrt-profile", "tensorrt", "Profiles are indices, written as strings.", _tensorrt_profiles),
    Rule(
        "tensorrt-graphs",
        "tensorrt",
        "CUDA graphs only there; graph_spec fits max_batch_size.",
        _tensorrt_graphs,
    ),
    Rule(
        "cc-model-filenames",
        "tritongen",
        "Compute capabilities are MAJOR.MINOR and name a file (core never finds others).",
        _capabilities,
    ),
    Rule(
        "onnxruntime-parameters",
        "onnxruntime",
        "Thread counts and execution_mode are whole numbers; the mode is 0 or 1.",
        _onnxruntime_parameters,
    ),
    Rule(
        "onnxruntime-optional", "onnxruntime", "Optional inputs only without batching.", _onnxruntime_optional
    ),
    Rule(
        "onnxruntime-accelerators",
        "onnxruntime",
        "GPU accelerators are tensorrt or cuda, with KIND_GPU and a known precision_mode.",
        _onnxruntime_accelerators,
    ),
    Rule("onnxruntime-level", "onnxruntime", "optimization.graph.level is -1, 1 or 2.", _onnxruntime_level),
)
