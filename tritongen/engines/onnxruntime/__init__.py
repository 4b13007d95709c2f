"""ONNX Runtime: on the CPU the engine that every machine has; on a GPU the one that takes every graph."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tritongen.engines import Runner, ServingTraits
from tritongen.engines.onnxruntime import providers
from tritongen.engines.onnxruntime.recipes import int8_recipes
from tritongen.engines.onnxruntime.session import OnnxRuntimeRunner, version
from tritongen.errors import BuildError, ModelError
from tritongen.files import digest_files
from tritongen.graph.onnx_file import external_files, read_model
from tritongen.precision.recipe import Fp16Recipe
from tritongen.runs.events import Event, EventSink
from tritongen.runs.records import Artifact, Candidate, Options
from tritongen.spec import ModelSpec, Precision

if TYPE_CHECKING:
    from tritongen.graph import Graph
    from tritongen.precision.recipe import Recipe
    from tritongen.shapes import ResolvedInput

FILENAME = "model.onnx"

# What Triton's C++ onnxruntime backend makes of `optimization { graph { level: N } }`; without it: all.
_CONFIG_LEVELS = {"all": None, "extended": 1, "basic": -1, "disabled": 2}


PROVIDER = "execution_provider"
"""In an artifact's details: what it was measured with."""


class OnnxRuntimeEngine:
    """One execution provider of ONNX Runtime; satisfies `tritongen.engines.Engine`.

    `cpu`: FP32 and INT8. `cuda` and `tensorrt`: FP32 and FP16 on a GPU (run: CUDA in FP32).
    """

    def __init__(self, provider: str = providers.CPU) -> None:
        self.name = "onnxruntime" if provider == providers.CPU else f"onnxruntime-{provider}"
        self._provider = provider

    def unavailable_reason(self) -> str | None:
        """None where onnxruntime starts the provider, otherwise why not and what brings it."""
        try:
            version()
        except ImportError as error:
            return f"onnxruntime cannot be imported ({error}); `pip install onnxruntime` brings it"
        return providers.unavailable_reason(self._provider)

    def versions(self) -> dict[str, str]:
        """The library's version; it decides the readable IR version and opset (`session.readable_limits`)."""
        return {"onnxruntime": version()}

    def devices(self) -> Sequence[str]:
        """None: it runs on the CPU."""
        return ()

    def precisions(self) -> Sequence[Precision]:
        """FP32 and INT8 on the CPU, which computes FP16 in FP32; FP32 and FP16 on a GPU."""
        if self._provider == providers.CPU:
            return (Precision.FP32, Precision.INT8)
        return (Precision.FP32, Precision.FP16)

    def with_shapes(self, inputs: Sequence[ResolvedInput], max_batch_size: int) -> OnnxRuntimeEngine:  # noqa: ARG002
        """Itself: ONNX Runtime takes any size."""
        return self

    def configured(self, spec: ModelSpec, effort: str) -> OnnxRuntimeEngine:  # noqa: ARG002
        """Itself: the spec says nothing about it."""
        return self

    def variations(self, candidate: Candidate) -> Sequence[tuple[str, Options]]:  # noqa: ARG002
        """None: opening a model with the same options gives the same kernels."""
        return ()

    def recipes(self, precision: Precision) -> Sequence[Recipe]:
        """The INT8 recipes that suit this machine's vector instructions, best first; FP16 for CUDA.

        TensorRT's provider makes FP16 of FP32 by itself.
        """
        if precision is Precision.FP16 and self._provider == providers.CUDA:
            return (Fp16Recipe(name="half"),)
        return int8_recipes() if precision is Precision.INT8 else ()

    def build_options(self, precision: Precision, graph: Graph) -> Sequence[Options]:
        """Graph optimization levels: `all`, and for FP32 convolutions also `extended`.

        The two differ by the blocked NCHWc layout of FP32 convolutions, which pays or costs by the model.
        """
        levels = ["all"]
        if (
            self._provider == providers.CPU
            and precision is Precision.FP32
            and any(op in graph.operators for op in ("Conv", "FusedConv"))
        ):
            levels.append("extended")
        return [{"graph_optimization_level": level} for level in levels]

    def runtimes(self, graph: Graph, cores: int) -> Sequence[tuple[Options, int]]:  # noqa: ARG002
        """Threads × instances: all cores for one call, one core each for many calls, between, and 1 × 1."""
        if self._provider != providers.CPU:
            return [({"intra_op_threads": 1}, 1), ({"intra_op_threads": 1}, 2)]
        middle = 1 << (max(cores, 1).bit_length() // 2)
        pairs = {(max(cores, 1), 1): None, (1, max(cores, 1)): None}
        if cores >= 4:  # noqa: PLR2004
            pairs[(middle, cores // middle)] = None
        pairs[(1, 1)] = None
        return [(_runtime(threads, instances), instances) for threads, instances in pairs]

    def build(self, model: Path, candidate: Candidate, folder: Path, events: EventSink) -> Artifact:
        """Copy `model` with its external data into `folder` and prove that it opens.

        ModelError if ONNX Runtime cannot read it, BuildError if the files cannot be written.
        """
        started = time.perf_counter()
        level = _level(candidate.options)
        extra = _external_files(model)
        try:
            files = [_copy(model, folder / FILENAME)]
            files += [_copy(model.parent / name, folder / name) for name in extra]
        except OSError as error:
            raise BuildError(
                f"the files of candidate '{candidate.id}' could not be written",
                found=str(error),
                fix=f"make room or set the permissions of {folder}",
            ) from error
        chain = providers.session_providers(self._provider, candidate.precision)
        with OnnxRuntimeRunner(
            folder / FILENAME, graph_optimization_level=level, intra_op_threads=1, providers=chain
        ):
            pass
        events(Event("trial", "progress", "opened by ONNX Runtime", subject=candidate.id))
        return Artifact(
            file=FILENAME,
            extra_files=extra,
            digest=digest_files(files),
            size_bytes=sum(file.stat().st_size for file in files),
            build_seconds=time.perf_counter() - started,
            versions=self.versions(),
            details={
                "graph_optimization_level": level,
                PROVIDER: self._provider,
                "precision": str(candidate.precision),
            },
        )

    def open(self, folder: Path, artifact: Artifact, runtime: Options) -> Runner:
        """A runner with `intra_op_threads` (default: all cores) and `spinning` from `runtime`."""
        return OnnxRuntimeRunner(
            folder / artifact.file,
            graph_optimization_level=_level(artifact.details),
            intra_op_threads=int(runtime.get("intra_op_threads", 0)),
            spinning=bool(runtime.get("spinning", True)),
            providers=providers.session_providers(*_provided(artifact)),
        )

    def serving_traits(self, artifact: Artifact, runtime: Options) -> ServingTraits:
        """Parameters that both Triton's C++ onnxruntime backend and tritongen's Python one understand."""
        level = _CONFIG_LEVELS[_level(artifact.details)]
        parameters = {
            "intra_op_thread_count": str(runtime.get("intra_op_threads", 0)),
            "inter_op_thread_count": "1",
            "execution_mode": "0",
        }
        if not runtime.get("spinning", True):
            # Only the Python backend reads it; the C++ one passes over keys that it does not know.
            parameters["session.intra_op.allow_spinning"] = "0"
        provider, precision = _provided(artifact)
        optimization = ("" if level is None else f"graph {{ level: {level} }}",
                        providers.accelerators_text(provider, precision))  # fmt: skip
        return ServingTraits(
            backend="onnxruntime",
            filename=FILENAME,
            instance_kind="KIND_CPU" if provider == providers.CPU else "KIND_GPU",
            parameters=parameters,
            optimization=" ".join(filter(None, optimization)),
        )


def _provided(artifact: Artifact) -> tuple[str, Precision]:
    """(execution provider, precision) of an artifact; those of before the providers ran on the CPU."""
    details = artifact.details
    return str(details.get(PROVIDER, providers.CPU)), Precision(details.get("precision", "fp32"))


def _external_files(model: Path) -> tuple[str, ...]:
    """The external data files of an ONNX file, relative to its folder; ModelError if one cannot be copied."""
    files = external_files(read_model(model), model)
    if FILENAME in files:
        raise ModelError(
            f"{model} keeps its weights in a file named {FILENAME}",
            found=FILENAME,
            expected="another name, as the model itself gets this one where it is served",
            fix=f"onnx.save_model(onnx.load('{model.name}'), …, save_as_external_data=True, "
            "location='weights.bin') writes both anew",
        )
    return files


def _copy(source: Path, target: Path) -> Path:
    if source.resolve() != target.resolve():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
    return target


def _level(options: Options) -> str:
    level = str(options.get("graph_optimization_level", "all"))
    if level not in _CONFIG_LEVELS:
        raise BuildError("unknown graph optimization level", found=level, expected=", ".join(_CONFIG_LEVELS))
    return level


def _runtime(threads: int, instances: int) -> Options:
    options: Options = {"intra_op_threads": threads}
    if threads > 1 and instances > 1:
        # Idle threads of one instance would spin on the cores that the other one needs.
        options["spinning"] = False
    return options
