"""What TensorRT's words for a plan that does not load or run mean, and what to do; pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

_REBUILD = "build it again on this machine with `tritongen build` and its spec (or its ONNX file and flags)"


@dataclass(frozen=True)
class PlanProblem:
    """A known failure in the user's words."""

    kind: str
    """Stable short name: `version`, `gpu`, `plugin`, `memory`, `profile`, `host-code`, `file`."""
    message: str
    found: str
    expected: str
    fix: str


def explain(said: str, plan: str = "the plan") -> PlanProblem | None:
    """The known failure in TensorRT's (or Triton's) words; None if they are not known."""
    for pattern, kind, found in _KNOWN:
        match = pattern.search(said)
        if match:
            message, expected, fix = _WORDS[kind]
            return PlanProblem(kind, message.format(plan=plan), match.expand(found), expected, fix)
    return None


_WORDS: dict[str, tuple[str, str, str]] = {
    "version": (
        "{plan} was built by another TensorRT",
        "the very version that built it (or a version-compatible build)",
        f"{_REBUILD}, or serve with the image of the version that built it",
    ),
    "gpu": (
        "{plan} was built for another GPU",
        "the same compute capability (or a hardware-compatible build, Ampere and newer)",
        "run `tritongen build` on this GPU: its plan goes beside the other one",
    ),
    "plugin": (
        "{plan} needs a plugin that is not loaded",
        "every plugin library that it was built with",
        "give it with --plugin; Triton takes it with --backend-config=tensorrt,plugins=LIB.so or LD_PRELOAD",
    ),
    "memory": (
        "the GPU's memory does not hold {plan}",
        "free memory for weights, and activations and buffers of every instance",
        "end what else is on the GPU (nvidia-smi), or build for fewer instances or a smaller max_batch_size",
    ),
    "profile": (
        "{plan} was not built for these sizes or profiles",
        "sizes and profile indices that it was built with",
        "build again with the sizes that are needed (--shape, --max-batch-size)",
    ),
    "host-code": (
        "{plan} is version-compatible, and such plans carry code that runs on the host",
        "a server that was told to trust it",
        "start Triton with --backend-config=tensorrt,version-compatible=true, only for plans that you built",
    ),
    "file": ("{plan} is damaged, or no TensorRT plan", "a file that TensorRT wrote", _REBUILD),
}
"""Kind → what is wrong, what was expected, what to do."""


def _known(text: str, kind: str, found: str = r"\g<0>") -> tuple[re.Pattern[str], str, str]:
    return re.compile(text, re.IGNORECASE), kind, found


_OTHER_FORMAT = r"a serialization format that this TensorRT does not read (\g<0>)"
_KNOWN = (
    _known(
        r"expecting library version (\S+) got (\S+?)[,;.]*(?:\s|$)",
        "version",
        r"built by \2, loaded by \1",
    ),
    _known(
        r"expecting compute (\d+\.\d+) got compute (\d+\.\d+)",
        "gpu",
        r"built for compute capability \2, this GPU has \1",
    ),
    _known(r"Version tag does not match[^;]*|kSERIALIZATION_VERSION[^;]*", "version", _OTHER_FORMAT),
    _known(r"magic ?tag[^;]*|kMAGIC_TAG[^;]*", "file"),
    _known(r"setEngineHostCodeAllowed[^;]*|version-compatible engines?[^;]*", "host-code"),
    _known(r"could not find plugin:? (\w+)", "plugin", r"no plugin '\1'"),
    _known(r"(?:plugin|creator)\b[^;]*?not (?:be )?found[^;]*", "plugin"),
    _known(r"out of memory|cudaErrorMemoryAllocation|OutOfMemory\w*", "memory"),
    _known(r"Requested amount of GPU memory[^;]*", "memory"),
    _known(r"no optimization profile takes[^;]*|Expected optimization profile index range[^;]*", "profile"),
    _known(r"(?:the plan )?has no profile \d+[^;]*|[^;]*profiles that it names[^;]*", "profile"),
    _known(r"does not satisfy any optimization profiles[^;]*", "profile"),
    _known(r"to be between \S+ and \S+ but received \S+", "profile"),
)
"""In this order: the more telling words first."""
