"""The embedded server's life: ready, explained when it is not, and nothing left behind however it ends."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import models
from tests.serving_models import add_model, config, small_repository, tensor
from tritongen.errors import InputError, RepositoryError, RequirementError, ServerError
from tritongen.scratch import remove_abandoned
from tritongen.serving.control import connect, read_metrics
from tritongen.serving.embedded import EmbeddedServer
from tritongen.serving.scratch import PREFIX
from tritongen.serving.supervisor import children

pytestmark = pytest.mark.server

SHM = Path("/dev/shm")  # noqa: S108
WIDE = ([tensor("x", "FP32", "4")], [tensor("y", "FP32", "4")])


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    repository = small_repository(tmp_path_factory.mktemp("repository"))
    with EmbeddedServer(repository, model_control="explicit", load=["*"]) as running:
        yield running


@pytest.mark.parametrize("scheme", ["http", "grpc"])
class TestControl:
    def test_ready(self, server: EmbeddedServer, scheme: str) -> None:
        control = connect(getattr(server, f"{scheme}_url"))
        assert control.is_live()
        assert control.is_ready("relu")
        assert not control.is_ready("absent")
        control.check_ready("relu")

    def test_describes_itself_and_its_models(self, server: EmbeddedServer, scheme: str) -> None:
        control = connect(getattr(server, f"{scheme}_url"))
        assert control.server_metadata().name == "triton"
        metadata = control.model_metadata("relu")
        assert [(each.name, each.datatype, each.shape) for each in metadata.inputs] == [
            ("x", "FP32", (-1, 4))
        ]
        assert control.model_config("relu")["max_batch_size"] == 8
        assert control.model_config("relu")["input"][0]["dims"] == [4]
        assert control.statistics("relu").version == "1"
        assert [(each.name, each.version, each.state) for each in control.index()] == [("relu", "1", "READY")]

    def test_an_unknown_model_gets_the_nearest_name(self, server: EmbeddedServer, scheme: str) -> None:
        control = connect(getattr(server, f"{scheme}_url"))
        for ask in (control.model_metadata, control.model_config, control.statistics, control.check_ready):
            with pytest.raises(ServerError, match="no model 'relo'") as caught:
                ask("relo")
            assert caught.value.fix == "did you mean 'relu'?"
        with pytest.raises(ServerError) as caught:
            control.check_ready("results")
        assert caught.value.fix == "check the name, or load it"

    def test_unloads_and_loads(self, server: EmbeddedServer, scheme: str) -> None:
        control = connect(getattr(server, f"{scheme}_url"))
        control.unload("relu")
        assert not control.is_ready("relu")
        with pytest.raises(ServerError, match="no model 'relu' that is loaded") as caught:
            control.check_ready("relu")
        assert caught.value.fix == "load it: `tritongen reload relu`, if tritongen built it"
        control.load("relu")
        assert control.is_ready("relu")

    def test_the_other_protocols_port_is_recognised(self, server: EmbeddedServer, scheme: str) -> None:
        port = server.grpc_port if scheme == "http" else server.http_port
        with pytest.raises(ServerError) as caught:
            connect(f"{scheme}://127.0.0.1:{port}", timeout_s=5).check_ready()
        assert ("use grpc://" if scheme == "http" else "use http://") in str(caught.value)


def test_loads_with_another_configuration(server: EmbeddedServer) -> None:
    control = connect(server.http_url)
    other = (
        '{"backend": "onnxruntime", "max_batch_size": 2, '
        '"input": [{"name": "x", "data_type": "TYPE_FP32", "dims": [4]}], '
        '"output": [{"name": "y", "data_type": "TYPE_FP32", "dims": [4]}]}'
    )
    control.load("relu", other)
    assert control.model_config("relu")["max_batch_size"] == 2
    with pytest.raises(ServerError, match="names input 'z'; the model has 'x'") as caught:
        control.load("relu", other.replace('"x"', '"z"'))
    assert "model.py(" not in str(caught.value)
    assert control.model_config("relu")["max_batch_size"] == 2
    control.unload("relu")
    control.load("relu")
    control.wait_ready("relu")
    assert control.model_config("relu")["max_batch_size"] == 8


def test_metrics(server: EmbeddedServer) -> None:
    assert "nv_inference_request_success" in read_metrics(server.metrics_url)


def test_a_taken_port_is_named_with_its_holder(server: EmbeddedServer) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(RequirementError, match=f"port {port} is taken") as caught:
            EmbeddedServer(server.repository, http_port=port).start()
    assert f"PID {os.getpid()}" in str(caught.value.found)
    assert "--http-port" in str(caught.value.fix)


def _parameter(key: str, value: str) -> str:
    return f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}'


BROKEN = {
    "not_onnx": (models.relu(), config("not_onnx", 8, *WIDE), "cannot load model.onnx.*INVALID_PROTOBUF"),
    "operator": (models.unknown_operator(), config("operator", 8, *WIDE), "Frobnicate.* is not a registered"),
    "misnamed": (models.relu(), config("other", 8, *WIDE), "directory name must equal model name"),
    "rank": (models.relu(), config("rank", 0, *WIDE), "gives input 'x' 1 axes; the model has 2"),
    "kind": (
        models.relu(),
        config("kind", 8, [tensor("x", "INT64", "4")], WIDE[1]),
        r"says TYPE_INT64 for input 'x'; the model has tensor\(float\)",
    ),
    "bfloat16": (
        models.relu(),
        config("bfloat16", 8, [tensor("x", "BF16", "4")], WIDE[1]),
        "TYPE_BF16, which this server cannot carry",
    ),
    "mode": (
        models.relu(),
        config("mode", 8, *WIDE, _parameter("execution_mode", "7")),
        r"execution_mode is 7; it may be 0 \(sequential\) or 1",
    ),
    "threads": (
        models.relu(),
        config("threads", 8, *WIDE, _parameter("intra_op_thread_count", "two")),
        "intra_op_thread_count is 'two', not a whole number",
    ),
}


def test_each_broken_model_is_explained(tmp_path: Path) -> None:
    for name, (proto, text, _) in BROKEN.items():
        add_model(tmp_path, name, proto, text)
    (tmp_path / "not_onnx" / "1" / "model.onnx").write_bytes(b"not a model")
    small_repository(tmp_path)
    with pytest.raises(ServerError, match="cannot serve models") as caught:
        EmbeddedServer(tmp_path).start()
    found = str(caught.value.found)
    for name, (_, _, cause) in BROKEN.items():
        assert re.search(f"{name}: .*{cause}", found)
    assert "relu" not in found
    assert "Traceback" not in found
    assert "model.py(" not in found


def test_a_broken_configuration_is_explained_with_its_line(tmp_path: Path) -> None:
    add_model(tmp_path, "broken", models.relu(), config("broken", 8, *WIDE) + "}")
    with pytest.raises(ServerError, match="cannot serve model 'broken'") as caught:
        EmbeddedServer(tmp_path).start()
    assert caught.value.found == "config.pbtxt line 8, column 1: Expected identifier, got: }"


def test_a_missing_repository_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no model repository at"):
        EmbeddedServer(tmp_path / "absent").start()


def test_a_model_name_cannot_reach_the_shell(tmp_path: Path) -> None:
    (tmp_path / "$(touch hacked)").mkdir()
    with pytest.raises(RepositoryError, match="cannot be served"):
        EmbeddedServer(tmp_path).start()


def test_a_log_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    repository = small_repository(tmp_path / "repository")
    (tmp_path / "file").touch()
    with pytest.raises(RequirementError, match="cannot be prepared") as caught:
        EmbeddedServer(repository, log_file=tmp_path / "file" / "triton.log").start()
    assert "triton.log" in str(caught.value.found) or "file" in str(caught.value.found)


@pytest.mark.parametrize("kind", ["http", "grpc", "metrics"])
def test_a_port_that_is_lost_after_the_check(tmp_path: Path, kind: str) -> None:
    """Triton's own word for a port that another process took in between; metrics must not be lost quietly."""
    (tmp_path / "repository").mkdir()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        server = EmbeddedServer(tmp_path / "repository", extra_args=[f"--{kind}-port={port}"])
        with pytest.raises(ServerError, match="could not open its"):
            server.start()


def test_a_log_is_appended_to(tmp_path: Path) -> None:
    log = tmp_path / "triton.log"
    log.write_text("error: failed to load 'relu' version 1: an earlier server's trouble\n")
    add_model(tmp_path / "repository", "relu", models.relu(), config("relu", 0, *WIDE))
    with pytest.raises(ServerError, match="gives input 'x' 1 axes"):
        EmbeddedServer(tmp_path / "repository", log_file=log).start()
    assert "an earlier server's trouble" in log.read_text()


def test_the_response_cache_answers_repeated_requests(tmp_path: Path) -> None:
    import numpy as np
    from tritonclient.http import InferenceServerClient, InferInput

    text = config("relu", 8, *WIDE, "response_cache { enable: true }")
    add_model(tmp_path, "relu", models.relu(), text)
    with EmbeddedServer(tmp_path) as server:
        tensor_in = InferInput("x", [1, 4], "FP32")
        tensor_in.set_data_from_numpy(np.ones((1, 4), np.float32))
        with InferenceServerClient(server.http_url.removeprefix("http://")) as client:
            for _ in range(3):
                client.infer("relu", [tensor_in])
        control = connect(server.http_url)
        assert _eventually(lambda: control.statistics("relu").success.count == 3)
        statistics = control.statistics("relu")
    assert (statistics.cache_hit.count, statistics.cache_miss.count) == (2, 1)
    assert statistics.execution_count == 1


def test_stopping_leaves_nothing_behind(tmp_path: Path) -> None:
    server = EmbeddedServer(small_repository(tmp_path / "repository"))
    server.start()
    assert server._scratch is not None
    pids, scratch = _family(server.pid), server._scratch.path
    assert len(pids) == 3  # supervisor, tritonserver, one stub
    assert _segments(scratch)
    server.stop()
    _assert_gone(pids, scratch)
    server.stop()


def test_what_is_in_flight_at_the_end_has_the_time_that_triton_was_told(tmp_path: Path) -> None:
    # The request waits this long for others to share a batch with; we would end the server after 8 s.
    waits = "dynamic_batching { max_queue_delay_microseconds: 10000000 }"
    add_model(tmp_path, "relu", models.relu(), config("relu", 8, *WIDE, waits))
    answers: list[Any] = []
    x = np.ones((1, 4), np.float32)
    with EmbeddedServer(tmp_path, extra_args=["--exit-timeout-secs=60"]) as server:
        control = connect(server.http_url)
        asking = threading.Thread(target=lambda: answers.append(control.infer("relu", "", {"x": x})["y"]))
        asking.start()
        pending = re.compile(r'^nv_inference_pending_request_count\{model="relu",.*\} 1$', re.MULTILINE)
        assert _eventually(lambda: pending.search(read_metrics(server.metrics_url)) is not None)
    asking.join()
    np.testing.assert_array_equal(answers[0], x)


@pytest.mark.parametrize("victim", ["parent", "supervisor", "tritonserver"])
def test_a_kill_leaves_nothing_behind(tmp_path: Path, victim: str) -> None:
    """Whichever process is killed with SIGKILL, the others end and clean up."""
    program = (
        "import sys, time\nfrom pathlib import Path\n"
        "from tritongen.serving.embedded import EmbeddedServer\n"
        "server = EmbeddedServer(Path(sys.argv[1]))\nserver.start()\n"
        "print(server.pid, server._scratch.path, flush=True)\ntime.sleep(600)\n"
    )
    repository = small_repository(tmp_path / "repository")
    parent = subprocess.Popen(
        [sys.executable, "-c", program, str(repository)],
        env={**os.environ, "TMPDIR": str(tmp_path)},  # a dead parent cannot remove the scratch folder
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    with parent:
        supervisor, folder = parent.stdout.readline().split()
        pids = _family(int(supervisor))
        target = {"parent": parent.pid, "supervisor": pids[0], "tritonserver": pids[1]}[victim]
        os.kill(target, signal.SIGKILL)
        try:
            _assert_processes_gone(pids)
            assert _eventually(lambda: not _segments(Path(folder)))
            if victim == "parent":
                assert _eventually(lambda: not Path(folder).exists())
            else:  # the parent lives, and may still read the log
                remove_abandoned(tmp_path, PREFIX)
                assert Path(folder).is_dir()
        finally:
            parent.kill()
    remove_abandoned(tmp_path, PREFIX)
    assert not Path(folder).exists()


def test_the_embedded_server_serves_beside_others(server: EmbeddedServer, tmp_path: Path) -> None:
    """Two servers at once share neither ports nor shared memory."""
    with EmbeddedServer(small_repository(tmp_path)) as other:
        assert connect(other.http_url).is_ready("relu")
    assert connect(server.http_url).is_ready("relu")


def test_packages_from_elsewhere_are_found(tmp_path: Path) -> None:
    """An interpreter that has its packages by PYTHONPATH only, as with conda's or a target folder's."""
    program = (
        "import sys\nfrom pathlib import Path\n"
        "from tritongen.serving.embedded import EmbeddedServer\n"
        "with EmbeddedServer(Path(sys.argv[1])):\n    print('ready')\n"
    )
    bare = f"{sys.base_prefix}/bin/python{sys.version_info.major}.{sys.version_info.minor}"
    if sys.prefix == sys.base_prefix or not Path(bare).exists():
        pytest.skip("the tests do not run in a virtual environment")
    done = subprocess.run(
        [bare, "-c", program, str(small_repository(tmp_path))],
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.stdout == "ready\n", done.stderr


def _family(supervisor: int) -> list[int]:
    """The supervisor, tritonserver, and its stubs."""
    pids = [supervisor]
    for pid in pids:
        pids += sorted(children(pid))
    return pids


def _segments(scratch: Path) -> list[Path]:
    return list(SHM.glob(scratch.name.replace("-", "_") + "*"))


def _assert_gone(pids: list[int], scratch: Path) -> None:
    _assert_processes_gone(pids)
    assert not _segments(scratch)
    assert not scratch.exists()


def _assert_processes_gone(pids: list[int]) -> None:
    assert _eventually(lambda: not any(map(_runs, pids))), [pid for pid in pids if _runs(pid)]


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _eventually(condition: Callable[[], bool], timeout_s: float = 120.0) -> bool:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True
