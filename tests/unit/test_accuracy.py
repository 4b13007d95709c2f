"""The accuracy gate, on a net trained here and on tiny models with known differences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from tests import models
from tritongen.autotune.accuracy import judge
from tritongen.autotune.calibrate import calibrate
from tritongen.autotune.closeness import RELATIVE_L2, Closeness
from tritongen.engines.onnxruntime import OnnxRuntimeEngine
from tritongen.engines.onnxruntime.session import OnnxRuntimeRunner
from tritongen.errors import DataError, ModelError, SpecError
from tritongen.graph import inspect_model
from tritongen.precision.int8 import quantize
from tritongen.precision.recipe import Int8Recipe
from tritongen.runs.records import Accuracy
from tritongen.spec import AccuracySpec, Precision

Array = NDArray[np.generic]


class Samples:
    """A `samples.Dataset` in memory."""

    def __init__(self, labels: Array | None = None, *, synthetic: bool = False, **arrays: Array) -> None:
        self._arrays = arrays
        self.labels = labels
        self.synthetic = synthetic
        self.count = len(next(iter(arrays.values())))
        self.digest = "d"

    def batches(self, size: int) -> Iterator[dict[str, Array]]:
        for start in range(0, self.count, size):
            yield {name: array[start : start + size] for name, array in self._arrays.items()}


def verdict(
    reference: Path, candidate: Path, data: Samples, precision: Precision = Precision.INT8, **settings: object
) -> Accuracy:
    spec = AccuracySpec.model_validate(settings)
    with OnnxRuntimeRunner(reference) as before, OnnxRuntimeRunner(candidate) as after:
        return judge(before, after, data, spec, precision, batch_size=5)


def table(scores: Array, path: Path, name: str = "y") -> Path:
    """A model that answers sample i (its input's value) with row i of `scores`."""
    kind = helper.np_dtype_to_tensor_dtype(scores.dtype)
    proto = models.model(
        [helper.make_node("Gather", ["rows", "i"], [name])],
        [models.value("i", ["batch"], TensorProto.INT64)],
        [models.value(name, ["batch", *scores.shape[1:]], kind)],
        [numpy_helper.from_array(scores, "rows")],
    )
    return models.save(proto, path)


def indices(count: int) -> Array:
    return np.arange(count)


def one_hot(answers: list[int], classes: int = 4) -> Array:
    return np.eye(classes, dtype=np.float32)[answers]


@pytest.fixture
def pair(tmp_path: Path) -> Mapping[str, Path]:
    """20 answers: the reference gets 18 right, the candidate loses 2 of those and wins 1."""
    truth = [i % 4 for i in range(20)]
    before = [*truth[:18], (truth[18] + 1) % 4, (truth[19] + 1) % 4]
    after = [(truth[0] + 1) % 4, (truth[1] + 1) % 4, *before[2:18], truth[18], before[19]]
    return {
        "before": table(one_hot(before), tmp_path / "before.onnx"),
        "after": table(one_hot(after), tmp_path / "after.onnx"),
    }


def truth(count: int = 20) -> Array:
    return np.arange(count) % 4


def test_top1_counts_points_and_flips(pair: Mapping[str, Path]) -> None:
    result = verdict(pair["before"], pair["after"], Samples(truth(), i=indices(20)))
    assert (result.basis, result.metric, result.samples) == ("labels", "top1", 20)
    assert result.reference_value == pytest.approx(0.9)
    assert result.value == pytest.approx(0.85)
    assert result.loss == pytest.approx(5)
    assert not result.passed
    assert "2 right answers lost, 1 won" in result.summary
    assert "±" in result.summary


@pytest.mark.parametrize(("limit", "passed"), [(5.0, True), (4.9, False)])
def test_the_limit_is_points_of_the_metric(pair: Mapping[str, Path], limit: float, passed: bool) -> None:
    result = verdict(pair["before"], pair["after"], Samples(truth(), i=indices(20)), limit=limit)
    assert result.passed is passed


def test_a_gain_passes(pair: Mapping[str, Path]) -> None:
    result = verdict(pair["after"], pair["before"], Samples(truth(), i=indices(20)), limit=0)
    assert result.passed
    assert result.loss == pytest.approx(-5)
    assert "gain 5.00 points" in result.summary


def test_top_k_and_ties(tmp_path: Path) -> None:
    scores = np.array([[3, 2, 1, 0], [3, 2, 1, 0], [1, 1, 1, 1]], np.float32)
    model = table(scores, tmp_path / "m.onnx")
    labels = np.array([1, 2, 0])
    top1 = verdict(model, model, Samples(labels, i=indices(3)), metric="top1")
    top2 = verdict(model, model, Samples(labels, i=indices(3)), metric="top2")
    top3 = verdict(model, model, Samples(labels, i=indices(3)), metric="top3")
    assert [r.value for r in (top1, top2, top3)] == pytest.approx([0, 1 / 3, 2 / 3])


def test_top1_of_a_model_that_answers_with_class_numbers(tmp_path: Path) -> None:
    model = table(np.array([0, 1, 2, 0]), tmp_path / "m.onnx")
    assert verdict(model, model, Samples(truth(4), i=indices(4))).value == pytest.approx(0.75)


def test_mean_iou_from_maps_and_from_scores(tmp_path: Path) -> None:
    labels = np.array([[[0, 0], [1, 1]], [[0, 1], [1, 255]]])
    found = np.array([[[0, 1], [1, 1]], [[0, 1], [1, 0]]])
    expected = np.mean([2 / 3, 4 / 5])
    maps = table(found, tmp_path / "maps.onnx")
    scores = table(np.moveaxis(np.eye(3, dtype=np.float32)[found], -1, 1).copy(), tmp_path / "scores.onnx")
    for model in (maps, scores):
        result = verdict(model, model, Samples(labels, i=indices(2)))
        assert result.metric == "mean_iou"
        assert result.value == pytest.approx(expected)


def f1(wanted: Array, found: Array) -> float:
    """2 · precision · recall ÷ (precision + recall)."""
    hits = float((wanted.astype(bool) & found.astype(bool)).sum())
    precision, recall = hits / float(found.sum()), hits / float(wanted.sum())
    return 2 * precision * recall / (precision + recall)


def test_f1_binary_macro_and_multi_label(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    binary = random.standard_normal((60, 1)).astype(np.float32)
    wide = random.standard_normal((60, 3)).astype(np.float32)
    several = random.random((60, 3)).astype(np.float32)
    yes, classes, marks = random.integers(0, 2, 60), random.integers(0, 3, 60), random.integers(0, 2, (60, 3))
    cases = [
        (binary, yes, f1(yes, binary[:, 0] > 0)),
        (wide[:, :2].copy(), yes, f1(yes, wide[:, :2].argmax(1))),
        (wide, classes, np.mean([f1(classes == c, wide.argmax(1) == c) for c in range(3)])),
        (several, marks, np.mean([f1(marks[:, c], several[:, c] > 0.5) for c in range(3)])),
    ]
    for number, (scores, labels, expected) in enumerate(cases):
        model = table(scores, tmp_path / f"{number}.onnx")
        result = verdict(model, model, Samples(labels, i=indices(60)), metric="f1")
        assert result.value == pytest.approx(expected), number


def test_a_users_metric(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_metric.py").write_text(
        "def near(outputs, labels):\n    return float((abs(outputs['y'] - labels) < 0.5).mean())\n"
        "def percent(outputs, labels):\n    return 97.0\n"
        "def broken(outputs, labels):\n    return outputs['no such output']\n"
    )
    monkeypatch.chdir(tmp_path)
    values = np.arange(10, dtype=np.float32)
    before, after = table(values, tmp_path / "a.onnx"), table(values + (values > 7), tmp_path / "b.onnx")
    data = Samples(values.copy(), i=indices(10))
    result = verdict(before, after, data, metric="my_metric:near", limit=25)
    assert (result.reference_value, result.value, result.passed) == (1.0, 0.8, True)
    for metric, text in (("percent", "share from 0 to 1"), ("broken", "no such output")):
        with pytest.raises(DataError, match=text):
            verdict(before, after, data, metric=f"my_metric:{metric}")
    with pytest.raises(SpecError, match="cannot be found"):
        verdict(before, after, data, metric="my_metric:absent")


def test_labels_that_say_nothing_ask_for_a_metric(tmp_path: Path) -> None:
    model = table(np.arange(4, dtype=np.float32), tmp_path / "m.onnx")
    with pytest.raises(SpecError, match="no metric follows"):
        verdict(model, model, Samples(np.ones(4), i=indices(4)))


def test_labels_and_outputs_that_do_not_fit(tmp_path: Path) -> None:
    model = table(np.zeros((4, 2, 3, 3), np.float32), tmp_path / "m.onnx")
    with pytest.raises(DataError, match=r"\[samples, classes\]"):
        verdict(model, model, Samples(truth(4), i=indices(4)))
    with pytest.raises(DataError, match="fewer labels"):
        verdict(model, model, Samples(truth(3), i=indices(4)))
    with pytest.raises(SpecError, match="'z', which the model does not have"):
        verdict(model, model, Samples(truth(4), i=indices(4)), output="z")
    with pytest.raises(SpecError, match="needs labels"):
        verdict(model, model, Samples(i=indices(4)), metric="f1")


@pytest.mark.parametrize("metric", ["top1", "f1"])
@pytest.mark.parametrize(
    ("labels", "found"),
    [
        ([0, 1, 2, 4], "4"),
        ([1, 2, -1, 3], "-1"),
        ([0.0, 1.0, 2.5, 3.0], r"2\.5, in labels of float64"),
        ([0.0, 1.0, float("nan"), 3.0], "nan, in labels"),
    ],
)
def test_labels_that_no_answer_can_equal_are_refused(
    metric: str, labels: list[float], found: str, tmp_path: Path
) -> None:
    """Classes counted from 1 would cost every candidate alike, and so prove it as good as the reference."""
    model = table(one_hot([0, 1, 2, 3]), tmp_path / "m.onnx")
    with pytest.raises(DataError, match=f"found: +{found}"):
        verdict(model, model, Samples(np.array(labels), i=indices(4)), metric=metric)


def test_labels_that_are_names_are_told_so(tmp_path: Path) -> None:
    model, names = table(one_hot([0, 1]), tmp_path / "m.onnx"), np.array(["cat", "dog"])
    for metric in (None, "top1"):
        with pytest.raises(DataError, match="the labels are text") as caught:
            verdict(model, model, Samples(names, i=indices(2)), metric=metric)
        assert caught.value.found == "'cat'"


def test_scores_are_found_beside_names_of_classes(tmp_path: Path) -> None:
    """As scikit-learn's classifiers have it: the label as text first, its probabilities second."""
    proto = onnx.load(table(one_hot([0, 1]), tmp_path / "scores.onnx"))
    names = helper.make_tensor("names", TensorProto.STRING, [2], [b"cat", b"dog"])
    proto.graph.initializer.append(names)
    proto.graph.node.append(helper.make_node("Gather", ["names", "i"], ["label"]))
    proto.graph.output.insert(0, models.value("label", ["batch"], TensorProto.STRING))
    model = models.save(proto, tmp_path / "m.onnx")
    assert verdict(model, model, Samples(np.array([0, 1]), i=indices(2))).value == 1


def test_nothing_is_proven_where_the_reference_itself_gets_nothing_right(tmp_path: Path) -> None:
    model, labels = table(one_hot([0, 1, 2, 3]), tmp_path / "m.onnx"), np.array([1, 2, 3, 0])
    result = verdict(model, model, Samples(labels, i=indices(4)))
    assert not result.passed
    assert "do the labels belong to these data" in result.summary
    assert verdict(model, model, Samples(labels, i=indices(4)), Precision.FP32).passed


@pytest.mark.parametrize(
    ("gain", "shown", "passed"),
    [(1.0501, "5.01 %", False), (1.05001, "5.001 %", False), (1.0499, "4.99 %", True)],
)
def test_a_figure_beside_its_limit_is_told_in_enough_digits(
    gain: float, shown: str, passed: bool, tmp_path: Path
) -> None:
    before = table(np.ones((4, 8), np.float32), tmp_path / "a.onnx")
    after = table(np.full((4, 8), gain, np.float32), tmp_path / "b.onnx")
    result = verdict(before, after, Samples(i=indices(4)), metric="relative_l2")
    assert result.passed is passed
    assert f"by {shown} on 4 samples (limit ≤ 5 %)" in result.summary


def test_without_labels_the_worst_output_decides(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Mul", ["x", "gain"], ["scores"]),
        helper.make_node("ReduceSum", ["x", "axes"], ["total"], keepdims=1),
        helper.make_node("ArgMax", ["x"], ["best"], axis=1, keepdims=0),
    ]

    def save(gain: list[float], path: Path) -> Path:
        return models.save(
            models.model(
                [
                    *nodes[:1],
                    helper.make_node("ReduceSum", ["scores", "axes"], ["total"], keepdims=1),
                    nodes[2],
                ],
                [models.value("x", ["batch", 3])],
                [
                    models.value("scores", ["batch", 3]),
                    models.value("total", ["batch", 1]),
                    models.value("best", ["batch"], TensorProto.INT64),
                ],
                [numpy_helper.from_array(np.asarray(gain, np.float32), "gain"), models.ints("axes", 1)],
            ),
            path,
        )

    x = np.random.default_rng(0).random((50, 3)) + np.arange(3)
    data = Samples(x=x.astype(np.float32))
    before, near = save([1, 1, 1], tmp_path / "a.onnx"), save([1.2, 1.2, 1.2], tmp_path / "b.onnx")
    result = verdict(before, near, data)
    measures = {one.output: (one.measure, one.passed) for one in result.outputs}
    assert measures == {
        "scores": ("top1_agreement", True),
        "total": ("relative_l2", False),
        "best": ("equal", True),
    }
    assert (result.basis, result.passed, result.metric) == ("reference", False, "relative_l2")
    assert result.value == pytest.approx(0.2, rel=1e-3)
    assert "'total', the worst of 3" in result.summary
    assert verdict(before, near, data, limit=21).passed
    assert verdict(before, near, data, output="scores").passed
    cosine = verdict(before, near, data, output="total", metric="cosine")
    assert cosine.value == pytest.approx(0, abs=1e-9)


def test_rank_3_rows_are_scores_only_if_they_are_distributions(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    hidden = random.standard_normal((6, 5, 7)).astype(np.float32)
    softmax = np.exp(hidden) / np.exp(hidden).sum(axis=-1, keepdims=True)
    for array, measure in ((hidden, "relative_l2"), (softmax, "top1_agreement")):
        model = table(array, tmp_path / f"{measure}.onnx")
        assert verdict(model, model, Samples(i=indices(6))).metric == measure


@pytest.mark.parametrize("labels", [None, truth()], ids=["closeness", "labels"])
def test_nan_fails_with_the_reason(labels: Array | None, pair: Mapping[str, Path], tmp_path: Path) -> None:
    scores = one_hot([i % 4 for i in range(20)])
    scores[7] = np.nan
    broken = table(scores, tmp_path / "nan.onnx")
    result = verdict(pair["before"], broken, Samples(labels, i=indices(20)), Precision.FP32, limit=100)
    assert not result.passed
    assert "NaN" in result.summary
    assert Accuracy.model_validate_json(result.model_dump_json()) == result


def test_infinities_of_the_reference_are_no_difference(tmp_path: Path) -> None:
    masked = np.array([[0.5, -np.inf, 1], [1, 2, -np.inf]], np.float32)
    model = table(masked, tmp_path / "m.onnx")
    result = verdict(model, model, Samples(i=indices(2)), metric="relative_l2", limit=0)
    assert result.passed
    assert result.value == 0


def test_outputs_of_another_shape_cannot_be_compared(tmp_path: Path) -> None:
    one, two = (
        table(np.ones((4, 3), np.float32), tmp_path / "a.onnx"),
        table(np.ones((4, 2), np.float32), tmp_path / "b.onnx"),
    )
    result = verdict(one, two, Samples(i=indices(4)), Precision.FP32)
    assert not result.passed
    assert "cannot be compared" in result.summary
    assert Accuracy.model_validate_json(result.model_dump_json()) == result


def test_all_zero_references(tmp_path: Path) -> None:
    zero, one = (table(np.full((4, 1), v, np.float32), tmp_path / f"{v}.onnx") for v in (0, 1))
    assert verdict(zero, zero, Samples(i=indices(4))).passed
    assert not verdict(zero, one, Samples(i=indices(4))).passed


@pytest.mark.parametrize(
    ("precision", "passed"), [(Precision.FP32, True), (Precision.FP16, True), (Precision.INT8, False)]
)
def test_made_up_inputs_never_prove_int8(
    precision: Precision, passed: bool, pair: Mapping[str, Path]
) -> None:
    result = verdict(pair["before"], pair["before"], Samples(i=indices(20), synthetic=True), precision)
    assert result.passed is passed
    assert result.basis == "synthetic"
    assert result.metric == "relative_l2"
    assert ("never selected on made-up inputs" in result.summary) is not passed


def test_a_reference_of_another_precision_is_fed_what_it_takes(tmp_path: Path) -> None:
    half = models.save(models.half_precision(), tmp_path / "half.onnx")
    proto = models.half_precision()
    weights = numpy_helper.to_array(proto.graph.initializer[0]).astype(np.float32)
    proto.graph.initializer[0].CopyFrom(numpy_helper.from_array(weights, "w"))
    for tensor in (*proto.graph.input, *proto.graph.output):
        tensor.type.tensor_type.elem_type = TensorProto.FLOAT
    full = models.save(proto, tmp_path / "full.onnx")
    data = Samples(x=np.random.default_rng(0).standard_normal((20, 4)).astype(np.float16))
    with OnnxRuntimeRunner(full) as before, OnnxRuntimeRunner(half) as after:
        result = judge(
            before, after, data, AccuracySpec(), Precision.FP16, batch_size=5,
            reference_inputs=inspect_model(full).inputs,
        )  # fmt: skip
    assert result.passed


def test_a_reference_with_other_names_is_refused(tmp_path: Path) -> None:
    rows = one_hot([0, 1, 2])
    model = table(rows, tmp_path / "m.onnx")
    other = table(rows, tmp_path / "other.onnx", name="z")
    with pytest.raises(ModelError, match="lacks outputs"):
        verdict(other, model, Samples(i=indices(3)))
    relu = models.save(models.relu(), tmp_path / "relu.onnx")
    with (
        OnnxRuntimeRunner(relu) as before,
        OnnxRuntimeRunner(model) as after,
        pytest.raises(ModelError, match="takes other inputs"),
    ):
        judge(
            before, after, Samples(i=indices(3)), AccuracySpec(), Precision.FP32, batch_size=5,
            reference_inputs=inspect_model(relu).inputs,
        )  # fmt: skip


def test_a_reference_that_does_not_take_the_shapes_is_told_apart_from_the_model(tmp_path: Path) -> None:
    relu = models.save(models.relu(), tmp_path / "relu.onnx")
    fixed = models.save(models.relu(batch=1), tmp_path / "fixed.onnx")
    data, inputs = Samples(x=np.ones((4, 4), np.float32)), inspect_model(fixed).inputs
    with (
        OnnxRuntimeRunner(fixed) as before,
        OnnxRuntimeRunner(relu) as after,
        pytest.raises(ModelError, match="the accuracy reference does not run") as caught,
    ):
        judge(before, after, data, AccuracySpec(), Precision.FP32, batch_size=4, reference_inputs=inputs)
    assert caught.value.expected == "x: float32[1, 4]"


def test_strings_are_compared_for_equality(tmp_path: Path) -> None:
    model = models.save(models.strings(), tmp_path / "m.onnx")
    words = np.array([["cat"], ["dog"], ["emu"]], object)
    result = verdict(model, model, Samples(word=words), Precision.FP32)
    assert {one.output: one.measure for one in result.outputs} == {"label": "equal", "echo": "equal"}
    assert result.passed


def test_one_call_is_one_sample_where_there_is_no_batch_axis(tmp_path: Path) -> None:
    """x [6] → scores [4]: each call has one label."""
    proto = models.model(
        [helper.make_node("MatMul", ["x", "w"], ["scores"])],
        [models.value("x", [6])],
        [models.value("scores", [4])],
        [models.weights("w", (6, 4))],
    )
    model = models.save(proto, tmp_path / "m.onnx")
    x = np.random.default_rng(0).standard_normal((9, 6)).astype(np.float32)

    class Calls(Samples):
        def batches(self, size: int) -> Iterator[dict[str, Array]]:  # noqa: ARG002
            return ({"x": row} for row in x)

    labels = (x @ numpy_helper.to_array(proto.graph.initializer[0])).argmax(axis=1)
    with OnnxRuntimeRunner(model) as before, OnnxRuntimeRunner(model) as after:
        result = judge(
            before, after, Calls(labels, x=x), AccuracySpec(), Precision.INT8, batch_size=5, batched=False
        )
    assert (result.value, result.samples) == (1.0, 9)


def trained_digits() -> tuple[onnx.ModelProto, Array, Array, Array]:
    """A 64-48-10 net trained on scikit-learn's digits; calibration images, test images and labels."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype(np.float32)
    order = np.random.default_rng(0).permutation(len(images))
    train, test = order[:1200], order[1200:]
    random = np.random.default_rng(1)
    w1, w2 = random.standard_normal((64, 48)) * 0.18, random.standard_normal((48, 10)) * 0.2
    b1, b2 = np.zeros(48), np.zeros(10)
    for _ in range(25):
        for batch in np.array_split(random.permutation(train), 40):
            x, wanted = images[batch].astype(np.float64), np.eye(10)[labels[batch]]
            hidden = np.maximum(x @ w1 + b1, 0)
            scores = hidden @ w2 + b2
            share = np.exp(scores - scores.max(axis=1, keepdims=True))
            slope = (share / share.sum(axis=1, keepdims=True) - wanted) / len(batch)
            back = (slope @ w2.T) * (hidden > 0)
            for weight, change in (
                (w2, hidden.T @ slope),
                (b2, slope.sum(0)),
                (w1, x.T @ back),
                (b1, back.sum(0)),
            ):
                weight -= 0.5 * change  # noqa: PLW2901
    arrays = {"w1": w1, "b1": b1, "w2": w2, "b2": b2}
    proto = models.model(
        [
            helper.make_node("Gemm", ["x", "w1", "b1"], ["h"]),
            helper.make_node("Relu", ["h"], ["r"]),
            helper.make_node("Gemm", ["r", "w2", "b2"], ["scores"]),
        ],
        [models.value("x", ["batch", 64])],
        [models.value("scores", ["batch", 10])],
        [numpy_helper.from_array(v.astype(np.float32), name) for name, v in arrays.items()],
    )
    return proto, images[train[:200]], images[test], labels[test]


def test_int8_passes_on_digits_and_a_ruined_recipe_is_rejected(tmp_path: Path) -> None:
    proto, calibration, images, labels = trained_digits()
    model = models.save(proto, tmp_path / "digits.onnx")
    data = Samples(labels, x=images)
    recipe = OnnxRuntimeEngine().recipes(Precision.INT8)[0]
    assert isinstance(recipe, Int8Recipe)
    ranges = calibrate(
        model, recipe, Samples(x=calibration), tmp_path / "run", model_digest="m", batch_size=50
    )
    good, bad = tmp_path / "good.onnx", tmp_path / "bad.onnx"
    quantize(model, ranges.by("mse"), recipe, good)
    quantize(model, dict.fromkeys(ranges.tensors, (0.0, 0.3)), recipe, bad)
    passed, rejected = verdict(model, good, data), verdict(model, bad, data)
    assert passed.reference_value is not None
    assert passed.reference_value > 0.93
    assert passed.passed, passed.summary
    assert not rejected.passed, rejected.summary
    assert rejected.loss is not None
    assert rejected.loss > 1


class TestValuesThatCannotBeCompared:
    def closeness(self, reference: list[float]) -> Closeness:
        values = np.asarray([reference], np.float32)
        one = Closeness("y", RELATIVE_L2)
        one.update(values, values)
        return one

    def test_what_is_nan_in_the_reference_is_said(self) -> None:
        one = self.closeness([1.0, float("nan")])
        assert one.doubt() == "50 % of the reference's 'y' is NaN or infinite, which cannot be compared"
        assert one.result(Precision.INT8, None).passed

    def test_nothing_to_compare_proves_nothing(self) -> None:
        one = self.closeness([float("nan"), float("inf")])
        assert "all of the reference's 'y'" in str(one.doubt())
        assert not one.result(Precision.INT8, None).passed
        assert one.result(Precision.FP32, None).passed

    def test_finite_values_leave_no_doubt(self) -> None:
        assert self.closeness([1.0, 2.0]).doubt() is None


class TestCandidatesThatFoolAMetric:
    """Each of them was once let pass, or rejected, by an accident of the metric."""

    def test_a_class_map_that_forgot_a_class(self, tmp_path: Path) -> None:
        labels = np.array([[[0, 0], [1, 1]], [[0, 0], [2, 255]]])
        exact = table(np.where(labels == 255, 0, labels), tmp_path / "exact.onnx")
        broken = table(np.zeros_like(labels), tmp_path / "broken.onnx")
        result = verdict(exact, broken, Samples(labels, i=indices(2)))
        assert (result.reference_value, result.value) == pytest.approx((1, 4 / 7 / 3))
        assert not result.passed

    @pytest.mark.parametrize("beside", [0.0, np.nan])
    def test_scores_that_are_nan(self, beside: float, tmp_path: Path) -> None:
        """Also where the reference holds NaN elsewhere."""
        scores = one_hot([0, 1, 2, 3])
        scores[3] = beside
        ruined = scores.copy()
        ruined[:2] = np.nan
        before, after = table(scores, tmp_path / "b.onnx"), table(ruined, tmp_path / "a.onnx")
        result = verdict(before, after, Samples(truth(4), i=indices(4)), limit=100)
        assert not result.passed
        assert result.value == pytest.approx(0.25)
        assert "NaN" in result.summary

    def test_f1_of_class_numbers(self, tmp_path: Path) -> None:
        wanted = np.arange(30) % 3
        swapped = table(np.array([0, 2, 1])[wanted], tmp_path / "swapped.onnx")
        exact = table(wanted, tmp_path / "exact.onnx")
        result = verdict(exact, swapped, Samples(wanted, i=indices(30)), metric="f1")
        assert (result.reference_value, result.value) == pytest.approx((1, 1 / 3))

    def test_f1_of_probabilities_that_8_bits_rounded_beyond_1(self, tmp_path: Path) -> None:
        yes = np.arange(20) % 2
        shares = np.where(yes == 1, 0.9, 0.1).astype(np.float32)[:, None]
        rounded = shares + np.float32(0.004) * (np.arange(20)[:, None] % 3 - 1)
        rounded[1] = 1.004
        exact, after = table(shares, tmp_path / "e.onnx"), table(rounded, tmp_path / "a.onnx")
        assert verdict(exact, after, Samples(yes, i=indices(20)), metric="f1").value == 1

    @pytest.mark.parametrize("name", ["boxes", "y"])
    def test_outputs_that_are_no_scores_are_compared_as_numbers(self, name: str, tmp_path: Path) -> None:
        """The largest coordinate of a box, or the largest number of an embedding, says nothing."""
        rows = np.abs(np.random.default_rng(0).standard_normal((20, 4)).astype(np.float32))
        rows[:, 3] += 10
        if name == "y":
            rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        moved = rows * np.array([3, 3, 1, 1], np.float32)
        before, after = table(rows, tmp_path / "b.onnx", name), table(moved, tmp_path / "a.onnx", name)
        result = verdict(before, after, Samples(i=indices(20)))
        assert result.metric == RELATIVE_L2
        assert not result.passed

    def test_one_number_per_sample_has_no_highest_one(self, tmp_path: Path) -> None:
        ages = table(np.linspace(20, 60, 20, dtype=np.float32), tmp_path / "a.onnx")
        assert verdict(ages, ages, Samples(i=indices(20)), metric="agreement").metric == RELATIVE_L2


class TestFewSamples:
    """What so many samples cannot rule out is said, and not counted."""

    @pytest.mark.parametrize("labels", [None, truth()], ids=["closeness", "labels"])
    def test_agreement_on_few_samples_proves_little(self, labels: Array | None, tmp_path: Path) -> None:
        model = table(one_hot([i % 4 for i in range(20)]), tmp_path / "m.onnx")
        result = verdict(model, model, Samples(labels, i=indices(20)))
        assert result.passed
        assert "so few samples cannot rule out a loss of" in result.summary
        assert "± 0.00" not in result.summary
        exact = verdict(model, model, Samples(labels, i=indices(20)), Precision.FP32)
        assert "so few samples" not in exact.summary

    def test_many_samples_prove_it(self, tmp_path: Path) -> None:
        model = table(one_hot([i % 4 for i in range(400)]), tmp_path / "m.onnx")
        for labels in (None, truth(400)):
            result = verdict(model, model, Samples(labels, i=indices(400)))
            assert result.passed
            assert "so few samples" not in result.summary
