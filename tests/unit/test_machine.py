"""The machine: cores by affinity and quota, CPU features by name."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tritongen.autotune.machine import _cpu, current_machine, identity, usable_cores


def test_this_machine() -> None:
    machine = current_machine()
    assert 1 <= machine.cores <= len(os.sched_getaffinity(0))
    assert machine.memory_bytes > 100_000_000
    assert machine.cpu
    assert "hostname" not in identity(machine)
    assert identity(machine) == identity(machine.model_copy(update={"hostname": "elsewhere"}))
    assert identity(machine) != identity(machine.model_copy(update={"cores": 99}))


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"cpu.max": "50000 100000"}, 1),
        ({"cpu.max": "max 100000"}, None),
        ({"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "100000"}, 1),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ({}, None),
    ],
)
def test_cores_respect_the_quota(tmp_path: Path, files: dict[str, str], cores: int | None) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    assert usable_cores(tmp_path) == (len(os.sched_getaffinity(0)) if cores is None else cores)


def test_cpu_features_are_read_on_x86_and_arm() -> None:
    x86 = "processor : 0\nmodel name : Some CPU\nflags : fpu avx2 avx512_vnni\n"
    assert _cpu(x86) == ("Some CPU", frozenset({"fpu", "avx2", "avx512_vnni"}))
    assert "asimddp" in _cpu("Features : fp asimd asimddp\nCPU part : 0xd0c\n")[1]
