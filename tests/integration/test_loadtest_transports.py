"""Every way in which requests travel, against a real Triton, and TLS in front of it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests import models
from tritongen.cli import run
from tritongen.errors import InputError, RequirementError, ServerError
from tritongen.loadtest.job import Job
from tritongen.loadtest.probe import probe
from tritongen.loadtest.run import run_load_test
from tritongen.loadtest.settings import Settings
from tritongen.loadtest.shape import parse_rate
from tritongen.loadtest.target import parse_address
from tritongen.loadtest.workload import encoded, prepare_workload
from tritongen.runs.loadtest import LoadReport
from tritongen.serving.access import Access
from tritongen.serving.control import connect
from tritongen.serving.embedded import EmbeddedServer

if TYPE_CHECKING:
    from typing_extensions import Self

pytestmark = pytest.mark.server

SHARED = Path("/dev/shm")  # noqa: S108
LINEAR = """
name: "NAME"
backend: "onnxruntime"
max_batch_size: 8
input [ { name: "x" data_type: TYPE_FP32 dims: [ 4 ] } ]
output [ { name: "y" data_type: TYPE_FP32 dims: [ 3 ] } ]
instance_group [ { count: 1 kind: KIND_CPU } ]
"""
SCRIPTED = """
name: "NAME"
backend: "python"
max_batch_size: 0
input [ { name: "x" data_type: TYPE_FP32 dims: [ 4 ] } ]
output [ { name: "y" data_type: TYPE_FP32 dims: [ 4 ] } ]
"""
REPEAT = """
import numpy as np
import triton_python_backend_utils as pb

class TritonPythonModel:
    def execute(self, requests):
        for each in requests:
            values = pb.get_input_tensor_by_name(each, "x").as_numpy()
            sender = each.get_response_sender()
            for _ in range(3):
                sender.send(pb.InferenceResponse([pb.Tensor("y", values)]))
            sender.send(flags=pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
"""
SLOW = """
import time
import triton_python_backend_utils as pb

class TritonPythonModel:
    def execute(self, requests):
        time.sleep(0.05)
        return [pb.InferenceResponse([pb.Tensor("y", pb.get_input_tensor_by_name(each, "x").as_numpy())])
                for each in requests]
"""
LARGE = """
name: "large"
backend: "onnxruntime"
input [ { name: "x" data_type: TYPE_FP32 dims: [ 1 ] } ]
output [ { name: "y" data_type: TYPE_FP32 dims: [ 12000000 ] } ]
instance_group [ { count: 1 kind: KIND_CPU } ]
"""
QUEUE = "dynamic_batching { default_queue_policy { max_queue_size: 2 } }\n"


@pytest.fixture(scope="module")
def triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    repository = tmp_path_factory.mktemp("repository")
    for name in ("linear", "other"):
        models.save(models.linear(), repository / name / "1" / "model.onnx")
        (repository / name / "config.pbtxt").write_text(LINEAR.replace("NAME", name))
    models.save(models.expanded(12_000_000), repository / "large" / "1" / "model.onnx")
    (repository / "large" / "config.pbtxt").write_text(LARGE)
    for name, program, more in (
        ("repeat", REPEAT, "model_transaction_policy { decoupled: true }\n"),
        ("slow", SLOW, QUEUE),
    ):
        (repository / name / "1").mkdir(parents=True)
        (repository / name / "1" / "model.py").write_text(program)
        config = SCRIPTED.replace(
            "max_batch_size: 0", "max_batch_size: 1" if name == "slow" else "max_batch_size: 0"
        )
        (repository / name / "config.pbtxt").write_text(config.replace("NAME", name) + more)
    with EmbeddedServer(repository) as server:
        yield server


def load(url: str, model: str = "linear", **settings: Any) -> LoadReport:
    wanted: dict[str, Any] = {"duration_s": 1.2, "warmup_s": 0.2, "seed": 3, **settings}
    return run_load_test(Settings(model, url, **wanted))


def test_the_reference_client_finds_the_same(triton: EmbeddedServer) -> None:
    """The same schedule by hand-framed HTTP/2 and by grpcio: as many requests, answered alike."""
    reports = [
        load(triton.grpc_url, rate=80, batch_size=4, grpc_client=client) for client in ("h2", "grpcio")
    ]
    assert reports[0].requests == reports[1].requests
    for report in reports:
        assert report.answered == report.requests
        assert report.server_figures is not None
        assert report.server_figures.mean_batch == 4


def test_an_answer_of_48_mb_arrives(triton: EmbeddedServer) -> None:
    """The first request's is kept whole, of thousands of frames: once each of them copied all before it."""
    report = load(triton.grpc_url, "large", rate=3, grpc_client="h2", timeout_s=10)
    assert report.failures == ()
    assert report.answered == report.requests > 0


@pytest.mark.parametrize("client", ["h2", "grpcio"])
def test_a_full_queue_is_data(triton: EmbeddedServer, client: Any) -> None:
    report = load(triton.grpc_url, "slow", rate=100, grpc_client=client)
    assert 0 < report.answered < report.requests
    assert {failure.cause for failure in report.failures} == {"gRPC UNAVAILABLE"}
    assert "queue" in report.failures[0].message


def test_a_full_queue_over_http(triton: EmbeddedServer) -> None:
    report = load(triton.http_url, "slow", rate=100)
    assert 0 < report.answered < report.requests
    assert {failure.cause for failure in report.failures} <= {"HTTP 503", "HTTP 500", "HTTP 400"}


def test_requests_travel_compressed_in_shared_memory_and_with_headers(triton: EmbeddedServer) -> None:
    access = Access(headers=(("x-note", "any"), ("accept-encoding", "gzip")))  # of the answers over HTTP
    for url in (triton.http_url, triton.grpc_url):
        for special in ({"compression": "gzip"}, {"compression": "deflate"}, {"shared_memory": "system"}):
            report = load(url, rate=50, batch_size=2, access=access, duration_s=0.7, warmup_s=0.1, **special)
            assert report.answered == report.requests > 0, (url, special)
    assert not list(SHARED.glob(f"tritongen-{os.getpid()}-*"))


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_outputs_land_in_shared_memory(triton: EmbeddedServer, protocol: str) -> None:
    """The server reads the inputs there and writes there what it answers otherwise."""
    url = triton.http_url if protocol == "http" else triton.grpc_url
    settings = Settings("linear", url, rate=1, batch_size=2, shared_memory="system")
    address = parse_address(url)
    control = connect(url)
    try:
        workload = prepare_workload(settings, control)
        group = workload.groups[0]
        expected = control.infer("linear", "", dict(group.inputs.batches[0]))["y"]
        with encoded(settings, address, control, workload) as requests:
            job = Job(
                protocol=address.protocol, host=address.host, port=address.port, batches=workload.batches,
                order=(0,), timeout_ns=10**10, max_in_flight=1, duration_ns=10**9,
                request_sizes=tuple(map(len, requests)),
            )  # fmt: skip
            (region,) = SHARED.glob(f"tritongen-{os.getpid()}-*")
            before = region.read_bytes()
            probe(group.model, address, requests[0], 10, job)
            after = region.read_bytes()
    finally:
        control.close()
    assert expected.tobytes() not in before
    assert expected.tobytes() in after
    assert not region.exists()


def test_cuda_shared_memory_without_a_gpu_says_so(triton: EmbeddedServer) -> None:
    if Path("/dev/nvidia0").exists():
        pytest.skip("there is a GPU")
    with pytest.raises(RequirementError, match="CUDA shared memory"):
        load(triton.http_url, rate=50, shared_memory="cuda")


def test_decoupled_models_are_streamed(triton: EmbeddedServer) -> None:
    report = load(triton.grpc_url, "repeat", rate=40, streaming=True)
    assert report.answered == report.requests > 0
    with pytest.raises(ServerError, match="with an error") as caught:
        load(triton.grpc_url, "repeat", rate=40)
    assert "--streaming" in (caught.value.fix or "")


def test_mixes_and_shapes(triton: EmbeddedServer) -> None:
    counts = {}
    for name in ("linear", "other"):
        counts[name] = -inferences(triton, name)
    report = load(
        triton.http_url,
        rate_shape=parse_rate("50..150"),
        mix={"linear": 1, "other": 3},
        batch_sizes={1: 1, 4: 1},
    )
    for name in counts:
        counts[name] += inferences(triton, name)
    assert report.answered == report.requests > 30
    assert counts["other"] > 1.5 * counts["linear"] > 0


def inferences(triton: EmbeddedServer, model: str) -> int:
    from tritongen.serving.control import connect

    time.sleep(0.2)
    return connect(triton.http_url).statistics(model).inference_count


@dataclass
class Proxy:
    """TLS in front of a plain port, in a thread of its own."""

    backend: int
    context: ssl.SSLContext
    port: int = 0

    def __enter__(self) -> Self:
        self._up = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))
        self._thread.start()
        assert self._up.wait(60)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(60)

    async def _serve(self) -> None:
        self._loop, self._over = asyncio.get_running_loop(), asyncio.Event()
        self._loop.set_exception_handler(lambda _loop, _context: None)
        server = await asyncio.start_server(self._pass, "127.0.0.1", 0, ssl=self.context)
        self.port = server.sockets[0].getsockname()[1]
        self._up.set()
        await self._over.wait()
        server.close()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner, outer = await asyncio.open_connection("127.0.0.1", self.backend)
        await asyncio.gather(_copy(reader, outer), _copy(inner, writer))


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError, asyncio.CancelledError):
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
    writer.close()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for 127.0.0.1 with its key, in one file."""
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl to make a certificate")
    folder = tmp_path_factory.mktemp("tls")
    key, cert, both = folder / "key.pem", folder / "cert.pem", folder / "both.pem"
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost"]
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *subject]
    subprocess.run([*command, "-keyout", key, "-out", cert], check=True, capture_output=True)
    both.write_bytes(key.read_bytes() + cert.read_bytes())
    return both


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_tls(triton: EmbeddedServer, certificate: Path, protocol: str) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    context.load_verify_locations(certificate)
    context.verify_mode = ssl.CERT_REQUIRED
    if protocol == "grpc":
        context.set_alpn_protocols(["h2"])
    backend = triton.grpc_port if protocol == "grpc" else triton.http_port
    trusting = Access(ca_file=str(certificate), certificate_file=str(certificate))
    with Proxy(backend, context) as proxy:
        url = f"{protocol}s://127.0.0.1:{proxy.port}"
        for access in (trusting, Access(insecure=True, certificate_file=str(certificate))):
            report = load(url, rate=50, access=access, duration_s=0.8, warmup_s=0.1)
            assert report.answered == report.requests > 0
        for access in (Access(certificate_file=str(certificate)), Access(ca_file=str(certificate))):
            with pytest.raises(ServerError):
                load(url, rate=50, access=access)


def test_certificates_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("nothing")
    for name in ("ca.pem", "missing.pem"):
        with pytest.raises(InputError, match="certificates"):
            load("https://127.0.0.1:9", rate=1, access=Access(ca_file=str(tmp_path / name)))


def test_the_flags(
    triton: EmbeddedServer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "s3cret")
    (tmp_path / "trace.csv").write_text("timestamp\n" + "\n".join(str(each / 100) for each in range(50)))
    common = [
        "--url",
        triton.grpc_url,
        "--duration",
        "0.5s",
        "--token-env",
        "SECRET_TOKEN",
        "--header",
        "a: b",
    ]
    assert run(["loadtest", "linear", *common, "--rate", "50@0.1s,100@0.1s", "--mix", "other=2"]) == 0
    report = tmp_path / "report.json"
    trace = ["--trace", str(tmp_path / "trace.csv"), "--batch-size", "1=3,4=1", "--json", str(report)]
    assert run(["loadtest", "linear", *common, *trace]) == 0
    shown = capsys.readouterr()
    assert "s3cret" not in shown.out + shown.err + report.read_text()
    for wrong in (["--header", "s3cret"], ["--rate", "fast"], ["--batch-size", "many"], ["--mix", "other"]):
        assert run(["loadtest", "linear", *common, *wrong]) == 2
    assert "s3cret" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("url", "settings"),
    [
        ("http://127.0.0.1:9", {"streaming": True}),
        ("grpcs://127.0.0.1:9", {"grpc_client": "grpcio"}),
        ("http://127.0.0.1:9", {"grpc_client": "grpcio"}),
        ("http://127.0.0.1:9", {"access": Access(insecure=True)}),
        ("grpc://127.0.0.1:9", {"access": Access(ca_file="ca.pem")}),
        ("grpc://127.0.0.1:9", {"grpc_client": "grpcio", "compression": "gzip"}),
        ("grpc://127.0.0.1:9", {"access": Access(headers=(("a", "b\nc: d"),))}),
        ("grpc://127.0.0.1:9", {"access": Access(headers=(("a b", "c"),))}),
    ],
)
def test_what_cannot_travel_so(url: str, settings: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        load(url, rate=1, **settings)


def test_nobody_speaks_tls_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(5)
        answering = threading.Thread(target=lambda: server.accept()[0].close())  # noqa: PLW0108
        answering.start()
        with pytest.raises(ServerError):
            load(f"https://127.0.0.1:{server.getsockname()[1]}", rate=1)
        answering.join()
