"""The calling end of ttrpc."""

from __future__ import annotations

import asyncio
import errno
import math
import os
import socket
import struct
from collections.abc import Mapping
from typing import Self, TypeVar

from google.protobuf.message import DecodeError, Message

from orlop.api.ttrpc import request_pb2 as wire
from orlop.errors import DeadlineExceeded, Internal, OrlopError, ResourceExhausted, Unavailable, Unknown, from_status
from orlop.rpc.status import DEADLINE_TEXT
from orlop.rpc.ttrpc.connection import Connection, TtrpcClosed
from orlop.rpc.ttrpc.frame import MAX_PAYLOAD, REQUEST, RESPONSE, Frame, oversize_text

R = TypeVar("R", bound=Message)

_LAST_STREAM = (1 << 32) - 1


class Client:
    """One connection to a server. Any number of calls may be in flight."""

    def __init__(self, connection: _ClientConnection) -> None:
        self._connection = connection

    @classmethod
    async def connect(cls, address: str, timeout: float) -> Self:
        """A client of the server at `address`: a path, `unix://` and a path, or an abstract name that begins with `@`.

        Raises Unavailable if nobody listens there, DeadlineExceeded after `timeout` seconds.
        """
        sock = await _dial(address, timeout)
        try:
            _, connection = await asyncio.get_running_loop().create_unix_connection(_ClientConnection, sock=sock)
        except BaseException:
            sock.close()
            raise
        return cls(connection)

    async def call(
        self,
        service: str,
        method: str,
        request: Message,
        response: type[R],
        *,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> R:
        """Calls `method` of `service` and returns its answer.

        `timeout` seconds from now the call raises DeadlineExceeded, here and at the server. TtrpcClosed is raised if
        the connection ends first; otherwise the error is the one the server raised.
        """
        envelope = wire.Request(service=service, method=method, payload=request.SerializeToString())
        for key, value in (metadata or {}).items():
            envelope.metadata.add(key=key, value=value)
        if timeout is None:
            answer = await self._connection.ask(envelope)
        else:
            envelope.timeout_nano = max(1, math.ceil(timeout * 1e9))
            try:
                async with asyncio.timeout(timeout) as deadline:
                    answer = await self._connection.ask(envelope)
            except TimeoutError:
                if not deadline.expired():
                    raise
                raise DeadlineExceeded.verbatim(DEADLINE_TEXT) from None
        if answer.status.code:
            raise from_status(answer.status.code, answer.status.message)
        try:
            return response.FromString(answer.payload)
        except DecodeError:
            raise Internal.verbatim(f"ttrpc: the answer of {service}/{method} is no {response.__name__}") from None

    @property
    def is_closed(self) -> bool:
        return not self._connection.is_open

    async def wait_closed(self) -> None:
        """Returns when the connection is gone, whoever ended it."""
        await self._connection.wait_closed()

    async def close(self) -> None:
        """Ends the connection; calls in flight raise TtrpcClosed."""
        self._connection.abort()
        await self._connection.wait_closed()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


class _ClientConnection(Connection):
    def __init__(self) -> None:
        super().__init__()
        self._next_stream = 1
        self._waiting: dict[int, asyncio.Future[wire.Response]] = {}

    async def ask(self, envelope: wire.Request) -> wire.Response:
        payload = envelope.SerializeToString()
        if len(payload) > MAX_PAYLOAD:
            raise ResourceExhausted.verbatim(oversize_text(len(payload)))
        await self.writable()
        if not self.is_open:
            raise TtrpcClosed
        # No await between taking the number and sending: servers demand that numbers increase.
        stream = self._next_stream
        if stream > _LAST_STREAM:
            self.abort()
            raise TtrpcClosed
        self._next_stream += 2
        answer: asyncio.Future[wire.Response] = asyncio.get_running_loop().create_future()
        self._waiting[stream] = answer
        try:
            self.send(stream, REQUEST, 0, payload)
            return await answer
        finally:
            del self._waiting[stream]

    def received(self, frame: Frame) -> None:
        answer = self._waiting.get(frame.stream)
        if answer is None or answer.done():
            return  # the answer to a call that was given up
        if frame.oversize:
            answer.set_exception(ResourceExhausted.verbatim(oversize_text(frame.oversize)))
        elif frame.kind != RESPONSE:
            answer.set_exception(Unknown.verbatim("unexpected data message received: protocol error"))
        else:
            try:
                answer.set_result(wire.Response.FromString(frame.payload))
            except DecodeError:
                answer.set_exception(Internal.verbatim("ttrpc: cannot parse the server's answer"))

    def ended(self) -> None:
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(TtrpcClosed())


async def _dial(address: str, timeout: float) -> socket.socket:
    path = address.removeprefix("unix://")
    target = "\0" + path[1:] if path[:1] in ("@", "\0") else path
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        number = sock.connect_ex(target)
        if number == errno.EAGAIN:
            # The server's queue is full, which unix sockets cannot wait for without blocking.
            number = await asyncio.to_thread(_connect_blocking, sock, target, timeout)
        if number:
            raise _dial_error(number, path)
    except OSError as error:  # a path that is too long
        sock.close()
        raise Unavailable.verbatim(f"dial unix {path}: {error}") from None
    except BaseException:
        sock.close()
        raise
    return sock


def _connect_blocking(sock: socket.socket, target: str, timeout: float) -> int:
    seconds, fraction = divmod(max(timeout, 0.001), 1)
    sock.setblocking(True)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", int(seconds), int(fraction * 1e6)))
    number = sock.connect_ex(target)
    sock.setblocking(False)
    return number


def _dial_error(number: int, path: str) -> OrlopError:
    if number == errno.EAGAIN:
        return DeadlineExceeded.verbatim(f"dial unix {path}: {DEADLINE_TEXT}")
    return Unavailable.verbatim(f"dial unix {path}: connect: {os.strerror(number).lower()}")
