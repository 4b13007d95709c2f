"""Fixtures that start programs: the command line, an embedded server, the examples' trained models."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tritongen.serving.embedded import EmbeddedServer

EXAMPLES = Path(__file__).parents[2] / "examples"

Serve = Callable[[Path], EmbeddedServer]


@dataclass(frozen=True)
class CommandLine:
    """`tritongen` as a user starts it: a process of its own, with its own records of servers."""

    environment: dict[str, str]

    def __call__(
        self,
        *arguments: object,
        cwd: Path | None = None,
        code: int | None = 0,
        timeout_s: float = 300,
    ) -> subprocess.CompletedProcess[str]:
        """Run it; asserts on the exit code unless `code` is None."""
        done = subprocess.run(
            [sys.executable, "-m", "tritongen", *map(str, arguments)],
            cwd=cwd,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout_s,
        )
        shown = f"tritongen {' '.join(map(str, arguments))}\n{done.stdout}\n{done.stderr}"
        assert code is None or done.returncode == code, shown
        assert "Traceback" not in done.stderr, shown
        return done


@pytest.fixture(scope="session")
def tritongen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CommandLine]:
    """The command line; servers that it left in the background are stopped at the end."""
    state = tmp_path_factory.mktemp("state")
    run = CommandLine({**os.environ, "XDG_STATE_HOME": str(state), "COLUMNS": "120"})
    yield run
    run("stop", "--all")


@pytest.fixture
def serve() -> Iterator[Serve]:
    """`serve(repository)` → a running EmbeddedServer on free ports, stopped after the test."""
    with contextlib.ExitStack() as stack:

        def start(repository: Path) -> EmbeddedServer:
            return stack.enter_context(EmbeddedServer(repository))

        yield start


def _trained(example: str, folder: Path) -> Path:
    """A copy of an example with its model trained: `<folder>/tritongen.yaml`, `<folder>/out/…`."""
    source = EXAMPLES / example
    (folder / "tritongen.yaml").write_text((source / "tritongen.yaml").read_text(encoding="utf-8"))
    subprocess.run(
        [sys.executable, source / "train.py", "--out", folder / "out"], check=True, capture_output=True
    )
    return folder


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """examples/digits, trained (ten seconds), not yet built."""
    return _trained("digits", tmp_path_factory.mktemp("digits"))


@pytest.fixture(scope="session")
def tabular(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """examples/tabular, trained (four seconds), not yet built."""
    return _trained("tabular", tmp_path_factory.mktemp("tabular"))
