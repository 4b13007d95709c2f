"""TensorRT on a real GPU: one command, `pytest -m gpu tests/gpu`; its last output is in bench/results/."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from tritongen.engines.onnxruntime.session import OnnxRuntimeRunner
from tritongen.engines.tensorrt import TensorRTEngine, api, building, inspection
from tritongen.engines.tensorrt.calibrator import entropy_calibrator
from tritongen.engines.tensorrt.profiles import Extent, Profile
from tritongen.engines.tensorrt.recipes import implicit_recipe, int8_recipes
from tritongen.engines.tensorrt.runner import TensorRTRunner
from tritongen.errors import BuildError, DataError, ModelError
from tritongen.precision.int8 import quantize, tensors_to_calibrate, write_ranges
from tritongen.runs.events import discard
from tritongen.runs.records import Artifact, Candidate, Options
from tritongen.spec import Precision

pytestmark = pytest.mark.gpu

CHANNELS, SIZE, LARGEST = 64, 32, 8


def convolutional(path: Path) -> Path:
    """x [n, 64, 32, 32] → y [n, 10]: two residual blocks, a pool and a linear layer."""
    rng = np.random.default_rng(0)
    weights: list[onnx.TensorProto] = []

    def tensor(name: str, *shape: int) -> str:
        values = rng.normal(scale=float(np.sqrt(2 / np.prod(shape[1:]))), size=shape).astype(np.float32)
        weights.append(numpy_helper.from_array(values, name))
        return name

    nodes, x = [], "x"
    for i in range(2):
        nodes += [
            helper.make_node("Conv", [x, tensor(f"w{i}a", CHANNELS, CHANNELS, 3, 3)], [f"a{i}"], f"conv{i}a",
                             pads=[1] * 4),
            helper.make_node("Relu", [f"a{i}"], [f"ra{i}"], f"relu{i}a"),
            helper.make_node("Conv", [f"ra{i}", tensor(f"w{i}b", CHANNELS, CHANNELS, 3, 3)], [f"b{i}"],
                             f"conv{i}b", pads=[1] * 4),
            helper.make_node("Add", [f"b{i}", x], [f"s{i}"], f"add{i}"),
            helper.make_node("Relu", [f"s{i}"], [f"o{i}"], f"relu{i}"),
        ]  # fmt: skip
        x = f"o{i}"
    nodes += [
        helper.make_node("GlobalAveragePool", [x], ["p"], "pool"),
        helper.make_node("Flatten", ["p"], ["f"], "flat"),
        helper.make_node("Gemm", ["f", tensor("wf", 10, CHANNELS)], ["y"], "linear", transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", CHANNELS, SIZE, SIZE])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 10])],
        weights,
    )
    onnx.save(helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)]), path)
    return path


def profile(low: int = 1, usual: int = LARGEST, high: int = LARGEST) -> Profile:
    shape = (CHANNELS, SIZE, SIZE)
    return {"x": Extent((low, *shape), (usual, *shape), (high, *shape))}


def sample(batch: int, seed: int = 0) -> NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((batch, CHANNELS, SIZE, SIZE)).astype(np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tensorrt")


@pytest.fixture(scope="module")
def model(folder: Path) -> Path:
    return convolutional(folder / "net.onnx")


@pytest.fixture(scope="module")
def engine(folder: Path) -> TensorRTEngine:
    return TensorRTEngine(cache=folder / "cache")


def observed_ranges(model: Path, implicit: bool) -> dict[str, tuple[float, float]]:
    recipe = implicit_recipe() if implicit else int8_recipes()[0]
    names = tensors_to_calibrate(model, recipe)
    proto = onnx.load(model)
    known = {value.name for value in proto.graph.input}
    proto.graph.output.extend(onnx.ValueInfoProto(name=n) for n in names if n not in known and n != "y")
    probe = model.with_name("probe.onnx")
    onnx.save(proto, probe)
    with OnnxRuntimeRunner(probe) as runner:
        values = {**runner.infer({"x": sample(16, seed=1)}), "x": sample(16, seed=1)}
    return {name: (float(values[name].min()), float(values[name].max())) for name in names}


def built(
    engine: TensorRTEngine, model: Path, folder: Path, precision: Precision, **options: bool | int | str
) -> Artifact:
    shape = f"{CHANNELS}x{SIZE}x{SIZE}"
    chosen: Options = {"profiles": f"x=1x{shape}:{LARGEST}x{shape}:{LARGEST}x{shape}", **options}
    candidate = Candidate(id="c", engine="tensorrt", precision=precision, options=chosen)
    return engine.build(model, candidate, folder, discard)


def relative_error(model: Path, folder: Path, artifact: Artifact, engine: TensorRTEngine) -> float:
    with OnnxRuntimeRunner(model) as exact, engine.open(folder, artifact, {}) as runner:
        wanted = exact.infer({"x": sample(5)})["y"].astype(np.float64)
        found = runner.infer({"x": sample(5)})["y"].astype(np.float64)
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


@pytest.mark.parametrize("precision", ["fp32", "tf32", "fp16"])
def test_floating_point(engine: TensorRTEngine, model: Path, tmp_path: Path, precision: str) -> None:
    asked, limit = {
        "fp32": (Precision.FP32, 1e-5),
        "tf32": (Precision.FP32, 2e-3),
        "fp16": (Precision.FP16, 5e-3),
    }[precision]
    artifact = built(engine, model, tmp_path, asked, math=precision if precision != "fp16" else "tf32")
    assert artifact.details["precision"]["evidence"] == "PROVEN"
    assert relative_error(model, tmp_path, artifact, engine) < limit


def test_int8_from_q_dq_nodes(engine: TensorRTEngine, model: Path, tmp_path: Path) -> None:
    rewritten = tmp_path / "q.onnx"
    quantize(model, observed_ranges(model, implicit=False), int8_recipes()[0], rewritten)
    artifact = built(engine, rewritten, tmp_path, Precision.INT8)
    assert artifact.details["precision"]["evidence"] == "PROVEN"
    assert 1e-4 < relative_error(model, tmp_path, artifact, engine) < 0.1


def test_int8_from_ranges(engine: TensorRTEngine, model: Path, tmp_path: Path) -> None:
    rewritten = tmp_path / "plain.onnx"
    write_ranges(model, observed_ranges(model, implicit=True), implicit_recipe(), rewritten)
    artifact = built(engine, rewritten, tmp_path, Precision.INT8)
    assert artifact.details["precision"]["evidence"] == "PROVEN"
    assert 1e-4 < relative_error(model, tmp_path, artifact, engine) < 0.1


def test_int8_from_tensorrts_own_calibrator_and_its_cache(model: Path, tmp_path: Path) -> None:
    trt, cache = api.load(), tmp_path / "calibration.txt"
    for data in (iter([{"x": sample(LARGEST, seed=i)} for i in range(3)]), iter([])):
        settings = building.Settings(
            precision=Precision.INT8,
            profiles=[profile()],
            calibrator=entropy_calibrator(trt, data, LARGEST, cache),
        )
        plan = building.build_plan(trt, model, settings)
        (tmp_path / "model.plan").write_bytes(plan)
    assert b"x:" in cache.read_bytes()
    with TensorRTRunner(tmp_path / "model.plan") as runner:
        layers = inspection.layers_of(trt, runner.engine)
    assert inspection.prove(layers, Precision.INT8).evidence == "PROVEN"


def test_profiles_are_chosen_by_shape_and_graphs_compute_the_same(model: Path, tmp_path: Path) -> None:
    trt = api.load()
    settings = building.Settings(profiles=[profile(1, 1, 1), profile(2, 8, 8)])
    (tmp_path / "model.plan").write_bytes(building.build_plan(trt, model, settings))
    for graph in (True, False):
        with TensorRTRunner(tmp_path / "model.plan", cuda_graph=graph) as runner, \
             OnnxRuntimeRunner(model) as exact:  # fmt: skip
            for batch in (1, 8, 3):
                runner.prepare({"x": sample(batch)})
                assert all(runner.step() > 0 for _ in range(3))
                found = runner.infer({"x": sample(batch)})["y"].astype(np.float64)
                wanted = exact.infer({"x": sample(batch)})["y"].astype(np.float64)
                np.testing.assert_allclose(found, wanted, rtol=0, atol=0.05)
            with pytest.raises(BuildError, match="no optimization profile"):
                runner.infer({"x": sample(9)})
            with pytest.raises(DataError, match="wrong type"):
                runner.infer({"x": sample(1).astype(np.float64)})
            assert runner.device_bytes is not None


def test_the_timing_cache_is_kept_and_reused(engine: TensorRTEngine, model: Path, tmp_path: Path) -> None:
    built(engine, model, tmp_path, Precision.FP32)
    before = engine.timing_cache().stat().st_size
    again = built(engine, model, tmp_path, Precision.FP32)
    assert engine.timing_cache().stat().st_size == before  # nothing new had to be timed
    assert {"tensorrt", "cuda_driver", "gpu", "compute_capability"} <= set(again.versions)


def test_layers_carry_times_tactics_and_precisions(model: Path, tmp_path: Path) -> None:
    trt = api.load()
    plan = building.build_plan(trt, model, building.Settings(precision=Precision.FP16, profiles=[profile()]))
    (tmp_path / "model.plan").write_bytes(plan)
    with TensorRTRunner(tmp_path / "model.plan", cuda_graph=False) as runner:
        runner.prepare({"x": sample(8)})
        layers = inspection.profile_layers(trt, runner)
    assert any(layer.weighted and layer.precision == "fp16" and layer.tactic for layer in layers)
    assert sum(layer.time_ms or 0 for layer in layers) > 0


def test_layers_held_in_fp32_stay_there(model: Path, tmp_path: Path) -> None:
    trt = api.load()
    settings = building.Settings(
        precision=Precision.FP16, profiles=[profile()], keep_fp32=["conv0a", "conv0b"]
    )
    (tmp_path / "model.plan").write_bytes(building.build_plan(trt, model, settings))
    with TensorRTRunner(tmp_path / "model.plan") as runner:
        layers = inspection.layers_of(trt, runner.engine)
    weighted = {layer.name: layer.precision for layer in layers if layer.weighted}
    assert all(p == "fp32" for name, p in weighted.items() if "conv0" in name), weighted


def test_what_the_parser_refuses_is_named(model: Path, tmp_path: Path) -> None:
    proto = onnx.load(model)
    proto.graph.node[1].op_type = "Foo"
    onnx.save(proto, tmp_path / "bad.onnx")
    with pytest.raises(ModelError, match="Foo"):
        building.build_plan(api.load(), tmp_path / "bad.onnx", building.Settings(profiles=[profile()]))


def test_a_file_that_is_no_plan_is_explained(tmp_path: Path) -> None:
    (tmp_path / "model.plan").write_bytes(b"not a plan" * 100)
    with pytest.raises(ModelError, match=r"model\.plan"), TensorRTRunner(tmp_path / "model.plan"):
        pass


def tritongen(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    root = str(Path(__file__).parents[2])
    return subprocess.run(
        [sys.executable, "-m", "tritongen", *arguments],
        capture_output=True, encoding="utf-8", check=False, cwd=folder, timeout=550,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])},
    )  # fmt: skip
