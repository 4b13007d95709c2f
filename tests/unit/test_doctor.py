"""The doctor sees what is there, and names the command for what is not."""

from __future__ import annotations

import shlex
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tritongen import doctor
from tritongen.cli.doctor import _show
from tritongen.doctor import SHM, Check, examine, road_works
from tritongen.errors import RequirementError
from tritongen.serving import installation


def test_looks_at_everything_and_raises_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "MARKS_OF_A_CONTAINER", ())
    checks = {check.name: check for check in examine()}
    assert {"Python", "venv", "onnxruntime", "C library", "libpython", "tritonserver"} <= checks.keys()
    assert {
        "port 8000",
        "port 8001",
        "port 8002",
        SHM,
        "disk",
        "GPU",
        "TensorRT",
        "Docker",
        "Docker Compose",
        "NVIDIA container runtime",
    } <= checks.keys()
    assert checks["onnxruntime"].state == "ok"
    assert all(check.fix for check in checks.values() if check.state == "missing")


def test_a_working_directory_that_is_gone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert "disk" in {check.name for check in examine()}


@pytest.mark.parametrize(
    ("state", "works"), [("ok", True), ("warning", True), ("absent", True), ("missing", False)]
)
def test_only_a_missing_piece_blocks_the_road(state: str, works: bool) -> None:
    check = Check("x", state, "", "")  # type: ignore[arg-type]
    assert road_works([check]) is works


def test_a_taken_port_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setattr(doctor, "DEFAULT_PORTS", ((port, "HTTP"),))
        check = next(check for check in examine() if check.name == f"port {port}")
    assert check.state == "warning"
    assert check.found.startswith("held by")
    assert check.fix == "tritongen serve --http-port 0"


def test_a_long_path_widens_only_its_own_line(capsys: pytest.CaptureFixture[str]) -> None:
    _show([Check("server", "ok", "/" + 200 * "x", "all"), Check("GPU", "absent", "none", "more", "buy one")])
    lines = capsys.readouterr().out.splitlines()
    assert max(len(line) for line in lines if "xxx" not in line) < 40
    assert lines[-1].endswith("→ buy one")


def test_without_the_wheel_the_extra_is_named() -> None:
    """In an interpreter that sees the base libraries' folder names only: an empty environment."""
    program = (
        f"import sys; sys.path.append({str(Path(installation.__file__).parents[2])!r})\n"
        "from tritongen.doctor import examine, road_works\n"
        "checks = examine()\n"
        "print(*(f'{c.name}|{c.state}|{c.fix}' for c in checks), sep='\\n')\n"
        "print(road_works(checks))\n"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "onnxruntime|missing|pip install tritongen" in lines
    if sys.version_info[:2] in installation.SUPPORTED_PYTHONS:
        assert "tritonserver|missing|pip install 'tritongen[serve]'" in lines
    assert lines[-1] == "False"


def test_another_python_has_no_embedded_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 13, 0, "final", 0))
    with pytest.raises(RequirementError, match="no wheel for this Python"):
        installation.check_platform()


def test_an_old_c_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.confstr", lambda _name: "glibc 2.34")
    monkeypatch.setattr(sys, "version_info", (3, 12, 0, "final", 0))
    with pytest.raises(RequirementError, match="newer C library") as caught:
        installation.check_platform()
    assert caught.value.found == "glibc 2.34"


def test_an_incomplete_wheel_is_installed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pytriton").mkdir()
    (tmp_path / "pytriton" / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "pytriton", raising=False)
    monkeypatch.setattr(installation, "check_platform", lambda: None)
    monkeypatch.setattr(installation, "find_libpython", lambda: tmp_path)
    with pytest.raises(RequirementError, match="is not complete") as caught:
        installation.find_installation()
    command, _, wheel = str(caught.value.fix).partition(" --no-deps ")
    assert command == "pip install --force-reinstall"
    project = Path(installation.__file__).parents[2] / "pyproject.toml"
    assert f'"{shlex.split(wheel)[0]};' in project.read_text(encoding="utf-8")


def test_libpython_names_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installation, "python_version", lambda: "3.99")
    with pytest.raises(RequirementError, match=r"needs libpython3\.99\.so\.1\.0") as caught:
        installation.find_libpython()
    assert caught.value.fix == "apt-get install libpython3.99"


def test_without_docker_the_container_is_absent_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(doctor, "MARKS_OF_A_CONTAINER", (tmp_path / ".dockerenv",))
    checks = {check.name: check for check in examine()}
    for name in ("Docker", "Docker Compose"):
        assert checks[name].state == "absent"
        assert "docker" in str(checks[name].fix)
    assert checks["NVIDIA container runtime"].found == "unknown without Docker"
    (tmp_path / ".dockerenv").touch()
    inside = {check.name for check in examine()}
    assert set(checks) - inside == {"Docker", "Docker Compose", "NVIDIA container runtime"}
