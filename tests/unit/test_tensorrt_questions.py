"""verify and inspect ask TensorRT with a plan's plugins, as the server would, and say whose parser it was."""

from __future__ import annotations

import _ctypes
import json
from pathlib import Path
from typing import Any

import onnx
import pytest

from tests import models
from tests.conftest import SaveModel
from tests.standin.plans import plan_bytes
from tests.unit.test_repository_plans import H100, plan_to_write, written
from tritongen.cli import run
from tritongen.engines.tensorrt import TensorRTEngine
from tritongen.engines.tensorrt.profiles import profiles_per_batch_size
from tritongen.repository.findings import Finding
from tritongen.repository.targets import embedded
from tritongen.repository.verify import Place, verify_model

LIBRARY = Path(_ctypes.__file__).read_bytes()
"""Any shared library that can be loaded again under another name."""


def demanding(model: Path, tmp_path: Path, plugin: str) -> Path:
    """The folder of a version-compatible plan that needs a plugin, as the build writes it."""
    base = plan_to_write(model, tmp_path / "runs", H100)
    plan = plan_bytes(
        model,
        profiles_per_batch_size(base.inputs, (1, 4)),
        flags=("FP16", "VERSION_COMPATIBLE"),
        plugins=[plugin],
    )
    return written(
        tmp_path / "r",
        plan_to_write(
            model, tmp_path / "runs", H100, plan=plan, plugins={plugin: LIBRARY}, version_compatible=True
        ),
    )


def errors(folder: Path) -> list[Finding]:
    return [one for one in verify_model(folder, Place(embedded())) if one.severity == "error"]


@pytest.mark.usefixtures("standin")
def test_verify_opens_a_plan_as_the_embedded_server_does(save_model: SaveModel, tmp_path: Path) -> None:
    assert TensorRTEngine().unavailable_reason() is None
    folder = demanding(save_model("linear"), tmp_path, "ops_verify.so")
    assert errors(folder) == []
    config = folder / "config.pbtxt"
    told = config.read_text()
    assert "version_compatible" in told
    config.write_text(told.replace('key: "version_compatible"', 'key: "something_else"'))
    (refused,) = (one for one in errors(folder) if one.check == "plan")
    assert "carry code that runs on the host" in refused.message


@pytest.mark.usefixtures("standin")
def test_layers_are_read_with_what_the_manifest_says_that_the_plan_needs(
    save_model: SaveModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = demanding(save_model("linear"), tmp_path, "ops_layers.so")
    monkeypatch.chdir(folder / "1")  # a bare name is not looked for in the loader's folders
    assert run(["inspect", "model.plan", "--layers", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["layers"]


@pytest.mark.usefixtures("standin")
def test_a_plan_that_no_manifest_knows_takes_its_plugins_from_the_command_line(
    save_model: SaveModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = save_model("linear")
    profiles = profiles_per_batch_size(plan_to_write(model, tmp_path / "runs", H100).inputs, (1, 4))
    plan, library = tmp_path / "model.plan", tmp_path / "ops_given.so"
    plan.write_bytes(plan_bytes(model, profiles, plugins=[library.name]))
    library.write_bytes(LIBRARY)
    assert run(["inspect", str(plan)]) != 0
    assert "ops_given" in capsys.readouterr().err
    assert run(["inspect", str(plan), "--plugin", str(library)]) == 0


@pytest.fixture
def special(tmp_path: Path) -> Path:
    """A model with an operator that only a plugin knows."""
    proto = models.relu()
    proto.graph.node[0].op_type, proto.graph.node[0].domain = "Special", "rare"
    proto.opset_import.append(onnx.helper.make_opsetid("rare", 1))
    path = tmp_path / "special.onnx"
    onnx.save(proto, path)
    return path


@pytest.mark.usefixtures("standin")
@pytest.mark.parametrize("command", [["verify"], ["inspect", "--tensorrt"]])
def test_operators_of_a_plugin_are_known_to_the_parser_that_is_asked(
    special: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    library = tmp_path / "librare.so"
    library.write_bytes(b"no library")
    words = [command[0], str(special), *command[1:]]
    assert run([*words, "--plugin", str(library)]) != 0
    assert "cannot be loaded" in capsys.readouterr().err
    library.write_bytes(LIBRARY)
    assert run([*words, "--plugin", str(library)]) == 0
    assert "takes" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["verify", "r"], ["inspect", "m.onnx"]])
def test_a_plugin_is_for_tensorrts_questions_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.so").write_bytes(LIBRARY)
    assert run([*words, "--plugin", "a.so"]) != 0
    assert "--plugin goes with" in capsys.readouterr().err


def asked_of_rtx(*words: str, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    if TensorRTEngine().unavailable_reason() is None:
        pytest.skip("TensorRT itself answers here")
    pytest.importorskip("tensorrt_rtx")
    assert run(["verify", *words, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_verify_says_whose_parser_took_a_model(
    save_model: SaveModel, capsys: pytest.CaptureFixture[str]
) -> None:
    found = asked_of_rtx(str(save_model("linear")), capsys=capsys)
    assert found["parser"].startswith("tensorrt_rtx 1")
    assert "may refuse" in found["caveat"]


def test_verify_of_a_repository_does_not_promise_what_tensorrt_was_not_asked(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = asked_of_rtx(str(folder.parent), "--tensorrt", capsys=capsys)
    (finding,) = (one for one in found["findings"] if one["check"] == "parser")
    assert finding["severity"] == "unknown"
    assert "tensorrt_rtx" in finding["message"]
