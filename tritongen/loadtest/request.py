"""Input arrays → the bytes of a request, made once, before the clock runs."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tritongen.errors import DataError
from tritongen.loadtest.job import Compression
from tritongen.loadtest.target import Address, ServedModel

Arrays = Mapping[str, NDArray[np.generic]]


@dataclass(frozen=True)
class Wire:
    """How a request travels, apart from what is in it."""

    headers: Sequence[tuple[str, str]] = field(default=(), repr=False)
    compression: Compression | None = None
    region: str = ""
    """The shared memory region that tensors are in, if they are not in request and answer."""


PLAIN = Wire()


@dataclass(frozen=True)
class Places:
    """Where in the region the tensors of a request are; outputs that are not named are in the answer."""

    inputs: Mapping[str, int]
    outputs: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """Where each begins, and its bytes."""


def encode(
    model: ServedModel, address: Address, arrays: Arrays, wire: Wire = PLAIN, places: Places | None = None
) -> bytes:
    """One inference call as it is sent: a whole HTTP request, or a serialized ModelInferRequest."""
    check(model, arrays)
    if address.protocol == "grpc":
        return compressed(encode_grpc(model, arrays, wire, places), wire.compression)
    return encode_http(model, address, arrays, wire, places)


def compressed(data: bytes, method: Compression | None) -> bytes:
    """The bytes as Content-Encoding or grpc-encoding has them ("deflate" means zlib's format)."""
    if method is None:
        return data
    return gzip.compress(data, mtime=0) if method == "gzip" else zlib.compress(data)


def encode_http(
    model: ServedModel, address: Address, arrays: Arrays, wire: Wire = PLAIN, places: Places | None = None
) -> bytes:
    """Request line, headers and body; tensors in binary form where the server takes them so."""
    from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput

    inputs = []
    for spec in model.inputs:
        array = arrays[spec.name]
        tensor = InferInput(spec.name, list(array.shape), spec.dtype.triton)
        if places is None:
            tensor.set_data_from_numpy(array, binary_data=model.binary)
        else:
            size = len(raw_bytes(spec.dtype.triton, array))
            tensor.set_shared_memory(wire.region, size, places.inputs[spec.name])
        inputs.append(tensor)
    outputs = [InferRequestedOutput(name, binary_data=model.binary) for name in model.outputs]
    for output in outputs:
        if places is not None and output.name() in places.outputs:
            offset, size = places.outputs[output.name()]
            output.set_shared_memory(wire.region, size, offset)
    body, json_size = InferenceServerClient.generate_request_body(inputs, outputs=outputs)
    body = compressed(bytes(body), wire.compression)
    headers = [
        f"POST {address.prefix}{model.path} HTTP/1.1",
        f"Host: {address.host_header}",
        f"Content-Type: application/{'octet-stream' if json_size else 'json'}",
        f"Content-Length: {len(body)}",
        *([f"Inference-Header-Content-Length: {json_size}"] if json_size else []),
        *([f"Content-Encoding: {wire.compression}"] if wire.compression else []),
        *(f"{name}: {value}" for name, value in wire.headers),
    ]
    return "\r\n".join([*headers, "", ""]).encode("latin-1") + body


def encode_grpc(
    model: ServedModel, arrays: Arrays, wire: Wire = PLAIN, places: Places | None = None
) -> bytes:
    """A serialized ModelInferRequest with raw tensor contents."""
    from tritonclient.grpc import service_pb2

    request = service_pb2.ModelInferRequest(model_name=model.name, model_version=model.version)
    for spec in model.inputs:
        array = arrays[spec.name]
        tensor = request.inputs.add(name=spec.name, datatype=spec.dtype.triton, shape=list(array.shape))
        raw = raw_bytes(spec.dtype.triton, array)
        if places is None:
            request.raw_input_contents.append(raw)
        else:
            _point_to(tensor, wire.region, places.inputs[spec.name], len(raw))
    for name in model.outputs:
        output = request.outputs.add(name=name)
        if places is not None and name in places.outputs:
            _point_to(output, wire.region, *places.outputs[name])
    serialized: bytes = request.SerializeToString()
    return serialized


def _point_to(tensor: Any, region: str, offset: int, size: int) -> None:
    """A tensor of a gRPC request is there, or is to go there."""
    tensor.parameters["shared_memory_region"].string_param = region
    tensor.parameters["shared_memory_byte_size"].int64_param = size
    tensor.parameters["shared_memory_offset"].int64_param = offset


def raw_bytes(datatype: str, array: NDArray[Any]) -> bytes:
    """A tensor in KServe's raw form: little-endian, row-major; strings with their length in front."""
    if datatype == "BYTES":
        from tritonclient.utils import serialize_byte_tensor

        packed = serialize_byte_tensor(array.astype(object))
        return bytes(packed.item()) if packed.size else b""
    return np.ascontiguousarray(array).tobytes()


def check(model: ServedModel, arrays: Arrays) -> None:
    """DataError, naming the tensor, where arrays and model do not fit together."""
    for spec in model.inputs:
        array = arrays.get(spec.name)
        if array is None:
            raise DataError(
                f"the data have no array for input '{spec.name}'",
                found=", ".join(arrays) or "none",
                expected=", ".join(each.name for each in model.inputs),
                fix="name the arrays as the model names its inputs",
            )
        if spec.dtype.triton != "BYTES" and array.dtype != spec.dtype.numpy:
            raise DataError(
                f"the data for input '{spec.name}' have the wrong type",
                found=str(array.dtype),
                expected=str(spec.dtype),
            )
        fits = len(array.shape) == spec.rank and all(
            isinstance(wanted, str) or wanted == size
            for wanted, size in zip(spec.shape, array.shape, strict=True)
        )
        if not fits:
            raise DataError(
                f"the data for input '{spec.name}' have the wrong shape",
                found=f"{list(array.shape)}",
                expected=f"[{', '.join(map(str, spec.shape))}]",
            )
