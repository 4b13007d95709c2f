"""Fixtures that every test may use: tiny models on disk, an environment of their own, skips with reasons."""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from tests import models

SaveModel = Callable[..., Path]


def pytest_configure() -> None:
    """Let children be interrupted: what a shell starts with `&` ignores Ctrl-C, and so do its children."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


_UNWANTED = (
    "FORCE_COLOR", "CLICOLOR_FORCE", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLUMNS",  # change what is printed
    "BIND_ADDRESS", "HTTP_PORT", "GRPC_PORT", "METRICS_PORT",  # as in triton.env
    "COMPOSE_FILE", "COMPOSE_PROJECT_NAME", "COMPOSE_PROFILES", "COMPOSE_ENV_FILES",
)  # fmt: skip

_CALM = ("tests/gpu/", "integration/test_loadtest")
_TOGETHER = {
    "docker": ("tests/docker/",),
    "gpu": ("tests/gpu/",),
    "digits": ("integration/test_demo.py", "integration/test_int8_cases.py"),
}
"""Files that share what is made once (an image, a trained model), or what there is one of (a GPU)."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what must not share the machine with builds: their work would show in it as lateness."""
    for item in items:
        if any(part in item.path.as_posix() for part in _CALM):
            item.add_marker(pytest.mark.calm)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """`--dist loadfile`, but some files go to the same worker."""
    from xdist.scheduler import LoadFileScheduling

    def together(nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return next((name for name, parts in _TOGETHER.items() if any(part in file for part in parts)), file)

    if config.getvalue("dist") != "loadfile":
        return None
    scheduler = LoadFileScheduling(config, log)
    scheduler._split_scope = together
    return scheduler


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what this machine cannot run, with the reason."""
    for marker, reason in (("server", _no_server), ("gpu", _no_gpu), ("docker", _no_docker)):
        found = item.get_closest_marker(marker)
        if found is not None and (why := reason(**found.kwargs)):
            pytest.skip(why)


def _no_server() -> str | None:
    if importlib.util.find_spec("pytriton") is None:
        return "no embedded Triton: pip install 'tritongen[serve]' (Python 3.10-3.12)"
    return None


def _no_gpu(*, tensorrt: bool = True) -> str | None:
    if shutil.which("nvidia-smi") is None:
        return "no NVIDIA GPU: nvidia-smi is not there"
    if tensorrt and importlib.util.find_spec("tensorrt") is None:
        return "no TensorRT: pip install 'tritongen[tensorrt]'"
    return None


@functools.cache
def _no_docker() -> str | None:
    docker = shutil.which("docker")
    if docker is None:
        return "no Docker: the docker command is not there"
    try:
        subprocess.run([docker, "info"], capture_output=True, check=True, timeout=60)
    except subprocess.SubprocessError:
        return "no Docker: its engine does not answer `docker info`"
    return None


@pytest.fixture(scope="session", autouse=True)
def _own_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing that the user of this machine has running, set or stored is seen, and nothing is left there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        for name in _UNWANTED:
            patch.delenv(name, raising=False)
        for name in ("no_proxy", "NO_PROXY"):  # gRPC would ask a proxy even for this machine
            patch.setenv(name, ",".join(filter(None, ("127.0.0.1,localhost", os.environ.get(name)))))
        yield


@pytest.fixture
def save_model(tmp_path: Path) -> SaveModel:
    """`save_model("linear")` or `save_model("linear", "name.onnx", external=True)` → the file's path."""

    def save(kind: str, filename: str | None = None, *, external: bool = False) -> Path:
        proto = getattr(models, kind)()
        return models.save(proto, tmp_path / (filename or f"{kind}.onnx"), external=external)

    return save


@pytest.fixture(params=sorted(models.SERVABLE))
def servable_model(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Each tiny servable model in turn; `path.stem` is its name in tests.models."""
    return models.save(models.SERVABLE[request.param](), tmp_path / f"{request.param}.onnx")


# A busy machine must not fail a property: speed is for benches.
hypothesis.settings.register_profile("tritongen", deadline=None)
hypothesis.settings.load_profile("tritongen")
