"""What every store of a remote daemon is made of: one service over a channel."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from typing import Any, ClassVar, cast

from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import Message

from orlop.core.scope import Scope
from orlop.rpc.channel import Channel
from orlop.rpc.scope import headers_of
from orlop.rpc.service import Method


class Remote:
    """The methods of `service`, each call in a scope of its own. Errors are those of `orlop.errors`."""

    service: ClassVar[ServiceDescriptor]

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._methods = {method.name: Method.of(method, None) for method in self.service.methods}

    async def _call(self, name: str, request: Message, scope: Scope | None = None) -> Any:
        return await self._channel.unary(
            self._path(name), request, self._methods[name].response, metadata=_headers(scope)
        )

    def _stream(self, name: str, request: Message, scope: Scope | None = None) -> AsyncGenerator[Any, None]:
        path, response = self._path(name), self._methods[name].response
        answers = self._channel.server_stream(path, request, response, metadata=_headers(scope))
        return cast("AsyncGenerator[Any, None]", answers)  # channels give what can be closed

    def _duplex(self, name: str, requests: AsyncIterator[Message], scope: Scope | None = None) -> AsyncIterator[Any]:
        return self._channel.duplex(self._path(name), requests, self._methods[name].response, metadata=_headers(scope))

    def _path(self, name: str) -> str:
        return f"/{self.service.full_name}/{name}"


def _headers(scope: Scope | None) -> Mapping[str, str]:
    return {} if scope is None else headers_of(scope)
