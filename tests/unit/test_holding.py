"""Layers that an engine has no 8-bit kernel for: their names read, and what has to stay in floating point."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from onnx import helper, numpy_helper

from tests import models
from tritongen.autotune.budget import Budget
from tritongen.autotune.candidates import search_space
from tritongen.autotune.follow_ups import mixed
from tritongen.autotune.holding import Built, build_holding
from tritongen.autotune.jobs import prepared_graph, resolved_inputs
from tritongen.autotune.machine import current_machine
from tritongen.autotune.selection import select
from tritongen.autotune.stages import Setting, prepare_model
from tritongen.autotune.trials import Search, run_trials
from tritongen.engines import NoKernelError, load_engine
from tritongen.engines.tensorrt import api
from tritongen.engines.tensorrt.building import Log, Settings, build_plan, could_not_build
from tritongen.engines.tensorrt.kernels import layers_without_kernel
from tritongen.engines.tensorrt.profiles import Extent
from tritongen.engines.tensorrt.recipes import int8_recipes, shared_recipe
from tritongen.errors import BuildError
from tritongen.precision.holding import Layer, nodes_to_hold
from tritongen.precision.placement import place
from tritongen.precision.prepare import infer_shapes
from tritongen.runs.events import Event
from tritongen.runs.records import BlockCost, Candidate, Outcome, Sensitivity
from tritongen.runs.store import RunDirectory
from tritongen.spec import DataSpec, ModelSpec, Precision

RECIPE = int8_recipes()[0]
SAID = (
    "[optimizer.cpp::computeCosts::3873] Error Code 10: Internal Error "
    "(Could not find any implementation for node {}.)"
)


def missing(name: str) -> tuple[Layer, ...]:
    return layers_without_kernel([SAID.format(name)])


@pytest.mark.parametrize(
    ("name", "members", "last"),
    [
        ("Resize.0", ("Resize.0",), ()),
        ("conv1 + add1 + relu1", ("conv1", "add1", "relu1"), ()),
        ("conv1 || conv2", ("conv1", "conv2"), ()),
        ("PWN(PWN(/act/Sigmoid), /act/Mul)", ("/act/Sigmoid", "/act/Mul"), ()),
        ("conv1 + PWN(PWN(sigmoid(1), mul), add)", ("conv1", "sigmoid(1)", "mul", "add"), ()),
        (
            "model.2.cv2.conv.weight + model.2.cv2.conv.weight_QuantizeLinear + /model.2/cv2/conv/Conv",
            ("model.2.cv2.conv.weight", "model.2.cv2.conv.weight_QuantizeLinear", "/model.2/cv2/conv/Conv"),
            (),
        ),
        ("/model.11/Resize_output_0 copy", ("/model.11/Resize_output_0",), ()),
        ("{ForeignNode[/a/Add]}", ("/a/Add",), ()),
        (
            "{ForeignNode[linear_0.w_0...(Unnamed Layer* 1252) [Shuffle] + Reshape_284]}",
            ("linear_0.w_0",),
            ("Reshape_284",),
        ),
        (
            "{ForeignNode[linear_0.w_0 + (Unnamed Layer* 296) [Shuffle].../out/MatMul]}",
            ("linear_0.w_0",),
            ("/out/MatMul",),
        ),
    ],
)
def test_a_layers_name_is_taken_apart(name: str, members: tuple[str, ...], last: tuple[str, ...]) -> None:
    assert missing(name) == (Layer(name, members, last),)


def test_each_layer_is_read_once_from_all_that_was_said() -> None:
    said = [
        "4: The timing cache will not be used!",
        SAID.format("Resize.0"),
        "Could not find any implementation for node Resize.0.",
        # TensorRT 10
        SAID.format("b").replace(".)", ". In computeCosts at optimizer/common/tactic/optimizer.cpp:4115)"),
        # More memory would help here, and not another precision.
        SAID.format("c").replace(
            ".)", " due to insufficient workspace. See verbose log for requested sizes.)"
        ),
    ]
    assert [layer.name for layer in layers_without_kernel(said)] == ["Resize.0", "b"]
    error = could_not_build("m.onnx", Log([("ERROR", text) for text in said]), "8.6.0")
    assert isinstance(error, NoKernelError)
    assert error.engine == "TensorRT 8.6.0"
    assert not isinstance(could_not_build("m.onnx", Log([("ERROR", said[-1])]), "8.6.0"), NoKernelError)


def node(op_type: str, inputs: str, output: str, **attributes: Any) -> Any:
    return helper.make_node(op_type, inputs.split(), [f"{output}.0"], name=output, **attributes)


def pyramid(resize: str = "up") -> Any:
    """As in PP-OCR's detector: what a convolution takes in INT8 also goes through a Resize; so twice.

    x [n, 8, 8, 8] → stem → a → `resize` → half → sum with b (a convolution of a) → c, d.
    """
    nodes = [
        node("Conv", "x w8", "stem", pads=[1] * 4), node("Relu", "stem.0", "a"),
        node("Resize", "a.0 none twice", resize, mode="nearest"),
        node("AveragePool", f"{resize}.0", "half", kernel_shape=[2, 2], strides=[2, 2]),
        node("Conv", "a.0 w8", "b", pads=[1] * 4), node("Add", "b.0 half.0", "sum"),
        node("Resize", "sum.0 none twice", "other", mode="nearest"),
        node("Conv", "sum.0 w8", "c", pads=[1] * 4),
        node("Exp", "other.0", "e"), node("Identity", "c.0", "d"),
    ]  # fmt: skip
    nodes[-2].output[0], nodes[-1].output[0] = "wide", "y"
    return models.model(
        nodes,
        [models.value("x", ["n", 8, 8, 8])],
        [models.value("wide", ["n", 8, 16, 16]), models.value("y", ["n", 8, 8, 8])],
        [
            models.weights("w8", (8, 8, 3, 3)),
            numpy_helper.from_array(np.array([], np.float32), "none"),
            numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), "twice"),
        ],
    )


def chain() -> Any:
    """As in PP-OCR's recogniser: MatMuls, biases and a LayerNorm-like product behind a convolution."""
    nodes = [
        node("Conv", "x k", "conv"),
        node("Reshape", "conv.0 rows", "flat"),
        node("MatMul", "flat.0 w", "one"), node("Add", "one.0 bias", "biased"),
        node("Softmax", "biased.0", "soft"),
        node("MatMul", "soft.0 v", "two"), node("Mul", "two.0 bias", "scaled"),
        node("Reshape", "scaled.0 rows", "end"),
    ]  # fmt: skip
    nodes[-1].output[0] = "y"
    return models.model(
        nodes,
        [models.value("x", ["n", 8, 4, 1])],
        [models.value("y", ["n", 4, 8])],
        [
            models.weights("k", (8, 8, 1, 1)),
            *(models.weights(name, (8, 8)) for name in "wv"),
            models.weights("bias", (8,)),
            models.ints("rows", 0, 4, 8),
        ],
    )


def held(proto: Any, name: str, before: Collection[str] = (), **how: Any) -> tuple[str, ...]:
    infer_shapes(proto)
    recipe = how.pop("recipe", RECIPE)
    (layer,) = missing(name)
    return nodes_to_hold(proto, place(proto, recipe, "m", held=before), recipe, layer, **how)


def test_what_is_quantized_in_the_layer_is_held() -> None:
    assert held(pyramid(), "b + sum") == ("b", "sum")
    assert held(pyramid(), "w8_QuantizeLinear + c") == ("stem", "b", "c")  # all that take the weight
    assert held(pyramid(), "b.0_QuantizeLinear") == ("sum",)
    assert held(pyramid(), "nothing of this graph") == ()


@pytest.mark.parametrize("recipe", [RECIPE, shared_recipe()])
def test_a_resize_leaves_int8_with_its_neighbours(recipe: Any) -> None:
    """`a.0` is quantized for `b`, `up.0` for `half`: TensorRT moves both pairs to the Resize."""
    proto = pyramid()
    assert held(proto, "up", recipe=recipe) == ("half", "b")
    assert held(proto, "up", ("half", "b"), recipe=recipe) == ()
    assert held(proto, "other", recipe=recipe) == ("c",)


def test_in_the_end_all_of_a_type_are_held() -> None:
    assert held(pyramid(), "up", alike=True) == ("half", "b", "c")
    assert held(pyramid(), "b", alike=True) == ("b",)  # quantized for its own sake: it is one of many


def test_a_layer_that_is_named_again_leaves_int8_with_its_neighbours() -> None:
    assert held(pyramid(), "b") == ("b",)
    assert held(pyramid(), "b", ("b",)) == ()  # nothing takes `a.0` in INT8 any more
    assert held(pyramid(), "half", ("half",)) == ("b", "sum")


def test_a_stretch_holds_what_lies_between_its_ends() -> None:
    name = "{{ForeignNode[{}...(Unnamed Layer* 12) [Shuffle] + end]}}"
    assert held(chain(), name.format("w")) == ("one", "two")
    assert held(chain(), name.format("soft")) == ("two",)
    assert held(chain(), name.format("k")) == ("conv", "one", "two")
    assert held(chain(), name.format("(Unnamed Layer* 3) [Constant]")) == ()
    assert held(chain(), name.format("soft"), ("two",)) == ()


def without_kernels(*names: str, seen: list[Path] | None = None) -> Any:
    """An engine that refuses these layers, one after the other, and then builds."""
    left = list(names)

    def build(path: Path) -> str:
        if not left:
            return "built"
        said = SAID.format(left.pop(0))
        raise could_not_build(path.name, Log([("ERROR", said)]), "8.6.0")

    return build


def attempt(tmp_path: Path, *names: str, proto: Any = None) -> tuple[Built[str], list[tuple[str, ...]]]:
    path = models.save(proto or pyramid(), tmp_path / "m.onnx")
    written: list[tuple[str, ...]] = []

    def write(nodes: Collection[str]) -> Path:
        written.append(tuple(nodes))
        return path

    return build_holding(path, RECIPE, write=write, build=without_kernels(*names)), written


def test_each_attempt_holds_what_was_held_before(tmp_path: Path) -> None:
    built, written = attempt(tmp_path, "up", "other")
    assert written == [(), ("b", "half"), ("b", "half", "c")]
    assert built == Built(
        "built",
        ("b", "half", "c"),
        (
            "TensorRT 8.6.0 has no INT8 kernel for up: b, half stay in FP16",
            "TensorRT 8.6.0 has no INT8 kernel for other: c stays in FP16",
        ),
    )
    assert attempt(tmp_path)[0] == Built("built")


def test_the_error_stands_where_nothing_can_be_held(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"could not build m\.onnx") as refused:
        attempt(tmp_path, "nothing of this graph")
    assert refused.value.found == SAID.format("nothing of this graph")
    assert not isinstance(refused.value, NoKernelError)
    with pytest.raises(BuildError) as refused:  # the same again: it was not the pairs
        attempt(tmp_path, "up", "up")
    assert "b, half stay in FP16; then" in str(refused.value.found)
    with pytest.raises(BuildError):  # all that has weights
        attempt(tmp_path, "stem + b + c")


def test_a_build_is_tried_again_three_times(tmp_path: Path) -> None:
    refused = ("half", "sum", "other")
    assert attempt(tmp_path, *refused)[0].held == ("half", "sum", "b", "c")
    with pytest.raises(BuildError):
        attempt(tmp_path, *refused, "b")


@pytest.mark.usefixtures("standin")
@pytest.mark.parametrize("left", [None, SimpleNamespace(serialize=lambda: None, combine=lambda *_: True)])
def test_a_failed_build_that_leaves_no_timing_cache_is_explained_all_the_same(
    left: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trt = api.load()
    monkeypatch.setattr(trt.IBuilderConfig, "get_timing_cache", lambda _: left)
    proto = pyramid("no_int8_kernel")
    proto.graph.node.insert(0, helper.make_node("DequantizeLinear", ["x", "scale"], ["a.0"]))
    path = models.save(proto, tmp_path / "m.onnx")
    extents = {"x": Extent((1, 8, 8, 8), (1, 8, 8, 8), (1, 8, 8, 8))}
    settings = Settings(Precision.INT8, profiles=[extents])
    with pytest.raises(NoKernelError) as refused:
        build_plan(trt, path, settings, timing_cache=tmp_path / "a.timing")
    assert [layer.name for layer in refused.value.layers] == ["no_int8_kernel"]
    assert not (tmp_path / "a.timing").exists()


def test_mixtures_hold_what_their_base_does() -> None:
    base = Candidate(id="int8", engine="tensorrt", precision=Precision.INT8, held=("half", "b"))
    blocks = (BlockCost(nodes=("b", "c"), error=0.2), BlockCost(nodes=("stem",), error=0.1))
    found = Sensitivity(key="", candidate="int8", simulated=True, blocks=blocks, points=(), held=1)
    assert mixed(base, found, 1).held == ("half", "b", "c")


def test_a_trial_without_a_kernel_ends_with_a_plan_and_a_note(
    standin: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the child, on the stand-in: it refuses a Resize with a Q/DQ pair beside it, as 8.6 did."""
    monkeypatch.setenv("HOME", str(tmp_path))
    path = models.save(pyramid("no_int8_kernel"), tmp_path / "m.onnx")
    np.savez(tmp_path / "data.npz", x=np.random.default_rng(0).standard_normal((8, 8, 8, 8)).astype("f4"))
    data = DataSpec(calibration=str(tmp_path / "data.npz"), validation=str(tmp_path / "data.npz"))
    spec = ModelSpec(path=path, max_batch_size=2, engine="tensorrt", data=data)
    seen: list[Event] = []
    setting = Setting("m", spec, RunDirectory(tmp_path / "run"), current_machine(), seen.append, "quick")
    preparation = prepare_model(setting)
    graph = prepared_graph(spec, preparation)
    engine = load_engine("tensorrt").configured(spec, "quick")
    engine = engine.with_shapes(resolved_inputs(graph, preparation), 2)
    space = search_space(engine, graph, precisions=[Precision.INT8], calibrated=True)
    candidate = next(one for one in space.candidates if one.options.get("recipe") == "s8-residual")
    search = Search(setting, engine, graph, preparation, Budget())

    (trial,) = run_trials(search, [candidate], fallback=False).trials
    note = "TensorRT 8.6.0 has no INT8 kernel for no_int8_kernel: b, half stay in FP16"
    assert trial.outcome is Outcome.PASSED, trial.reason
    assert trial.notes == (note,)
    assert trial.candidate == candidate.model_copy(update={"held": ("b", "half")})
    assert [(event.stage, event.subject) for event in seen if event.message == note] == [
        ("trial", candidate.id)
    ]
    assert note in select([trial], max_batch_size=2).notes
    plan = json.loads((tmp_path / "run" / "trials" / candidate.id / "model.plan").read_bytes())
    assert plan["served"] > 0  # by what the build that failed had timed
    # What was measured answers the candidate that was asked for, held nodes or not.
    assert run_trials(search, [candidate], fallback=False).trials == (trial,)
    assert seen[-1].status == "skipped"
    assert not (tmp_path / "run" / "trials" / candidate.id / "rewritten").exists()
