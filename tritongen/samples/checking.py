"""Arrays held against the model: names, types, shapes, counts, values; complaints name the tensor."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tritongen.errors import DataError
from tritongen.samples import Array
from tritongen.samples.arrays import Rows
from tritongen.tensors import TensorSpec


@dataclass(frozen=True)
class Layout:
    """How arrays map to calls of the model."""

    inputs: tuple[TensorSpec, ...]
    batched: bool
    call_size: int | None
    """Items per call where axis 0 is dynamic though the model does not batch; None: what an array holds."""
    labels: str

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(spec.name for spec in self.inputs)

    @property
    def has_labels(self) -> bool:
        """Whether data may carry labels: not where an input has their name."""
        return self.labels not in self.names

    def items_per_call(self, spec: TensorSpec) -> int | None:
        """Entries of axis 0 that one call takes, for models that do not batch; None: any number."""
        if spec.rank == 0:
            return None
        leading = spec.shape[0]
        return leading if isinstance(leading, int) else self.call_size


def check_names(arrays: Mapping[str, object], layout: Layout, where: str) -> None:
    """DataError unless `arrays` has exactly the model's inputs, and labels or not."""
    unknown = [name for name in arrays if name not in (*layout.names, layout.labels)]
    if unknown:
        missing = [wanted for wanted in layout.names if wanted not in arrays]
        raise DataError(
            f"{where} holds '{unknown[0]}', which is not an input of the model",
            found=", ".join(arrays),
            expected=f"{', '.join(layout.names)}, and '{layout.labels}' for the labels",
            fix=_remedy(unknown, missing),
        )
    for name in layout.names:
        if name not in arrays:
            raise DataError(
                f"{where} does not hold the input '{name}'",
                found=", ".join(arrays) or "nothing",
                expected=", ".join(layout.names),
                fix=f"add an array named '{name}'",
            )


def _remedy(unknown: Sequence[str], missing: Sequence[str]) -> str:
    """What to do with the first of `unknown`; of several it need not be the one that is missing."""
    near = difflib.get_close_matches(unknown[0], missing, n=1)
    if near or (len(missing) == 1 and len(unknown) == 1):
        return f"rename it to '{(near or missing)[0]}'"
    if missing:
        one = " or ".join(f"'{name}'" for name in missing)
        return f"rename what holds {one} so, and leave out what holds no input"
    return "leave it out; if it holds the labels, say so with --labels or in the spec"


def as_model_takes(array: Array, spec: TensorSpec, where: str) -> Array:
    """The array with the input's exact type and native byte order; DataError for any other type."""
    if array.dtype.kind == "O" and spec.dtype.name != "string":
        raise _object_array(spec, where)
    if spec.dtype.name == "string":
        return _strings(array, spec, where)
    if spec.dtype.name == "bfloat16" and array.dtype == np.dtype("V2"):  # how .npy files store bfloat16
        return array.view(spec.dtype.numpy)
    if array.dtype.newbyteorder("=") != spec.dtype.numpy:
        raise DataError(
            f"'{spec.name}' in {where} has the wrong type",
            found=str(array.dtype),
            expected=str(spec.dtype),
            fix=f"cast it when saving: {_variable(spec.name)}.astype('{spec.dtype}')",
        )
    return array if array.dtype.isnative else array.astype(spec.dtype.numpy)


def _variable(name: str) -> str:
    return name if name.isidentifier() else "array"


def _object_array(spec: TensorSpec, where: str) -> DataError:
    return DataError(
        f"'{spec.name}' in {where} is an array of Python objects, which is never unpickled",
        found="dtype object",
        expected=str(spec.dtype),
        fix="save one array of equal shapes with a plain type; samples of different shapes go into a folder, "
        "one .npz each",
    )


def _strings(array: Array, spec: TensorSpec, where: str) -> Array:
    if array.dtype.kind == "U":
        return array.astype(object)
    if array.dtype.kind in "SO":
        try:
            flat = [item.decode() if isinstance(item, bytes) else item for item in array.ravel().tolist()]
        except UnicodeDecodeError as error:
            raise DataError(
                f"'{spec.name}' in {where} holds bytes that are not UTF-8 text", found=str(error)
            ) from error
        if all(isinstance(item, str) for item in flat):
            result = np.empty(len(flat), dtype=object)
            result[:] = flat
            return result.reshape(array.shape)
    raise DataError(
        f"'{spec.name}' in {where} has the wrong type",
        found=str(array.dtype),
        expected="text: an array of dtype 'U' or 'S'",
        fix=f"convert it when saving: {_variable(spec.name)}.astype(str)",
    )


def check_finite(array: Array, spec: TensorSpec, where: str, offset: int) -> None:
    """DataError naming the first NaN or infinity; `offset` counts the samples before the array."""
    if not spec.dtype.is_float or array.size == 0:
        return
    values = array.astype(np.float32) if spec.dtype.name == "bfloat16" else array
    bad = ~np.isfinite(values)
    if bad.any():
        index = tuple(int(i) for i in np.unravel_index(int(np.argmax(bad)), bad.shape))
        shown = (index[0] + offset, *index[1:]) if index else ()
        raise DataError(
            f"'{spec.name}' in {where} holds values that are not finite",
            found=f"{values[index]} at index {list(shown)} ({int(bad.sum())} in this part)",
            expected="finite numbers",
            fix=f"remove those samples; numpy.isfinite({_variable(spec.name)}) finds them",
        )


def count_samples(rows: Rows, spec: TensorSpec, layout: Layout, where: str) -> int:
    """How many samples (calls, for a model that does not batch) the array holds; DataError if none fit."""
    if layout.batched or rows.ndim == spec.rank + 1:
        lead = 1
    elif spec.rank == 0 or layout.items_per_call(spec) is None:
        lead = 0
    else:
        return _count_calls(rows, spec, layout, where)
    wanted = spec.shape[1:] if layout.batched else spec.shape
    if rows.ndim != len(wanted) + lead or not _fits(rows.shape[lead:], wanted):
        raise _wrong_shape(spec, where, rows)
    return rows.shape[0] if lead else 1


def _count_calls(rows: Rows, spec: TensorSpec, layout: Layout, where: str) -> int:
    """Calls of a fixed size, one after the other along axis 0."""
    step = layout.items_per_call(spec) or 1
    if rows.ndim != spec.rank or not _fits(rows.shape[1:], spec.shape[1:]):
        raise _wrong_shape(spec, where, rows)
    if rows.shape[0] % step:
        over = rows.shape[0] % step
        raise DataError(
            f"'{spec.name}' in {where} does not divide into whole calls",
            found=f"{rows.shape[0]} items",
            expected=f"a multiple of {step}, which the model takes at a time",
            fix=f"leave {over} out, or add {step - over}",
        )
    return rows.shape[0] // step


def sample_shape(rows: Rows, spec: TensorSpec, layout: Layout) -> tuple[int, ...]:
    """The shape of one sample: an item of a batching model, a complete call of any other."""
    if layout.batched or rows.ndim == spec.rank + 1:
        return rows.shape[1:]
    step = layout.items_per_call(spec)
    return rows.shape if step is None else (step, *rows.shape[1:])


def _fits(shape: tuple[int, ...], wanted: tuple[int | str, ...]) -> bool:
    return len(shape) == len(wanted) and all(
        size > 0 if isinstance(dim, str) else dim == size for dim, size in zip(wanted, shape, strict=True)
    )


def _wrong_shape(spec: TensorSpec, where: str, found: Rows) -> DataError:
    wanted = ", ".join(str(dim) for dim in spec.shape)
    fix = None
    if spec.rank and _fits((1, *found.shape), spec.shape):
        fix = f"add the leading axis when saving: {_variable(spec.name)}[None]"
    elif spec.rank == 4 and found.ndim == 4 and found.shape[-1] == spec.shape[1]:  # noqa: PLR2004
        fix = f"move the channels when saving: {_variable(spec.name)}.transpose(0, 3, 1, 2)"
    return DataError(
        f"'{spec.name}' in {where} has the wrong shape",
        found=str(list(found.shape)),
        expected=f"[{wanted}]",
        fix=fix,
    )


def different_counts(counts: Mapping[str, int], where: str) -> DataError:
    """The error for tensors (or labels) that do not hold equally many samples."""
    return DataError(
        f"{where} holds different numbers of samples for {', '.join(map(repr, counts))}",
        found=", ".join(f"{name}: {count}" for name, count in counts.items()),
        expected="the same number for each",
        fix="save them from the same loop",
    )
