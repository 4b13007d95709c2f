"""TensorRT: plans built, measured and served on an NVIDIA GPU. `api` alone knows the version differences.

Run on a GPU with 8.6. Written for 10 and 11, whose API shape is run without a GPU through tensorrt_rtx.
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tritongen.engines import Runner, ServingTraits
from tritongen.engines.tensorrt import api, cuda, inspection
from tritongen.engines.tensorrt.building import build_plan
from tritongen.engines.tensorrt.calibrator import calibration_calls, make_calibrator
from tritongen.engines.tensorrt.options import (
    FRESH,
    MATH,
    PROFILES,
    builder_options,
    settings_of,
    variations,
)
from tritongen.engines.tensorrt.plan import load_plan
from tritongen.engines.tensorrt.profiles import (
    Profile,
    from_text,
    profiles_per_batch_size,
    to_text,
    wide_profile,
)
from tritongen.engines.tensorrt.recipes import recipes_for, rival_recipes
from tritongen.engines.tensorrt.runner import TensorRTRunner
from tritongen.engines.tensorrt.serving import optimization_text, preferred_batch_sizes, tensor_specs
from tritongen.errors import BuildError, InputError, RequirementError
from tritongen.files import digest_files, replacing
from tritongen.runs.events import Event, EventSink
from tritongen.runs.records import Artifact, Candidate, Options
from tritongen.spec import ModelSpec, Precision, latency_batch

if TYPE_CHECKING:
    from tritongen.graph import Graph
    from tritongen.precision.recipe import Recipe
    from tritongen.shapes import ResolvedInput

FILENAME = "model.plan"
_TF32_FROM, _BF16_FROM, _FP8_FROM = (8, 0), (8, 0), (8, 9)
"""The first compute capabilities with such tensor cores."""


_QUICK: Options = {"optimization_level": 2}
"""ResNet-50 in FP16 builds in a third of the time: as fast at batch 64, 7 % slower at 1."""


@dataclass(frozen=True)
class TensorRTEngine:
    """FP32 (TF32), FP16, BF16, INT8 and FP8 plans; satisfies `tritongen.engines.Engine`."""

    name = "tensorrt"

    cache: Path | None = None
    """Where timing caches are kept; default: ~/.cache/tritongen/tensorrt."""
    inputs: tuple[ResolvedInput, ...] = ()
    max_batch_size: int = 0
    builder: Options = field(default_factory=dict)
    """What the spec says of the builder."""
    best_of: int = 1
    thorough: bool = False
    batch_size: int = 0
    """The objective's (`latency@4`), which gets a profile of its own; 0: throughput."""

    def with_shapes(self, inputs: Sequence[ResolvedInput], max_batch_size: int) -> TensorRTEngine:
        """An engine whose build options carry optimization profiles for these sizes."""
        return replace(self, inputs=tuple(inputs), max_batch_size=max_batch_size)

    def configured(self, spec: ModelSpec, effort: str) -> TensorRTEngine:
        """An engine that builds as `spec.tensorrt` says; RequirementError for what this TensorRT lacks."""
        asked, trt = builder_options(spec.tensorrt), api.load()
        api.require(trt, asked)
        api.require_tactic_sources(trt, spec.tensorrt.tactic_sources)
        _require_files(spec.tensorrt.plugins)
        builder = {**(_QUICK if effort == "quick" else {}), **asked}
        return replace(
            self,
            builder=builder,
            best_of=spec.tensorrt.best_of,
            thorough=effort == "thorough",
            batch_size=latency_batch(spec.objective) or 0,
        )

    def variations(self, candidate: Candidate) -> Sequence[tuple[str, Options]]:
        """Fresh builds where `best_of` asks for them; each tuning axis alone with `--effort thorough`."""
        return variations(
            candidate,
            api.features(api.load()),
            best_of=self.best_of,
            thorough=self.thorough,
            inputs=self.inputs,
            max_batch_size=self.max_batch_size,
        )

    def unavailable_reason(self) -> str | None:
        """None if TensorRT can be imported and finds a GPU, otherwise what is missing and what brings it."""
        try:
            api.load()
        except RequirementError as error:
            return f"TensorRT cannot be imported ({error.found}); {api.INSTALL} brings it"
        return cuda.unavailable_reason()

    def versions(self) -> dict[str, str]:
        """Of TensorRT, CUDA, the driver and the GPU: a plan is made for all of them together."""
        name, capability = cuda.device_name()
        driver = cuda.driver_release()
        return {
            "tensorrt": str(api.load().__version__),
            "cuda_driver": cuda.driver_version(),
            "gpu": name,
            "compute_capability": capability,
            **({"driver": driver} if driver else {}),
        }

    def devices(self) -> Sequence[str]:
        """The GPUs that CUDA shows to this process."""
        return cuda.device_names()

    def precisions(self) -> Sequence[Precision]:
        """FP32 (with TF32), FP16, INT8; BF16 and FP8 where version and GPU have them."""
        return precisions_of(api.features(api.load()), _capability())

    def recipes(self, precision: Precision) -> Sequence[Recipe]:
        """INT8: Q/DQ placements, and implicit ranges where the version has them; FP16: flag or rewrite."""
        has = api.features(api.load())
        rivals = rival_recipes(has) if self.thorough and precision is Precision.INT8 else ()
        return (*recipes_for(precision, has), *rivals)

    def build_options(self, precision: Precision, graph: Graph) -> Sequence[Options]:  # noqa: ARG002
        """Profiles tuned for batch 1, the objective's and the largest; FP32 once without and once with TF32.

        TF32 rounds like FP16 and may fail the gate of FP32, so that plain FP32 stays the fallback. GPUs that
        have none would build the same plan twice.
        """
        shapes = {**self.builder, **({PROFILES: to_text(self._profiles())} if self.inputs else {})}
        if precision is not Precision.FP32:
            return [shapes]
        choices = ("fp32", "tf32") if _capability() >= _TF32_FROM else ("fp32",)
        return [{**shapes, MATH: math} for math in choices]

    def runtimes(self, graph: Graph, cores: int) -> Sequence[tuple[Options, int]]:  # noqa: ARG002
        """With a CUDA graph, alone and k at once (copies of one overlap the other's work); and without."""
        graphs: Options = {"cuda_graph": True}
        together = (1, 2, 4) if self.thorough else (1, 2)
        return [*((graphs, k) for k in together), ({"cuda_graph": False}, 1)]

    def build(self, model: Path, candidate: Candidate, folder: Path, events: EventSink) -> Artifact:
        """Build the plan, look for the precision in it, and prove that it loads.

        ModelError where the parser refuses the graph, BuildError where the precision is ABSENT.
        """
        started = time.perf_counter()
        trt = api.load()
        cuda.use_device(0)
        # FP8 comes only through Q/DQ nodes of strongly typed networks, on 10 too.
        strongly_typed = not api.features(trt).weakly_typed or candidate.precision is Precision.FP8
        settings = replace(settings_of(candidate, model), strongly_typed=strongly_typed)
        calls = calibration_calls(model, settings.profiles)
        if calls is not None:
            settings = replace(settings, calibrator=make_calibrator(trt, *calls))
        cache = None if FRESH in candidate.options else self.timing_cache()
        plan = build_plan(trt, model, settings, timing_cache=cache, events=events)
        folder.mkdir(parents=True, exist_ok=True)
        plugins = [Path(shutil.copy2(plugin, folder / plugin.name)) for plugin in settings.plugins]
        with replacing(folder / FILENAME) as temporary:
            temporary.write_bytes(plan)
        details = self._details(trt, folder / FILENAME, candidate, events)
        return Artifact(
            file=FILENAME,
            extra_files=tuple(path.name for path in plugins),
            digest=digest_files([folder / FILENAME, *plugins]),
            size_bytes=len(plan),
            build_seconds=time.perf_counter() - started,
            versions=self.versions(),
            details={
                **details,
                PROFILES: to_text(settings.profiles),
                **({"plugins": [path.name for path in plugins]} if plugins else {}),
                **({"version_compatible": True} if settings.version_compatible else {}),
            },
        )

    def open(self, folder: Path, artifact: Artifact, runtime: Options) -> Runner:
        """A runner; `cuda_graph` (default on) and `transfers` (default on) come from `runtime`."""
        return TensorRTRunner(
            folder / artifact.file,
            cuda_graph=bool(runtime.get("cuda_graph", True)),
            transfers=bool(runtime.get("transfers", True)),
            plugins=[folder / name for name in artifact.details.get("plugins", ())],
            host_code=bool(artifact.details.get("version_compatible", False)),
        )

    def serving_traits(self, artifact: Artifact, runtime: Options) -> ServingTraits:
        """KIND_GPU, the plan's own tensors, its profiles, and CUDA graphs for every served batch size.

        Of the engine that `with_shapes` gave: the largest batch decides which sizes are served.
        """
        profiles, largest = from_text(str(artifact.details.get(PROFILES, ""))), self.max_batch_size
        inputs, outputs = tensor_specs(artifact.details["bindings"], largest)
        cuda_graph = bool(runtime.get("cuda_graph", True))
        return ServingTraits(
            backend="tensorrt",
            filename=FILENAME,
            instance_kind="KIND_GPU",
            parameters=_parameters(artifact),
            optimization=optimization_text(profiles, largest, cuda_graph=cuda_graph),
            preferred_batch_sizes=preferred_batch_sizes(profiles, largest),
            profiles=tuple(str(index) for index in range(len(profiles))) if len(profiles) > 1 else (),
            inputs=inputs,
            outputs=outputs,
        )

    def timing_cache(self) -> Path:
        """The timing cache's file: one per GPU, driver and TensorRT, since it is worthless elsewhere."""
        versions = self.versions()
        keys = ("gpu", "compute_capability", "cuda_driver", "driver", "tensorrt")
        name = re.sub(r"[^\w.-]+", "_", "-".join(versions[key] for key in keys if key in versions))
        root = self.cache or Path.home() / ".cache" / "tritongen" / "tensorrt"
        return root / f"{name}.timing"

    def _profiles(self) -> Sequence[Profile]:
        if self.max_batch_size <= 1:
            return (wide_profile(self.inputs, self.max_batch_size),)
        wanted = {1, self.batch_size, self.max_batch_size}
        return profiles_per_batch_size(
            self.inputs, [size for size in wanted if 1 <= size <= self.max_batch_size]
        )

    def _details(self, trt: Any, file: Path, candidate: Candidate, events: EventSink) -> dict[str, Any]:
        plan = load_plan(trt, file, host_code=bool(candidate.options.get("version_compatible", False)))
        tf32 = candidate.precision is Precision.FP32 and candidate.options.get(MATH) == "tf32"
        proof = inspection.prove(inspection.layers_of(trt, plan.engine), candidate.precision, tf32=tf32)
        asked = "tf32" if tf32 else str(candidate.precision)
        events(Event("trial", "progress", f"{asked}: {proof.evidence}, {proof.summary}"))
        if proof.evidence == "ABSENT":
            raise BuildError(
                f"{asked} was asked for and is not in the plan",
                found=proof.summary,
                expected=f"layers that run in {asked}",
                fix="this GPU or model gains nothing from it: leave it out of the precisions",
            )
        return {
            "precision": {
                "asked": asked,
                "evidence": proof.evidence,
                "share": proof.share,
                "summary": proof.summary,
            },
            "layers": plan.engine.num_layers,
            "activation_bytes": api.device_memory_bytes(plan.engine),
            "bindings": [
                {"name": b.name, "dtype": b.dtype, "shape": list(b.shape), "input": b.is_input}
                for b in plan.bindings
            ],
        }


def _capability() -> tuple[int, ...]:
    return tuple(map(int, cuda.device_name()[1].split(".")))


def precisions_of(has: api.Features, capability: tuple[int, ...]) -> tuple[Precision, ...]:
    """What such a TensorRT has on a GPU of that compute capability."""
    there = {
        Precision.BF16: has.bf16 and capability >= _BF16_FROM,
        Precision.FP8: has.fp8 and capability >= _FP8_FROM,
    }
    return tuple(precision for precision in Precision if there.get(precision, True))


def _parameters(artifact: Artifact) -> dict[str, str]:
    """What the embedded server's backend must be told; Triton's own takes both on its command line."""
    plugins = ";".join(artifact.details.get("plugins", ()))
    trusted = {"version_compatible": "true"} if artifact.details.get("version_compatible") else {}
    return {**({"plugins": plugins} if plugins else {}), **trusted}


def _require_files(plugins: Sequence[Path]) -> None:
    names = [plugin.name for plugin in plugins]
    for plugin in plugins:
        if not plugin.is_file():
            raise InputError(
                f"there is no plugin {plugin}", expected="a shared library (.so)", fix="correct its path"
            )
        if names.count(plugin.name) > 1:
            raise InputError(
                f"two plugins are named {plugin.name}",
                expected="different file names: they lie beside the plan",
                fix="rename one of them",
            )
