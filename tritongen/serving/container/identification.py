"""What an image carries: what it says itself if it is on this machine, else what the table knows."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tritongen.errors import SpecError, TritongenError
from tritongen.repository.targets import Known, Target, check_reference, driver_for, find_target, reference

if TYPE_CHECKING:
    from tritongen.serving.container.engine import Engine, Image

TITLE = "org.opencontainers.image.title"
_OWN_TITLE = "tritongen"
OWN_IMAGE = "tritongen-cpu"
BUILD_OWN = "fill docker/wheelhouse (see its README), then: docker compose -f docker-compose.cpu.yml build"
_OF_THE_IMAGE = "the image itself"
_PROBE_TIMEOUT_S = 60.0
_ASK_TRITONGEN = (
    "import json; from tritongen.repository.targets import embedded; t = embedded(); "
    "print(json.dumps([t.triton and t.triton.version, t.onnxruntime and t.onnxruntime.version, "
    "t.max_ir_version, t.max_opset]))"
)


@dataclass(frozen=True)
class Identified:
    """An image by its reference."""

    reference: str
    """As Docker takes it ("nvcr.io/nvidia/tritonserver:26.08-py3")."""
    target: Target
    local: Image | None
    """None: it is not on this machine, or there is no engine to ask."""
    official: bool
    """NVIDIA's image, or one made from it: its backends are C++."""
    own: bool
    """tritongen's image: its backends are Python processes."""


def identify(name: str, engine: Engine | None) -> Identified:
    """The image by any of its names ("26.08"); SpecError if neither this machine nor the table knows it."""
    check_reference(name)
    whole = reference(name)
    local = engine.image(whole) if engine is not None else None
    if local is None:
        try:
            target = find_target(name)
        except SpecError as error:
            where = "nor is it on this machine" if engine else "and there is no Docker here to ask about it"
            own = name.rpartition("/")[2].partition(":")[0] == OWN_IMAGE
            fix = BUILD_OWN if own else f"docker pull {name}, or {error.fix}"
            raise SpecError(
                f"{error.message}, {where}", found=error.found, expected=error.expected, fix=fix
            ) from error
        # A mirror keeps its own name: that is what Docker will be asked for.
        return Identified(whole, replace(target, name=whole), None, official=True, own=False)
    own = local.labels.get(TITLE, "").startswith(_OWN_TITLE)
    if own and engine is not None:
        return Identified(whole, _ask(whole, engine), local, official=False, own=True)
    target, official = _by_environment(whole, local)
    return Identified(whole, target, local, official=official, own=False)


def _by_environment(name: str, local: Image) -> tuple[Target, bool]:
    """The table's row for the release that the image names, with what the image says in its place."""
    said = {name: _version(local.environment.get(name)) for name in ("TRT_VERSION", "CUDA_VERSION")}
    release = local.environment.get("NVIDIA_TRITON_SERVER_VERSION", "")
    row = _row(release) or _row(name)
    cuda = said["CUDA_VERSION"] or (row.cuda if row else None)
    target = replace(
        row or unknown_target(name),
        name=name,
        triton=_version(local.environment.get("TRITON_SERVER_VERSION")) or (row.triton if row else None),
        tensorrt=said["TRT_VERSION"] or (row.tensorrt if row else None),
        cuda=cuda,
        min_driver=driver_for(cuda),
    )
    return target, row is not None


def _row(name: str) -> Target | None:
    try:
        return find_target(name) if name else None
    except SpecError:
        return None


def _ask(name: str, engine: Engine) -> Target:
    """Ask the tritongen inside one of its own images."""
    command = ("run", "--rm", "--network=none", "--entrypoint=python3", name, "-c", _ASK_TRITONGEN)
    try:
        answer = engine.call(*command, timeout_s=_PROBE_TIMEOUT_S)
        triton, onnxruntime, ir_version, opset = json.loads(answer.stdout.splitlines()[-1])
    except (TritongenError, ValueError, IndexError):
        return unknown_target(name)
    return replace(
        unknown_target(name),
        triton=_known(triton),
        onnxruntime=_known(onnxruntime),
        max_ir_version=ir_version,
        max_opset=opset,
    )


def unknown_target(name: str) -> Target:
    """A target of which nothing is known."""
    return Target(name, None, None, None, None, None)


def _known(version: str | None) -> Known | None:
    return None if version is None else Known(version, verified=True, source=_OF_THE_IMAGE)


def _version(text: str | None) -> Known | None:
    """ "10.14.1.48+cuda13.0" → 10.14.1.48; None where there is no version."""
    match = re.match(r"\d+(\.\d+)+", text or "")
    return _known(match[0] if match else None)
