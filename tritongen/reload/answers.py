"""A version on the server, asked what its manifest knows the answers to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from tritongen.autotune.closeness import EQUAL, RELATIVE_L2, Array, Closeness
from tritongen.errors import RepositoryError
from tritongen.reload.shadow import State
from tritongen.repository.findings import REBUILD
from tritongen.runs.records import OutputError
from tritongen.serving.control import ServerControl

Arrays = Mapping[str, Array]


@dataclass(frozen=True)
class Known:
    """Inputs of one call, and the outputs that the artifact gave for them when it was built."""

    inputs: Arrays
    outputs: Arrays


def known_answers(state: State) -> Known | None:
    """What the manifest refers to; None if the build kept no reference. RepositoryError if it is damaged."""
    reference = state.manifest.reference
    if reference is None:
        return None
    path = state.folder / reference.file
    try:
        with np.load(path) as stored:
            arrays = {name: stored[name] for name in stored.files}
    except (OSError, ValueError) as error:
        raise RepositoryError(f"{path} cannot be read", found=str(error), fix=REBUILD) from error
    return Known(_part(arrays, "input/"), _part(arrays, "output/"))


def compare_answers(
    control: ServerControl, name: str, state: State, known: Known, timeout_s: float
) -> tuple[OutputError, ...]:
    """How close each output of that version, served as `name`, is to what it gave when it was built.

    The limits are those of docs/accuracy.md for the precision: another machine or library version rounds
    otherwise. RefusedError if the server answers a call with an error.
    """
    precision = state.manifest.candidate.precision
    judged = {
        output: Closeness(output, RELATIVE_L2 if expected.dtype.kind in "fV" else EQUAL)
        for output, expected in known.outputs.items()
    }
    for part in _calls(known, state.config.max_batch_size):
        inputs = _as_sent(state, part.inputs)
        answer = control.infer(name, str(state.version), inputs, timeout_s)
        for output, expected in part.outputs.items():
            if output in answer:
                judged[output].update(expected, _as_stored(answer[output], expected))
            else:
                judged[output].broken = "the server does not give it"
    return tuple(each.result(precision, None) for each in judged.values())


def _calls(known: Known, max_batch_size: int) -> Iterator[Known]:
    """The known call in parts that the configuration lets through."""
    sizes = [len(array) for array in known.inputs.values() if array.ndim]
    if max_batch_size < 1 or not sizes or sizes[0] <= max_batch_size:
        yield known
        return
    for start in range(0, sizes[0], max_batch_size):
        part = slice(start, start + max_batch_size)
        yield Known(
            {name: array[part] for name, array in known.inputs.items()},
            {name: array[part] for name, array in known.outputs.items()},
        )


def _as_sent(state: State, inputs: Arrays) -> dict[str, Array]:
    """With the last axis of size 1 that clients send where the model has none (`reshape` in the config)."""
    ranks = {each.name: len(each.dims) + (state.config.max_batch_size > 0) for each in state.config.input}
    return {
        name: array.reshape(*array.shape, 1) if ranks.get(name) == array.ndim + 1 else array
        for name, array in inputs.items()
    }


def _as_stored(answer: Array, expected: Array) -> Array:
    """The answer in the form that the build kept: its shape, text instead of bytes."""
    if answer.dtype == np.object_:
        answer = np.array([value.decode("utf-8", "replace") for value in answer.ravel()]).reshape(
            answer.shape
        )
    return answer.reshape(expected.shape) if answer.size == expected.size else answer


def _part(arrays: Arrays, prefix: str) -> dict[str, Array]:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
