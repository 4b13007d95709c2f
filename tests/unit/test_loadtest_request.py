"""Ready-made requests, addresses and settings; the bytes are read back with the protocol's own tools."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from tritongen.errors import DataError, InputError, SpecError
from tritongen.loadtest.inputs import prepare_inputs
from tritongen.loadtest.request import encode
from tritongen.loadtest.settings import Settings
from tritongen.loadtest.target import Address, ServedModel, check_batch_size, parse_address
from tritongen.serving.access import Access
from tritongen.slo import parse_slo
from tritongen.tensors import DATA_TYPES, TensorSpec, from_name

HTTP = Address("http", "127.0.0.1", 8000, "/prefix")
GRPC = Address("grpc", "127.0.0.1", 8001)


def served(*inputs: TensorSpec, **changes: Any) -> ServedModel:
    fields: dict[str, Any] = {
        "name": "my model", "version": "", "outputs": ("y",), "batches": True, "max_batch_size": 8,
        "binary": True, "server": "triton",
    }  # fmt: skip
    return ServedModel(inputs=inputs, **{**fields, **changes})


def split_http(request: bytes) -> tuple[dict[str, str], dict[str, Any], bytes]:
    """Headers, JSON and binary part; "" is the request line."""
    head, _, body = request.partition(b"\r\n\r\n")
    line, *fields = head.decode().split("\r\n")
    headers = {"": line, **dict(field.split(": ", 1) for field in fields)}
    assert int(headers["Content-Length"]) == len(body)
    size = int(headers.get("Inference-Header-Content-Length", len(body)))
    return headers, json.loads(body[:size]), body[size:]


@pytest.mark.parametrize("kind", DATA_TYPES, ids=str)
@pytest.mark.parametrize("address", [HTTP, GRPC], ids=["http", "grpc"])
def test_every_data_type_travels_whole(kind: Any, address: Address) -> None:
    from tritonclient.grpc import service_pb2
    from tritonclient.utils import deserialize_bytes_tensor

    if kind.name == "string":
        array: Any = np.array([["a", "böse\x00"], ["", "d"]], dtype=object)
    else:
        array = np.arange(4).reshape(2, 2).astype(kind.numpy)
    request = encode(served(TensorSpec("x", kind, ("?", 2))), address, {"x": array})
    if address is HTTP:
        headers, description, raw = split_http(request)
        assert headers[""] == "POST /prefix/v2/models/my%20model/infer HTTP/1.1"
        assert headers["Host"] == "127.0.0.1:8000"
        name, datatype, shape = (description["inputs"][0][key] for key in ("name", "datatype", "shape"))
        assert description["outputs"][0]["name"] == "y"
    else:
        message = service_pb2.ModelInferRequest.FromString(request)
        assert message.model_name == "my model"
        (tensor,), (raw,) = message.inputs, message.raw_input_contents
        name, datatype, shape = tensor.name, tensor.datatype, list(tensor.shape)
    assert (name, datatype, shape) == ("x", kind.triton, [2, 2])
    if kind.name == "string":
        assert [each.decode() for each in deserialize_bytes_tensor(raw)] == ["a", "böse\x00", "", "d"]
    else:
        assert np.array_equal(np.frombuffer(raw, kind.numpy).reshape(2, 2), array)


def test_a_server_without_binary_tensors_gets_json() -> None:
    model = served(TensorSpec("x", from_name("float32"), ("?", 2)), binary=False, version="3")
    headers, description, raw = split_http(encode(model, HTTP, {"x": np.ones((1, 2), np.float32)}))
    assert description["inputs"][0]["data"] == [1.0, 1.0]
    assert "/versions/3/infer" in headers[""]
    assert raw == b""


@pytest.mark.parametrize(
    ("arrays", "text"),
    [
        ({}, "no array for input 'x'"),
        ({"x": np.ones((1, 2))}, "wrong type"),
        ({"x": np.ones((1, 3), np.float32)}, "wrong shape"),
        ({"x": np.ones(2, np.float32)}, "wrong shape"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(arrays: dict[str, Any], text: str) -> None:
    with pytest.raises(DataError, match=text):
        encode(served(TensorSpec("x", from_name("float32"), ("?", 2))), HTTP, arrays)


def prepare(model: ServedModel, batch_size: int = 2, **given: Any) -> Any:
    wanted: dict[str, Any] = {"shapes": {}, "ranges": {}, "data": None, "seed": 0, **given}
    return prepare_inputs(model, batch_size, **wanted)


def test_inputs_are_made_up_within_what_is_known() -> None:
    model = served(
        TensorSpec("ids", from_name("int64"), ("?", "?")),
        TensorSpec("image", from_name("uint8"), ("?", 3)),
        TensorSpec("flag", from_name("bool"), ("?", 1)),
    )
    inputs = prepare(model, shapes={"ids": "7"}, ranges={"ids": "5..9"})
    assert len(inputs.batches) == 16
    first = inputs.batches[0]
    assert {name: array.shape for name, array in first.items()} == {
        "ids": (2, 7),
        "image": (2, 3),
        "flag": (2, 1),
    }
    values = np.concatenate([batch["ids"].ravel() for batch in inputs.batches])
    assert (values.min(), values.max()) == (5, 9)
    assert not np.array_equal(first["ids"], inputs.batches[1]["ids"])
    assert np.array_equal(
        first["ids"], prepare(model, shapes={"ids": "7"}, ranges={"ids": "5..9"}).batches[0]["ids"]
    )


def test_what_is_not_known_is_asked_for_by_its_flag() -> None:
    model = served(TensorSpec("ids", from_name("int64"), ("?", "?")))
    with pytest.raises(SpecError, match="--shape 'ids="):
        prepare(model, ranges={"ids": "0..9"})
    with pytest.raises(SpecError, match="--range 'ids="):
        prepare(model, shapes={"ids": "4"})


def test_data_must_fill_a_request(tmp_path: Any) -> None:
    np.save(tmp_path / "x.npy", np.zeros((3, 2), np.float32))
    model = served(TensorSpec("x", from_name("float32"), ("?", 2)))
    assert len(prepare(model, 1, data=str(tmp_path / "x.npy")).batches) == 3
    assert len(prepare(model, 2, data=str(tmp_path / "x.npy")).batches) == 1
    with pytest.raises(DataError, match="do not fill one request of batch 4"):
        prepare(model, 4, data=str(tmp_path / "x.npy"))


def test_batch_sizes_are_checked_against_the_model() -> None:
    check_batch_size(served(), 8)
    check_batch_size(served(max_batch_size=None), 100)
    check_batch_size(served(max_batch_size=0, batches=False), 1)
    with pytest.raises(InputError, match="takes smaller batches"):
        check_batch_size(served(), 9)
    with pytest.raises(InputError, match="does not batch"):
        check_batch_size(served(max_batch_size=0, batches=False), 2)


@pytest.mark.parametrize(
    ("url", "protocol", "expected"),
    [
        ("http://h:8000", None, Address("http", "h", 8000)),
        ("http://h:80/a/b/", None, Address("http", "h", 80, "/a/b")),
        ("h", None, Address("http", "h", 8000)),
        ("h:9", "grpc", Address("grpc", "h", 9)),
        ("grpc://[::1]:9", None, Address("grpc", "::1", 9)),
        ("grpc://h", None, Address("grpc", "h", 8001)),
        ("https://h", "http", Address("http", "h", 443, secure=True)),
        ("grpcs://h:9", None, Address("grpc", "h", 9, secure=True)),
    ],
)
def test_addresses(url: str, protocol: Any, expected: Address) -> None:
    assert parse_address(url, protocol) == expected


@pytest.mark.parametrize(
    ("url", "protocol"),
    [
        ("https://h", "grpc"),
        ("ftp://h", None),
        ("http://", None),
        ("http://h", "grpc"),
        ("http://h:port", None),
        ("http://127.0.0.1:8000]", None),
        ('"quoted"', None),
        ("http://h:8000/?x=1", None),
        ("http://h:8000/#x", None),
    ],
)
def test_addresses_that_are_none(url: str, protocol: Any) -> None:
    with pytest.raises(InputError):
        parse_address(url, protocol)


def test_an_address_tells_no_password() -> None:
    with pytest.raises(InputError) as caught:
        parse_address("http://user:secret@h:8000")
    assert "secret" not in str(caught.value)
    assert "--token-env" in str(caught.value)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"duration_s": 1e300}, "no run takes so long"),
        ({"access": Access(headers=[("Content-Length", "5")])}, "says for itself"),
        ({"seed": -1}, "--seed must not be negative"),
        ({"workers": 257}, "so many --workers"),
        ({"metrics_url": "foo"}, "'foo' is not the address"),
        ({"metrics_url": "http://h:99999/metrics"}, "is not the address"),
    ],
)
def test_numbers_that_cannot_be_used(given: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        Settings("m", rate=10, **given).check()


def test_a_promised_throughput_is_the_rate() -> None:
    promised = Settings("m", slos=[parse_slo("throughput>=500/s")], batch_size=4)
    promised.check()
    assert promised.offered_rate == 125
    assert Settings("m").offered_rate is None
    assert Settings("m", concurrency=3, slos=[parse_slo("throughput>=5/s")]).offered_rate is None
    assert Settings("m", rate=3).offered_rate == 3


def test_workers_leave_cores_to_the_server() -> None:
    assert Settings("m", rate=100).worker_count(64) == 1
    assert Settings("m", rate=10_000).worker_count(64) == 5
    assert Settings("m", rate=10_000).worker_count(2) == 1
    assert Settings("m", rate=10_000, workers=4).worker_count(2) == 4
    assert Settings("m", concurrency=2, workers=4).worker_count(8) == 2
    assert Settings("m", concurrency=64).worker_count(8) == 4
