"""What is refused before any trial, and that nothing is left behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests import models
from tests.repository_models import to_write
from tritongen.errors import InputError, RepositoryError, SpecError, TritongenError
from tritongen.repository.preflight import check_destination
from tritongen.repository.writer import write_model
from tritongen.spec import Spec


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return models.save(models.linear(), tmp_path / "linear.onnx")


def spec(model: Path, repository: Path, *, max_batch_size: int | None = None, **serving: Any) -> Spec:
    entry = {"path": str(model), "serving": serving, "max_batch_size": max_batch_size}
    return Spec.model_validate({"repository": str(repository), "models": {"tiny": entry}})


def refusal(spec: Spec, kind: type[TritongenError]) -> TritongenError:
    with pytest.raises(kind) as caught:
        check_destination(spec, force=False)
    return caught.value


def test_a_good_destination_is_left_as_it_was(model: Path, tmp_path: Path) -> None:
    check_destination(spec(model, tmp_path / "a" / "b"), force=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["linear.onnx"]


@pytest.mark.parametrize("where", ["linear.onnx", "linear.onnx/inner"])
def test_a_file_in_the_way(model: Path, tmp_path: Path, where: str) -> None:
    error = refusal(spec(model, tmp_path / where), InputError)
    assert "linear.onnx is in the way" in error.message


def test_a_place_where_no_folder_can_be(model: Path) -> None:
    error = refusal(spec(model, Path("/proc/x")), TritongenError)
    assert "/proc/x could not be written" in error.message


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        ("foo bar {", "models.tiny.serving.raw, line 1"),
        ("# mine\nparameters {", "models.tiny.serving.raw, line 2"),
        ("# mine\nbackend: 7", "models.tiny.serving.raw, line 2"),
    ],
)
def test_raw_text_that_is_no_configuration(model: Path, tmp_path: Path, raw: str, says: str) -> None:
    error = refusal(spec(model, tmp_path / "r", raw=raw), SpecError)
    assert says in error.message
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("text", ["{% if %}", "{{ config.nope }}", 'name: "other"', "name: 7"])
def test_a_template_that_does_not_work(model: Path, tmp_path: Path, text: str) -> None:
    (tmp_path / "t.j2").write_text(text, encoding="utf-8")
    refusal(spec(model, tmp_path / "r", template=str(tmp_path / "t.j2")), SpecError)


def test_batching_keys_without_batching(model: Path, tmp_path: Path) -> None:
    error = refusal(spec(model, tmp_path / "r", max_batch_size=0, priority_levels=2), SpecError)
    assert "dynamic batcher" in error.message


def test_parameters_that_the_backend_refuses(model: Path, tmp_path: Path) -> None:
    asked = spec(
        model, tmp_path / "r", parameters={"intra_op_thread_count": "many"}, raw="model_operations { }"
    )
    assert "intra_op_thread_count is 'many'" in str(refusal(asked, SpecError))


def test_good_additions_pass(model: Path, tmp_path: Path) -> None:
    good = spec(model, tmp_path / "r", raw="model_operations { }", preferred_batch_sizes=[32])
    check_destination(good, force=False)


def test_a_hand_changed_config_is_refused_unless_forced(model: Path, tmp_path: Path) -> None:
    repository = tmp_path / "r"
    config = write_model(repository, to_write(model, tmp_path / "runs")).folder / "config.pbtxt"
    check_destination(spec(model, repository), force=False)
    config.write_text(config.read_text() + "# mine\n")
    assert "changed by hand" in refusal(spec(model, repository), RepositoryError).message
    check_destination(spec(model, repository), force=True)
