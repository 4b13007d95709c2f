"""TensorRT without a GPU: profiles, CUDA graphs in config.pbtxt, the precision proof, versions by feature."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import models
from tritongen.engines import Engine, load_engine
from tritongen.engines.tensorrt import FILENAME, TensorRTEngine, api, cuda
from tritongen.engines.tensorrt.building import refusal
from tritongen.engines.tensorrt.inspection import parse_layers, prove, with_times
from tritongen.engines.tensorrt.options import settings_of
from tritongen.engines.tensorrt.plan import Binding, load_error
from tritongen.engines.tensorrt.profiles import (
    Extent,
    from_text,
    profile_for,
    profiles_per_batch_size,
    to_text,
    wide_profile,
)
from tritongen.engines.tensorrt.recipes import recipes_for
from tritongen.engines.tensorrt.report import PlanReport, plan_layers
from tritongen.engines.tensorrt.runner import feed
from tritongen.engines.tensorrt.serving import graph_batch_sizes, optimization_text, preferred_batch_sizes
from tritongen.errors import BuildError, DataError, RequirementError
from tritongen.graph import inspect_model
from tritongen.plan_errors import explain
from tritongen.precision.fixed_shapes import fix_shapes
from tritongen.precision.int8 import write_ranges
from tritongen.precision.recipe import Int8Recipe
from tritongen.repository.plan_match import compare
from tritongen.runs.records import Artifact, Candidate
from tritongen.shapes import ResolvedInput
from tritongen.spec import Precision
from tritongen.tensors import TensorSpec, from_name

IMAGE = ResolvedInput(
    TensorSpec("x", from_name("float32"), ("n", 3, "h", 8)), (3, 4, 8), (3, 8, 8), (3, 16, 8)
)


def test_it_is_an_engine_and_says_what_is_missing() -> None:
    engine: Engine = load_engine("tensorrt")
    reason = engine.unavailable_reason()
    assert reason is None or "TensorRT" in reason or "GPU" in reason


def test_one_wide_profile_is_tuned_for_the_largest_batch() -> None:
    assert to_text([wide_profile([IMAGE], 8)]) == "x=1x3x4x8:8x3x8x8:8x3x16x8"
    assert to_text([wide_profile([IMAGE], 0)]) == "x=3x4x8:3x8x8:3x16x8"


def test_profiles_per_batch_size_leave_no_gap() -> None:
    found = profiles_per_batch_size([IMAGE], (8, 1, 64))
    assert [(p["x"].min[0], p["x"].opt[0], p["x"].max[0]) for p in found] == [
        (1, 1, 1),
        (2, 8, 8),
        (9, 64, 64),
    ]
    for batch in (1, 2, 8, 9, 64):
        assert found[profile_for(found, {"x": (batch, 3, 8, 8)})]["x"].max[0] >= batch
    with pytest.raises(BuildError, match="no optimization profile"):
        profile_for(found, {"x": (65, 3, 8, 8)})


@given(st.lists(st.integers(1, 99), min_size=1, max_size=4), st.integers(1, 3))
def test_profiles_survive_as_text(sizes: list[int], count: int) -> None:
    shape = tuple(sizes)
    profiles = [{"a:b/0": Extent(shape, shape, shape), "y": Extent((), (), ())} for _ in range(count)]
    assert list(from_text(to_text(profiles))) == profiles


def test_text_of_another_form_is_refused() -> None:
    with pytest.raises(BuildError, match="profiles"):
        from_text("x=1x3")


@given(st.integers(1, 300))
def test_graphs_serve_every_batch_size_and_pad_less_than_double(largest: int) -> None:
    graphs = graph_batch_sizes(largest)
    assert [size for low, high in graphs for size in range(low, high + 1)] == list(range(1, largest + 1))
    assert all(high < 2 * low for low, high in graphs)


def artifact(profiles: str, dtype: str = "float32") -> Artifact:
    bindings = [
        {"name": "x", "dtype": dtype, "shape": [-1, 3, -1, 8], "input": True},
        # 8.6 reports the first profile's batch on outputs.
        {"name": "y", "dtype": "float32", "shape": [1, 10], "input": False},
    ]
    return Artifact(
        file=FILENAME, digest="0", size_bytes=1, build_seconds=1.0, versions={},
        details={"profiles": profiles, "bindings": bindings},
    )  # fmt: skip


def test_config_names_profiles_graphs_and_the_plans_own_types() -> None:
    text = to_text(profiles_per_batch_size([IMAGE], (1, 8)))
    engine = TensorRTEngine().with_shapes([IMAGE], 8)
    traits = engine.serving_traits(artifact(text, "int32"), {"cuda_graph": True})
    assert (traits.backend, traits.filename, traits.instance_kind) == ("tensorrt", "model.plan", "KIND_GPU")
    assert traits.profiles == ("0", "1")
    assert str(traits.inputs[0]) == "x: int32[?, 3, ?, 8]"
    assert str(traits.outputs[0]) == "y: float32[?, 10]"
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2

    config = model_config_pb2.ModelConfig()
    text_format.Parse(f"optimization {{ {traits.optimization} }}", config)
    cuda = config.optimization.cuda
    assert cuda.graphs
    found = [(s.graph_lower_bound.batch_size or s.batch_size, s.batch_size) for s in cuda.graph_spec]
    assert found == [(1, 1), (2, 2), (3, 4), (5, 8)]
    assert list(cuda.graph_spec[0].input["x"].dim) == [3, 8, 8]


def test_without_graphs_or_profiles_nothing_is_said() -> None:
    assert optimization_text([wide_profile([IMAGE], 8)], 8, cuda_graph=False) == ""
    assert optimization_text([], 8, cuda_graph=True) == ""


def test_without_batching_triton_captures_the_one_graph_and_axis_0_stays_what_it_is() -> None:
    text = to_text([{"x": Extent((1, 3), (4, 3), (8, 3))}])
    traits = TensorRTEngine().with_shapes([IMAGE], 0).serving_traits(artifact(text), {"cuda_graph": True})
    assert traits.optimization == "cuda { graphs: true }"
    assert str(traits.outputs[0]) == "y: float32[1, 10]"


def test_preferred_sizes_are_those_that_profiles_between_are_tuned_for() -> None:
    def sizes(*tuned: int) -> tuple[int, ...]:
        return preferred_batch_sizes(profiles_per_batch_size([IMAGE], tuned), max(tuned))

    assert sizes(8) == ()
    assert sizes(1, 8) == ()
    assert sizes(1, 8, 64) == (8, 64)
    assert preferred_batch_sizes([wide_profile([IMAGE], 0)], 0) == ()


def layer(name: str, kind: str, tactic: str, formats: str) -> dict[str, Any]:
    return {
        "Name": name, "LayerType": kind, "TacticName": tactic,
        "Inputs": [{"Name": "i", "Format/Datatype": formats}], "Outputs": [],
    }  # fmt: skip


INT8 = layer("conv1 + relu1", "CaskConvolution", "sm80_xmma_fprop_i8i8_i8i32_f32", "Four wide Int8 format")
HALF = layer("conv2", "CaskConvolution", "sm80_xmma_fprop_f16f16_f16f16", "Channel major FP16 format")
FLOAT = layer("conv3", "CaskConvolution", "sm80_xmma_fprop_f32f32", "Row major linear FP32")
HIDDEN = layer("{ForeignNode[a...b]}", "Myelin", "", "Row major linear FP32")
RELAYOUT = layer("Reformatting CopyNode", "Reformat", "", "Row major linear FP32")


@pytest.mark.parametrize(
    ("layers", "precision", "evidence"),
    [
        ([INT8, HALF], Precision.INT8, "PROVEN"),
        ([HALF, FLOAT], Precision.INT8, "ABSENT"),
        ([FLOAT, RELAYOUT], Precision.FP16, "ABSENT"),
        ([HIDDEN], Precision.FP16, "OPAQUE"),
        ([FLOAT], Precision.FP32, "PROVEN"),
        (["conv1"], Precision.INT8, "OPAQUE"),
    ],
)
def test_a_precision_is_proven_absent_or_opaque(
    layers: list[Any], precision: Precision, evidence: str
) -> None:
    assert prove(parse_layers({"Layers": layers}), precision).evidence == evidence


PLAIN_FORMAT = "Row major linear FP32"
TENSOR_CORES = layer(
    "a", "CaskConvolution", "sm90_xmma_fprop_implicit_gemm_f32f32_tf32f32_f32_nhwc", PLAIN_FORMAT
)
NO_TENSOR_CORES = [
    layer("b", "CaskConvolution", name, PLAIN_FORMAT)
    for name in (
        "sm80_xmma_fprop_implicit_gemm_f32f32_f32f32_f32_nhwckrsc_nhwc_tilesize128x64x8",
        "sm80_xmma_fprop_wngd_f32f32_f32_f32_nchwkcrs_nchw_tilesize8x16x64x8_warpsize8x1x1_wngd2x2",
        "sm80_xmma_gemm_f32f32_f32f32_f32_tn_n_tilesize128x128x8_stage3_warpsize2x2x1_ffma_aligna4_alignc4",
    )
]
NUMBERED = layer("c", "CaskConvolution", "0x00000000000003ea", PLAIN_FORMAT)


@pytest.mark.parametrize(
    ("layers", "evidence", "share"),
    [
        ([TENSOR_CORES, *NO_TENSOR_CORES], "PROVEN", 0.25),
        ([TENSOR_CORES, HIDDEN, NUMBERED], "PROVEN", 1 / 3),
        (NO_TENSOR_CORES, "ABSENT", 0.0),
        ([*NO_TENSOR_CORES, NUMBERED], "OPAQUE", 0.0),
        ([*NO_TENSOR_CORES, HIDDEN], "OPAQUE", 0.0),
        ([RELAYOUT], "OPAQUE", 0.0),
    ],
)
def test_tf32_is_told_by_the_tactics_names(layers: list[Any], evidence: str, share: float) -> None:
    """8.6's own names, from the plans whose layers are under bench/results."""
    proof = prove(parse_layers({"Layers": layers}), Precision.FP32, tf32=True)
    assert proof.evidence == evidence
    assert proof.share == pytest.approx(share)


def test_layers_of_no_known_format_prove_nothing() -> None:
    silent = parse_layers({"Layers": [layer("a", "CaskConvolution", "0x1", "strange")]})
    assert prove(silent, Precision.FP16).evidence == "OPAQUE"


def test_what_was_fused_is_told_by_metadata_or_name() -> None:
    metadata = "[ONNX Layer: /a/Conv]\x1e[ONNX Layer: /a/Relu]"
    told, named = parse_layers({"Layers": [{**INT8, "Metadata": metadata}, INT8]})
    assert told.fused == ("/a/Conv", "/a/Relu")
    assert named.fused == ("conv1", "relu1")
    report = PlanReport(0, {}, with_times((told, *parse_layers({"Layers": [RELAYOUT]})),
                                          {"conv1 + relu1": 3.0, "Reformatting CopyNode": 1.0}))  # fmt: skip
    assert report.summary() == (
        "2 layers, 4.000 ms by the profiler; 75 % int8, 25 % reformats; 2 nodes fused into 1 layers"
    )


def test_the_share_goes_by_time_where_it_was_measured() -> None:
    layers = parse_layers({"Layers": [INT8, HALF, RELAYOUT]})
    timed = with_times(layers, {"conv1 + relu1": 3.0, "conv2": 1.0, "Reformatting CopyNode": 9.0})
    assert prove(timed, Precision.INT8).share == pytest.approx(0.75)
    assert "by time" in prove(timed, Precision.INT8).summary


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ("expecting library version 8.6.0.12 got 8.5.1.7, please rebuild", "by 8.5.1.7, loaded by 8.6.0"),
        ("kSERIALIZATION_VERSION failed. Version tag does not match", "serialization format"),
        ("generated on an incompatible device, expecting compute 8.0 got compute 8.9", "this GPU has 8.0"),
        ("", "no reason"),
    ],
)  # fmt: skip
def test_load_errors_are_explained(said: str, found: str) -> None:
    error = load_error(Path("model.plan"), said, "8.6.0")
    assert error.found is not None
    assert found in error.found
    assert error.fix is not None


@pytest.mark.parametrize(
    ("said", "kind", "found"),
    [
        ("expecting library version 8.6.1.6 got 8.6.0.12, please rebuild.", "version",
         "built by 8.6.0.12, loaded by 8.6.1.6"),
        ("generated on an incompatible device, expecting compute 8.0 got compute 9.0, please", "gpu",
         "built for compute capability 9.0, this GPU has 8.0"),
        ("getCreator: could not find plugin: MyNorm version: 1", "plugin", "no plugin 'MyNorm'"),
        ("Cannot deserialize plugin since corresponding IPluginCreator not found", "plugin", "not found"),
        ("CUDA: cudaErrorMemoryAllocation", "memory", "cudaErrorMemoryAllocation"),
        ("Requested amount of GPU memory (123 bytes) could not be allocated.", "memory", "123 bytes"),
        ("the plan's profiles that it names (0, 1) take batches of up to 8", "profile", "batches of up to 8"),
        ("profile 3[3] for m. Expected optimization profile index range 0-1", "profile", "range 0-1"),
        ("magicTagRead == kMAGIC_TAG failed.Magic tag does not match", "file", "agic"),
        ("kSERIALIZATION_VERSION failed.Version tag does not match. Note: Current Version: 232", "version",
         "does not read"),
        ("IRuntime::setEngineHostCodeAllowed must be true", "host-code", "setEngineHostCodeAllowed"),
    ],
)  # fmt: skip
def test_known_words_of_tensorrt_are_told_in_the_users(said: str, kind: str, found: str) -> None:
    problem = explain(said)
    assert problem is not None
    assert (problem.kind, found in problem.found) == (kind, True), problem.found
    assert problem.fix


def test_other_words_are_left_as_they_are() -> None:
    assert explain("something new") is None
    assert "something new" in str(load_error(Path("model.plan"), "something new", "8.6.0").found)


def test_a_server_that_cannot_load_a_plan_says_why() -> None:
    from tritongen.serving.diagnosis import cause_of_failure

    log = (
        "E1122 12:53:41 1 model_lifecycle.cc:642] \"failed to load 'm' version 1: Internal: "
        "TritonModelException: TensorRT 8.6.0: expecting compute 8.0 got compute 9.0, please"
    )
    error = cause_of_failure(log, 1, Path("repo"), None)
    assert error.message == "Triton cannot serve model 'm': its plan was built for another GPU"
    assert "9.0, this GPU has 8.0" in str(error.found)


def test_of_several_models_each_plan_that_does_not_load_is_explained() -> None:
    from tritongen.serving.diagnosis import cause_of_failure

    line = "E1122 12:53:41 1 model_lifecycle.cc:642] \"failed to load '{}' version 1: Internal: {}\"\n"
    upgraded = "TensorRT 10.3.0: expecting library version 10.3.0 got 8.6.0, please rebuild"
    log = "".join(line.format(name, upgraded) for name in ("a", "b"))
    error = cause_of_failure(log, 1, Path("repo"), None)
    assert error.message == "Triton cannot serve models 'a', 'b' of repo"
    lines = str(error.found).split("\n")
    assert [one.strip() for one in lines] == [
        f"{name}: its plan was built by another TensorRT (built by 8.6.0, loaded by 10.3.0)" for name in "ab"
    ]
    assert str(error.fix).count("build it again on this machine") == 1
    assert "mend the model" not in str(error.fix)
    mixed = cause_of_failure(log + line.format("c", "no such backend"), 1, Path("repo"), None)
    assert "c: no such backend" in str(mixed.found)
    assert "build it again on this machine" in str(mixed.fix)
    assert "mend the model" in str(mixed.fix)


def test_a_refusal_names_each_node_and_the_choices() -> None:
    problems = [{"operator": "Foo", "node": "n1", "reason": "no importer"}]
    error = refusal(Path("m.onnx"), problems, "10.3")
    assert error.found == "Foo n1: no importer"
    assert "--engine onnxruntime" in str(error.fix)


def surface(flags: str, creation: str, config: str = "", *others: str) -> Any:
    """A module with the names that a TensorRT version has; features are found by names alone."""
    return SimpleNamespace(
        BuilderFlag=SimpleNamespace(**dict.fromkeys(flags.split(), 0)),
        NetworkDefinitionCreationFlag=SimpleNamespace(**dict.fromkeys(creation.split(), 0)),
        IBuilderConfig=SimpleNamespace(**dict.fromkeys(config.split(), 0)),
        TacticSource=SimpleNamespace(JIT_CONVOLUTIONS=4),
        **dict.fromkeys(others, object),
    )


def test_verify_names_what_differs_from_where_a_plan_was_built() -> None:
    built = {"tensorrt": "8.6.0", "compute_capability": "9.0", "gpu": "H100", "cuda_driver": "13.0"}
    assert list(compare("m", built, built)) == []
    found = list(compare("m", built, {**built, "compute_capability": "8.9", "gpu": "L4"}))
    assert [(f.severity, f.message) for f in found] == [
        ("error", "the plan was built with compute capability 9.0, and this machine has 8.9"),
        ("warning", "the plan was built with GPU H100, and this machine has L4"),
    ]


def test_compatible_plans_are_only_warned_about() -> None:
    built, here = (
        {"tensorrt": "8.6.0", "compute_capability": "8.0"},
        {"tensorrt": "10.3", "compute_capability": "9.0"},
    )
    assert [f.severity for f in compare("m", built, here)] == ["error", "error"]
    options = {"version_compatible": True, "hardware_compatible": True}
    assert [f.severity for f in compare("m", built, here, options)] == ["warning", "warning"]


def test_a_build_says_what_changed_since_the_last_one(tmp_path: Path) -> None:
    from tests.repository_models import MACHINE, selection
    from tritongen.autotune.changes import change_notes
    from tritongen.runs.build import ModelBuild
    from tritongen.runs.records import Outcome, Trial
    from tritongen.runs.store import RunDirectory, write_record

    run = RunDirectory(tmp_path / "m")
    assert list(change_notes(run, {"tensorrt": "8.6.0"})) == []
    run.root.mkdir()
    made = artifact("").model_copy(update={"versions": {"tensorrt": "8.6.0", "gpu": "H100", "driver": "1"}})
    trial = Trial(
        key="k", candidate=Candidate(id="c", engine="tensorrt", precision=Precision.FP16),
        outcome=Outcome.PASSED, reason="passed", artifact=made, machine=MACHINE, seconds=1.0,
    )  # fmt: skip
    chosen = selection("c", 8)
    write_record(
        run.result, ModelBuild(name="m", status="built", seconds=1.0, selection=chosen, trials=(trial,))
    )
    assert list(change_notes(run, made.versions)) == []
    (note,) = change_notes(run, {"tensorrt": "10.3.0", "gpu": "L4", "driver": "1"})
    assert note == "built again from scratch: TensorRT is 10.3.0 and was 8.6.0, GPU is L4 and was H100"


def test_the_drivers_version_is_read_where_the_system_tells_it(tmp_path: Path) -> None:
    for line in (
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.159.04  Tue Sep  2 20:16:41 UTC 2026",
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.159.04  Release Build",
    ):
        (tmp_path / "version").write_text(line)
        assert cuda.driver_release(tmp_path / "version") == "580.159.04"


def test_layers_of_a_plan_need_a_gpu_and_say_so(tmp_path: Path) -> None:
    if TensorRTEngine().unavailable_reason() is None:
        pytest.skip("there is a GPU")
    with pytest.raises(RequirementError):
        plan_layers(tmp_path / "model.plan")


def test_a_refused_node_is_found_by_its_index(tmp_path: Path) -> None:
    model = models.save(models.convolutional(), tmp_path / "m.onnx")
    node = onnx.load(model).graph.node[1]
    text = api.node_text(model, {"index": "1", "node": "", "operator": "", "reason": "no"})
    assert text.split()[0] == node.op_type
    assert api.node_text(model, {"index": "999", "reason": "no"}) == "node #999"


def test_recipes_follow_the_features() -> None:
    eight = api.features(surface("FP16 INT8 TF32", "EXPLICIT_BATCH", "", "IInt8EntropyCalibrator2"))
    eleven = api.features(surface("TF32", "STRONGLY_TYPED", "build_route", "IProgressMonitor"))
    assert [r.name for r in recipes_for(Precision.INT8, eight)] == ["s8-residual", "implicit"]
    assert recipes_for(Precision.FP16, eight) == ()
    assert recipes_for(Precision.FP32, eleven) == ()
    assert [r.name for r in recipes_for(Precision.FP16, eleven)] == ["half"]
    (int8,) = recipes_for(Precision.INT8, eleven)
    assert isinstance(int8, Int8Recipe)
    assert (int8.half, int8.min_opset) == (True, 19)


def test_a_thorough_search_has_more_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {}
    for flags, creation, more in (
        ("FP16 INT8 TF32", "EXPLICIT_BATCH", "IInt8EntropyCalibrator2"),
        ("TF32", "STRONGLY_TYPED", "IProgressMonitor"),
    ):
        module = surface(flags, creation, "", more)
        monkeypatch.setattr(api, "load", lambda module=module: module)
        for thorough in (False, True):
            recipes = TensorRTEngine(thorough=thorough).recipes(Precision.INT8)
            found[creation, thorough] = [recipe.name for recipe in recipes]
            assert all(
                isinstance(r, Int8Recipe) and r.half is (creation != "EXPLICIT_BATCH") for r in recipes
            )
        assert TensorRTEngine(thorough=True).recipes(Precision.FP32) == ()
    assert found["EXPLICIT_BATCH", False] == ["s8-residual", "implicit"]
    assert found["EXPLICIT_BATCH", True] == ["s8-residual", "implicit", "s8-shared", "calibrator"]
    assert found["STRONGLY_TYPED", False] == ["s8-residual"]
    assert found["STRONGLY_TYPED", True] == ["s8-residual", "s8-shared"]


def test_int64_inputs_are_narrowed_only_where_they_fit() -> None:
    binding = Binding("ids", "int32", (-1, 4), is_input=True)
    ids = np.array([[0, 1, 2**31 - 1, -(2**31)]], np.int64)
    np.testing.assert_array_equal(feed(binding, {"ids": ids}), ids)
    with pytest.raises(DataError, match="beyond 32 bits"):
        feed(binding, {"ids": ids + 1})
    with pytest.raises(DataError, match="rank"):
        feed(binding, {"ids": ids[0]})
    with pytest.raises(DataError, match="missing"):
        feed(binding, {})


def test_options_become_settings_and_a_ranges_file_makes_int8_implicit(tmp_path: Path) -> None:
    from tritongen.engines.tensorrt.recipes import implicit_recipe

    model = models.save(models.convolutional(), tmp_path / "m.onnx")
    out = tmp_path / "out.onnx"
    write_ranges(model, {"x": (-1.0, 2.0)}, implicit_recipe(), out)
    candidate = Candidate(
        id="c", engine="tensorrt", precision=Precision.INT8,
        options={"optimization_level": 2, "math": "fp32", "profiles": "x=1x2:2x2:3x2"},
    )  # fmt: skip
    settings = settings_of(candidate, out)
    assert settings.ranges == {"x": (-1.0, 2.0)}
    assert (settings.optimization_level, settings.tf32, len(settings.profiles)) == (2, False, 1)
    assert settings_of(candidate, model).ranges is None


def test_fixing_shapes_folds_what_followed_from_them_and_keeps_the_batch(tmp_path: Path) -> None:
    from onnx import TensorProto, helper

    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Gather", ["s", "two"], ["h"]),
        helper.make_node("Gather", ["s", "nought"], ["b"]),
        helper.make_node("Cast", ["h"], ["hf"], to=TensorProto.FLOAT),
        helper.make_node("Cast", ["b"], ["bf"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["x", "hf"], ["p"]),
        helper.make_node("Mul", ["p", "bf"], ["y"]),
    ]
    constants = [helper.make_tensor("two", 7, [], [2]), helper.make_tensor("nought", 7, [], [0])]
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("x", 1, ["n", 3, "h"])],
        [helper.make_tensor_value_info("y", 1, ["n", 3, "h"])],
        constants,
    )  # fmt: skip
    onnx.save(
        helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)]),
        tmp_path / "m.onnx",
    )
    fixed = fix_shapes(tmp_path / "m.onnx", {"x": (3, 5)}, tmp_path / "fixed.onnx")
    assert str(inspect_model(fixed).inputs[0]) == "x: float32[n, 3, 5]"
    assert inspect_model(fixed).operators["Gather"] == 1

    from tritongen.engines.onnxruntime.session import OnnxRuntimeRunner

    x = np.ones((2, 3, 5), np.float32)
    with OnnxRuntimeRunner(fixed) as runner:
        np.testing.assert_array_equal(runner.infer({"x": x})["y"], 10 * x)
