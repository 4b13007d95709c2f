"""TensorRT on a real GPU: one command, `pytest -m gpu tests/gpu`; its last output is in bench/results/."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from tests.gpu.network import LARGEST, built, observed_ranges, profile, relative_error, sample
from tritongen.engines.onnxruntime.session import OnnxRuntimeRunner
from tritongen.engines.tensorrt import TensorRTEngine, api, building, inspection
from tritongen.engines.tensorrt.calibrator import entropy_calibrator
from tritongen.engines.tensorrt.recipes import implicit_recipe, int8_recipes
from tritongen.engines.tensorrt.runner import TensorRTRunner
from tritongen.errors import BuildError, DataError, ModelError
from tritongen.precision.int8 import quantize, write_ranges
from tritongen.spec import Precision

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("precision", ["fp32", "tf32", "fp16"])
def test_floating_point(engine: TensorRTEngine, model: Path, tmp_path: Path, precision: str) -> None:
    asked, limit = {
        "fp32": (Precision.FP32, 1e-5),
        "tf32": (Precision.FP32, 2e-3),
        "fp16": (Precision.FP16, 5e-3),
    }[precision]
    artifact = built(engine, model, tmp_path, asked, math=precision if precision != "fp16" else "tf32")
    told = artifact.details["precision"]
    assert told["asked"] == precision
    # TF32 is told by the tactics' names alone, and not every tactic has one.
    assert told["evidence"] == "PROVEN" or (precision, told["evidence"]) == ("tf32", "OPAQUE")
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


def test_the_timing_cache_is_kept_and_reused(
    engine: TensorRTEngine, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attach, attached = building._attach_cache, []

    def seen(*arguments: Any) -> Any:
        cache = attach(*arguments)
        attached.append(len(bytes(cache.serialize())))
        return cache

    monkeypatch.setattr(building, "_attach_cache", seen)
    built(engine, model, tmp_path, Precision.FP32)
    before = engine.timing_cache().stat().st_size
    again = built(engine, model, tmp_path, Precision.FP32)
    assert attached[-1] == before  # the builder has all that was stored
    assert engine.timing_cache().stat().st_size == before  # and nothing new had to be timed
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
