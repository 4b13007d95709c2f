"""The command line's root: help and version."""

from __future__ import annotations

import pytest

from tritongen import __version__
from tritongen.cli import COMMANDS, run
from tritongen.errors import ExitCode


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in COMMANDS)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert __version__ in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "says", "fix"),
    [
        (["lodtest"], "there is no command 'lodtest'", "did you mean 'loadtest'?"),
        (["build", "--repositry", "x"], "no such option: --repositry", "did you mean --repository?"),
        (["build", "--effort", "none"], "'none' is not one of", "see `tritongen build --help`"),
        (["build", "--seed"], "requires an argument", "--help`"),
        (["init"], "missing argument", "see `tritongen init --help`"),
        (["build", "m.onnx", "--plugin", "/nope.so"], "there is no library /nope.so", "--plugin"),
        (
            ["build", "m.onnx", "--engine", "onnxruntime", "--tensorrt", "best_of=2"],
            "--tensorrt would have no effect",
            "leave --tensorrt out",
        ),
        (["stop", "/nope"], "there is no folder /nope", "--all"),
        (["verify", "/nope"], "there is no model repository at /nope", "tritongen build"),
        (["serve", "/nope"], "there is no model repository at /nope", "tritongen build"),
        (["verify", "-r", "/nope", "net"], "there is no model repository at /nope", "tritongen build"),
        (["serve", "-r", "/nope"], "there is no model repository at /nope", "tritongen build"),
    ],
)
def test_a_command_line_that_cannot_be_used(
    arguments: list[str], says: str, fix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments) == ExitCode.USAGE
    shown = capsys.readouterr().err
    assert shown.startswith("error: ")
    assert says in shown
    assert fix in shown.partition("to fix:")[2]
    assert "starting" not in shown
