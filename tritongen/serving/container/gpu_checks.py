"""Whether GPU, driver and compute capability fit the image and the plans, and the way into the container."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from tritongen.errors import RepositoryError
from tritongen.repository.findings import FROM_SOURCE, REBUILD, Finding
from tritongen.repository.targets import find_target, known_tags, numbers
from tritongen.serving.container.host import INSTALL_TOOLKIT
from tritongen.serving.container.images import choose_image
from tritongen.serving.container.launch import Launch, unknown

if TYPE_CHECKING:
    from tritongen.repository.manifest import Manifest
    from tritongen.serving.container.host import Gpu

_HARDWARE_COMPATIBLE_FROM = "8.0"
"""Plans of AMPERE_PLUS load on this compute capability and newer ones."""
_NO_DEVICE = '`docker compose up` fails: could not select device driver "nvidia"'


def check_gpu(launch: Launch) -> Iterator[Finding]:
    """Findings where a model or the compose file wants a GPU; none where nobody does."""
    if not launch.gpu_models and launch.service.gpu is not True:
        return
    host = launch.host
    if host.gpu_problem is not None:
        why = "whether the GPU and its driver fit the image and the plans is unknown"
        yield unknown("gpu", host.gpu_problem, why, "nvidia-smi")
        return
    if not host.gpus:
        yield _no_gpu(launch)
        return
    if host.engine is not None and host.container_gpus is None:
        message = "Docker has no way to give a container the GPU (no nvidia runtime, no CDI specification)"
        yield Finding(None, "nvidia-runtime", message, _NO_DEVICE, INSTALL_TOOLKIT)
    yield from _driver(launch, host.gpus[0])
    for gpu in {gpu.compute_capability: gpu for gpu in host.gpus}.values():
        yield from _capability(launch, gpu)


def capabilities(manifest: Manifest) -> set[str]:
    """The compute capabilities that a model has plans for ("9.0"); empty if the manifest does not say."""
    found = {plan.compute_capability for plan in manifest.plans}
    return (found or {manifest.versions.get("compute_capability", "")}) - {""}


def _no_gpu(launch: Launch) -> Finding:
    if not launch.gpu_models:
        message = f"this machine has no NVIDIA GPU, and {launch.service.source} asks for one"
        return Finding(None, "gpu", message, _NO_DEVICE, "docker compose -f docker-compose.cpu.yml up")
    names = ", ".join(manifest.name for manifest in launch.gpu_models)
    return Finding(
        None,
        "gpu",
        f"this machine has no NVIDIA GPU, and there are models for one: {names}",
        "a TensorRT plan loads on a GPU only, and so does a model with instances of KIND_GPU",
        "start the container on the machine with the GPU, or build for the CPU: "
        "tritongen build --engine onnxruntime",
    )


def _driver(launch: Launch, gpu: Gpu) -> Iterator[Finding]:
    target = launch.image.target
    if target.min_driver is None:
        why = f"it may need a newer driver than {gpu.driver}"
        ask = f"docker run --rm {target.name} printenv CUDA_VERSION"
        yield unknown("driver", f"nothing is known about the CUDA of {target.name}", why, ask)
    elif numbers(gpu.driver) < numbers(target.min_driver):
        needs = f"CUDA {target.cuda} of {target.name} needs {target.min_driver} or newer"
        yield Finding(
            None,
            "driver",
            f"the driver is {gpu.driver}, and {needs}",
            "Triton starts without the GPU; data centre GPUs may do with an older driver, by the image's own "
            "compatibility package (its release notes say which)",
            f"install driver {target.min_driver} or newer, or use {_for_driver(launch, gpu)}",
            "error" if target.cuda is not None and target.cuda.verified else "warning",
        )


def _for_driver(launch: Launch, gpu: Gpu) -> str:
    """The image for these models on this machine's driver."""
    here = [
        manifest.model_copy(
            update={
                "machine": manifest.machine.model_copy(update={"gpus": (gpu.name,), "driver": gpu.driver})
            }
        )
        for manifest in launch.manifests
    ]
    try:
        return choose_image(here).image
    except RepositoryError:
        return "an image with an older CUDA, and plans that were built in its TensorRT"


def _capability(launch: Launch, gpu: Gpu) -> Iterator[Finding]:
    here, oldest = gpu.compute_capability, launch.image.target.min_compute_capability
    if here is None:
        message = f"the driver does not say what compute capability {gpu.name} has"
        ask = "nvidia-smi --query-gpu=compute_cap --format=csv"
        yield unknown("gpu", message, "whether it is the plans' is unknown", ask)
        return
    if oldest is not None and numbers(here) < numbers(oldest):
        supports = f"{launch.image.target.name} supports {oldest} and newer"
        yield Finding(
            None,
            "gpu",
            f"{gpu.name} has compute capability {here}, and {supports}",
            "its libraries have no code for this GPU",
            f"use an image before {_first_with(oldest)}",
        )
    for manifest in launch.plans:
        yield from _plan(manifest, gpu, here)


def _plan(manifest: Manifest, gpu: Gpu, here: str) -> Iterator[Finding]:
    built = capabilities(manifest)
    if not built:
        message = "the manifest does not say for which GPU the plan was built"
        why = f"whether it loads on compute capability {here} is unknown"
        yield unknown("gpu", message, why, REBUILD, manifest.name)
    elif here not in built and not _hardware_compatible(manifest, here):
        for_what = f"compute capability {', '.join(sorted(built))}"
        yield Finding(
            manifest.name,
            "gpu",
            f"the plan was built for {for_what}, and {gpu.name} has {here}",
            "it will not load: generated on an incompatible device",
            f"build it on this GPU with {FROM_SOURCE}; plans for several GPUs can lie side by side",
        )


def _hardware_compatible(manifest: Manifest, capability: str) -> bool:
    option = manifest.candidate.options.get("hardware_compatible", False)
    return bool(option) and numbers(capability) >= numbers(_HARDWARE_COMPATIBLE_FROM)


def _first_with(oldest: str) -> str:
    return next(tag for tag in known_tags() if find_target(tag).min_compute_capability == oldest)
