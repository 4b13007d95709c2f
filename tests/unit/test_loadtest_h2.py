"""gRPC over HTTP/2 by hand, against an independent peer (the h2 package) that behaves and misbehaves."""

from __future__ import annotations

import asyncio
import struct

import h2.events
import h2.settings
import pytest

from tests.h2_peer import ANSWER, HEADERS, SENT, Behaviour, Call, Stage, ends, play, send
from tritongen.loadtest import samples
from tritongen.loadtest.http2 import frames
from tritongen.loadtest.http2.connection import Connection
from tritongen.loadtest.job import Compression
from tritongen.loadtest.request import compressed
from tritongen.loadtest.transport_h2 import H2Transport, message


def test_calls_and_answers() -> None:
    stage = play(
        Call.answer,
        lambda client, stage: send(client, stage, 50),
        connections=32,
        extra=[("authorization", "Bearer secret"), ("X-Note", "ä")],
    )
    assert set(stage.ends.values()) == {(samples.OK, "")}
    assert len(stage.peers) == 4
    for call in stage.calls:
        assert call.body == message(SENT)
        assert call.headers[":path"] == "/inference.GRPCInferenceService/ModelInfer"
        assert call.headers["authorization"] == "Bearer secret"
        assert call.headers["x-note"] == "ä"
        assert call.headers["te"] == "trailers"


def test_a_small_header_table_is_respected() -> None:
    table = {h2.settings.SettingCodes.HEADER_TABLE_SIZE: 100}
    stage = play(Call.answer, lambda client, stage: send(client, stage, 5), settings=table)
    assert set(stage.ends.values()) == {(samples.OK, "")}
    assert all(call.headers["content-type"] == "application/grpc" for call in stage.calls)


@pytest.mark.parametrize("table", [4096, 0])
def test_headers_beyond_one_frame_continue_in_others(table: int) -> None:
    token = "x" * 40_000
    limits = {
        h2.settings.SettingCodes.HEADER_TABLE_SIZE: table,
        h2.settings.SettingCodes.MAX_HEADER_LIST_SIZE: 60_000,
    }
    extra = [("authorization", token)]
    stage = play(Call.answer, lambda client, stage: send(client, stage, 3), extra=extra, settings=limits)
    assert set(stage.ends.values()) == {(samples.OK, "")}
    assert [call.headers["authorization"] for call in stage.calls] == [token] * 3
    assert {call.body for call in stage.calls} == {message(SENT)}


def test_headers_that_the_peer_does_not_take_are_not_sent() -> None:
    limit = {h2.settings.SettingCodes.MAX_HEADER_LIST_SIZE: 1000}
    extra = [("authorization", "x" * 800)]
    stage = play(Call.answer, lambda client, stage: send(client, stage, 2), extra=extra, settings=limit)
    assert {status for status, _ in stage.ends.values()} == {samples.LOST}
    assert "at most 1000 bytes, and ours have 1" in stage.ends[0][1]
    assert "--header" in stage.ends[0][1]
    assert not stage.calls
    assert ends(Call.answer, extra=[("authorization", "x" * 300)], settings=limit) == [(samples.OK, "")]


@pytest.mark.parametrize("piece", [1, 3, 10, 1000])
def test_answers_in_pieces(piece: int) -> None:
    assert ends(Call.answer, 3, piece=piece) == [(samples.OK, "")] * 3


def test_large_requests_wait_for_the_windows() -> None:
    """The peer raises if a window or a frame size is not kept to."""
    large = bytes(range(256)) * 4000
    limits = {
        h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 1000,
        h2.settings.SettingCodes.MAX_FRAME_SIZE: 20_000,
    }

    async def act(client: H2Transport, stage: Stage) -> None:
        for row in range(4):
            client.send(row, row % 2)
        await stage.until(lambda: len(stage.ends) == 4)

    stage = play(Call.answer, act, requests=[large, SENT], settings=limits)
    assert set(stage.ends.values()) == {(samples.OK, "")}
    assert sorted(len(call.body) for call in stage.calls) == [12, 12, len(large) + 5, len(large) + 5]
    assert all(call.body in {message(large), message(SENT)} for call in stage.calls)


def test_windows_that_change_under_way() -> None:
    large = b"x" * 300_000

    def grow(call: Call) -> None:
        call.server.h2c.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 200_000})
        call.answer()

    async def act(client: H2Transport, stage: Stage) -> None:
        client.send(0, 0)
        client.send(1, 1)
        client.send(2, 0)
        await stage.until(lambda: len(stage.ends) == 3)

    stage = play(grow, act, requests=[large, SENT])
    assert set(stage.ends.values()) == {(samples.OK, "")}


def test_the_servers_limit_of_calls_is_respected() -> None:
    waiting: list[Call] = []

    def hold(call: Call) -> None:
        waiting.append(call)

    async def act(client: H2Transport, stage: Stage) -> None:
        for row in range(9):
            client.send(row, 0)
        client.abandon(8)
        while len(stage.ends) < 8:
            await stage.until(lambda: bool(waiting))
            assert all(len(peer.h2c.streams) <= 200 for peer in stage.peers)
            call = waiting.pop()
            call.answer()
            call.server.flush()
            await asyncio.sleep(0.005)

    stage = play(hold, act, settings={h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS: 2})
    assert set(stage.ends.values()) == {(samples.OK, "")}
    assert len(stage.calls) == 8


@pytest.mark.parametrize(
    ("behaviour", "status", "detail"),
    [
        (
            lambda call: call.only_trailers(("grpc-status", "14"), ("grpc-message", "no%20room")),
            1014,
            "no room",
        ),
        (
            lambda call: call.answer(b"", [("grpc-status", "3"), ("grpc-message", "x" * 40_000)]),
            1003,
            "x" * 40_000,
        ),
        (lambda call: call.answer(b"", [("grpc-status", "99")]), 1099, ""),
        (lambda call: call.answer(b"", [("grpc-status", "70000")]), samples.GARBAGE, "cannot be read"),
        (lambda call: call.answer(b"", [("grpc-status", "-900")]), samples.GARBAGE, "cannot be read"),
        (
            lambda call: call.server.h2c.send_headers(call.stream, [(":status", "70000")], end_stream=True),
            samples.GARBAGE,
            "cannot be read",
        ),
        (lambda call: call.answer(b""), samples.GARBAGE, "an empty answer"),
        (lambda call: call.answer(ANSWER[:-1]), samples.GARBAGE, "cut short"),
        (lambda call: call.answer(ANSWER[:3]), samples.GARBAGE, "cut short"),
        (lambda call: call.answer(message(b"")), samples.GARBAGE, "empty"),
        (lambda call: call.answer(ANSWER, [("other", "field")]), samples.GARBAGE, "grpc-status"),
        (lambda call: call.answer(ANSWER, [("grpc-status", "nine")]), samples.GARBAGE, "cannot be read"),
        (
            lambda call: call.server.h2c.send_headers(call.stream, [(":status", "503")], end_stream=True),
            503,
            "",
        ),
        (lambda call: call.server.h2c.reset_stream(call.stream, 7), 1014, "REFUSED_STREAM"),
        (lambda call: call.server.h2c.reset_stream(call.stream, 8), 1001, "CANCEL"),
        (lambda call: call.server.h2c.reset_stream(call.stream, 11), 1008, "ENHANCE_YOUR_CALM"),
        (lambda call: call.server.h2c.reset_stream(call.stream, 2), 1013, "INTERNAL_ERROR"),
        (lambda call: call.server.transport.abort(), samples.LOST, ""),
        (lambda call: call.server.transport.close(), samples.LOST, "closed"),
    ],
)
def test_answers_that_are_failures(behaviour: Behaviour, status: int, detail: str) -> None:
    """Each failure is its own call's; on the same client the next call goes well."""

    def once(call: Call) -> None:
        behaviour(call) if call.number == 0 else call.answer()

    async def act(client: H2Transport, stage: Stage) -> None:
        await send(client, stage)
        await send(client, stage)

    stage = play(once, act)
    assert stage.ends[0][0] == status
    assert detail in stage.ends[0][1]
    assert stage.ends[1] == (samples.OK, "")


def test_padding_is_passed_over() -> None:
    def padded(call: Call) -> None:
        call.server.h2c.send_headers(call.stream, HEADERS)
        call.server.h2c.send_data(call.stream, ANSWER[:7], pad_length=30)
        call.server.h2c.send_data(call.stream, ANSWER[7:], pad_length=0)
        call.server.h2c.send_headers(call.stream, [("grpc-status", "0")], end_stream=True)

    assert ends(padded) == [(samples.OK, "")]


def test_pings_are_answered() -> None:
    def ping(call: Call) -> None:
        call.server.h2c.ping(b"12345678")
        call.answer()

    async def act(client: H2Transport, stage: Stage) -> None:
        await send(client, stage)
        await stage.until(
            lambda: any(
                isinstance(event, h2.events.PingAckReceived) and event.ping_data == b"12345678"
                for event in stage.events
            )
        )

    play(ping, act)


def test_going_away_gracefully_loses_nothing() -> None:
    held: list[Call] = []

    def behave(call: Call) -> None:
        if call.number == 0:
            held.append(call)
            goaway = frames.frame(frames.GOAWAY, 0, 0, struct.pack(">LL", frames.LAST_STREAM, 0))
            call.server.transport.write(goaway)
        else:
            call.answer()

    async def act(client: H2Transport, stage: Stage) -> None:
        client.send(0, 0)
        await stage.until(lambda: bool(client._leaving))
        client.send(1, 0)
        await stage.until(lambda: 1 in stage.ends)
        held[0].answer()
        held[0].server.flush()
        await stage.until(lambda: 0 in stage.ends)

    stage = play(behave, act)
    assert set(stage.ends.values()) == {(samples.OK, "")}
    assert len(stage.peers) == 2


def test_going_away_fails_what_will_not_be_looked_at() -> None:
    def behave(call: Call) -> None:
        if call.number < 2:
            call.server.transport.write(
                frames.frame(frames.GOAWAY, 0, 0, struct.pack(">LL", 1, 11) + b"too_many_pings")
            )
            if call.number == 0:
                call.answer()
        else:
            call.answer()

    async def act(client: H2Transport, stage: Stage) -> None:
        client.send(0, 0)
        client.send(1, 0)
        await stage.until(lambda: len(stage.ends) == 2)
        await send(client, stage)

    stage = play(behave, act)
    assert stage.ends[0] == (samples.OK, "")
    assert stage.ends[1][0] == samples.LOST
    assert "ENHANCE_YOUR_CALM too_many_pings" in stage.ends[1][1]
    assert stage.ends[2] == (samples.OK, "")


def test_stream_numbers_run_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Connection, "last_stream", 7)
    stage = play(Call.answer, lambda client, stage: send(client, stage, 10))
    assert set(stage.ends.values()) == {(samples.OK, "")}
    assert len(stage.peers) == 3
    assert max(call.stream for call in stage.calls) == 7


def test_giving_up_resets_the_stream() -> None:
    async def act(client: H2Transport, stage: Stage) -> None:
        client.send(0, 0)
        await stage.until(lambda: bool(stage.calls))
        client.abandon(0)
        client.abandon(0)
        await stage.until(lambda: any(isinstance(event, h2.events.StreamReset) for event in stage.events))
        stage.behaviour = Call.answer
        client.send(1, 0)
        await stage.until(lambda: 1 in stage.ends)

    stage = play(lambda _call: None, act)
    assert stage.ends == {1: (samples.OK, "")}
    assert len(stage.peers) == 1


def test_streaming_ends_with_the_last_answer() -> None:
    error = message(b"\x0a\x05wrong")

    def several(call: Call) -> None:
        call.answer(ANSWER * 3 if call.number else ANSWER + error)

    async def act(client: H2Transport, stage: Stage) -> None:
        await send(client, stage)
        await send(client, stage)

    stage = play(several, act, streaming=True)
    assert stage.calls[0].headers[":path"].endswith("/ModelStreamInfer")
    assert stage.ends == {0: (1002, "wrong"), 1: (samples.OK, "")}


@pytest.mark.parametrize("method", ["gzip", "deflate"])
def test_compressed_answers_of_streams(method: Compression) -> None:
    """A server may compress its answers, as we allow: an error is an error all the same."""
    error, good = b"\x0a\x05wrong", b"\x12\x00"

    def several(call: Call) -> None:
        call.answer(message(compressed(good if call.number else error, method), compressed=True))

    async def act(client: H2Transport, stage: Stage) -> None:
        await send(client, stage)
        await send(client, stage)

    stage = play(several, act, streaming=True)
    assert stage.ends == {0: (1002, "wrong"), 1: (samples.OK, "")}
