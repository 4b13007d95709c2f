"""The writer's last step: whole or not at all, whatever the disk refuses and whenever a process dies."""

from __future__ import annotations

import errno
import os
import pickle
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from tests import models
from tests.repository_models import other_linear, snapshot, to_write
from tritongen.errors import RepositoryError
from tritongen.repository import swap
from tritongen.repository.manifest import read_manifest
from tritongen.repository.swap import locked, place, recover, staged, staging_folder
from tritongen.repository.targets import embedded
from tritongen.repository.verify import Place, verify_model
from tritongen.repository.writer import ModelToWrite, write_model


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
