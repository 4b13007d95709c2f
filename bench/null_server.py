"""A KServe v2 server that answers from a table, over HTTP/1.1 and gRPC: load tests of it measure themselves.

Run as a process of its own; it prints one JSON line with its ports. With `--arrivals FILE` it writes down
when each inference request came (CLOCK_MONOTONIC, ns, 8 bytes each): one clock for all senders.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import mmap
import signal
import struct
import sys
import time
from collections import deque
from pathlib import Path
from typing import Any

from hpack import Decoder

NAME, ITEMS = "null", 16
HEAD = struct.Struct(">HBBBL")
DATA, HEADERS, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 4, 6, 7, 8, 9
LARGEST = 0x7FFF_FFFF
INFER = "/inference.GRPCInferenceService/ModelInfer"
STATISTICS = "/inference.GRPCInferenceService/ModelStatistics"


class Arrivals:
    """When inference requests came, in a memory-mapped file that begins with how many there were."""

    def __init__(self, path: Path | None, most: int = 4_000_000) -> None:
        self.count = 0
        self._most = most if path else 0
        if path:
            with path.open("w+b") as file:
                file.truncate(8 * (most + 1))
                self._map = mmap.mmap(file.fileno(), 8 * (most + 1))

    def note(self) -> None:
        self.count += 1
        if self.count <= self._most:
            struct.pack_into("<q", self._map, self.count * 8, time.monotonic_ns())
            struct.pack_into("<q", self._map, 0, self.count)


def statistics(count: int) -> dict[str, Any]:
    """Counters as Triton gives them: so many inferences, each of which took no time."""
    some, none = {"count": count, "ns": 0}, {"count": 0, "ns": 0}
    stats = dict.fromkeys(("success", "queue", "compute_input", "compute_infer", "compute_output"), some)
    stats |= dict.fromkeys(("fail", "cache_hit", "cache_miss"), none)
    entry = {"name": NAME, "version": "1", "last_inference": 0, "batch_stats": []}
    entry |= {"inference_count": count, "execution_count": count, "inference_stats": stats}
    return {"model_stats": [entry]}


def http_answers() -> dict[str, Any]:
    tensor = {"datatype": "FP32", "shape": [ITEMS]}
    metadata = {"name": NAME, "versions": ["1"], "platform": "null"}
    metadata |= {"inputs": [{"name": "INPUT0", **tensor}], "outputs": [{"name": "OUTPUT0", **tensor}]}
    wire = {"data_type": "TYPE_FP32", "dims": [ITEMS]}
    config = {"name": NAME, "platform": "null", "max_batch_size": 0}
    config |= {"input": [{"name": "INPUT0", **wire}], "output": [{"name": "OUTPUT0", **wire}]}
    server = {"name": "null", "version": "1", "extensions": ["binary_tensor_data", "statistics"]}
    return {
        "/v2": server,
        f"/v2/models/{NAME}": metadata,
        f"/v2/models/{NAME}/config": config,
        "/v2/repository/index": [{"name": NAME, "version": "1", "state": "READY"}],
    }


def http_infer() -> bytes:
    output = {"name": "OUTPUT0", "datatype": "FP32", "shape": [ITEMS]}
    output["parameters"] = {"binary_data_size": 4 * ITEMS}
    head = json.dumps({"model_name": NAME, "model_version": "1", "outputs": [output]}).encode()
    return http(
        head + bytes(4 * ITEMS),
        f"Content-Type: application/octet-stream\r\nInference-Header-Content-Length: {len(head)}\r\n",
    )


def http(body: bytes, fields: str = "Content-Type: application/json\r\n", status: str = "200 OK") -> bytes:
    return f"HTTP/1.1 {status}\r\n{fields}Content-Length: {len(body)}\r\n\r\n".encode() + body


class Http(asyncio.Protocol):
    """HTTP/1.1; the head of an inference request is looked at once, and then known by its bytes."""

    answers = http_answers()
    infer = http_infer()
    known: dict[bytes, int] = {}  # noqa: RUF012  (shared by all connections)

    def __init__(self, arrivals: Arrivals) -> None:
        self.arrivals = arrivals
        self.buffer = b""

    def connection_made(self, transport: Any) -> None:
        self.write = transport.write

    def data_received(self, data: bytes) -> None:
        data = self.buffer + data
        while (end := data.find(b"\r\n\r\n") + 4) > 3:
            head = data[:end]
            length = self.known.get(head)
            if length is None:
                if b"expect: 100-continue" in head.lower():
                    self.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                fields = [line.partition(b":") for line in head.lower().split(b"\r\n")]
                length = next((int(value) for name, _, value in fields if name == b"content-length"), 0)
            if len(data) < end + length:
                break
            data = data[end + length :]
            if head in self.known:
                self.arrivals.note()
                self.write(self.infer)
                continue
            path = head.split(b" ", 2)[1].decode().rstrip("/")
            if path.endswith("/infer"):
                self.known[head] = length
                self.arrivals.note()
                self.write(self.infer)
            else:
                self.write(self.about(path))
        self.buffer = data

    def about(self, path: str) -> bytes:
        if path.endswith(("/ready", "/live")):
            return http(b"")
        if path.endswith("/stats"):
            return http(json.dumps(statistics(self.arrivals.count)).encode())
        answer = self.answers.get(path.replace("/versions/1", ""))
        if answer is None:
            return http(b'{"error": "not found"}', status="404 Not Found")
        return http(json.dumps(answer).encode())


def grpc_answers() -> dict[str, bytes]:
    from google.protobuf import json_format
    from tritonclient.grpc import service_pb2 as pb

    answers = http_answers()
    infer = pb.ModelInferResponse(model_name=NAME, model_version="1")
    infer.outputs.add(name="OUTPUT0", datatype="FP32", shape=[ITEMS])
    infer.raw_output_contents.append(bytes(4 * ITEMS))
    config = {"config": answers[f"/v2/models/{NAME}/config"]}
    messages = {
        "ServerLive": pb.ServerLiveResponse(live=True),
        "ServerReady": pb.ServerReadyResponse(ready=True),
        "ModelReady": pb.ModelReadyResponse(ready=True),
        "ServerMetadata": pb.ServerMetadataResponse(**answers["/v2"]),
        "ModelMetadata": pb.ModelMetadataResponse(**answers[f"/v2/models/{NAME}"]),
        "ModelConfig": json_format.ParseDict(config, pb.ModelConfigResponse()),
        "ModelInfer": infer,
    }
    return {f"/inference.GRPCInferenceService/{k}": v.SerializeToString() for k, v in messages.items()}


def grpc_statistics(count: int) -> bytes:
    from google.protobuf import json_format
    from tritonclient.grpc import service_pb2 as pb

    message = json_format.ParseDict(statistics(count), pb.ModelStatisticsResponse())
    return bytes(message.SerializeToString())


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return HEAD.pack(len(payload) >> 8, len(payload) & 0xFF, kind, flags, stream) + payload


def text(value: bytes) -> bytes:
    return bytes([len(value)]) + value


RESPONSE_BLOCK = b"\x88\x00" + text(b"content-type") + text(b"application/grpc")
TRAILERS = b"\x00" + text(b"grpc-status") + text(b"0")
UNKNOWN_METHOD = RESPONSE_BLOCK + b"\x00" + text(b"grpc-status") + text(b"12")


class Grpc(asyncio.Protocol):
    """gRPC over HTTP/2, just enough for well-behaved clients; keeps to the client's flow-control windows."""

    answers: dict[str, bytes]

    def __init__(self, arrivals: Arrivals) -> None:
        self.arrivals = arrivals
        self.buffer = b""
        self.preface = 24
        self.decoder = Decoder()
        self.known: dict[bytes, str] = {}
        self.paths: dict[int, str] = {}
        self.partial: tuple[int, int, bytes] | None = None
        self.window = 65_535
        self.received = 0
        self.waiting: deque[tuple[int, bytes]] = deque()
        infer = self.answers[INFER]
        self.message = b"\x00" + len(infer).to_bytes(4, "big") + infer
        self.infer = self.response(self.message)

    def response(self, message: bytes) -> tuple[bytes, bytes, bytes]:
        """The frames of an answer, without their stream numbers: the pieces between these."""
        heads = (
            frame(HEADERS, 4, 0, RESPONSE_BLOCK),
            frame(DATA, 0, 0, message),
            frame(HEADERS, 5, 0, TRAILERS),
        )
        return heads[0][:5], heads[0][9:] + heads[1][:5], heads[1][9:] + heads[2][:5]

    def connection_made(self, transport: Any) -> None:
        self.write = transport.write
        self.write(frame(SETTINGS, 0, 0, struct.pack(">HL", 4, LARGEST)))
        self.write(frame(WINDOW_UPDATE, 0, 0, struct.pack(">L", LARGEST - 65_535)))

    def data_received(self, data: bytes) -> None:
        data = self.buffer + data
        at = min(self.preface, len(data))
        self.preface -= at
        end = len(data)
        out: list[bytes] = []
        while end - at >= 9:
            high, low, kind, flags, stream = HEAD.unpack_from(data, at)
            stop = at + 9 + (high << 8 | low)
            if stop > end:
                break
            payload = data[at + 9 : stop]
            at = stop
            if kind == DATA:
                self.received += len(payload)
                if flags & 1:
                    self.answer(stream, out)
            else:
                self.other(kind, flags, stream, payload, out)
        self.buffer = data[at:]
        if out:
            self.write(b"".join(out))
        if self.received > 1 << 29:
            self.write(frame(WINDOW_UPDATE, 0, 0, struct.pack(">L", self.received)))
            self.received = 0

    def other(self, kind: int, flags: int, stream: int, payload: bytes, out: list[bytes]) -> None:
        if kind == HEADERS:
            if flags & 0x20:
                payload = payload[5:]
            if flags & 4:
                self.paths[stream] = self.path(payload)
                if flags & 1:
                    self.answer(stream, out)
            else:
                self.partial = (stream, flags, payload)
        elif kind == CONTINUATION and self.partial is not None:
            stream, first, block = self.partial
            self.partial = None
            self.other(HEADERS, first | flags & 4, stream, block + payload, out)
        elif kind == SETTINGS and not flags & 1:
            out.append(frame(SETTINGS, 1, 0))
        elif kind == PING and not flags & 1:
            out.append(frame(PING, 1, 0, payload))
        elif kind == WINDOW_UPDATE and stream == 0:
            self.window += int.from_bytes(payload, "big")
            while self.waiting and len(self.waiting[0][1]) <= self.window:
                self.send(*self.waiting.popleft(), out)

    def path(self, block: bytes) -> str:
        """The called method. A block of indexed fields alone leaves the table as it is: it is looked up."""
        found = self.known.get(block)
        if found is None:
            fields = dict(self.decoder.decode(block))
            found = fields[":path"]
            if all(0x80 < each < 0xFF for each in block):
                self.known[block] = found
            else:
                self.known.clear()
        return found

    def answer(self, stream: int, out: list[bytes]) -> None:
        path = self.paths.pop(stream, "")
        if path == INFER:
            self.arrivals.note()
            message = self.message
        elif path == STATISTICS:
            stats = grpc_statistics(self.arrivals.count)
            message = b"\x00" + len(stats).to_bytes(4, "big") + stats
        elif path in self.answers:
            message = b"\x00" + len(self.answers[path]).to_bytes(4, "big") + self.answers[path]
        else:
            out.append(frame(HEADERS, 5, stream, UNKNOWN_METHOD))
            return
        if self.waiting or len(message) > self.window:
            self.waiting.append((stream, message))
        else:
            self.send(stream, message, out)

    def send(self, stream: int, message: bytes, out: list[bytes]) -> None:
        self.window -= len(message)
        first, second, third = self.infer if message is self.message else self.response(message)
        number = stream.to_bytes(4, "big")
        out += (first, number, second, number, third, number, TRAILERS)


async def serve(arrivals: Arrivals) -> None:
    loop = asyncio.get_running_loop()
    over = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, over.set)
    Grpc.answers = grpc_answers()
    servers = [
        await loop.create_server(lambda kind=kind: kind(arrivals), "127.0.0.1", 0, backlog=1024)
        for kind in (Http, Grpc)
    ]
    ports = [each.sockets[0].getsockname()[1] for each in servers]
    print(json.dumps({"http": ports[0], "grpc": ports[1]}), flush=True)
    await over.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arrivals", type=Path)
    arrivals = Arrivals(parser.parse_args().arrivals)
    try:
        import uvloop as fast
    except ImportError:
        asyncio.run(serve(arrivals))
    else:
        fast.run(serve(arrivals))
    sys.exit(0)


if __name__ == "__main__":
    main()
