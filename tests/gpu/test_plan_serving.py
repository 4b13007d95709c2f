"""From an ONNX file to answers on a real GPU: build, verify, serve, infer, load test, stop.

`tritongen` itself in processes of its own; the embedded Triton with tritongen's tensorrt backend.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from tests.gpu.network import CHANNELS, convolutional
from tests.gpu.network import sample as noise
from tests.gpu.test_tensorrt import tritongen
from tritongen.engines.onnxruntime.session import OnnxRuntimeRunner
from tritongen.engines.tensorrt import TensorRTEngine
from tritongen.engines.tensorrt.runner import TensorRTRunner
from tritongen.repository.config_text import parse
from tritongen.tensors import from_numpy

if TYPE_CHECKING:
    from typing_extensions import Self

pytestmark = [pytest.mark.gpu, pytest.mark.server]

ANY_PORTS = ("--http-port", "0", "--grpc-port", "0", "--metrics-port", "0")
CLOSE = 0.1
"""Relative L2 between kernels of one plan; answers of two different items are about 1 apart."""

SPEC = """\
models:
  net:
    path: net.onnx
    engine: tensorrt
    max_batch_size: 8
    data: {calibration: calibration.npz, validation: validation.npz}
    accuracy: {metric: relative_l2, limit: 40}
    serving: {instances: 2}
  ids:
    path: ids.onnx
    engine: tensorrt
    precision: [fp32]
    max_batch_size: 4
    shapes: {ids: "4"}
    ranges: {ids: "3..49"}
"""


def embedding(path: Path) -> Path:
    """ids [n, 4] of INT64, which 8.6 narrows to INT32 → y [n, 3]; 0 lies outside their range."""
    rng = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name)
        for name, shape in (("table", (50, 16)), ("w", (16, 3)))
    ]
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["e"], "lookup"),
        helper.make_node("ReduceMean", ["e"], ["m"], "mean", axes=[1], keepdims=0),
        helper.make_node("MatMul", ["m", "w"], ["y"], "project"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])],
        weights,
    )
    onnx.save(helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)]), path)
    return path


def sample(batch: int, seed: int = 0) -> NDArray[np.float32]:
    """Items whose answers lie far apart: noise alone is averaged away by the net's pool."""
    offsets = np.random.default_rng(seed + 1000).standard_normal((batch, CHANNELS, 1, 1))
    return (0.5 * noise(batch, seed) + offsets).astype(np.float32)


def passed(folder: Path, *arguments: str) -> str:
    """What a command that must succeed printed."""
    done = tritongen(folder, *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two models and the repository that `tritongen build` made of them."""
    folder = tmp_path_factory.mktemp("gpu")
    convolutional(folder / "net.onnx")
    embedding(folder / "ids.onnx")
    for name, seed in (("calibration", 1), ("validation", 2)):
        np.savez(folder / f"{name}.npz", x=sample(64, seed))
    (folder / "tritongen.yaml").write_text(SPEC, encoding="utf-8")
    passed(folder, "build", "--effort", "quick", "--build-budget", "5")
    return folder


def model_of(built: Path, name: str) -> tuple[Path, dict[str, Any], Any]:
    """Folder, manifest and parsed config of one model."""
    folder = built / "model_repository" / name
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    return folder, manifest, parse((folder / "config.pbtxt").read_text(encoding="utf-8"))


class Server:
    """`tritongen serve --background` on a repository, until the context is left."""

    def __init__(self, folder: Path, repository: str = "model_repository") -> None:
        self.folder, self.repository = folder, repository

    def __enter__(self) -> Self:
        from tritonclient.grpc import InferenceServerClient

        said = passed(self.folder, "serve", self.repository, "--background", *ANY_PORTS)
        found = re.search(r"gRPC\s+grpc://(\S+)", said)
        assert found, said
        self.client = InferenceServerClient(found[1])
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()
        passed(self.folder, "stop", self.repository)

    def infer(self, model: str, inputs: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        from tritonclient.grpc import InferInput

        tensors = []
        for name, array in inputs.items():
            tensor = InferInput(name, list(array.shape), from_numpy(array.dtype).triton)
            tensor.set_data_from_numpy(array)
            tensors.append(tensor)
        answer: NDArray[Any] = self.client.infer(model, tensors).as_numpy("y")
        return answer


@pytest.fixture(scope="module")
def server(built: Path) -> Iterator[Server]:
    with Server(built) as running:
        yield running


def relative_l2(found: NDArray[Any], wanted: NDArray[Any]) -> float:
    return float(
        np.linalg.norm(found.astype(np.float64) - wanted) / np.linalg.norm(wanted.astype(np.float64))
    )


def test_the_repository_says_what_was_built(built: Path) -> None:
    folder, manifest, config = model_of(built, "net")
    (plan,) = manifest["plans"]
    assert (folder / "1" / plan["file"]).is_file()
    assert {"tensorrt", "cuda_driver", "gpu", "compute_capability"} <= set(plan["versions"])
    assert plan["versions"] == TensorRTEngine().versions()
    assert config.instance_group[0].count == manifest["instances"] == 2
    assert config.instance_group[0].kind == 1  # KIND_GPU
    assert list(config.instance_group[0].profile) == ["0", "1"]
    path = built / ".tritongen" / "net" / "selection.json"
    losers = {loser["candidate"] for loser in json.loads(path.read_text(encoding="utf-8"))["losers"]}
    assert any("int8" in name for name in {*losers, manifest["candidate"]["id"]})
    assert any("fp16" in name for name in {*losers, manifest["candidate"]["id"]})


def test_verify_loads_the_plans_and_finds_nothing(built: Path) -> None:
    report = json.loads(tritongen(built, "verify", "--json").stdout)
    assert report["findings"] == []


def test_integers_are_narrowed_from_warm_up_to_answer(built: Path, server: Server) -> None:
    folder, manifest, _ = model_of(built, "ids")
    assert manifest["inputs"][0]["dtype"] == "INT32"
    assert (folder / "warmup" / "input_0").stat().st_size == 4 * 4
    ids = np.random.default_rng(0).integers(3, 50, (4, 4))
    with OnnxRuntimeRunner(built / "ids.onnx") as exact:
        for batch in (1, 3, 4):
            found = server.infer("ids", {"ids": ids[:batch].astype(np.int32)})
            assert relative_l2(found, exact.infer({"ids": ids[:batch]})["y"]) < 2e-3


def test_answers_are_the_plans_own_for_every_batch_size_in_any_order(built: Path, server: Server) -> None:
    """Graphs, padding and profiles change nothing; kernels for other batch sizes only the rounding."""
    folder, manifest, _ = model_of(built, "net")
    inputs = sample(8, seed=5)
    with TensorRTRunner(folder / "1" / manifest["model_file"], cuda_graph=False) as runner:
        wanted = runner.infer({"x": inputs})["y"]
    with OnnxRuntimeRunner(built / "net.onnx") as exact:
        assert relative_l2(wanted, exact.infer({"x": inputs})["y"]) < 0.4
    rng = np.random.default_rng(0)
    for batch in [*range(1, 9), *rng.integers(1, 9, 60).tolist()]:
        start = int(rng.integers(0, 9 - batch))
        found = server.infer("net", {"x": inputs[start : start + batch]})
        assert found.shape == (batch, 10)
        assert relative_l2(found, wanted[start : start + batch]) < CLOSE, batch


def test_the_answers_are_those_of_the_trial(built: Path, server: Server) -> None:
    folder, _, _ = model_of(built, "net")
    with np.load(folder / "reference.npz") as stored:
        found = server.infer("net", {"x": stored["input/x"]})
        assert relative_l2(found, stored["output/y"]) < CLOSE


def test_requests_at_once_share_batches_and_each_gets_its_own_answer(built: Path, server: Server) -> None:
    inputs = sample(64, seed=6)
    wanted = np.concatenate([server.infer("net", {"x": inputs[i : i + 8]}) for i in range(0, 64, 8)])
    sizes = np.random.default_rng(1).integers(1, 4, 200)
    starts = np.random.default_rng(2).integers(0, 61, 200)

    def one(index: int) -> float:
        part = slice(int(starts[index]), int(starts[index] + sizes[index]))
        return relative_l2(server.infer("net", {"x": inputs[part]}), wanted[part])

    with ThreadPoolExecutor(16) as pool:
        assert max(pool.map(one, range(200))) < CLOSE
    (statistics,) = server.client.get_inference_statistics("net", as_json=True)["model_stats"]
    assert int(statistics["execution_count"]) < int(statistics["inference_count"])


def test_a_request_that_does_not_fit_fails_alone(server: Server) -> None:
    from tritonclient.utils import InferenceServerException

    with pytest.raises(InferenceServerException):
        server.infer("net", {"x": sample(9)})
    with pytest.raises(InferenceServerException):
        server.infer("net", {"x": sample(1)[:, :, :16]})
    with pytest.raises(InferenceServerException):
        server.infer("net", {"x": sample(1).astype(np.float64)})
    assert np.isfinite(server.infer("net", {"x": sample(2)})).all()


def test_the_load_test_passes(built: Path, server: Server) -> None:
    said = passed(built, "loadtest", "net", "--rate", "300", "--p99-ms", "50", "--duration", "15s")
    assert "PASS" in said


def test_a_load_test_sends_its_inputs_through_cuda_shared_memory(built: Path, server: Server) -> None:
    """Whether a promise holds is another test's matter: here every request has to be answered."""
    flags = ("--rate", "200", "--duration", "5s", "--shared-memory", "cuda")
    said = passed(built, "loadtest", "net", *flags, "--json", "report.json")
    report = json.loads((built / "report.json").read_text(encoding="utf-8"))
    assert report["answered"] == report["requests"] > 500, said


def test_layers_of_a_served_plan_are_told(built: Path) -> None:
    folder, manifest, _ = model_of(built, "net")
    plan = folder / "1" / manifest["model_file"]
    report = json.loads(passed(built, "inspect", str(plan), "--layers", "--profile", "1", "--json"))
    assert all(layer["name"] for layer in report["layers"])
    assert any(layer["weighted"] and layer["tactic"] and layer["time_ms"] for layer in report["layers"])


def test_a_plan_of_another_gpu_stays_beside_and_each_gpu_gets_its_own(built: Path, tmp_path: Path) -> None:
    """The first plan is said to be of another GPU, and `build` runs again."""
    for name in ("net.onnx", "calibration.npz", "validation.npz"):
        shutil.copy(built / name, tmp_path)
    (tmp_path / "tritongen.yaml").write_text(SPEC.partition("  ids:")[0], encoding="utf-8")
    shutil.copytree(built / "model_repository" / "net", tmp_path / "model_repository" / "net")
    path = tmp_path / "model_repository" / "net" / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    manifest["plans"][0]["versions"] |= {"compute_capability": "8.0", "gpu": "another"}
    path.write_text(json.dumps(manifest))
    passed(tmp_path, "build", "--effort", "quick", "--build-budget", "0.5", "--precision", "fp16")
    folder, manifest, config = model_of(tmp_path, "net")
    here = TensorRTEngine().versions()["compute_capability"]
    own = f"model.cc{here.replace('.', '')}.plan"
    assert dict(config.cc_model_filenames) == {"8.0": "model.cc80.plan", here: own}
    assert {path.name for path in (folder / "2").iterdir()} == {"model.cc80.plan", own}
    (folder / "2" / "model.cc80.plan").write_bytes(b"nothing that this GPU could load")
    with Server(tmp_path) as server:
        assert np.isfinite(server.infer("net", {"x": sample(3)})).all()


@pytest.mark.parametrize(
    ("damage", "expected"),
    [("other", "damaged, or no TensorRT plan|cannot load"), ("batch", "sizes or profiles")],
)
def test_a_server_that_cannot_load_a_plan_says_why(
    built: Path, tmp_path: Path, damage: str, expected: str
) -> None:
    repository = tmp_path / "model_repository"
    shutil.copytree(built / "model_repository" / "ids", repository / "ids")
    if damage == "other":
        (repository / "ids" / "1" / "model.plan").write_bytes(b"no plan" * 1000)
    else:
        config = repository / "ids" / "config.pbtxt"
        config.write_text(
            config.read_text(encoding="utf-8").replace("max_batch_size: 4", "max_batch_size: 64")
        )
    done = tritongen(tmp_path, "serve", "model_repository", "--background", *ANY_PORTS)
    assert done.returncode != 0
    assert re.search(expected, done.stderr), done.stderr
