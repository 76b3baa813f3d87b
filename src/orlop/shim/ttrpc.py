"""Both ends of ttrpc on the shim's loop: the server of its services, and the client by which it forwards events.

The rules are those of `orlop.rpc.ttrpc`, which is the daemon's and runs on asyncio.
"""

from __future__ import annotations

import logging
import socket
import struct
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass
from google.rpc.status_pb2 import Status

from orlop.api.ttrpc import request_pb2 as wire
from orlop.errors import (
    DeadlineExceeded,
    Internal,
    OrlopError,
    ResourceExhausted,
    Unavailable,
    Unimplemented,
    from_status,
)
from orlop.rpc.service import Call
from orlop.rpc.status import DEADLINE_TEXT, status_of
from orlop.rpc.ttrpc.frame import HEADER, MAX_PAYLOAD, REQUEST, RESPONSE, Frame, FrameParser, oversize_text
from orlop.rpc.ttrpc.request import RequestReader
from orlop.shim import loop

log = logging.getLogger(__name__)

MAX_CALLS = 1 << 14
"""Calls in flight on a connection; one more is refused."""
MAX_PENDING_BYTES = 64 << 20
"""While the requests in flight are larger than this together, nothing more is read."""
_MAX_QUEUED_BYTES = 1 << 20
"""While more than this waits to be taken by the peer, nothing is read from it."""
_CHUNK = 64 << 10
_WAITS = ("Wait", "WaitSandbox")
"""Methods of the shim's services that only wait, so that another process may go on with them."""
_END_WITH_CLIENT = (*_WAITS, "Create")
"""Methods that a client that is gone ends. Others go on: half a start would be a process that nobody knows of."""
_PEER = struct.Struct("=iii")

Function = Callable[[Any, Call], Coroutine[Any, None, Message]]
"""A servicer's method."""


class Connection:
    """One end of a connection. Subclasses say what a frame means."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._socket = sock
        self.descriptor = sock.fileno()
        self._parser = FrameParser()
        self._queued = b""
        self._closing = False
        self.is_open = True
        loop.add_reader(self.descriptor, self._readable)

    @property
    def is_idle(self) -> bool:
        """Nothing is half sent or half received."""
        return not (self._queued or self._closing or self._parser.is_within)

    def received(self, frame: Frame) -> None:
        raise AssertionError("a subclass says what a frame means")

    def ended(self) -> None:
        """The connection is gone."""

    def overloaded(self) -> bool:
        return len(self._queued) > _MAX_QUEUED_BYTES

    def send(self, stream: int, kind: int, payload: bytes) -> None:
        """Queues a frame; nothing happens if the connection is gone."""
        if not self.is_open:
            return
        frame = HEADER.pack(len(payload), stream, kind, 0) + payload
        if self._queued:
            self._queued += frame
            return
        self._queued = self._write(frame)
        if self._queued:
            loop.add_writer(self.descriptor, self._writable)
            self.regulate()

    def regulate(self) -> None:
        """Stops or resumes reading, after something changed that `overloaded` looks at."""
        if not self.is_open:
            return
        if self.overloaded():
            loop.remove_reader(self.descriptor)
        else:
            loop.add_reader(self.descriptor, self._readable)

    def shut(self) -> None:
        """Closes once what is queued has been taken."""
        self._closing = True
        if not self._queued:
            self.abort()

    def abort(self) -> None:
        if not self.is_open:
            return
        self.is_open = False
        loop.remove_reader(self.descriptor)
        loop.remove_writer(self.descriptor)
        self._socket.close()
        self.ended()

    def _readable(self) -> None:
        try:
            chunk = self._socket.recv(_CHUNK)
        except BlockingIOError:
            return
        except OSError:
            chunk = b""
        if not chunk:
            self.abort()
            return
        for frame in self._parser.feed(chunk):
            self.received(frame)

    def _writable(self) -> None:
        self._queued = self._write(self._queued)
        if self.is_open and not self._queued:
            loop.remove_writer(self.descriptor)
            if self._closing:
                self.abort()
            else:
                self.regulate()

    def _write(self, data: bytes) -> bytes:
        """What of `data` the peer does not take now."""
        try:
            return data[self._socket.send(data) :]
        except BlockingIOError:
            return data
        except OSError:
            self.abort()
            return b""


@dataclass(frozen=True, slots=True)
class Interface:
    """The methods of a service and the messages they take, found once for all servicers."""

    name: str
    requests: Mapping[str, type[Message]]

    @classmethod
    def of(cls, descriptor: ServiceDescriptor) -> Interface:
        requests = {method.name: GetMessageClass(method.input_type) for method in descriptor.methods}
        return cls(descriptor.full_name, requests)


@dataclass(frozen=True, slots=True)
class Service:
    """`servicer`'s coroutine methods, offered as `interface`."""

    interface: Interface
    servicer: object


class Server:
    """Serves `services`, by their names, on a listening socket to peers of user `uid`."""

    def __init__(self, services: Mapping[str, Service], listener: socket.socket, uid: int) -> None:
        self._services = services
        self._listener = listener
        self._uid = uid
        self._connections: set[_ServerConnection] = set()
        self._orphans: set[loop.Task[None]] = set()
        """Calls whose clients are gone."""
        listener.setblocking(False)
        loop.add_reader(listener.fileno(), self._accept)

    async def close(self, grace: float) -> None:
        """Stops accepting, gives calls in flight `grace` seconds, then cancels them; peers get what was answered."""
        loop.remove_reader(self._listener.fileno())
        self._listener.close()
        calls = [task for connection in self._connections for task in connection.calls] + list(self._orphans)
        await loop.all_done(calls, grace)
        for call in calls:
            call.cancel()
        await loop.all_done(calls, grace)
        for connection in list(self._connections):
            connection.shut()
        if self._connections:
            await loop.all_done([connection.lost for connection in self._connections], grace)
        for connection in list(self._connections):
            connection.abort()

    @property
    def descriptors(self) -> set[int]:
        return {self._listener.fileno()} | {connection.descriptor for connection in self._connections}

    def record(self) -> list[dict[str, Any]] | None:
        """What `take_up` takes up; None unless all that goes on in this server is to wait."""
        if self._orphans:
            return None
        records = [connection.record() for connection in self._connections]
        known = [record for record in records if record is not None]
        return known if len(known) == len(records) else None

    def take_up(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Goes on with the connections of an earlier server."""
        for record in records:
            sock = socket.socket(fileno=record["descriptor"])
            connection = _ServerConnection(sock, self, record["last_stream"])
            self._connections.add(connection)
            connection.take_up(record["waiting"])

    def find(self, service: str, method: str) -> tuple[type[Message], Function]:
        """The message that a method takes, and the function that answers it. Raises Unimplemented."""
        found = self._services.get(service)
        if found is None:
            raise Unimplemented.verbatim(f"service {service}")
        request = found.interface.requests.get(method)
        function = getattr(found.servicer, method, None)
        if request is None or function is None:
            raise Unimplemented.verbatim(f"method {method}")
        return request, function

    def adopt(self, call: loop.Task[None]) -> None:
        """Goes on with a call whose client is gone."""
        self._orphans.add(call)
        call.add_done_callback(lambda: self._orphans.discard(call))

    def forget(self, connection: _ServerConnection) -> None:
        self._connections.discard(connection)

    def _accept(self) -> None:
        try:
            peer, _ = self._listener.accept()
        except OSError:
            return
        pid, uid, gid = _PEER.unpack(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
        if uid != self._uid:
            log.warning("ttrpc: refused a connection from pid %d, uid %d, gid %d", pid, uid, gid)
            peer.close()
            return
        self._connections.add(_ServerConnection(peer, self))


class _ServerConnection(Connection):
    """One client."""

    def __init__(self, sock: socket.socket, server: Server, last_stream: int = 0) -> None:
        super().__init__(sock)
        self._server = server
        self._requests = RequestReader(last_stream)
        self._pending_bytes = 0
        self.calls: dict[loop.Task[None], tuple[int, wire.Request]] = {}
        self.lost: loop.Future[None] = loop.Future()

    def overloaded(self) -> bool:
        return super().overloaded() or self._pending_bytes > MAX_PENDING_BYTES

    def ended(self) -> None:
        for task, (_, request) in self.calls.items():
            if request.method in _END_WITH_CLIENT:
                task.cancel()
            else:
                self._server.adopt(task)
        self._server.forget(self)
        self.lost.set_result(None)

    def record(self) -> dict[str, Any] | None:
        """What `take_up` makes it from; None while it is in the middle of something, or a call is no Wait."""
        waiting = [(stream, request.SerializeToString()) for stream, request in self.calls.values()]
        if not self.is_idle or any(request.method not in _WAITS for _, request in self.calls.values()):
            return None
        return {"descriptor": self.descriptor, "last_stream": self._requests.last_stream, "waiting": waiting}

    def take_up(self, waiting: Sequence[tuple[int, bytes]]) -> None:
        """Goes on waiting for what was waited for."""
        for stream, payload in waiting:
            self._start(stream, wire.Request.FromString(payload), len(payload))

    def received(self, frame: Frame) -> None:
        if self.is_open:
            try:
                self._dispatch(frame)
            except OrlopError as error:
                self._refuse(frame.stream, error)

    def _dispatch(self, frame: Frame) -> None:
        request = self._requests.read(frame)
        if request is not None:
            self._start(frame.stream, request, len(frame.payload))

    def _start(self, stream: int, request: wire.Request, size: int) -> None:
        kind, function = self._server.find(request.service, request.method)
        if len(self.calls) >= MAX_CALLS:
            raise ResourceExhausted.verbatim(f"more than {MAX_CALLS} calls in flight on one connection")
        self._pending_bytes += size
        task = loop.create_task(self._run(stream, kind, function, request, size))
        self.calls[task] = stream, request
        task.add_done_callback(lambda: self.calls.pop(task, None))
        if self._pending_bytes > MAX_PENDING_BYTES:
            self.regulate()

    async def _run(
        self, stream: int, kind: type[Message], function: Function, request: wire.Request, size: int
    ) -> None:
        try:
            answer = wire.Response(payload=(await _answer(kind, function, request)).SerializeToString())
        except (Exception, loop.Cancelled) as error:
            code, text = status_of(error, f"/{request.service}/{request.method}")
            answer = wire.Response(status=Status(code=code, message=text))
        payload = answer.SerializeToString()
        if len(payload) > MAX_PAYLOAD:
            self._refuse(stream, ResourceExhausted.verbatim(oversize_text(len(payload))))
        else:
            self.send(stream, RESPONSE, payload)
        self._pending_bytes -= size
        if size > MAX_PENDING_BYTES - self._pending_bytes:
            self.regulate()

    def _refuse(self, stream: int, error: OrlopError) -> None:
        answer = wire.Response(status=Status(code=error.code, message=str(error)))
        self.send(stream, RESPONSE, answer.SerializeToString())


class Client(Connection):
    """A connection by which one call at a time is made."""

    def __init__(self, path: str) -> None:
        """Connects to the socket at `path`. Raises OSError, also if its queue is full."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        try:
            sock.connect(path)
        except BaseException:
            sock.close()
            raise
        super().__init__(sock)
        self._stream = -1
        self._answer: loop.Future[wire.Response] | None = None

    async def call(
        self, service: str, method: str, request: Message, *, timeout: float, metadata: Mapping[str, str]
    ) -> bytes:
        """The answer's bytes. Raises what the server raised, DeadlineExceeded, Unavailable if the connection ends."""
        envelope = wire.Request(service=service, method=method, payload=request.SerializeToString())
        envelope.timeout_nano = int(timeout * 1e9)
        for key, value in metadata.items():
            envelope.metadata.add(key=key, value=value)
        if not self.is_open:
            raise Unavailable("ttrpc: closed")
        self._stream += 2
        self._answer = loop.Future()
        self.send(self._stream, REQUEST, envelope.SerializeToString())
        try:
            async with loop.timeout(timeout):
                answer = await self._answer
        except TimeoutError:
            raise DeadlineExceeded.verbatim(DEADLINE_TEXT) from None
        finally:
            self._answer = None
        if answer.status.code:
            raise from_status(answer.status.code, answer.status.message)
        return answer.payload

    def received(self, frame: Frame) -> None:
        if self._answer is None or self._answer.done() or frame.stream != self._stream or frame.kind != RESPONSE:
            return
        try:
            self._answer.set_result(wire.Response.FromString(frame.payload))
        except DecodeError:
            self._answer.set_exception(Internal.verbatim("ttrpc: cannot parse the server's answer"))

    def ended(self) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(Unavailable("ttrpc: closed"))


async def _answer(kind: type[Message], function: Function, request: wire.Request) -> Message:
    """Runs the servicer's function within the deadline that the client set."""
    try:
        message = kind.FromString(request.payload)
    except DecodeError:
        raise Internal.verbatim("ttrpc: error unmarshalling payload: cannot parse invalid wire-format data") from None
    call = Call({pair.key.lower(): pair.value for pair in reversed(request.metadata)})
    if not request.timeout_nano:
        return await function(message, call)
    deadline = loop.timeout(request.timeout_nano / 1e9)
    try:
        async with deadline:
            return await function(message, call)
    except TimeoutError:
        if not deadline.expired():
            raise
        raise DeadlineExceeded.verbatim(DEADLINE_TEXT) from None
