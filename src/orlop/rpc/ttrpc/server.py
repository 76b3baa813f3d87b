"""The serving end of ttrpc."""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
from collections.abc import Callable, Sequence

from google.protobuf.message import DecodeError, Message
from google.rpc.status_pb2 import Status

from orlop.api.ttrpc import request_pb2 as wire
from orlop.errors import DeadlineExceeded, Internal, OrlopError, ResourceExhausted, Unimplemented
from orlop.rpc.service import Call, Method, Service
from orlop.rpc.status import DEADLINE_TEXT, status_of
from orlop.rpc.ttrpc.connection import Connection
from orlop.rpc.ttrpc.frame import MAX_PAYLOAD, RESPONSE, Frame, oversize_text
from orlop.rpc.ttrpc.request import RequestReader

log = logging.getLogger(__name__)

Authorize = Callable[[int, int, int], bool]
"""Whether a peer with this pid, uid and gid may connect."""

MAX_CALLS = 1 << 14
"""Calls in flight on a connection; one more is refused. Each `Wait` is one, so that it must not stop the reading."""
MAX_PENDING_BYTES = 64 << 20
"""While the requests in flight are larger than this together, nothing more is read."""

_PEER = struct.Struct("=iii")
_LAST_WORDS_TIMEOUT = 1.0
"""Seconds that a peer has to take the answers that are queued for it when the server closes."""


class Server:
    """Serves `services` on any number of listening sockets."""

    def __init__(self, services: Sequence[Service] = ()) -> None:
        self._services: dict[str, dict[str, Method]] = {}
        self._listeners: list[asyncio.AbstractServer] = []
        self._connections: set[_ServerConnection] = set()
        for service in services:
            self.add(service)

    def add(self, service: Service) -> None:
        """Offers `service` too. Raises ValueError if there is one of its name."""
        if service.name in self._services:
            raise ValueError(f"ttrpc service {service.name} is there already")
        self._services[service.name] = dict(service.methods)

    async def serve(self, sock: socket.socket, authorize: Authorize | None = None) -> None:
        """Accepts connections on `sock`, a bound unix stream socket, from now on; the server owns and closes it."""
        sock.setblocking(False)
        loop = asyncio.get_running_loop()
        self._listeners.append(await loop.create_unix_server(lambda: _ServerConnection(self, authorize), sock=sock))

    async def close(self, grace: float = 0.0) -> None:
        """Stops accepting, gives calls in flight `grace` seconds to end, then cancels them and closes all connections.

        Answers that were made are delivered to peers that read.
        """
        for listener in self._listeners:
            listener.close()
        self._listeners.clear()
        connections = list(self._connections)
        current = asyncio.current_task()  # a call may close the server that runs it
        calls = [task for connection in connections for task in connection.calls if task is not current]
        if calls and grace > 0:
            await asyncio.wait(calls, timeout=grace)
        for connection in connections:
            connection.shut()
        if calls:
            await asyncio.wait(calls)
        ends = [connection.lost for connection in connections if not connection.lost.done()]
        if ends:
            await asyncio.wait(ends, timeout=_LAST_WORDS_TIMEOUT)
            for connection in connections:
                connection.abort()
            await asyncio.wait(ends)

    def find(self, service: str, method: str) -> Method:
        methods = self._services.get(service)
        if methods is None:
            raise Unimplemented.verbatim(f"service {service}")
        found = methods.get(method)
        if found is None or found.function is None or found.client_streaming or found.server_streaming:
            raise Unimplemented.verbatim(f"method {method}")
        return found

    def opened(self, connection: _ServerConnection) -> None:
        self._connections.add(connection)

    def closed(self, connection: _ServerConnection) -> None:
        self._connections.discard(connection)


class _ServerConnection(Connection):
    """One client. Its calls are tasks that it owns: they end with it at the latest."""

    def __init__(self, server: Server, authorize: Authorize | None) -> None:
        super().__init__()
        self._server = server
        self._authorize = authorize
        self._requests = RequestReader()
        self._pending_bytes = 0
        self.calls: set[asyncio.Task[None]] = set()

    @property
    def lost(self) -> asyncio.Future[None]:
        return self._lost

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        if self._authorize is not None:
            pid, uid, gid = _peer_of(transport)
            if not self._authorize(pid, uid, gid):
                log.warning("ttrpc: refused a connection from pid %d, uid %d, gid %d", pid, uid, gid)
                self.abort()
                return
        self._server.opened(self)

    def shut(self) -> None:
        self.ended()
        if self.transport is not None:
            self.transport.close()

    def ended(self) -> None:
        current = asyncio.current_task()
        for task in self.calls:
            if task is not current:
                task.cancel()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._server.closed(self)

    def overloaded(self) -> bool:
        return self._write_paused or self._pending_bytes > MAX_PENDING_BYTES

    def received(self, frame: Frame) -> None:
        if self.is_open:
            try:
                self._dispatch(frame)
            except OrlopError as error:
                self._refuse(frame.stream, error)

    def _dispatch(self, frame: Frame) -> None:
        request = self._requests.read(frame)
        if request is None:
            return
        method = self._server.find(request.service, request.method)
        if len(self.calls) >= MAX_CALLS:
            raise ResourceExhausted.verbatim(f"more than {MAX_CALLS} calls in flight on one connection")
        size = len(frame.payload)
        self._pending_bytes += size
        task = asyncio.get_running_loop().create_task(self._run(frame.stream, method, request, size))
        self.calls.add(task)
        task.add_done_callback(self.calls.discard)
        if self._pending_bytes > MAX_PENDING_BYTES:
            self.regulate()

    async def _run(self, stream: int, method: Method, request: wire.Request, size: int) -> None:
        where = f"/{request.service}/{request.method}"
        try:
            try:
                answer = wire.Response(payload=(await _answer(method, request)).SerializeToString())
            except Exception as error:
                code, text = status_of(error, where)
                answer = wire.Response(status=Status(code=code, message=text))
            await self.writable()
            payload = answer.SerializeToString()
            if len(payload) > MAX_PAYLOAD:
                self._refuse(stream, ResourceExhausted.verbatim(oversize_text(len(payload))))
            else:
                self.send(stream, RESPONSE, 0, payload)
        except asyncio.CancelledError:
            # Cancelled with the connection, nobody is there to be told; otherwise the servicer cancelled itself.
            if self.is_open:
                code, text = status_of(asyncio.CancelledError(), where)
                self.send(stream, RESPONSE, 0, _status(code, text))
            raise
        finally:
            self._pending_bytes -= size
            if self._read_paused:
                self.regulate()

    def _refuse(self, stream: int, error: OrlopError) -> None:
        self.send(stream, RESPONSE, 0, _status(error.code, str(error)))


async def _answer(method: Method, request: wire.Request) -> Message:
    """Runs the servicer's function within the deadline that the client set."""
    try:
        message = method.request.FromString(request.payload)
    except DecodeError:
        raise Internal.verbatim("ttrpc: error unmarshalling payload: cannot parse invalid wire-format data") from None
    call = Call(_metadata(request))
    if not request.timeout_nano:
        return await _unary(method, message, call)
    try:
        async with asyncio.timeout(request.timeout_nano / 1e9) as deadline:
            return await _unary(method, message, call)
    except TimeoutError:
        if not deadline.expired():
            raise
        raise DeadlineExceeded.verbatim(DEADLINE_TEXT) from None


async def _unary(method: Method, message: Message, call: Call) -> Message:
    assert method.function is not None
    response: Message = await method.function(message, call)
    return response


def _metadata(request: wire.Request) -> dict[str, str]:
    """The first value of each header, keys in lower case."""
    metadata: dict[str, str] = {}
    for pair in request.metadata:
        metadata.setdefault(pair.key.lower(), pair.value)
    return metadata


def _status(code: int, text: str) -> bytes:
    return wire.Response(status=Status(code=code, message=text)).SerializeToString()


def _peer_of(transport: asyncio.BaseTransport) -> tuple[int, int, int]:
    """The pid, uid and gid of the process that connected, as the kernel noted them at that moment."""
    sock = transport.get_extra_info("socket")
    pid, uid, gid = _PEER.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
    return pid, uid, gid
