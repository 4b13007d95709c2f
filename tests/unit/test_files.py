"""Results go where users say: whole files, followed links, and pipes and devices that stay what they are."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tritongen.cli import run
from tritongen.errors import InputError, TritongenError
from tritongen.files import check_writable, write_output


def test_a_file_is_replaced_whole_and_nothing_else_is_left(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text("old and longer")
    check_writable(path)
    write_output(path, "new")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("there", [True, False])
def test_a_link_stays_and_its_target_is_replaced(tmp_path: Path, *, there: bool) -> None:
    (tmp_path / "far").mkdir()
    target, link = tmp_path / "far" / "report.json", tmp_path / "link.json"
    if there:
        target.write_text("old")
    link.symlink_to(target)
    check_writable(link)
    write_output(link, b"new")
    assert link.is_symlink()
    assert target.read_text() == "new"


def test_a_pipe_is_written_into(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    check_writable(path)
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append(path.read_text()))
    reader.start()
    write_output(path, "through")
    reader.join()
    assert read == ["through"]
    assert stat.S_ISFIFO(path.stat().st_mode)


def test_a_device_stays_one_and_its_error_is_told(tmp_path: Path) -> None:
    path = tmp_path / "full"
    try:
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 7))  # as /dev/full
        path.write_bytes(b"")
    except PermissionError:
        pytest.skip("devices need root and a file system that allows them")
    check_writable(path)
    with pytest.raises(TritongenError, match=r"(?s)could not be written.*No space left.*to fix"):
        write_output(path, "x")
    assert stat.S_ISCHR(path.stat().st_mode)


def test_standard_output_is_written_into_where_it_stands(tmp_path: Path) -> None:
    code = (
        "from pathlib import Path; from tritongen.files import write_output\n"
        "print('before', flush=True); write_output(Path('/dev/stdout'), 'within\\n'); print('after')"
    )
    path = tmp_path / "log"
    with path.open("wb") as stream:
        subprocess.run([sys.executable, "-c", code], stdout=stream, check=True)
    assert path.read_text() == "before\nwithin\nafter\n"


def test_a_folder_that_takes_no_file_is_told_before_the_work() -> None:
    with pytest.raises(InputError, match=r"(?s)no file can be made.*/proc.*to fix"):
        check_writable(Path("/proc/report.json"))


def test_kubernetes_manifests_make_no_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["compose", "k8s", "--adapter-rules", "-o", str(tmp_path / "no" / "triton.yaml")]) == 2
    assert "mkdir -p" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
