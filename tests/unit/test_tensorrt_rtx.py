"""The TensorRT-11-shaped code for real, without a GPU: tensorrt_rtx builds for a compute capability.

It proves the API calls; its parser accepts graphs that those of 8.6 and 11 may refuse, and nothing is run.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import pytest

from tests import models
from tritongen.engines.tensorrt import api, building, inspection
from tritongen.engines.tensorrt.profiles import Extent
from tritongen.errors import BuildError, ModelError
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


@pytest.mark.parametrize(
    "options",
    [
        {"sparsity": True},
        {"hardware_compatible": True},
        {"tiling": "FULL"},
        {"optimization_level": 5, "timing_iterations": 4, "aux_streams": 1, "workspace_mb": 64},
        {"tactic_sources": "JIT_CONVOLUTIONS"},
        {"build_route": ""},
    ],
    ids="-".join,
)
def test_what_the_spec_may_say_of_the_builder_is_taken(model: Path, options: dict[str, Any]) -> None:
    from dataclasses import replace

    from tritongen.engines.tensorrt.options import settings_of
    from tritongen.runs.records import Candidate

    api.require(trt, options)
    candidate = Candidate(id="c", engine="tensorrt", precision=Precision.FP32, options=options)
    settings = settings_of(candidate, model)
    settings = replace(
        settings, strongly_typed=True, compute_capability="8.9", profiles=[profile(model)],
        workspace_bytes=settings.workspace_bytes or 1 << 26,
    )  # fmt: skip
    assert building.build_plan(trt, model, settings)


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
    assert building.build_plan(trt, rewritten, settings)


def test_weak_typing_is_refused_in_words(model: Path) -> None:
    with pytest.raises(BuildError, match="only strongly typed"):
        building.build_plan(trt, model, building.Settings(compute_capability="8.9"))


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
