"""What config.pbtxt says of a plan's profiles: CUDA graphs, preferred batch sizes, the plan's own tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tritongen.engines.tensorrt.profiles import Profile
from tritongen.tensors import TensorSpec, from_name


def graph_batch_sizes(max_batch_size: int) -> tuple[tuple[int, int], ...]:
    """(smallest, largest) batch of each graph: the largest are 1, 2, 4, … and `max_batch_size`.

    Triton launches a graph only for an exact match or from its lower bound on, so together they serve
    every size; a batch is padded to the next power of two at most.
    """
    powers = [1 << i for i in range(max(1, max_batch_size).bit_length())]
    largest = sorted({size for size in powers if size <= max_batch_size} | {max(1, max_batch_size)})
    smallest = [1, *(size + 1 for size in largest)]
    return tuple(zip(smallest, largest, strict=False))


def optimization_text(profiles: Sequence[Profile], max_batch_size: int, *, cuda_graph: bool) -> str:
    """The text inside `optimization { }`; graphs for the usual (opt) sizes of the largest profile.

    Without batching (`max_batch_size` 0) Triton captures the one graph that there is by itself.
    """
    if not cuda_graph or not profiles:
        return ""
    if max_batch_size <= 1:
        return "cuda { graphs: true }"
    extents = profiles[-1]
    specs = (
        f"graph_spec {{ batch_size: {high} {_inputs(extents)}"
        + (f" graph_lower_bound {{ batch_size: {low} {_inputs(extents)} }}" if low < high else "")
        + " }"
        for low, high in graph_batch_sizes(max_batch_size)
    )
    return f"cuda {{ graphs: true {' '.join(specs)} }}"


def preferred_batch_sizes(profiles: Sequence[Profile], max_batch_size: int) -> tuple[int, ...]:
    """The batch sizes that profiles beside the first and the last are tuned for, and the largest.

    Empty for one or two profiles: Triton sends the largest preferred size that the queue can fill, so that a
    preferred 1 would end all batching, and the largest batch alone says nothing.
    """
    tuned = {extent.opt[0] for profile in profiles for extent in profile.values() if extent.opt}
    between = sorted(size for size in tuned if 1 < size < max_batch_size)
    return (*between, max_batch_size) if between else ()


def tensor_specs(
    bindings: Sequence[Mapping[str, Any]], max_batch_size: int
) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """A plan's (inputs, outputs) as config.pbtxt must give them: with a dynamic batch, where it batches.

    8.6 reports the first profile's batch on outputs.
    """

    def spec(entry: Mapping[str, Any]) -> TensorSpec:
        sizes = [-1, *entry["shape"][1:]] if max_batch_size else entry["shape"]
        shape = tuple("?" if size < 0 else int(size) for size in sizes)
        return TensorSpec(str(entry["name"]), from_name(str(entry["dtype"])), shape)

    return (
        tuple(spec(entry) for entry in bindings if entry["input"]),
        tuple(spec(entry) for entry in bindings if not entry["input"]),
    )


def _inputs(profile: Profile) -> str:
    return " ".join(
        f'input {{ key: "{name}" value {{ dim: [ {", ".join(map(str, extent.opt[1:]))} ] }} }}'
        for name, extent in profile.items()
    )
