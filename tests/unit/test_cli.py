"""The command line's root: help, version, what it refuses, and signals."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest

from tritongen import __version__
from tritongen.cli import COMMANDS, run
from tritongen.cli.stopping import until_stopped
from tritongen.errors import ExitCode


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in COMMANDS)


@pytest.mark.parametrize("name", ["build", "loadtest"])
def test_long_help_has_headings_for_every_option(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    command: Any = importlib.import_module(COMMANDS[name][0]).command
    flags = [param.opts[0] for param in command.params if isinstance(param, click.Option)]
    assert sorted(flags) == sorted(flag for section in command.sections.values() for flag in section)
    assert run([name, "--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"\n{heading}:\n" in shown for heading in command.sections)
    lines = [line.split("  ")[1] for line in shown.splitlines() if line.startswith(("  -", "  --"))]
    assert sorted(word for line in lines for word in line.split() if word in flags) == sorted(flags)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert __version__ in capsys.readouterr().out


@pytest.mark.parametrize(
    ("number", "handler", "code"),
    [
        (signal.SIGTERM, signal.SIG_DFL, 128 + signal.SIGTERM),
        (signal.SIGHUP, signal.SIG_DFL, 128 + signal.SIGHUP),
        (signal.SIGHUP, signal.SIG_IGN, 0),  # as nohup has it
    ],
)
def test_signals_that_end_a_command(number: int, handler: signal.Handlers, code: int) -> None:
    def work() -> int:
        signal.raise_signal(number)
        return 0

    before = signal.signal(number, handler)
    try:
        assert until_stopped(work) == code
        assert signal.getsignal(number) is handler
    finally:
        signal.signal(number, before)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a device that is always full")
def test_a_full_disk_behind_standard_output_is_one_error() -> None:
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        ended = subprocess.run(
            [sys.executable, "-m", "tritongen", "schema", "spec"],
            stdout=full, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
    assert ended.returncode == 1
    assert ended.stderr.startswith("error: what this command prints")
    assert "Traceback" not in ended.stderr


def test_what_a_terminal_cannot_show_is_no_crash() -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "tritongen", "--help"],
        capture_output=True, text=True, check=True, env={**os.environ, "PYTHONIOENCODING": "latin-1"},
    )  # fmt: skip
    assert "P99 \\u2264 20 ms" in ended.stdout


STOPPED = """
import os, signal, sys
from tritongen.cli.stopping import INTERRUPTED, until_stopped
def work():
    try:
        exec(f"os.kill(os.getpid(), {sys.argv[1]}); signal.pause()")  # as in an import of a dataclass
    except KeyboardInterrupt:
        return INTERRUPTED
sys.exit(until_stopped(work))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_exit_code_is_kept_wherever_the_signal_comes(number: int, tmp_path: Path) -> None:
    (tmp_path / "stopped.py").write_text(STOPPED, encoding="utf-8")
    command = [sys.executable, "-m", "stopped", str(int(number))]
    path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, check=False, timeout=60)
    assert done.returncode == 128 + number


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
        (["build", "m.onnx", "--reference", "/nope.onnx"], "there is no reference /nope.onnx", "--reference"),
        (["schema", "trail"], "there is no schema 'trail'", "did you mean 'trial'?"),
        (["inspect", "x" * 300], "File name too long", "name another one"),
        (["build", "x" * 300], "File name too long", "name another one"),
        (["build", "m.onnx", "--plugin", "x" * 300], "File name too long", "name another one"),
        (["build", "m\udcff.onnx"], "the command line is not UTF-8", "rename the file"),
        (["build", "m.onnx", "--p99-ms", "nan"], "--p99-ms", "tritongen build --help"),
        (["loadtest", "m", "--p99-ms", "inf"], "--p99-ms", "tritongen loadtest --help"),
        (["loadtest", "m", "--mix", "m=1", "--mix", "m=2"], "--mix names 'm' twice", "one weight"),
        (["loadtest", "m", "--shape", "x=1", "--shape", "x=2"], "--shape names 'x' twice", "one value"),
        (["loadtest", "m", "--batch-size", "1,4,1"], "--batch-size names a size twice", "one weight"),
        (["loadtest", "m", "--max-duration", "0s"], "must be more than 0", "tritongen loadtest --help"),
        (["loadtest", "--rate", "5"], "missing argument 'MODEL'", "tritongen loadtest --help"),
        (["loadtest", "m", "--json", "r", "--junit", "./r"], "two flags write the same file", "for each"),
        (["loadtest", "m", "--token-env", "X", "--token-file", "y"], "two tokens at once", "one of them"),
        (["loadtest", "m", "--token-file", "/dev/null"], "the token is empty", "where it comes from"),
        (["stop", "/nope"], "there is no folder /nope", "--all"),
        (["stop", "repository", "--all"], "one server and all of them", "leave --all away"),
        (["verify", "/nope"], "there is no model repository at /nope", "tritongen build"),
        (["serve", "/nope"], "there is no model repository at /nope", "tritongen build"),
        (["verify", "-r", "/nope", "net"], "there is no model repository at /nope", "tritongen build"),
        (["serve", "--cache-mb", "-5"], "--cache-mb", "tritongen serve --help"),
        (["serve", "--ready-timeout", "nan"], "nan is not a usable number", "tritongen serve --help"),
        (["loadtest", "m", "--compose-timeout", "inf"], "inf is not a usable number", "loadtest --help"),
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
