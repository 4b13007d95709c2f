"""Plausible sizes and value ranges for inputs whose graph leaves them open, to be shown as proposals."""

from __future__ import annotations

from collections.abc import Mapping

from tritongen.graph import Graph
from tritongen.tensors import TensorSpec


def propose_shape(spec: TensorSpec, graph: Graph, known: Mapping[object, str] | None = None) -> str:
    """A plausible `name=sizes` for the input, per item where the model batches.

    `known`: sizes of dynamic axes by their names, where other inputs have told them.
    """
    axes = range(1 if graph.batched else 0, spec.rank)
    sizes = ((known or {}).get(spec.shape[axis]) or str(_propose_size(spec, axis, graph)) for axis in axes)
    return f"{spec.name}=" + ("x".join(sizes) or "1")


def is_guess(spec: TensorSpec, graph: Graph) -> bool:
    """Whether nothing in the model tells the sizes of `propose_shape`."""
    return graph.image_size is None or not _is_picture(spec, graph)


def proposal_source(spec: TensorSpec, graph: Graph) -> str:
    """Where the sizes of `propose_shape` come from, in words."""
    if not is_guess(spec, graph):
        return "from the model's metadata (imgsz)"
    if not _is_picture(spec, graph):
        return "a guess, since nothing in the model tells"
    if graph.unusable_image_size is not None:
        return (
            f"a guess: imgsz in the model's metadata is {graph.unusable_image_size[:40]!r}, "
            "which is no size of a picture"
        )
    if _has_fixed_side(spec):
        open_axes = [axis for axis in spec.dynamic_axes if axis > 0 or not graph.batched]
        return (
            f"a guess for {', '.join(str(spec.shape[axis]) for axis in open_axes)}; the model tells the rest"
        )
    return "a guess, since nothing in the model tells: usual for detectors; classifiers often take 224x224"


def propose_range(spec: TensorSpec) -> str:
    """A plausible value range for an integer input whose range nothing tells."""
    name = spec.name.lower()
    if "mask" in name or "type" in name or "segment" in name:
        return "0..1"
    return "0..127" if "pos" in name else "0..30521" if "id" in name or "token" in name else "0..99"


def _is_picture(spec: TensorSpec, graph: Graph) -> bool:
    """N, C, H, W or N, H, W, C; or the same without a batch."""
    if spec.rank == 3:  # noqa: PLR2004
        return not graph.batched and spec.dtype.is_float
    return spec.rank > 3 and spec.dtype.name != "string"  # noqa: PLR2004


def _propose_size(spec: TensorSpec, axis: int, graph: Graph) -> int:
    dim = spec.shape[axis]
    if isinstance(dim, int):
        return dim
    name = dim.lower()
    if axis == 0 or "batch" in name:
        return 1
    if "chan" in name:
        return 3
    if _is_picture(spec, graph):
        return _propose_picture_size(spec, axis, graph.image_size)
    return 128 if any(word in name for word in ("seq", "len", "token", "time")) or spec.rank == 2 else 64  # noqa: PLR2004


def _propose_picture_size(spec: TensorSpec, axis: int, known: tuple[int, int] | None) -> int:
    channels_last, height = _layout(spec)
    if axis == (spec.rank - 1 if channels_last else spec.rank > 3):  # noqa: PLR2004
        return 3
    if known is not None and axis in (height, height + 1):
        return known[axis - height]
    fixed = [dim for dim in spec.shape[2:] if isinstance(dim, int) and dim > 4]  # noqa: PLR2004
    if fixed and not channels_last:  # text lines: a fixed height of 32 or 48, and a few hundred wide
        return 320
    return 640


def _layout(spec: TensorSpec) -> tuple[bool, int]:
    """Whether a picture's channels come last, and the axis of its height, which the width follows."""
    channels_last = spec.shape[-1] in (1, 3, 4)
    return channels_last, spec.rank - (3 if channels_last else 2)


def _has_fixed_side(spec: TensorSpec) -> bool:
    _, height = _layout(spec)
    return any(isinstance(dim, int) for dim in spec.shape[height : height + 2])
