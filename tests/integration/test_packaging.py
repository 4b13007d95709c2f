"""The wheel works where the checkout is not: built, installed elsewhere, and walked from another folder."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from tests import models
from tritongen.serving.container import compose

CHECKOUT = Path(__file__).parents[2]
PORTS = tuple(part for name in ("http", "grpc", "metrics") for part in (f"--{name}-port", "0"))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the checkout in an isolated environment."""
    folder = tmp_path_factory.mktemp("wheel")
    done = _run(
        sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", folder, CHECKOUT, check=False
    )
    if done.returncode != 0 and "No matching distribution found for hatchling" in done.stderr:
        pytest.skip("no package index: the build backend (hatchling) cannot be fetched")
    assert done.returncode == 0, done.stderr
    (built,) = folder.glob("tritongen-*.whl")
    return built


@pytest.fixture(scope="module")
def beside(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel alone in a new environment; its dependencies come from this one, the checkout does not."""
    home = tmp_path_factory.mktemp("beside")
    python = _environment(home)
    _run(*_pip(python), "install", "--quiet", "--no-deps", "--no-index", wheel)
    # A path file is not followed into the folders that it names, so the editable install stays out of sight.
    site = _run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").stdout.strip()
    folders = dict.fromkeys((sysconfig.get_path("purelib"), sysconfig.get_path("platlib")))
    Path(site, "dependencies.pth").write_text("".join(f"{folder}\n" for folder in folders))
    return home / "bin"


def test_wheel_holds_what_it_needs_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        metadata = archive.read(next(name for name in names if name.endswith("METADATA"))).decode()
    assert "tritongen/templates/config.pbtxt.j2" in names
    assert "tritongen/serving/backends/onnxruntime/model.py" in names
    assert "tritongen/py.typed" in names
    assert {f"tritongen/compose/{name}" for kind in compose.FILES.values() for name in kind} == {
        name for name in names if name.startswith("tritongen/compose/")
    }
    assert not [name for name in names if not re.match(r"tritongen[/-]", name)]
    base = [
        line for line in metadata.splitlines() if line.startswith("Requires-Dist") and "extra ==" not in line
    ]
    (numpy,) = [line for line in base if "numpy" in line]
    assert "<2" not in numpy.replace(" ", "")


def test_installed_wheel_is_what_runs(beside: Path, tmp_path: Path) -> None:
    place = _run(beside / "python", "-c", "import tritongen; print(tritongen.__file__)", cwd=tmp_path).stdout
    assert Path(place.strip()).is_relative_to(beside.parent)
    assert not Path(place.strip()).is_relative_to(CHECKOUT)


def test_road_from_another_folder(beside: Path, tmp_path: Path) -> None:
    """init → build → verify with the installed wheel."""
    _init_build_verify(beside / "tritongen", tmp_path)


@pytest.mark.server
def test_serve_and_load_test_from_another_folder(
    beside: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """build → serve → loadtest → stop with the installed wheel: its backends and templates are found."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    tritongen = beside / "tritongen"
    models.save(models.relu(), tmp_path / "model.onnx")
    _run(tritongen, "build", "model.onnx", "--max-batch-size", "2", "--effort", "quick", cwd=tmp_path)
    _run(tritongen, "serve", "--background", *PORTS, cwd=tmp_path)
    try:
        (record,) = (tmp_path / "state").rglob("servers/*.json")
        url = json.loads(record.read_text())["http_url"]
        report = tmp_path / "report.json"
        command = ("loadtest", "model", "--url", url, "--rate", "20", "--duration", "2s", "--json", report)
        done = _run(tritongen, *command, cwd=tmp_path, check=False)
        assert done.returncode in {0, 4}, done.stderr
        assert json.loads(report.read_text())["schema"].startswith("tritongen/")
    finally:
        _run(tritongen, "stop", cwd=tmp_path)


@pytest.mark.slow
def test_road_in_an_empty_environment(wheel: Path, tmp_path: Path) -> None:
    """The base alone, with the dependencies that the index gives today: no extra is needed to build."""
    python = _environment(tmp_path / "environment")
    done = _run(*_pip(python), "install", "--quiet", "--no-compile", wheel, check=False)
    if done.returncode != 0 and "No matching distribution found" in done.stderr:
        pytest.skip(f"no package index: {done.stderr.splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    work = tmp_path / "work"
    work.mkdir()
    _init_build_verify(python.with_name("tritongen"), work)


def _init_build_verify(tritongen: Path, folder: Path) -> None:
    models.save(models.linear(), folder / "model.onnx")
    _run(tritongen, "init", "model.onnx", cwd=folder)
    assert (folder / "tritongen.yaml").is_file()
    _run(tritongen, "build", "tritongen.yaml", "--effort", "quick", cwd=folder)
    repository = folder / "model_repository" / "model"
    assert {path.name for path in repository.iterdir()} >= {"config.pbtxt", "manifest.json", "1"}
    assert json.loads((repository / "manifest.json").read_text())
    _run(tritongen, "verify", cwd=folder)


def _environment(home: Path) -> Path:
    """A new virtual environment's Python; without pip of its own, which takes longest."""
    _run(sys.executable, "-m", "venv", "--without-pip", home)
    return home / "bin" / "python"


def _pip(python: Path) -> tuple[Path | str, ...]:
    return (sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python)


def _run(
    program: Path | str, *arguments: Path | str, cwd: Path | None = None, check: bool = True
) -> subprocess.CompletedProcess[str]:
    # Nothing of this process's own environment may lead back to the checkout.
    environment = {
        key: value for key, value in os.environ.items() if key not in {"PYTHONPATH", "VIRTUAL_ENV"}
    }
    done = subprocess.run(
        [program, *arguments],
        cwd=cwd,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert not check or done.returncode == 0, f"{program} {arguments}\n{done.stdout}\n{done.stderr}"
    return done
