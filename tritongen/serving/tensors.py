"""Arrays → the inputs of one inference call, and its answer → arrays, over both protocols."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from tritongen.tensors import from_numpy

if TYPE_CHECKING:
    from numpy.typing import NDArray


def http_inputs(arrays: Mapping[str, NDArray[Any]]) -> list[Any]:
    """tritonclient's inputs for HTTP, in binary form."""
    from tritonclient.http import InferInput

    return [_filled(InferInput, name, array) for name, array in arrays.items()]


def grpc_inputs(arrays: Mapping[str, NDArray[Any]]) -> list[Any]:
    """tritonclient's inputs for gRPC."""
    from tritonclient.grpc import InferInput

    return [_filled(InferInput, name, array) for name, array in arrays.items()]


def as_arrays(result: Any) -> dict[str, NDArray[Any]]:
    """Every output of an answer by name; text as bytes objects."""
    described = result.get_response()
    outputs = described["outputs"] if isinstance(described, dict) else described.outputs
    names = [each["name"] if isinstance(each, dict) else each.name for each in outputs]
    return {name: result.as_numpy(name) for name in names}


def _filled(kind: Any, name: str, array: NDArray[Any]) -> Any:
    datatype = from_numpy(array.dtype).triton
    tensor = kind(name, list(array.shape), datatype)
    tensor.set_data_from_numpy(array.astype(np.object_) if datatype == "BYTES" else array)
    return tensor
