"""What the serving room knows without a server: statistics, the registry, ports, logs, wrong addresses."""

from __future__ import annotations

import http.server
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import grpc
import pytest

from tritongen.errors import InputError, RequirementError, ServerError
from tritongen.serving.access import Access
from tritongen.serving.control import connect, read_metrics
from tritongen.serving.diagnosis import cause_of_failure, model_failures
from tritongen.serving.ports import check_port, check_ports, free_ports, holder, ipv4_address
from tritongen.serving.registry import (
    KEPT_LOGS,
    RunningServer,
    choose_server,
    find_server,
    forget,
    new_log,
    process_identity,
    record_path,
    register,
    running_servers,
    state_folder,
)
from tritongen.serving.scratch import interpreter_folder, safe_path
from tritongen.serving.statistics import ModelStatistics, Timing

STATISTICS = {
    "name": "m",
    "version": "2",
    "inference_count": 40,
    "execution_count": 10,
    "inference_stats": {
        "success": {"count": 20, "ns": 4_000_000},
        "queue": {"count": 20, "ns": 1_000_000},
        "compute_infer": {"count": 20, "ns": 2_000_000},
    },
    "batch_stats": [
        {"batch_size": 2, "compute_infer": {"count": 4, "ns": 300}},
        {"batch_size": 8, "compute_infer": {"count": 6, "ns": 900}},
    ],
}


class TestStatistics:
    def test_reads_what_triton_sends(self) -> None:
        read = ModelStatistics.from_json(STATISTICS)
        assert read.mean_batch == 4
        assert read.success == Timing(20, 4_000_000)
        assert read.success.mean_ms == 0.2
        assert read.fail == Timing()
        assert [batch.batch_size for batch in read.batches] == [2, 8]

    def test_the_difference_is_what_happened_in_between(self) -> None:
        later = ModelStatistics.from_json(STATISTICS)
        earlier = replace(
            later,
            inference_count=32,
            execution_count=9,
            success=Timing(19, 3_000_000),
            batches=(later.batches[0], replace(later.batches[1], compute_infer=Timing(5, 700))),
        )
        between = later - earlier
        assert (between.inference_count, between.execution_count, between.mean_batch) == (8, 1, 8)
        assert between.success == Timing(1, 1_000_000)
        assert between.queue == Timing()
        assert [(b.batch_size, b.compute_infer) for b in between.batches] == [(8, Timing(1, 200))]

    def test_a_model_that_was_loaded_again_counts_from_its_load(self) -> None:
        reloaded = ModelStatistics.from_json({"name": "m", "version": "2", "inference_count": 3})
        assert reloaded - ModelStatistics.from_json(STATISTICS) == reloaded

    def test_nothing_happened(self) -> None:
        idle = ModelStatistics.from_json({"name": "m"})
        assert idle.mean_batch == 0
        assert idle.success.mean_ms == 0


@pytest.fixture
def server(tmp_path: Path) -> RunningServer:
    """This test's own process, as if it were a server."""
    return RunningServer(
        repository=str(tmp_path / "model_repository"),
        pid=os.getpid(),
        process=process_identity(os.getpid()),
        http_url="http://127.0.0.1:1",
        grpc_url="grpc://127.0.0.1:2",
        metrics_url="http://127.0.0.1:3/metrics",
        log_file=None,
        background=True,
    )


class TestRegistry:
    def test_remembers_and_forgets(self, tmp_path: Path, server: RunningServer) -> None:
        assert running_servers(tmp_path) == []
        register(tmp_path, server)
        assert find_server(tmp_path, Path(server.repository)) == server
        assert find_server(tmp_path, tmp_path / "other") is None
        forget(tmp_path, Path(server.repository), server.pid + 1)
        assert running_servers(tmp_path) == [server]
        forget(tmp_path, Path(server.repository), server.pid)
        assert running_servers(tmp_path) == []

    def test_of_two_that_were_started_at_once_the_second_is_refused(
        self, tmp_path: Path, server: RunningServer
    ) -> None:
        """Else only the second would be known, and the first could not be stopped."""
        register(tmp_path, server)
        second = replace(server, pid=os.getppid(), process=process_identity(os.getppid()))
        with pytest.raises(RequirementError, match="served already"):
            register(tmp_path, second)
        assert running_servers(tmp_path) == [server]

    def test_a_process_with_a_recycled_pid_is_not_the_server(
        self, tmp_path: Path, server: RunningServer
    ) -> None:
        register(tmp_path, replace(server, process="an earlier boot:17"))
        assert running_servers(tmp_path) == []
        assert not record_path(tmp_path, Path(server.repository)).exists()

    def test_a_process_that_ended_is_not_the_server(self, tmp_path: Path, server: RunningServer) -> None:
        child = subprocess.Popen([sys.executable, "-c", ""])
        identity = process_identity(child.pid)
        child.wait()
        assert identity
        register(tmp_path, replace(server, pid=child.pid, process=identity))
        assert running_servers(tmp_path) == []

    @pytest.mark.parametrize("content", ["", "{}", "[]", "{nope", '{"schema": "tritongen/server/9"}'])
    def test_a_record_that_cannot_be_read_is_dropped(self, tmp_path: Path, content: str) -> None:
        (tmp_path / "servers").mkdir()
        (tmp_path / "servers" / "x.json").write_text(content)
        assert running_servers(tmp_path) == []
        assert not list((tmp_path / "servers").glob("*.json"))

    def test_chooses_the_one_that_is_meant(
        self, tmp_path: Path, server: RunningServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        elsewhere = tmp_path / "elsewhere" / "model_repository"
        elsewhere.mkdir(parents=True)
        (elsewhere / "README.md").touch()  # no model
        monkeypatch.chdir(elsewhere.parent)
        assert choose_server(tmp_path, None) is None
        other = replace(server, repository=str(tmp_path / "other"))
        register(tmp_path, other)
        assert choose_server(tmp_path, None) == other
        register(tmp_path, server)
        with pytest.raises(InputError, match="several servers run") as caught:
            choose_server(tmp_path, None)
        assert "tritongen ps" in str(caught.value.fix)
        monkeypatch.chdir(tmp_path)
        assert choose_server(tmp_path, None) == server
        assert choose_server(tmp_path, Path("other")) == other

    def test_the_last_ten_logs_are_kept(self, tmp_path: Path) -> None:
        (tmp_path / "logs").mkdir()
        other = new_log(tmp_path, tmp_path / "other")
        other.touch()
        first = new_log(tmp_path, tmp_path / "repository")
        for i in range(12):
            log = first.with_name(f"{first.stem}-{i:02}.log")
            log.touch()
            os.utime(log, (i + 1, i + 1))
        new_log(tmp_path, tmp_path / "repository").touch()
        assert other.exists()
        left = sorted(path.name for path in first.parent.glob(f"{first.stem}-*"))
        assert left[0].endswith("-03.log")
        assert len(left) == KEPT_LOGS - 1

    def test_a_state_folder_that_is_somebody_elses(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        (tmp_path / f"tritongen-{os.getuid()}").mkdir()
        assert state_folder({}) == tmp_path / f"tritongen-{os.getuid()}"
        if os.getuid() != 0:
            pytest.skip("only root may give a folder away")
        os.chown(tmp_path / f"tritongen-{os.getuid()}", 65534, -1)
        with pytest.raises(RequirementError, match="belongs to another user"):
            state_folder({})

    def test_the_state_folder(self, tmp_path: Path) -> None:
        assert state_folder({"XDG_STATE_HOME": "/x"}) == Path("/x/tritongen")
        assert (
            state_folder({"XDG_STATE_HOME": "x", "HOME": str(tmp_path)})
            == tmp_path / ".local/state/tritongen"
        )
        assert state_folder({}).name == f"tritongen-{os.getuid()}"


class TestPorts:
    def test_free_ports_differ_and_are_free(self) -> None:
        ports = free_ports(3)
        assert len(set(ports)) == 3
        for port in ports:
            check_port(port, "127.0.0.1", "--http-port")
            assert holder(port) is None

    def test_a_taken_port_names_its_holder(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            with pytest.raises(RequirementError, match=f"port {port} is taken") as caught:
                check_port(port, "127.0.0.1", "--grpc-port")
        assert f"PID {os.getpid()} (" in str(caught.value.found)
        assert "--grpc-port" in str(caught.value.fix)

    def test_all_that_are_taken_are_named_at_once(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
            taken = {"--http-port": one.getsockname()[1], "--metrics-port": other.getsockname()[1]}
            ports = {**taken, "--grpc-port": 0}
            with pytest.raises(RequirementError) as caught:
                check_ports(ports, "127.0.0.1")
        assert caught.value.message == "; ".join(f"port {port} is taken" for port in taken.values())
        assert str(caught.value.found).count(f"PID {os.getpid()} (") == 1
        assert str(caught.value.fix).endswith("--http-port 0 --metrics-port 0")

    @pytest.mark.parametrize("port", [-1, 70000])
    def test_a_number_that_is_no_port(self, port: int) -> None:
        with pytest.raises(InputError, match=f"{port} is no port"):
            check_port(port, "127.0.0.1", "--http-port")

    def test_an_address_of_another_machine(self) -> None:
        with pytest.raises(InputError, match=r"cannot listen on 192\.0\.2\.1:8000"):
            check_port(8000, "192.0.2.1", "--http-port")

    def test_names_become_addresses(self) -> None:
        assert ipv4_address("localhost") == "127.0.0.1"
        assert ipv4_address("0.0.0.0") == "0.0.0.0"  # noqa: S104
        for host in ("::1", "host.invalid"):
            with pytest.raises(InputError, match=f"cannot listen on '{host}'"):
                ipv4_address(host)


class TestPaths:
    def test_a_path_with_spaces_is_linked(self, tmp_path: Path) -> None:
        plain, spaced = tmp_path / "plain", tmp_path / "with space; rm"
        plain.mkdir()
        spaced.mkdir()
        assert safe_path(plain, tmp_path) == plain.resolve()
        assert safe_path(spaced, tmp_path) == tmp_path / "repository"
        assert (tmp_path / "repository").resolve() == spaced.resolve()

    def test_python3_is_the_running_interpreter(self, tmp_path: Path) -> None:
        python3 = interpreter_folder(tmp_path) / "python3"
        code = "import sys; print(sys.version_info[:2])"
        shown = subprocess.run([python3, "-c", code], capture_output=True, text=True, check=True).stdout
        assert shown.strip() == str(tuple(sys.version_info[:2]))


LOG = r"""
E1122 12:53:41.555183 15375 model_lifecycle.cc:642] "failed to load 'a' version 1: Internal: TritonModelException: config.pbtxt says \"X\"\n\nAt:\n  /tmp/model.py(277): fail\n"
E1122 12:53:41.555183 15375 model_lifecycle.cc:642] "failed to load 'a' version 2: Internal: TritonModelException: something later"
E1122 12:53:41.555183 15375 model_lifecycle.cc:642] "failed to load 'b' version 1: Internal: Stub process 'b_0_0' is not healthy."
/tmp/stub: error while loading shared libraries: libpython3.11.so.1.0: cannot open shared object file
E1122 12:53:54.359631 15817 model_repository_manager.cc:1460] "Poll failed for model directory 'c': failed to open text file for read /r/c/config.pbtxt: No such file or directory"
E1122 12:53:54.359631 15817 model_repository_manager.cc:1460] "Poll failed for model directory 'd': failed to open text file for read /r/d/config.pbtxt: Permission denied"
error: creating server: Internal - failed to load all models
"""  # noqa: E501


class TestDiagnosis:
    def test_each_model_with_its_first_cause(self) -> None:
        failures = model_failures(LOG)
        assert failures["a"] == 'config.pbtxt says "X"'
        assert "libpython3.11.so.1.0" in failures["b"]
        assert failures["c"] == "there is no config.pbtxt"
        assert failures["d"] == "config.pbtxt cannot be read: Permission denied"
        error = cause_of_failure(LOG, 1, Path("repo"), None)
        assert "models 'a', 'b', 'c'" in error.message
        assert len(str(error.found).splitlines()) == len(failures)
        assert error.exit_code == 5

    def test_a_server_that_was_killed(self) -> None:
        assert "memory" in str(cause_of_failure("", 137, Path("repo"), None))

    def test_a_server_that_cannot_start(self) -> None:
        log = "tritonserver: error while loading shared libraries: libdcgm.so.3: cannot open\n"
        error = cause_of_failure(log, 127, Path("repo"), Path("triton.log"))
        assert "libdcgm" in str(error.found)
        assert "triton.log" in str(error.fix)

    def test_an_option_that_triton_does_not_know(self) -> None:
        log = "/a/bin/tritonserver: unrecognized option '--x=1'\nUsage: …\n\tDefault is 0.\n"
        found = cause_of_failure(log, 1, Path("repo"), None).found
        assert found == "tritonserver: unrecognized option '--x=1'"

    def test_an_empty_log(self) -> None:
        assert cause_of_failure("", 1, Path("repo"), None).found == "an empty log"


class Handler(http.server.BaseHTTPRequestHandler):
    """A web server that is no inference server."""

    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/v2" else 404)
        self.end_headers()
        self.wfile.write(b"<html>hello</html>")

    do_POST = do_GET  # noqa: N815

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


class ManyModelsHandler(Handler):
    """A server with more models than a message should name; none of them is loaded."""

    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/v2/health/live" else 404)
        self.end_headers()
        self.wfile.write(b'{"error": "no available versions"}')

    def do_POST(self) -> None:
        self.send_response(200)
        self.end_headers()
        models = [{"name": f"m{number}", "version": "1", "state": "READY"} for number in range(40)]
        self.wfile.write(json.dumps([*models, {"name": "mine", "state": "UNAVAILABLE"}]).encode())


class LockedHandler(Handler):
    """A proxy that wants a token."""

    def do_GET(self) -> None:
        self.send_response(401)
        self.end_headers()
        self.wfile.write(b'{"error": "no token"}')


class BadGatewayHandler(Handler):
    """A proxy whose server is down."""

    def do_GET(self) -> None:
        self.send_response(502)
        self.end_headers()


@pytest.fixture
def web_server() -> Iterator[str]:
    yield from serve(Handler)


@pytest.fixture
def locked_server() -> Iterator[str]:
    yield from serve(LockedHandler)


def serve(handler: type[Handler]) -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


class TestWrongAddresses:
    @pytest.mark.parametrize(
        "url", ["ftp://host", "http://", "http://h:port", "", "http://[h", "a b:80", "h:0"]
    )
    def test_no_address(self, url: str) -> None:
        with pytest.raises(InputError, match="is not the address of a server"):
            connect(url)

    @pytest.mark.parametrize("scheme", ["http", "grpc"])
    def test_nobody_listens(self, scheme: str) -> None:
        (port,) = free_ports(1)
        control = connect(f"{scheme}://127.0.0.1:{port}", timeout_s=5)
        assert not control.is_live()
        assert not control.is_ready("m")
        with pytest.raises(ServerError, match=f"no server listens at {scheme}://127.0.0.1:{port}"):
            control.check_ready("m")
        with pytest.raises(ServerError, match="no server listens"):
            control.wait_ready("m", timeout_s=0.1)

    def test_somebody_who_never_answers(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            url = f"127.0.0.1:{silent.getsockname()[1]}"
            with pytest.raises(ServerError, match="did not answer in time"):
                connect(url, timeout_s=0.2).server_metadata()

    def test_somebody_who_hangs_up(self) -> None:
        def hang_up(listener: socket.socket) -> None:
            caller, _ = listener.accept()
            with caller:
                caller.recv(1 << 16)

        with socket.create_server(("127.0.0.1", 0)) as listener:
            thread = threading.Thread(target=hang_up, args=(listener,))
            thread.start()
            with pytest.raises(ServerError, match="closed the connection"):
                connect(f"127.0.0.1:{listener.getsockname()[1]}", timeout_s=5).server_metadata()
            thread.join()

    def test_a_web_server(self, web_server: str) -> None:
        control = connect(web_server)
        with pytest.raises(ServerError, match="does not speak the KServe v2 protocol"):
            control.server_metadata()
        with pytest.raises(ServerError, match="no model 'm'"):
            control.model_metadata("m")
        with pytest.raises(ServerError, match="does not speak the KServe v2 protocol") as caught:
            control.check_ready("m")
        assert caught.value.found == "HTTP status 404 for /v2/health/live"
        with pytest.raises(ServerError, match="HTTP status 404"):
            read_metrics(f"{web_server}/metrics")

    def test_of_many_models_few_are_named_and_the_one_that_is_asked_for(self) -> None:
        for url in serve(ManyModelsHandler):
            with pytest.raises(ServerError, match="no model 'mine'") as caught:
                connect(url).check_ready("mine")
            assert str(caught.value.found).startswith("mine: UNAVAILABLE; m0 version 1: READY; ")
            assert str(caught.value.found).endswith("; and 33 more")

    def test_a_proxy_that_asks_for_a_token(self, locked_server: str) -> None:
        with pytest.raises(ServerError, match="lets nobody in") as caught:
            connect(locked_server).check_ready("m")
        assert caught.value.found == "HTTP status 401: no token"
        assert not connect(locked_server).is_live()

    def test_a_proxy_whose_server_is_down(self) -> None:
        for url in serve(BadGatewayHandler):
            with pytest.raises(ServerError, match="not live"):
                connect(url).check_ready("m")

    def test_a_grpc_server_of_something_else(self) -> None:
        other = grpc.server(ThreadPoolExecutor(1))
        port = other.add_insecure_port("127.0.0.1:0")
        other.start()
        try:
            control = connect(f"grpc://127.0.0.1:{port}", access=Access(headers=(("X-Tenant", "a"),)))
            assert not control.is_live()
            for ask in (control.check_ready, control.server_metadata):
                with pytest.raises(ServerError, match="refuses") as caught:
                    ask()
                assert "does not offer this" in str(caught.value.found)
        finally:
            other.stop(None)

    @pytest.mark.parametrize("scheme", ["https", "grpcs"])
    def test_what_cannot_be_presented(self, scheme: str, tmp_path: Path) -> None:
        for access in (Access(ca_file=str(tmp_path / "none.pem")), Access(headers=(("a b", "c"),))):
            with pytest.raises(InputError, match=r"cannot be (used|sent)"):
                connect(f"{scheme}://127.0.0.1:9", access=access)

    def test_an_unknown_host(self) -> None:
        with pytest.raises(ServerError, match=r"is unknown|cannot be reached"):
            connect("http://host.invalid:8000", timeout_s=5).check_ready()


def test_the_record_is_plain_json(tmp_path: Path, server: RunningServer) -> None:
    register(tmp_path, server)
    content = json.loads(record_path(tmp_path, Path(server.repository)).read_text())
    assert content["schema"] == "tritongen/server/1"
    assert content["http_url"] == server.http_url
