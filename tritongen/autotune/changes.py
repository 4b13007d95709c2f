"""What changed on this machine since a model was last built here, by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from tritongen.errors import TritongenError
from tritongen.runs.build import ModelBuild
from tritongen.runs.records import Selection
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


def made_elsewhere(run: RunDirectory) -> bool:
    """Whether the last winner is a plan for another GPU, or for other versions, than TensorRT finds here."""
    built = _built_with(run)
    if "compute_capability" not in built:
        return False
    from tritongen.engines import load_engine

    try:
        return any(change_notes(run, load_engine("tensorrt").versions()))
    except TritongenError:  # the build says what is missing
        return True


def narrower_notes(run: RunDirectory, selection: Selection) -> Iterator[str]:
    """That the largest batch is smaller than in the last build of `run`, which may be what is served."""
    last = _last_build(run)
    before = last.selection.max_batch_size if last is not None and last.selection is not None else 0
    if selection.max_batch_size < before:
        batches = selection.max_batch_size > 0
        yield (
            f"max_batch_size is {selection.max_batch_size} and was {before} in the last build: clients that "
            f"send {'larger ' * batches}batches get errors{f'; --max-batch-size {before} keeps it' * batches}"
        )


def _last_build(run: RunDirectory) -> ModelBuild | None:
    try:
        return read_record(run.result, ModelBuild)
    except (OSError, TritongenError):
        return None


def _built_with(run: RunDirectory) -> Mapping[str, str]:
    """What the last winner was built with; nothing where that is not known."""
    last = _last_build(run)
    if last is None:
        return {}
    winner = last.selection.winner if last.selection else None
    artifacts = (trial.artifact for trial in last.trials if trial.candidate.id == winner)
    return next((artifact.versions for artifact in artifacts if artifact), {})
