"""The streams that clients have open, by namespace and id.

A stream ends with its client's call, with the lease it was opened under, or when nobody has asked for it in time.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable

from orlop.core.scope import Scope
from orlop.core.typed import Typed
from orlop.errors import Canceled, NotFound, Unknown

DEPTH = 32
"""Messages that wait in a stream, each way, before its writer has to."""
UNCLAIMED = 300.0
"""Seconds that a stream is kept for a call that names it."""


class Pipe:
    """Messages one way. After `end` what was put can still be taken, after `drop` it cannot."""

    def __init__(self, depth: int = DEPTH) -> None:
        self._depth = depth
        self._messages: deque[Typed] = deque()
        self._room = asyncio.Event()
        self._some = asyncio.Event()
        self.ended = False

    async def put(self, message: Typed) -> None:
        """Waits for room. Raises Canceled when the pipe has ended."""
        while len(self._messages) >= self._depth and not self.ended:
            self._room.clear()
            await self._room.wait()
        if self.ended:
            raise Canceled("stream has ended")
        self._messages.append(message)
        self._some.set()

    async def get(self) -> Typed | None:
        """The next message; None when there will be no more."""
        while not self._messages:
            if self.ended:
                return None
            self._some.clear()
            await self._some.wait()
        self._room.set()
        return self._messages.popleft()

    def end(self) -> None:
        self.ended = True
        self._room.set()
        self._some.set()

    def drop(self) -> None:
        self._messages.clear()
        self.end()


class OpenStream:
    """The daemon's end of a stream (`core.stream.Stream`), and what the Streaming service moves through it."""

    def __init__(self, id: str, lease: str, on_end: Callable[[], None]) -> None:
        self.id = id
        self.lease = lease
        self._incoming, self._outgoing = Pipe(), Pipe()
        self._on_end = on_end

    async def send(self, message: Typed) -> None:
        await self._outgoing.put(message)

    async def receive(self) -> Typed | None:
        return await self._incoming.get()

    async def close(self) -> None:
        self._outgoing.end()
        self._incoming.drop()
        self._on_end()

    async def feed(self, messages: AsyncIterator[Typed]) -> None:
        """Takes what the client sends, until it sends no more or nobody listens."""
        try:
            async for message in messages:
                await self._incoming.put(message)
        except Canceled:
            return
        finally:
            self._incoming.end()

    async def outgoing(self) -> AsyncIterator[Typed]:
        """What is sent to the client, until the stream is closed."""
        while (message := await self._outgoing.get()) is not None:
            yield message

    def drop(self) -> None:
        """The client is gone, or shall be told so: nothing waits for it any more."""
        self._incoming.end()
        self._outgoing.drop()
        self._on_end()


class OpenStreams:
    """Implements `core.stream.Streams`; the Streaming service opens what others get."""

    def __init__(self, unclaimed: float = UNCLAIMED) -> None:
        self._unclaimed = unclaimed
        self._streams: dict[tuple[str, str], OpenStream] = {}
        self._timers: dict[OpenStream, asyncio.TimerHandle] = {}

    def open(self, scope: Scope, id: str) -> OpenStream:
        """Raises Unknown, as clients know it, where the id is in use."""
        key = (scope.namespace, id)
        if key in self._streams:
            raise Unknown(f'stream "{id}": already exists')
        stream = OpenStream(id, scope.lease, lambda: self._forget(key, stream))
        self._streams[key] = stream
        self._timers[stream] = asyncio.get_running_loop().call_later(self._unclaimed, stream.drop)
        return stream

    def get(self, scope: Scope, id: str) -> OpenStream:
        stream = self._streams.get((scope.namespace, id))
        if stream is None:
            raise NotFound(f'stream "{id}"')
        if (timer := self._timers.pop(stream, None)) is not None:
            timer.cancel()
        return stream

    def end_lease(self, namespace: str, lease: str) -> None:
        """Drops the streams that were opened under a lease which has ended."""
        for (owner, _), stream in list(self._streams.items()):
            if owner == namespace and stream.lease == lease:
                stream.drop()

    async def close(self) -> None:
        for stream in list(self._streams.values()):
            stream.drop()

    def _forget(self, key: tuple[str, str], stream: OpenStream) -> None:
        if self._streams.get(key) is stream:
            del self._streams[key]
        if (timer := self._timers.pop(stream, None)) is not None:
            timer.cancel()
