"""What is under test: the server's address, and what it says about the model."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import quote

from tritongen.errors import InputError, ServerError
from tritongen.loadtest.job import Protocol
from tritongen.serving.control import ServerControl, TensorMetadata, split_address
from tritongen.tensors import TensorSpec, from_triton


@dataclass(frozen=True)
class Address:
    """Where requests go."""

    protocol: Protocol
    host: str
    port: int
    prefix: str = ""
    """A path in front of /v2 (HTTP)."""
    secure: bool = False
    """TLS."""

    @property
    def url(self) -> str:
        return f"{self.protocol}{'s' if self.secure else ''}://{self.host_header}{self.prefix}"

    @property
    def host_header(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(url: str, protocol: Protocol | None = None) -> Address:
    """The address that `url` names; InputError when it is none, or is not of the wanted protocol."""
    parts, host, port = split_address(url, protocol or "http")
    scheme = parts.scheme
    if protocol is not None and scheme.removesuffix("s") != protocol:
        raise InputError(
            f"--protocol {protocol} and --url disagree",
            found=url,
            expected=f"{protocol}://HOST:PORT (Triton's own ports are 8000 for http and 8001 for grpc)",
            fix=f"give the server's {protocol} address as --url, or leave --protocol away",
        )
    found: Protocol = "grpc" if scheme.startswith("grpc") else "http"
    return Address(found, host, port, parts.path.rstrip("/"), scheme.endswith("s"))


@dataclass(frozen=True)
class ServedModel:
    """A model as its server describes it."""

    name: str
    version: str
    """Empty: whichever the server chooses."""
    inputs: tuple[TensorSpec, ...]
    """With the batch axis where the model batches."""
    outputs: tuple[str, ...]
    batches: bool
    """Whether axis 0 of every input is the batch."""
    max_batch_size: int | None
    """None: the server does not say."""
    binary: bool
    """Whether tensors may travel as raw bytes behind the JSON (HTTP)."""
    server: str
    """The server's name and version."""

    @property
    def path(self) -> str:
        """The URL path of the inference call."""
        version = f"/versions/{quote(self.version, safe='')}" if self.version else ""
        return f"/v2/models/{quote(self.name, safe='')}{version}/infer"


def describe(control: ServerControl, model: str, version: str = "") -> ServedModel:
    """Ask the server about a model that must be ready; ServerError with its own words otherwise."""
    _check_ready(control, model, version)
    metadata = control.model_metadata(model, version)
    if not metadata.inputs and not metadata.outputs:  # Triton's metrics port says OK to every GET
        raise ServerError(
            f"the server at {control.url} does not describe model '{model}'", found="no inputs and no outputs"
        )
    server = control.server_metadata()
    inputs = tuple(_tensor(each) for each in metadata.inputs)
    declared = _max_batch_size(control, model, version)
    dynamic = bool(inputs) and all(each.shape and each.shape[0] == "?" for each in inputs)
    return ServedModel(
        name=model,
        version=version,
        inputs=inputs,
        outputs=tuple(each.name for each in metadata.outputs),
        batches=dynamic if declared is None else declared > 0,
        max_batch_size=declared,
        binary="binary_tensor_data" in server.extensions,
        server=f"{server.name} {server.version}".strip(),
    )


def _check_ready(control: ServerControl, model: str, version: str) -> None:
    try:
        control.check_ready(model, version)
    except ServerError:
        if not version or not control.is_ready(model):
            raise
        versions = control.model_metadata(model).versions
        if version in versions:
            raise
        raise ServerError(
            f"model '{model}' has no version {version} that is loaded",
            found=f"version{'s' * (len(versions) > 1)} {', '.join(versions)}",
            fix=f"--model-version {versions[-1]}, or leave --model-version away" if versions else None,
        ) from None


def _max_batch_size(control: ServerControl, model: str, version: str) -> int | None:
    try:
        config = control.model_config(model, version)
    except ServerError:  # a Triton extension; other KServe servers have none
        return None
    return int(config.get("max_batch_size", 0))


def _tensor(tensor: TensorMetadata) -> TensorSpec:
    try:
        kind = from_triton(tensor.datatype)
    except KeyError:
        raise ServerError(
            f"the server describes input '{tensor.name}' with a data type that KServe v2 does not have",
            found=tensor.datatype,
        ) from None
    return TensorSpec(tensor.name, kind, tuple("?" if size < 0 else size for size in tensor.shape))


def check_batch_size(model: ServedModel, batch_size: int) -> None:
    """InputError if the model does not take requests of this size."""
    if batch_size > 1 and not model.batches:
        raise InputError(
            f"model '{model.name}' does not batch",
            found=f"--batch-size {batch_size}",
            expected="1",
            fix="leave --batch-size away, or serve the model with max_batch_size > 0",
        )
    if model.max_batch_size is not None and batch_size > max(model.max_batch_size, 1):
        raise InputError(
            f"model '{model.name}' takes smaller batches",
            found=f"--batch-size {batch_size}",
            expected=f"at most {model.max_batch_size} (max_batch_size in its config.pbtxt)",
            fix=f"use --batch-size {model.max_batch_size}",
        )
