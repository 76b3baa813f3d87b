"""Bytes over a stream, as fast as their receiver wants them (`containerd.types.transfer`: `Data`, `WindowUpdate`).

The receiver tells how many bytes it has room for, and again whenever there is more; the sender sends no more than that.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from orlop.api.types.transfer import streaming_pb2
from orlop.core.stream import Stream
from orlop.core.wire import common
from orlop.errors import Canceled

PIECE = 32 << 10
"""Bytes of a `Data` message, at most; only the last may have more."""
CUSTOMARY_WINDOW = 64 << 10
"""The room that receivers keep open: whenever they have less, they add as much again."""
WINDOW = 4 << 20
"""The room that this receiver keeps open, so that a sender need not wait for each piece to be acknowledged."""
PATIENCE = 5.0
"""Seconds that a sender waits at its end for the receiver to take the last bytes."""


async def receive(stream: Stream, window: int = WINDOW) -> AsyncIterator[bytes]:
    """What the other side sends, until it ends. Closes the stream when it is left."""
    room = 0
    try:
        while True:
            if room <= window // 2:
                await stream.send(common.pack(streaming_pb2.WindowUpdate(update=window - room)))
                room = window
            message = await stream.receive()
            if message is None:
                return
            data = common.parsed(message, streaming_pb2.Data()).data
            room -= len(data)
            yield data
    finally:
        await stream.close()


class ByteSender:
    """Sends bytes (`core.transfer.ByteSink`).

    Customarily a receiver adds `CUSTOMARY_WINDOW` of room whenever it has less than that, after it has handed on what
    came. So it answers to what crosses a multiple of that size: the last bytes are kept back until `finish`, to be sent
    as one message from such a multiple on. When the room for it comes, the receiver has taken everything; without that,
    a client could end before it has written the end of what it was sent.
    """

    def __init__(self, stream: Stream, patience: float = PATIENCE) -> None:
        self._stream = stream
        self._patience = patience
        self._window = 0
        self._sent = 0
        self._kept = bytearray()

    async def write(self, data: bytes) -> None:
        """Raises Canceled where the other side is gone."""
        self._kept += data
        if len(self._kept) > 2 * CUSTOMARY_WINDOW:
            await self._send(len(self._kept) - CUSTOMARY_WINDOW)

    async def flush(self) -> None:
        """Sends what is kept back: for what is read while it comes."""
        await self._send(len(self._kept))

    async def finish(self) -> None:
        total = self._sent + len(self._kept)
        last = total - max(total - 1, 0) % CUSTOMARY_WINDOW - 1
        await self._send(max(last - self._sent, 0))
        await self._settle()
        await self._send(len(self._kept), CUSTOMARY_WINDOW)
        await self._settle()
        await self._stream.close()

    async def _send(self, size: int, piece_size: int = PIECE) -> None:
        at = 0
        with memoryview(self._kept) as view:
            while at < size:
                await self._until(1)
                piece = bytes(view[at : min(at + piece_size, at + self._window, size)])
                await self._stream.send(common.pack(streaming_pb2.Data(data=piece)))
                at += len(piece)
                self._window -= len(piece)
        self._sent += at
        del self._kept[:size]

    async def _settle(self) -> None:
        """Waits for the receiver to have as much room as is customary; one of other customs is not waited for long."""
        try:
            async with asyncio.timeout(self._patience):
                await self._until(CUSTOMARY_WINDOW)
        except (TimeoutError, Canceled):
            return

    async def _until(self, window: int) -> None:
        """Waits until the receiver has that much room."""
        while self._window < window:
            message = await self._stream.receive()
            if message is None:
                raise Canceled("the receiver of the stream is gone")
            self._window += common.parsed(message, streaming_pb2.WindowUpdate()).update
