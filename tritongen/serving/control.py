"""Talks to any running Triton or KServe v2 server: is it ready, what does it serve, what has it counted."""

from __future__ import annotations

import difflib
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import SplitResult, urlsplit

from tritongen.errors import InputError, ServerError
from tritongen.serving.access import Access
from tritongen.serving.statistics import ModelStatistics
from tritongen.serving.transport import Refusal

if TYPE_CHECKING:
    from numpy.typing import NDArray

DEFAULT_TIMEOUT_S = 10.0
LOAD_TIMEOUT_S = 300.0
READY_POLL_S = 0.05
HELD_STATES = ("READY", "UNLOADING")
DEFAULT_PORTS = {"http": 80, "https": 443, "grpc": 8001, "grpcs": 8001}
_IN_NO_HOST = frozenset(" \"'{}<>|\\^`,;")
_SHOWN_MODELS = 8
_NOBODY = "tritongen-asks-whether-models-may-be-loaded"


class RefusedError(ServerError):
    """The server answered, and will not."""


@dataclass(frozen=True)
class TensorMetadata:
    """An input or output as the server describes it; −1 marks a dynamic dimension."""

    name: str
    datatype: str
    """KServe's name ("FP32", "BYTES")."""
    shape: tuple[int, ...]
    """With the batch axis, if the model batches."""


@dataclass(frozen=True)
class ModelMetadata:
    """What a server says about one model."""

    name: str
    versions: tuple[str, ...]
    platform: str
    inputs: tuple[TensorMetadata, ...]
    outputs: tuple[TensorMetadata, ...]


@dataclass(frozen=True)
class ServerMetadata:
    """What a server says about itself."""

    name: str
    version: str
    extensions: tuple[str, ...]


@dataclass(frozen=True)
class IndexEntry:
    """One version of a model in the server's repository."""

    name: str
    version: str
    state: str
    """READY, UNAVAILABLE, LOADING, UNLOADING, or empty if it was never loaded."""
    reason: str


class Transport(Protocol):
    """One protocol to a server. Answers are JSON-like; refusals by the server raise `Refusal`."""

    def server_live(self) -> bool: ...

    def server_ready(self) -> bool: ...

    def model_ready(self, name: str, version: str) -> bool: ...

    def server_metadata(self) -> dict[str, Any]: ...

    def model_metadata(self, name: str, version: str) -> dict[str, Any]: ...

    def model_config(self, name: str, version: str) -> dict[str, Any]: ...

    def statistics(self, name: str, version: str) -> dict[str, Any]: ...

    def index(self) -> list[dict[str, Any]]: ...

    def load(self, name: str, config: str | None, timeout_s: float) -> None: ...

    def unload(self, name: str, timeout_s: float) -> None: ...

    def infer(
        self, name: str, version: str, inputs: Mapping[str, NDArray[Any]], timeout_s: float
    ) -> dict[str, NDArray[Any]]: ...

    def share_memory(self, name: str, key: str, size: int) -> None: ...

    def unshare_memory(self, name: str) -> None: ...

    def share_cuda_memory(self, name: str, handle: bytes, device: int, size: int) -> None: ...

    def unshare_cuda_memory(self, name: str) -> None: ...

    def close(self) -> None: ...


def connect(url: str, timeout_s: float = DEFAULT_TIMEOUT_S, access: Access | None = None) -> ServerControl:
    """A control for `http://`, `https://`, `grpc://` or `grpcs://host:port`; nothing is sent yet.

    A bare `host:port` means HTTP; a bare `host` means Triton's own HTTP port, 8000.
    """
    parts, host, port = split_address(url)
    access = replace(access or Access(), secure=parts.scheme.endswith("s"))
    access.check()
    if access.asks_for_tls and not access.secure:
        raise InputError(
            "TLS is asked for, and the address is one without it",
            found=f"{url} with a flag of TLS",
            expected="https://HOST:PORT or grpcs://HOST:PORT",
            fix="write so, or leave --tls-ca, --tls-cert, --tls-key and --tls-insecure away",
        )
    if parts.scheme.startswith("http"):
        from tritongen.serving.transport import HttpTransport

        return ServerControl(url, HttpTransport(host, port, parts.path, access, timeout_s))
    from tritongen.serving.transport_grpc import GrpcTransport

    return ServerControl(url, GrpcTransport(host, port, access, timeout_s))


def split_address(url: str, scheme: str = "http") -> tuple[SplitResult, str, int]:
    """A server's URL, of `scheme` where it names none, with its host and port; InputError if it is none.

    Without a scheme the port of HTTP is Triton's own, 8000.
    """
    try:
        parts = urlsplit(url if "://" in url else f"{scheme}://{url}")
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    host = parts.hostname
    if parts.scheme not in DEFAULT_PORTS or not host or set(host) & _IN_NO_HOST or port == 0:
        raise InputError(
            f"'{url}' is not the address of a server",
            expected="http://HOST:PORT, https://…, grpc://HOST:PORT or grpcs://…",
            fix="for a Triton on this machine: --url http://127.0.0.1:8000",
        )
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise InputError(
            "an address with more than a host, a port and a path",
            found="a user name or a password" if "@" in parts.netloc else f"?{parts.query or parts.fragment}",
            expected="http://HOST:PORT, https://…, grpc://HOST:PORT or grpcs://…",
            fix="credentials go into --token-env, --token-file or --header",
        )
    usual = 8000 if parts.scheme == "http" and "://" not in url else DEFAULT_PORTS[parts.scheme]
    return parts, host, port or usual


class ServerControl:
    """Questions and commands to one server; everything that fails raises ServerError."""

    def __init__(self, url: str, transport: Transport) -> None:
        self.url = url
        self._transport = transport

    def close(self) -> None:
        """Let go of the connection."""
        self._transport.close()

    def is_live(self) -> bool:
        """Whether a server answers at all; False instead of an error."""
        try:
            return self._transport.server_live()
        except (ServerError, Refusal):
            return False

    def is_ready(self, model: str = "", version: str = "") -> bool:
        """Whether the server (or the model) takes requests; False instead of an error."""
        try:
            return self._transport.model_ready(model, version) if model else self._transport.server_ready()
        except (ServerError, Refusal):
            return False

    def check_ready(self, model: str = "", version: str = "") -> None:
        """ServerError with the reason if the server or the model does not take requests."""
        if not self._ask(self._transport.server_live):  # raises with the reason if nobody answers
            raise ServerError(
                f"the server at {self.url} is not live", fix="read its log, and that of its proxy"
            )
        if not model:
            if not self._ask(self._transport.server_ready):
                raise ServerError(
                    f"the server at {self.url} is not ready",
                    found=self._states(),
                    fix="read its log",
                )
            return
        if not self.is_ready(model, version):
            self.model_metadata(model, version)  # raises if it is unknown
            raise ServerError(
                f"model '{model}' at {self.url} is not ready",
                found=self._states(model),
                fix="read the server's log",
            )

    def wait_ready(self, model: str = "", version: str = "", timeout_s: float = 60.0) -> None:
        """Wait until the server (and the model) takes requests; ServerError with the reason otherwise."""
        deadline = time.monotonic() + timeout_s
        while not self.is_ready(model, version):
            if time.monotonic() > deadline:
                self.check_ready(model, version)
                return
            time.sleep(READY_POLL_S)

    def server_metadata(self) -> ServerMetadata:
        answer = self._ask(self._transport.server_metadata)
        return ServerMetadata(
            answer.get("name", ""), answer.get("version", ""), tuple(answer.get("extensions", ()))
        )

    def model_metadata(self, model: str, version: str = "") -> ModelMetadata:
        answer = self._ask(self._transport.model_metadata, model, version)
        return ModelMetadata(
            name=answer.get("name", model),
            versions=tuple(map(str, answer.get("versions", ()))),
            platform=answer.get("platform", ""),
            inputs=tuple(map(_tensor, answer.get("inputs", ()))),
            outputs=tuple(map(_tensor, answer.get("outputs", ()))),
        )

    def model_config(self, model: str, version: str = "") -> dict[str, Any]:
        """The configuration that the model runs with, under config.pbtxt's own names (Triton only)."""
        config: dict[str, Any] = self._ask(self._transport.model_config, model, version)
        return config

    def statistics(self, model: str, version: str = "") -> ModelStatistics:
        """What the server has counted of a version; without one, of the newest one (Triton only)."""
        entries = self._ask(self._transport.statistics, model, version).get("model_stats", [])
        if not entries:
            raise ServerError(f"the server at {self.url} keeps no statistics of model '{model}'")
        return max(map(ModelStatistics.from_json, entries), key=lambda each: _version_number(each.version))

    def index(self) -> tuple[IndexEntry, ...]:
        """Every model in the server's repository, with its state (Triton only)."""
        names = ("name", "version", "state", "reason")
        return tuple(
            IndexEntry(*(str(entry.get(name, "")) for name in names))
            for entry in self._ask(self._transport.index)
        )

    def load(self, model: str, config: str | None = None, timeout_s: float = LOAD_TIMEOUT_S) -> None:
        """Load or reload a model, with another configuration (JSON) than its file's if one is given.

        If that fails, the server goes on with what it had. It also keeps a configuration that was given
        earlier, until `unload`: only then does `load` without one mean the file's again.
        """
        try:
            self._transport.load(model, config, timeout_s)
        except Refusal as refusal:
            raise RefusedError(
                f"the server at {self.url} cannot load '{model}'", found=_readable(refusal)
            ) from None

    def unload(self, model: str, timeout_s: float = LOAD_TIMEOUT_S) -> None:
        """Take a model out of service, and wait until the server has let go of it."""
        self._ask(self._transport.unload, model, timeout_s)
        deadline = time.monotonic() + timeout_s
        while any(entry.name == model and entry.state in HELD_STATES for entry in self.index()):
            if time.monotonic() > deadline:
                raise ServerError(f"the server at {self.url} still unloads '{model}' after {timeout_s:.0f} s")
            time.sleep(READY_POLL_S)

    def check_explicit(self) -> None:
        """RefusedError unless models may be loaded and unloaded (`--model-control-mode=explicit`)."""
        try:
            self._transport.unload(_NOBODY, DEFAULT_TIMEOUT_S)  # nothing to do, where it is allowed
        except Refusal as refusal:
            raise RefusedError(
                f"the server at {self.url} does not let models be loaded while it runs",
                found=_readable(refusal),
                expected="a Triton that was started with --model-control-mode=explicit --load-model=*",
                fix="start it so, as `tritongen serve` and our compose files do; a restart also brings up "
                "what is in the repository",
            ) from None

    def infer(
        self, model: str, version: str, inputs: Mapping[str, NDArray[Any]], timeout_s: float = LOAD_TIMEOUT_S
    ) -> dict[str, NDArray[Any]]:
        """All outputs of one call to a version of a model (empty: the server's choice)."""
        outputs: dict[str, NDArray[Any]] = self._ask(self._transport.infer, model, version, inputs, timeout_s)
        return outputs

    def share_memory(self, name: str, key: str, size: int) -> None:
        """Let the server read the POSIX shared memory object `key` of this machine as region `name`."""
        self._ask(self._transport.share_memory, name, key, size)

    def unshare_memory(self, name: str) -> None:
        """Take the region back."""
        self._ask(self._transport.unshare_memory, name)

    def share_cuda_memory(self, name: str, handle: bytes, device: int, size: int) -> None:
        """Let the server use memory of a GPU, by its CUDA IPC handle (in base64), as region `name`."""
        self._ask(self._transport.share_cuda_memory, name, handle, device, size)

    def unshare_cuda_memory(self, name: str) -> None:
        """Take the GPU's region back."""
        self._ask(self._transport.unshare_cuda_memory, name)

    def _ask(self, method: Any, *arguments: Any) -> Any:
        try:
            return method(*arguments)
        except Refusal as refusal:
            raise self._explain(refusal, arguments[0] if arguments else "") from None

    def _explain(self, refusal: Refusal, model: str) -> ServerError:
        if not model or not _means_unknown(refusal):
            return RefusedError(f"the server at {self.url} refuses", found=_readable(refusal))
        try:
            names = sorted({str(entry.get("name")) for entry in self._transport.index()})
        except (ServerError, Refusal):
            names = []
        near = difflib.get_close_matches(model, names, n=1)
        if model in names:
            fix = f"load it: `tritongen reload {model}`, if tritongen built it"
        else:
            fix = f"did you mean '{near[0]}'?" if near else "check the name, or load it"
        return RefusedError(
            f"the server at {self.url} has no model '{model}' that is loaded",
            found=self._states(first=model) if names else _readable(refusal),
            fix=fix,
        )

    def _states(self, model: str = "", *, first: str = "") -> str:
        """Of one model, or of the first few of all; the one that is asked for is always among them."""
        try:
            entries = [entry for entry in self._transport.index() if model in ("", entry.get("name"))]
        except (ServerError, Refusal):
            return "the server does not say why"
        entries.sort(key=lambda entry: entry.get("name") != first)
        more = len(entries) - _SHOWN_MODELS
        shown = "; ".join(map(_state, entries[:_SHOWN_MODELS])) or "no models"
        return f"{shown}; and {more} more" if more > 0 else shown


def check_metrics_url(url: str) -> None:
    """InputError for what is no address of a page."""
    parts = urlsplit(url)
    try:
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise InputError(
            f"'{url}' is not the address of Triton's metrics",
            expected="http://HOST:PORT/metrics",
            fix="for a Triton on this machine: --metrics-url http://127.0.0.1:8002/metrics",
        )


def read_metrics(url: str, timeout_s: float = DEFAULT_TIMEOUT_S) -> str:
    """The Prometheus text at `url` ("http://127.0.0.1:8002/metrics")."""
    from tritongen.serving.transport import HttpTransport

    parts = urlsplit(url)
    access = Access(secure=parts.scheme == "https")
    transport = HttpTransport(
        parts.hostname or "", parts.port or DEFAULT_PORTS[parts.scheme], "", access, timeout_s
    )
    return transport.text(parts.path or "/metrics")


def _readable(refusal: Refusal) -> str:
    """The server's words in one line, without the Python backend's traceback."""
    text = str(refusal).partition("\n\nAt:")[0].replace("Internal: TritonModelException: ", "")
    return " ".join(text.split())


def _means_unknown(refusal: Refusal) -> bool:
    unknown = r"unknown model|not found|not exist|no available versions|requested model .* is not available"
    return (
        re.search(unknown, str(refusal), re.IGNORECASE) is not None or refusal.status == HTTPStatus.NOT_FOUND
    )


def _state(entry: Mapping[str, Any]) -> str:
    version = f" version {entry['version']}" if entry.get("version") else ""
    reason = f" ({entry['reason']})" if entry.get("reason") else ""
    return f"{entry.get('name')}{version}: {entry.get('state') or 'not loaded'}{reason}"


def _tensor(value: Mapping[str, Any]) -> TensorMetadata:
    return TensorMetadata(
        str(value.get("name", "")), str(value.get("datatype", "")), tuple(map(int, value.get("shape", ())))
    )


def _version_number(version: str) -> int:
    return int(version) if version.isdigit() else 0
