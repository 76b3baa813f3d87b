"""A client's connection: its frames are read, its streams found, its rules kept."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

from orlop.rpc.http2 import frame
from orlop.rpc.http2.frame import (
    ACK,
    CONTINUATION,
    DATA,
    DEFAULT_WINDOW,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADER,
    HEADER_SIZE,
    HEADERS,
    MAX_WINDOW,
    PADDED,
    PING,
    PREFACE,
    PRIORITY,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    ConnectionFailure,
    ErrorCode,
)
from orlop.rpc.http2.head import Head, Malformed, head_of
from orlop.rpc.http2.hpack import Decoder
from orlop.rpc.http2.incoming import WINDOW
from orlop.rpc.http2.stream import Stream

_CONNECTION_WINDOW = 16 << 20
"""Bytes that a client may have on its way to us, over all its streams; they bound what each may."""
_GREETING_SECONDS = 120.0
_MAX_REPLIES = 10_000
"""Answers to pings, settings and the like that may wait for a client that does not read."""
_MAX_PIECES = 1000
"""Frames of a header block."""
_MAX_UNREAD = 1000
"""Calls of a client that does not read, before we stop to read, too."""
_TURN = 128
"""Frames that are taken at once."""
_REMEMBERED_BLOCKS = 64
_REMEMBERED_SIZE = 1024
_WRITE_BUFFER = 256 << 10


class Allowance:
    """What a connection allows: bytes of a message, bytes of headers, streams."""

    __slots__ = ("headers", "message", "streams")

    def __init__(self, message: int, headers: int, streams: int) -> None:
        self.message = message
        self.headers = headers
        self.streams = streams


class Connection(asyncio.Protocol):
    """`serve` is called with each new stream; `began` and `ended` when the connection is there and when it is gone."""

    def __init__(
        self,
        limits: Allowance,
        serve: Callable[[Stream], None],
        began: Callable[[Connection], None],
        ended: Callable[[Connection], None],
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.limits = limits
        self.streams: dict[int, Stream] = {}
        self.blocked: dict[int, Stream] = {}
        """Streams that wait for room to send, who came first in front."""
        self.window = DEFAULT_WINDOW
        """Bytes that the client allows us to send, over all streams."""
        self.max_frame = frame.MAX_SIZE
        self.stuck = False
        """Whether the client is behind with reading."""
        self._serve = serve
        self._began = began
        self._ended = ended
        self._transport: asyncio.Transport | None = None
        self._rest = b""
        self._output: list[bytes] = []
        self._output_size = 0
        self._flushing = False
        self._greeted = self._settled = self._leaving = False
        self._timer: asyncio.TimerHandle | None = None
        self._decoder = Decoder(limits.headers)
        self._heads: dict[bytes, Head] = {}
        self._heads_version = 0
        self._block: tuple[int, int, bytearray] | None = None
        self._pieces = 0
        self._last = 0
        self._room = _CONNECTION_WINDOW
        self._initial_window = DEFAULT_WINDOW
        self._replies = 0
        self._pauses = 0
        self._behind = self._crowded = False
        """Why it is paused: frames wait for their turn; the client does not read its answers."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast(asyncio.Transport, transport)  # uvloop's is none by descent
        self._transport = transport
        self._began(self)
        transport.set_write_buffer_limits(high=_WRITE_BUFFER)
        self._timer = self.loop.call_later(_GREETING_SECONDS, transport.abort)
        self.write(
            frame.settings(
                {
                    frame.MAX_STREAMS: self.limits.streams,
                    frame.INITIAL_WINDOW: WINDOW,
                    frame.MAX_HEADER_LIST_SIZE: self.limits.headers,
                }
            )
            + frame.window_update(0, _CONNECTION_WINDOW - DEFAULT_WINDOW)
        )

    def connection_lost(self, _error: Exception | None) -> None:
        self._transport = None
        self._forget_greeting()
        for stream in list(self.streams.values()):
            stream.abandon()
        self._ended(self)

    def pause_writing(self) -> None:
        self.stuck = True

    def resume_writing(self) -> None:
        self.stuck = False
        self._replies = 0
        if self._crowded:
            self._crowded = False
            self._resume()
        self._wake_all()

    def write(self, data: bytes) -> None:
        """Has `data` written with all else that this turn of the loop has to say."""
        self._output.append(data)
        self._output_size += len(data)
        if self._output_size > _WRITE_BUFFER:
            self._flush()
        else:
            self._flush_soon()

    def _flush_soon(self) -> None:
        if not self._flushing:
            self._flushing = True
            self.loop.call_soon(self._flush_now)

    def _flush_now(self) -> None:
        self._flushing = False
        self._flush()

    def _flush(self) -> None:
        output = self._output
        if output and self._transport is not None and not self._transport.is_closing():
            self._transport.write(output[0] if len(output) == 1 else b"".join(output))
        output.clear()
        self._output_size = 0

    def leave(self) -> None:
        """Tells the client that no further calls are taken."""
        if not self._leaving:
            self._leaving = True
            self.write(frame.goaway(self._last, ErrorCode.NO_ERROR))

    def close(self) -> None:
        """Ends the connection once what was written is sent."""
        self._flush()
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        self._rest = self._rest + data if self._rest else data
        if self._behind:
            return
        # What is written meanwhile waits for the first step of the calls that begin here.
        waiting, self._flushing = self._flushing, True
        self._advance()
        if not waiting:
            self.loop.call_soon(self._flush_now)

    def _advance(self) -> None:
        """Takes the frames that are there in full; a great many of them in several turns, so that others get theirs."""
        data, self._rest = self._rest, b""
        try:
            position = 0
            if not self._greeted:
                if not self._greet(data):
                    self._rest = data
                    return
                position = len(PREFACE)
            end, frames = len(data), 0
            while end - position >= HEADER_SIZE:
                upper, lower, kind, flags, id = HEADER.unpack_from(data, position)
                size = upper << 8 | lower
                if size > frame.MAX_SIZE:
                    raise ConnectionFailure(ErrorCode.FRAME_SIZE_ERROR, f"a frame of {size} bytes")
                start = position + HEADER_SIZE
                if end - start < size:
                    break
                if frames == _TURN:
                    self._rest = data[position:]
                    self._go_on_later()
                    return
                frames += 1
                position = start + size
                self._take(kind, flags, id & MAX_WINDOW, data[start:position])
            self._rest = data[position:]
            if self._behind:
                self._behind = False
                self._resume()
        except ConnectionFailure as failure:
            self._fail(failure)

    def _go_on_later(self) -> None:
        """Leaves what is there to the next turn, and does not read meanwhile."""
        if not self._behind:
            self._behind = True
            self._pause()
        self.loop.call_soon(self._next_turn)

    def _next_turn(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._advance()

    def _pause(self) -> None:
        assert self._transport is not None
        self._pauses += 1
        if self._pauses == 1:
            self._transport.pause_reading()

    def _resume(self) -> None:
        self._pauses -= 1
        if self._pauses == 0 and self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def _greet(self, data: bytes) -> bool:
        """Whether `data` begins with the whole preface."""
        if not PREFACE.startswith(data[: len(PREFACE)]):
            raise ConnectionFailure(ErrorCode.PROTOCOL_ERROR, "this is not HTTP/2")
        if len(data) < len(PREFACE):
            return False
        self._greeted = True
        self._forget_greeting()
        return True

    def _forget_greeting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _fail(self, failure: ConnectionFailure) -> None:
        self._rest = b""
        self.write(frame.goaway(self._last, failure.code, str(failure)))
        for stream in list(self.streams.values()):
            stream.abandon()
        self.close()

    def _take(self, kind: int, flags: int, id: int, payload: bytes) -> None:
        if self._block is not None and kind != CONTINUATION:
            raise ConnectionFailure(ErrorCode.PROTOCOL_ERROR, "a header block is interrupted")
        if kind == DATA:
            self._data(flags, id, payload)
        elif kind == HEADERS:
            self._headers(flags, id, payload)
        elif not self._settled and kind != SETTINGS:
            raise ConnectionFailure(ErrorCode.PROTOCOL_ERROR, "the first frame is none of settings")
        elif kind == WINDOW_UPDATE:
            self._window_update(id, payload)
        elif kind == RST_STREAM:
            self._reset(id, payload)
        elif kind == SETTINGS:
            self._settings(flags, id, payload)
        elif kind == PING:
            self._ping(flags, id, payload)
        elif kind == CONTINUATION:
            self._continue(flags, id, payload)
        elif kind == PRIORITY:
            if not id:
                raise ConnectionFailure(ErrorCode.PROTOCOL_ERROR, "a priority of no stream")
        elif kind == PUSH_PROMISE:
            raise ConnectionFailure(ErrorCode.PROTOCOL_ERROR, "a client does not push")
        elif kind == GOAWAY and id:
            raise ConnectionFailure(ErrorCode.PROTOCOL_ERROR, "a farewell on a stream")

    def _data(self, flags: int, id: int, payload: bytes) -> None:
        size = len(payload)
        self._room -= size
        if self._room < _CONNECTION_WINDOW // 2:
            if self._room < 0:
                raise ConnectionFailure(ErrorCode.FLOW_CONTROL_ERROR, "more than the connection may carry")
            self.write(frame.window_update(0, _CONNECTION_WINDOW - self._room))
            self._room = _CONNECTION_WINDOW
        stream = self.streams.get(id)
        if stream is None:
            self._check_closed(id)
            return
        incoming = stream.incoming
        if incoming.ended:
            self._drop(stream, ErrorCode.STREAM_CLOSED)
            return
        if size > incoming.room:
            self._drop(stream, ErrorCode.FLOW_CONTROL_ERROR)
            return
        incoming.room -= size
        if flags & PADDED:
            payload = frame.without_padding(PADDED, payload)
        if flags & END_STREAM:
            incoming.ended = True
        incoming.put(payload)
        stream.arrived()

    def _headers(self, flags: int, id: int, payload: bytes) -> None:
        if not id & 1:
            raise ConnectionFailure(ErrorCode.PROTOCOL_ERROR, f"a client does not open stream {id}")
        if flags & ~(END_HEADERS | END_STREAM):
            payload = frame.without_padding(flags, payload)
        if flags & END_HEADERS:
            self._open(flags, id, payload)
        else:
            self._block = (id, flags, bytearray(payload))
            self._pieces = 0

    def _continue(self, flags: int, id: int, payload: bytes) -> None:
        if self._block is None or self._block[0] != id:
            raise ConnectionFailure(ErrorCode.PROTOCOL_ERROR, "a header block goes on that did not begin")
        _, first_flags, block = self._block
        block += payload
        self._pieces += 1
        if len(block) > 2 * self.limits.headers or self._pieces > _MAX_PIECES:
            raise ConnectionFailure(ErrorCode.ENHANCE_YOUR_CALM, "a header block without end")
        if flags & END_HEADERS:
            self._block = None
            self._open(first_flags, id, bytes(block))

    def _open(self, flags: int, id: int, block: bytes) -> None:
        try:
            head = self._head(block)
        except Malformed:
            head = None
        if id <= self._last:
            self._end_of(id, flags)
            return
        if not self._settled:
            raise ConnectionFailure(ErrorCode.PROTOCOL_ERROR, "the first frame is none of settings")
        if head is None or self._leaving or len(self.streams) >= self.limits.streams:
            self._last = id
            self._reply(frame.reset(id, ErrorCode.PROTOCOL_ERROR if head is None else ErrorCode.REFUSED_STREAM))
            return
        self._last = id
        stream = self.streams[id] = Stream(self, id, head, self._initial_window)
        if flags & END_STREAM:
            stream.incoming.ended = True
        self._serve(stream)
        if self.stuck and not self._crowded and len(self.streams) > _MAX_UNREAD:
            self._crowded = True
            self._pause()

    def _end_of(self, id: int, flags: int) -> None:
        """A block on a stream that was there before: trailers, of which clients of gRPC have no use."""
        stream = self.streams.get(id)
        if stream is not None and flags & END_STREAM:
            stream.incoming.ended = True
            stream.arrived()
        elif stream is not None:
            self._drop(stream, ErrorCode.PROTOCOL_ERROR)

    def _head(self, block: bytes) -> Head:
        """What `block` says. Clients say the same again and again."""
        decoder, version = self._decoder, self._decoder.version
        if self._heads_version == version and (head := self._heads.get(block)) is not None:
            return head
        try:
            fields, whole = decoder.decode(block)
        except (ValueError, IndexError) as error:
            raise ConnectionFailure(ErrorCode.COMPRESSION_ERROR, str(error)) from None
        head = head_of(fields, whole=whole)
        if version != decoder.version or self._heads_version != version or len(self._heads) >= _REMEMBERED_BLOCKS:
            self._heads.clear()
            self._heads_version = decoder.version
        if version == decoder.version and len(block) <= _REMEMBERED_SIZE:
            self._heads[block] = head
        return head

    def _window_update(self, id: int, payload: bytes) -> None:
        increment = frame.number_in(payload) & MAX_WINDOW
        if id:
            stream = self.streams.get(id)
            if stream is None:
                self._check_closed(id)
            elif not increment:
                self._drop(stream, ErrorCode.PROTOCOL_ERROR)
            elif stream.window + increment > MAX_WINDOW:
                self._drop(stream, ErrorCode.FLOW_CONTROL_ERROR)
            else:
                stream.window += increment
                stream.room_again()
            return
        if not increment:
            raise ConnectionFailure(ErrorCode.PROTOCOL_ERROR, "a window grows by nothing")
        if self.window + increment > MAX_WINDOW:
            raise ConnectionFailure(ErrorCode.FLOW_CONTROL_ERROR, "a window grows too large")
        self.window += increment
        self._wake_all()

    def _reset(self, id: int, payload: bytes) -> None:
        frame.number_in(payload)
        stream = self.streams.get(id)
        if stream is None:
            self._check_closed(id)
        else:
            stream.abandon()

    def _settings(self, flags: int, id: int, payload: bytes) -> None:
        if id:
            raise ConnectionFailure(ErrorCode.PROTOCOL_ERROR, "settings on a stream")
        self._settled = True
        if flags & ACK:
            return
        for name, value in frame.settings_in(payload):
            if name == frame.INITIAL_WINDOW:
                self._resize_windows(value)
            elif name == frame.MAX_FRAME_SIZE:
                if not frame.MAX_SIZE <= value < 1 << 24:
                    raise ConnectionFailure(ErrorCode.PROTOCOL_ERROR, f"frames of at most {value} bytes")
                self.max_frame = value
        self._reply(frame.frame(SETTINGS, ACK, 0))

    def _resize_windows(self, size: int) -> None:
        if size > MAX_WINDOW:
            raise ConnectionFailure(ErrorCode.FLOW_CONTROL_ERROR, "windows too large")
        change = size - self._initial_window
        self._initial_window = size
        for stream in self.streams.values():
            stream.window += change
            if stream.window > MAX_WINDOW:
                raise ConnectionFailure(ErrorCode.FLOW_CONTROL_ERROR, "windows too large")
        self._wake_all()

    def _ping(self, flags: int, id: int, payload: bytes) -> None:
        if id:
            raise ConnectionFailure(ErrorCode.PROTOCOL_ERROR, "a ping on a stream")
        if len(payload) != 8:
            raise ConnectionFailure(ErrorCode.FRAME_SIZE_ERROR, "a ping has eight bytes")
        if not flags & ACK:
            self._reply(frame.frame(PING, ACK, 0, payload))

    def _reply(self, answer: bytes) -> None:
        """Writes what the client caused; one that causes much and reads nothing is cut off."""
        self.write(answer)
        if self.stuck:
            self._replies += 1
            if self._replies > _MAX_REPLIES:
                self.abort()

    def _drop(self, stream: Stream, code: ErrorCode) -> None:
        """Ends a stream on which the client broke the rules."""
        self._reply(frame.reset(stream.id, code))
        stream.abandon()

    def _check_closed(self, id: int) -> None:
        """What comes late for a stream that is over means nothing; of one that never was, it breaks the rules."""
        if id > self._last or not id & 1:
            raise ConnectionFailure(ErrorCode.PROTOCOL_ERROR, f"there was no stream {id}")

    def _wake_all(self) -> None:
        for stream in list(self.blocked.values()):
            stream.room_again()
