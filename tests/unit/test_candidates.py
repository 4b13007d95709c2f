"""The search space: small, readable, and honest about what it leaves out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.conftest import SaveModel
from tritongen.autotune.candidates import RANGE_METHODS, search_space
from tritongen.engines import load_engine
from tritongen.errors import SpecError
from tritongen.graph import Graph, inspect_model
from tritongen.spec import Precision

ENGINE = load_engine("onnxruntime")


@pytest.fixture
def graph(save_model: SaveModel) -> Graph:
    return inspect_model(save_model("linear"))


def test_fp32_comes_first_and_int8_by_every_range_method(graph: Graph) -> None:
    space = search_space(ENGINE, graph, calibrated=True)
    ids = [one.id for one in space.candidates]
    assert ids[0] == "onnxruntime-fp32"
    assert set(ids[1:]) == {f"onnxruntime-int8-{method}" for method in RANGE_METHODS}
    assert len(set(ids)) == len(ids)
    assert not space.notes


def test_without_calibration_data_int8_is_left_out_with_the_reason(graph: Graph) -> None:
    space = search_space(ENGINE, graph, calibrated=False)
    assert {one.precision for one in space.candidates} == {Precision.FP32}
    assert "--calibration-data" in space.notes[0]


def test_int8_alone_still_gets_its_fallback(graph: Graph) -> None:
    space = search_space(ENGINE, graph, precisions=[Precision.INT8], calibrated=True)
    assert space.candidates[0].precision is Precision.FP32
    assert "fallback" in space.notes[0]


@pytest.mark.parametrize("named", [[Precision.INT8], [Precision.FP16, Precision.INT8]])
def test_only_what_cannot_be_proven_is_an_error_and_not_fp32(graph: Graph, named: list[Precision]) -> None:
    with pytest.raises(SpecError, match="can be tried") as caught:
        search_space(ENGINE, graph, precisions=named, calibrated=True, validated=False)
    assert caught.value.fix is not None
    assert "--validation-data" in caught.value.fix
    assert "--calibration-data" not in caught.value.fix
    both = search_space(ENGINE, graph, precisions=[*named, Precision.FP32], calibrated=False)
    assert [one.precision for one in both.candidates] == [Precision.FP32]


def test_a_precision_that_gains_nothing_is_named(graph: Graph) -> None:
    space = search_space(ENGINE, graph, precisions=[Precision.FP32, Precision.FP16], calibrated=True)
    assert [one.id for one in space.candidates] == ["onnxruntime-fp32"]
    assert "fp16 was asked for" in space.notes[0]


def test_build_options_that_differ_are_in_the_name(save_model: SaveModel) -> None:
    space = search_space(ENGINE, inspect_model(save_model("convolutional")), calibrated=False)
    assert [one.id for one in space.candidates] == ["onnxruntime-fp32", "onnxruntime-fp32-extended"]


@pytest.mark.parametrize(("kind", "precision"), [("quantized", "int8"), ("half_precision", "fp16")])
def test_a_rewritten_model_is_taken_as_it_is(save_model: SaveModel, kind: str, precision: str) -> None:
    graph = inspect_model(save_model(kind))
    space = search_space(ENGINE, graph, calibrated=True)
    assert [(one.id, one.options.get("recipe")) for one in space.candidates] == [
        (f"onnxruntime-{precision}", None)
    ]
    assert "judged by itself" in space.notes[0]
    with pytest.raises(SpecError, match="only tried as it is"):
        search_space(ENGINE, graph, precisions=[Precision.FP32], calibrated=True)


def test_ids_are_plain_file_names(graph: Graph) -> None:
    for one in search_space(ENGINE, replace(graph, operators={"Conv": 1}), calibrated=True).candidates:
        assert Path(one.id).name == one.id


def test_recipes_that_come_to_the_same_on_a_graph_are_tried_once(graph: Graph) -> None:
    def recipes(**operators: int) -> set[object]:
        space = search_space(ENGINE, replace(graph, operators=operators), calibrated=True)
        return {one.options["recipe"] for one in space.candidates if one.precision is Precision.INT8}

    assert len(recipes(Gemm=2, Softmax=1)) == 1
    assert len(recipes(Gemm=2, Add=1)) == 2
