"""The writer: whole or not at all, versions, foreign content, and what the file system may refuse."""

from __future__ import annotations

import errno
import os
import pickle
import shutil
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from tests import models
from tests.conftest import SaveModel
from tests.repository_models import built, to_write
from tritongen.engines.onnxruntime.session import OnnxRuntimeRunner
from tritongen.errors import InputError, ModelError, RepositoryError, SpecError
from tritongen.files import digest_files
from tritongen.repository import swap
from tritongen.repository.manifest import Proof, Server, read_manifest, record_proofs
from tritongen.repository.swap import locked, place, recover, staged, staging_folder
from tritongen.repository.targets import embedded
from tritongen.repository.verify import Place, verify_model
from tritongen.repository.writer import ModelToWrite, write_model
from tritongen.runs.events import Event
from tritongen.spec import Precision


def snapshot(folder: Path) -> dict[str, tuple[str, int]]:
    """Digest and mode of every file, by path."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): (digest_files([path]), stat.S_IMODE(path.stat().st_mode))
        for path in files
    }


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return tmp_path / "repository"


@pytest.fixture
def linear(save_model: SaveModel, tmp_path: Path) -> ModelToWrite:
    return to_write(save_model("linear"), tmp_path / "runs")


def other_linear(tmp_path: Path, seed: int = 7, **serving: Any) -> ModelToWrite:
    """The same tensors with other weights."""
    path = models.save(models.linear(seed=seed), tmp_path / f"seed{seed}" / "linear.onnx")
    return to_write(path, tmp_path / f"runs{seed}", **serving)


class TestContents:
    def test_everything_is_there_and_listed(self, linear: ModelToWrite, repository: Path) -> None:
        written = write_model(
            repository, replace(linear, reference={"input/x": np.zeros((1, 4), np.float32)})
        )
        assert written.folder == repository / "tiny"
        assert written.version == 1
        manifest = read_manifest(written.folder)
        assert manifest == written.manifest
        on_disk = set(snapshot(written.folder))
        assert on_disk == {*manifest.files, "manifest.json"}
        assert set(manifest.files) == {"config.pbtxt", "1/model.onnx", "reference.npz"}
        assert manifest.server is None
        assert manifest.inputs[0].model_dump() == {
            "name": "x",
            "dtype": "FP32",
            "dims": (4,),
            "min_shape": (4,),
            "opt_shape": (4,),
            "max_shape": (4,),
            "value_range": None,
        }
        assert list(repository.iterdir()) == [written.folder]
        assert not staging_folder(repository).exists()

    def test_anyone_may_read_it_whatever_the_umask(self, linear: ModelToWrite, repository: Path) -> None:
        before = os.umask(0o077)
        try:
            folder = write_model(repository, linear).folder
        finally:
            os.umask(before)
        assert {mode for _, mode in snapshot(folder).values()} == {0o644}
        folders = (p for p in (repository, folder, *folder.iterdir()) if p.is_dir())
        assert {stat.S_IMODE(path.stat().st_mode) for path in folders} == {0o755}

    def test_external_data_keeps_its_name(
        self, save_model: SaveModel, tmp_path: Path, repository: Path
    ) -> None:
        model = to_write(save_model("convolutional", external=True), tmp_path / "runs")
        folder = write_model(repository, model).folder
        assert {"1/model.onnx", "1/convolutional.onnx.data"} <= set(read_manifest(folder).files)
        assert not list(verify_model(folder, Place(embedded())))

    def test_artifacts_are_copies(self, linear: ModelToWrite, repository: Path) -> None:
        folder = write_model(repository, linear).folder
        ours, theirs = folder / "1/model.onnx", linear.winner.folder / "model.onnx"
        assert ours.stat().st_ino != theirs.stat().st_ino

    def test_an_artifact_that_changed_since_its_trial_is_refused(
        self, linear: ModelToWrite, repository: Path
    ) -> None:
        path = linear.winner.folder / "model.onnx"
        proto = onnx.load(path)
        proto.doc_string = "changed"
        onnx.save_model(proto, path)
        with pytest.raises(RepositoryError, match="changed after"):
            write_model(repository, linear)
        assert not list(repository.iterdir())

    def test_shapes_are_those_that_the_engine_reports(self, tmp_path: Path, repository: Path) -> None:
        proto = models.relu()
        proto.graph.output[0].CopyFrom(models.value("y", ["anything", "undeclared"]))
        model = to_write(models.save(proto, tmp_path / "relu.onnx"), tmp_path / "runs")
        assert write_model(repository, model).manifest.outputs[0].dims == (4,)

    def test_ir_version_is_lowered_for_the_target(self, tmp_path: Path, repository: Path) -> None:
        proto = models.linear()
        proto.ir_version = 10
        model = to_write(models.save(proto, tmp_path / "linear.onnx"), tmp_path / "runs")
        model = replace(model, spec=model.spec.model_copy(update={"target": "24.04"}))
        manifest = write_model(repository, model).manifest
        assert manifest.ir_version == 9
        assert "from 10 down to 9" in manifest.notes[0]

    def test_an_opset_beyond_the_target_is_refused(self, tmp_path: Path, repository: Path) -> None:
        proto = models.linear()
        proto.opset_import[0].version = 21
        model = to_write(models.save(proto, tmp_path / "linear.onnx"), tmp_path / "runs")
        model = replace(model, spec=model.spec.model_copy(update={"target": "24.04"}))
        with pytest.raises(ModelError, match="cannot be served") as caught:
            write_model(repository, model)
        assert "opset 21" in str(caught.value.found)
        assert not list(repository.iterdir())

    @pytest.mark.parametrize("name", ["../x", "a/b", "", ".hidden", 'quo"te', "x" * 300])
    def test_names_that_are_no_folder_are_refused(
        self, name: str, linear: ModelToWrite, repository: Path
    ) -> None:
        with pytest.raises(SpecError):
            write_model(repository, replace(linear, name=name))
        assert not repository.exists()


class TestRunnersUp:
    def test_lie_beside_the_winner(self, linear: ModelToWrite, repository: Path, tmp_path: Path) -> None:
        other = models.save(models.linear(seed=3), tmp_path / "int8.onnx")
        runner_up = built(other, tmp_path / "runs/int8", Precision.INT8)
        folder = write_model(repository, replace(linear, runners_up=[runner_up])).folder
        manifest = read_manifest(folder)
        assert [kept.file for kept in manifest.runners_up] == ["model.int8.onnx"]
        assert (folder / "1/model.int8.onnx").read_bytes() == other.read_bytes()

    def test_two_of_one_precision_are_told_apart(
        self, linear: ModelToWrite, repository: Path, tmp_path: Path
    ) -> None:
        kept = []
        for seed in (3, 4):
            candidate = built(
                models.save(models.linear(seed=seed), tmp_path / f"{seed}.onnx"),
                tmp_path / f"runs/{seed}",
                Precision.INT8,
            )
            trial = candidate.trial
            renamed = trial.candidate.model_copy(update={"id": f"int8-{seed}"})
            kept.append(replace(candidate, trial=trial.model_copy(update={"candidate": renamed})))
        manifest = write_model(repository, replace(linear, runners_up=kept)).manifest
        assert [one.file for one in manifest.runners_up] == ["model.int8.onnx", "model.int8-4.onnx"]

    def test_other_shapes_are_left_out_with_a_reason(
        self, linear: ModelToWrite, repository: Path, tmp_path: Path
    ) -> None:
        path = models.save(models.linear(outputs=5), tmp_path / "wider.onnx")
        wider = built(path, tmp_path / "wider", Precision.INT8)
        events: list[Event] = []
        written = write_model(repository, replace(linear, runners_up=[wider]), events=events.append)
        assert written.manifest.runners_up == ()
        assert [e.message for e in events if e.status == "warning" and "other shapes" in e.message]

    def test_weights_files_of_one_name_do_not_meet(
        self, save_model: SaveModel, repository: Path, tmp_path: Path
    ) -> None:
        model = to_write(save_model("linear", external=True), tmp_path / "runs")
        other = models.save(models.linear(seed=9), tmp_path / "other/linear.onnx", external=True)
        runner_up = built(other, tmp_path / "runs/int8", Precision.INT8)
        folder = write_model(repository, replace(model, runners_up=[runner_up])).folder
        assert {path.name for path in (folder / "1").iterdir()} == {
            "model.onnx",
            "linear.onnx.data",
            "model.int8.onnx",
            "model.int8.linear.onnx.data",
        }
        x = np.arange(4, dtype=np.float32)[None]
        for kept, source in (("model", model.winner.folder), ("model.int8", runner_up.folder)):
            paths = (folder / f"1/{kept}.onnx", source / "model.onnx")
            with OnnxRuntimeRunner(paths[0]) as ours, OnnxRuntimeRunner(paths[1]) as theirs:
                assert np.array_equal(ours.infer({"x": x})["y"], theirs.infer({"x": x})["y"])
        assert not list(verify_model(folder, Place(embedded())))


class TestVersions:
    def test_an_unchanged_model_keeps_its_number(self, linear: ModelToWrite, repository: Path) -> None:
        first = write_model(repository, linear)
        again = write_model(repository, linear)
        assert (first.version, again.version) == (1, 1)
        assert snapshot(first.folder).keys() == snapshot(again.folder).keys()

    def test_older_versions_stay_as_asked(self, repository: Path, tmp_path: Path) -> None:
        for seed in (1, 2, 3):
            written = write_model(repository, other_linear(tmp_path, seed, keep_versions=2))
        assert written.version == 3
        assert [kept.version for kept in written.manifest.kept_versions] == [3, 2]
        assert {path.name for path in written.folder.iterdir() if path.is_dir()} == {"2", "3"}
        first_left = models.save(models.linear(seed=2), tmp_path / "expected.onnx")
        assert (written.folder / "2/model.onnx").read_bytes() == first_left.read_bytes()
        assert not list(verify_model(written.folder, Place(embedded())))

    def test_one_is_the_default_and_numbers_go_on(self, repository: Path, tmp_path: Path) -> None:
        write_model(repository, other_linear(tmp_path, 1))
        written = write_model(repository, other_linear(tmp_path, 2))
        assert [kept.version for kept in written.manifest.kept_versions] == [2]
        assert not (written.folder / "1").exists()

    def test_a_config_that_does_not_fit_the_old_ones_says_why(self, repository: Path, tmp_path: Path) -> None:
        write_model(repository, other_linear(tmp_path, 1, keep_versions=3))
        events: list[Event] = []
        changed = other_linear(tmp_path, 2, keep_versions=3, max_batch_size=16)
        written = write_model(repository, changed, events=events.append)
        assert written.replaced is not None
        assert "max_batch_size in config.pbtxt changed from 4 to 16" in written.replaced
        assert [kept.version for kept in written.manifest.kept_versions] == [2]
        assert any("max_batch_size" in event.message for event in events if event.status == "warning")

    def test_proofs_stay_only_while_what_they_prove_does(
        self, linear: ModelToWrite, repository: Path, tmp_path: Path
    ) -> None:
        manifest = write_model(repository, linear).manifest
        server = Server(kind="embedded", version="2.51.0")
        proof = Proof(
            slo="p99<=20ms",
            outcome="PASS",
            summary="p99 12 ms",
            server=server,
            machine=manifest.machine,
            config_digest=manifest.files["config.pbtxt"].digest,
            taken="2026-01-01T00:00:00+00:00",
        )
        record_proofs(repository / "tiny", server, (proof,))
        assert record_proofs(repository / "tiny", server, (proof,)).proofs == (proof,)
        assert write_model(repository, linear).manifest.proofs == (proof,)
        assert write_model(repository, other_linear(tmp_path, 5)).manifest.proofs == ()


class TestForeignContent:
    def test_a_folder_without_a_manifest_is_not_touched(self, linear: ModelToWrite, repository: Path) -> None:
        folder = repository / "tiny"
        (folder / "1").mkdir(parents=True)
        (folder / "config.pbtxt").write_text("mine", encoding="utf-8")
        with pytest.raises(RepositoryError, match="not written by tritongen"):
            write_model(repository, linear)
        assert (folder / "config.pbtxt").read_text(encoding="utf-8") == "mine"
        assert write_model(repository, linear, force=True).version == 2

    def test_an_edited_config_is_not_touched(self, linear: ModelToWrite, repository: Path) -> None:
        config = write_model(repository, linear).folder / "config.pbtxt"
        config.write_text(config.read_text(encoding="utf-8") + "# mine\n", encoding="utf-8")
        with pytest.raises(RepositoryError, match="changed by hand"):
            write_model(repository, linear)
        assert "# mine" in config.read_text(encoding="utf-8")
        write_model(repository, linear, force=True)
        assert "# mine" not in config.read_text(encoding="utf-8")

    def test_a_number_is_used_once_even_by_force(self, repository: Path, tmp_path: Path) -> None:
        for seed in (1, 2):
            folder = write_model(repository, other_linear(tmp_path, seed)).folder
        (folder / "config.pbtxt").write_text("mine", encoding="utf-8")
        assert write_model(repository, other_linear(tmp_path, 3), force=True).version == 3

    def test_a_foreign_version_is_not_touched(self, linear: ModelToWrite, repository: Path) -> None:
        folder = write_model(repository, linear).folder
        (folder / "9").mkdir()
        (folder / "9/model.onnx").write_bytes(b"mine")
        with pytest.raises(RepositoryError, match="version folders"):
            write_model(repository, linear)

    def test_labels_and_notes_move_along(
        self, linear: ModelToWrite, repository: Path, tmp_path: Path
    ) -> None:
        folder = write_model(repository, linear).folder
        (folder / "labels.txt").write_text("cat\ndog\n", encoding="utf-8")
        write_model(repository, other_linear(tmp_path))
        assert (folder / "labels.txt").read_text(encoding="utf-8") == "cat\ndog\n"

    def test_links_move_along_as_links(self, linear: ModelToWrite, repository: Path, tmp_path: Path) -> None:
        folder = write_model(repository, linear).folder
        (tmp_path / "labels").mkdir()
        targets = {"file": "config.pbtxt", "folder": str(tmp_path / "labels"), "nothing": "nowhere"}
        for name, target in targets.items():
            (folder / name).symlink_to(target)
        os.mkfifo(folder / "pipe")
        write_model(repository, other_linear(tmp_path))
        assert {name: str((folder / name).readlink()) for name in targets} == targets
        assert (folder / "pipe").is_fifo()

    @pytest.mark.parametrize("kind", ["file", "link"])
    def test_what_is_no_folder_is_in_the_way(
        self, kind: str, linear: ModelToWrite, repository: Path, tmp_path: Path
    ) -> None:
        repository.mkdir()
        if kind == "file":
            (repository / "tiny").write_bytes(b"x")
        else:
            (repository / "tiny").symlink_to(tmp_path)
        with pytest.raises(RepositoryError, match="in the way"):
            write_model(repository, linear, force=True)

    def test_a_manifest_of_another_form_is_not_touched(self, linear: ModelToWrite, repository: Path) -> None:
        path = write_model(repository, linear).folder / "manifest.json"
        path.write_text('{"schema": "tritongen/manifest/99"}', encoding="utf-8")
        with pytest.raises(RepositoryError, match="manifest"):
            write_model(repository, linear)


class TestRefusals:
    def test_a_broken_rule_leaves_everything_as_it_was(
        self, linear: ModelToWrite, repository: Path, tmp_path: Path
    ) -> None:
        folder = write_model(repository, linear).folder
        before = snapshot(folder)
        raw = 'model_warmup { name: "w" batch_size: 99 }'
        with pytest.raises(SpecError, match="would not work in Triton"):
            write_model(repository, other_linear(tmp_path, raw=raw))
        assert snapshot(folder) == before
        assert not staging_folder(repository).exists()

    def test_raw_additions_that_are_no_config(self, tmp_path: Path, repository: Path) -> None:
        with pytest.raises(SpecError, match=r"tiny\.serving\.raw, line 2: not a Triton model configuration"):
            write_model(repository, other_linear(tmp_path, raw="# mine\nnonsense {"))

    def test_raw_additions_that_name_a_file_that_is_not_there(self, tmp_path: Path, repository: Path) -> None:
        with pytest.raises(SpecError, match="names a file that its version lacks"):
            write_model(repository, other_linear(tmp_path, raw='default_model_filename: "model.int8.onnx"'))
        assert not any(repository.iterdir())

    def test_a_template_that_names_another_model(self, tmp_path: Path, repository: Path) -> None:
        template = tmp_path / "t.j2"
        template.write_text('name: "other" backend: "onnxruntime"', encoding="utf-8")
        with pytest.raises(SpecError, match="names another model"):
            write_model(repository, other_linear(tmp_path, template=str(template)))

    def test_the_repository_is_a_file(self, linear: ModelToWrite, repository: Path) -> None:
        repository.write_bytes(b"x")
        with pytest.raises(InputError, match="could not be written"):
            write_model(repository, linear)


def mounted(target: Path, *options: str) -> Iterator[Path]:
    """A tmpfs at `target`, or a skip with the reason."""
    target.mkdir(exist_ok=True)
    mount = shutil.which("mount")
    if mount is None or os.geteuid() != 0:
        pytest.skip("mounting a tmpfs needs root and `mount`")
    done = subprocess.run([mount, *options, str(target)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"mounting is not permitted here: {done.stderr.strip()}")
    try:
        yield target
    finally:
        subprocess.run(["umount", "-l", str(target)], check=False)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    yield from mounted(tmp_path / "disk", "-t", "tmpfs", "-o", "size=256k", "tmpfs")


class TestDisk:
    def test_a_full_disk_leaves_the_old_state(
        self, small_disk: Path, linear: ModelToWrite, tmp_path: Path
    ) -> None:
        repository = small_disk / "repository"
        folder = write_model(repository, linear).folder
        before = snapshot(folder)
        big = models.save(models.linear(inputs=4, outputs=40_000), tmp_path / "big/linear.onnx")
        with pytest.raises(RepositoryError, match="could not be written") as caught:
            write_model(repository, to_write(big, tmp_path / "big-runs"))
        assert os.strerror(errno.ENOSPC) in str(caught.value.found)
        assert "make room" in str(caught.value.fix)
        assert snapshot(folder) == before
        assert [path.name for path in small_disk.iterdir()] == ["repository"]

    def test_a_read_only_disk(self, small_disk: Path, linear: ModelToWrite, tmp_path: Path) -> None:
        folder = write_model(small_disk / "repository", linear).folder
        before = snapshot(folder)
        subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
        with pytest.raises(RepositoryError) as caught:
            write_model(small_disk / "repository", other_linear(tmp_path))
        assert "read-only" in str(caught.value.fix)
        assert snapshot(folder) == before

    def test_a_repository_that_is_a_mount_point(
        self, small_disk: Path, linear: ModelToWrite, tmp_path: Path
    ) -> None:
        assert staging_folder(small_disk) == small_disk / ".tritongen"
        write_model(small_disk, linear)
        assert write_model(small_disk, other_linear(tmp_path)).version == 2
        assert [path.name for path in small_disk.iterdir()] == ["tiny"]

    def test_a_bind_mount_on_the_same_disk(self, linear: ModelToWrite, tmp_path: Path) -> None:
        (tmp_path / "elsewhere").mkdir()
        for repository in mounted(tmp_path / "bound", "--bind", str(tmp_path / "elsewhere")):
            write_model(repository, linear)
            assert write_model(repository, other_linear(tmp_path)).version == 2
            assert [path.name for path in (tmp_path / "elsewhere").iterdir()] == ["tiny"]

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere; the read-only disk covers it")
    def test_a_folder_without_permission(self, linear: ModelToWrite, repository: Path) -> None:
        repository.mkdir(mode=0o555)
        with pytest.raises(RepositoryError, match="could not be written"):
            write_model(repository, linear)


class TestSwap:
    def test_without_exchange_two_renames_do(
        self, monkeypatch: pytest.MonkeyPatch, linear: ModelToWrite, repository: Path, tmp_path: Path
    ) -> None:
        # What a file system without RENAME_EXCHANGE answers; none is at hand in a test.
        monkeypatch.setattr(swap, "_exchange", lambda _one, _other: False)
        write_model(repository, linear)
        assert write_model(repository, other_linear(tmp_path)).version == 2
        assert [path.name for path in repository.iterdir()] == ["tiny"]
        assert not staging_folder(repository).exists()

    def test_a_kill_between_two_renames_is_undone(self, linear: ModelToWrite, repository: Path) -> None:
        folder = write_model(repository, linear).folder
        before = snapshot(folder)
        workspace = staging_folder(repository) / "tiny.abc123"
        (workspace / "new").mkdir(parents=True)
        folder.rename(workspace / "old")
        with locked(repository):
            assert recover(repository) == ("tiny",)
        assert snapshot(folder) == before
        assert not staging_folder(repository).exists()

    def test_the_old_folder_comes_back_if_the_second_rename_fails(self, tmp_path: Path) -> None:
        repository = tmp_path / "r"
        (repository / "m").mkdir(parents=True)
        (repository / "m/old.txt").write_text("old", encoding="utf-8")
        with staged(repository, "m") as folder:
            folder.rmdir()
            with pytest.raises(FileNotFoundError):
                swap._replace_in_two_steps(folder, repository / "m")
        assert (repository / "m/old.txt").read_text(encoding="utf-8") == "old"

    def test_place_swaps_whole_folders(self, tmp_path: Path) -> None:
        repository = tmp_path / "r"
        repository.mkdir()
        for content in ("one", "two"):
            with staged(repository, "m") as folder:
                (folder / "file").write_text(content, encoding="utf-8")
                place(folder, repository / "m")
        assert (repository / "m/file").read_text(encoding="utf-8") == "two"


_WRITER = """
import os, pickle, signal, sys, time
from pathlib import Path
import onnxruntime
from tritongen.repository.writer import write_model
base = Path(sys.argv[1])
models = pickle.loads((base / "models.pickle").read_bytes())

def write_on_and_on(ready):
    for i in range(10_000):
        write_model(base / "repository", models[(i + 1) % 2])
        if i == 0:
            os.write(ready, b"ready\\n")
        if sys.argv[2:]:
            time.sleep(0.1)  # the other one gets its turn

if sys.argv[2:]:
    write_on_and_on(1)
for moment in sys.stdin:  # a fresh writer for each moment; forked, as starting Python takes seconds
    heard, ready = os.pipe()
    child = os.fork()
    if child == 0:
        write_on_and_on(ready)
    os.read(heard, 6)
    time.sleep(float(moment))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    print("killed", flush=True)
"""


@contextmanager
def writing(base: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A process that writes two versions in turn."""
    with subprocess.Popen(
        [sys.executable, "-c", _WRITER, str(base), *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


class TestProcesses:
    @pytest.fixture
    def base(self, tmp_path: Path) -> Path:
        models_ = [other_linear(tmp_path, seed, keep_versions=2) for seed in (1, 2)]
        (tmp_path / "models.pickle").write_bytes(pickle.dumps(models_))
        write_model(tmp_path / "repository", models_[0])
        return tmp_path

    def test_kill_9_at_random_moments_leaves_a_whole_model(self, base: Path) -> None:
        repository = base / "repository"
        with writing(base) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            for moment in np.random.default_rng(0).uniform(0.0, 0.2, size=12):
                process.stdin.write(f"{moment}\n")
                process.stdin.flush()
                assert process.stdout.readline() == "killed\n", "the writer failed"
                assert [path.name for path in repository.iterdir()] == ["tiny"]
                findings = list(verify_model(repository / "tiny", Place(embedded())))
                assert not findings, findings
        assert read_manifest(repository / "tiny").version > 1
        with locked(repository):
            recover(repository)
        assert not staging_folder(repository).exists()

    def test_two_writers_take_turns(self, base: Path) -> None:
        with writing(base, "politely") as one, writing(base, "politely") as other:
            for process in (one, other):
                assert process.stdout is not None
                assert process.stdout.readline() == "ready\n"
            time.sleep(0.5)
            running = [one.poll(), other.poll()]
        assert running == [None, None], "a writer failed"
        assert not list(verify_model(base / "repository/tiny", Place(embedded())))

    def test_a_lock_that_is_never_freed_is_explained(self, tmp_path: Path) -> None:
        held, done = threading.Event(), threading.Event()

        def hold() -> None:
            with locked(tmp_path):
                held.set()
                done.wait()

        thread = threading.Thread(target=hold)
        thread.start()
        held.wait()
        try:
            with pytest.raises(RepositoryError, match="another tritongen"), locked(tmp_path, 0.2):
                pass
        finally:
            done.set()
            thread.join()
