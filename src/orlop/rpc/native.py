"""The daemon's own gRPC engine: HTTP/2 on the event loop, without a thread or a library between socket and servicer."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable
from contextlib import aclosing
from typing import Any, Self

from google.protobuf.message import Message

from orlop.errors import Internal, OrlopError
from orlop.rpc.dispatch import MAX_METADATA, MAX_STREAMS, Limits, paths, shortened, unknown
from orlop.rpc.http2.connection import Allowance, Connection
from orlop.rpc.http2.stream import Gone, Stream
from orlop.rpc.service import Call, Method, Service
from orlop.rpc.status import status_of

_BACKLOG = 4096
_PATIENCE = 0.05
"""Seconds that a call that is refused may take to send something."""
_FAREWELL_SECONDS = 1.0
"""How long the end of the server waits for clients to read the last that they are told."""


class NativeEngine:
    def __init__(
        self, services: Iterable[Service], limits: Limits, on_connection: Callable[[], None] | None = None
    ) -> None:
        services = tuple(services)
        self._services = {service.name: service for service in services}
        self._methods = paths(services)
        self._limits = limits
        self._on_connection = on_connection
        self._allowed = Allowance(message=limits.receive, headers=MAX_METADATA, streams=MAX_STREAMS)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._listener: asyncio.Server | None = None
        self._connections: set[Connection] = set()
        self._deserted = asyncio.Event()
        self._deserted.set()
        self._calls: set[asyncio.Task[None]] = set()

    async def start(self, address: str) -> None:
        """Listens on the unix socket `address`, which must not be there yet, in a folder that only we can enter."""
        self._loop = asyncio.get_running_loop()
        self._listener = await self._loop.create_unix_server(self._connect, address, backlog=_BACKLOG)

    async def stop(self, grace: float | None) -> None:
        if self._listener is not None:
            self._listener.close()
        for one in self._connections:
            one.leave()
        if self._calls and grace:
            await asyncio.wait(self._calls, timeout=grace)
        calls = list(self._calls)
        for call in calls:
            call.cancel()
        if calls:
            await asyncio.wait(calls)
        for one in list(self._connections):
            one.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_FAREWELL_SECONDS):
                await self._deserted.wait()
        for one in list(self._connections):
            one.abort()

    def _connect(self) -> Connection:
        return Connection(self._allowed, self._begin, self._connected, self._disconnected)

    def _connected(self, one: Connection) -> None:
        self._connections.add(one)
        self._deserted.clear()
        if self._on_connection is not None:
            self._on_connection()

    def _disconnected(self, one: Connection) -> None:
        self._connections.discard(one)
        if not self._connections:
            self._deserted.set()

    def _begin(self, stream: Stream) -> None:
        head = stream.head
        found = self._methods.get(head.path)
        if head.refusal is not None:
            status, error = head.refusal
            call = self._refuse(stream, error, status)
        elif found is None:
            call = self._refuse(stream, unknown(head.path, self._services))
        elif found.server_streaming:
            call = self._run_stream(stream, found)
        else:
            call = self._run_unary(stream, found)
        assert self._loop is not None
        stream.task = task = self._loop.create_task(call)
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)
        if head.timeout is not None:
            stream.deadline = self._loop.call_later(head.timeout, stream.expire)

    async def _refuse(self, stream: Stream, error: OrlopError, status: int = 200) -> None:
        """Answers with `error` once the client has sent something, or soon.

        A client of grpc.aio whose first message meets a status loses that status.
        """
        with contextlib.suppress(TimeoutError, OrlopError):
            async with asyncio.timeout(_PATIENCE):
                await stream.receive()
        stream.end(error.code, shortened(str(error)), status=status)

    async def _run_unary(self, stream: Stream, method: Method) -> None:
        try:
            request = await self._request(stream, method)
            response = await method.function(request, Call(stream.head.metadata))  # type: ignore[misc]
            await stream.answer(self._limits.encode(response))
        except BaseException as error:
            self._fail(stream, error)

    async def _run_stream(self, stream: Stream, method: Method) -> None:
        try:
            request = await self._request(stream, method)
            async with aclosing(method.function(request, Call(stream.head.metadata))) as responses:  # type: ignore[misc]
                async for response in responses:
                    await stream.send(self._limits.encode(response))
            stream.end()
        except BaseException as error:
            self._fail(stream, error)

    async def _request(self, stream: Stream, method: Method) -> Any:
        """What the servicer's function is called with: the only message, or all as they come."""
        if method.client_streaming:
            return _Requests(stream, method, self._limits)
        payload = await stream.receive()
        if payload is None:
            raise Internal.verbatim("the client sent no request")
        return self._limits.decode(method, payload)

    def _fail(self, stream: Stream, error: BaseException) -> None:
        """Tells the client of `error`. One that is gone already is told nothing by the stream."""
        if isinstance(error, Gone):
            return
        if not isinstance(error, (Exception, asyncio.CancelledError)):
            raise error
        code, text = status_of(error, stream.head.path)
        stream.end(code, shortened(text))
        if isinstance(error, asyncio.CancelledError):
            raise error


class _Requests:
    """The messages that a client streams, decoded. Not a generator: nobody has to close it."""

    __slots__ = ("_limits", "_method", "_stream")

    def __init__(self, stream: Stream, method: Method, limits: Limits) -> None:
        self._stream = stream
        self._method = method
        self._limits = limits

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Message:
        payload = await self._stream.receive()
        if payload is None:
            raise StopAsyncIteration
        return self._limits.decode(self._method, payload)
