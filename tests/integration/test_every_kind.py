"""Every kind of model walks the road: one spec, one server, and the answers that ONNX Runtime gives."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import yaml
from numpy.typing import NDArray

from tests import models
from tests.integration.conftest import CommandLine
from tritongen.serving.embedded import EmbeddedServer
from tritongen.tensors import from_numpy

pytestmark = [pytest.mark.server, pytest.mark.slow]

Arrays = dict[str, NDArray[Any]]

SHAPES = {
    "tokens": {"ids": "5"},
    "branching": {"x": "3"},
    "scalar_input": {"x": "2x4"},
    "batch_on_axis_1": {"x": "3x2x4"},
    "mixes_batch": {},
    "recurrent": {"x": "3x2x3"},
}
"""What the graphs leave open; full sizes where axis 0 is not the batch."""

SIZES = {
    "mixes_batch": {"x": (1, 4)},  # what the trials took, since batching was refuted
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tritongen: CommandLine) -> Path:
    """All tiny models, built by one spec."""
    root = tmp_path_factory.mktemp("kinds")
    spec = {}
    for name, make in models.SERVABLE.items():
        models.save(make(), root / f"{name}.onnx", external=name == "linear")
        spec[name] = {"path": f"{name}.onnx", "max_batch_size": 2, "shapes": SHAPES.get(name, {})}
        if name in models.BATCHING:
            continue
        del spec[name]["max_batch_size"]  # found out by running it
    (root / "tritongen.yaml").write_text(yaml.safe_dump({"models": spec}))
    tritongen("build", "--effort", "quick", cwd=root)
    return root


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[EmbeddedServer]:
    """One server with all of them."""
    with EmbeddedServer(folder / "model_repository") as running:
        yield running


def test_verify_finds_nothing(folder: Path, tritongen: CommandLine) -> None:
    tritongen("verify", cwd=folder)


@pytest.mark.parametrize("name", models.SERVABLE)
def test_batching_is_as_the_model_allows(name: str, folder: Path) -> None:
    config = (folder / "model_repository" / name / "config.pbtxt").read_text()
    assert f"max_batch_size: {2 if name in models.BATCHING else 0}\n" in config


@pytest.mark.parametrize("name", models.SERVABLE)
def test_answers_equal_onnx_runtimes(name: str, folder: Path, server: EmbeddedServer) -> None:
    session = onnxruntime.InferenceSession(str(folder / f"{name}.onnx"), providers=["CPUExecutionProvider"])
    inputs = _inputs(name, session)
    expected = dict(zip([t.name for t in session.get_outputs()], session.run(None, inputs), strict=True))
    found = _infer(server, name, inputs)
    assert found.keys() == expected.keys()
    for output, array in expected.items():
        assert _as_the_model_has_it(found[output], array.ndim).shape == array.shape
        if array.dtype == object:
            assert [text.decode() for text in found[output].ravel()] == list(array.ravel())
        else:
            assert found[output].dtype == array.dtype
            answer = _as_the_model_has_it(found[output], array.ndim)
            np.testing.assert_allclose(answer, array, rtol=1e-4, atol=1e-5)


def _inputs(name: str, session: Any) -> Arrays:
    """Two items for a batching model, one complete call for the others."""
    rng = np.random.default_rng(1)
    made = {}
    for tensor in session.get_inputs():
        asked = [int(size) for size in SHAPES.get(name, {}).get(tensor.name, "").split("x") if size]
        if name in models.BATCHING:
            sizes = (2, *(asked or tensor.shape[1:]))
        else:
            sizes = SIZES.get(name, {}).get(tensor.name, tuple(asked or tensor.shape))
        if tensor.type == "tensor(string)":
            made[tensor.name] = rng.choice(np.array(["cat", "dog", "emu"], object), sizes)
        elif tensor.type == "tensor(int64)":
            made[tensor.name] = rng.integers(0, 50, sizes)
        else:
            dtype = np.float16 if tensor.type == "tensor(float16)" else np.float32
            made[tensor.name] = np.asarray(rng.standard_normal(sizes), dtype)
    return made


def _as_triton_has_it(array: NDArray[Any], *, batched: bool) -> NDArray[Any]:
    """Triton has no empty dims: one number per item, or per call, is carried as [1]."""
    return array[..., None] if array.ndim == (1 if batched else 0) else array


def _as_the_model_has_it(array: NDArray[Any], rank: int) -> NDArray[Any]:
    return array[..., 0] if array.ndim == rank + 1 and array.shape[-1] == 1 else array


def _infer(server: EmbeddedServer, name: str, inputs: Arrays) -> Arrays:
    from tritonclient import http

    tensors = []
    for key, array in inputs.items():
        carried = _as_triton_has_it(array, batched=name in models.BATCHING)
        tensor = http.InferInput(key, list(carried.shape), from_numpy(array.dtype).triton)
        tensor.set_data_from_numpy(carried)
        tensors.append(tensor)
    client = http.InferenceServerClient(server.http_url.removeprefix("http://"))
    try:
        answer = client.infer(name, tensors)
        return {
            output["name"]: answer.as_numpy(output["name"]) for output in answer.get_response()["outputs"]
        }
    finally:
        client.close()
