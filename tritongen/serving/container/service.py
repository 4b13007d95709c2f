"""How the container is to run (ports, shared memory, user, GPU): by the compose files, or by default."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tritongen.errors import SpecError

DOCKER_SHM_BYTES = 64 << 20
"""What Docker gives a container that asks for nothing."""
SERVICE = "triton"
"""Of our compose files."""
_PROTOCOLS = {8000: "HTTP", 8001: "gRPC", 8002: "metrics"}
PORTS = tuple(_PROTOCOLS)
"""In the container."""
_UNITS = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}


@dataclass(frozen=True)
class Published:
    """A port of the container on this machine."""

    inside: int
    address: str
    port: int

    @property
    def protocol(self) -> str:
        return _PROTOCOLS.get(self.inside, str(self.inside))

    @property
    def variable(self) -> str:
        """The variable of triton.env that chooses it ("HTTP_PORT")."""
        return f"{self.protocol.upper()}_PORT"


@dataclass(frozen=True)
class Service:
    """What decides whether the container can start here."""

    source: str
    """Where this was read ("docker-compose.yml")."""
    folder: Path | None = None
    """Of the Compose project; None: there is none."""
    image: str | None = None
    ports: tuple[Published, ...] = tuple(Published(port, "127.0.0.1", port) for port in _PROTOCOLS)
    shm_bytes: int | None = DOCKER_SHM_BYTES
    """None: the shared memory of this machine (`ipc: host`)."""
    user: str | None = None
    """As Docker takes it ("1000:1000"); None: the image's."""
    drops_all_capabilities: bool = False
    """Then root cannot read what its mode bits close to it either."""
    mounts: tuple[str, ...] = ()
    """Where folders of this machine and volumes are, in the container."""
    gpu: bool | None = None
    """Whether it asks for a GPU; None: nobody said."""
    image_variable: str | None = None
    """The variable by which the Compose file takes its image ("TRITON_IMAGE")."""


def docker_defaults() -> Service:
    """What `docker run` does without any option but the ports."""
    return Service(source="the defaults of docker run")


def service_of(config: Mapping[str, Any], source: str, name: str = SERVICE) -> Service:
    """The service in a merged configuration (`docker compose config`); SpecError if it is not there."""
    services = config.get("services") or {}
    if name not in services:
        raise SpecError(
            f"{source} has no service '{name}'",
            found=", ".join(services) or "no service at all",
            fix="write the files again: tritongen compose init --force",
        )
    entry = services[name]
    shm = entry.get("shm_size")
    return Service(
        source=source,
        image=entry.get("image"),
        ports=tuple(port for each in entry.get("ports") or () if (port := _published(each)) is not None),
        shm_bytes=None if entry.get("ipc") == "host" else size_bytes(shm) if shm else DOCKER_SHM_BYTES,
        user=str(entry["user"]) if entry.get("user") else None,
        drops_all_capabilities="ALL" in (entry.get("cap_drop") or ()),
        mounts=tuple(filter(None, map(_mounted_at, entry.get("volumes") or ()))),
        gpu=_asks_for_gpu(entry),
    )


def image_variable(texts: Iterable[str], name: str = SERVICE) -> str | None:
    """The variable from which Compose files, as written, take a service's image; the last file wins."""
    variable = None
    for text in texts:
        # Compose has tags of its own (!reset), which this loader passes over; it makes nothing but text.
        loaded = yaml.load(text, Loader=yaml.BaseLoader) or {}  # noqa: S506
        entry = (loaded.get("services") or {}).get(name) or {}
        if "image" in entry:
            match = re.match(r"\$\{?(\w+)", str(entry["image"]))
            variable = match[1] if match else None
    return variable


def size_bytes(text: str | int) -> int:
    """ "64m" → 67108864, as Docker reads sizes; SpecError for what is no size."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([bkmg]?)i?b?\s*", str(text).lower())
    if match is None:
        raise SpecError(f"'{text}' is no size", expected="a number with b, k, m or g", fix="write 512m, say")
    return int(float(match[1]) * _UNITS[match[2]])


def _published(entry: str | Mapping[str, Any]) -> Published | None:
    """A port in compose's short or long form; None for one without a port on this machine."""
    if not isinstance(entry, str):
        port = str(entry.get("published") or "")
        inside, address = int(entry["target"]), str(entry.get("host_ip") or "0.0.0.0")  # noqa: S104
    else:
        outside, _, target = entry.partition("/")[0].rpartition(":")
        address, _, port = outside.rpartition(":")
        inside, address = int(target), address.strip("[]") or "0.0.0.0"  # noqa: S104
    if ":" in address:  # the same port of IPv4, which is what can be looked at
        address = "127.0.0.1" if address == "::1" else "0.0.0.0"  # noqa: S104
    return Published(inside, address, int(port)) if port.isdecimal() and port != "0" else None


def _mounted_at(entry: str | Mapping[str, Any]) -> str:
    """Where a volume of compose's short or long form is, in the container."""
    return str(entry.get("target", "") if not isinstance(entry, str) else [*entry.split(":"), ""][1])


def _asks_for_gpu(entry: Mapping[str, Any]) -> bool:
    resources = (entry.get("deploy") or {}).get("resources") or {}
    devices = (resources.get("reservations") or {}).get("devices") or ()
    return entry.get("runtime") == "nvidia" or any("gpu" in (d.get("capabilities") or ()) for d in devices)
