"""What the sender needs of a transport: start a ready-made request, and report how it ended."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from tritongen.loadtest.job import Job

if TYPE_CHECKING:
    from tritongen.loadtest.transport_h2 import H2Transport

Finish = Callable[[int, int, str], None]
"""finish(row, status, detail): called once per request, never from inside `send`, never after `abandon`."""


class Transport(Protocol):
    """Carries ready-made requests; knows nothing of schedules or statistics."""

    async def open(self, connections: int) -> None:
        """Prepare `connections` connections where the transport has them; failures show when sending."""
        ...

    def send(self, row: int, request: int) -> None:
        """Send prepared request `request` now; its end is reported under the number `row`."""
        ...

    def abandon(self, row: int) -> None:
        """Give up on a request that is in flight; nothing more is reported of it."""
        ...

    def close(self) -> None:
        """Drop every connection."""
        ...


def open_transport(job: Job, requests: list[bytes], finish: Finish) -> Transport:
    """The transport that a job asks for; it connects when it is opened."""
    if job.protocol == "grpc" and job.grpc_client == "h2":
        return h2_transport(job, requests, finish)
    if job.protocol == "grpc":
        from tritongen.loadtest.transport_grpc import GrpcTransport

        return GrpcTransport(job.host, job.port, requests, finish)
    from tritongen.loadtest.transport_http import HttpTransport

    return HttpTransport(job.host, job.port, requests, finish, tls=job.access.context())


def h2_transport(job: Job, requests: list[bytes], finish: Finish, *, kept_bytes: int = 1024) -> H2Transport:
    """gRPC framed by hand, with everything that the job says of it."""
    from tritongen.loadtest.transport_h2 import H2Transport

    return H2Transport(
        job.host,
        job.port,
        requests,
        finish,
        tls=job.access.context("h2"),
        extra=job.access.headers,
        streaming=job.streaming,
        compression=job.compression,
        kept_bytes=kept_bytes,
    )
