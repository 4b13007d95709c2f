"""The weakly typed generation (8.6, 10) on the stand-in of tests/standin: what the builder is really told.

The stand-in writes into its "plan" how it was asked to build; nothing is proved of what TensorRT makes of it.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest

from tests import models
from tests.standin.plans import plan_bytes
from tests.unit.test_repository_plans import H100, plan_to_write, written
from tritongen.engines.tensorrt import FILENAME, TensorRTEngine, api, building, cuda, progress
from tritongen.engines.tensorrt.options import FRESH
from tritongen.engines.tensorrt.profiles import Extent, profiles_per_batch_size, to_text
from tritongen.engines.tensorrt.progress import Rounds
from tritongen.engines.tensorrt.recipes import calibrator_recipe, implicit_recipe
from tritongen.errors import BuildError
from tritongen.precision.int8 import write_ranges, write_samples
from tritongen.repository.targets import embedded
from tritongen.repository.verify import Place, verify_model
from tritongen.runs.events import Event, discard
from tritongen.runs.records import Candidate, Options
from tritongen.spec import Precision

pytestmark = pytest.mark.usefixtures("standin")

PROFILE = {"x": Extent((1, 4), (2, 4), (8, 4))}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return models.save(models.linear(), tmp_path / "linear.onnx")


def built(model: Path, folder: Path, precision: Precision = Precision.FP16, **options: Any) -> dict[str, Any]:
    """What the stand-in wrote into the plan of such a candidate."""
    asked: Options = {"profiles": to_text([PROFILE]), **options}
    candidate = Candidate(id="c", engine="tensorrt", precision=precision, options=asked)
    TensorRTEngine(cache=folder / "cache").build(model, candidate, folder / "trial", discard)
    plan: dict[str, Any] = json.loads((folder / "trial" / FILENAME).read_bytes())
    return plan


@pytest.mark.parametrize(
    ("precision", "math", "flags"),
    [
        (Precision.FP32, "fp32", []),
        (Precision.FP32, "tf32", ["TF32"]),
        (Precision.FP16, None, ["FP16", "TF32"]),
        (Precision.INT8, None, ["FP16", "INT8", "TF32"]),
    ],
)
def test_each_precision_is_a_set_of_flags(
    model: Path, tmp_path: Path, precision: Precision, math: str | None, flags: list[str]
) -> None:
    plan = built(model, tmp_path, precision, **({"math": math} if math else {}))
    assert plan["flags"] == flags
    assert plan["profiles"] == [{"x": [[1, 4], [2, 4], [8, 4]]}]
    assert plan["settings"]["verbosity"] == "DETAILED"


def test_bf16_has_a_flag_of_its_own_and_strongly_typed_networks_have_none() -> None:
    flags = SimpleNamespace(TF32="TF32", FP16="FP16", BF16="BF16", INT8="INT8")

    def told(precision: Precision, *, strongly_typed: bool) -> list[str]:
        said: list[str] = []
        config = SimpleNamespace(set_flag=said.append, clear_flag=lambda flag: said.append(f"no {flag}"))
        api.set_precision(
            SimpleNamespace(BuilderFlag=flags), config, precision, tf32=False, strongly_typed=strongly_typed
        )
        return said

    assert told(Precision.BF16, strongly_typed=False) == ["no TF32", "BF16"]
    assert told(Precision.INT8, strongly_typed=True) == ["no TF32"]


@pytest.mark.parametrize(
    ("options", "place", "wanted"),
    [
        ({}, ("settings", "level"), 3),
        ({"optimization_level": 2}, ("settings", "level"), 2),
        ({"timing_iterations": 4}, ("settings", "timing_iterations"), 4),
        ({"aux_streams": 1}, ("settings", "aux_streams"), 1),
        ({}, ("settings", "pools"), {"WORKSPACE": 35 << 30}),  # half of what is free
        ({"workspace_mb": 64}, ("settings", "pools"), {"WORKSPACE": 64 << 20}),
        ({}, ("settings", "tactic_sources"), 1 << 3 | 1 << 4),
        ({"tactic_sources": "CUBLAS,CUDNN"}, ("settings", "tactic_sources"), 1 << 0 | 1 << 2),
        ({"sparsity": True}, ("flags",), ["FP16", "SPARSE_WEIGHTS", "TF32"]),
        ({"refit": True}, ("flags",), ["FP16", "REFIT", "TF32"]),
        ({"version_compatible": True}, ("flags",), ["FP16", "TF32", "VERSION_COMPATIBLE"]),
        ({"hardware_compatible": True}, ("settings", "hardware"), "AMPERE_PLUS"),
        ({"tiling": "FULL"}, ("settings", "tiling"), "full"),
        ({"build_route": "-route=1"}, ("settings", "route"), "-route=1"),
    ],
    ids=str,
)
def test_each_option_reaches_the_builder(
    model: Path, tmp_path: Path, options: dict[str, Any], place: Any, wanted: Any
) -> None:
    import tensorrt

    with pytest.MonkeyPatch.context() as patch:  # 10.8's and 11.1's names, which 8.6 lacks
        patch.setattr(tensorrt, "TilingOptimizationLevel", SimpleNamespace(FULL="full"), raising=False)
        patch.setattr(tensorrt.IBuilderConfig, "tiling_optimization_level", "none", raising=False)
        patch.setattr(tensorrt.IBuilderConfig, "build_route", "", raising=False)
        found = built(model, tmp_path, **options)
    for key in place:
        found = found[key]
    assert found == wanted


def test_implicit_int8_gives_every_tensor_its_range(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "ranged" / "model.onnx"
    (y,) = [value.name for value in onnx.load(model).graph.output]
    write_ranges(model, {"x": (-1.0, 2.0), y: (0.0, 0.5)}, implicit_recipe(), out)
    plan = built(out, tmp_path, Precision.INT8)
    assert plan["ranges"] == {"x": [-2.0, 2.0], y: [-0.5, 0.5]}


def test_ranges_that_belong_to_no_tensor_are_an_error(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "ranged" / "model.onnx"
    write_ranges(model, {"renamed": (-1.0, 2.0)}, implicit_recipe(), out)
    with pytest.raises(BuildError, match="has one of the ranges"):
        built(out, tmp_path, Precision.INT8)


def test_tensorrts_own_calibrator_is_fed_once_at_the_profiles_usual_shape(
    model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "sampled" / "model.onnx"
    calls = [{"x": np.full((2, 4), i, np.float32)} for i in range(3)]
    write_samples(model, calls, calibrator_recipe(), out, cache=tmp_path / "calibrator.txt")
    first = built(out, tmp_path, Precision.INT8)
    assert first["calibrated"] == 3
    assert first["settings"]["calibration_profile"] == first["profiles"][0]
    assert built(out, tmp_path, Precision.INT8)["calibrated"] == "found by the stand-in"


@pytest.mark.parametrize(
    ("precision", "options"),
    [(Precision.FP16, {}), (Precision.INT8, {}), (Precision.FP32, {"math": "tf32"})],
    ids=["fp16", "int8", "tf32"],
)
def test_a_precision_that_is_absent_fails_its_candidate(
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    precision: Precision,
    options: dict[str, Any],
) -> None:
    import tensorrt

    monkeypatch.setattr(tensorrt, "TOLD", "fp32")
    asked = options.get("math", str(precision))
    with pytest.raises(BuildError, match=f"{asked} was asked for and is not in the plan") as caught:
        built(model, tmp_path, precision, **options)
    assert "those with weights run in fp32" in str(caught.value.found)
    assert built(model, tmp_path, Precision.FP32, math="fp32")["flags"] == []


def test_the_timing_cache_is_read_and_added_to(model: Path, tmp_path: Path) -> None:
    other = models.save(models.convolutional(), tmp_path / "other.onnx")
    (images,) = onnx.load(other).graph.input
    shape = (1, *(dim.dim_value or 8 for dim in images.type.tensor_type.shape.dim[1:]))
    profiles = to_text([{images.name: Extent(shape, shape, shape)}])
    first = built(model, tmp_path)
    (file,) = (tmp_path / "cache").glob("*.timing")
    entries = set(json.loads(file.read_bytes()))
    assert first["served"] == 0
    assert built(other, tmp_path, profiles=profiles)["served"] == 0
    assert entries < set(json.loads(file.read_bytes()))  # the first model's are still there
    assert built(model, tmp_path)["served"] == len(entries)
    before = file.read_bytes()
    fresh: dict[str, Any] = {FRESH: 2}
    assert built(model, tmp_path, **fresh)["served"] == 0
    assert file.read_bytes() == before


def test_builds_that_end_at_once_lose_nothing_of_the_timing_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tensorrt

    merge = tensorrt._TimingCache.combine

    def slowly(*arguments: Any) -> Any:
        time.sleep(0.02)
        return merge(*arguments)

    monkeypatch.setattr(tensorrt._TimingCache, "combine", slowly)
    path = tmp_path / "gpu.timing"
    path.write_bytes(b'["old"]')

    def store(name: str) -> None:
        config = tensorrt.IBuilderConfig()
        config.cache.entries = {name}
        building._store_cache(config, path)

    threads = [threading.Thread(target=store, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert json.loads(path.read_bytes()) == ["a", "b", "c", "d", "old"]


def test_a_timing_cache_belongs_to_gpu_capability_driver_and_version(
    standin: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tensorrt

    engine = TensorRTEngine(cache=tmp_path)
    monkeypatch.setattr(cuda, "driver_release", lambda: "580.1")
    assert engine.versions() == {
        "tensorrt": "8.6.0", "cuda_driver": "13.0", "gpu": "stand-in", "compute_capability": "9.0",
        "driver": "580.1",
    }  # fmt: skip
    names = [engine.timing_cache()]
    monkeypatch.setattr(cuda, "driver_release", lambda: "580.2")
    names.append(engine.timing_cache())
    monkeypatch.setattr(standin, "cudaDriverGetVersion", lambda: (standin.OK, 13010))
    names.append(engine.timing_cache())
    monkeypatch.setattr(standin, "CAPABILITY", (8, 9))
    names.append(engine.timing_cache())
    monkeypatch.setattr(tensorrt, "__version__", "8.6.1")
    names.append(engine.timing_cache())
    properties = SimpleNamespace(name=b"other", major=8, minor=9)
    monkeypatch.setattr(standin, "cudaGetDeviceProperties", lambda _: (standin.OK, properties))
    names.append(engine.timing_cache())
    assert len(set(names)) == len(names)
    monkeypatch.setattr(cuda, "driver_release", lambda: None)  # a system that does not tell
    assert engine.timing_cache().name == "other-8.9-13.1-8.6.1.timing"


@pytest.mark.parametrize(("capability", "maths"), [((8, 0), ["fp32", "tf32"]), ((7, 5), ["fp32"])])
def test_tf32_is_tried_where_the_gpu_has_it(
    standin: Any, monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], maths: list[str]
) -> None:
    monkeypatch.setattr(standin, "CAPABILITY", capability)
    found: Sequence[Options] = TensorRTEngine().build_options(Precision.FP32, None)  # type: ignore[arg-type]
    assert [one["math"] for one in found] == maths


def test_a_long_build_tells_what_it_times(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tensorrt

    def told() -> list[str]:
        seen: list[Event] = []
        building.build_plan(tensorrt, model, building.Settings(profiles=[PROFILE]), events=seen.append)
        return [event.message for event in seen if "round" in event.message]

    assert told() == []  # too short a build to say anything
    monkeypatch.setattr(progress, "_ROUNDS_INTERVAL_S", 0.0)
    first, *_ = found = told()
    assert first == "TensorRT: timing tactics, round 1: Gemm_0 (Cask[0x80000009])"
    assert len(found) == len(onnx.load(model).graph.node)


def test_rounds_are_told_every_few_seconds_and_shortened() -> None:
    now, seen = [0.0], list[Event]()
    rounds = Rounds(seen.append, clock=lambda: now[0])
    for second in range(2000):
        now[0] = second / 100
        rounds.one(f"--------------- Timing Runner: {'x' * 300} (CaskConvolution[0x80000009])")
    assert 4 <= len(seen) <= 7
    assert seen[0].message == f"TensorRT: timing tactics, round 301: {'x' * 70}…"


def test_a_version_with_a_progress_monitor_is_not_counted_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    import tensorrt

    monkeypatch.setattr(progress, "_ROUNDS_INTERVAL_S", 0.0)
    seen: list[Event] = []
    for names in ({}, {"IProgressMonitor": object}):
        trt = SimpleNamespace(**{**vars(tensorrt), **names})
        logger = building.make_logger(trt, building.Log(), seen.append)
        logger.log(tensorrt.ILogger.Severity.VERBOSE, "--------------- Timing Runner: a")
    assert len(seen) == 1


def test_verify_holds_the_plans_own_tensors_against_the_config(model: Path, tmp_path: Path) -> None:
    other = models.save(models.linear(outputs=5), tmp_path / "other.onnx")
    profiles = profiles_per_batch_size(plan_to_write(model, tmp_path / "runs", H100).inputs, (1, 4))
    found = {}
    for name, inside in (("own", model), ("other", other)):
        asked = plan_to_write(model, tmp_path / name, H100, plan=plan_bytes(inside, profiles))
        folder = written(tmp_path / name / "r", asked)
        found[name] = [one for one in verify_model(folder, Place(embedded())) if one.check == "tensors"]
    assert found["own"] == []
    (wrong,) = found["other"]
    assert wrong.severity == "error"
    assert wrong.message == "output 'y' has dims [3] in config.pbtxt and [5] in the model"
