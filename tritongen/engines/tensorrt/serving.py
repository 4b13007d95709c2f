"""What config.pbtxt says of CUDA graphs: one per captured batch size, with the sizes that it also serves."""

from __future__ import annotations

from collections.abc import Sequence

from tritongen.engines.tensorrt.profiles import Profile


def graph_batch_sizes(max_batch_size: int) -> tuple[tuple[int, int], ...]:
    """(smallest, largest) batch of each graph: the largest are 1, 2, 4, … and `max_batch_size`.

    Triton launches a graph only for an exact match or from its lower bound on, so together they serve
    every size; a batch is padded to the next power of two at most.
    """
    powers = [1 << i for i in range(max(1, max_batch_size).bit_length())]
    largest = sorted({size for size in powers if size <= max_batch_size} | {max(1, max_batch_size)})
    smallest = [1, *(size + 1 for size in largest)]
    return tuple(zip(smallest, largest, strict=False))


def optimization_text(profiles: Sequence[Profile], *, cuda_graph: bool) -> str:
    """The text inside `optimization { }`; graphs for the usual (opt) sizes of the largest profile."""
    if not cuda_graph or not profiles:
        return ""
    extents = profiles[-1]
    batches = {extent.max[0] for extent in extents.values() if extent.max}
    lows = {extent.min[0] for profile in profiles for extent in profile.values() if extent.min}
    if len(batches) != 1 or lows == batches:
        return "cuda { graphs: true }"
    specs = (
        f"graph_spec {{ batch_size: {high} {_inputs(extents)}"
        + (f" graph_lower_bound {{ batch_size: {low} {_inputs(extents)} }}" if low < high else "")
        + " }"
        for low, high in graph_batch_sizes(batches.pop())
    )
    return f"cuda {{ graphs: true {' '.join(specs)} }}"


def _inputs(profile: Profile) -> str:
    return " ".join(
        f'input {{ key: "{name}" value {{ dim: [ {", ".join(map(str, extent.opt[1:]))} ] }} }}'
        for name, extent in profile.items()
    )
