"""What a worker process is told: a folder with one JSON file, ready-made request bytes and its schedule."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from tritongen.loadtest.schedule import Schedule
from tritongen.serving.access import PLAIN, Access

Protocol = Literal["http", "grpc"]
GrpcClient = Literal["h2", "grpcio"]
Compression = Literal["gzip", "deflate"]
SharedMemory = Literal["system", "cuda"]


@dataclass(frozen=True)
class Job:
    """Everything that the workers of a run have in common."""

    protocol: Protocol
    host: str
    port: int
    batches: tuple[int, ...]
    """Items in each prepared request."""
    order: tuple[int, ...]
    """Which prepared requests a closed loop sends, again and again."""
    timeout_ns: int
    max_in_flight: int
    """Per worker."""
    duration_ns: int
    request_sizes: tuple[int, ...]
    grpc_client: GrpcClient = "h2"
    """By hand over HTTP/2, or grpcio as the reference."""
    access: Access = PLAIN
    compression: Compression | None = None
    streaming: bool = False


def write_job(folder: Path, job: Job, requests: Sequence[bytes]) -> None:
    """Lay down what every worker reads."""
    (folder / "requests.bin").write_bytes(b"".join(requests))
    (folder / "job.json").write_text(json.dumps(asdict(job)), encoding="utf-8")


def read_job(folder: Path) -> tuple[Job, list[bytes]]:
    """The job and its ready-made requests."""
    fields: dict[str, Any] = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    fields["access"] = Access(**fields["access"])
    for name in ("batches", "order", "request_sizes"):
        fields[name] = tuple(fields[name])
    job = Job(**fields)
    data = (folder / "requests.bin").read_bytes()
    ends = np.cumsum(job.request_sizes).tolist()
    return job, [data[end - size : end] for end, size in zip(ends, job.request_sizes, strict=True)]


def write_share(folder: Path, worker: int, share: Schedule | int) -> None:
    """A worker's part: its arrivals (open loop), or how many calls it keeps in flight (closed loop)."""
    # Not np.savez: after a full disk its archive would print a traceback of its own as it is thrown away.
    with share_path(folder, worker).open("wb") as file:
        if isinstance(share, Schedule):
            np.save(file, share.offsets_ns)
            np.save(file, share.requests)
        else:
            np.save(file, share)


def read_share(folder: Path, worker: int) -> Schedule | int:
    """What `write_share` laid down for this worker."""
    with share_path(folder, worker).open("rb") as file:
        first = np.load(file)
        return Schedule(first, np.load(file)) if first.ndim else int(first)


def share_path(folder: Path, worker: int) -> Path:
    return folder / f"share-{worker}.npy"


def samples_path(folder: Path, worker: int) -> Path:
    """Where the worker's rows go (SampleFile)."""
    return folder / f"samples-{worker}.bin"
