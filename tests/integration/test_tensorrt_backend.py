"""The tensorrt backend in a real tritonserver, on stand-ins for TensorRT and CUDA (tests/standin).

Proved here: grouping, padding, profiles, CUDA graphs and copies, plans by compute capability, refusals, the
orderly end, a lost context. Not proved: anything that TensorRT does; tests/gpu/test_plan_serving.py does that
on a GPU.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests import models
from tests.standin.plans import FOLDER, plan_bytes
from tests.unit.test_repository_plans import H100, L4, plan_to_write
from tritongen.engines.onnxruntime.session import OnnxRuntimeRunner
from tritongen.engines.tensorrt.profiles import from_text
from tritongen.errors import ServerError
from tritongen.repository.manifest import read_manifest
from tritongen.repository.writer import write_model
from tritongen.serving import scratch
from tritongen.serving.control import connect
from tritongen.serving.embedded import EmbeddedServer
from tritongen.serving.registry import dead_instances
from tritongen.tensors import from_numpy

pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def standins(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Backends that find the stand-ins, and take a CPU for a GPU: Triton has no KIND_GPU without one."""
    backends = tmp_path_factory.mktemp("backends")
    shutil.copytree(scratch.BACKENDS, backends, dirs_exist_ok=True)
    model = backends / "tensorrt" / "model.py"
    source = model.read_text()
    assert source.count('!= "GPU"') == 1
    model.write_text(source.replace('!= "GPU"', '!= "CPU"'))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scratch, "BACKENDS", backends)
        patch.setattr(sys, "path", [str(FOLDER), *sys.path])
        yield


def write(repository: Path, model: Path, runs: Path, versions: dict[str, str], **serving: Any) -> Path:
    """A repository entry with a stand-in's plan for the "GPU" in `versions`, served on a CPU."""
    asked = plan_to_write(model, runs, versions, name=model.stem, **serving)
    artifact = asked.winner.trial.artifact
    assert artifact is not None
    capability = tuple(map(int, versions["compute_capability"].split(".")))
    write_model(repository, asked)
    folder = repository / model.stem
    newest = max(int(path.name) for path in folder.iterdir() if path.name.isdecimal())
    for file in (folder / str(newest)).glob("*.plan"):
        if file.name in ("model.plan", f"model.cc{''.join(map(str, capability))}.plan"):
            file.write_bytes(
                plan_bytes(model, from_text(artifact.details["profiles"]), capability=capability)
            )
    return folder / "config.pbtxt"


def on_cpu(config: Path, **replaced: str) -> None:
    text = config.read_text().replace("KIND_GPU", "KIND_CPU")
    for before, after in replaced.items():
        text = text.replace(before, after)
    config.write_text(text)


class Client:
    """Sends requests over gRPC."""

    def __init__(self, server: EmbeddedServer) -> None:
        from tritonclient.grpc import InferenceServerClient

        self.grpc = InferenceServerClient(server.grpc_url.removeprefix("grpc://"))

    def infer(self, model: str, output: str, inputs: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        from tritonclient.grpc import InferInput

        tensors = []
        for name, array in inputs.items():
            tensor = InferInput(name, list(array.shape), from_numpy(array.dtype).triton)
            tensor.set_data_from_numpy(array)
            tensors.append(tensor)
        answer: NDArray[Any] = self.grpc.infer(model, tensors).as_numpy(output)
        return answer


@pytest.fixture(scope="module")
def served(standins: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Client, Path]]:
    """linear: 2 instances, own profiles for batch 1 and 4, for two GPUs; tokens: INT64 narrowed to INT32."""
    folder = tmp_path_factory.mktemp("served")
    for name in ("linear", "tokens"):
        models.save(getattr(models, name)(), folder / f"{name}.onnx")
    repository = folder / "repository"
    write(repository, folder / "linear.onnx", folder / "a", L4, instances=2)
    on_cpu(write(repository, folder / "linear.onnx", folder / "b", H100, instances=2))
    on_cpu(write(repository, folder / "tokens.onnx", folder / "c", H100, inputs={"ids": (3,)},
                 ranges={"ids": (7, 40)}))  # fmt: skip
    models.save(models.mixes_batch(), folder / "mixes_batch.onnx")
    on_cpu(write(repository, folder / "mixes_batch.onnx", folder / "d", H100))
    with EmbeddedServer(repository) as server:
        client = Client(server)
        yield client, folder
        client.grpc.close()


def expected(folder: Path, model: str, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    with OnnxRuntimeRunner(folder / f"{model}.onnx") as runner:
        return runner.infer(inputs)


def tritongen(folder: Path, capability: str, *arguments: str) -> str:
    """What a command printed on a machine whose "GPU" is a stand-in."""
    path = os.pathsep.join([str(FOLDER), str(FOLDER.parent.parent)])
    done = subprocess.run(
        [sys.executable, "-m", "tritongen", *arguments],
        capture_output=True, text=True, check=False, cwd=folder, timeout=300,
        env={**os.environ, "PYTHONPATH": path, "STANDIN_CAPABILITY": capability, "HOME": str(folder)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_two_gpus_build_into_one_repository(tmp_path: Path) -> None:
    """`tritongen build` once on each "GPU"; verify loads the plan that is meant for the one at hand."""
    models.save(models.linear(), tmp_path / "net.onnx")
    flags = ("--engine", "tensorrt", "--precision", "fp32", "--max-batch-size", "2", "--effort", "quick")
    tritongen(tmp_path, "9.0", "build", "net.onnx", *flags)
    assert "unchanged" in tritongen(tmp_path, "9.0", "build", "net.onnx", *flags)
    said = tritongen(tmp_path, "8.9", "build", "net.onnx", *flags)
    assert "compute capability is 8.9 and was 9.0" in said
    assert "the GPU is not watched" in said or find_spec("pynvml")
    assert "beside the plans for compute capability 9.0" in said
    manifest = read_manifest(tmp_path / "model_repository" / "net")
    assert [plan.file for plan in manifest.plans] == ["model.cc89.plan", "model.cc90.plan"]
    for capability in ("9.0", "8.9"):
        report = json.loads(tritongen(tmp_path, capability, "verify", "--json"))
        assert report["findings"] == []
    plan = tmp_path / "model_repository" / "net" / "2" / "model.cc90.plan"
    assert "compute capability 9.0" in tritongen(tmp_path, "8.9", "inspect", str(plan))
    layers = json.loads(
        tritongen(tmp_path, "9.0", "inspect", str(plan), "--layers", "--profile", "1", "--json")
    )
    assert layers["layers"][0]["fused"] == ["conv", "relu"]


def test_every_batch_size_in_any_order(served: tuple[Client, Path]) -> None:
    client, folder = served
    x = np.random.default_rng(0).standard_normal((4, 4)).astype(np.float32)
    (wanted,) = expected(folder, "linear", {"x": x}).values()
    for batch in (4, 1, 3, 2, 1, 4, 2, 3):
        np.testing.assert_allclose(client.infer("linear", "y", {"x": x[:batch]}), wanted[:batch], rtol=1e-5)


def test_requests_at_once_get_their_own_answers(served: tuple[Client, Path]) -> None:
    client, folder = served
    x = np.random.default_rng(1).standard_normal((50, 4)).astype(np.float32)
    (wanted,) = expected(folder, "linear", {"x": x}).values()

    def one(start: int) -> float:
        part = slice(start, start + 1 + start % 3)
        return float(np.abs(client.infer("linear", "y", {"x": x[part]}) - wanted[part]).max())

    with ThreadPoolExecutor(12) as pool:
        assert max(pool.map(one, range(47))) < 1e-5


def test_integers_are_narrowed(served: tuple[Client, Path]) -> None:
    client, folder = served
    ids = np.random.default_rng(2).integers(7, 41, (4, 3))
    (wanted,) = expected(folder, "tokens", {"ids": ids}).values()
    found = client.infer("tokens", "scores", {"ids": ids.astype(np.int32)})
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_a_model_that_does_not_batch_has_its_one_graph(served: tuple[Client, Path]) -> None:
    client, folder = served
    x = np.random.default_rng(3).standard_normal((2, 4)).astype(np.float32)
    (wanted,) = expected(folder, "mixes_batch", {"x": x}).values()
    for _ in range(2):
        np.testing.assert_allclose(client.infer("mixes_batch", "y", {"x": x}), wanted, rtol=1e-5)


def test_an_instance_whose_context_is_lost_leaves_the_requests_to_the_others(
    standins: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fault, log = tmp_path / "fault", tmp_path / "triton.log"
    monkeypatch.setenv("STANDIN_FAULT", str(fault))
    model = models.save(models.linear(), tmp_path / "linear.onnx")
    on_cpu(write(tmp_path / "r", model, tmp_path / "a", H100, instances=2))
    x = {"x": np.ones((1, 4), np.float32)}
    with EmbeddedServer(tmp_path / "r", log_file=log) as server:
        control = connect(server.http_url)
        control.infer("linear", "", x)
        fault.touch()
        with pytest.raises(ServerError, match="refuses"):
            control.infer("linear", "", x)
        fault.unlink()
        served = 0
        for _ in range(4):  # one in turn is for the instance that has ended, which takes its time to fail
            with suppress(ServerError):
                served += bool(control.infer("linear", "", x))
        assert served
        assert control.statistics("linear").fail.count
        assert dead_instances(server.pid) == 1
    assert "its CUDA context is lost: CUDA: cudaErrorIllegalAddress" in log.read_text()


@pytest.mark.parametrize(
    ("change", "expected_words"),
    [
        ({"max_batch_size: 4": "max_batch_size: 64"}, "was not built for these sizes or profiles"),
        ({}, "was built for another GPU"),
        ({}, "damaged, or no TensorRT plan"),
    ],
    ids=["batch", "gpu", "file"],
)
def test_a_plan_that_does_not_load_is_explained(
    standins: None,
    tmp_path: Path,
    change: dict[str, str],
    expected_words: str,
    request: pytest.FixtureRequest,
) -> None:
    model = models.save(models.linear(), tmp_path / "linear.onnx")
    kind = request.node.callspec.id
    config = write(tmp_path / "r", model, tmp_path / "a", L4 if kind == "gpu" else H100)
    on_cpu(config, **change)
    if kind == "file":
        (config.parent / "1" / "model.plan").write_bytes(b"no plan" * 100)
    with pytest.raises(ServerError) as caught, EmbeddedServer(tmp_path / "r"):
        pass
    assert expected_words in f"{caught.value.message} {caught.value.found}"
