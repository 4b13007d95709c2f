"""Which Triton image serves a repository: the one that its plans and ONNX files need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from tritongen.errors import RepositoryError, SpecError
from tritongen.repository.targets import (
    EMBEDDED,
    VERSION_COMPATIBLE,
    find_target,
    known_tags,
    numbers,
    same_release,
)

if TYPE_CHECKING:
    from tritongen.repository.manifest import Manifest
    from tritongen.repository.targets import Target


@dataclass(frozen=True)
class ImageChoice:
    """An image, and why it is the one."""

    image: str
    """The whole reference ("nvcr.io/nvidia/tritonserver:26.08-py3")."""
    reason: str
    backend_config: tuple[str, ...] = ()
    """What `tritonserver --backend-config` must be given for it to load every model."""
    sure: bool = True
    """Whether everything that the choice rests on is verified in the table."""


@dataclass(frozen=True)
class Fit:
    """Whether one image can load one model."""

    loads: Literal["yes", "unverified", "no"]
    """`unverified`: by rows of the table that are unverified or missing."""
    why_not: str = ""
    backend_config: tuple[str, ...] = ()


def choose_image(manifests: Sequence[Manifest]) -> ImageChoice:
    """The newest image that loads every model, by verified facts if possible; RepositoryError if none does.

    A model that was built for an image (`--target`) decides; without models it is the newest verified one.
    """
    wanted = {find_target(m.target).name: m for m in manifests if m.target not in (None, EMBEDDED)}
    if len(wanted) > 1:
        raise RepositoryError(
            "the models of this repository were built for different images",
            found="; ".join(f"{m.name}: {image}" for image, m in wanted.items()),
            expected="one image for one server",
            fix="build them for one image: `tritongen build --target IMAGE --force`",
        )
    images = [find_target(next(iter(wanted)))] if wanted else _newest_first()
    fitted = [(target, [fit(manifest, target) for manifest in manifests]) for target in images]
    choices = [
        _choice(target, manifests, fits, built_for=bool(wanted))
        for target, fits in fitted
        if all(each.loads != "no" for each in fits)
    ]
    if not choices:
        raise _no_image(manifests, images)
    return min(choices, key=lambda choice: (not choice.sure, bool(choice.backend_config)))


def flags_for(manifests: Sequence[Manifest], image: str) -> tuple[str, ...]:
    """What `--backend-config` an image needs for these models; RepositoryError if it cannot load one of them.

    An image that the table does not have gets none: `verify --image` tells more of it.
    """
    try:
        target = find_target(image)
    except SpecError:
        return ()
    fits = [fit(manifest, target) for manifest in manifests]
    if any(each.loads == "no" for each in fits):
        raise _no_image(manifests, [target])
    return tuple(sorted({flag for each in fits for flag in each.backend_config}))


def fit(manifest: Manifest, target: Target) -> Fit:
    """Whether an image's libraries load the model, by the table."""
    capability = manifest.versions.get("compute_capability")
    oldest = target.min_compute_capability
    if capability and oldest and numbers(capability) < numbers(oldest):
        return Fit("no", f"it needs compute capability {oldest}, and the GPU has {capability}")
    driver = manifest.machine.driver if manifest.machine.gpus else None
    if driver and target.min_driver and numbers(driver) < numbers(target.min_driver):
        return Fit("no", f"it needs driver {target.min_driver}, and there is {driver}")
    return _plan(manifest, target) if manifest.backend == "tensorrt" else _onnx(manifest, target)


def is_version_compatible(manifest: Manifest) -> bool:
    """Whether the plan was built with VERSION_COMPATIBLE."""
    return bool(manifest.candidate.options.get("version_compatible", False))


def _plan(manifest: Manifest, target: Target) -> Fit:
    built, known = manifest.versions.get("tensorrt"), target.tensorrt
    if built is None or known is None:
        return Fit("no", "its TensorRT is unknown" if built else "the plan's TensorRT is unknown")
    loads: Literal["yes", "unverified"] = "yes" if known.verified else "unverified"
    if same_release(built, known.version):
        return Fit(loads)
    if is_version_compatible(manifest) and target.loads_version_compatible(built):
        return Fit(loads, backend_config=(VERSION_COMPATIBLE,))
    return Fit("no", f"it has TensorRT {known}")


def _onnx(manifest: Manifest, target: Target) -> Fit:
    known = target.onnxruntime
    reader = target if known is not None else _next_known(target)  # an older one reads no more
    reason = reader.why_unreadable(manifest.ir_version, manifest.opsets.get("", 0))
    if reason is not None:
        return Fit("no", reason)
    return Fit("yes" if known is not None and known.verified else "unverified")


def _next_known(target: Target) -> Target:
    """The next newer image of the table whose ONNX Runtime is known."""
    newer = (find_target(tag) for tag in known_tags())
    return next(each for each in newer if each.name > target.name and each.onnxruntime is not None)


def _newest_first() -> list[Target]:
    return [find_target(tag) for tag in reversed(known_tags())]


def _choice(
    target: Target, manifests: Sequence[Manifest], fits: Sequence[Fit], *, built_for: bool
) -> ImageChoice:
    plans = sorted({m.versions.get("tensorrt", "?") for m in manifests if m.backend == "tensorrt"})
    verified = all(known is not None and known.verified for known in (target.tensorrt, target.onnxruntime))
    if built_for:
        reason = "the models were built for it"
    elif plans:
        reason = f"it has TensorRT {target.tensorrt}, for plans of {', '.join(plans)}"
    else:
        reason = "the newest whose TensorRT and ONNX Runtime are known for sure"
    flags = sorted({flag for each in fits for flag in each.backend_config})
    sure = all(each.loads == "yes" for each in fits) and (verified or bool(plans) or built_for)
    return ImageChoice(target.name, reason, tuple(flags), sure)


def _no_image(manifests: Sequence[Manifest], images: Sequence[Target]) -> RepositoryError:
    found = []
    for manifest in manifests:
        if manifest.backend == "tensorrt":
            found.append(
                f"{manifest.name}: a plan of TensorRT {manifest.versions.get('tensorrt', '(unknown)')}"
            )
        else:
            found.append(
                f"{manifest.name}: IR version {manifest.ir_version}, opset {manifest.opsets.get('', 0)}"
            )
    if len(images) == 1:
        reasons = [fit(manifest, images[0]).why_not for manifest in manifests]
        found = [f"{m.name}: {why}" for m, why in zip(manifests, reasons, strict=True) if why]
    return RepositoryError(
        f"{images[0].name} cannot load every model"
        if len(images) == 1
        else "no Triton image loads these models",
        found="; ".join(found),
        expected="models that one image of the table (docs/config.md) can load together",
        fix="build the plans in the image's own TensorRT: `docker compose --profile build run --rm build`",
    )
