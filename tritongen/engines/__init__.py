"""The plug-in point: what an engine is, and which engines there are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

from tritongen.errors import BuildError, RequirementError, SpecError
from tritongen.spec import Precision

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from typing_extensions import Self

    from tritongen.graph import Graph
    from tritongen.precision.holding import Layer
    from tritongen.precision.recipe import Recipe
    from tritongen.runs.events import EventSink
    from tritongen.runs.records import Artifact, Candidate, Options
    from tritongen.shapes import ResolvedInput
    from tritongen.spec import ModelSpec
    from tritongen.tensors import TensorSpec

    Tensors = Mapping[str, NDArray[np.generic]]


class Runner(Protocol):
    """An engine ready to infer. Opens on entering the context, and frees everything on leaving it."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def infer(self, inputs: Tensors) -> dict[str, NDArray[np.generic]]:
        """All outputs by name for one batch of inputs by name."""
        ...

    def prepare(self, inputs: Tensors) -> None:
        """Bind `inputs` once, so that `step` measures the engine and not the copying of Python objects."""
        ...

    def step(self) -> int:
        """Run the prepared inputs once and return its latency in nanoseconds."""
        ...


class NoKernelError(BuildError):
    """The engine has no kernel for some layers in the precision that they were given; `build` raises it."""

    def __init__(
        self,
        message: str,
        *,
        engine: str,
        layers: Sequence[Layer],
        found: str | None = None,
        fix: str | None = None,
    ) -> None:
        super().__init__(message, found=found, fix=fix)
        self.engine = engine
        """Its name and version, for people."""
        self.layers = tuple(layers)


@dataclass(frozen=True)
class ServingTraits:
    """What config.pbtxt must say for an artifact of this engine."""

    backend: str
    """Triton's backend name ("onnxruntime", "tensorrt")."""
    filename: str
    """The default file name in a version folder ("model.onnx", "model.plan")."""
    instance_kind: str
    """KIND_CPU or KIND_GPU."""
    parameters: dict[str, str] = field(default_factory=dict)
    optimization: str = ""
    """Text inside `optimization { }`, or empty."""
    profiles: tuple[str, ...] = ()
    """Indices of the optimization profiles that an instance uses; empty: the only one."""
    preferred_batch_sizes: tuple[int, ...] = ()
    """Batch sizes that the artifact is tuned for, where there are several; the spec's own win over them."""
    inputs: tuple[TensorSpec, ...] = ()
    """As the artifact itself reports them; empty: as the graph declares them. So are outputs."""
    outputs: tuple[TensorSpec, ...] = ()


class Engine(Protocol):
    """One way to build and run a model."""

    name: str

    def unavailable_reason(self) -> str | None:
        """None if this machine can build and run with it, otherwise what is missing and what brings it."""
        ...

    def versions(self) -> dict[str, str]:
        """Library versions that decide whether an artifact still loads."""
        ...

    def devices(self) -> Sequence[str]:
        """The names of the GPUs that it could run on; empty for an engine that needs none."""
        ...

    def precisions(self) -> Sequence[Precision]:
        """What this engine can gain from, on this machine, most exact first."""
        ...

    def with_shapes(self, inputs: Sequence[ResolvedInput], max_batch_size: int) -> Engine:
        """The engine for these sizes (0: inputs carry no batch axis); itself where any size will do."""
        ...

    def configured(self, spec: ModelSpec, effort: str) -> Engine:
        """The engine with what the spec says about it; RequirementError if its version lacks some of that."""
        ...

    def variations(self, candidate: Candidate) -> Sequence[tuple[str, Options]]:
        """(name, options) of other ways to build the leading candidate, worth a second look at it."""
        ...

    def recipes(self, precision: Precision) -> Sequence[Recipe]:
        """How to rewrite a graph for `precision`, best guess first; empty: as it is."""
        ...

    def build_options(self, precision: Precision, graph: Graph) -> Sequence[Options]:
        """The build options worth trying for `precision`."""
        ...

    def runtimes(self, graph: Graph, cores: int) -> Sequence[tuple[Options, int]]:
        """(runtime setting, instances at once) pairs worth measuring on every artifact."""
        ...

    def build(self, model: Path, candidate: Candidate, folder: Path, events: EventSink) -> Artifact:
        """Turn the (rewritten) ONNX file into an artifact inside `folder`.

        NoKernelError where it can tell for which layers it has no kernel.
        """
        ...

    def open(self, folder: Path, artifact: Artifact, runtime: Options) -> Runner:
        """A runner, not yet entered, for an artifact that `build` made."""
        ...

    def serving_traits(self, artifact: Artifact, runtime: Options) -> ServingTraits:
        """What config.pbtxt must say so that a server runs it as it was measured."""
        ...


ENGINE_NAMES = ("tensorrt", "onnxruntime")
"""In the order in which `auto` prefers them."""

VARIANTS = ("onnxruntime-tensorrt", "onnxruntime-cuda")
"""ONNX Runtime on a GPU, for graphs that TensorRT's parser refuses, or where it is asked for."""


def engine_name(engine: str, execution_provider: str | None) -> str:
    """The engine that a spec's two keys ask for; SpecError if they contradict each other."""
    if execution_provider is None:
        return engine
    if engine == "tensorrt":
        raise SpecError(
            "an execution provider belongs to ONNX Runtime",
            found=f"engine tensorrt with execution_provider {execution_provider}",
            expected="engine onnxruntime",
            fix="use --engine onnxruntime, or leave --execution-provider out",
        )
    return "onnxruntime" if execution_provider == "cpu" else f"onnxruntime-{execution_provider}"


def load_engine(name: str) -> Engine:
    """The engine by its name; RequirementError for an unknown one."""
    if name in ("onnxruntime", *VARIANTS):
        from tritongen.engines.onnxruntime import OnnxRuntimeEngine

        return OnnxRuntimeEngine(name.partition("-")[2] or "cpu")
    if name == "tensorrt":
        from tritongen.engines.tensorrt import TensorRTEngine

        return TensorRTEngine()
    raise RequirementError(f"there is no engine '{name}'", found=name, expected=" or ".join(ENGINE_NAMES))
