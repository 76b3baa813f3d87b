"""Credentials that the client of a transfer is asked for over a stream."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from orlop.api.types.transfer import registry_pb2 as pb
from orlop.core.registry import Credential
from orlop.core.stream import Stream
from orlop.core.wire import common
from orlop.errors import Unauthenticated


class StreamCredentials:
    """Implements `core.registry.Credentials`: one question at a time, each answered before the next."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._one_at_a_time = asyncio.Lock()

    async def of(self, host: str, reference: str, challenges: Sequence[str]) -> Credential | None:
        request = pb.AuthRequest(host=host, reference=reference, wwwauthenticate=challenges)
        async with self._one_at_a_time:
            await self._stream.send(common.pack(request))
            answer = await self._stream.receive()
        if answer is None:
            raise Unauthenticated(f"{host}: the client was asked for credentials and ended the stream")
        response = common.parsed(answer, pb.AuthResponse())
        match response.authType:
            case pb.AuthType.CREDENTIALS:
                return Credential(response.username, response.secret)
            case pb.AuthType.REFRESH:
                return Credential("", response.secret)
        return None
