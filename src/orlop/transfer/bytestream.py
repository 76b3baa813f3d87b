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
"""Bytes of a `Data` message, at most."""
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

    The last bytes are kept back until `finish`, so that they can be cut to make the receiver answer: customarily it
    adds room when it has less than `CUSTOMARY_WINDOW`, which shows that it has taken what was sent before. A receiver
    that gets no answer to its call before that does not end before it has written everything.
    """

    def __init__(self, stream: Stream, patience: float = PATIENCE) -> None:
        self._stream = stream
        self._patience = patience
        self._window = 0
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
        try:
            async with asyncio.timeout(self._patience):
                await self._until(CUSTOMARY_WINDOW)
        except TimeoutError:
            pass  # a receiver of other customs; what it has room for it shall have
        await self._send(min(len(self._kept), max(self._window - CUSTOMARY_WINDOW, 0)))
        await self._send(len(self._kept))
        try:
            async with asyncio.timeout(self._patience):
                await self._until(CUSTOMARY_WINDOW)
        except (TimeoutError, Canceled):
            pass  # it has everything as far as can be told
        await self._stream.close()

    async def _send(self, size: int) -> None:
        at = 0
        with memoryview(self._kept) as view:
            while at < size:
                await self._until(1)
                piece = bytes(view[at : at + min(PIECE, self._window)])
                await self._stream.send(common.pack(streaming_pb2.Data(data=piece)))
                at += len(piece)
                self._window -= len(piece)
        del self._kept[:size]

    async def _until(self, window: int) -> None:
        """Waits until the receiver has that much room."""
        while self._window < window:
            message = await self._stream.receive()
            if message is None:
                raise Canceled("the receiver of the stream is gone")
            self._window += common.parsed(message, streaming_pb2.WindowUpdate()).update
