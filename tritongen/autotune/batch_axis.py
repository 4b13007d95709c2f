"""Does axis 0 really batch? Symbolic names lie, so batch 3 is run against three times batch 1.

Tolerances: floats may differ by reassociation (other batch sizes take other kernels), by less than
`rtol · |value| + atol · largest |value|` of the output, with (1e-3, 1e-4) in FP32, and (2e-2, 2e-2) where
FP16, BF16 or integer kernels round. Mixing items (a mean, a softmax or a sort over the batch) exceeds that
by far. Integers and bools are decisions (argmax, thresholds) that a rounding can tip over: one in a thousand
may differ, so small outputs must be equal. Strings must be equal.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from tritongen.errors import TritongenError
from tritongen.graph import BatchAxis, BatchStatus, Graph
from tritongen.samples import Arrays, Dataset, stack, synthetic_dataset
from tritongen.shapes import ResolvedInput

Tensors = Mapping[str, NDArray[np.generic]]
Infer = Callable[[Tensors], Mapping[str, NDArray[np.generic]]]

BATCH = 3
_TIPPED_SHARE = 1e-3
_RANDOM_OPERATORS = ("RandomNormal", "RandomUniform", "Multinomial", "Bernoulli")


class _RefutedError(Exception):
    """Why the axis does not batch, in one sentence."""


@dataclass(frozen=True)
class _Tolerance:
    relative: float
    absolute: float
    """As a share of the output's largest value."""


def confirm_batch_axis(
    graph: Graph,
    inputs: Sequence[ResolvedInput],
    infer: Infer,
    seed: int = 0,
    *,
    dataset: Dataset | None = None,
) -> BatchAxis:
    """CONFIRMED or REFUTED by running `infer` on three items, together and one by one.

    The items are the first three of `dataset` where it has three of equal shapes, and made up otherwise.

    `inputs` are per item (`shapes.resolve_inputs` of a graph that declares a batch axis), and `infer` maps
    inputs by name to outputs by name; whatever it raises refutes. Returns what is known where the shapes
    already rule batching out.
    """
    if not graph.batched:
        return graph.batch
    items = _items(inputs, dataset, seed)
    try:
        singles = [_run(infer, item, 1) for item in items]
        together = _run(infer, stack(items), BATCH)
        largest = max(_compare(graph, spec.name, together, singles) for spec in graph.outputs)
    except _RefutedError as error:
        return BatchAxis(BatchStatus.REFUTED, f"{error}{_hint(graph)}")
    return BatchAxis(
        BatchStatus.CONFIRMED,
        f"a batch of {BATCH} was run and equals {BATCH} times a batch of 1 on every output "
        f"(largest difference {largest:.1g} of the output's range)",
    )


def _items(inputs: Sequence[ResolvedInput], dataset: Dataset | None, seed: int) -> list[Arrays]:
    real = list(islice(dataset.batches(1), BATCH)) if dataset is not None else []
    shapes = [{name: array.shape for name, array in item.items()} for item in real]
    if len(real) == BATCH and shapes.count(shapes[0]) == BATCH:
        return real
    return list(synthetic_dataset(inputs, BATCH, batched=True, seed=seed).batches(1))


def _run(infer: Infer, inputs: Tensors, batch: int) -> Mapping[str, NDArray[np.generic]]:
    try:
        return infer(inputs)
    except Exception as error:  # engines raise types of their own
        reason = error.found if isinstance(error, TritongenError) and error.found else str(error)
        text = reason.strip().splitlines()
        first = text[0] if text else type(error).__name__
        raise _RefutedError(f"a batch of {batch} does not run: {first[:300]}") from error


def _compare(
    graph: Graph,
    name: str,
    together: Mapping[str, NDArray[np.generic]],
    singles: Sequence[Mapping[str, NDArray[np.generic]]],
) -> float:
    """The largest difference as a share of the output's largest value; _RefutedError beyond tolerance."""
    if name not in together or any(name not in single for single in singles):
        raise _RefutedError(f"the engine gave no output '{name}'")
    batch, items = np.asarray(together[name]), [np.asarray(single[name]) for single in singles]
    _check_leading(name, batch, BATCH)
    for item in items:
        _check_leading(name, item, 1)
        if item.shape[1:] != batch.shape[1:]:
            raise _RefutedError(
                f"output '{name}' has shape {list(batch.shape)} for a batch of {BATCH} "
                f"and {list(item.shape)} for an item alone, so its size depends on the other items"
            )
    joined = np.concatenate(items)
    if batch.dtype.kind in "fV" or batch.dtype.name == "bfloat16":
        return _compare_floats(graph, name, batch, joined)
    share = float(np.mean(batch != joined)) if batch.size else 0.0
    if share > (0 if batch.dtype.kind in "OSU" else _TIPPED_SHARE):
        raise _RefutedError(
            f"output '{name}' differs between a batch of {BATCH} and {BATCH} times a batch of 1 "
            f"in {share:.1%} of its values"
        )
    return share


def _check_leading(name: str, output: NDArray[np.generic], size: int) -> None:
    if output.ndim == 0:
        raise _RefutedError(f"output '{name}' has rank 0, so it has no axis to batch along")
    if output.shape[0] != size:
        raise _RefutedError(f"axis 0 of output '{name}' is {output.shape[0]} for a batch of {size}")


def _compare_floats(
    graph: Graph, name: str, batch: NDArray[np.generic], joined: NDArray[np.generic]
) -> float:
    tolerance = _tolerance(graph, batch)
    one, other = batch.astype(np.float64), joined.astype(np.float64)
    finite = np.isfinite(one) & np.isfinite(other)
    if one.size and not finite.any():
        raise _RefutedError(f"output '{name}' is nowhere finite on these inputs, so nothing can be compared")
    same_otherwise = np.array_equal(one[~finite], other[~finite], equal_nan=True)
    one, other = one[finite], other[finite]
    scale = float(np.abs(other).max(initial=0.0))
    difference = np.abs(one - other)
    largest = float(difference.max(initial=0.0)) / (scale or 1.0)
    within = difference <= tolerance.relative * np.abs(other) + tolerance.absolute * scale
    if not same_otherwise or not within.all():
        raise _RefutedError(
            f"output '{name}' differs between a batch of {BATCH} and {BATCH} times a batch of 1 "
            f"by up to {largest:.2g} of its range"
        )
    return largest


def _tolerance(graph: Graph, output: NDArray[np.generic]) -> _Tolerance:
    rounds = graph.half or graph.quantized or output.dtype.itemsize < 4  # noqa: PLR2004 - FP16 or BF16
    return _Tolerance(2e-2, 2e-2) if rounds else _Tolerance(1e-3, 1e-4)


def _hint(graph: Graph) -> str:
    random = [name for name in graph.operators if name.startswith(_RANDOM_OPERATORS)]
    return f" (the graph draws random numbers: {', '.join(random)})" if random else ""
