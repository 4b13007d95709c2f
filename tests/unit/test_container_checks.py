"""What stands in a container's way: each finding is provoked, by the real thing where this machine has it.

Faked: GPUs (a program in nvidia-smi's place prints what nvidia-smi prints) and the engine's list of runtimes.
Manifests of plans are edited ones: there is no TensorRT here that could build a plan.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from tests.unit.test_images import plan
from tritongen.cli import cli
from tritongen.errors import RequirementError, SpecError
from tritongen.repository.findings import Finding
from tritongen.repository.manifest import Manifest
from tritongen.repository.targets import Known, check_reference, find_target
from tritongen.serving.container import checks
from tritongen.serving.container.checks import check_launch, needed_shm_bytes
from tritongen.serving.container.engine import Engine, Image
from tritongen.serving.container.gpu_checks import capabilities
from tritongen.serving.container.host import Gpu, Host, container_gpus, look_for_gpus
from tritongen.serving.container.identification import Identified, identify
from tritongen.serving.container.launch import Launch
from tritongen.serving.container.permissions import Reader, unreadable, who_reads
from tritongen.serving.container.service import (
    Published,
    Service,
    docker_defaults,
    image_variable,
    service_of,
    size_bytes,
)
from tritongen.serving.ports import free_ports

NO_DOCKER = RequirementError("there is no Docker on this machine", fix="apt-get install docker.io")
H100 = Gpu("NVIDIA H100", "580.95.05", "9.0")
QUIET = Host(
    engine=None,
    engine_problem=None,
    compose=None,
    compose_problem=None,
    gpus=(),
    gpu_problem=None,
    container_gpus=None,
    selinux_enforcing=False,
)
"""A machine without Docker about which nobody complains: for looking at one thing at a time."""
IMAGE = "nvcr.io/nvidia/tritonserver:26.08-py3"
GPU_FILE = Path(__file__).parents[2] / "docker-compose.yml"


def official(tag: str = "26.08", user: str | None = "") -> Identified:
    target = find_target(tag)
    local = None if user is None else Image("sha256:0", (), 1, user, {}, {})
    return Identified(target.name, target, local, official=True, own=False)


def python_image() -> Identified:
    """As tritongen's own image: Python backends."""
    return replace(official(), official=False, own=True)


def launch(repository: Path, *manifests: Manifest, **changes: Any) -> Launch:
    service = changes.pop("service", Service(source="docker-compose.yml", ports=()))
    return Launch(changes.pop("image", official()), service, repository, manifests, replace(QUIET, **changes))


def found(launch: Launch, check: str | None = None) -> list[Finding]:
    findings = list(check_launch(launch))
    assert all(each.message and each.why and each.fix for each in findings)
    return [each for each in findings if check in (None, each.check)]


def severities(findings: list[Finding]) -> list[str]:
    return [each.severity for each in findings]


class TestDocker:
    def test_nothing_stands_in_the_way(self, folder: Path, manifest: Manifest) -> None:
        assert not found(launch(folder.parent, manifest))

    def test_without_docker_what_it_would_know_is_unknown(self, folder: Path, manifest: Manifest) -> None:
        (finding,) = found(launch(folder.parent, manifest, engine_problem=NO_DOCKER))
        assert (finding.check, finding.severity) == ("docker", "unknown")
        assert "are unknown" in finding.why
        assert finding.fix == "apt-get install docker.io"

    def test_without_compose(self, folder: Path, manifest: Manifest) -> None:
        problem = RequirementError("there is no Docker Compose on this machine")
        (finding,) = found(launch(folder.parent, manifest, compose_problem=problem))
        assert (finding.check, finding.severity) == ("compose", "unknown")

    def test_an_image_that_is_not_here(self, folder: Path, manifest: Manifest, tmp_path: Path) -> None:
        engine = Engine("/bin/false", "28.0", ("runc",), str(tmp_path))
        here = launch(folder.parent, manifest, image=official(user=None), engine=engine)
        (finding,) = found(here, "image")
        assert finding.severity == "unknown"
        assert finding.fix == f"docker pull {IMAGE}"

    def test_an_image_that_is_no_triton(self, folder: Path, manifest: Manifest) -> None:
        strange = replace(official(), target=replace(find_target("26.08"), triton=None))
        (finding,) = found(launch(folder.parent, manifest, image=strange), "image")
        assert finding.severity == "unknown"
        assert "tritonserver --version" in finding.fix

    def test_compose_starts_another_image(self, folder: Path, manifest: Manifest) -> None:
        service = Service("docker-compose.yml", image="nvcr.io/nvidia/tritonserver:25.09-py3", ports=())
        (finding,) = found(launch(folder.parent, manifest, service=service))
        assert (finding.check, finding.severity) == ("image", "warning")
        assert "change `image:` there" in finding.fix
        service = replace(service, image_variable=image_variable([GPU_FILE.read_text(encoding="utf-8")]))
        (finding,) = found(launch(folder.parent, manifest, service=service))
        assert f"TRITON_IMAGE={IMAGE}" in finding.fix

    def test_a_tag_that_nobody_writes_is_latest(self, folder: Path, manifest: Manifest) -> None:
        image = replace(python_image(), reference="tritongen-cpu:latest")
        service = Service("docker-compose.cpu.yml", image="tritongen-cpu", ports=(), shm_bytes=1 << 30)
        assert not found(launch(folder.parent, manifest, image=image, service=service))


class TestGpu:
    def gpu(self, folder: Path, manifest: Manifest, *gpus: Gpu, **changes: Any) -> list[Finding]:
        changes.setdefault("container_gpus", "nvidia runtime")
        return found(launch(folder.parent, manifest, gpus=gpus, **changes))

    def test_the_very_gpu(self, folder: Path, manifest: Manifest) -> None:
        assert not self.gpu(folder, plan(manifest, "11.2.1", compute_capability="9.0"), H100)

    def test_a_plan_without_a_gpu(self, folder: Path, manifest: Manifest) -> None:
        (finding,) = self.gpu(folder, plan(manifest, "11.2.1"))
        assert (finding.check, finding.severity) == ("gpu", "error")
        assert "tritongen build --engine onnxruntime" in finding.fix

    def test_an_onnx_model_for_a_gpu_without_one(self, folder: Path, manifest: Manifest) -> None:
        (finding,) = self.gpu(folder, manifest.model_copy(update={"engine": "onnxruntime-cuda"}))
        assert (finding.check, finding.severity) == ("gpu", "error")

    def test_a_compose_file_that_asks_for_a_gpu(self, folder: Path, manifest: Manifest) -> None:
        service = Service("docker-compose.yml", ports=(), gpu=True)
        (finding,) = self.gpu(folder, manifest, service=service)
        assert finding.severity == "error"
        assert finding.fix == "docker compose -f docker-compose.cpu.yml up"

    def test_an_onnx_model_needs_none(self, folder: Path, manifest: Manifest) -> None:
        assert not self.gpu(folder, manifest)

    def test_another_compute_capability(self, folder: Path, manifest: Manifest) -> None:
        (finding,) = self.gpu(folder, plan(manifest, "11.2.1", compute_capability="8.9"), H100)
        assert (finding.check, finding.severity, finding.model) == ("gpu", "error", "tiny")
        assert "built for compute capability 8.9, and NVIDIA H100 has 9.0" in finding.message

    @pytest.mark.parametrize(("capability", "fits"), [("9.0", True), ("7.5", False)])
    def test_a_hardware_compatible_plan(
        self, folder: Path, manifest: Manifest, capability: str, fits: bool
    ) -> None:
        compatible = plan(manifest, "11.2.1", compute_capability="8.6")
        options = {"hardware_compatible": True}
        compatible = compatible.model_copy(
            update={"candidate": manifest.candidate.model_copy(update={"options": options})}
        )
        findings = self.gpu(folder, compatible, replace(H100, compute_capability=capability))
        assert (not findings) is fits

    def test_plans_for_several_gpus(self, manifest: Manifest) -> None:
        assert capabilities(plan(manifest, "11.2.1", compute_capability="9.0")) == {"9.0"}
        assert not capabilities(plan(manifest, "11.2.1"))

    def test_a_plan_for_an_unknown_gpu(self, folder: Path, manifest: Manifest) -> None:
        assert severities(self.gpu(folder, plan(manifest, "11.2.1"), H100)) == ["unknown"]

    def test_a_gpu_that_the_image_is_too_new_for(self, folder: Path, manifest: Manifest) -> None:
        old = Gpu("Tesla V100", "580.95.05", "7.0")
        (finding,) = self.gpu(folder, plan(manifest, "11.2.1", compute_capability="7.0"), old)
        assert finding.severity == "error"
        assert finding.fix == "use an image before 25.03"

    def test_an_old_driver(self, folder: Path, manifest: Manifest) -> None:
        old = replace(H100, driver="550.54.14")
        built = plan(manifest, "10.13.3.9", compute_capability="9.0")
        verified = replace(find_target("25.10"), cuda=Known("13.0.2.006", verified=True))
        image = replace(official("25.10"), target=verified)
        (finding,) = self.gpu(folder, built, old, image=image)
        assert (finding.check, finding.severity) == ("driver", "error")
        assert "needs 580 or newer" in finding.message

    def test_an_old_driver_by_an_unverified_row_is_a_warning(self, folder: Path, manifest: Manifest) -> None:
        service, image = Service("docker-compose.yml", ports=(), gpu=True), official("26.07")
        (finding,) = self.gpu(
            folder, manifest, replace(H100, driver="550.54.14"), service=service, image=image
        )
        assert (finding.check, finding.severity) == ("driver", "warning")
        assert "unverified" in finding.message
        assert "nvcr.io/nvidia/tritonserver:25." in finding.fix, "an image for this driver is named"

    def test_an_image_whose_cuda_nobody_knows(self, folder: Path, manifest: Manifest) -> None:
        built = plan(manifest, "11.4", compute_capability="9.0")
        (finding,) = self.gpu(folder, built, H100, image=official("26.10"))
        assert (finding.check, finding.severity) == ("driver", "unknown")
        assert "printenv CUDA_VERSION" in finding.fix

    def test_no_way_into_the_container(self, folder: Path, manifest: Manifest, tmp_path: Path) -> None:
        engine = Engine("/bin/false", "28.0", ("runc",), str(tmp_path))
        built = plan(manifest, "11.2.1", compute_capability="9.0")
        (finding,) = self.gpu(folder, built, H100, engine=engine, container_gpus=None)
        assert (finding.check, finding.severity) == ("nvidia-runtime", "error")
        assert "nvidia-ctk runtime configure" in finding.fix

    def test_the_runtime_is_known_by_its_name(self) -> None:
        assert container_gpus(Engine("docker", "28.0", ("nvidia", "runc"), "/")) == "nvidia runtime"


class TestNvidiaSmi:
    """A real process in nvidia-smi's place; what it prints is made up."""

    @pytest.fixture
    def smi(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], None]:
        def install(body: str) -> None:
            program = tmp_path / "bin" / "nvidia-smi"
            program.parent.mkdir(exist_ok=True)
            program.write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
            program.chmod(0o755)
            monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")

        return install

    def test_gpus_and_driver(self, smi: Callable[[str], None]) -> None:
        smi('echo "NVIDIA H100 80GB HBM3, 580.95.05, 9.0"; echo "NVIDIA A100, 580.95.05, 8.0"')
        gpus, problem = look_for_gpus()
        assert problem is None
        assert gpus == (
            Gpu("NVIDIA H100 80GB HBM3", "580.95.05", "9.0"),
            Gpu("NVIDIA A100", "580.95.05", "8.0"),
        )

    def test_a_driver_that_does_not_know_compute_cap(self, smi: Callable[[str], None]) -> None:
        smi('case "$1" in *compute_cap*) exit 6;; esac; echo "Tesla T4, 450.51.06"')
        assert look_for_gpus() == ((Gpu("Tesla T4", "450.51.06", None),), None)

    def test_a_broken_driver_is_unknown_not_absent(
        self, smi: Callable[[str], None], folder: Path, manifest: Manifest
    ) -> None:
        smi('echo "Failed to initialize NVML: Driver/library version mismatch" >&2; exit 18')
        gpus, problem = look_for_gpus()
        assert gpus == ()
        assert "version mismatch" in str(problem)
        (finding,) = found(launch(folder.parent, plan(manifest, "11.2.1"), gpu_problem=problem))
        assert (finding.check, finding.severity) == ("gpu", "unknown")


class TestPorts:
    @pytest.fixture
    def taken(self) -> Iterator[int]:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen()
            yield int(listener.getsockname()[1])

    def ports(self, folder: Path, port: int) -> list[Finding]:
        service = Service("docker-compose.yml", ports=(Published(8001, "127.0.0.1", port),))
        return found(launch(folder.parent, service=service), "port")

    def test_a_free_one(self, folder: Path) -> None:
        assert not self.ports(folder, free_ports(1)[0])

    def test_a_taken_one_names_who_holds_it(self, folder: Path, taken: int) -> None:
        (finding,) = self.ports(folder, taken)
        assert finding.severity == "error"
        assert f"port {taken} (gRPC) is held by PID {os.getpid()}" in finding.message
        assert "GRPC_PORT" in finding.fix

    def test_ports_that_only_docker_may_open(self) -> None:
        user = os.geteuid()
        if user == 0:
            os.seteuid(65534)  # somebody who may not
        try:
            assert not list(checks.taken_ports(Service("x", ports=(Published(8000, "127.0.0.1", 1),)), None))
        finally:
            os.seteuid(user)


class TestSharedMemory:
    def test_what_instances_need(self, manifest: Manifest) -> None:
        one = needed_shm_bytes([manifest])
        assert one > 1 << 20
        assert needed_shm_bytes([manifest.model_copy(update={"instances": 4})]) == 4 * one

    def big(self, manifest: Manifest) -> Manifest:
        entry = manifest.inputs[0].model_copy(update={"max_shape": (3, 1024, 1024)})
        return manifest.model_copy(update={"inputs": (entry,), "max_batch_size": 8})

    def test_dockers_default_is_too_small_for_large_inputs(self, folder: Path, manifest: Manifest) -> None:
        service = replace(docker_defaults(), ports=())
        here = launch(folder.parent, self.big(manifest), image=python_image(), service=service)
        (finding,) = found(here)
        assert (finding.check, finding.severity) == ("shared-memory", "error")
        assert "64 MB" in finding.message
        assert "shm_size: 128m" in finding.fix

    def test_enough_is_enough(self, folder: Path, manifest: Manifest) -> None:
        service = Service("docker-compose.cpu.yml", ports=(), shm_bytes=1 << 30)
        assert not found(launch(folder.parent, self.big(manifest), image=python_image(), service=service))

    def test_the_official_backends_need_none(self, folder: Path, manifest: Manifest) -> None:
        assert not found(launch(folder.parent, self.big(manifest)))

    @pytest.mark.skipif(os.geteuid() != 0, reason="mounting a tmpfs needs root")
    def test_a_small_tmpfs_that_is_shared_with_the_container(
        self, folder: Path, manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        small = tmp_path / "shm"
        small.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(small)]
        if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
            pytest.skip("this container may not mount")
        try:
            monkeypatch.setattr(checks, "SHM", small)
            service = Service("docker-compose.cpu.yml", ports=(), shm_bytes=None)
            here = launch(folder.parent, self.big(manifest), image=python_image(), service=service)
            (finding,) = found(here)
        finally:
            subprocess.run(["umount", str(small)], check=True)
        assert "4 MB" in finding.message
        assert finding.fix.startswith("sudo mount -o remount,size=128m")


class TestDisk:
    def test_no_room_to_pull(
        self, folder: Path, manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(checks, "_OFFICIAL_IMAGE_BYTES", shutil.disk_usage(tmp_path).total + 1)
        engine = Engine("/bin/false", "28.0", ("runc",), str(tmp_path))
        here = launch(folder.parent, manifest, image=official(user=None), engine=engine)
        (finding,) = found(here, "disk")
        assert finding.severity == "warning"
        assert "no space left on device" in finding.why

    def test_a_root_that_cannot_be_seen(self, folder: Path, manifest: Manifest, tmp_path: Path) -> None:
        engine = Engine("/bin/false", "28.0", ("runc",), str(tmp_path / "in-a-virtual-machine"))
        (finding,) = found(launch(folder.parent, manifest, engine=engine), "disk")
        assert finding.severity == "unknown"


class TestMount:
    """By mode bits: root, as which tests may run, reads everything."""

    def mount(self, folder: Path, user: str | None, **changes: Any) -> list[Finding]:
        service = Service("docker-compose.yml", ports=(), user=user, **changes)
        return found(launch(folder.parent, image=official(user=None), service=service), "mount")

    def test_a_closed_file(self, folder: Path) -> None:
        (folder / "1/model.onnx").chmod(0o600)
        (finding,) = self.mount(folder, "4711:4711")
        assert finding.severity == "error"
        assert finding.message == f"user 4711 of the container may not read {folder / '1/model.onnx'}"
        assert finding.fix == f"chmod -R a+rX {folder.parent}"

    def test_a_closed_folder_counts_once(self, folder: Path) -> None:
        (folder / "1").chmod(0o700)
        (finding,) = self.mount(folder, "4711")
        assert finding.message.endswith(f"may not read {folder / '1'}")

    def test_open_files(self, folder: Path) -> None:
        assert not self.mount(folder, "4711:4711")

    def test_the_owner_and_the_group_may(self, folder: Path) -> None:
        path = folder / "1/model.onnx"
        path.chmod(0o640)
        status = path.stat()
        assert not self.mount(folder, f"{status.st_uid + 4711}:{status.st_gid}")
        path.chmod(0o600)
        if status.st_uid != 0:
            assert not self.mount(folder, f"{status.st_uid}")

    def test_links_that_the_container_cannot_follow(self, folder: Path, tmp_path: Path) -> None:
        path, store = folder / "1/model.onnx", tmp_path / "store" / "linear.onnx"
        store.parent.mkdir()
        path.rename(store)
        for target in (store, os.path.relpath(store, path.parent)):
            path.symlink_to(target)
            (finding,) = self.mount(folder, "4711")
            assert finding.severity == "error"
            assert finding.message.startswith(f"{path} is a link to {target}")
            path.unlink()
        path.symlink_to(store)
        assert not self.mount(folder, "4711", mounts=(str(tmp_path),))
        store.rename(folder / "1/linear.onnx")
        path.unlink()
        path.symlink_to("linear.onnx")
        (folder / "again").symlink_to("..")  # a loop ends, too
        assert not self.mount(folder, "4711")

    def test_root_may_unless_its_capabilities_are_dropped(self, folder: Path) -> None:
        path = folder / "1/model.onnx"
        path.chmod(0o000)
        assert not self.mount(folder, "root")
        assert severities(self.mount(folder, "0", drops_all_capabilities=True)) == ["error"]

    def test_the_images_user_counts_where_compose_names_none(self, folder: Path) -> None:
        (folder / "1/model.onnx").chmod(0o600)
        service = Service("docker-compose.yml", ports=())
        here = launch(folder.parent, image=official(user="4711"), service=service)
        assert severities(found(here, "mount")) == ["error"]

    @pytest.mark.parametrize("user", [None, "triton-server"])
    def test_a_user_without_a_number_is_unknown(self, folder: Path, user: str | None) -> None:
        assert not self.mount(folder, user)
        (folder / "1/model.onnx").chmod(0o600)
        assert severities(self.mount(folder, user)) == ["unknown"]

    def test_selinux(self, folder: Path) -> None:
        (finding,) = found(launch(folder.parent, selinux_enforcing=True), "mount")
        assert (finding.severity, "container_file_t" in finding.fix) == ("warning", True)

    def test_a_group_that_is_closed_out_may_not_although_others_may(self, folder: Path) -> None:
        path = folder / "1/model.onnx"
        path.chmod(0o604)
        reader = Reader(4711, frozenset({path.stat().st_gid}))
        assert unreadable(folder, reader) == [path]
        assert who_reads("1000:50") == Reader(1000, frozenset({50}))


class TestService:
    @pytest.mark.parametrize(
        "port",
        ["127.0.0.1:9000:8000/tcp", {"target": 8000, "published": "9000", "host_ip": "127.0.0.1"}],
        ids=["docker-compose 1.29", "compose 2"],
    )
    def test_ports_in_both_forms(self, port: Any) -> None:
        service = service_of({"services": {"triton": {"ports": [port]}}}, "x.yml")
        assert service.ports == (Published(8000, "127.0.0.1", 9000),)
        assert (service.ports[0].protocol, service.ports[0].variable) == ("HTTP", "HTTP_PORT")

    @pytest.mark.parametrize(("address", "looked_at"), [("[::]", "0.0.0.0"), ("[::1]", "127.0.0.1")])  # noqa: S104
    def test_ipv6_addresses(self, address: str, looked_at: str) -> None:
        service = service_of({"services": {"triton": {"ports": [f"{address}:9000:8000"]}}}, "x.yml")
        assert service.ports == (Published(8000, looked_at, 9000),)

    @pytest.mark.parametrize("port", ["8000", {"target": 8000}])
    def test_a_port_that_is_not_published(self, port: Any) -> None:
        assert not service_of({"services": {"triton": {"ports": [port]}}}, "x.yml").ports

    @pytest.mark.parametrize(
        ("text", "size"),
        [("64m", 64 << 20), ("1g", 1 << 30), ("1gb", 1 << 30), (1073741824, 1 << 30), ("512", 512)],
    )
    def test_sizes(self, text: str | int, size: int) -> None:
        assert size_bytes(text) == size

    def test_no_size(self) -> None:
        with pytest.raises(SpecError, match="is no size"):
            size_bytes("much")

    def test_without_the_service(self) -> None:
        with pytest.raises(SpecError, match="no service 'triton'"):
            service_of({"services": {"web": {}}}, "docker-compose.yml")

    def test_gpu_user_and_shared_memory(self) -> None:
        device = {"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}
        entry = {
            "image": "x", "user": "1000:1000", "cap_drop": ["ALL"], "ipc": "host",
            "deploy": {"resources": {"reservations": {"devices": [device]}}},
        }  # fmt: skip
        service = service_of({"services": {"triton": entry}}, "x.yml")
        assert (service.gpu, service.user, service.shm_bytes) == (True, "1000:1000", None)
        assert service.drops_all_capabilities


class TestIdentification:
    def test_by_its_short_name(self) -> None:
        assert identify("26.08", None).reference == identify("26.08-py3", None).reference == IMAGE

    def test_nobody_knows_it(self) -> None:
        with pytest.raises(SpecError, match="no Docker here to ask") as caught:
            identify("ubuntu:22.04", None)
        assert str(caught.value.fix).startswith("docker pull ubuntu:22.04")

    def test_our_own_is_built_not_pulled(self) -> None:
        with pytest.raises(SpecError) as caught:
            identify("tritongen-cpu", None)
        assert "docker compose -f docker-compose.cpu.yml build" in str(caught.value.fix)
        assert "docker pull" not in str(caught.value.fix)

    @pytest.mark.parametrize("name", ["", "foo bar", "Foo", "a:", "-x", "a:b:c"])
    def test_what_is_no_name(self, name: str) -> None:
        with pytest.raises(SpecError, match="is no name of an image"):
            identify(name, None)

    @pytest.mark.parametrize("name", ["localhost:5000/a/b__c:V1", "a59eac39775c", f"x@sha256:{'a' * 64}"])
    def test_what_is_a_name(self, name: str) -> None:
        check_reference(name)


def test_the_variable_of_the_image() -> None:
    later = "services: {triton: {image: !reset '$MINE', ports: []}}"
    texts = [GPU_FILE.read_text(encoding="utf-8"), "services:\n"]
    assert image_variable(texts) == "TRITON_IMAGE"
    assert image_variable([GPU_FILE.with_name("docker-compose.cpu.yml").read_text()]) == "TRITONGEN_IMAGE"
    assert image_variable([*texts, later]) == "MINE"
    assert image_variable(["services: {triton: {image: x}}"]) is None


class TestCommand:
    def run(self, *arguments: str) -> Any:
        return CliRunner().invoke(cli, ["verify", *arguments], standalone_mode=False)

    def test_without_docker_it_says_unknown_and_ends_with_0(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setenv("PATH", str(tmp_path))
        monkeypatch.chdir(tmp_path)
        result = self.run(str(folder.parent), "--image", "26.08", "--json")
        report = json.loads(result.output)
        unknown = {each["check"] for each in report["findings"] if each["severity"] == "unknown"}
        assert unknown >= {"docker", "compose"}
        others = {each["check"] for each in report["findings"]} - unknown
        assert others <= {"port"}, "only what happens to listen on this machine"
        assert result.return_value == (1 if others else 0)

    def test_elsewhere_leaves_this_machine_out(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", "")
        result = self.run(str(folder.parent), "--image", "26.08", "--elsewhere")
        assert result.return_value == 0
        assert "fit for nvcr.io/nvidia/tritonserver:26.08-py3" in result.output

    def test_elsewhere_alone_means_nothing(self, folder: Path) -> None:
        result = self.run(str(folder.parent), "--elsewhere")
        assert "go with --image" in str(result.exception)
