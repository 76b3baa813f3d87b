"""Streams that this program opens in the daemon (the Streaming service)."""

from __future__ import annotations

import asyncio
import base64
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from google.protobuf.any_pb2 import Any
from google.protobuf.empty_pb2 import Empty

from orlop.api.services.streaming.v1 import streaming_pb2
from orlop.client.remote import Remote
from orlop.core.scope import Scope
from orlop.core.typed import Typed
from orlop.core.wire import common
from orlop.errors import Canceled, OrlopError, Unavailable


def stream_id(purpose: str) -> str:
    """An id of the form that clients use: `progress-<nanoseconds>-<four characters>`."""
    random = base64.urlsafe_b64encode(os.urandom(3)).decode()
    return f"{purpose}-{time.time_ns() % 1_000_000_000}-{random}"


class Streaming(Remote):
    service = streaming_pb2.DESCRIPTOR.services_by_name["Streaming"]

    @asynccontextmanager
    async def open(self, scope: Scope, purpose: str) -> AsyncIterator[ClientStream]:
        """A stream that the daemon knows by `id` when this is entered. Leaving it closes it."""
        stream = ClientStream(self, scope, stream_id(purpose))
        try:
            await stream.begin()
            yield stream
        finally:
            await stream.close()


class ClientStream:
    """This side of a stream (`core.stream.Stream`)."""

    def __init__(self, service: Streaming, scope: Scope, id: str) -> None:
        self.id = id
        self._messages: asyncio.Queue[Any | None] = asyncio.Queue(8)
        self._answers = service._duplex("Stream", self._requests(), scope)
        self._closed = False

    async def begin(self) -> None:
        """Raises Unavailable where the daemon does not confirm the stream."""
        await self.send(common.pack(streaming_pb2.StreamInit(id=self.id)))
        first = await self.receive()
        if first is None:
            raise Unavailable(f"stream {self.id!r}: the daemon ended it at once")
        common.parsed(first, Empty())

    async def send(self, message: Typed) -> None:
        if self._closed:
            raise Canceled(f"stream {self.id!r}")
        await self._messages.put(Any(type_url=message.type_url, value=message.value))

    async def receive(self) -> Typed | None:
        answer = await anext(self._answers, None)
        return None if answer is None else common.typed_of(answer)

    async def close(self) -> None:
        """Sends no more; what the daemon still sends is not read."""
        if self._closed:
            return
        self._closed = True
        close = getattr(self._answers, "aclose", None)
        try:
            await asyncio.wait_for(self._messages.put(None), 1.0)
            if close is not None:
                await close()
        except (OrlopError, TimeoutError, RuntimeError):
            return  # it has ended in another way

    async def finish(self) -> None:
        """Sends no more, and waits until the daemon has ended the stream too."""
        await self._messages.put(None)
        while await self.receive() is not None:
            pass

    async def _requests(self) -> AsyncIterator[Any]:
        while (message := await self._messages.get()) is not None:
            yield message
