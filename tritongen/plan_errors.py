"""What TensorRT's words for a plan that does not load or run mean, and what to do; pure."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

_REBUILD = "build it again on this machine with `tritongen build`"


@dataclass(frozen=True)
class PlanProblem:
    """A known failure in the user's words."""

    kind: str
    """Stable short name: `version`, `gpu`, `plugin`, `memory`, `profile`, `host-code`, `file`."""
    message: str
    found: str
    expected: str | None
    fix: str


def explain(said: str, plan: str = "the plan") -> PlanProblem | None:
    """The known failure in TensorRT's (or Triton's) words; None if they are not known."""
    for pattern, problem in _KNOWN:
        match = pattern.search(said)
        if match:
            return problem(match, plan)
    return None


def _version(match: re.Match[str], plan: str) -> PlanProblem:
    return PlanProblem(
        "version",
        f"{plan} was built by another TensorRT",
        f"built by {match[2].rstrip(',.;')}, loaded by {match[1]}",
        "the very version that built it (or a version-compatible build)",
        f"{_REBUILD}, or serve with the image of the version that built it",
    )


def _format(match: re.Match[str], plan: str) -> PlanProblem:
    return PlanProblem(
        "version",
        f"{plan} was built by another TensorRT",
        f"a serialization format that this TensorRT does not read ({match[0]})",
        "the very version that built it",
        f"{_REBUILD}, or serve with the image of the version that built it",
    )


def _gpu(match: re.Match[str], plan: str) -> PlanProblem:
    return PlanProblem(
        "gpu",
        f"{plan} was built for another GPU",
        f"built for compute capability {match[2]}, this GPU has {match[1]}",
        "the same compute capability (or a hardware-compatible build, Ampere and newer)",
        "run `tritongen build` on this GPU: its plan goes beside the other one",
    )


def _plugin(match: re.Match[str], plan: str) -> PlanProblem:
    name = next((group for group in match.groups() if group), None)
    return PlanProblem(
        "plugin",
        f"{plan} needs a plugin that is not loaded",
        f"no plugin '{name}'" if name else match[0],
        "every plugin library that it was built with",
        "give the library with --plugin; Triton's own server takes it with "
        "--backend-config=tensorrt,plugins=LIB.so or LD_PRELOAD",
    )


def _memory(match: re.Match[str], plan: str) -> PlanProblem:
    return PlanProblem(
        "memory",
        f"the GPU's memory does not hold {plan}",
        match[0],
        "free memory for weights, and activations and buffers of every instance",
        "end what else is on the GPU (nvidia-smi), or build for fewer instances or a smaller max_batch_size",
    )


def _profile(match: re.Match[str], plan: str) -> PlanProblem:
    return PlanProblem(
        "profile",
        f"{plan} was not built for these sizes or profiles",
        match[0],
        "sizes and profile indices that it was built with",
        "build again with the sizes that are needed (--shape, --max-batch-size)",
    )


def _host_code(match: re.Match[str], plan: str) -> PlanProblem:
    return PlanProblem(
        "host-code",
        f"{plan} is version-compatible, and such plans carry code that runs on the host",
        match[0],
        "a server that was told to trust it",
        "start Triton with --backend-config=tensorrt,version-compatible=true, only for plans that you built",
    )


def _file(match: re.Match[str], plan: str) -> PlanProblem:
    return PlanProblem(
        "file", f"{plan} is damaged, or no TensorRT plan", match[0], "a file that TensorRT wrote", _REBUILD
    )


def _known(text: str) -> re.Pattern[str]:
    return re.compile(text, re.IGNORECASE)


_KNOWN: tuple[tuple[re.Pattern[str], Callable[[re.Match[str], str], PlanProblem]], ...] = (
    (_known(r"expecting library version (\S+) got (\S+?)[,;.]?(?:\s|$)"), _version),
    (_known(r"expecting compute (\d+\.\d+) got compute (\d+\.\d+)"), _gpu),
    (_known(r"Version tag does not match[^;]*|kSERIALIZATION_VERSION[^;]*"), _format),
    (_known(r"magic ?tag[^;]*|kMAGIC_TAG[^;]*"), _file),
    (_known(r"setEngineHostCodeAllowed[^;]*|version-compatible engines?[^;]*"), _host_code),
    (_known(r"could not find plugin:? (\w+)"), _plugin),
    (_known(r"(?:plugin|creator)\b[^;]*?not (?:be )?found[^;]*"), _plugin),
    (_known(r"out of memory|cudaErrorMemoryAllocation|OutOfMemory\w*"), _memory),
    (_known(r"Requested amount of GPU memory[^;]*"), _memory),
    (_known(r"no optimization profile takes[^;]*|Expected optimization profile index range[^;]*"), _profile),
    (_known(r"(?:the plan )?has no profile \d+[^;]*|[^;]*profiles that it names[^;]*"), _profile),
    (_known(r"does not satisfy any optimization profiles[^;]*"), _profile),
    (_known(r"to be between \S+ and \S+ but received \S+"), _profile),
)
"""In this order: the more telling words first."""
