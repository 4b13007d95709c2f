"""New versions on a running Triton: who gets which answers when, what the disk holds, and nothing lost."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from tests import models
from tests.integration.conftest import CommandLine
from tests.repository_models import to_write
from tests.versions import ITEMS, NAME, write_version
from tritongen.autotune.inputs import storable
from tritongen.errors import InputError, RepositoryError, ServerError, TritongenError
from tritongen.loadtest.run import run_load_test
from tritongen.loadtest.settings import Settings
from tritongen.reload.run import ReloadError, reload_model
from tritongen.reload.shadow import State, config_json
from tritongen.repository.kept import kept_states, shadow_name
from tritongen.repository.manifest import read_manifest
from tritongen.repository.targets import embedded
from tritongen.repository.verify import Place, verify_repository
from tritongen.repository.writer import write_model
from tritongen.runs.events import Event
from tritongen.runs.reload import ReloadReport
from tritongen.serving.control import RefusedError, ServerControl, connect, read_metrics
from tritongen.serving.embedded import EmbeddedServer

pytestmark = pytest.mark.server

Start = Callable[..., "Served"]


class Served:
    """A repository with version 1 of one model, and a server of it."""

    def __init__(self, base: Path, server: EmbeddedServer) -> None:
        self.base, self.server = base, server
        self.repository = base / "repository"
        self.control = connect(server.http_url)
        self.told: list[str] = []

    def reload(self, control: ServerControl | None = None, to: int | None = None) -> ReloadReport:
        return reload_model(
            control or self.control,
            self.repository,
            NAME,
            to=to,
            events=lambda event: self.told.append(event.message),
        )

    @property
    def live(self) -> int:
        """The version in the repository."""
        return read_manifest(self.repository / NAME).version

    @property
    def kept(self) -> list[int]:
        return [kept.version for kept in kept_states(self.repository, NAME)]

    def versions(self) -> dict[str, list[int]]:
        """What the server has loaded."""
        ready = [entry for entry in self.control.index() if entry.state == "READY"]
        return {name: [int(e.version) for e in ready if e.name == name] for name in {e.name for e in ready}}

    def assert_serves(self, version: int) -> None:
        """Clients get it, it is all there is on server and disk, and a restart brings the same."""
        assert self.versions() == {NAME: [version]}
        assert self.live == version
        assert [path.name for path in self.repository.iterdir()] == [NAME]
        assert not (self.base / ".repository.tritongen").exists()
        with np.load(self.repository / NAME / "reference.npz") as reference:
            expected = reference["output/y"]
        np.testing.assert_allclose(self.control.infer(NAME, "", {"x": ITEMS})["y"], expected, rtol=1e-5)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """`start(*flags)` → version 1, served."""
    servers: list[EmbeddedServer] = []

    def served(*flags: str, load: list[str] | None = None, **serving: Any) -> Served:
        write_version(tmp_path, 1, **serving)
        loaded = ["*"] if load is None else load
        server = EmbeddedServer(tmp_path / "repository", load=loaded or None, extra_args=flags)
        server.start()
        servers.append(server)
        return Served(tmp_path, server)

    yield served
    for server in servers:
        server.stop()


def spoil(served: Served) -> None:
    """Let the newest version's file be one that no server loads, and the manifest agree to it."""
    folder = served.repository / NAME
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    path = f"{manifest['version']}/model.onnx"
    (folder / path).write_bytes(b"no model")
    manifest["files"][path]["digest"] = hashlib.sha256(b"no model").hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_a_new_version_takes_over(start: Start, scheme: str) -> None:
    served = start()
    control = connect(getattr(served.server, f"{scheme}_url"))
    write_version(served.base, 2, max_batch_size=2)
    seen: list[dict[str, list[int]]] = []

    def look(event: Event) -> None:
        if event.status == "progress":
            seen.append(served.versions())

    report = reload_model(control, served.repository, NAME, events=look)
    # While it is looked at, clients have the old version only.
    assert seen == [{NAME: [1], shadow_name(NAME): [2]}]
    assert (report.outcome, report.before, report.version, report.kept) == ("switched", 1, 2, 1)
    assert report.lost == ("max_batch_size is 2 and was 4: requests with larger batches get errors",)
    assert [(answer.output, answer.passed) for answer in report.answers] == [("y", True)]
    served.assert_serves(2)


def test_a_version_that_answers_differently_is_refused_on_disk_as_well(start: Start) -> None:
    served = start()
    write_version(served.base, 2, lie=1.0)
    with pytest.raises(
        ReloadError, match="version 2 of 'tiny' was not taken over; version 1 serves on"
    ) as caught:
        served.reload()
    assert "relative L2" in str(caught.value.found)
    served.assert_serves(1)
    assert served.kept == [2]
    assert served.reload().outcome == "unchanged"
    # The next build gets a number of its own, and is taken over; and then back.
    assert write_version(served.base, 3).version == 3
    report = served.reload()
    assert (report.version, report.kept) == (3, 1)
    report = served.reload(to=1)
    assert (report.before, report.version, report.kept) == (3, 1, 3)
    served.assert_serves(1)
    assert write_version(served.base, 4).version == 4
    # One that was built and never served is not lost when another is gone back to.
    assert served.reload(to=3).kept == 1
    assert any("version 4 was built but not served; it is kept" in told for told in served.told)
    assert (served.live, served.kept) == (3, [1, 4])
    assert served.reload(to=4).version == 4
    served.assert_serves(4)
    assert write_version(served.base, 5).version == 5


@pytest.mark.parametrize("strict", ["true", "false"])
def test_a_version_that_does_not_load_is_refused_and_the_server_stays_ready(
    start: Start, strict: str
) -> None:
    served = start(f"--strict-readiness={strict}")
    write_version(served.base, 2)
    spoil(served)
    with pytest.raises(ReloadError, match="version 1 serves on") as caught:
        served.reload()
    assert "cannot load model.onnx" in str(caught.value.found)
    assert "the repository holds version 1 again" in str(caught.value.fix)
    assert "not ready" not in str(caught.value.fix)
    assert served.control.is_ready()
    served.assert_serves(1)


def test_a_damaged_version_gives_way_to_what_serves(start: Start) -> None:
    served = start()
    write_version(served.base, 2)
    (served.repository / NAME / "2/model.onnx").write_bytes(b"truncated")
    with pytest.raises(
        RepositoryError, match="version 1 serves on, and the repository holds it again"
    ) as caught:
        served.reload()
    (kept,) = kept_states(served.repository, NAME)
    assert str(kept.slot) in str(caught.value.fix)
    assert "is not what was built" in str(kept.rejected)
    served.assert_serves(1)
    with pytest.raises(RepositoryError, match="version 2 of 'tiny' is kept, but damaged"):
        served.reload(to=2)
    # Going back needs nothing of what lies there now, and it stays the only way if the served one is gone.
    assert write_version(served.base, 3).version == 3
    served.reload()
    (served.repository / NAME / "manifest.json").unlink()
    with pytest.raises(RepositoryError, match="a restart would bring up the damaged one") as caught:
        served.reload()
    assert "`tritongen reload tiny --to 1`, or build it again with `tritongen build --force`" in str(
        caught.value.fix
    )
    report = served.reload(to=1)
    assert (report.before, report.version, report.kept) == (3, 1, None)
    served.assert_serves(1)
    # A folder that is gone altogether: Triton serves on what it no longer lists.
    write_version(served.base, 4)
    shutil.rmtree(served.repository / NAME)
    with pytest.raises(RepositoryError, match="gone; version 1 serves on, and the repository holds it again"):
        served.reload()
    served.assert_serves(1)


def test_a_restart_after_a_refusal_brings_what_served(start: Start) -> None:
    served = start()
    write_version(served.base, 2)
    spoil(served)
    with pytest.raises(ReloadError):
        served.reload()
    served.server.stop()
    with EmbeddedServer(served.repository, load=["*"]) as server:
        Served(served.base, server).assert_serves(1)


def test_another_configuration_of_the_same_version(start: Start) -> None:
    served = start()
    state = State(served.repository / NAME, read_manifest(served.repository / NAME))
    config = json.loads(config_json(state, NAME))
    served.control.load(NAME, json.dumps({**config, "max_batch_size": 2, "model_warmup": []}))
    assert served.reload().outcome == "switched"
    assert served.control.model_config(NAME)["max_batch_size"] == 4
    assert write_version(served.base, 1, instances=2).version == 1
    report = served.reload()
    assert (report.outcome, report.version, report.before, report.kept) == ("switched", 1, 1, None)
    in_force = served.control.model_config(NAME)
    assert (in_force["instance_group"][0]["count"], in_force["max_batch_size"]) == (2, 4)
    assert (served.reload().outcome, served.kept) == ("unchanged", [])
    served.assert_serves(1)


def test_a_model_that_was_not_served_yet(start: Start) -> None:
    served = start()
    served.control.unload(NAME)
    report = served.reload()
    assert (report.outcome, report.before, report.version) == ("switched", None, 1)
    assert served.told[0] == "version 1 is loaded to be checked; none is served"
    served.assert_serves(1)


def test_without_the_older_state_it_still_switches_and_says_what_is_missing(start: Start) -> None:
    served = start()
    write_version(served.base, 2)
    (kept,) = kept_states(served.repository, NAME)
    kept.slot.rename(served.base / "gone")
    assert served.reload().version == 2
    assert any("has nothing to go back to" in told for told in served.told)
    served.assert_serves(2)
    write_version(served.base, 3, lie=1.0)
    (kept,) = kept_states(served.repository, NAME)
    kept.slot.rename(served.base / "gone too")
    with pytest.raises(ReloadError) as caught:
        served.reload()
    assert "the repository still holds version 3" in str(caught.value.fix)
    assert served.versions() == {NAME: [2]}


def test_what_cannot_be_used(start: Start, tmp_path: Path) -> None:
    served = start()
    with pytest.raises(InputError, match="holds no model 'other'"):
        reload_model(served.control, served.repository, "other")
    with pytest.raises(InputError, match="no model repository"):
        reload_model(served.control, tmp_path / "nowhere", NAME)
    with pytest.raises(InputError, match="version 7 of 'tiny' is not kept"):
        served.reload(to=7)
    with pytest.raises(ServerError, match="no server listens"):
        reload_model(connect("http://127.0.0.1:9"), served.repository, NAME)
    write_version(tmp_path / "another", 1)
    write_version(tmp_path / "another", 2)
    with pytest.raises(InputError, match="serves another repository"):
        reload_model(served.control, tmp_path / "another/repository", NAME)
    assert read_manifest(tmp_path / "another/repository" / NAME).version == 2
    with pytest.raises(InputError, match="serves another repository"):
        reload_model(served.control, tmp_path / "another/repository", NAME, to=1)
    assert read_manifest(tmp_path / "another/repository" / NAME).version == 2
    (served.repository / NAME / "1/model.onnx").write_bytes(b"changed")
    with pytest.raises(RepositoryError, match="is not what was built"):
        served.reload()
    assert served.versions() == {NAME: [1]}


KNOWN: dict[str, dict[str, Any]] = {
    "one_per_item": {"x": np.array([1, -2, 3], np.float32)},  # more items than fit into one call
    "scalar_input": {"x": np.ones((1, 4), np.float32), "scale": np.array(3, np.float32)},
    "two_in_two_out": {"a": np.eye(2, 3, dtype=np.float32), "b": np.ones((2, 3), np.float32)},
    "strings": {"word": np.array([["dog"], ["caf\u00e9"]])},
    "half_precision": {"x": np.ones((2, 4), np.float16)},
}


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_answers_of_every_kind_are_compared(kinds: EmbeddedServer, scheme: str) -> None:
    control = connect(getattr(kinds, f"{scheme}_url"))
    for name in KNOWN:
        report = reload_model(control, kinds.repository, name)
        assert report.outcome == "unchanged", name
        assert report.answers, name
        assert all(answer.passed for answer in report.answers), report.answers


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    """Models whose tensors travel in different ways, with their answers as `build` keeps them."""
    base = tmp_path_factory.mktemp("kinds")
    for name, inputs in KNOWN.items():
        path = models.save(models.SERVABLE[name](), base / f"{name}.onnx")
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        feed = {
            key: array.astype(object) if array.dtype.kind == "U" else array for key, array in inputs.items()
        }
        outputs = dict(
            zip([each.name for each in session.get_outputs()], session.run(None, feed), strict=True)
        )
        reference = {**storable(inputs, "input"), **storable(outputs, "output")}
        largest = {"one_per_item": 2, "scalar_input": 0}.get(name, 4)
        model = to_write(path, base / "runs" / name, name=name, max_batch_size=largest)
        write_model(base / "repository", replace(model, reference=reference))
    with EmbeddedServer(base / "repository", load=["*"]) as server:
        yield server


@pytest.mark.parametrize("mode", ["none", "poll"])
def test_a_server_that_loads_nothing_while_it_runs(start: Start, mode: str) -> None:
    served = start(f"--model-control-mode={mode}", load=[])
    with pytest.raises(RefusedError, match="does not let models be loaded") as caught:
        served.reload()
    assert "--model-control-mode=explicit" in str(caught.value.expected)


def test_a_request_in_flight_is_answered_by_the_version_that_it_came_to(start: Start) -> None:
    # A request waits this long for others to share a batch with: the switch comes meanwhile.
    served = start(queue_delay_us=2_500_000, warmup=False)
    write_version(served.base, 2, queue_delay_us=0)
    old = served.control.infer(NAME, "", {"x": ITEMS})["y"]
    answers: list[Any] = []

    def ask(event: Event) -> None:
        if event.status == "finished" and not asking.is_alive() and not answers:
            asking.start()
            while asking.is_alive() and not _waits(served):
                time.sleep(0.05)

    asking = threading.Thread(
        target=lambda: answers.append(served.control.infer(NAME, "", {"x": ITEMS})["y"])
    )
    report = reload_model(served.control, served.repository, NAME, events=ask)
    asking.join()
    assert report.version == 2
    np.testing.assert_array_equal(answers[0], old)


def _waits(served: Served) -> bool:
    """Whether a request has reached the server and is not at work yet."""
    found = re.search(
        rf'nv_inference_pending_request_count{{model="{NAME}",.*}} (\d+)',
        read_metrics(served.server.metrics_url),
    )
    assert found is not None
    return int(found[1]) > 0


KILLED = """
import os, signal, sys
from pathlib import Path
from typing import Any
from tritongen.reload.run import reload_model
from tritongen.serving.control import connect

left = int(sys.argv[3])
steps = {"os.rename", "os.link", "os.mkdir", "os.rmdir", "os.remove", "ctypes.dlsym", "socket.connect"}

def count(event, arguments):
    global left
    if event in steps:
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

def tell(event):
    if event.status == "progress" and left == 0:
        os.kill(os.getpid(), signal.SIGKILL)

control = connect(sys.argv[2])
if left:
    sys.addaudithook(count)
reload_model(control, Path(sys.argv[1]), "tiny", events=tell)
print(int(sys.argv[3]) - left)
"""


def kill_at(step: int, served: Served) -> subprocess.CompletedProcess[str]:
    """Reload in a process that is killed before its n-th change of the disk, or call to the server.

    0: while the new version is loaded under another name.
    """
    return subprocess.run(
        [sys.executable, "-c", KILLED, served.repository, served.server.http_url, str(step)],
        capture_output=True,
        text=True,
        check=False,
    )


def test_killed_anywhere_it_leaves_whole_states_and_the_next_one_goes_on(start: Start) -> None:
    served = start()
    write_version(served.base, 2)
    whole = kill_at(-1, served)
    assert whole.returncode == 0, whole.stderr
    steps = int(whole.stdout)
    assert steps > 30
    for number, step in enumerate(range(steps // 8, steps, steps // 4)):
        write_version(served.base, 3 + number)
        before, after = 2 + number, 3 + number
        assert kill_at(step, served).returncode == -9
        assert served.live in (before, after)
        assert served.versions()[NAME] in ([before], [after])
        served.reload()
        served.assert_serves(after)


def test_killed_with_its_server_a_restart_brings_what_served(start: Start) -> None:
    served = start()
    write_version(served.base, 2)
    assert kill_at(0, served).returncode == -9
    served.server.stop()
    shadow = served.repository / shadow_name(NAME)
    (finding,) = verify_repository(served.repository, (), Place(embedded()))
    assert (finding.check, str(shadow) in finding.message) == ("interrupted", True)
    with EmbeddedServer(served.repository, load=["*"]) as server:
        again = Served(served.base, server)
        # The shadow is one more name for what served before.
        assert again.versions() == {NAME: [1], shadow_name(NAME): [1]}
        assert again.reload().version == 2
        again.assert_serves(2)


def test_no_request_is_lost_over_five_reloads_under_load(start: Start) -> None:
    served = start(instances=2)
    errors: list[TritongenError] = []

    def update() -> None:
        try:
            for seed in range(2, 7):
                write_version(served.base, seed, instances=2)
                served.reload()
        except TritongenError as error:
            errors.append(error)
        finally:
            done.set()

    done = threading.Event()
    threading.Thread(target=update).start()
    sent = 0
    while not done.is_set():
        report = run_load_test(Settings(NAME, served.server.http_url, rate=50, duration_s=4))
        assert report.answered == report.requests
        sent += report.requests
    assert not errors
    assert sent > 100
    served.assert_serves(6)


def test_the_command(tritongen: CommandLine, tmp_path: Path) -> None:
    """From `serve` to `reload`, as a user goes."""
    write_version(tmp_path, 1)
    repository = tmp_path / "repository"
    ports = ("--http-port", 0, "--grpc-port", 0, "--metrics-port", 0)
    tritongen("serve", repository, "--background", *ports)
    try:
        write_version(tmp_path, 2, max_batch_size=2)
        done = tritongen("reload", NAME, "-r", repository)
        assert "clients get version 2; version 1 served until then" in done.stdout
        assert "warning: max_batch_size is 2 and was 4" in done.stdout
        assert "tritongen reload tiny --to 1" in done.stdout
        write_version(tmp_path, 3, lie=1.0)
        refused = tritongen("reload", NAME, "--json", "-r", repository, code=1)
        assert "version 2 serves on" in refused.stderr
        assert not refused.stdout
    finally:
        tritongen("stop", repository)
