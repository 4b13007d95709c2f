"""Inputs in system shared memory: laid down once, registered with the server, always taken back."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path

from tritongen.errors import RequirementError, ServerError
from tritongen.loadtest.request import Arrays, Places, raw_bytes
from tritongen.loadtest.target import ServedModel
from tritongen.serving.control import ServerControl

_FOLDER = Path("/dev/shm")  # noqa: S108  (where Linux has POSIX shared memory)
_ALIGNMENT = 64


@contextlib.contextmanager
def shared_inputs(
    control: ServerControl, requests: Sequence[tuple[ServedModel, Arrays]]
) -> Iterator[tuple[str, list[Places]]]:
    """The region's name and, for each request, where its inputs are in it; gone again on leaving.

    RequirementError if there is no room, ServerError if the server cannot read this machine's memory.
    """
    name = f"tritongen-{os.getpid()}-{secrets.token_hex(4)}"
    path = _FOLDER / name
    try:
        places, size = _lay_down(path, requests)
        control.share_memory(name, f"/{name}", size)
        try:
            yield name, places
        finally:
            with contextlib.suppress(ServerError):  # it may be gone, and the region with it
                control.unshare_memory(name)
    except OSError as error:
        raise RequirementError(
            "the inputs do not fit into shared memory", found=str(error), fix="leave --shared-memory away"
        ) from None
    finally:
        path.unlink(missing_ok=True)


def _lay_down(path: Path, requests: Sequence[tuple[ServedModel, Arrays]]) -> tuple[list[Places], int]:
    places: list[Places] = []
    # Others' eyes stay out; a server under another user than ours cannot read it, and says so.
    handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
    with open(handle, "wb") as file:  # noqa: PTH123
        for model, arrays in requests:
            found = {}
            for spec in model.inputs:
                file.write(bytes(-file.tell() % _ALIGNMENT))
                found[spec.name] = file.tell()
                file.write(raw_bytes(spec.dtype.triton, arrays[spec.name]))
            places.append(found)
        return places, max(1, file.tell())
