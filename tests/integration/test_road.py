"""The whole road with real models: rapidocr's three and magika's, by a spec of one page, in one server."""

from __future__ import annotations

import importlib.util
import json
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import yaml
from numpy.typing import NDArray

from tests.integration.conftest import EXAMPLES, CommandLine
from tritongen.serving.embedded import EmbeddedServer

pytestmark = [pytest.mark.server, pytest.mark.slow]

Arrays = dict[str, NDArray[Any]]

SHAPES = {
    "detection": (3, 96, 128),
    "orientation": (3, 48, 192),
    "recognition": (3, 48, 96),
    "filetype": (2048,),
}
"""Sizes of one item of each model's only input."""


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory, tritongen: CommandLine) -> Path:
    """examples/ocr with its models linked and its repository built."""
    for package in ("rapidocr", "magika"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed: pip install 'tritongen[test]' (Python 3.10-3.12)")
    folder = tmp_path_factory.mktemp("ocr")
    (folder / "tritongen.yaml").write_text((EXAMPLES / "ocr" / "tritongen.yaml").read_text(encoding="utf-8"))
    _collect(folder / "out")
    tritongen("build", "tritongen.yaml", "--effort", "quick", cwd=folder)
    return folder


def _collect(folder: Path) -> None:
    import subprocess

    script = EXAMPLES / "ocr" / "collect.py"
    subprocess.run([sys.executable, script, "--out", folder], check=True, capture_output=True)


@pytest.fixture(scope="module")
def server(example: Path) -> Iterator[EmbeddedServer]:
    """One server with all four models."""
    with EmbeddedServer(example / "out" / "model_repository") as running:
        yield running


def test_spec_is_one_page() -> None:
    assert len((EXAMPLES / "ocr" / "tritongen.yaml").read_text(encoding="utf-8").splitlines()) <= 40


def test_every_model_of_the_spec_is_built(example: Path, tritongen: CommandLine) -> None:
    spec = yaml.safe_load((example / "tritongen.yaml").read_text(encoding="utf-8"))
    for name in spec["models"]:
        manifest = json.loads((example / "out" / "model_repository" / name / "manifest.json").read_text())
        assert manifest["schema"].startswith("tritongen/manifest/")
    tritongen("verify", "out/model_repository", cwd=example)


def test_int8_is_not_selected_without_data(example: Path) -> None:
    for name in SHAPES:
        selection = json.loads((example / "out" / "run" / name / "selection.json").read_text())
        assert "int8" not in selection["winner"]


@pytest.mark.parametrize("name", sorted(SHAPES))
def test_batched_outputs_equal_onnx_runtimes(name: str, example: Path, server: EmbeddedServer) -> None:
    """One request with a batch of two against ONNX Runtime's own answer at the same batch size."""
    inputs = _inputs(name, example, items=2)
    expected = _reference(name, example, inputs)
    _same(_infer(server, name, inputs), expected)


@pytest.mark.parametrize("name", sorted(SHAPES))
def test_joined_requests_get_their_own_answers(name: str, example: Path, server: EmbeddedServer) -> None:
    """Requests of one item each, all at once: Triton joins them, and each gets its own answer."""

    asked = [_inputs(name, example, items=1, seed=seed) for seed in range(8)]
    expected = [_reference(name, example, inputs) for inputs in asked]
    for _ in range(30):  # whether any two are joined is a matter of when they come
        inferences, executions = _counts(server, name)
        with ThreadPoolExecutor(len(asked)) as pool:
            answers = list(pool.map(lambda inputs: _infer(server, name, inputs), asked))
        for answer, own in zip(answers, expected, strict=True):
            _same(answer, own)
        if _executions(server, name, inferences + len(asked)) - executions < len(asked):
            return
    pytest.fail("no two requests were ever joined")


def test_load_test_of_all_models_at_once(
    example: Path, server: EmbeddedServer, tritongen: CommandLine, tmp_path: Path
) -> None:
    def load_test(name: str) -> None:
        report = tmp_path / f"{name}.json"
        command = ["loadtest", name, "--url", server.grpc_url, "--rate", "5", "--duration", "3s"]
        command += ["--repository", str(example / "out" / "model_repository"), "--json", str(report)]
        done = tritongen(*command, "--slo", "error_rate<=1%", code=None)
        assert done.returncode in {0, 4}, (
            f"{done.stdout}\n{done.stderr}"
        )  # ten requests may be too few to tell
        assert json.loads(report.read_text())["outcome"] in {"PASS", "INVALID"}

    with ThreadPoolExecutor(len(SHAPES)) as pool:
        list(pool.map(load_test, SHAPES))


def _session(name: str, example: Path) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    path = str(example / "out" / f"{name}.onnx")
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _inputs(name: str, example: Path, *, items: int, seed: int = 0) -> Arrays:
    rng = np.random.default_rng(seed)
    (tensor,) = _session(name, example).get_inputs()
    shape = (items, *SHAPES[name])
    if tensor.type == "tensor(int32)":
        return {tensor.name: rng.integers(0, 256, shape, np.int32)}
    return {tensor.name: rng.random(shape, np.float32)}


def _reference(name: str, example: Path, inputs: Arrays) -> Arrays:
    session = _session(name, example)
    names = [tensor.name for tensor in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs), strict=True))


def _infer(server: EmbeddedServer, name: str, inputs: Arrays) -> Arrays:
    from tritonclient import grpc

    tensors = []
    for key, array in inputs.items():
        tensor = grpc.InferInput(key, list(array.shape), "INT32" if array.dtype == np.int32 else "FP32")
        tensor.set_data_from_numpy(array)
        tensors.append(tensor)
    with grpc.InferenceServerClient(server.grpc_url.removeprefix("grpc://")) as client:
        answer = client.infer(name, tensors)
        return {output.name: answer.as_numpy(output.name) for output in answer.get_response().outputs}


def _counts(server: EmbeddedServer, name: str) -> tuple[int, int]:
    """Inferences and executions since the start."""
    from tritonclient import grpc

    with grpc.InferenceServerClient(server.grpc_url.removeprefix("grpc://")) as client:
        (stats,) = client.get_inference_statistics(name).model_stats
        return stats.inference_count, stats.execution_count


def _executions(server: EmbeddedServer, name: str, inferences: int) -> int:
    """Executions once that many inferences are counted; Triton counts a moment after it answers."""
    for _ in range(1200):
        counted, executions = _counts(server, name)
        if counted >= inferences:
            assert counted == inferences
            return executions
        time.sleep(0.05)
    pytest.fail(f"Triton counted {counted} of {inferences} inferences")


def _same(found: Arrays, expected: Arrays) -> None:
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=1e-4, atol=1e-5)
