"""The KServe v2 protocol over gRPC, with Triton's extensions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tritongen.errors import ServerError
from tritongen.serving.access import Access
from tritongen.serving.transport import Refusal, unreachable

if TYPE_CHECKING:
    from numpy.typing import NDArray


class GrpcTransport:
    """A channel that is opened with the first call."""

    def __init__(self, host: str, port: int, access: Access, timeout_s: float) -> None:
        from tritonclient import grpc

        self._address = f"{'grpcs' if access.secure else 'grpc'}://{host}:{port}"
        self._headers = {name.lower(): value for name, value in access.headers}  # as gRPC wants them
        self._timeout_s = timeout_s
        target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            credentials = _credentials(access, host, port)
        except OSError as error:
            raise unreachable(self._address, error) from None
        self._client = grpc.InferenceServerClient(target, creds=credentials)

    def server_live(self) -> bool:
        return bool(self._call("is_server_live"))

    def server_ready(self) -> bool:
        return bool(self._call("is_server_ready"))

    def model_ready(self, name: str, version: str) -> bool:
        return bool(self._call("is_model_ready", name, version))

    def server_metadata(self) -> dict[str, Any]:
        return to_json(self._call("get_server_metadata"))

    def model_metadata(self, name: str, version: str) -> dict[str, Any]:
        return to_json(self._call("get_model_metadata", name, version))

    def model_config(self, name: str, version: str) -> dict[str, Any]:
        return to_json(self._call("get_model_config", name, version).config)

    def statistics(self, name: str, version: str) -> dict[str, Any]:
        return to_json(self._call("get_inference_statistics", name, version))

    def index(self) -> list[dict[str, Any]]:
        models: list[dict[str, Any]] = to_json(self._call("get_model_repository_index")).get("models", [])
        return models

    def load(self, name: str, config: str | None, timeout_s: float) -> None:
        self._call("load_model", name, config=config, client_timeout=timeout_s)

    def unload(self, name: str, timeout_s: float) -> None:
        self._call("unload_model", name, client_timeout=timeout_s)

    def infer(
        self, name: str, version: str, inputs: Mapping[str, NDArray[Any]], timeout_s: float
    ) -> dict[str, NDArray[Any]]:
        from tritongen.serving.tensors import as_arrays, grpc_inputs

        return as_arrays(self._call("infer", name, grpc_inputs(inputs), version, client_timeout=timeout_s))

    def share_memory(self, name: str, key: str, size: int) -> None:
        self._call("register_system_shared_memory", name, key, size)

    def unshare_memory(self, name: str) -> None:
        self._call("unregister_system_shared_memory", name)

    def share_cuda_memory(self, name: str, handle: bytes, device: int, size: int) -> None:
        self._call("register_cuda_shared_memory", name, handle, device, size)

    def unshare_cuda_memory(self, name: str) -> None:
        self._call("unregister_cuda_shared_memory", name)

    def close(self) -> None:
        self._client.close()

    def _call(self, method: str, *arguments: Any, **options: Any) -> Any:
        from tritonclient.utils import InferenceServerException

        try:
            return getattr(self._client, method)(
                *arguments, **{"client_timeout": self._timeout_s, "headers": self._headers, **options}
            )
        except InferenceServerException as error:
            raise self._explain(error) from None

    def _explain(self, error: Any) -> Exception:
        status = (error.status() or "").removeprefix("StatusCode.")
        message = str(error.message())
        if status == "UNIMPLEMENTED":
            return Refusal(f"the server does not offer this: {message}", 501)
        if status == "DEADLINE_EXCEEDED":
            return ServerError(
                f"{self._address} did not answer in time", fix="check the server's log and load"
            )
        if status != "UNAVAILABLE" or "model" in message:
            return Refusal(message, 404 if status == "NOT_FOUND" else 400)
        if "refused" in message:
            return ServerError(
                f"no server listens at {self._address}",
                found="connection refused",
                fix="start one with `tritongen serve`, or give its address with --url",
            )
        return ServerError(
            f"{self._address} cannot be reached over gRPC",
            found=message[:200],
            fix="if this is the server's HTTP port, use http:// instead of grpc://",
        )


def _credentials(access: Access, host: str, port: int) -> Any:
    """grpcio's channel credentials, None without TLS."""
    if not access.secure:
        return None
    import grpc

    roots, key, certificates = access.pem(host, port)
    return grpc.ssl_channel_credentials(roots, key if certificates else None, certificates)


def to_json(message: Any) -> dict[str, Any]:
    """A protobuf message as the HTTP API gives it (names, whole numbers, enums), without defaults."""
    return {field.name: _value(field, value) for field, value in message.ListFields()}


def _value(field: Any, value: Any) -> Any:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        inner = field.message_type.fields_by_name["value"]
        return {key: _single(inner, value[key]) for key in value}
    if isinstance(value, (str, bytes, int, float)) or hasattr(value, "ListFields"):
        return _single(field, value)
    return [_single(field, each) for each in value]


def _single(field: Any, value: Any) -> Any:
    if field.message_type is not None:
        return to_json(value)
    if field.enum_type is not None:
        return field.enum_type.values_by_number[value].name
    return value
