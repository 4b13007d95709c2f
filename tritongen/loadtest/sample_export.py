"""Every request of a run as a file for one's own analysis."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from tritongen.errors import InputError
from tritongen.files import check_writable, write_output
from tritongen.loadtest.samples import Samples, cause


def check_samples_file(path: Path) -> None:
    """InputError, before the run, for a place that cannot take it."""
    if path.suffix != ".npz":
        raise InputError("the samples are written as .npz", found=str(path), expected="FILE.npz")
    check_writable(path)


def write_samples(path: Path, samples: Samples, start_ns: int) -> None:
    """An .npz: times in ns after the start of the schedule, `status` and what each status means."""
    rows = samples.rows
    found = np.unique(rows["status"])
    file = io.BytesIO()
    np.savez_compressed(
        file,
        scheduled_ns=rows["scheduled_ns"] - start_ns,
        sent_ns=rows["sent_ns"] - start_ns,
        done_ns=rows["done_ns"] - start_ns,
        status=rows["status"],
        request=rows["request"],
        batch=rows["batch"],
        status_codes=found,
        status_meanings=np.array([cause(int(status)) for status in found]),
    )
    write_output(path, file.getvalue())
