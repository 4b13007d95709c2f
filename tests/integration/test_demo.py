"""The demo: it ends by itself with a verdict, and leaves nothing running when it is interrupted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.conftest import EXAMPLES, CommandLine

pytestmark = [pytest.mark.server, pytest.mark.slow]


@pytest.fixture
def demo(digits: Path, tritongen: CommandLine) -> Iterator[list[str]]:
    """The demo's command, in a folder where the model is trained already."""
    for name in ("demo.py", "verdict.py", "train.py", "network.py"):
        (digits / name).write_bytes((EXAMPLES / "digits" / name).read_bytes())
    yield [sys.executable, str(digits / "demo.py"), "--quick"]
    assert "no server runs" in tritongen("stop", "--all").stdout


def test_ends_with_a_verdict(demo: list[str], tritongen: CommandLine) -> None:
    done = subprocess.run(
        demo, env=tritongen.environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    for expected in (
        "trained by an earlier demo",
        "INT8 ",
        "stopped the server",
        "Three commands to try next",
    ):
        assert expected in " ".join(done.stdout.split()), done.stdout  # lines break by the length of paths
    assert any(f"\n  {word}: " in done.stdout for word in ("PASS", "FAIL", "INVALID")), done.stdout


@pytest.mark.parametrize(
    ("how", "step"),
    [(signal.SIGINT, "3. Serve it"), (signal.SIGINT, "4. Load test"), (signal.SIGTERM, "4. Load test")],
)
def test_leaves_nothing_running(
    demo: list[str], tritongen: CommandLine, how: signal.Signals, step: str
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-u", *demo[1:]],
        env=tritongen.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith(step):
            break
    if how is signal.SIGINT:  # as a terminal does: to the whole foreground group
        os.killpg(process.pid, how)
    else:
        process.send_signal(how)
    rest, _ = process.communicate(timeout=120)
    assert process.returncode == 130, "".join(lines) + rest
    assert "Nothing is left running" in rest
