"""One call on a connection: its request's messages come in, messages and a status go out."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING
from urllib.parse import quote

from orlop.errors import Canceled, DeadlineExceeded
from orlop.rpc.http2 import frame, hpack
from orlop.rpc.http2.frame import DATA, END_HEADERS, END_STREAM, HEADER, HEADERS, ErrorCode
from orlop.rpc.http2.head import Head
from orlop.rpc.http2.incoming import Incoming
from orlop.rpc.status import CANCELED_TEXT, DEADLINE_TEXT

if TYPE_CHECKING:
    from orlop.rpc.http2.connection import Connection

_BURST = 256 << 10
"""Bytes of a message that are handed to the socket at once."""
_PREFIX_SIZE = 5
_PRINTABLE = "".join(chr(code) for code in range(0x20, 0x7F) if code != 0x25)


class Gone(Exception):
    """Nobody wants the rest of the call: the client cancelled it, or is gone, or it had its status."""


def _headers(status: int, *more: tuple[str, str]) -> bytes:
    fields = ((":status", str(status)), ("content-type", "application/grpc"), *more)
    return b"".join(hpack.literal(name, value) for name, value in fields)


_HEADERS = _headers(200)
_OK = hpack.literal("grpc-status", "0")
_HEADERS_START = HEADER.pack(0, len(_HEADERS), HEADERS, END_HEADERS, 0)[:5]
_OK_START = HEADER.pack(0, len(_OK), HEADERS, END_HEADERS | END_STREAM, 0)[:5]


class Stream:
    """A call as the server sees it. `task` serves it and is cancelled when nobody wants the rest."""

    __slots__ = (
        "_headed",
        "_reader",
        "_writer",
        "closed",
        "connection",
        "deadline",
        "head",
        "id",
        "incoming",
        "task",
        "window",
    )

    def __init__(self, connection: Connection, id: int, head: Head, window: int) -> None:
        self.connection = connection
        self.id = id
        self.head = head
        self.incoming = Incoming(connection.limits.message)
        self.window = window
        """Bytes that the client allows us to send on this stream."""
        self.closed = False
        self.task: asyncio.Task[None] | None = None
        self.deadline: asyncio.TimerHandle | None = None
        self._headed = False
        self._reader: asyncio.Future[None] | None = None
        self._writer: asyncio.Future[None] | None = None

    async def receive(self) -> bytes | None:
        """The next message; None once the client has sent its last.

        Raises OrlopError if what came is no message or too large a one, or if the client gave up.
        """
        incoming = self.incoming
        while (message := incoming.take()) is None:
            if incoming.ended:
                return None
            if self.closed:
                raise Canceled.verbatim(CANCELED_TEXT)
            self._grant(waited_for=True)
            self._reader = self.connection.loop.create_future()
            try:
                await self._reader
            finally:
                self._reader = None
        self._grant(waited_for=False)
        return message

    def arrived(self) -> None:
        """The connection has put something into `incoming`, or its end."""
        if self._reader is not None:
            if self.incoming.ready:
                _wake(self._reader)
            else:
                self._grant(waited_for=True)

    async def send(self, message: bytes) -> None:
        """Sends one message as fast as the client takes it. Raises Gone."""
        connection = self.connection
        rest = memoryview(b"\0" + len(message).to_bytes(4, "big") + message)
        while rest:
            if self.closed:
                raise Gone
            size = min(len(rest), self.window, connection.window, _BURST)
            if size <= 0 or connection.stuck:
                await self._room()
            else:
                self._send_data(rest[:size])
                rest = rest[size:]

    async def answer(self, message: bytes) -> None:
        """Sends the only message, and the status that all went well. Raises Gone."""
        connection, size = self.connection, _PREFIX_SIZE + len(message)
        if size > min(connection.max_frame, self.window, connection.window) or connection.stuck:
            await self.send(message)
            self.end()
            return
        if self.closed:
            raise Gone
        connection.window -= size
        id = self.id.to_bytes(4, "big")
        data = HEADER.pack(size >> 8, size & 0xFF, DATA, 0, self.id)
        length = (size - _PREFIX_SIZE).to_bytes(4, "big")
        connection.write(b"".join((_HEADERS_START, id, _HEADERS, data, b"\0", length, message, _OK_START, id, _OK)))
        self._close()

    def end(self, code: int = 0, text: str = "", *, status: int = 200) -> None:
        """Sends the status of the call; nothing if the client is gone."""
        if self.closed:
            return
        block = b"" if self._headed else _headers(status)
        block += hpack.literal("grpc-status", str(code))
        if text:
            block += hpack.literal("grpc-message", quote(text, safe=_PRINTABLE))
        self.connection.write(frame.frame(HEADERS, END_HEADERS | END_STREAM, self.id, block))
        self._close()

    def expire(self) -> None:
        """Tells the client that its deadline has passed, and the servicer that nobody waits."""
        self.end(DeadlineExceeded.code, DEADLINE_TEXT)
        self.abandon()

    def abandon(self) -> None:
        """Nobody wants the rest."""
        self._leave()
        if self.task is not None:
            self.task.cancel()

    def room_again(self) -> None:
        """There may be room to send now."""
        _wake(self._writer)

    def _send_data(self, part: memoryview) -> None:
        connection = self.connection
        self.window -= len(part)
        connection.window -= len(part)
        pieces: list[bytes | memoryview] = []
        if not self._headed:
            pieces += (_HEADERS_START, self.id.to_bytes(4, "big"), _HEADERS)
            self._headed = True
        for start in range(0, len(part), connection.max_frame):
            piece = part[start : start + connection.max_frame]
            pieces += (HEADER.pack(len(piece) >> 8, len(piece) & 0xFF, DATA, 0, self.id), piece)
        connection.write(b"".join(pieces))

    async def _room(self) -> None:
        self._writer = self.connection.loop.create_future()
        self.connection.blocked[self.id] = self
        try:
            await self._writer
        finally:
            self._writer = None
            self.connection.blocked.pop(self.id, None)

    def _grant(self, *, waited_for: bool) -> None:
        granted = self.incoming.grant(waited_for=waited_for)
        if granted and not self.closed:
            self.connection.write(frame.window_update(self.id, granted))

    def _close(self) -> None:
        """The status is sent. A client that still sends is told that nobody reads."""
        if not self.incoming.ended:
            self.connection.write(frame.reset(self.id, ErrorCode.NO_ERROR))
        self._leave()

    def _leave(self) -> None:
        self.closed = True
        self.connection.streams.pop(self.id, None)
        if self.deadline is not None:
            self.deadline.cancel()
            self.deadline = None
        if self._reader is not None:
            _wake(self._reader)
        if self._writer is not None:
            _wake(self._writer)


def _wake(waiter: asyncio.Future[None] | None) -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(None)
