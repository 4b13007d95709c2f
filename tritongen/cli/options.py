"""The flags that mean the same in every command, and how they become a spec."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from tritongen.serving.registry import DEFAULT_REPOSITORY

if TYPE_CHECKING:
    from tritongen.spec import Spec

Function = TypeVar("Function", bound=Callable[..., Any])
Decorator = Callable[[Function], Function]

DEFAULT_SPEC = Path("tritongen.yaml")
SPEC_SUFFIXES = (".yaml", ".yml")
_TENSORRT_FLAGS = {"tensorrt": "tensorrt", "plugin": "plugins"}


def _assignments(ctx: click.Context, param: click.Parameter, texts: tuple[str, ...]) -> dict[str, str]:  # noqa: ARG001
    """{input: value} of a repeatable INPUT=VALUE flag; SpecError for an input that is named twice."""
    from tritongen.errors import SpecError
    from tritongen.shapes import split_assignment

    flag, found = param.opts[0], dict[str, str]()
    for name, value in (split_assignment(text, flag) for text in texts):
        if name in found:
            raise SpecError(
                f"{flag} names '{name}' twice", found=f"{found[name]} and {value}", fix="give it one value"
            )
        found[name] = value
    return found


def _settings(ctx: click.Context, param: click.Parameter, texts: tuple[str, ...]) -> dict[str, str]:  # noqa: ARG001
    """{key: value} of a repeatable KEY=VALUE flag."""
    for text in texts:
        if not text.partition("=")[1]:
            raise click.BadParameter(f"'{text}' is not KEY=VALUE")
    return {key.strip().replace("-", "_"): value for key, _, value in (t.partition("=") for t in texts)}


def _commas(ctx: click.Context, param: click.Parameter, texts: tuple[str, ...]) -> tuple[str, ...]:  # noqa: ARG001
    """The items of a flag that takes commas and repeats."""
    return tuple(item.strip() for text in texts for item in text.split(",") if item.strip())


def _objectives(ctx: click.Context, param: click.Parameter, texts: tuple[str, ...]) -> tuple[str, ...]:  # noqa: ARG001
    from tritongen.slo import parse_slo

    for text in texts:
        parse_slo(text)
    return texts


def finite(ctx: click.Context, param: click.Parameter, value: float | None) -> float | None:  # noqa: ARG001
    """The number, which `float` also reads from `nan` and `inf`."""
    if value is not None and not math.isfinite(value):
        raise click.BadParameter(f"{value} is not a usable number")
    return value


models = click.argument(
    "models", nargs=-1, type=click.Path(path_type=Path), metavar="[SPEC.yaml | MODEL.onnx …]"
)
model = click.argument("model", type=click.Path(path_type=Path), metavar="MODEL.onnx")

name = click.option("--name", metavar="NAME", help="Name that Triton serves the model under.")
repository = click.option(
    "--repository",
    "-r",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help=f"Triton model repository.  [default: {DEFAULT_REPOSITORY}]",
)
run_dir = click.option(
    "--run-dir",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Where trials, samples and logs are kept.  [default: .tritongen]",
)
shape = click.option(
    "--shape",
    "shapes",
    multiple=True,
    metavar="INPUT=SIZES",
    callback=_assignments,
    help="Sizes for dynamic axes: 'images=3x320x320', or min..opt..max per axis; with or without the batch.",
)
value_range = click.option(
    "--range",
    "ranges",
    multiple=True,
    metavar="INPUT=MIN..MAX",
    callback=_assignments,
    help="Values of an integer input: 'input_ids=0..30521'.",
)
execution_provider = click.option(
    "--execution-provider", metavar="NAME", help="ONNX Runtime's: cpu, cuda or tensorrt.  [default: cpu]"
)
engine = click.option("--engine", metavar="NAME", help="auto, tensorrt or onnxruntime.  [default: auto]")
precision = click.option(
    "--precision",
    multiple=True,
    metavar="LIST",
    callback=_commas,
    help="What to try: fp32,fp16,bf16,int8,fp8.  [default: all that the engine has and the data can prove]",
)
max_batch_size = click.option(
    "--max-batch-size",
    type=click.IntRange(min=0),
    metavar="N",
    help="Largest batch; 0: no batching.  [default: 8]",
)
objective = click.option(
    "--objective", metavar="WHAT", help="throughput, latency or latency@BATCH.  [default: throughput]"
)
slo = click.option(
    "--slo",
    multiple=True,
    metavar="PROMISE",
    callback=_objectives,
    help="Promise such as 'p99<=20ms', 'error_rate<=0.1%', 'throughput>=500/s'; repeatable.",
)
p99_ms = click.option(
    "--p99-ms",
    type=click.FloatRange(min=0, min_open=True),
    metavar="MS",
    callback=finite,
    help="Short for --slo 'p99<=MSms'.",
)
calibration_data = click.option(
    "--calibration-data", metavar="DATA", help=".npz, .npy, a folder of them, or module:function."
)
validation_data = click.option(
    "--validation-data", metavar="DATA", help="Held-out inputs (and labels); the same forms."
)
labels = click.option("--labels", metavar="ARRAY", help="Array with the labels.  [default: labels]")
accuracy_metric = click.option(
    "--metric", "accuracy_metric", metavar="METRIC", help="top1, topK, mean_iou, f1 or module:function."
)
accuracy_limit = click.option(
    "--accuracy-limit",
    type=click.FloatRange(min=0),
    metavar="X",
    help="Largest accepted loss; see docs/accuracy.md.",
)
reference = click.option(
    "--reference",
    type=click.Path(path_type=Path),
    metavar="FP32.onnx",
    help="FP32 original of a model that is already quantized or FP16.",
)
target = click.option("--target", metavar="IMAGE", help="Serving image.  [default: the embedded Triton]")
keep = click.option(
    "--keep", "keep_versions", type=click.IntRange(min=1), metavar="N", help="Versions to keep.  [default: 1]"
)
keep_candidates = click.option(
    "--keep-candidates/--no-keep-candidates", default=None, help="Keep passing runners-up in the repository."
)
plugins = click.option(
    "--plugin",
    "plugins",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="LIB.so",
    help="Library with operators that TensorRT lacks, for build, trials and serving; repeatable.",
)
parser_plugins = click.option(
    "--plugin",
    "plugins",
    multiple=True,
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    metavar="LIB.so",
    help="Library with operators that TensorRT lacks, loaded before it is asked; repeatable.",
)
tensorrt = click.option(
    "--tensorrt",
    multiple=True,
    metavar="KEY=VALUE",
    callback=_settings,
    help="How plans are built: optimization_level=5, best_of=3, refit=true, … (docs/spec.md); repeatable.",
)
build_budget = click.option(
    "--build-budget",
    type=click.FloatRange(min=0, min_open=True),
    metavar="MINUTES",
    help="How long a model's trials may take; one new trial a run always.  [default: no bound]",
)
seed = click.option(
    "--seed", type=click.IntRange(min=0), metavar="N", help="Seed of everything random.  [default: 0]"
)
as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")

_SPEC_FLAGS: tuple[Decorator[Any], ...] = (
    name, repository, run_dir, shape, value_range, engine, execution_provider, precision, max_batch_size,
    objective, slo, p99_ms,
    calibration_data, validation_data, labels, accuracy_metric, accuracy_limit, reference, target, keep,
    keep_candidates, plugins, tensorrt, build_budget, seed,
)  # fmt: skip


def spec_flags(command: Function) -> Function:
    """All flags that override the spec; the command takes them as `**flags` and hands them to `read_spec`."""
    return reduce(lambda decorated, option: option(decorated), reversed(_SPEC_FLAGS), command)


def read_spec(sources: tuple[Path, ...], **flags: Any) -> Spec:
    """The spec that the arguments mean (a YAML file, ONNX files, or ./tritongen.yaml), with flags over it."""
    from tritongen.errors import SpecError
    from tritongen.spec import load_spec, override, spec_for_models
    from tritongen.spec.loading import check_files, check_models

    specs = [path for path in sources if path.suffix.lower() in SPEC_SUFFIXES]
    if specs and len(sources) > 1:
        raise SpecError(
            "a spec stands alone on the command line",
            found=" ".join(map(str, sources)),
            expected="one .yaml file, or .onnx files",
            fix="list the models in the spec",
        )
    if not sources and not DEFAULT_SPEC.exists():
        raise SpecError(
            "there is nothing to work on",
            found=f"no argument, and no {DEFAULT_SPEC} in {Path.cwd()}",
            expected="a spec or an ONNX file",
            fix="name one: tritongen build MODEL.onnx",
        )
    if specs or not sources:
        path = specs[0] if specs else DEFAULT_SPEC
        spec = load_spec(path)
        check_models(path, spec)
    else:
        spec = spec_for_models(sources)
    spec = override(spec, **_as_overrides(flags))
    check_files(spec)
    _refuse_idle(spec, [f"--{flag}" for flag, key in _TENSORRT_FLAGS.items() if flags.get(key)])
    return spec


def _refuse_idle(spec: Spec, given: Sequence[str]) -> None:
    """SpecError for flags of TensorRT where every model was asked to be built for ONNX Runtime."""
    from tritongen.engines import engine_name
    from tritongen.errors import SpecError

    engines = {engine_name(model.engine, model.execution_provider) for model in spec.models.values()}
    if given and all(engine.startswith("onnxruntime") for engine in engines):
        raise SpecError(
            f"{' and '.join(given)} would have no effect: it says how TensorRT's own plans are built",
            found=f"engine {', '.join(sorted(engines))}",
            expected="--engine tensorrt or auto",
            fix=f"leave {' and '.join(given)} out, or use --engine tensorrt",
        )


def _as_overrides(flags: dict[str, Any]) -> dict[str, Any]:
    p99 = flags.pop("p99_ms", None)
    if p99 is not None:
        flags["slo"] = (*flags.get("slo", ()), f"p99<={p99:g}ms")
    return flags
