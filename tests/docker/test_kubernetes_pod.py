"""The pod of `compose k8s`, as Docker can start it: the same arguments, user, file systems and limits."""

from __future__ import annotations

import time
import urllib.request
from pathlib import Path

import pytest
import yaml

from tests.docker.conftest import READY_S
from tritongen.repository.manifest import read_manifest
from tritongen.serving.container.engine import Engine, Image
from tritongen.serving.container.kubernetes import Settings, render
from tritongen.serving.ports import free_ports

pytestmark = [pytest.mark.docker, pytest.mark.server, pytest.mark.slow]


def test_the_own_image_serves_under_the_pods_restrictions(built: Path, image: Image, engine: Engine) -> None:
    manifests = [read_manifest(path) for path in (built / "model_repository").iterdir() if path.is_dir()]
    parts = list(yaml.safe_load_all(render(manifests, Settings(image.tags[0], "own"))))
    (spec,) = (part["spec"]["template"]["spec"] for part in parts if part["kind"] == "Deployment")
    (container,) = spec["containers"]
    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    (port,) = free_ports(1)
    user = spec["securityContext"]
    options = [
        "--detach", "--rm", "--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges:true",
        f"--user={user['runAsUser']}:{user['runAsGroup']}",
        f"--memory={container['resources']['limits']['memory'].removesuffix('i').lower()}",
        f"--shm-size={volumes['shm']['emptyDir']['sizeLimit'].removesuffix('i').lower()}",
        "--tmpfs=/tmp:mode=1777,exec",
        f"--volume={built / 'model_repository'}:/models:ro",
        f"--publish=127.0.0.1:{port}:8000",
        *(f"--env={each['name']}={each['value']}" for each in container["env"]),
    ]  # fmt: skip
    identity = engine.call("run", *options, container["image"], *container["args"]).stdout.strip()
    try:
        assert _ready(f"http://127.0.0.1:{port}{container['readinessProbe']['httpGet']['path']}"), (
            engine.call("logs", identity, check=False).stderr
        )
        engine.call("exec", identity, *container["lifecycle"]["preStop"]["exec"]["command"][:1], "0")
    finally:
        engine.call("kill", identity, check=False)


def _ready(url: str) -> bool:
    deadline = time.monotonic() + READY_S
    while (status := _status(url)) != 200 and time.monotonic() < deadline:
        time.sleep(0.3)
    return status == 200


def _status(url: str) -> int:
    try:
        with urllib.request.urlopen(url, timeout=3) as answer:  # noqa: S310 - a loopback URL made above
            return int(answer.status)
    except OSError:
        return 0
