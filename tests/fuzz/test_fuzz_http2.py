"""Frames with bytes changed, in any order and cut anywhere: a connection goes on or is left, and leaves nothing."""

from __future__ import annotations

import asyncio
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orlop.errors import OrlopError
from orlop.rpc.http2 import frame, hpack
from orlop.rpc.http2.connection import Allowance, Connection
from orlop.rpc.http2.stream import Gone, Stream

_HEAD = b"".join(
    hpack.literal(name, value)
    for name, value in ((":method", "POST"), (":path", "/s/m"), ("content-type", "application/grpc"))
)
IDS = st.sampled_from([0, 1, 1, 1, 2, 3, 3, 5, 7, frame.MAX_WINDOW])
NUMBERS = st.sampled_from([0, 1, 5, 65535, 1 << 20, frame.MAX_WINDOW, 0xFFFFFFFF]).map(lambda n: n.to_bytes(4, "big"))
MESSAGES = st.binary(max_size=40).map(lambda data: b"\0" + len(data).to_bytes(4, "big") + data)
PAYLOADS = st.one_of(
    st.just(_HEAD), st.just(b"\x82" + _HEAD), MESSAGES, NUMBERS, st.binary(max_size=60), st.just(bytes(8))
)
KINDS = st.sampled_from([frame.HEADERS, frame.HEADERS, frame.DATA, frame.DATA, *range(11)])
FLAGS = st.sampled_from([frame.END_HEADERS, frame.END_HEADERS | frame.END_STREAM, 0, 1, 8, 32, 45, 255])
FRAMES = st.one_of(
    st.builds(frame.frame, KINDS, FLAGS, IDS, PAYLOADS),
    st.builds(lambda stream: frame.frame(frame.HEADERS, frame.END_HEADERS, stream, _HEAD), IDS),
    st.builds(lambda name, value: frame.settings({name: value}), st.integers(0, 8), st.integers(0, 0xFFFFFFFF)),
)
EDITS = st.lists(st.tuples(st.integers(0, 1 << 12), st.integers(0, 255)), max_size=3)


class _Transport:
    """Takes what is written; is full from time to time."""

    def __init__(self) -> None:
        self.written = b""
        self.closed = self.paused = False

    def write(self, data: bytes) -> None:
        assert not self.closed
        self.written += data

    def close(self) -> None:
        self.closed = True

    abort = close

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None:
        assert not self.paused
        self.paused = True

    def resume_reading(self) -> None:
        assert self.paused
        self.paused = False

    def set_write_buffer_limits(self, high: int) -> None:
        pass


async def _echo(stream: Stream) -> None:
    try:
        while (message := await stream.receive()) is not None:
            await stream.send(message)
        stream.end()
    except OrlopError as error:
        stream.end(error.code, str(error))
    except Gone:
        pass


async def _drive(pieces: list[bytes], full: list[bool]) -> bytes:
    calls: list[asyncio.Task[None]] = []

    def serve(stream: Stream) -> None:
        if stream.head.refusal is not None:
            status, error = stream.head.refusal
            stream.end(error.code, str(error), status=status)
            return
        stream.task = asyncio.get_running_loop().create_task(_echo(stream))
        calls.append(stream.task)

    failures: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: failures.append(context))
    connection = Connection(Allowance(1000, 4000, 3), serve, lambda _: None, lambda _: None)
    transport = _Transport()
    connection.connection_made(transport)  # type: ignore[arg-type]
    for piece, stuck in zip(pieces, full, strict=False):
        if transport.closed:
            break
        if stuck != connection.stuck:
            (connection.pause_writing if stuck else connection.resume_writing)()
        connection.data_received(piece)
        for _ in range(3):
            await asyncio.sleep(0)
    connection.connection_lost(None)
    await asyncio.gather(*calls, return_exceptions=True)
    await asyncio.sleep(0)
    assert not failures
    assert not connection.streams
    assert not connection.blocked
    return transport.written


def _whole_frames(written: bytes) -> None:
    position = 0
    while position < len(written):
        upper, lower, kind, _, _ = frame.HEADER.unpack_from(written, position)
        assert kind in (frame.DATA, frame.HEADERS, frame.RST_STREAM, frame.SETTINGS, frame.PING, 7, frame.WINDOW_UPDATE)
        position += frame.HEADER_SIZE + (upper << 8 | lower)
    assert position == len(written)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(FRAMES, max_size=12), EDITS, st.lists(st.integers(1, 200), max_size=6), st.lists(st.booleans()))
def test_changed_frames_end_as_the_rules_say(
    frames: list[bytes], edits: list[tuple[int, int]], cuts: list[int], full: list[bool]
) -> None:
    sent = bytearray(frame.PREFACE + frame.settings({}) + b"".join(frames))
    for at, byte in edits:
        sent[at % len(sent)] = byte
    pieces, position = [], 0
    for cut in cuts:
        pieces.append(bytes(sent[position : position + cut]))
        position += cut
    pieces.append(bytes(sent[position:]))
    _whole_frames(asyncio.run(_drive(pieces, [*full, *([False] * len(pieces))])))
