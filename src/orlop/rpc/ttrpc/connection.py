"""What both ends of a connection share: frames in, frames out, and not more of either than the other side takes."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import cast

from orlop.errors import Unknown
from orlop.rpc.ttrpc.frame import HEADER, Frame, FrameParser

_SMALL = 1 << 16
"""Up to here a payload is copied behind its header, to go out with one system call."""


class TtrpcClosed(Unknown):
    """The connection ended before the answer came. Whether the call was carried out is not known."""

    def __init__(self) -> None:
        super().__init__("ttrpc: closed")


class Connection(asyncio.Protocol):
    """One end of a ttrpc connection. Subclasses say what a frame means."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self._parser = FrameParser()
        self._lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._write_paused = False
        self._read_paused = False
        self._writers: deque[asyncio.Future[None]] = deque()

    # What subclasses define.

    def received(self, frame: Frame) -> None:
        raise AssertionError("a subclass says what a frame means")

    def ended(self) -> None:
        """The connection is gone: nothing more comes in or goes out."""

    def overloaded(self) -> bool:
        """Whether so much is under way that nothing more should be read.

        Only one end may ever say so for the reason that its answers are not taken, or both could wait for each other.
        """
        return False

    # What they use.

    @property
    def is_open(self) -> bool:
        return self.transport is not None and not self.transport.is_closing()

    def send(self, stream: int, kind: int, flags: int, payload: bytes) -> None:
        """Queues a frame; await `writable` first, so that the queue stays short."""
        transport = self.transport
        if transport is None or transport.is_closing():
            return
        header = HEADER.pack(len(payload), stream, kind, flags)
        if len(payload) <= _SMALL:
            transport.write(header + payload)
        else:
            transport.write(header)
            transport.write(payload)

    async def writable(self) -> None:
        """Waits until the peer has taken what was queued. Returns at once when the connection is gone."""
        while self._write_paused and self.is_open:
            writer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._writers.append(writer)
            try:
                await writer
            finally:
                # One that was woken but could not go on (it was cancelled) must not be the last to wake.
                self._wake_writers()

    def regulate(self) -> None:
        """Stops or resumes reading, after something changed that `overloaded` looks at."""
        if self.transport is None or self.transport.is_closing():
            return
        wanted = self.overloaded()
        if wanted != self._read_paused:
            self._read_paused = wanted
            if wanted:
                self.transport.pause_reading()
            else:
                self.transport.resume_reading()

    async def wait_closed(self) -> None:
        """Returns when the connection is gone, whoever ended it."""
        await asyncio.shield(self._lost)

    def abort(self) -> None:
        if self.transport is not None:
            self.transport.abort()

    # What the event loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's is not a subclass

    def data_received(self, data: bytes) -> None:
        for frame in self._parser.feed(data):
            self.received(frame)

    def eof_received(self) -> bool:
        self.ended()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.ended()
        if not self._lost.done():
            self._lost.set_result(None)
        self._write_paused = False
        self._wake_writers()

    def pause_writing(self) -> None:
        self._write_paused = True
        self.regulate()

    def resume_writing(self) -> None:
        self._write_paused = False
        self.regulate()
        self._wake_writers()

    def _wake_writers(self) -> None:
        """Wakes the writer that has waited longest; it wakes the next one when it has looked again."""
        while self._writers and not (self._write_paused and self.is_open):
            writer = self._writers.popleft()
            if not writer.done():
                writer.set_result(None)
                return
