"""The CPU image, built from the wheelhouse, and a project of a user that `docker compose` serves with it."""

from __future__ import annotations

import dataclasses
import fcntl
import secrets
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import models
from tests.integration.conftest import CommandLine, tritongen
from tritongen.serving.container.compose import CPU_FILE, ENV_FILE
from tritongen.serving.container.engine import Container, Engine, Image, Project, find_compose, find_engine
from tritongen.serving.ports import free_ports

__all__ = ["tritongen"]

CHECKOUT = Path(__file__).parents[2]
BASE = "debian:bookworm-slim"
MODEL = "scores"
READY_S = 120.0


@dataclass(frozen=True)
class Deployment:
    """A running project: `folder` has the repository, the Compose files and triton.env."""

    folder: Path
    engine: Engine
    project: Project
    ready_s: float
    """From `up` to the first healthy."""

    def container(self) -> Container:
        """The service's container; fails the test if there is none."""
        found = self.project.container(self.engine, "triton")
        assert found is not None
        return found

    def wait_until_healthy(self, starts_after: str = "") -> Container:
        """Wait until it is healthy, and was started later than `starts_after`."""
        deadline = time.monotonic() + READY_S
        while time.monotonic() < deadline:
            container = self.container()
            if container.health == "healthy" and container.started > starts_after:
                return container
            time.sleep(0.2)
        pytest.fail(f"not healthy: {container}\n{self.logs()}")

    def logs(self) -> str:
        return self.project.call("logs", "--no-color", "triton", check=False).stdout


@pytest.fixture(scope="session")
def engine() -> Engine:
    return find_engine()


@pytest.fixture(scope="session")
def image(engine: Engine) -> Iterator[Image]:
    """The image of docker/cpu.Dockerfile, as `make docker-image` makes it, under a name of its own."""
    name = f"tritongen-test-{secrets.token_hex(4)}"
    # A base that has Python already (as .ci/docker makes it) lets the image be built without any network.
    python = engine.call("run", "--rm", "--network=none", BASE, "python3", "--version", check=False)
    options = ["--network=none"] if python.code == 0 else []
    file = ["--file", "docker/cpu.Dockerfile", "docker"]
    with (CHECKOUT / "docker/wheelhouse/README.md").open() as wheelhouse:
        fcntl.flock(
            wheelhouse, fcntl.LOCK_EX
        )  # another run in this checkout would replace the wheels meanwhile
        _run("make", "wheelhouse")
        built = engine.call("build", *options, "--tag", name, *file, check=False, cwd=CHECKOUT, timeout_s=900)
    if built.code != 0 and "FROM" in built.stdout and engine.image(BASE) is None:
        pytest.skip(f"{BASE} cannot be pulled (make docker-base makes it): {built.last_line}")
    assert built.code == 0, f"{built.stdout}\n{built.stderr}"
    made = engine.image(name)
    assert made is not None
    yield made
    engine.call("rmi", "--force", name)
    engine.call("image", "prune", "--force", "--filter=label=org.tritongen.stage", check=False)


@pytest.fixture(scope="session")
def built(tritongen: CommandLine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder after `tritongen build` and `tritongen compose init --cpu`: as the README says."""
    folder = tmp_path_factory.mktemp("project")
    models.save(models.linear(), folder / f"{MODEL}.onnx")
    tritongen("build", f"{MODEL}.onnx", "--effort", "quick", "--max-batch-size", "4", cwd=folder)
    tritongen("compose", "init", "--cpu", cwd=folder)
    return folder


@pytest.fixture(scope="session")
def deployment(built: Path, image: Image, engine: Engine) -> Iterator[Deployment]:
    """The project, up and healthy on free ports; taken down at the end."""
    _set(
        built / ENV_FILE, **dict(zip(("HTTP_PORT", "GRPC_PORT", "METRICS_PORT"), free_ports(3), strict=True))
    )
    project = Project(
        compose=find_compose(),
        folder=built,
        files=(CPU_FILE,),
        name=f"tritongen-test-{secrets.token_hex(4)}",
        env_file=ENV_FILE,
        variables={"TRITONGEN_IMAGE": image.tags[0]},
    )
    running = Deployment(built, engine, project, ready_s=0)
    started = time.monotonic()
    try:
        project.call("up", "--detach")
        running.wait_until_healthy()
        yield dataclasses.replace(running, ready_s=time.monotonic() - started)
        _stop_in_order(running)
    finally:
        project.call("down", "--volumes", "--remove-orphans", check=False)
    label = f"label=com.docker.compose.project={project.name}"
    assert engine.containers(label, stopped=True) == ()
    for kind in ("network", "volume"):
        assert engine.call(kind, "ls", "--quiet", f"--filter={label}").stdout == ""


def _stop_in_order(running: Deployment) -> None:
    """Within the grace period, by its own doing: SIGKILL would make the exit code 137."""
    running.project.call("stop")
    container = running.container()
    assert (container.state, container.exit_code) == ("exited", 0)
    assert running.logs().rstrip().endswith("stopped")


def _set(env_file: Path, **values: object) -> None:
    lines = env_file.read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if line.partition("=")[0] not in values]
    env_file.write_text("\n".join([*kept, *(f"{name}={value}" for name, value in values.items())]) + "\n")


def _run(*command: str) -> None:
    done = subprocess.run(
        command,
        cwd=CHECKOUT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    if done.returncode != 0 and "No matching distribution" in done.stderr:
        pytest.skip(f"the wheels cannot be fetched: {done.stderr.splitlines()[-1]}")
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
