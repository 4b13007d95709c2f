"""What changed on this machine since a model was last built here, by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from tritongen.errors import TritongenError
from tritongen.runs.build import ModelBuild
from tritongen.runs.store import RunDirectory, read_record

_WORDS = {
    "tensorrt": "TensorRT",
    "cuda_driver": "CUDA driver",
    "driver": "NVIDIA driver",
    "gpu": "GPU",
    "compute_capability": "compute capability",
    "onnxruntime": "ONNX Runtime",
}


def change_notes(run: RunDirectory, versions: Mapping[str, str]) -> Iterator[str]:
    """Why artifacts of the last build in `run` do not count any more, in one sentence; nothing if they do."""
    changed = [
        f"{_WORDS.get(key, key)} is {versions[key]} and was {before}"
        for key, before in _built_with(run).items()
        if key in versions and versions[key] != before
    ]
    if changed:
        yield f"built again from scratch: {', '.join(changed)}"


def _built_with(run: RunDirectory) -> Mapping[str, str]:
    """What the last winner was built with; nothing where that is not known."""
    try:
        last = read_record(run.result, ModelBuild)
    except (OSError, TritongenError):
        return {}
    winner = last.selection.winner if last.selection else None
    artifacts = (trial.artifact for trial in last.trials if trial.candidate.id == winner)
    return next((artifact.versions for artifact in artifacts if artifact), {})
