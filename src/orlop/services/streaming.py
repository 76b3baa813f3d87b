"""The service `containerd.services.streaming.v1.Streaming`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from google.protobuf.any_pb2 import Any
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import DecodeError

from orlop.api.services.streaming.v1 import streaming_pb2
from orlop.core.typed import Typed
from orlop.core.wire import common
from orlop.errors import Unknown
from orlop.rpc.scope import scope_of
from orlop.rpc.service import Call
from orlop.transfer.streams import OpenStreams

_INIT = streaming_pb2.StreamInit.DESCRIPTOR.full_name


class StreamingService:
    def __init__(self, streams: OpenStreams) -> None:
        self._streams = streams

    async def Stream(self, requests: AsyncIterator[Any], call: Call) -> AsyncIterator[Any]:
        """The first message names the stream and is answered with an Empty when the stream can be used; all others
        are for whoever does."""
        first = await anext(requests, None)
        if first is None:
            raise Unknown("EOF")
        stream = self._streams.open(scope_of(call), _id_of(common.typed_of(first)))
        reading = asyncio.create_task(stream.feed(_typed(requests)))
        try:
            yield _any(common.pack(Empty()))
            async for message in stream.outgoing():
                yield _any(message)
        finally:
            stream.drop()
            reading.cancel()
            await asyncio.wait([reading])


def _id_of(message: Typed) -> str:
    if message.type_name != _INIT:
        raise Unknown(f'can\'t unmarshal type "{message.type_url}" to output "{_INIT}"')
    try:
        return streaming_pb2.StreamInit.FromString(message.value).id
    except DecodeError as error:
        raise Unknown(f"{_INIT}: {error}") from None


async def _typed(messages: AsyncIterator[Any]) -> AsyncIterator[Typed]:
    async for message in messages:
        yield common.typed_of(message)


def _any(typed: Typed) -> Any:
    return Any(type_url=typed.type_url, value=typed.value)
