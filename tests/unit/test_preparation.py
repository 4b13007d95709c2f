"""What is found out before the trials: whether the model runs at all, and answers as its file says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from onnx import helper

from tests import models
from tests.models import ints, model, save, value, weights
from tritongen.autotune.jobs import FILENAME, PreparationJob
from tritongen.autotune.preparation import prepare
from tritongen.errors import BuildError, DataError, ModelError
from tritongen.runs.build import Preparation
from tritongen.runs.events import discard
from tritongen.runs.store import read_record, write_record
from tritongen.spec import ModelSpec


def prepared(proto: Any, folder: Path, **spec: Any) -> Preparation:
    path = save(proto, folder / "m.onnx")
    write_record(folder / FILENAME, PreparationJob(spec=ModelSpec(path=path, **spec)))
    prepare(folder / FILENAME, discard)
    return read_record(folder / "preparation.json", Preparation)


def test_sizes_that_do_not_belong_together_are_told_with_what_was_run(tmp_path: Path) -> None:
    proto = model(
        [helper.make_node("Add", ["a", "b"], ["y"])],
        [value("a", ["batch", "length"]), value("b", ["batch", "length"])],
        [value("y", ["batch", "length"])],
    )
    with pytest.raises(BuildError, match=r"failed on m\.onnx") as caught:
        prepared(proto, tmp_path, shapes={"a": "8", "b": "9"})
    assert "a: float32[1, 8]; b: float32[1, 9]" in str(caught.value.expected)
    assert "--shape" in str(caught.value.fix)


def test_values_beyond_what_the_model_takes_are_told_with_their_range(tmp_path: Path) -> None:
    shifted = models.tokens(vocabulary=50)
    shifted.graph.node.insert(0, helper.make_node("Add", ["ids", "far"], ["moved"]))
    shifted.graph.initializer.append(ints("far", 1000))
    shifted.graph.node[1].input[1] = "moved"
    with pytest.raises(DataError) as caught:
        prepared(shifted, tmp_path, shapes={"ids": "5"}, ranges={"ids": "0..7"})
    assert "ids: int64[1, 5] of 0..7" in str(caught.value.expected)


def test_an_output_of_another_rank_than_the_file_says_is_refused(tmp_path: Path) -> None:
    """Triton would be told [3, 1], and refuse every answer."""
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    proto = model([node], [value("x", ["batch", 4])], [value("y", ["batch", 3, 1])], [weights("w", [4, 3])])
    with pytest.raises(ModelError, match="another shape for output 'y'") as caught:
        prepared(proto, tmp_path)
    assert caught.value.found == "[1, 3] when it runs"


def test_why_a_batch_does_not_run_is_told(tmp_path: Path) -> None:
    node = helper.make_node("Reshape", ["x", "shape"], ["y"])
    proto = model([node], [value("x", ["N", 4])], [value("y", ["N", 2, 2])], [ints("shape", 1, 2, 2)])
    found = prepared(proto, tmp_path)
    assert found.batch_status == "refuted"
    assert found.batch_reason.startswith("a batch of 3 does not run: operator Reshape: ")
