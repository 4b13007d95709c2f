"""The onnxruntime backend in a real tritonserver: its answers equal ONNX Runtime's own, batched or not."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import onnxruntime
import pytest

from tests.serving_models import every_type_sample, full_repository
from tritongen.serving.control import ServerControl, connect
from tritongen.serving.embedded import EmbeddedServer
from tritongen.serving.statistics import ModelStatistics
from tritongen.tensors import from_numpy

pytestmark = pytest.mark.server

Arrays = Mapping[str, Any]


class Client:
    """Sends requests over gRPC and knows what ONNX Runtime itself would answer."""

    def __init__(self, server: EmbeddedServer) -> None:
        from tritonclient.grpc import InferenceServerClient

        self.repository = server.repository
        self.grpc = InferenceServerClient(server.grpc_url.removeprefix("grpc://"))

    def infer(self, model: str, inputs: Arrays, outputs: Sequence[str] = ()) -> dict[str, Any]:
        from tritonclient.grpc import InferInput, InferRequestedOutput

        tensors = []
        for name, array in inputs.items():
            tensor = InferInput(name, list(array.shape), from_numpy(array.dtype).triton)
            tensor.set_data_from_numpy(array)
            tensors.append(tensor)
        wanted = [InferRequestedOutput(name) for name in outputs] or None
        answer = self.grpc.infer(model, tensors, outputs=wanted)
        return {each.name: answer.as_numpy(each.name) for each in answer.get_response().outputs}

    def together(self, model: str, requests: Sequence[Arrays]) -> list[Any]:
        """The answers (or errors) of requests that are sent at the same time."""

        def one(inputs: Arrays) -> Any:
            try:
                return self.infer(model, inputs)
            except Exception as error:  # noqa: BLE001
                return error

        with ThreadPoolExecutor(len(requests)) as pool:
            return list(pool.map(one, requests))

    def expected(self, model: str, inputs: Arrays) -> dict[str, Any]:
        path = next((self.repository / model / "1").glob("*.onnx"))
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        names = [node.name for node in session.get_outputs()]
        return dict(zip(names, session.run(names, dict(inputs)), strict=True))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    # A space in the path: Triton hands it to bash unquoted.
    repository = full_repository(tmp_path_factory.mktemp("a repository"))
    with EmbeddedServer(repository) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: EmbeddedServer) -> Iterator[Client]:
    client = Client(server)
    yield client
    client.grpc.close()


@pytest.fixture(scope="module")
def control(server: EmbeddedServer) -> ServerControl:
    return connect(server.http_url)


def _assert_equal(given: Arrays, expected: Arrays) -> None:
    assert given.keys() == expected.keys()
    for name, value in expected.items():
        assert given[name].dtype == value.dtype, name
        assert given[name].shape == value.shape, name
        np.testing.assert_array_equal(given[name], value)


def _since(control: ServerControl, before: ModelStatistics, requests: int) -> ModelStatistics:
    """What happened since `before`, once all requests are counted: Triton answers first."""
    for _ in range(1200):
        during = control.statistics(before.name) - before
        if during.success.count >= requests:
            break
        time.sleep(0.05)
    assert during.success.count == requests
    return during


def _draw(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_concurrent_requests_of_equal_shapes_share_inference_calls(
    client: Client, control: ServerControl
) -> None:
    before = control.statistics("branching")
    requests = [{"x": _draw(1 + i % 2, 5, seed=i)} for i in range(8)]
    answers = client.together("branching", requests)
    for inputs, answer in zip(requests, answers, strict=True):
        _assert_equal(answer, client.expected("branching", inputs))
    during = _since(control, before, requests=8)
    assert during.inference_count == 12
    assert during.execution_count < during.success.count


def test_concurrent_requests_of_different_shapes_get_their_own_answers(client: Client) -> None:
    requests = [{"x": _draw(1 + i % 3, 1 + i % 4, seed=i)} for i in range(12)]
    answers = client.together("branching", requests)
    for inputs, answer in zip(requests, answers, strict=True):
        _assert_equal(answer, client.expected("branching", inputs))


def test_one_bad_request_does_not_fail_its_batch(client: Client) -> None:
    rows = [0, 1, 99, 2, 3]
    answers = client.together("lookup", [{"row": np.array([[row]])} for row in rows])
    for row, answer in zip(rows, answers, strict=True):
        if row == 99:
            assert "indices element out of data bounds" in str(answer)
            assert "idx=99" in str(answer)
        else:
            _assert_equal(answer, client.expected("lookup", {"row": np.array([row])}))


def test_one_number_per_item(client: Client) -> None:
    requests = [{"x": _draw(1 + i, 1, seed=i)} for i in range(3)]
    for inputs, answer in zip(requests, client.together("one_per_item", requests), strict=True):
        expected = client.expected("one_per_item", {"x": inputs["x"][:, 0]})["y"]
        _assert_equal(answer, {"y": expected[:, np.newaxis]})


def test_rank_0_input(client: Client) -> None:
    x, scale = _draw(3, 4), np.array([2.5], np.float32)
    answer = client.infer("scalar_input", {"x": x, "scale": scale})
    _assert_equal(answer, client.expected("scalar_input", {"x": x, "scale": scale.reshape(())}))


def test_strings_go_in_and_out(client: Client) -> None:
    words = [["cat"], ["dög \0 ü"], [""], ["dog"]]
    requests = [{"word": np.array([word], object)} for word in words]
    answers = client.together("strings", requests)
    assert [answer["echo"][0, 0].decode() for answer in answers] == [word[0] for word in words]
    assert [answer["label"][0, 0] for answer in answers] == [1, 0, 0, 2]


def test_bytes_that_are_not_text_fail_alone(client: Client) -> None:
    requests = [{"word": np.array([[word]], object)} for word in (b"cat", b"\xff\xfe")]
    good, bad = client.together("strings", requests)
    assert good["label"][0, 0] == 1
    assert "input 'word' holds bytes that are not UTF-8 text" in str(bad)


def test_several_outputs_and_a_choice_of_them(client: Client) -> None:
    inputs = {"a": _draw(4, 3), "b": _draw(4, 3, seed=1)}
    expected = client.expected("two_in_two_out", inputs)
    expected["best"] = expected["best"][:, np.newaxis]
    _assert_equal(client.infer("two_in_two_out", inputs), expected)
    _assert_equal(client.infer("two_in_two_out", inputs, ["best"]), {"best": expected["best"]})


def test_float16(client: Client) -> None:
    inputs = {"x": _draw(3, 4).astype(np.float16)}
    _assert_equal(client.infer("half_precision", inputs), client.expected("half_precision", inputs))


def test_every_type_at_its_limits(client: Client) -> None:
    inputs = every_type_sample(3)
    _assert_equal(client.infer("many_types", inputs), client.expected("many_types", inputs))


def test_without_batching_each_request_is_a_call(client: Client, control: ServerControl) -> None:
    before = control.statistics("batch_on_axis_1")
    requests = [{"x": _draw(2 + i, 3, 4, seed=i)} for i in range(4)]
    answers = client.together("batch_on_axis_1", requests)
    for inputs, answer in zip(requests, answers, strict=True):
        _assert_equal(answer, client.expected("batch_on_axis_1", inputs))
    during = _since(control, before, requests=4)
    assert during.execution_count == during.inference_count == 4


def test_empty_tensors(client: Client) -> None:
    inputs = {"x": _draw(2, 0)}
    _assert_equal(client.infer("branching", inputs), client.expected("branching", inputs))


def test_a_model_that_does_not_batch_says_so(client: Client) -> None:
    (error,) = client.together("not_batching", [{"x": _draw(2, 3, 4)}])
    assert "output 'y' has shape [3, 4] for a batch of 2" in str(error)
    assert "max_batch_size: 0" in str(error)


@pytest.mark.parametrize(
    ("array", "explanation"),
    [
        (np.zeros((1, 5), np.float32), "Expected [-1,4], got [1,5]"),
        (np.zeros((1, 4), np.float64), "data-type is 'FP64'"),
        (np.zeros((9, 4), np.float32), "batch-size must be <= 8"),
    ],
)
def test_a_request_that_does_not_fit_is_refused_and_its_neighbour_served(
    client: Client, array: Any, explanation: str
) -> None:
    good = {"x": _draw(1, 4)}
    error, answer = client.together("relu", [{"x": array}, good])
    assert explanation in str(error)
    _assert_equal(answer, client.expected("relu", good))
