"""The native engine frame by frame: flow control both ways, how calls end, and clients that break the rules."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import rpc_echo
from google.protobuf.wrappers_pb2 import StringValue
from rpc_echo import EchoService
from rpc_wire import MANY, Wire, block, connected, data, message, opened

from orlop.rpc.http2 import frame
from orlop.rpc.http2.connection import Connection
from orlop.rpc.http2.frame import ErrorCode
from orlop.rpc.http2.incoming import WINDOW
from orlop.rpc.server import GrpcServer
from orlop.rpc.service import Call

_LARGEST = 4 << 20


class Servicer(EchoService):
    """`Up` reads nothing until `gate` is opened; then it answers with how many characters came."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()

    async def Up(self, requests: AsyncIterator[StringValue], call: Call) -> StringValue:
        self.entered.set()
        try:
            await self.gate.wait()
            return StringValue(value=str(sum([len(request.value) async for request in requests])))
        except asyncio.CancelledError:
            self.cancelled.set()
            raise


@asynccontextmanager
async def serving(tmp_path: Path, settings: dict[int, int] | None = None) -> AsyncIterator[tuple[Servicer, Wire]]:
    async with running(tmp_path) as (servicer, _), connected(tmp_path / "s", settings) as wire:
        yield servicer, wire


@asynccontextmanager
async def running(tmp_path: Path) -> AsyncIterator[tuple[Servicer, GrpcServer]]:
    servicer = Servicer()
    server = GrpcServer("native", max_receive=_LARGEST, max_send=_LARGEST)
    server.add(rpc_echo.service(servicer))
    await server.start(str(tmp_path / "s"))
    try:
        yield servicer, server
    finally:
        await server.stop()


async def answered(wire: Wire, stream: int, text: str = "hello") -> None:
    """The connection is fine: a call is made and answered."""
    wire.write(opened(stream, "Unary"), data(stream, message(text), end=True))
    assert (await wire.kind(frame.DATA, stream)).payload == message(text)
    assert await wire.status(stream) == (0, "")


async def test_a_call_in_one_frame_or_in_many_is_the_same(tmp_path: Path) -> None:
    async with serving(tmp_path) as (_, wire):
        await answered(wire, 1)
        head, body = block("Unary"), message("in pieces")
        wire.write(
            frame.frame(frame.HEADERS, frame.PADDED | frame.WITH_PRIORITY, 3, b"\2\0\0\0\0\x10" + head[:5] + b"\0\0"),
            *(frame.frame(frame.CONTINUATION, 0, 3, head[at : at + 1]) for at in range(5, len(head))),
            frame.frame(frame.CONTINUATION, frame.END_HEADERS, 3),
            *(data(3, body[at : at + 1]) for at in range(len(body))),
            frame.frame(frame.DATA, frame.PADDED | frame.END_STREAM, 3, b"\4\0\0\0\0"),
        )
        assert (await wire.kind(frame.DATA, 3)).payload == body
        assert await wire.status(3) == (0, "")


async def test_what_nobody_knows_is_passed_over(tmp_path: Path) -> None:
    async with serving(tmp_path, {99: 7, frame.MAX_STREAMS: 1}) as (_, wire):
        wire.write(
            frame.frame(77, 255, 5, b"whatever"),
            frame.frame(frame.PRIORITY, 0, 9, b"\0\0\0\0\1"),
            frame.frame(frame.GOAWAY, 0, 0, bytes(8)),
        )
        await answered(wire, 1)
        wire.write(
            frame.window_update(1, 1),
            frame.reset(1, ErrorCode.CANCEL),
            data(1, b"late", end=True),
            frame.frame(frame.HEADERS, frame.END_HEADERS | frame.END_STREAM, 1, block("Unary")),
        )
        await answered(wire, 3)


async def test_a_client_may_send_as_much_as_there_is_room_for_and_no_more(tmp_path: Path) -> None:
    part = message("x" * 1000)
    count = WINDOW // len(part)
    async with serving(tmp_path) as (servicer, wire):
        assert dict(frame.settings_in((await wire.kind(frame.SETTINGS)).payload))[frame.INITIAL_WINDOW] == WINDOW
        assert (await wire.kind(frame.WINDOW_UPDATE, 0)).number > WINDOW
        wire.write(opened(1, "Up"), data(1, part * count))
        await servicer.entered.wait()
        await wire.round_trip()  # and nobody has made room
        servicer.gate.set()
        assert (await wire.kind(frame.WINDOW_UPDATE, 1)).number >= WINDOW // 2
        wire.write(data(1, part * 100, end=True))
        assert (await wire.kind(frame.DATA, 1)).payload == message(str(1000 * (count + 100)))
        assert await wire.status(1) == (0, "")

        servicer.gate.clear()
        wire.write(opened(3, "Up"), data(3, part * (count + 1)))
        assert (await wire.kind(frame.RST_STREAM, 3)).number == ErrorCode.FLOW_CONTROL_ERROR
        await servicer.cancelled.wait()
        await answered(wire, 5)


async def test_a_message_larger_than_the_window_gets_the_room_it_needs(tmp_path: Path) -> None:
    body = message("y" * (3 << 20))
    async with serving(tmp_path, {frame.INITIAL_WINDOW: frame.MAX_WINDOW}) as (_, wire):
        wire.write(frame.window_update(0, MANY), opened(1, "Both"), data(1, body[:WINDOW]))
        room = (await wire.kind(frame.WINDOW_UPDATE, 1)).number
        assert room == len(body) - WINDOW
        wire.write(data(1, body[WINDOW:], end=True))
        received = b""
        while len(received) < len(body):
            received += (await wire.kind(frame.DATA, 1)).payload
        assert received == body
        assert await wire.status(1) == (0, "")


async def test_a_gibibyte_that_nobody_reads_takes_no_memory(tmp_path: Path) -> None:
    """Streams whose servicer does not read hold their windows, however much the client has for them."""
    async with serving(tmp_path) as (servicer, wire):
        streams = range(1, 21, 2)
        large = message("x" * WINDOW)[:WINDOW]
        wire.write(*(opened(stream, "Up") + data(stream, large) for stream in streams))
        await wire.round_trip()
        wire.write(*(data(stream, b"x") for stream in streams))
        for stream in streams:
            assert (await wire.kind(frame.RST_STREAM, stream)).number == ErrorCode.FLOW_CONTROL_ERROR
        await servicer.cancelled.wait()


@pytest.mark.parametrize("window", [1, 7, 65535])
async def test_a_client_that_reads_slowly_gets_what_it_has_room_for(tmp_path: Path, window: int) -> None:
    size = 40 if window < 10 else 200_000
    async with serving(tmp_path, {frame.INITIAL_WINDOW: window}) as (_, wire):
        wire.write(opened(1, "Unary"), data(1, message(f"size:{size}"), end=True))
        expected, received = message("x" * size), b""
        while len(received) < len(expected):
            part = (await wire.kind(frame.DATA, 1)).payload
            assert len(part) <= min(window, frame.MAX_SIZE)
            received += part
            wire.write(frame.window_update(1, len(part)), frame.window_update(0, len(part)))
        assert received == expected
        assert await wire.status(1) == (0, "")


async def test_windows_that_shrink_below_nothing_are_waited_for(tmp_path: Path) -> None:
    async with serving(tmp_path, {frame.INITIAL_WINDOW: 10}) as (_, wire):
        wire.write(opened(1, "Unary"), data(1, message("size:30"), end=True))
        assert len((await wire.kind(frame.DATA, 1)).payload) == 10
        wire.write(frame.settings({frame.INITIAL_WINDOW: 0}), frame.window_update(1, 5))
        await wire.round_trip()
        wire.write(frame.window_update(1, 7))
        assert len((await wire.kind(frame.DATA, 1)).payload) == 2
        wire.write(frame.settings({frame.INITIAL_WINDOW: 1000}))
        assert await wire.status(1) == (0, "")


async def test_frames_are_as_large_as_the_client_takes_them(tmp_path: Path) -> None:
    async with serving(tmp_path, {frame.MAX_FRAME_SIZE: 30_000, frame.INITIAL_WINDOW: 1 << 20}) as (_, wire):
        wire.write(opened(1, "Unary"), data(1, message("size:60000"), end=True))
        assert len((await wire.kind(frame.DATA, 1)).payload) == 30_000


async def test_both_ways_go_on_beside_each_other(tmp_path: Path) -> None:
    async with serving(tmp_path) as (_, wire):
        wire.write(opened(1, "Both"), opened(3, "Both"))
        for number in range(3):
            for stream in (3, 1):
                wire.write(data(stream, message(f"{stream} {number}")))
                assert (await wire.kind(frame.DATA, stream)).payload == message(f"{stream} {number}")
        wire.write(data(1, end=True), frame.frame(frame.HEADERS, frame.END_HEADERS | frame.END_STREAM, 3))
        assert {await wire.status(1), await wire.status(3)} == {(0, "")}


async def test_a_stream_may_end_before_it_has_sent_anything(tmp_path: Path) -> None:
    async with serving(tmp_path) as (servicer, wire):
        servicer.gate.set()
        wire.write(opened(1, "Up", end=True), opened(3, "Both", end=True))
        assert (await wire.kind(frame.DATA, 1)).payload == message("0")
        only = await wire.kind(frame.HEADERS, 3)
        assert (only.fields[":status"], only.fields["grpc-status"]) == ("200", "0")
        assert only.flags & frame.END_STREAM
        wire.write(opened(5, "Unary", end=True), opened(7, "Up"), data(7, message("cut")[:-1], end=True))
        assert await wire.status(5) == (13, "the client sent no request")
        assert await wire.status(7) == (13, "unexpected EOF")


async def test_a_client_that_still_sends_is_told_that_nobody_reads(tmp_path: Path) -> None:
    async with serving(tmp_path) as (_, wire):
        wire.write(opened(1, "Both"), data(1, message("fail:5")))
        assert await wire.status(1) == (5, "thing: not found")
        assert (await wire.kind(frame.RST_STREAM, 1)).number == ErrorCode.NO_ERROR
        wire.write(data(1, message("more"), end=True))
        await answered(wire, 3)


async def test_messages_that_are_none_fail_their_call_alone(tmp_path: Path) -> None:
    async with serving(tmp_path) as (_, wire):
        wire.write(opened(1, "Unary"), data(1, b"\1\0\0\0\1x", end=True))
        assert await wire.status(1) == (13, "grpc: compressed flag set with identity or empty encoding")
        size = _LARGEST + 1
        wire.write(opened(3, "Both"), data(3, b"\0" + size.to_bytes(4, "big") + b"x" * 1000))
        assert await wire.status(3) == (8, f"grpc: received message larger than max ({size} vs. {_LARGEST})")
        await answered(wire, 5)


@pytest.mark.parametrize(
    ("header", "http_status", "code", "text"),
    [
        (("content-type", "text/html"), "415", 3, "content-type"),
        (("content-type", "application/grpcx"), "415", 3, "content-type"),
        ((":method", "GET"), "405", 13, "should be POST"),
        (("grpc-timeout", "soon"), "400", 13, "malformed grpc-timeout"),
        (("grpc-encoding", "gzip"), "200", 12, 'not installed for grpc-encoding "gzip"'),
        (("large", "x" * 70_000), "200", 8, "metadata size exceeds"),
        ((":path", "/orlop.test.Echo/Nope"), "200", 12, "unknown method Nope for service orlop.test.Echo"),
        ((":path", "/a.b/C"), "200", 12, "unknown service a.b"),
        ((":path", "nonsense"), "200", 12, "malformed method name"),
    ],
)
async def test_a_request_that_cannot_be_served_is_told_why(
    tmp_path: Path, header: tuple[str, str], http_status: str, code: int, text: str
) -> None:
    async with serving(tmp_path) as (_, wire):
        head = block("Unary", header)
        parts = [head[at : at + frame.MAX_SIZE] for at in range(0, len(head), frame.MAX_SIZE)]
        wire.write(frame.frame(frame.HEADERS, 0, 1, parts[0]))
        wire.write(*(frame.frame(frame.CONTINUATION, 0, 1, part) for part in parts[1:]))
        wire.write(frame.frame(frame.CONTINUATION, frame.END_HEADERS, 1), data(1, message(""), end=True))
        answer = await wire.kind(frame.HEADERS, 1)
        assert (answer.fields[":status"], answer.fields["grpc-status"]) == (http_status, str(code))
        assert text in answer.fields["grpc-message"]
        await answered(wire, 3)


async def test_any_content_type_of_grpc_will_do(tmp_path: Path) -> None:
    async with serving(tmp_path) as (_, wire):
        for stream, kind in ((1, "application/grpc+proto"), (3, "application/grpc;charset=utf-8")):
            wire.write(opened(stream, "Unary", ("content-type", kind)), data(stream, message(""), end=True))
            assert await wire.status(stream) == (0, "")


async def test_messages_of_a_status_travel_as_what_can_be_printed(tmp_path: Path) -> None:
    async with serving(tmp_path) as (_, wire):
        wire.write(opened(1, "Unary", (":path", "/50%/x")), opened(3, "Unary"), data(3, message("bug"), end=True))
        assert await wire.status(3) == (
            2,
            "unexpected failure in /orlop.test.Echo/Unary: the server's log has the details",
        )
        assert await wire.status(1) == (12, "unknown service 50%25")


async def test_a_deadline_ends_the_call_and_its_servicer(tmp_path: Path) -> None:
    async with serving(tmp_path) as (servicer, wire):
        wire.write(opened(1, "Unary", ("grpc-timeout", "20m")), data(1, message("wait"), end=True))
        assert await wire.status(1) == (4, "context deadline exceeded")
        await servicer.cancelled.wait()
        wire.write(opened(3, "Up", ("grpc-timeout", "1n")))
        assert await wire.status(3) == (4, "context deadline exceeded")
        wire.write(opened(5, "Unary", ("grpc-timeout", "99999999H")), data(5, message("in time"), end=True))
        assert await wire.status(5) == (0, "")


@pytest.mark.parametrize("method", ["Unary", "Both"])
async def test_a_call_that_is_reset_is_cancelled(tmp_path: Path, method: str) -> None:
    async with serving(tmp_path) as (servicer, wire):
        wire.write(opened(1, method), data(1, message("wait")))
        await servicer.entered.wait()
        wire.write(frame.reset(1, ErrorCode.CANCEL))
        await servicer.cancelled.wait()
        await answered(wire, 3)


@pytest.mark.parametrize("method", ["Unary", "Up", "Both"])
async def test_calls_end_with_their_connection(tmp_path: Path, method: str) -> None:
    async with running(tmp_path) as (servicer, _):
        async with connected(tmp_path / "s") as wire:
            wire.write(opened(1, method), data(1, message("wait")))
            await servicer.entered.wait()
            wire.writer.transport.abort()
        await servicer.cancelled.wait()


async def test_a_client_that_is_gone_stops_a_stream_to_it(tmp_path: Path) -> None:
    async with running(tmp_path) as (servicer, _):
        async with connected(tmp_path / "s") as wire:
            wire.write(opened(1, "Down"), data(1, message("flood"), end=True))
            await wire.kind(frame.DATA, 1)
        produced = -1
        while produced != servicer.produced:
            produced = servicer.produced
            async with connected(tmp_path / "s") as wire:
                for stream in range(1, 21, 2):
                    await answered(wire, stream)


async def test_the_end_of_a_server_is_told_and_lets_calls_finish(tmp_path: Path) -> None:
    async with running(tmp_path) as (servicer, server), connected(tmp_path / "s") as wire:
        wire.write(opened(1, "Up"), data(1, message("in time")))
        await servicer.entered.wait()
        stopping = asyncio.create_task(server.stop(30))
        assert (await wire.kind(frame.GOAWAY)).number == 1
        wire.write(opened(3, "Unary"), data(3, message(""), end=True))
        assert (await wire.kind(frame.RST_STREAM, 3)).number == ErrorCode.REFUSED_STREAM
        servicer.gate.set()
        wire.write(data(1, end=True))
        assert await wire.status(1) == (0, "")
        await stopping
        assert await wire.reader.read() == b""


async def test_a_client_that_does_not_read_does_not_hold_up_the_end(tmp_path: Path) -> None:
    async with running(tmp_path) as (_, server), connected(tmp_path / "s") as wire:
        wire.write(frame.window_update(0, MANY), frame.settings({frame.INITIAL_WINDOW: frame.MAX_WINDOW}))
        wire.write(opened(1, "Down"), data(1, message("flood"), end=True))
        await wire.kind(frame.DATA, 1)
        async with asyncio.timeout(30):
            await server.stop()


_SETTINGS_FIRST = frame.settings({})
_LATE = opened(1, "Unary", end=True)


@pytest.mark.parametrize(
    ("frames", "code"),
    [
        (frame.frame(frame.DATA, 0, 0, b"x"), ErrorCode.PROTOCOL_ERROR),
        (frame.frame(frame.DATA, 0, 5, b"x"), ErrorCode.PROTOCOL_ERROR),
        (frame.frame(frame.DATA, 0, 5, bytes(frame.MAX_SIZE + 1)), ErrorCode.FRAME_SIZE_ERROR),
        (opened(2, "Unary"), ErrorCode.PROTOCOL_ERROR),
        (opened(0, "Unary"), ErrorCode.PROTOCOL_ERROR),
        (frame.frame(frame.HEADERS, frame.END_HEADERS, 1, b"\xff\xff\xff"), ErrorCode.COMPRESSION_ERROR),
        (frame.frame(frame.HEADERS, frame.PADDED | frame.END_HEADERS, 1, b"\xff1"), ErrorCode.PROTOCOL_ERROR),
        (frame.frame(frame.HEADERS, frame.PADDED | frame.END_HEADERS, 1), ErrorCode.FRAME_SIZE_ERROR),
        (frame.frame(frame.HEADERS, 0, 1) + data(1), ErrorCode.PROTOCOL_ERROR),
        (frame.frame(frame.HEADERS, 0, 1) + frame.frame(frame.CONTINUATION, 0, 3), ErrorCode.PROTOCOL_ERROR),
        (frame.frame(frame.CONTINUATION, 0, 1), ErrorCode.PROTOCOL_ERROR),
        (
            frame.frame(frame.HEADERS, 0, 1) + frame.frame(frame.CONTINUATION, 0, 1, bytes(16000)) * 9,
            ErrorCode.ENHANCE_YOUR_CALM,
        ),
        (
            frame.frame(frame.HEADERS, 0, 1) + frame.frame(frame.CONTINUATION, 0, 1) * 20_000,
            ErrorCode.ENHANCE_YOUR_CALM,
        ),
        (frame.frame(frame.PUSH_PROMISE, 0, 1), ErrorCode.PROTOCOL_ERROR),
        (frame.frame(frame.RST_STREAM, 0, 1, bytes(4)), ErrorCode.PROTOCOL_ERROR),
        (frame.frame(frame.RST_STREAM, 0, 0, bytes(4)), ErrorCode.PROTOCOL_ERROR),
        (frame.frame(frame.RST_STREAM, 0, 1, bytes(3)), ErrorCode.FRAME_SIZE_ERROR),
        (frame.frame(frame.PING, 0, 0, bytes(7)), ErrorCode.FRAME_SIZE_ERROR),
        (frame.frame(frame.PING, 0, 1, bytes(8)), ErrorCode.PROTOCOL_ERROR),
        (frame.frame(frame.GOAWAY, 0, 1, bytes(8)), ErrorCode.PROTOCOL_ERROR),
        (frame.frame(frame.PRIORITY, 0, 0, bytes(5)), ErrorCode.PROTOCOL_ERROR),
        (frame.frame(frame.SETTINGS, 0, 1), ErrorCode.PROTOCOL_ERROR),
        (frame.frame(frame.SETTINGS, 0, 0, bytes(5)), ErrorCode.FRAME_SIZE_ERROR),
        (frame.settings({frame.MAX_FRAME_SIZE: 1}), ErrorCode.PROTOCOL_ERROR),
        (frame.settings({frame.INITIAL_WINDOW: 1 << 31}), ErrorCode.FLOW_CONTROL_ERROR),
        (frame.window_update(0, 0), ErrorCode.PROTOCOL_ERROR),
        (frame.window_update(1, 1), ErrorCode.PROTOCOL_ERROR),
        (frame.window_update(0, frame.MAX_WINDOW), ErrorCode.FLOW_CONTROL_ERROR),
    ],
)
async def test_who_breaks_the_rules_is_told_and_left(tmp_path: Path, frames: bytes, code: ErrorCode) -> None:
    async with serving(tmp_path) as (_, wire):
        wire.write(frames)
        farewell = await wire.kind(frame.GOAWAY)
        assert int.from_bytes(farewell.payload[4:8], "big") == code
        assert await wire.reader.read() == b""


@pytest.mark.parametrize(
    ("frames", "code"),
    [
        (opened(1, "Unary", (":path", "")), ErrorCode.PROTOCOL_ERROR),
        (opened(1, "Unary", ("Upper", "case")), ErrorCode.PROTOCOL_ERROR),
        (opened(1, "Unary", (":late", "pseudo")), ErrorCode.PROTOCOL_ERROR),
        (opened(1, "Both") + frame.window_update(1, 0), ErrorCode.PROTOCOL_ERROR),
        (opened(1, "Both") + frame.window_update(1, frame.MAX_WINDOW), ErrorCode.FLOW_CONTROL_ERROR),
        (opened(1, "Both") + opened(1, "Both"), ErrorCode.PROTOCOL_ERROR),
        (opened(1, "Up", end=True) + data(1, b"more"), ErrorCode.STREAM_CLOSED),
    ],
)
async def test_a_stream_that_breaks_the_rules_is_reset_alone(tmp_path: Path, frames: bytes, code: ErrorCode) -> None:
    async with serving(tmp_path) as (_, wire):
        wire.write(frames)
        assert (await wire.kind(frame.RST_STREAM, 1)).number == code
        await answered(wire, 3)


@pytest.mark.parametrize(
    "greeting", [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01", frame.PREFACE + frame.frame(frame.PING, 0, 0, bytes(8))]
)
async def test_other_protocols_are_left_at_once(tmp_path: Path, greeting: bytes) -> None:
    async with running(tmp_path), connected(tmp_path / "s", greeting=greeting) as wire:
        farewell = await wire.kind(frame.GOAWAY)
        assert int.from_bytes(farewell.payload[4:8], "big") == ErrorCode.PROTOCOL_ERROR
        assert await wire.reader.read() == b""


async def test_who_connects_and_says_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orlop.rpc.http2.connection._GREETING_SECONDS", 0.02)
    async with running(tmp_path):
        reader, writer = await asyncio.open_unix_connection(str(tmp_path / "s"))
        writer.write(frame.PREFACE[:10])
        async with asyncio.timeout(30):
            greeting = await reader.read()  # to the end
        assert greeting[3] == frame.SETTINGS
        writer.close()


async def test_bytes_may_come_one_by_one(tmp_path: Path) -> None:
    async with running(tmp_path):
        reader, writer = await asyncio.open_unix_connection(str(tmp_path / "s"))
        wire = Wire(reader, writer)
        for byte in frame.PREFACE + frame.settings({}) + opened(1, "Unary") + data(1, message("slow"), end=True):
            writer.write(bytes((byte,)))
            await asyncio.sleep(0)
        assert (await wire.kind(frame.DATA, 1)).payload == message("slow")
        writer.close()


async def test_calls_that_are_reset_at_once_leave_nothing_and_hold_up_nobody(tmp_path: Path) -> None:
    async with serving(tmp_path) as (servicer, wire):
        async with connected(tmp_path / "s") as other:
            flood = [opened(n, "Unary") + frame.reset(n, ErrorCode.CANCEL) for n in range(1, 40_001, 2)]
            wire.write(*flood)
            for stream in range(1, 41, 2):
                await answered(other, stream)
            await wire.round_trip()
            await answered(wire, 50_001)
        before = len(asyncio.all_tasks())
        wire.write(opened(50_003, "Both"), frame.reset(50_003, ErrorCode.CANCEL))
        await wire.round_trip()
        assert len(asyncio.all_tasks()) <= before
        assert len(servicer.calls) < 1000


async def test_who_pings_and_does_not_read_is_cut_off(tmp_path: Path) -> None:
    async with serving(tmp_path) as (_, wire):
        ping = frame.frame(frame.PING, 0, 0, bytes(8))
        wire.reader._transport.pause_reading()  # type: ignore[attr-defined]

        async def flood() -> None:
            while True:
                wire.write(ping * 10_000)
                await wire.writer.drain()

        with pytest.raises(ConnectionError):
            await flood()


async def test_who_calls_and_does_not_read_is_not_read_either(tmp_path: Path) -> None:
    async with running(tmp_path) as (_, server):
        async with connected(tmp_path / "s", {frame.INITIAL_WINDOW: frame.MAX_WINDOW}) as wire:
            wire.write(frame.window_update(0, MANY))
            await wire.round_trip()
            (connection,) = server._engine._connections  # type: ignore[union-attr]
            wire.reader._transport.pause_reading()  # type: ignore[attr-defined]
            body = message("x" * 1000)
            wire.write(*(opened(n, "Unary") + data(n, body, end=True) for n in range(1, 12_001, 2)))
            for _ in range(20):
                async with connected(tmp_path / "s") as other:
                    for stream in range(1, 21, 2):
                        await answered(other, stream)
            assert connection.stuck
            assert 1000 < len(connection.streams) < 3000
            wire.reader._transport.resume_reading()  # type: ignore[attr-defined]
            assert await wire.status(11_999) == (0, "")


async def test_ended_connections_leave_no_objects(tmp_path: Path) -> None:
    before = {id(one) for one in gc.get_objects() if isinstance(one, Connection)}
    async with running(tmp_path):
        for _ in range(20):
            async with connected(tmp_path / "s") as wire:
                await answered(wire, 1)
                wire.write(opened(3, "Up"))
                await wire.round_trip()
    gc.collect()
    assert not [one for one in gc.get_objects() if isinstance(one, Connection) and id(one) not in before]
