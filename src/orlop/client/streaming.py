"""Streams that this program opens in the daemon (the Streaming service)."""

from __future__ import annotations

import asyncio
import base64
import os
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

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
        answers = service._duplex("Stream", self._requests(), scope)
        self._answers = cast("AsyncGenerator[Any, None]", answers)  # channels give what can be closed
        self._ended = False

    async def begin(self) -> None:
        """Raises Unavailable where the daemon does not confirm the stream."""
        await self.send(common.pack(streaming_pb2.StreamInit(id=self.id)))
        first = await self.receive()
        if first is None:
            raise Unavailable(f"stream {self.id!r}: the daemon ended it at once")
        common.parsed(first, Empty())

    async def send(self, message: Typed) -> None:
        if self._ended:
            raise Canceled(f"stream {self.id!r}")
        await self._messages.put(Any(type_url=message.type_url, value=message.value))

    async def receive(self) -> Typed | None:
        answer = await anext(self._answers, None)
        return None if answer is None else common.typed_of(answer)

    async def end(self) -> None:
        """Sends no more; the daemon has what was sent, and may still send."""
        if not self._ended:
            self._ended = True
            await self._messages.put(None)

    async def close(self) -> None:
        """Leaves the stream: what the daemon has not taken yet, it does not get."""
        self._ended = True
        # Where the daemon has ended the call, nothing else wakes what waits for the next message.
        while not self._messages.empty():
            self._messages.get_nowait()
        self._messages.put_nowait(None)
        try:
            await self._answers.aclose()
        except (OrlopError, RuntimeError):
            return  # it has ended in another way, or somebody still reads it and is told of the end

    async def _requests(self) -> AsyncIterator[Any]:
        while (message := await self._messages.get()) is not None:
            yield message
