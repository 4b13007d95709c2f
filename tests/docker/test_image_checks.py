"""`verify --image` with real images and containers: imported ones, since nothing need be pulled.

Manifests of plans are edited ones: there is no TensorRT here that could build a plan.
"""

from __future__ import annotations

import io
import json
import subprocess
import tarfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from tests.conftest import SaveModel
from tests.repository_models import to_write
from tests.unit.test_images import plan
from tritongen.cli import cli
from tritongen.errors import RequirementError, SpecError
from tritongen.repository.manifest import read_manifest
from tritongen.repository.writer import write_model
from tritongen.runs.store import write_record
from tritongen.serving.container.engine import Engine, find_engine
from tritongen.serving.container.identification import TITLE, identify
from tritongen.serving.ports import free_ports

pytestmark = pytest.mark.docker

BASE = "debian:bookworm-slim"
Import = Callable[..., str]


@pytest.fixture(scope="module")
def docker() -> Engine:
    try:
        return find_engine()
    except RequirementError as error:
        pytest.skip(f"{error.message}: {error.found}")


@pytest.fixture
def image(docker: Engine) -> Iterator[Import]:
    """`image("USER 4711", TRT_VERSION="10.5.0.18")` → the name of an empty image that says so."""
    names = []

    def make(*changes: str, **environment: str) -> str:
        name = f"tritongen-test-{uuid.uuid4().hex[:12]}:latest"
        empty = io.BytesIO()
        tarfile.open(fileobj=empty, mode="w").close()
        lines = [*changes, *(f"ENV {key}={value}" for key, value in environment.items())]
        options = [word for line in lines for word in ("--change", line)]
        command = [docker.command, "import", *options, "-", name]
        subprocess.run(command, input=empty.getvalue(), check=True, capture_output=True)
        names.append(name)
        return name

    yield make
    for name in names:
        docker.call("rmi", "--force", name, check=False)


@pytest.fixture
def folder(save_model: SaveModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)  # away from the compose files of the checkout
    return write_model(tmp_path / "repository", to_write(save_model("linear"), tmp_path / "runs")).folder


def findings(folder: Path, image: str, *options: str) -> dict[str, list[dict[str, Any]]]:
    """What `tritongen verify --image` finds, by check, without the ports, which anybody may hold."""
    arguments = ["verify", str(folder.parent), "--image", image, "--json", *options]
    result = CliRunner().invoke(cli, arguments, standalone_mode=False, catch_exceptions=False)
    found: dict[str, list[dict[str, Any]]] = {}
    for finding in json.loads(result.output)["findings"]:
        if finding["check"] != "port":
            found.setdefault(finding["check"], []).append(finding)
    return found


def official(tensorrt: str, release: str = "24.09") -> dict[str, str]:
    """The environment of NVIDIA's image."""
    return {
        "TRT_VERSION": tensorrt,
        "NVIDIA_TRITON_SERVER_VERSION": release,
        "TRITON_SERVER_VERSION": "2.50.0",
        "CUDA_VERSION": "12.6.1.006",
    }


def make_plan(folder: Path, tensorrt: str) -> None:
    write_record(folder / "manifest.json", plan(read_manifest(folder), tensorrt))


def test_what_the_image_says_wins_over_the_table(docker: Engine, image: Import) -> None:
    name = image(**official("10.5.0.18+cuda12.6"))
    found = identify(name, docker)
    assert found.official
    assert found.target.tensorrt is not None
    assert (found.target.tensorrt.version, found.target.tensorrt.verified) == ("10.5.0.18", True)
    assert found.target.tensorrt.source == "the image itself"
    assert found.target.min_driver == "525"
    assert str(found.target.onnxruntime) == "1.19.2", "what it does not say is the table's"


def test_a_plan_of_another_tensorrt(folder: Path, image: Import) -> None:
    make_plan(folder, "10.4.0.26")
    (finding,) = findings(folder, image(**official("10.5.0.18")))["target"]
    assert finding["severity"] == "error"
    assert "built by TensorRT 10.4.0.26" in finding["message"]
    assert "has 10.5.0.18" in finding["message"]
    assert "tritonserver:24.09-py3" in finding["fix"]
    assert "target" not in findings(folder, image(**official("10.4.0.26")))


def test_an_image_of_which_nothing_is_known(folder: Path, image: Import) -> None:
    found = findings(folder, image())
    assert found["image"][0]["severity"] == "unknown"
    assert "does not say that it is a Triton image" in found["image"][0]["message"]
    assert found["target"][0]["severity"] == "warning"
    assert "nothing is known about the ONNX Runtime" in found["target"][0]["message"]


def test_an_own_image_that_does_not_answer_is_unknown(docker: Engine, image: Import) -> None:
    found = identify(image(f"LABEL {TITLE}=tritongen"), docker)
    assert found.own
    assert found.target.onnxruntime is None


def test_the_user_of_the_image_may_not_read_the_mount(folder: Path, image: Import) -> None:
    (folder / "1/model.onnx").chmod(0o600)
    name = image("USER 4711:4711", **official("10.4.0.26"))
    (finding,) = findings(folder, name)["mount"]
    assert finding["severity"] == "error"
    assert "user 4711" in finding["message"]
    assert "mount" not in findings(folder, image(**official("10.4.0.26"))), "root reads it"


def test_nothing_is_pulled(docker: Engine) -> None:
    with pytest.raises(SpecError, match="nor is it on this machine"):
        identify("tritongen-test-nowhere:latest", docker)


@pytest.mark.parametrize(
    ("labels", "severity"), [(("com.docker.compose.service=triton",), "warning"), ((), "error")]
)
def test_a_port_that_a_container_holds(
    docker: Engine, folder: Path, labels: tuple[str, ...], severity: str
) -> None:
    if docker.image(BASE) is None:
        pytest.skip(f"{BASE} is not here")
    (port,) = free_ports(1)
    options = [f"--label={label}" for label in labels]
    started = docker.call("run", "-d", "--rm", f"-p127.0.0.1:{port}:8000", *options, BASE, "sleep", "60")
    identity = started.stdout.strip()
    try:
        container = docker.container(identity)
        assert container is not None
        compose = folder.parents[1] / "docker-compose.yml"
        compose.write_text(
            f'services: {{triton: {{image: "{BASE}", ports: ["127.0.0.1:{port}:8000"]}}}}\n', encoding="utf-8"
        )
        arguments = ["verify", str(folder.parent), "--image", BASE, "--json", "--compose-file", str(compose)]
        result = CliRunner().invoke(cli, arguments, standalone_mode=False, catch_exceptions=False)
    finally:
        docker.call("kill", identity, check=False)
    (finding,) = (each for each in json.loads(result.output)["findings"] if each["check"] == "port")
    assert finding["severity"] == severity
    assert f"port {port} (HTTP) is held by container {container.name}" in finding["message"]
