"""The spec: `tritongen.yaml` and flags, validated once, then frozen and handed down."""

from __future__ import annotations

import re
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
)
from pydantic.json_schema import SkipJsonSchema
from pydantic_core import PydanticCustomError, PydanticKnownError

from tritongen.errors import SpecError
from tritongen.slo import parse_slo

MAX_NAME_LENGTH = 100
_INT32, _UINT32 = 2**31 - 1, 2**32 - 1
"""The largest numbers that the fields of Triton's config.pbtxt hold."""
_MICROSECONDS = (2**63 - 1) // 1000
"""Triton counts nanoseconds in 64 bits."""
_MODEL_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


def check_model_name(name: str) -> str:
    """`name`, if Triton, a folder and a URL can all carry it; SpecError otherwise."""
    if _MODEL_NAME.fullmatch(name) and len(name) <= MAX_NAME_LENGTH:
        return name
    raise SpecError(
        f"the model name {name[:120]!r} cannot be used",
        found=f"{len(name)} characters" if len(name) > MAX_NAME_LENGTH else name or "an empty name",
        expected=f"1 to {MAX_NAME_LENGTH} of A-Z a-z 0-9 _ . - and no '.' or '-' at the start",
        fix=f"name it for example '{suggest_model_name(name)}'",
    )


def suggest_model_name(text: str) -> str:
    """A usable model name that resembles `text`."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", text).strip("._-")[:MAX_NAME_LENGTH] or "model"


def is_function(source: str) -> bool:
    """Whether a data source or a metric is `module:function` rather than a path or a built-in."""
    return _FUNCTION.fullmatch(source) is not None


def _explained(check: Callable[[str], object]) -> AfterValidator:
    """A pydantic validator out of a function that raises SpecError."""

    def validate(text: str) -> str:
        try:
            check(text)
        except SpecError as error:
            context = {"found": error.found, "expected": error.expected, "fix": error.fix}
            raise PydanticCustomError("spec", "{text}", {"text": error.message, **context}) from error
        return text

    return AfterValidator(validate)


ModelName = Annotated[str, _explained(check_model_name)]
SloText = Annotated[str, _explained(parse_slo)]
Text = Annotated[str, Field(coerce_numbers_to_str=True), WithJsonSchema({"type": ["string", "number"]})]
"""Text that YAML may read as a number (`128`)."""


class Precision(str, Enum):
    """The precisions that can be asked for, from the most exact to the fastest."""

    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"
    INT8 = "int8"
    FP8 = "fp8"

    def __str__(self) -> str:
        return self.value


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_numbers(cls, value: object, info: ValidationInfo) -> object:
        """Refuses `max_batch_size: yes`, which pydantic would take for 1."""
        if isinstance(value, bool) and info.field_name is not None:
            annotation = cls.model_fields[info.field_name].annotation
            kinds = {annotation, *get_args(annotation)} & {int, float}
            if kinds:
                raise PydanticKnownError("int_type" if int in kinds else "float_type")
        return value


def _split(value: object) -> object:
    """A list that a flag gives as text, with commas."""
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


class DataSpec(_Model):
    """Where sample inputs come from: a .npz or .npy file, a folder of them, or `module:function`."""

    calibration: str | None = None
    """Inputs that ranges are collected from; never used to judge accuracy."""
    validation: str | None = None
    """Held-out inputs (and labels) that accuracy is judged on."""
    labels: str = "labels"
    """Name of the array with the labels in the validation data."""


class AccuracySpec(_Model):
    """How accuracy is judged and how much of it may be lost."""

    metric: (
        Annotated[
            str,
            Field(
                pattern=r"^(top[1-9][0-9]*|mean_iou|f1|agreement|relative_l2|cosine|[A-Za-z_][\w.]*:[\w.]+)$"
            ),
        ]
        | None
    ) = None
    """With labels `top1`, `topK` such as `top5`, `mean_iou`, `f1`, `module:function`; default by the labels;
    without them `agreement`, `relative_l2` or `cosine`, default by the output (docs/accuracy.md)."""
    output: str | None = None
    """The output that the metric reads; default: the only one, or the first with the labels' batch."""
    limit: float | None = Field(default=None, ge=0)
    """Largest accepted loss. With labels: points of the metric (default 1.0). Else see docs/accuracy.md."""
    reference: Path | None = None
    """An FP32 ONNX file to judge against, for models that are already quantized or FP16."""


class ServingSpec(_Model):
    """What goes into config.pbtxt beyond what the trials decide."""

    instances: int | None = Field(default=None, ge=1, le=_INT32)
    """Instance count; default: what the trials found best."""
    queue_delay_us: int = Field(default=0, ge=0, le=_MICROSECONDS)
    """How long the dynamic batcher may wait for more requests, in microseconds."""
    dynamic_batching: bool = True
    """Let Triton join waiting requests into one batch."""
    preferred_batch_sizes: tuple[int, ...] = ()
    """Leave empty unless the engine has one optimization profile per batch size."""
    max_queue_size: int | None = Field(default=None, ge=0, le=_UINT32)
    """Requests that may wait before more are refused; default: no limit."""
    default_queue_timeout_us: int | None = Field(default=None, ge=0, le=_MICROSECONDS)
    """How long a request may wait before it is refused, in microseconds; default: no limit."""
    priority_levels: int = Field(default=0, ge=0, le=_UINT32)
    """Number of priorities that requests may carry (1 is the highest); 0: none."""
    default_priority_level: int = Field(default=0, ge=0)
    """Priority of requests that carry none."""
    response_cache: bool = False
    """Answer repeated requests from Triton's cache (the server must be started with one)."""
    warmup: bool = True
    """Run each size that will be served once before the model is ready."""
    parameters: dict[str, Text] = Field(default_factory=dict)
    """Extra backend parameters; they win over tritongen's own."""
    raw: str = ""
    """Text appended to config.pbtxt as it is."""
    template: Path | None = None
    """A Jinja template of your own in place of templates/config.pbtxt.j2."""
    keep_versions: int = Field(default=1, ge=1)
    """How many versions stay in the repository after a rebuild."""


class TensorRTSpec(_Model):
    """How TensorRT builds plans; what the installed version lacks is an error that names it."""

    plugins: tuple[Path, ...] = ()
    """Libraries with the operators that TensorRT lacks; they are copied beside the plan."""
    optimization_level: int | None = Field(default=None, ge=0, le=5)
    """Higher levels try more tactics and build longer; default: the builder's own (3)."""
    timing_iterations: int | None = Field(default=None, ge=1)
    """How often each tactic is timed; more make steadier choices; default: the builder's own (1)."""
    aux_streams: int | None = Field(default=None, ge=0)
    """Streams that a plan may use beside its own; default: the builder's own choice."""
    workspace_mb: int | None = Field(default=None, ge=1)
    """GPU memory for tactics in MiB; default: half of what is free."""
    tactic_sources: Annotated[tuple[str, ...], BeforeValidator(_split)] = ()
    """Such as `CUDNN` or `CUBLAS_LT`; default: those that need no other library."""
    tiling: Literal["NONE", "FAST", "MODERATE", "FULL"] | None = None
    """How hard to look for tiling across layers (TensorRT 10.8 and newer)."""
    build_route: str | None = None
    """Choices of the compiler, as `-knob=value` (TensorRT 11.1 and newer)."""
    sparsity: bool = False
    """Allow kernels for weights with 2:4 sparsity."""
    refit: bool = False
    """Plans whose weights can be replaced."""
    version_compatible: bool = False
    """Plans that later TensorRT versions load; the server must allow it."""
    hardware_compatible: bool = False
    """Plans that every GPU from Ampere on loads; slower than for one GPU."""
    best_of: int = Field(default=1, ge=1, le=16)
    """Build the leading candidate so often, each time with a fresh timing cache; the best is taken."""


def latency_batch(objective: str) -> int | None:
    """The batch size that `latency` or `latency@BATCH` is judged at; None for `throughput`."""
    kind, _, batch = objective.partition("@")
    return int(batch or 1) if kind == "latency" else None


class ModelSpec(_Model):
    """One model: where it is, what it must do, and what may be tried."""

    path: Path
    """The ONNX file; relative paths count from the spec file."""
    engine: Literal["auto", "tensorrt", "onnxruntime"] = "auto"
    """`auto`, `tensorrt` or `onnxruntime`."""
    execution_provider: Literal["cpu", "cuda", "tensorrt"] | None = None
    """ONNX Runtime's: `cpu` (default), or with onnxruntime-gpu `cuda` or `tensorrt` on a GPU."""
    precision: tuple[Precision, ...] | None = None
    """What to try; default: every precision that the engine has and the data can prove."""
    max_batch_size: int | None = Field(default=None, ge=0, le=_INT32)
    """Largest batch to measure and serve; 0 turns batching off; default 8, or what the graph allows."""
    objective: Annotated[str, Field(pattern=r"^(throughput|latency|latency@[1-9][0-9]*)$")] = "throughput"
    """`throughput` (at the largest batch size that the SLO allows), `latency`, or `latency@BATCH`."""
    slo: tuple[SloText, ...] = ()
    """Service-level objectives such as `p99<=20ms` or `throughput>=500/s`."""
    shapes: dict[str, Text] = Field(default_factory=dict)
    """Sizes for dynamic axes by input: `3x320x320`, or min..opt..max per axis; with or without the batch."""
    ranges: dict[str, Text] = Field(default_factory=dict)
    """Inclusive value ranges of integer inputs: `0..30521`."""
    data: DataSpec = DataSpec()
    accuracy: AccuracySpec = AccuracySpec()
    serving: ServingSpec = ServingSpec()
    tensorrt: TensorRTSpec = TensorRTSpec()
    target: str | None = None
    """The serving image, as `nvcr.io/nvidia/tritonserver:YY.MM-py3`; default: the embedded Triton."""
    keep_candidates: bool = False
    """Keep passing runners-up beside the winner (model.int8.onnx, …)."""
    build_budget_minutes: float | None = Field(default=None, gt=0)
    """How long the trials may take, the most promising first; one new one always; default: no bound."""
    seed: int = Field(default=0, ge=0)
    """Seed of everything random."""
    folder: SkipJsonSchema[Path] = Path()
    """The folder of the spec file, set on loading: `module:function` is looked for there too."""


class Spec(_Model):
    """The whole job: one or more models and the repository that they go to."""

    repository: Path = Path("model_repository")
    """The Triton model repository to write."""
    run_dir: Path = Path(".tritongen")
    """Where trials, samples and logs are kept; see docs/run-directory.md."""
    models: dict[ModelName, ModelSpec] = Field(min_length=1)
    """By the name that Triton serves them under."""


def json_schema() -> dict[str, Any]:
    """The JSON schema of the spec file, for editors and for the docs."""
    schema = _without_wrappers(Spec.model_json_schema())
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "tritongen.yaml"}


def _without_wrappers(part: Any) -> Any:
    """The schema with `allOf: [X]` as X, which pydantic before 2.9 writes around references."""
    if isinstance(part, list):
        return [_without_wrappers(item) for item in part]
    if not isinstance(part, dict):
        return part
    inner = part.get("allOf")
    if isinstance(inner, list) and len(inner) == 1:
        part = {**inner[0], **{key: value for key, value in part.items() if key != "allOf"}}
    return {key: _without_wrappers(value) for key, value in part.items()}


def load_spec(path: Path) -> Spec:
    """The spec in the YAML file at `path`, its paths made relative to the working directory.

    SpecError names file, line and key, the nearest right name and the allowed values.
    """
    from tritongen.spec.loading import load

    return load(path)


def spec_for_models(paths: tuple[Path, ...]) -> Spec:
    """A spec with defaults for bare ONNX files, named by their file names; SpecError if two names clash."""
    from tritongen.spec.loading import from_models

    return from_models(paths)


def override(spec: Spec, **flags: Any) -> Spec:
    """`spec` with flags over it: those that are not None, on every model.

    SpecError if a value is not allowed, or if a flag can only mean one model and there are several.
    """
    from tritongen.spec.overrides import apply

    return apply(spec, flags)
