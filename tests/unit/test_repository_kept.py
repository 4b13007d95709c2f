"""States of a model beside the repository: kept, put into service, refused, forgotten; whole after a kill."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.versions import NAME, write_version
from tritongen.repository import swap
from tritongen.repository.kept import (
    ASIDE,
    Kept,
    confirm,
    kept_root,
    kept_states,
    put_in_service,
    recover_kept,
    reject,
)
from tritongen.repository.manifest import read_manifest
from tritongen.repository.swap import locked
from tritongen.repository.targets import embedded
from tritongen.repository.verify import Place, verify_repository


def versions(base: Path) -> list[int]:
    return [kept.version for kept in kept_states(base / "repository", NAME)]


def live(base: Path) -> int:
    return read_manifest(base / "repository" / NAME).version


def only(base: Path) -> Kept:
    (kept,) = kept_states(base / "repository", NAME)
    return kept


def swapped(kept: Kept, base: Path, *, sets_aside: bool = False) -> Kept:
    """Let it change places with the state in the repository; that one."""
    leaving = put_in_service(kept, base / "repository", sets_aside=sets_aside)
    assert leaving is not None
    return leaving


def assert_whole(base: Path) -> None:
    assert not list(verify_repository(base / "repository", (), Place(embedded())))


def test_what_a_build_replaces_is_kept_beside_the_repository(tmp_path: Path) -> None:
    write_version(tmp_path, 1)
    assert versions(tmp_path) == []
    write_version(tmp_path, 2)
    assert (versions(tmp_path), live(tmp_path)) == ([1], 2)
    assert [path.name for path in (tmp_path / "repository").iterdir()] == [NAME]
    assert only(tmp_path).slot == tmp_path / ".repository.kept" / f"{NAME}.1"


def test_the_same_again_is_not_kept(tmp_path: Path) -> None:
    write_version(tmp_path, 1)
    write_version(tmp_path, 1)
    assert (versions(tmp_path), live(tmp_path)) == ([], 1)


def test_another_configuration_of_the_same_version_is_kept(tmp_path: Path) -> None:
    write_version(tmp_path, 1)
    write_version(tmp_path, 1, instances=2)
    assert (versions(tmp_path), live(tmp_path)) == ([1], 1)


def test_the_first_and_the_last_stay(tmp_path: Path) -> None:
    for seed in range(1, 6):
        write_version(tmp_path, seed)
    assert (versions(tmp_path), live(tmp_path)) == ([1, 4], 5)


@pytest.mark.parametrize("exchange", [True, False])
def test_states_change_places(exchange: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_version(tmp_path, 1)
    write_version(tmp_path, 2)
    if not exchange:  # what a file system without RENAME_EXCHANGE answers
        monkeypatch.setattr(swap, "_exchange", lambda _one, _other: False)
    kept = swapped(only(tmp_path), tmp_path, sets_aside=True)
    assert (kept.version, live(tmp_path), kept.is_candidate) == (2, 1, True)
    assert kept == only(tmp_path)
    kept = swapped(kept, tmp_path)
    assert (kept.version, live(tmp_path), kept.is_candidate) == (1, 2, False)
    assert_whole(tmp_path)


def test_a_candidate_is_one_only_once_it_is_set_aside(tmp_path: Path) -> None:
    write_version(tmp_path, 1)
    write_version(tmp_path, 1, instances=2)
    older = only(tmp_path)
    # Killed after the mark and before the change: the mark names the state in the repository.
    put_in_service(older, tmp_path / "repository", sets_aside=True)
    mark = (only(tmp_path).slot / "candidate").read_text(encoding="utf-8")
    put_in_service(only(tmp_path), tmp_path / "repository")
    (only(tmp_path).slot / "candidate").write_text(mark, encoding="utf-8")
    assert not only(tmp_path).is_candidate


def test_the_number_of_a_refused_version_is_not_used_again(tmp_path: Path) -> None:
    write_version(tmp_path, 1)
    write_version(tmp_path, 2)
    reject(swapped(only(tmp_path), tmp_path), "it differs")
    assert only(tmp_path).rejected == "it differs"
    confirm(tmp_path / "repository", NAME, None, served=1)
    assert write_version(tmp_path, 3).version == 3
    # Version 1 is kept, and of the refused ones the last.
    assert versions(tmp_path) == [1, 2]
    (one, _) = kept_states(tmp_path / "repository", NAME)
    reject(swapped(one, tmp_path), "it is slow")
    assert versions(tmp_path) == [3]


def test_once_confirmed_only_the_one_before_stays(tmp_path: Path) -> None:
    for seed in (1, 2, 3):
        write_version(tmp_path, seed)
    before = kept_states(tmp_path / "repository", NAME)[-1]
    confirm(tmp_path / "repository", NAME, before, served=2)
    assert versions(tmp_path) == [2]
    confirm(tmp_path / "repository", NAME, None, served=3)
    assert versions(tmp_path) == []


def test_what_was_built_but_not_served_stays_when_an_older_version_is_gone_back_to(tmp_path: Path) -> None:
    for seed in (1, 2, 3):
        write_version(tmp_path, seed)
    one, two = kept_states(tmp_path / "repository", NAME)
    swapped(two, tmp_path)
    before = swapped(one, tmp_path)
    confirm(tmp_path / "repository", NAME, before, served=2)
    assert (versions(tmp_path), live(tmp_path)) == ([2, 3], 1)
    # Also when the one that served is gone back to, and when the manifest cannot be read.
    confirm(tmp_path / "repository", NAME, swapped(before, tmp_path), served=1)
    assert (versions(tmp_path), live(tmp_path)) == ([1, 3], 2)
    (kept_states(tmp_path / "repository", NAME)[1].folder / "manifest.json").unlink()
    confirm(tmp_path / "repository", NAME, None, served=2)
    assert versions(tmp_path) == []
    assert write_version(tmp_path, 4).version == 4


def test_what_may_be_served_stays_through_the_builds_after_a_reload(tmp_path: Path) -> None:
    write_version(tmp_path, 1)
    write_version(tmp_path, 2)
    confirm(tmp_path / "repository", NAME, only(tmp_path), served=1)
    kept = []
    for seed in (3, 4, 5):
        write_version(tmp_path, seed)
        kept.append(versions(tmp_path))
    assert kept == [[1, 2], [2, 3], [2, 4]]


def test_a_refused_version_of_a_higher_number_stays_when_an_older_one_is_refused(tmp_path: Path) -> None:
    for seed in (1, 2, 3):
        write_version(tmp_path, seed)
    one, two = kept_states(tmp_path / "repository", NAME)
    reject(swapped(one, tmp_path), "it differs")
    reject(two, "it differs")
    assert (versions(tmp_path), live(tmp_path)) == ([2, 3], 1)


@pytest.mark.parametrize("moved", [1, 2])
def test_a_kill_between_two_renames_is_undone(moved: int, tmp_path: Path) -> None:
    write_version(tmp_path, 1)
    write_version(tmp_path, 2)
    kept, folder = only(tmp_path), tmp_path / "repository" / NAME
    folder.rename(kept.slot / ASIDE)
    if moved > 1:
        kept.folder.rename(folder)
    with locked(tmp_path / "repository"):
        assert recover_kept(tmp_path / "repository") == ((NAME,) if moved == 1 else ())
        assert recover_kept(tmp_path / "repository") == ()
    assert sorted([live(tmp_path), only(tmp_path).version]) == [1, 2]
    assert_whole(tmp_path)


def test_models_with_names_that_begin_alike(tmp_path: Path) -> None:
    write_version(tmp_path, 1)
    write_version(tmp_path, 2)
    slot = only(tmp_path).slot
    slot.rename(slot.with_name(f"{NAME}.b.1"))
    assert kept_states(tmp_path / "repository", NAME) == ()


def test_beside_a_mount_point_nothing_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = tmp_path / "repository"
    repository.mkdir()
    # Another mount in a test needs root; the tests of the writer have real ones.
    monkeypatch.setattr(swap, "_mount", str)
    assert kept_root(repository) is None
    write_version(tmp_path, 1)
    assert write_version(tmp_path, 2).version == 2
    assert versions(tmp_path) == []


def test_a_damaged_state_is_not_kept(tmp_path: Path) -> None:
    write_version(tmp_path, 1)
    write_version(tmp_path, 2)
    (tmp_path / "repository" / NAME / "2/model.onnx").write_bytes(b"truncated")
    write_version(tmp_path, 3)
    assert (versions(tmp_path), live(tmp_path)) == ([1], 3)


def test_a_state_without_a_manifest_gives_way_and_its_number_is_not_used_again(tmp_path: Path) -> None:
    write_version(tmp_path, 1)
    write_version(tmp_path, 2)
    slot = only(tmp_path).slot
    (tmp_path / "repository" / NAME / "manifest.json").unlink()
    assert put_in_service(only(tmp_path), tmp_path / "repository") is None
    assert (versions(tmp_path), live(tmp_path)) == ([], 1)
    assert (slot / "new/2/model.onnx").is_file()
    assert write_version(tmp_path, 3).version == 3


def test_a_folder_that_is_gone_is_put_back(tmp_path: Path) -> None:
    write_version(tmp_path, 1)
    write_version(tmp_path, 2)
    shutil.rmtree(tmp_path / "repository" / NAME)
    assert put_in_service(only(tmp_path), tmp_path / "repository") is None
    assert (versions(tmp_path), live(tmp_path)) == ([], 1)
    assert not any((tmp_path / ".repository.kept").iterdir())
