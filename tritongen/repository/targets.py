"""Serving targets: what an image carries, and which ONNX files its ONNX Runtime reads."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tritongen.errors import SpecError

EMBEDDED = "embedded"
VERSION_COMPATIBLE = "tensorrt,version-compatible=true"
"""The `--backend-config` that lets a newer TensorRT load version-compatible plans."""
_VERSION_COMPATIBLE_SINCE = "2.38"
"""Triton of 23.09, the first with that option."""
IMAGE = "nvcr.io/nvidia/tritonserver"
_TABLE = Path(__file__).with_name("targets.yaml")
_NAME = re.compile(
    r"(?:[A-Za-z0-9.-]+(?::\d+)?/|\[[0-9a-fA-F:]+\](?::\d+)?/)?[a-z0-9]+(?:[._/-]+[a-z0-9]+)*"
    r"(?::\w[\w.-]{0,127})?(?:@[\w.+-]+:[0-9a-fA-F]{32,})?",
    re.ASCII,
)
_REFERENCE = re.compile(
    r"(?:(?P<repository>[^\s:@]+(?::[0-9]+/[^\s:@]+)?):)?(?P<tag>[0-9]{2}\.[0-9]{2})(?P<rest>-.*)?"
)


@dataclass(frozen=True)
class Known:
    """A version, and whether it was read from a source that can be trusted."""

    version: str
    verified: bool
    source: str = ""
    """Where it was read, in words."""

    def __str__(self) -> str:
        return self.version if self.verified else f"{self.version} (unverified)"


@dataclass(frozen=True)
class Target:
    """What will serve a model; None stands for unknown."""

    name: str
    """"embedded", or the image with its tag."""
    triton: Known | None
    tensorrt: Known | None
    onnxruntime: Known | None
    max_ir_version: int | None
    """The largest ONNX IR version that its ONNX Runtime reads."""
    max_opset: int | None
    """The largest version of ONNX's own operator set that its ONNX Runtime reads."""

    cuda: Known | None = None
    min_driver: str | None = None
    """The oldest NVIDIA driver that runs its CUDA (minor version compatibility); None if that is unknown."""
    min_compute_capability: str | None = None
    """The oldest GPU that it supports ("7.5")."""

    def why_unreadable(self, ir_version: int, opset: int) -> str | None:
        """Why its ONNX Runtime refuses such a file, in one sentence; None if it reads it or is unknown."""
        reader = f"ONNX Runtime {self.onnxruntime} of {self.name}"
        if self.max_ir_version is not None and ir_version > self.max_ir_version:
            return f"the file has IR version {ir_version}, and {reader} reads up to {self.max_ir_version}"
        if self.max_opset is not None and opset > self.max_opset:
            return f"the file has opset {opset}, and {reader} reads up to {self.max_opset}"
        return None

    def loads_version_compatible(self, built: str) -> bool:
        """Whether, with VERSION_COMPATIBLE, it loads a version-compatible plan of TensorRT `built`."""
        if self.tensorrt is None or self.triton is None:
            return False
        since = numbers(self.triton.version) >= numbers(_VERSION_COMPATIBLE_SINCE)
        return since and loads_version_compatible(built, self.tensorrt.version)


def find_target(image: str | None) -> Target:
    """The target by its image ("…/tritonserver:26.09-py3", "26.09"); None or "embedded": this environment.

    SpecError for an image that the table does not have.
    """
    if image is None or image == EMBEDDED:
        return embedded()
    tag = _tag(image)
    row = _table()["images"][tag]
    onnxruntime = _known(row["onnxruntime"])
    limits = _table()["onnxruntime"].get(onnxruntime.version, {}) if onnxruntime else {}
    return Target(
        name=f"{IMAGE}:{tag}-py3",
        triton=_known(row["triton"]),
        tensorrt=_known(row["tensorrt"]),
        onnxruntime=onnxruntime,
        max_ir_version=limits.get("max_ir_version"),
        max_opset=limits.get("max_opset"),
        cuda=(cuda := _known(row["cuda"])),
        min_driver=driver_for(cuda),
        min_compute_capability=_min_compute_capability(tag),
    )


@functools.cache
def embedded() -> Target:
    """This environment: the ONNX Runtime installed here, asked by trial, behind the embedded Triton."""
    from importlib import metadata

    from tritongen.engines.onnxruntime.session import readable_limits, version

    ir_version, opset = readable_limits()
    try:
        triton = Known(_TRITON_OF_PYTRITON[metadata.version("nvidia-pytriton")], verified=True)
    except (metadata.PackageNotFoundError, KeyError):
        triton = None
    return Target(EMBEDDED, triton, None, Known(version(), verified=True), ir_version, opset)


_TRITON_OF_PYTRITON = {"0.7.0": "2.51.0"}


def driver_for(cuda: Known | None) -> str | None:
    """The oldest driver that runs a version of CUDA ("580"); None where that is unknown."""
    drivers: dict[str, str] = _table()["drivers"]
    return None if cuda is None else drivers.get(cuda.version.partition(".")[0])


def loads_version_compatible(built: str, image: str) -> bool:
    """Whether TensorRT `image` loads a version-compatible plan of `built`: 8 → 10, 10 → 11, never 8 → 11."""
    before, after = numbers(built), numbers(image)
    majors = [8, 10, 11]
    if before[0] == after[0]:
        return after >= before[: len(after)]
    near = before[0] in majors and after[0] in majors
    return near and majors.index(after[0]) - majors.index(before[0]) == 1


def numbers(version: str) -> tuple[int, ...]:
    """ "10.13.3.9" → (10, 13, 3, 9); what is no number counts as 0."""
    return tuple(int(part) if part.isdecimal() else 0 for part in version.split("."))


def same_release(one: str, other: str) -> bool:
    """Versions agree as far as the shorter one goes ("10.11" and "10.11.0.33")."""
    return all(a == b for a, b in zip(one.split("."), other.split("."), strict=False))


def is_tag(name: str) -> bool:
    """Whether this is a bare tag of NVIDIA's ("26.08", "26.08-py3"), known or not."""
    match = _REFERENCE.fullmatch(name)
    return match is not None and match["repository"] is None


def reference(name: str) -> str:
    """The whole reference for a bare tag ("26.08", "26.08-py3"); any other name as it is."""
    tag = name.removesuffix("-py3")
    return f"{IMAGE}:{tag}-py3" if tag in known_tags() else name


def check_reference(name: str) -> None:
    """SpecError for what Docker takes for no name of an image."""
    if not _NAME.fullmatch(name):
        raise SpecError(
            f"'{name}' is no name of an image",
            expected="NAME, NAME:TAG or REGISTRY/NAME:TAG in lower case and without spaces, or YY.MM",
            fix="`docker images` shows those on this machine",
        )


def is_known(image: str) -> bool:
    """Whether the table has an image, by any of its names."""
    try:
        find_target(image)
    except SpecError:
        return False
    return True


def known_tags() -> tuple[str, ...]:
    """Every image tag of the table ("23.04" …), oldest first."""
    return tuple(sorted(_table()["images"]))


def _min_compute_capability(tag: str) -> str | None:
    since: dict[str, str | None] = _table()["compute_capabilities"]
    return next((since[first] for first in sorted(since, reverse=True) if first <= tag), None)


def _tag(image: str) -> str:
    match = _REFERENCE.fullmatch(image)
    tags = known_tags()
    if match is None or match["tag"] not in tags:
        raise SpecError(
            f"the serving image '{image}' is not in tritongen's table",
            found=image,
            expected=f"'{EMBEDDED}', or {IMAGE}:YY.MM-py3 from {tags[0]} to {tags[-1]}",
            fix="name one of these, or update tritongen",
        )
    if (match["rest"] or "-py3") not in ("-py3", "-py3-igpu"):
        raise SpecError(
            f"the serving image '{image}' has no onnxruntime and tensorrt backends, or is unknown",
            found=f"flavour {match['rest']}",
            expected=f"{IMAGE}:{match['tag']}-py3",
            fix="use the plain -py3 image",
        )
    return match["tag"]


def _known(row: dict[str, Any] | None) -> Known | None:
    if row is None:
        return None
    source = _table()["sources"][row["source"]]
    return Known(str(row["version"]), bool(source["verified"]), source["text"])


@functools.cache
def _table() -> dict[str, Any]:
    table: dict[str, Any] = yaml.safe_load(_TABLE.read_text(encoding="utf-8"))
    return table
