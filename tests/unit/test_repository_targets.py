"""Serving images, and ONNX files made readable for them or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from tests import models
from tests.conftest import SaveModel
from tritongen.errors import ModelError, SpecError
from tritongen.repository.adaptation import Adapted, adapt_for_target, adapt_model
from tritongen.repository.onnx_versions import needed_ir_version, onnx_versions
from tritongen.repository.targets import EMBEDDED, embedded, find_target, known_tags
from tritongen.runs.store import RunDirectory
from tritongen.spec import ModelSpec

OLD = "24.04"  # ONNX Runtime 1.17.3: IR version 9, opset 20


class TestTable:
    def test_the_embedded_target_is_what_is_installed(self) -> None:
        target = find_target(None)
        assert target is embedded()
        assert target.name == EMBEDDED
        assert str(target.onnxruntime) == onnxruntime.__version__
        assert target.max_ir_version is not None
        assert target.max_ir_version >= 10

    @pytest.mark.parametrize(
        "image",
        [
            "24.04",
            "24.04-py3",
            "nvcr.io/nvidia/tritonserver:24.04-py3",
            "localhost:5000/mirror/tritonserver:24.04-py3",
        ],
    )
    def test_images_by_any_of_their_names(self, image: str) -> None:
        target = find_target(image)
        assert (target.max_ir_version, target.max_opset) == (9, 20)

    @pytest.mark.parametrize(
        "image", ["latest", "99.01", "24.04-vllm-python-py3", "", "24.04; rm", "ubuntu:22.04"]
    )
    def test_unknown_images_are_refused_with_the_range(self, image: str) -> None:
        with pytest.raises(SpecError) as caught:
            find_target(image)
        assert caught.value.expected

    def test_rows_are_complete_and_told_apart(self) -> None:
        targets = [find_target(tag) for tag in known_tags()]
        assert len(targets) == len({target.name for target in targets}) >= 40
        assert all(target.triton is not None for target in targets)
        for target in targets:
            if target.onnxruntime is not None:
                assert target.max_ir_version is not None, target.name
        assert "unverified" in str(find_target("26.10").tensorrt)
        assert str(find_target("26.09").tensorrt) == "11.3"

    def test_newer_images_read_no_less(self) -> None:
        limits = [(t.max_ir_version or 0, t.max_opset or 0) for t in map(find_target, known_tags())]
        assert limits == sorted(limits)


def typed(dtype: int) -> Any:
    return models.model(
        [helper.make_node("Identity", ["x"], ["y"])],
        [models.value("x", ["b", 2], dtype)],
        [models.value("y", ["b", 2], dtype)],
        opset=21,
    )


class TestNeededIrVersion:
    @pytest.mark.parametrize(
        ("proto", "needed"),
        [
            (models.relu(), 3),
            (models.linear(), 4),
            (typed(TensorProto.BFLOAT16), 4),
            (typed(TensorProto.FLOAT8E4M3FN), 9),
            (typed(TensorProto.INT4), 10),
        ],
    )
    def test_by_what_occurs(self, proto: Any, needed: int) -> None:
        assert needed_ir_version(proto) == needed

    def test_inside_branches_too(self) -> None:
        proto = models.branching()
        branch = next(a.g for a in proto.graph.node[3].attribute if a.name == "then_branch")
        branch.initializer[0].data_type = TensorProto.INT4
        assert needed_ir_version(proto) == 10

    def test_local_functions(self) -> None:
        proto = models.relu()
        function = helper.make_function(
            "own", "F", ["a"], ["b"], [helper.make_node("Relu", ["a"], ["b"])], []
        )
        proto.functions.append(function)
        assert needed_ir_version(proto) == 8


class TestVersionsOfAFile:
    def test_without_reading_the_graph(self, save_model: SaveModel) -> None:
        assert onnx_versions(save_model("strings")) == (8, {"": 17, "ai.onnx.ml": 2})

    def test_agrees_with_onnx_on_every_model(self, servable_model: Path) -> None:
        proto = onnx.load(servable_model)
        opsets = {entry.domain: entry.version for entry in proto.opset_import}
        assert onnx_versions(servable_model) == (proto.ir_version, opsets)

    @pytest.mark.parametrize("data", [b"this is a text", b"\x08", b"\x3a\xff\xff\x7f\x00"])
    def test_what_is_no_model_is_refused(self, data: bytes, tmp_path: Path) -> None:
        (tmp_path / "m.onnx").write_bytes(data)
        with pytest.raises(ModelError, match="not a whole ONNX file"):
            onnx_versions(tmp_path / "m.onnx")

    def test_a_cut_file_is_refused(self, save_model: SaveModel) -> None:
        path = save_model("convolutional")
        path.write_bytes(path.read_bytes()[:-200])
        with pytest.raises(ModelError, match="not a whole ONNX file"):
            onnx_versions(path)


def run(path: Path, name: str, value: Any) -> Any:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {name: value})[0]


class TestAdapting:
    def test_a_readable_file_is_left_alone(self, save_model: SaveModel, tmp_path: Path) -> None:
        path = save_model("linear")
        adapted = adapt_model(path, find_target(OLD), tmp_path / "out")
        assert (adapted.path, adapted.notes) == (path, ())

    def test_the_ir_version_alone(self, save_model: SaveModel, tmp_path: Path) -> None:
        path = save_model("convolutional", external=True)
        images = np.ones((2, 3, 8, 8), np.float32)
        expected = run(path, "images", images)  # before: not every ONNX Runtime reads IR 13
        proto = onnx.load(path, load_external_data=False)
        proto.ir_version = 13
        path.write_bytes(proto.SerializeToString())
        adapted = adapt_model(path, find_target(OLD), tmp_path / "out")
        assert onnx_versions(adapted.path)[0] == 9
        assert "from 13 down to 9" in adapted.notes[0]
        assert np.array_equal(run(adapted.path, "images", images), expected)

    def test_the_opset_by_the_converter(self, tmp_path: Path) -> None:
        node = helper.make_node("ReduceMean", ["x", "axes"], ["y"], keepdims=0)
        proto = models.model(
            [node],
            [models.value("x", ["b", 3])],
            [models.value("y", ["b"])],
            [models.ints("axes", 1)],
            opset=22,
            ir_version=10,
        )
        path = models.save(proto, tmp_path / "m.onnx")
        adapted = adapt_model(path, find_target(OLD), tmp_path / "out")
        assert onnx_versions(adapted.path) == (9, {"": 20})
        assert len(adapted.notes) == 2
        x = np.arange(6, dtype=np.float32).reshape(2, 3)
        assert np.array_equal(run(adapted.path, "x", x), run(path, "x", x))

    def test_an_operator_without_an_older_form_is_refused(self, tmp_path: Path) -> None:
        proto = models.model(
            [helper.make_node("RMSNormalization", ["x", "s"], ["y"])],
            [models.value("x", ["b", 3])],
            [models.value("y", ["b", 3])],
            [models.weights("s", (3,))],
            opset=23,
            ir_version=10,
        )
        path = models.save(proto, tmp_path / "m.onnx")
        with pytest.raises(ModelError, match=r"24\.04") as caught:
            adapt_model(path, find_target(OLD), tmp_path / "out")
        assert "RMSNormalization" in str(caught.value.found)
        assert not (tmp_path / "out").exists()

    def test_an_opset_that_the_converter_does_not_know_is_told_in_plain_words(self, tmp_path: Path) -> None:
        proto = models.linear()
        proto.opset_import[0].version = 99
        path = models.save(proto, tmp_path / "m.onnx")
        with pytest.raises(ModelError, match="cannot be served") as caught:
            adapt_model(path, find_target(OLD), tmp_path / "out")
        assert "invalid version" in str(caught.value.found)
        assert "Assertion" not in str(caught.value.found)

    def test_an_element_type_that_is_too_new_is_refused(self, tmp_path: Path) -> None:
        proto = typed(TensorProto.INT4)
        proto.ir_version, proto.opset_import[0].version = 10, 20
        path = models.save(proto, tmp_path / "m.onnx")
        with pytest.raises(ModelError, match="cannot be served") as caught:
            adapt_model(path, find_target(OLD), tmp_path / "out")
        assert "IR version 10" in str(caught.value.found)


class TestAdaptingForATarget:
    def adapt(self, tmp_path: Path, path: Path) -> Adapted:
        return adapt_for_target(ModelSpec(path=path, target=OLD), RunDirectory(tmp_path / "run"))

    def new_file(self, tmp_path: Path) -> Path:
        proto = models.linear()
        proto.ir_version = 13
        return models.save(proto, tmp_path / "m.onnx")

    def test_a_copy_takes_the_place_of_what_the_target_cannot_read(self, tmp_path: Path) -> None:
        source = self.new_file(tmp_path)
        adapted = self.adapt(tmp_path, source)
        assert adapted.path.is_relative_to(tmp_path / "run")
        assert adapted.path.name == "m.onnx"
        assert onnx_versions(adapted.path)[0] == 9
        assert "from 13 down to 9" in adapted.notes[0]
        written = adapted.path.stat().st_mtime_ns
        assert self.adapt(tmp_path, source) == adapted
        assert adapted.path.stat().st_mtime_ns == written

    def test_other_weights_are_another_copy(self, tmp_path: Path) -> None:
        proto = models.linear()
        proto.ir_version = 13
        source = models.save(proto, tmp_path / "m.onnx", external=True)
        before = self.adapt(tmp_path, source).path
        weights = next(tmp_path.glob("m.onnx.data*"))
        weights.write_bytes(bytes(weights.stat().st_size))
        after = self.adapt(tmp_path, source).path
        assert before != after
        assert not any((after.parent / weights.name).read_bytes())

    def test_what_can_be_read_is_left_alone(self, save_model: SaveModel, tmp_path: Path) -> None:
        path = save_model("linear")
        assert self.adapt(tmp_path, path) == Adapted(path)
        assert not (tmp_path / "run").exists()

    def test_what_is_no_model_is_left_to_the_inspection(self, tmp_path: Path) -> None:
        (tmp_path / "m.onnx").write_text("hello", encoding="utf-8")
        for path in (tmp_path / "m.onnx", tmp_path / "none.onnx"):
            assert self.adapt(tmp_path, path) == Adapted(path)
