"""Holds TensorRT plans against config.pbtxt, the manifest and, where there is a GPU, this machine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tritongen.errors import TritongenError
from tritongen.repository.findings import BUILD_HERE, REBUILD, Finding
from tritongen.repository.model_match import tensor_problems
from tritongen.repository.plans import FILENAME

if TYPE_CHECKING:
    from tritongen.engines.tensorrt.profiles import Profile
    from tritongen.repository.manifest import BuiltPlan, Manifest

_REFUSED = "Triton's tensorrt backend refuses to load the model"

# Version key in the manifest → (what it is called, whether another one stops the plan from loading).
_PARTS = {
    "tensorrt": ("TensorRT", True),
    "compute_capability": ("compute capability", True),
    "gpu": ("GPU", False),
    "cuda_driver": ("CUDA driver", False),
    "driver": ("NVIDIA driver", False),
}

_COMPATIBLE = {"tensorrt": "version_compatible", "compute_capability": "hardware_compatible"}
"""Build options that let a plan load although this part differs (newer versions; GPUs from Ampere on)."""


def check_plans(folder: Path, config: Any, manifest: Manifest) -> Iterator[Finding]:
    """Findings about plans and their configuration that need no GPU."""
    name, version = folder.name, folder / str(manifest.version)
    for capability, file in sorted(config.cc_model_filenames.items()):
        if not (version / file).is_file():
            yield Finding(
                name, "model-file", f"{version.name}/{file} is missing",
                f"GPUs of compute capability {capability} have no plan", REBUILD,
            )  # fmt: skip
    for plan in manifest.plans:
        named = plan_file(config, plan.compute_capability)
        if named != plan.file:
            yield Finding(
                name, "plan",
                f"config.pbtxt gives {named} to GPUs of compute capability {plan.compute_capability}, and "
                f"the manifest says that {plan.file} was built for them",
                "they load a plan that was built for another GPU, and fail", REBUILD,
            )  # fmt: skip
        yield from _profiles(name, config, plan)


def plan_file(config: Any, capability: str) -> str:
    """The plan that Triton loads on GPUs of this compute capability."""
    chosen = config.cc_model_filenames.get(capability) if config.cc_model_filenames else None
    return str(chosen or config.default_model_filename or FILENAME)


def check_plan_here(folder: Path, config: Any, manifest: Manifest) -> Iterator[Finding]:
    """Findings about serving a model's plan on this machine's GPU: versions, loading, tensors, profiles."""
    from tritongen.engines import load_engine

    name, engine = folder.name, load_engine("tensorrt")
    reason = engine.unavailable_reason()
    if reason is not None:
        yield Finding(
            name, "target", f"this machine cannot serve a plan: {reason}", "the model will not load",
            "serve it where it was built, or name the image that will serve it with --image",
        )  # fmt: skip
        return
    here = engine.versions()
    file = plan_file(config, here["compute_capability"])
    plan = next((plan for plan in manifest.plans if plan.file == file), None)
    options = (plan or manifest).candidate.options
    found = list(compare(name, plan.versions if plan else manifest.versions, here, options))
    yield from found
    if not any(finding.severity == "error" for finding in found):
        yield from _opened(name, folder / str(manifest.version) / file, config)


def compare(
    name: str, built: Mapping[str, str], here: Mapping[str, str], options: Mapping[str, object] | None = None
) -> Iterator[Finding]:
    """A finding for each part that differs: an error where the plan will not load, else a warning.

    `options` of the build tell whether the plan was made to load on other versions or GPUs.
    """
    made_for_others = {part for part, option in _COMPATIBLE.items() if (options or {}).get(option)}
    for key, (words, binding) in _PARTS.items():
        if key in built and key in here and built[key] != here[key]:
            fatal = binding and key not in made_for_others
            yield Finding(
                name,
                "target",
                f"the plan was built with {words} {built[key]}, and this machine has {here[key]}",
                "it will not load"
                if fatal
                else "it was tuned for the other one: it may be slower, or not load",
                BUILD_HERE,
                "error" if fatal else "warning",
            )


def _profiles(name: str, config: Any, plan: BuiltPlan) -> Iterator[Finding]:
    """Whether instance groups, batch sizes and CUDA graphs lie within the plan's profiles."""
    from tritongen.engines.tensorrt.profiles import from_text

    profiles = from_text(str(plan.details.get("profiles", "")))
    if not profiles:
        return
    used = {int(index) for group in config.instance_group for index in group.profile if index.isdecimal()}
    beyond = sorted(index for index in used if index >= len(profiles))
    if beyond:
        yield Finding(
            name, "profile", f"instance_group names profile {beyond[0]}, and {plan.file} has {len(profiles)}",
            _REFUSED, f"use {', '.join(map(str, range(len(profiles))))}, or {REBUILD}",
        )  # fmt: skip
        return
    chosen = [profiles[index] for index in sorted(used or {0})]
    largest = max(_largest_batch(profile) for profile in chosen)
    if config.max_batch_size > largest:
        yield Finding(
            name, "profile",
            f"max_batch_size is {config.max_batch_size}, and the profiles of {plan.file} that the instances "
            f"use take batches of up to {largest}",
            _REFUSED, f"list more profiles in instance_group, or {REBUILD}",
        )  # fmt: skip
    for spec in config.optimization.cuda.graph_spec:
        shapes = {
            key: ((spec.batch_size,) if config.max_batch_size else ()) + tuple(value.dim)
            for key, value in spec.input.items()
        }
        if not any(_takes(profile, shapes) for profile in chosen):
            yield Finding(
                name, "profile", f"no profile of {plan.file} takes the graph_spec of batch {spec.batch_size}",
                "Triton logs an error and captures no CUDA graph for it", REBUILD, "warning",
            )  # fmt: skip


def _takes(profile: Profile, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    return all(extent.holds(shapes.get(name, ())) for name, extent in profile.items())


def _largest_batch(profile: Profile) -> int:
    return min((extent.max[0] for extent in profile.values() if extent.max), default=0)


def _opened(name: str, path: Path, config: Any) -> Iterator[Finding]:
    """What TensorRT itself says of the plan, opened as the embedded server would open it."""
    from tritongen.engines.tensorrt import api, cuda
    from tritongen.engines.tensorrt.plan import load_plan
    from tritongen.engines.tensorrt.serving import tensor_specs

    label = f"{path.parent.name}/{path.name}"
    told = {key: value.string_value for key, value in config.parameters.items()}
    plugins = [path.parent / plugin for plugin in told.get("plugins", "").split(";") if plugin]
    trusted = told.get("version_compatible") == "true"
    try:
        cuda.use_device(0)
        plan = load_plan(api.load(), path, plugins=plugins, host_code=trusted)
    except TritongenError as error:
        message = f"{label}: {error.message}" + (f" ({error.found})" if error.found else "")
        yield Finding(name, "plan", message, _REFUSED, error.fix or REBUILD)
        return
    inputs, outputs = tensor_specs(
        [{"name": b.name, "dtype": b.dtype, "shape": b.shape, "input": b.is_input} for b in plan.bindings],
        config.max_batch_size,
    )
    for problem in (
        *tensor_problems(label, "input", config.input, inputs, config.max_batch_size),
        *tensor_problems(label, "output", config.output, outputs, config.max_batch_size),
    ):
        yield Finding(name, "tensors", problem, _REFUSED, REBUILD)
