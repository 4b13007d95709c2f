"""The TensorRT-11-shaped code for real, without a GPU: tensorrt_rtx builds for a compute capability.

It proves the API calls; its parser accepts graphs that those of 8.6 and 11 may refuse, and nothing is run.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest

from tests import models
from tritongen.engines.tensorrt import api, building, inspection
from tritongen.engines.tensorrt.profiles import Extent
from tritongen.errors import BuildError, ModelError, RequirementError
from tritongen.spec import Precision

trt: Any = pytest.importorskip("tensorrt_rtx", reason="no tensorrt_rtx: pip install tensorrt-rtx-cu13")
SETTINGS = building.Settings(strongly_typed=True, compute_capability="8.9")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return models.save(models.convolutional(), tmp_path / "m.onnx")


def profile(model: Path) -> dict[str, Extent]:
    (x,) = onnx.load(model).graph.input
    dims = [d.dim_value or 8 for d in x.type.tensor_type.shape.dim][1:]
    return {x.name: Extent((1, *dims), (4, *dims), (8, *dims))}


def test_its_features_are_those_of_eleven() -> None:
    has = api.features(trt)
    assert has.strongly_typed
    assert not has.weakly_typed
    assert not has.implicit_int8
    assert has.build_routes
    assert has.progress_monitor


def test_a_strongly_typed_plan_is_built_with_profiles_and_a_timing_cache(model: Path, tmp_path: Path) -> None:
    """What a timing cache holds is nothing here: tensorrt_rtx times no kernels, and has the calls alone."""
    settings = building.Settings(
        strongly_typed=True, compute_capability="8.9", profiles=[profile(model)], optimization_level=2,
        timing_iterations=2, tiling_level="FAST", aux_streams=0, tf32=False,
    )  # fmt: skip
    cache = tmp_path / "timing"
    first = building.build_plan(trt, model, settings, timing_cache=cache)
    assert cache.exists()
    assert len(building.build_plan(trt, model, settings, timing_cache=cache)) > 0
    assert len(first) > 1000


@pytest.mark.parametrize("content", [b"", b"no timing cache", b"\0" * 4096], ids=["empty", "text", "zeros"])
def test_a_damaged_timing_cache_is_replaced(model: Path, tmp_path: Path, content: bytes) -> None:
    cache = tmp_path / "timing"
    cache.write_bytes(content)
    settings = building.Settings(strongly_typed=True, compute_capability="8.9", profiles=[profile(model)])
    assert building.build_plan(trt, model, settings, timing_cache=cache)
    assert len(cache.read_bytes()) > 0
    assert cache.read_bytes() != content


def told(config: Any, name: str) -> Any:
    """What a configuration says of itself (of hardware compatibility, tensorrt_rtx's always says none)."""
    if name == "workspace":
        return config.get_memory_pool_limit(trt.MemoryPoolType.WORKSPACE)
    if name == "tactics":
        return config.get_tactic_sources()
    if hasattr(trt.BuilderFlag, name):
        return config.get_flag(getattr(trt.BuilderFlag, name))
    return getattr(config, name)


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"sparsity": True}, {"SPARSE_WEIGHTS": True, "TF32": True}),
        ({"tiling": "FULL"}, {"tiling_optimization_level": "FULL"}),
        (
            {"optimization_level": 5, "timing_iterations": 4, "aux_streams": 1, "workspace_mb": 64},
            {"builder_optimization_level": 5, "avg_timing_iterations": 4, "max_aux_streams": 1,
             "workspace": 64 << 20},
        ),
        ({"tactic_sources": "JIT_CONVOLUTIONS"}, {"tactics": 1 << int(trt.TacticSource.JIT_CONVOLUTIONS)}),
        ({"math": "fp32"}, {"TF32": False, "num_optimization_profiles": 1}),
    ],
    ids=["sparsity", "tiling", "numbers", "tactic_sources", "math"],
)  # fmt: skip
def test_what_the_spec_may_say_of_the_builder_is_taken(
    model: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], wanted: dict[str, Any]
) -> None:
    from tritongen.engines.tensorrt.options import settings_of
    from tritongen.runs.records import Candidate

    found: dict[str, Any] = {}
    configure = building.configure

    def seen(*arguments: Any) -> Any:
        config = configure(*arguments)
        found.update({name: told(config, name) for name in wanted})
        return config

    monkeypatch.setattr(building, "configure", seen)
    api.require(trt, options)
    candidate = Candidate(id="c", engine="tensorrt", precision=Precision.FP32, options=options)
    settings = settings_of(candidate, model)
    settings = replace(
        settings, strongly_typed=True, compute_capability="8.9", profiles=[profile(model)],
        workspace_bytes=settings.workspace_bytes or 1 << 26,
    )  # fmt: skip
    assert building.build_plan(trt, model, settings)
    assert {name: getattr(value, "name", value) for name, value in found.items()} == wanted


def test_precision_flags_are_not_asked_of_it(model: Path) -> None:
    settings = building.Settings(
        precision=Precision.INT8, strongly_typed=True, compute_capability="8.9", profiles=[profile(model)]
    )
    assert building.build_plan(trt, model, settings)


@pytest.mark.parametrize("precision", [Precision.FP16, Precision.BF16, Precision.INT8, Precision.FP8])
def test_rewritten_graphs_are_built(model: Path, tmp_path: Path, precision: Precision) -> None:
    """What the engine's own recipes for such a version make of a graph; INT8 and FP8 have FP16 scales."""
    from tritongen.engines.tensorrt.recipes import half_recipe, recipes_for
    from tritongen.precision.fp16 import to_half
    from tritongen.precision.int8 import quantize, tensors_to_calibrate
    from tritongen.precision.recipe import Fp16Recipe, Int8Recipe

    (recipe,) = recipes_for(precision, api.features(trt))
    floating = recipe if isinstance(recipe, Fp16Recipe) else half_recipe()
    source, rewritten = model, tmp_path / "half.onnx"
    if isinstance(recipe, Int8Recipe):
        source = tmp_path / "int8.onnx"
        names = tensors_to_calibrate(model, recipe)
        quantize(model, dict.fromkeys(names, (-4.0, 4.0)), recipe, source)
    to_half(source, floating, rewritten)
    settings = building.Settings(
        precision=precision, strongly_typed=True, compute_capability="8.9", profiles=[profile(model)]
    )
    assert types_in(model) == {"FLOAT"}
    half = "BF16" if precision is Precision.BF16 else "HALF"
    eight = {Precision.INT8: {"INT8"}, Precision.FP8: {"FP8"}}.get(precision, set())
    assert types_in(rewritten) == {"FLOAT", half, *eight}  # the inputs and outputs stay as they were
    assert building.build_plan(trt, rewritten, settings)


def types_in(model: Path) -> set[str]:
    """The floating types (and quantized ones) of what the layers of a graph compute, weights apart."""
    log = building.Log()
    logger = building.make_logger(trt, log)
    builder = building.start_builder(trt, logger, log)
    network = api.create_network(trt, builder, strongly_typed=True)
    assert trt.OnnxParser(network, logger).parse_from_file(str(model))
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    computed = [layer for layer in layers if layer.type not in (trt.LayerType.CONSTANT, trt.LayerType.SHAPE)]
    return {layer.get_output(0).dtype.name for layer in computed} - {"INT32", "INT64", "BOOL"}


def test_graphs_with_shared_ranges_are_built(tmp_path: Path) -> None:
    """Split, Concat and Add on integers, with FP16 scales."""
    from tests.unit.test_int8_placement import bottleneck
    from tritongen.engines.tensorrt.recipes import half_recipe, rival_recipes
    from tritongen.precision.fp16 import to_half
    from tritongen.precision.int8 import quantize, tensors_to_calibrate

    (recipe,) = rival_recipes(api.features(trt))
    model, rewritten = models.save(bottleneck(), tmp_path / "m.onnx"), tmp_path / "half.onnx"
    quantize(model, dict.fromkeys(tensors_to_calibrate(model, recipe), (-4.0, 4.0)), recipe, rewritten)
    to_half(rewritten, half_recipe(), rewritten)
    settings = building.Settings(
        precision=Precision.INT8, strongly_typed=True, compute_capability="8.9", profiles=[profile(model)]
    )
    assert building.build_plan(trt, rewritten, settings)


def test_weak_typing_is_refused_in_words(model: Path) -> None:
    with pytest.raises(BuildError, match="only strongly typed"):
        building.build_plan(trt, model, building.Settings(compute_capability="8.9"))


def test_a_build_route_that_does_not_exist_is_an_error(model: Path) -> None:
    with pytest.raises(RequirementError, match="no build route '-nonsense=7'"):
        building.build_plan(trt, model, replace(SETTINGS, build_route="-nonsense=7"))


def test_an_unknown_operator_is_named(model: Path, tmp_path: Path) -> None:
    proto = onnx.load(model)
    proto.graph.node[0].op_type = "Foo"
    proto.graph.node[0].name = "strange"
    onnx.save(proto, tmp_path / "bad.onnx")
    with pytest.raises(ModelError) as caught:
        building.build_plan(trt, tmp_path / "bad.onnx", SETTINGS)
    assert "Foo strange" in str(caught.value.found)


def test_inspect_asks_the_parser_and_says_what_that_proves(model: Path, tmp_path: Path) -> None:
    from tritongen.engines.tensorrt.report import check_graph

    accepted = check_graph(model)
    assert accepted.problems == ()
    assert "may refuse" in accepted.caveat or accepted.parser.startswith("tensorrt ")
    proto = onnx.load(model)
    proto.graph.node[0].op_type = "Foo"
    onnx.save(proto, tmp_path / "bad.onnx")
    (problem,) = check_graph(tmp_path / "bad.onnx").problems
    assert problem.startswith("Foo")


def test_inputs_without_sizes_are_named(model: Path) -> None:
    with pytest.raises(BuildError, match="no sizes were given"):
        building.build_plan(
            trt, model, building.Settings(strongly_typed=True, compute_capability="8.9", profiles=[{}])
        )


def test_its_layer_information_is_readable_json() -> None:
    # Without a GPU nothing is deserialized; the parser of the JSON is shared by all versions.
    text = json.dumps(
        {"Layers": [{"Name": "a", "LayerType": "kgen", "Inputs": [{"Format": "N", "DataType": "Half"}]}]}
    )
    (layer,) = inspection.parse_layers(json.loads(text))
    assert layer.precision == "fp16"


def refused_graph(path: Path) -> Path:
    """A valid ONNX file with an operator of somebody's own, which no parser knows."""
    proto = onnx.load(path)
    proto.graph.node[0].op_type, proto.graph.node[0].domain = "Special", "com.example"
    proto.opset_import.append(onnx.helper.make_opsetid("com.example", 1))
    out = path.with_name("refused.onnx")
    onnx.save(proto, out)
    return out


def test_verify_names_refused_nodes_before_gpu_time_is_spent(model: Path) -> None:
    from click.testing import CliRunner

    from tritongen.cli.verify import command

    taken = CliRunner().invoke(command, [str(model)], standalone_mode=False)
    assert (taken.return_value, "takes it" in taken.output) == (0, True)
    refused = CliRunner().invoke(command, [str(refused_graph(model)), "--json"], standalone_mode=False)
    assert refused.return_value == 1
    report = json.loads(refused.output)
    assert "Special" in report["findings"][0]["message"]
    assert "--engine onnxruntime" in report["findings"][0]["fix"]


def test_onnx_models_in_a_repository_are_asked_about_where_it_matters(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.repository_models import to_write
    from tritongen.repository.targets import embedded
    from tritongen.repository.verify import Place, verify_model
    from tritongen.repository.writer import write_model

    write_model(tmp_path / "r", to_write(model, tmp_path / "runs", name="m"))
    refused = refused_graph(tmp_path / "r" / "m" / "1" / "model.onnx")
    refused.replace(tmp_path / "r" / "m" / "1" / "model.onnx")

    def asked(*, ask_tensorrt: bool = False) -> list[str]:
        found = verify_model(tmp_path / "r" / "m", Place(embedded(), ask_tensorrt=ask_tensorrt))
        return [finding.severity for finding in found if finding.check == "parser"]

    assert asked() == []
    assert asked(ask_tensorrt=True) == ["warning"]
    config = tmp_path / "r" / "m" / "config.pbtxt"
    accelerator = 'execution_accelerators { gpu_execution_accelerator { name: "tensorrt" } }'
    config.write_text(f"{config.read_text()}\noptimization {{ {accelerator} }}")
    assert asked() == ["warning"]


def test_the_build_asks_before_the_trials_and_auto_goes_on_with_onnx_runtime(
    model: Path, tmp_path: Path
) -> None:
    from tests.repository_models import MACHINE
    from tritongen.autotune.parsing import accepting_engine
    from tritongen.autotune.stages import Setting
    from tritongen.engines import load_engine
    from tritongen.runs.events import discard
    from tritongen.runs.store import RunDirectory
    from tritongen.spec import ModelSpec

    def setting(path: Path, engine: str) -> Setting:
        spec = ModelSpec.model_validate({"path": str(path), "engine": engine})
        return Setting("m", spec, RunDirectory(tmp_path / "run"), MACHINE, discard)

    tensorrt, refused = load_engine("tensorrt"), refused_graph(model)
    assert accepting_engine(setting(model, "tensorrt"), tensorrt) == (tensorrt, ())
    with pytest.raises(ModelError, match=r"refuses refused\.onnx"):
        accepting_engine(setting(refused, "tensorrt"), tensorrt)
    other, (note,) = accepting_engine(setting(refused, "auto"), tensorrt)
    assert other.name.startswith("onnxruntime")
    assert "Special" in note


def test_a_build_tells_its_phases(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tritongen.engines.tensorrt import progress
    from tritongen.runs.events import Event

    monkeypatch.setattr(progress, "_INTERVAL_S", 0.0)
    settings = building.Settings(strongly_typed=True, compute_capability="8.9", profiles=[profile(model)])
    seen: list[Event] = []
    building.build_plan(trt, model, settings, events=seen.append)
    fractions = [event.fraction for event in seen if event.fraction is not None]
    assert fractions
    assert all(0 <= fraction <= 1 for fraction in fractions)


def test_an_input_whose_values_are_sizes_is_refused_in_words(tmp_path: Path) -> None:
    """TensorRT would read them on the host, and a profile has shapes for them, no values."""
    nodes = [onnx.helper.make_node("Reshape", ["x", "sizes"], ["y"], "reshape")]
    inputs = [models.value("x", ["n", 4]), models.value("sizes", [2], onnx.TensorProto.INT64)]
    made = models.model(nodes, inputs, [models.value("y", ["a", "b"])])
    onnx.save(made, tmp_path / "m.onnx")
    extents = {"x": Extent((1, 4), (2, 4), (4, 4)), "sizes": Extent((2,), (2,), (2,))}
    with pytest.raises(BuildError, match="the values of the input 'sizes' decide the sizes"):
        building.build_plan(trt, tmp_path / "m.onnx", replace(SETTINGS, profiles=[extents]))
