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
from tests.docker.conftest import CHECKOUT, Deployment
from tests.repository_models import to_write
from tests.unit.test_images import plan
from tritongen.cli import cli
from tritongen.errors import SpecError
from tritongen.repository.manifest import read_manifest
from tritongen.repository.writer import write_model
from tritongen.runs.store import write_record
from tritongen.serving.container.compose import CPU_FILE, GPU_FILE, HARDENED_FILE
from tritongen.serving.container.engine import Engine, Image, Project, find_compose
from tritongen.serving.container.identification import TITLE, identify
from tritongen.serving.container.service import service_of
from tritongen.serving.ports import free_ports

pytestmark = pytest.mark.docker

BASE = "debian:bookworm-slim"
Import = Callable[..., str]


@pytest.fixture
def empty_image(engine: Engine) -> Iterator[Import]:
    """`empty_image("USER 4711", TRT_VERSION="10.5.0.18")` → the name of an empty image that says so."""
    names = []

    def make(*changes: str, **environment: str) -> str:
        name = f"tritongen-test-{uuid.uuid4().hex[:12]}:latest"
        empty = io.BytesIO()
        tarfile.open(fileobj=empty, mode="w").close()
        lines = [*changes, *(f"ENV {key}={value}" for key, value in environment.items())]
        options = [word for line in lines for word in ("--change", line)]
        command = [engine.command, "import", *options, "-", name]
        subprocess.run(command, input=empty.getvalue(), check=True, capture_output=True)
        names.append(name)
        return name

    yield make
    for name in names:
        engine.call("rmi", "--force", name, check=False)


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


def test_what_the_image_says_wins_over_the_table(engine: Engine, empty_image: Import) -> None:
    name = empty_image(**official("10.5.0.18+cuda12.6"))
    found = identify(name, engine)
    assert found.official
    assert found.target.tensorrt is not None
    assert (found.target.tensorrt.version, found.target.tensorrt.verified) == ("10.5.0.18", True)
    assert found.target.tensorrt.source == "the image itself"
    assert found.target.min_driver == "525"
    assert str(found.target.onnxruntime) == "1.19.2", "what it does not say is the table's"


def test_a_plan_of_another_tensorrt(folder: Path, empty_image: Import) -> None:
    make_plan(folder, "10.4.0.26")
    (finding,) = findings(folder, empty_image(**official("10.5.0.18")))["target"]
    assert finding["severity"] == "error"
    assert "built by TensorRT 10.4.0.26" in finding["message"]
    assert "has 10.5.0.18" in finding["message"]
    assert "tritonserver:24.09-py3" in finding["fix"]
    assert "target" not in findings(folder, empty_image(**official("10.4.0.26")))


def test_an_image_of_which_nothing_is_known(folder: Path, empty_image: Import) -> None:
    found = findings(folder, empty_image())
    assert found["image"][0]["severity"] == "unknown"
    assert "does not say that it is a Triton image" in found["image"][0]["message"]
    assert found["target"][0]["severity"] == "warning"
    assert "nothing is known about the ONNX Runtime" in found["target"][0]["message"]


def test_an_own_image_that_does_not_answer_is_unknown(engine: Engine, empty_image: Import) -> None:
    found = identify(empty_image(f"LABEL {TITLE}=tritongen"), engine)
    assert found.own
    assert found.target.onnxruntime is None


def test_the_user_of_the_image_may_not_read_the_mount(folder: Path, empty_image: Import) -> None:
    (folder / "1/model.onnx").chmod(0o600)
    name = empty_image("USER 4711:4711", **official("10.4.0.26"))
    (finding,) = findings(folder, name)["mount"]
    assert finding["severity"] == "error"
    assert "user 4711" in finding["message"]
    assert "mount" not in findings(folder, empty_image(**official("10.4.0.26"))), "root reads it"


def test_nothing_is_pulled(engine: Engine) -> None:
    with pytest.raises(SpecError, match="nor is it on this machine"):
        identify("tritongen-test-nowhere:latest", engine)


@pytest.mark.parametrize(("project", "severity"), [(".", "warning"), ("another", "error"), (None, "error")])
def test_a_port_that_a_container_holds(
    engine: Engine, folder: Path, project: str | None, severity: str
) -> None:
    if engine.image(BASE) is None:
        pytest.skip(f"{BASE} is not here")
    (port,) = free_ports(1)
    label = "com.docker.compose.project.working_dir"
    options = [] if project is None else [f"--label={label}={folder.parents[1] / project}"]
    started = engine.call("run", "-d", "--rm", f"-p127.0.0.1:{port}:8000", *options, BASE, "sleep", "60")
    identity = started.stdout.strip()
    try:
        container = engine.container(identity)
        assert container is not None
        compose = folder.parents[1] / "docker-compose.yml"
        compose.write_text(
            f'services: {{triton: {{image: "{BASE}", ports: ["127.0.0.1:{port}:8000"]}}}}\n', encoding="utf-8"
        )
        arguments = ["verify", str(folder.parent), "--image", BASE, "--json", "--compose-file", str(compose)]
        result = CliRunner().invoke(cli, arguments, standalone_mode=False, catch_exceptions=False)
    finally:
        engine.call("kill", identity, check=False)
    (finding,) = (each for each in json.loads(result.output)["findings"] if each["check"] == "port")
    assert finding["severity"] == severity
    assert f"port {port} (HTTP) is held by container {container.name}" in finding["message"]


def test_the_running_server_of_this_very_project(deployment: Deployment, image: Image) -> None:
    """tritongen's own image, asked by a container; the ports are held by the server that is checked."""
    compose = deployment.folder / CPU_FILE
    name = image.tags[0]
    arguments = [
        "verify", str(deployment.folder / "model_repository"), "--image", name, "--json",
        "--compose-file", str(compose),
    ]  # fmt: skip
    result = CliRunner().invoke(cli, arguments, standalone_mode=False, catch_exceptions=False)
    report = json.loads(result.output)
    assert report["ok"], report["findings"]
    held = [each for each in report["findings"] if each["check"] == "port"]
    assert [each["severity"] for each in held] == ["warning"] * 3
    assert deployment.container().name in held[0]["message"]
    others = [each for each in report["findings"] if each["check"] not in ("port", "image")]
    assert not others, "its user reads the mount, its ONNX Runtime the model, and shared memory suffices"


def test_an_own_image_says_what_it_reads(image: Image, engine: Engine) -> None:
    found = identify(image.tags[0], engine)
    assert found.own
    assert str(found.target.triton) == "2.51.0"
    assert found.target.max_opset is not None
    assert found.target.max_opset >= 21


@pytest.mark.parametrize(
    ("files", "gpu", "user"),
    [
        ((GPU_FILE,), True, None),
        ((GPU_FILE, HARDENED_FILE), True, "1000:1000"),
        ((CPU_FILE,), False, "1000:1000"),
    ],
)
def test_the_shipped_compose_files_are_understood(
    files: tuple[str, ...], gpu: bool, user: str | None
) -> None:
    merged = Project(find_compose(), CHECKOUT, files, variables={"GRPC_PORT": "9001"}).config()
    service = service_of(merged, files[0])
    assert [(p.inside, p.address, p.port) for p in service.ports] == [
        (8000, "127.0.0.1", 8000), (8001, "127.0.0.1", 9001), (8002, "127.0.0.1", 8002),
    ]  # fmt: skip
    assert (service.gpu, service.user, service.shm_bytes) == (gpu, user, 1 << 30)
    assert service.drops_all_capabilities is (user is not None)
