"""What a client calls through: the same calls whether the daemon is behind a socket or in this process.

    stub = Stub(GrpcChannel("/run/containerd/containerd.sock"), descriptor, headers_of(scope))
    response = await stub.call("Get", request)

Failures are the kinds of `orlop.errors`, whichever channel carries the call.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import aclosing
from typing import Any, Protocol, TypeVar, cast

from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from orlop.errors import Canceled, DeadlineExceeded, OrlopError, Unavailable, from_status
from orlop.rpc.dispatch import MAX_METADATA, MAX_STREAMS, paths, unknown
from orlop.rpc.service import Call, Method, Service
from orlop.rpc.status import CANCELED_TEXT, DEADLINE_TEXT, status_of

R = TypeVar("R", bound=Message)

MAX_MESSAGE = 16 << 20
_CLOSED = "the channel is closed"


class Channel(Protocol):
    """Carries calls. `path` is a method's full name, `/package.Service/Method`; a timeout is in seconds."""

    async def unary(
        self,
        path: str,
        request: Message,
        response_type: type[R],
        metadata: Mapping[str, str] | None = None,
        timeout: float | None = None,
    ) -> R: ...

    def server_stream(
        self, path: str, request: Message, response_type: type[R], metadata: Mapping[str, str] | None = None
    ) -> AsyncIterator[R]:
        """The answers to `request`. Closing the iterator early (`aclosing`) cancels the call."""
        ...

    def duplex(
        self,
        path: str,
        requests: AsyncIterator[Message],
        response_type: type[R],
        metadata: Mapping[str, str] | None = None,
    ) -> AsyncIterator[R]:
        """The answers to `requests`, which are sent as they come. Closing the iterator early cancels the call."""
        ...

    async def close(self) -> None: ...


class GrpcChannel:
    """A channel to the server that listens on the unix socket `address` (a path, with or without `unix://`)."""

    def __init__(self, address: str) -> None:
        import grpc.aio  # 10 MB, which a daemon that calls nobody is spared

        self._channel: Any = grpc.aio.insecure_channel(
            f"unix:{address.removeprefix('unix://')}",
            options=(
                ("grpc.max_receive_message_length", MAX_MESSAGE),
                ("grpc.max_send_message_length", MAX_MESSAGE),
                ("grpc.max_metadata_size", MAX_METADATA),
                ("grpc.max_concurrent_streams", MAX_STREAMS),
                ("grpc.use_local_subchannel_pool", 1),  # a channel of its own: closing it closes its connection
                ("grpc.initial_reconnect_backoff_ms", 100),
                ("grpc.min_reconnect_backoff_ms", 20_000),  # how long one try may take: a busy daemon accepts late
                ("grpc.max_reconnect_backoff_ms", 1000),
            ),
        )
        self._unary: dict[tuple[str, type[Message]], Any] = {}

    async def unary(
        self,
        path: str,
        request: Message,
        response_type: type[R],
        metadata: Mapping[str, str] | None = None,
        timeout: float | None = None,
    ) -> R:
        callable_ = self._unary.get((path, response_type))
        if callable_ is None:
            callable_ = self._channel.unary_unary(path, _serialize, response_type.FromString)
            self._unary[path, response_type] = callable_
        with _grpc_errors():
            return cast(R, await callable_(request, metadata=_pairs(metadata), timeout=timeout))

    async def server_stream(
        self, path: str, request: Message, response_type: type[R], metadata: Mapping[str, str] | None = None
    ) -> AsyncIterator[R]:
        with _grpc_errors():
            call = self._channel.unary_stream(path, _serialize, response_type.FromString)(
                request, metadata=_pairs(metadata)
            )
            async for response in _until_left(call):
                yield response

    async def duplex(
        self,
        path: str,
        requests: AsyncIterator[Message],
        response_type: type[R],
        metadata: Mapping[str, str] | None = None,
    ) -> AsyncIterator[R]:
        with _grpc_errors():
            call = self._channel.stream_stream(path, _serialize, response_type.FromString)(
                requests, metadata=_pairs(metadata)
            )
            async for response in _until_left(call):
                yield response

    async def close(self) -> None:
        """Ends the connection. Calls in flight raise Canceled."""
        await self._channel.close()


class InProcessChannel:
    """A channel to `services` in this process: a call is a call of the servicer, with copies of the messages."""

    def __init__(self, services: Iterable[Service]) -> None:
        services = tuple(services)
        self._services = {service.name: service for service in services}
        self._methods = paths(services)
        self._closed = False

    async def unary(
        self,
        path: str,
        request: Message,
        response_type: type[R],
        metadata: Mapping[str, str] | None = None,
        timeout: float | None = None,
    ) -> R:
        with _same_errors(path):
            method, call = self._find(path), _call(metadata)
            try:
                async with asyncio.timeout(timeout) as deadline:
                    return _copy(await _function(method)(_copy(request, method.request), call), response_type)
            except TimeoutError:
                if not deadline.expired():
                    raise
                raise DeadlineExceeded.verbatim(DEADLINE_TEXT) from None

    async def server_stream(
        self, path: str, request: Message, response_type: type[R], metadata: Mapping[str, str] | None = None
    ) -> AsyncIterator[R]:
        with _same_errors(path):
            method = self._find(path)
            async with aclosing(_function(method)(_copy(request, method.request), _call(metadata))) as responses:
                async for response in responses:
                    yield _copy(response, response_type)

    async def duplex(
        self,
        path: str,
        requests: AsyncIterator[Message],
        response_type: type[R],
        metadata: Mapping[str, str] | None = None,
    ) -> AsyncIterator[R]:
        with _same_errors(path):
            method = self._find(path)

            async def copies() -> AsyncIterator[Message]:
                async for request in requests:
                    yield _copy(request, method.request)

            answer = _function(method)(copies(), _call(metadata))
            if not method.server_streaming:
                yield _copy(await answer, response_type)
                return
            async with aclosing(answer) as responses:
                async for response in responses:
                    yield _copy(response, response_type)

    async def close(self) -> None:
        """Refuses further calls; those in flight are their callers' to cancel."""
        self._closed = True

    def _find(self, path: str) -> Method:
        if self._closed:
            raise Unavailable.verbatim(_CLOSED)
        method = self._methods.get(path)
        if method is None:
            raise unknown(path, self._services)
        return method


class Stub:
    """The methods of one service, called through `channel`, each call with `headers`."""

    def __init__(self, channel: Channel, service: ServiceDescriptor, headers: Mapping[str, str] | None = None) -> None:
        self._channel = channel
        self._name = service.full_name
        self._methods: dict[str, MethodDescriptor] = {method.name: method for method in service.methods}
        self._headers = headers

    async def call(self, method: str, request: Message, *, timeout: float | None = None) -> Any:
        """The answer of `method`, a message of the type that its descriptor names."""
        path, response_type = self._target(method)
        return await self._channel.unary(path, request, response_type, self._headers, timeout)

    def stream(self, method: str, request: Message) -> AsyncIterator[Any]:
        path, response_type = self._target(method)
        return self._channel.server_stream(path, request, response_type, self._headers)

    def duplex(self, method: str, requests: AsyncIterator[Message]) -> AsyncIterator[Any]:
        path, response_type = self._target(method)
        return self._channel.duplex(path, requests, response_type, self._headers)

    def _target(self, method: str) -> tuple[str, type[Message]]:
        descriptor = self._methods[method]
        return f"/{self._name}/{method}", GetMessageClass(descriptor.output_type)


def _serialize(message: Message) -> bytes:
    return message.SerializeToString()


def _pairs(metadata: Mapping[str, str] | None) -> tuple[tuple[str, str], ...] | None:
    return tuple(metadata.items()) if metadata else None


async def _until_left(call: Any) -> AsyncIterator[Any]:
    """What `call` answers; it is cancelled if nobody wants the rest."""
    try:
        async for response in call:
            yield response
    finally:
        call.cancel()


@contextlib.contextmanager
def _grpc_errors() -> Any:
    """Turns what grpc raises into the vocabulary of errors."""
    import grpc.aio

    try:
        yield
    except grpc.aio.AioRpcError as error:
        code = error.code().value[0]
        text = DEADLINE_TEXT if error.details() == "Deadline Exceeded" else error.details() or ""
        raise from_status(code, text) from None
    except grpc.aio.UsageError:
        raise Unavailable.verbatim(_CLOSED) from None
    except asyncio.CancelledError:
        # grpc.aio raises this too when not the caller but the channel ended.
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise Canceled.verbatim(CANCELED_TEXT) from None


@contextlib.contextmanager
def _same_errors(path: str) -> Any:
    """Lets through what a client across a socket would see of a failure, and nothing else."""
    try:
        yield
    except OrlopError as error:
        raise from_status(error.code, str(error)) from error
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise Canceled.verbatim(CANCELED_TEXT) from None
    except Exception as error:
        raise from_status(*status_of(error, path)) from error


def _call(metadata: Mapping[str, str] | None) -> Call:
    headers: dict[str, str] = {}
    for key, value in (metadata or {}).items():
        headers.setdefault(key.lower(), value)
    return Call(headers)


def _function(method: Method) -> Any:
    return method.function


def _copy(message: Message, kind: type[R]) -> R:
    """A message of its own: what either side does to it later, the other does not see."""
    copy = kind()
    copy.CopyFrom(message)  # type: ignore[arg-type]  # both are of the method's type
    return copy
