"""Tuning on a real GPU: builder options, second builds, mixtures, plugins, k contexts, a watched GPU."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from tests import models
from tests.gpu.network import (
    CHANNELS,
    LARGEST,
    SIZE,
    built,
    convolutional,
    observed_ranges,
    profile,
    relative_error,
    sample,
)
from tritongen.autotune.gpu_watch import noise_in, watch_of
from tritongen.autotune.latency import EFFORTS, latency_curve
from tritongen.engines.tensorrt import TensorRTEngine, api, building, inspection
from tritongen.engines.tensorrt.options import FRESH
from tritongen.engines.tensorrt.recipes import int8_recipes
from tritongen.engines.tensorrt.runner import TensorRTRunner
from tritongen.errors import BuildError, ModelError
from tritongen.precision.int8 import quantize, write_samples
from tritongen.precision.recipe import Int8Recipe
from tritongen.runs.events import Event, discard
from tritongen.runs.records import Candidate, Outcome
from tritongen.shapes import ResolvedInput
from tritongen.spec import AccuracySpec, DataSpec, ModelSpec, Precision, TensorRTSpec
from tritongen.tensors import TensorSpec, from_name

pytestmark = pytest.mark.gpu

IMAGE = ResolvedInput(
    TensorSpec("x", from_name("float32"), ("n", CHANNELS, SIZE, SIZE)),
    (CHANNELS, SIZE, SIZE),
    (CHANNELS, SIZE, SIZE),
    (CHANNELS, SIZE, SIZE),
)


@pytest.mark.parametrize(
    "options",
    [
        {"refit": True},
        {"sparsity": True},
        {"hardware_compatible": True},
        {"version_compatible": True},
        {"optimization_level": 2, "timing_iterations": 4, "aux_streams": 0, "workspace_mb": 256},
    ],
    ids="-".join,
)
def test_what_the_spec_may_say_of_the_builder(
    engine: TensorRTEngine, model: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    api.require(api.load(), options)
    try:
        artifact = built(engine, model, tmp_path, Precision.FP16, **options)
    except BuildError as error:
        if "libnvinfer_lean" in (error.found or ""):
            pytest.skip("a version-compatible plan holds the lean runtime, which is a package of its own")
        raise
    assert artifact.details.get("version_compatible", False) == options.get("version_compatible", False)
    assert relative_error(model, tmp_path, artifact, engine) < 5e-3


def test_what_this_version_lacks_is_said(engine: TensorRTEngine) -> None:
    has = api.features(api.load())
    spec = ModelSpec(path=Path("m.onnx"), tensorrt=TensorRTSpec(tiling="FAST", build_route="-x=1"))
    if has.tiling and has.build_routes:
        engine.configured(spec, "normal")
        return
    with pytest.raises(Exception, match=r"does not have tensorrt\.(tiling|build_route)"):
        engine.configured(spec, "normal")


def test_a_fresh_build_leaves_the_timing_cache_alone(
    engine: TensorRTEngine, model: Path, tmp_path: Path
) -> None:
    built(engine, model, tmp_path, Precision.FP16)
    before = engine.timing_cache().read_bytes()
    artifact = built(engine, model, tmp_path, Precision.FP16, **{FRESH: 2})
    assert engine.timing_cache().read_bytes() == before
    assert relative_error(model, tmp_path, artifact, engine) < 5e-3


def test_every_variation_of_the_leader_builds_and_computes_the_same(
    engine: TensorRTEngine, model: Path, tmp_path: Path
) -> None:
    thorough = engine.configured(ModelSpec(path=model), "thorough").with_shapes([IMAGE], LARGEST)
    (options,) = thorough.build_options(Precision.FP16, None)  # type: ignore[arg-type]
    leader = Candidate(id="c", engine="tensorrt", precision=Precision.FP16, options=options)
    names = []
    for name, change in thorough.variations(leader):
        (tmp_path / name).mkdir()
        candidate = leader.model_copy(update={"id": name, "options": {**options, **change}})
        artifact = thorough.build(model, candidate, tmp_path / name, discard)
        assert relative_error(model, tmp_path / name, artifact, engine) < 5e-3
        names.append(name)
    assert {"level5", "timing8", "aux0", "one-profile", "profile-per-size"} <= set(names)


def test_held_nodes_do_not_run_in_int8(engine: TensorRTEngine, model: Path, tmp_path: Path) -> None:
    """Mixed precision, explicit: what has no Q/DQ nodes stays in FP16, the rest runs in INT8."""
    rewritten = tmp_path / "q.onnx"
    ranges = observed_ranges(model, implicit=False)
    quantize(model, ranges, int8_recipes()[0], rewritten, held=["conv0a", "conv0b", "add0"])
    artifact = built(engine, rewritten, tmp_path, Precision.INT8)
    assert artifact.details["precision"]["evidence"] == "PROVEN"
    with TensorRTRunner(tmp_path / artifact.file) as runner:
        layers = inspection.layers_of(api.load(), runner.engine)
    weighted = {layer.name: layer.precision for layer in layers if layer.weighted}
    assert any("conv1" in name and kind == "int8" for name, kind in weighted.items()), weighted
    assert all(kind != "int8" for name, kind in weighted.items() if "conv0" in name), weighted


def test_the_fewest_blocks_are_held_until_the_gate_holds_on_the_gpu(tmp_path: Path) -> None:
    """The whole step of a build: INT8 is rejected, a mixture is found, built, and judged by its plan."""
    from tritongen.autotune import trials
    from tritongen.autotune.budget import Budget
    from tritongen.autotune.candidates import search_space
    from tritongen.autotune.follow_ups import mixtures
    from tritongen.autotune.jobs import prepared_graph, resolved_inputs
    from tritongen.autotune.judging import Goal
    from tritongen.autotune.machine import current_machine
    from tritongen.autotune.selection import selectable
    from tritongen.autotune.stages import Setting, prepare_model
    from tritongen.runs.store import RunDirectory

    rng = np.random.default_rng(1)
    for name in ("calibration", "validation"):
        np.savez(tmp_path / f"{name}.npz", x=rng.standard_normal((48, 512)).astype(np.float32))
    spec = ModelSpec(
        path=models.save(models.hostile_to_int8(), tmp_path / "m.onnx"),
        max_batch_size=8, accuracy=AccuracySpec(metric="relative_l2"),
        data=DataSpec(
            calibration=str(tmp_path / "calibration.npz"), validation=str(tmp_path / "validation.npz")
        ),
    )  # fmt: skip
    setting = Setting("m", spec, RunDirectory(tmp_path / "run"), current_machine(), discard, "quick")
    preparation = prepare_model(setting)
    graph = prepared_graph(spec, preparation)
    engine = TensorRTEngine().configured(spec, "quick").with_shapes(resolved_inputs(graph, preparation), 8)
    space = search_space(engine, graph, calibrated=True)
    explicit = [one for one in space.candidates if "residual-mse" in one.id]
    search = trials.Search(setting, engine, graph, preparation, Budget())
    done = trials.run_trials(search, [space.candidates[0], *explicit]).trials
    assert [one.outcome for one in done] == [Outcome.PASSED, Outcome.REJECTED], [one.reason for one in done]
    snail = done[0].curve[-1].model_copy(update={"throughput": 1.0, "batch_size": 8})
    slow = [done[0].model_copy(update={"curve": (snail,)}), done[1]]
    found = mixtures(search, slow, Goal.parse("throughput"))
    assert found.trials, found.notes
    assert selectable(found.trials[-1]), [one.reason for one in found.trials]
    assert found.trials[-1].candidate.held


def gelu(path: Path) -> Path:
    """x [n, 8, 1, 1] → y by an operator that only TensorRT's plugin library has."""
    node = helper.make_node(
        "CustomGeluPluginDynamic", ["x"], ["y"], "gelu", plugin_version="1", plugin_namespace="", type_id=0
    )
    made = models.model([node], [models.value("x", ["n", 8, 1, 1])], [models.value("y", ["n", 8, 1, 1])])
    onnx.save(made, path)
    return path


def plugin_library() -> Path:
    import tensorrt

    places = [Path(tensorrt.__file__).parent, Path(tensorrt.__file__).parent.parent / "tensorrt_libs"]
    found = [lib for place in places for lib in sorted(place.glob("libnvinfer_plugin.so*"))]
    if not found:
        pytest.skip("the plugin library is not beside the tensorrt package")
    return found[0]


def test_a_plugin_goes_from_the_build_to_the_served_folder(engine: TensorRTEngine, tmp_path: Path) -> None:
    library = plugin_library()
    options = {"profiles": "x=1x8x1x1:4x8x1x1:4x8x1x1", "plugins": str(library)}
    candidate = Candidate(id="c", engine="tensorrt", precision=Precision.FP32, options=options)
    artifact = engine.build(gelu(tmp_path / "gelu.onnx"), candidate, tmp_path / "out", discard)
    assert artifact.extra_files == (library.name,)
    assert (tmp_path / "out" / library.name).is_file()
    x = np.linspace(-3, 3, 16, dtype=np.float32).reshape(2, 8, 1, 1)
    with engine.open(tmp_path / "out", artifact, {}) as runner:
        found = runner.infer({"x": x})["y"]
    wanted = 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    np.testing.assert_allclose(found.astype(np.float32), wanted, atol=2e-3)


def test_an_operator_that_nobody_has_is_still_refused(tmp_path: Path) -> None:
    proto = onnx.load(gelu(tmp_path / "gelu.onnx"))
    proto.graph.node[0].op_type = "NobodyHasThis"
    onnx.save(proto, tmp_path / "bad.onnx")
    settings = building.Settings(plugins=[plugin_library()])
    with pytest.raises((ModelError, BuildError), match="NobodyHasThis"):
        building.build_plan(api.load(), tmp_path / "bad.onnx", settings)


def test_k_contexts_at_once_are_measured_watched_and_weighed(
    engine: TensorRTEngine, model: Path, tmp_path: Path
) -> None:
    thorough = replace(engine, thorough=True)
    artifact = built(engine, model, tmp_path, Precision.FP16)
    told: list[Event] = []
    curve = latency_curve(
        thorough, tmp_path, artifact,
        inputs=lambda size: {"x": sample(size)}, sizes=(1, LARGEST),
        runtimes=thorough.runtimes(None, 1),  # type: ignore[arg-type]
        events=told.append, effort=EFFORTS["normal"],
    )  # fmt: skip
    assert [(p.instances, p.batch_size) for p in curve.points] == [
        (k, b) for k in (1, 2, 4, 1) for b in (1, LARGEST)
    ]
    assert curve.memory_bytes is not None
    assert curve.memory_bytes > 0
    pytest.importorskip("pynvml")
    for one in curve.points:
        assert one.gpu is not None, "NVML said nothing"
        assert (one.gpu.clock_mhz or 0) > 100
        assert (one.gpu.temperature_c or 0) > 10
        assert (one.gpu.memory_used_bytes or 0) > 0
        print(one.instances, one.batch_size, f"{one.median_ms:.4f} ms", one.repeats, one.noisy, one.gpu)  # noqa: T201


def test_the_watch_knows_the_gpu_of_a_runner(model: Path, tmp_path: Path) -> None:
    pytest.importorskip("pynvml")
    plan = building.build_plan(api.load(), model, building.Settings(profiles=[profile()]))
    (tmp_path / "model.plan").write_bytes(plan)
    with TensorRTRunner(tmp_path / "model.plan") as runner:
        runner.prepare({"x": sample(8)})
        watch = watch_of(runner)
        assert watch is not None, f"no NVML handle for {runner.gpu}"
        with watch.watching() as conditions:
            for _ in range(2000):
                runner.step()
        seen = conditions()
    assert seen.clock_mhz is not None
    print(seen, noise_in(seen))  # noqa: T201


def test_a_build_within_a_budget_names_what_was_not_tried(tmp_path: Path) -> None:
    from tests.gpu.test_tensorrt import tritongen

    convolutional(tmp_path / "net.onnx")
    for name, seed in (("calibration", 1), ("validation", 2)):
        np.savez(tmp_path / f"{name}.npz", x=sample(32, seed))
    made = tritongen(
        tmp_path, "build", "net.onnx", "--engine", "tensorrt", "--max-batch-size", "8", "--effort", "quick",
        "--build-budget", "0.4", "--tensorrt", "optimization_level=2",
        "--calibration-data", "calibration.npz", "--validation-data", "validation.npz",
    )  # fmt: skip
    assert made.returncode == 0, made.stdout + made.stderr
    assert "not tried: " in made.stdout + made.stderr
    assert "build budget of 0.4 min" in made.stdout + made.stderr
    assert (tmp_path / "model_repository" / "net" / "1" / "model.plan").exists()


def test_bf16_and_fp8_are_offered_only_where_version_and_gpu_have_them(engine: TensorRTEngine) -> None:
    has, offered = api.features(api.load()), set(map(str, engine.precisions()))
    assert {"fp32", "fp16", "int8"} <= offered
    assert ("bf16" in offered, "fp8" in offered) <= (has.bf16, has.fp8)
    assert len(engine.devices()) >= 1


@pytest.mark.parametrize("precision", [Precision.BF16, Precision.FP8])
def test_bf16_and_fp8_pass_where_they_are_offered(
    engine: TensorRTEngine, tmp_path: Path, precision: Precision
) -> None:
    """The whole way, as the graph's rewriting belongs to it."""
    from tests.gpu.test_tensorrt import tritongen

    if precision not in engine.precisions():
        pytest.skip(f"this TensorRT or GPU has no {precision}")
    convolutional(tmp_path / "net.onnx")
    for name, seed in (("calibration", 1), ("validation", 2)):
        np.savez(tmp_path / f"{name}.npz", x=sample(32, seed))
    made = tritongen(
        tmp_path, "build", "net.onnx", "--engine", "tensorrt", "--precision", str(precision),
        "--max-batch-size", "8", "--effort", "quick",
        "--calibration-data", "calibration.npz", "--validation-data", "validation.npz",
        "--metric", "relative_l2", "--accuracy-limit", "40",
    )  # fmt: skip
    assert made.returncode == 0, made.stdout + made.stderr
    trials = [json.loads(path.read_text(encoding="utf-8")) for path in tmp_path.rglob("trial.json")]
    tried = [trial for trial in trials if trial["candidate"]["precision"] == precision]
    assert [trial["outcome"] for trial in tried] == [Outcome.PASSED], [trial["reason"] for trial in tried]
    assert tried[0]["artifact"]["details"]["precision"]["evidence"] in ("PROVEN", "OPAQUE")


def test_tensorrts_own_calibrator_is_a_candidate_and_its_cache_is_kept(
    engine: TensorRTEngine, model: Path, tmp_path: Path
) -> None:
    thorough = replace(engine, thorough=True)
    recipe = next(r for r in thorough.recipes(Precision.INT8) if r.name == "calibrator")
    assert "calibrator" not in [r.name for r in engine.recipes(Precision.INT8)]
    rewritten, cache = tmp_path / "plain.onnx", tmp_path / "calibrator-1.txt"
    calls = [{"x": sample(LARGEST, seed=i)} for i in range(4)]
    assert isinstance(recipe, Int8Recipe)
    write_samples(model, calls, recipe, rewritten, cache=cache)
    artifact = built(engine, rewritten, tmp_path, Precision.INT8)
    assert artifact.details["precision"]["evidence"] == "PROVEN"
    assert 1e-4 < relative_error(model, tmp_path, artifact, engine) < 0.1
    (kept,) = tmp_path.glob("calibrator-1-*.txt")
    assert b"x:" in kept.read_bytes()
