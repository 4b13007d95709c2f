"""`.ci/pick-python`: takes a Python that fits, and otherwise names what is missing and what brings it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PICK = Path(__file__).parents[2] / ".ci" / "pick-python"

TOOLS = ("bash", "sort", "head", "uname", "getconf", "id", "env")


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """A folder with only what the script itself needs: no Python, no package manager."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for tool in TOOLS:
        found = shutil.which(tool)
        assert found is not None
        (folder / tool).symlink_to(found)
    return folder


def _put(path: Path, answer: str) -> None:
    """A program that answers as a Python would whose look gives `answer`."""
    path.write_text(f"#!/usr/bin/env bash\necho '{answer}'\n")
    path.chmod(0o755)


def _pick(tools: Path, python: str = "") -> subprocess.CompletedProcess[str]:
    # The system's own Python, named by its path, must not be found either.
    script = PICK.read_text(encoding="utf-8").replace(" /usr/bin/python3;", ";")
    return subprocess.run(
        [tools / "bash"],
        input=script,
        env={"PATH": str(tools), "PYTHON": python, "LANG": os.environ.get("LANG", "C")},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_takes_the_default_that_fits(tools: Path) -> None:
    _put(tools / "python3", "3.11")
    done = _pick(tools)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{tools}/python3\n", "")


def test_takes_another_and_says_so(tools: Path) -> None:
    _put(tools / "python3", "3.14 version")
    _put(tools / "python3.10", "3.10")
    done = _pick(tools)
    assert done.stdout == f"{tools}/python3.10\n"
    assert "python3 will not do" in done.stderr


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("3.9 version", ["is Python 3.9", "3.10, 3.11 or 3.12"]),
        ("3.11 venv", ["'venv' module", "apt-get install -y python3.11-venv"]),
        ("3.12 libpython", ["libpython3.12.so.1.0", "apt-get install -y libpython3.12"]),
        ("3.13 server", ["no wheel for it"]),
    ],
)
def test_names_what_is_missing(tools: Path, answer: str, expected: list[str]) -> None:
    _put(tools / "python3", answer)
    _put(tools / "apt-get", "")
    done = _pick(tools)
    assert done.returncode == 1
    assert done.stdout == ""
    assert all(part in done.stderr for part in expected), done.stderr


def test_says_that_there_is_no_python(tools: Path) -> None:
    done = _pick(tools)
    assert done.returncode == 1
    assert "no python3 at all" in done.stderr


def test_named_python_may_lack_the_server(tools: Path) -> None:
    _put(tools / "python3.13", "3.13 server")
    done = _pick(tools, "python3.13")
    assert done.stdout == f"{tools}/python3.13\n"
    assert "no embedded server" in done.stderr


def test_named_python_must_run(tools: Path) -> None:
    done = _pick(tools, "/nowhere/python")
    assert done.returncode == 1
    assert "PYTHON=/nowhere/python" in done.stderr


def test_this_python_is_judged_by_running_it(tools: Path) -> None:
    done = _pick(tools, sys.executable)
    if done.returncode == 0:
        assert done.stdout.strip() == sys.executable
    else:
        assert f"{sys.version_info.major}.{sys.version_info.minor}" in done.stderr
