"""Tensor descriptions and the one table between ONNX, NumPy and Triton data types."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tritongen.errors import ModelError

if TYPE_CHECKING:
    from numpy.typing import DTypeLike


@dataclass(frozen=True)
class DataType:
    """One element type under its names in NumPy, ONNX and Triton."""

    name: str
    """The NumPy name, which is also the name in specs and messages ("float32")."""
    onnx: int
    """The number in ``onnx.TensorProto.DataType``."""
    triton: str
    """The name in the KServe v2 protocol ("FP32")."""
    itemsize: int | None
    """Bytes per element; None for strings."""

    @property
    def config(self) -> str:
        """The name in ``config.pbtxt`` ("TYPE_FP32")."""
        return "TYPE_STRING" if self.triton == "BYTES" else f"TYPE_{self.triton}"

    @property
    def numpy(self) -> np.dtype[np.generic]:
        """The NumPy dtype (object for strings; from ml_dtypes for bfloat16)."""
        if self.name == "string":
            return np.dtype(object)
        if self.name == "bfloat16":
            import ml_dtypes

            return np.dtype(ml_dtypes.bfloat16)
        return np.dtype(self.name)

    @property
    def is_integer(self) -> bool:
        return self.name.startswith(("int", "uint"))

    @property
    def is_float(self) -> bool:
        return self.name.startswith(("float", "bfloat"))

    def __str__(self) -> str:
        return self.name


DATA_TYPES: tuple[DataType, ...] = (
    DataType("float32", 1, "FP32", 4),
    DataType("uint8", 2, "UINT8", 1),
    DataType("int8", 3, "INT8", 1),
    DataType("uint16", 4, "UINT16", 2),
    DataType("int16", 5, "INT16", 2),
    DataType("int32", 6, "INT32", 4),
    DataType("int64", 7, "INT64", 8),
    DataType("string", 8, "BYTES", None),
    DataType("bool", 9, "BOOL", 1),
    DataType("float16", 10, "FP16", 2),
    DataType("float64", 11, "FP64", 8),
    DataType("uint32", 12, "UINT32", 4),
    DataType("uint64", 13, "UINT64", 8),
    DataType("bfloat16", 16, "BF16", 2),
)

_BY_NAME = {t.name: t for t in DATA_TYPES}
_BY_ONNX = {t.onnx: t for t in DATA_TYPES}
_BY_TRITON = {t.triton: t for t in DATA_TYPES}


def from_name(name: str) -> DataType:
    """The data type by its NumPy name; KeyError if Triton has no such type."""
    return _BY_NAME[name]


def from_onnx(number: int, tensor: str) -> DataType:
    """The data type by its ONNX number; ModelError naming `tensor` if Triton cannot carry it."""
    try:
        return _BY_ONNX[number]
    except KeyError:
        from onnx import TensorProto

        kinds = {known: name for name, known in TensorProto.DataType.items()}
        raise ModelError(
            f"tensor '{tensor}' has an element type that Triton cannot carry",
            found=kinds.get(number, f"ONNX element type {number}").lower(),
            expected=", ".join(_BY_NAME),
            fix="cast it inside the model to one of these",
        ) from None


def from_triton(name: str) -> DataType:
    """The data type by its KServe v2 name ("FP32") or its config name ("TYPE_FP32")."""
    short = name.removeprefix("TYPE_")
    return _BY_TRITON["BYTES" if short == "STRING" else short]


def from_numpy(dtype: DTypeLike) -> DataType:
    """The data type of a NumPy dtype; KeyError if Triton has no such type."""
    kind = np.dtype(dtype)
    return _BY_NAME["string" if kind.kind in "OSU" else kind.name]


@dataclass(frozen=True)
class TensorSpec:
    """A named tensor with its element type and its full ONNX shape, the batch axis included."""

    name: str
    dtype: DataType
    shape: tuple[int | str, ...]
    """Fixed sizes as ints; dynamic ones as their symbolic name, or "?" where the model gives none."""

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def dynamic_axes(self) -> tuple[int, ...]:
        return tuple(i for i, dim in enumerate(self.shape) if isinstance(dim, str))

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype}[{', '.join(str(dim) for dim in self.shape)}]"
