"""The gRPC engine of the gRPC project: grpc.aio, its HTTP/2 in C.

It serves everything when it is chosen, and the calls in which a client streams when the native engine is.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import aclosing
from typing import Any, NoReturn

import grpc
import grpc.aio

from orlop.rpc.dispatch import MAX_METADATA, MAX_STREAMS, Headers, Limits, paths, shortened, unknown
from orlop.rpc.service import Call, Method, Service
from orlop.rpc.status import status_of

_CODES: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}

Context = Any
"""A `grpc.aio.ServicerContext`; its stubs are generic over messages that are bytes here."""


class GrpcioEngine:
    def __init__(self, services: Iterable[Service], limits: Limits) -> None:
        services = tuple(services)
        self._services = {service.name: service for service in services}
        self._limits = limits
        self._handlers = {path: self._handler(path, method) for path, method in paths(services).items()}
        self._server: Any = None

    async def start(self, address: str) -> None:
        """Listens on the unix socket `address`, which must not be there yet."""
        server: Any = grpc.aio.server(
            options=(
                ("grpc.max_receive_message_length", self._limits.receive),
                ("grpc.max_send_message_length", -1),  # checked here, for the text
                ("grpc.max_concurrent_streams", MAX_STREAMS),
                ("grpc.max_metadata_size", MAX_METADATA),
                ("grpc.absolute_max_metadata_size", MAX_METADATA),
                # Beyond these, a burst of calls that Python has not yet taken is refused at random.
                ("grpc.server.max_pending_requests", MAX_STREAMS),
                ("grpc.server.max_pending_requests_hard_limit", MAX_STREAMS),
                ("grpc.so_reuseport", 0),
            )
        )
        server.add_generic_rpc_handlers((_Router(self._find),))
        server.add_insecure_port(f"unix:{address}")
        await server.start()
        self._server = server

    async def stop(self, grace: float | None) -> None:
        if self._server is not None:
            await self._server.stop(grace)

    def _find(self, path: str) -> Any:
        return self._handlers.get(path) or self._unknown(path)

    def _unknown(self, path: str) -> Any:
        error = unknown(path, self._services)

        async def answer(requests: AsyncIterator[bytes], context: Context) -> AsyncIterator[bytes]:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, shortened(str(error)))
            yield b""

        return grpc.stream_stream_rpc_method_handler(answer)

    def _handler(self, path: str, method: Method) -> Any:
        """The handler of one method: grpc.aio inspects it, so each is a real coroutine function or generator."""
        function = method.function
        assert function is not None
        limits = self._limits

        def call_of(context: Context) -> Call:
            return Call(Headers(context.invocation_metadata() or ()))

        async def unary_unary(payload: bytes, context: Context) -> bytes:
            try:
                return limits.encode(await function(limits.decode(method, payload), call_of(context)))
            except (Exception, asyncio.CancelledError) as error:
                await _abort(context, error, path)

        async def stream_unary(payloads: AsyncIterator[bytes], context: Context) -> bytes:
            try:
                return limits.encode(await function(limits.decode_all(method, payloads), call_of(context)))
            except (Exception, asyncio.CancelledError) as error:
                await _abort(context, error, path)

        async def unary_stream(payload: bytes, context: Context) -> AsyncIterator[bytes]:
            try:
                async with aclosing(function(limits.decode(method, payload), call_of(context))) as responses:
                    async for response in responses:
                        yield limits.encode(response)
            except (Exception, asyncio.CancelledError) as error:
                await _abort(context, error, path)

        async def stream_stream(payloads: AsyncIterator[bytes], context: Context) -> AsyncIterator[bytes]:
            try:
                async with aclosing(function(limits.decode_all(method, payloads), call_of(context))) as responses:
                    async for response in responses:
                        yield limits.encode(response)
            except (Exception, asyncio.CancelledError) as error:
                await _abort(context, error, path)

        if method.client_streaming and method.server_streaming:
            return grpc.stream_stream_rpc_method_handler(stream_stream)
        if method.client_streaming:
            return grpc.stream_unary_rpc_method_handler(stream_unary)
        if method.server_streaming:
            return grpc.unary_stream_rpc_method_handler(unary_stream)
        return grpc.unary_unary_rpc_method_handler(unary_unary)


class _Router(grpc.GenericRpcHandler):  # type: ignore[type-arg]  # generic in its stubs only
    def __init__(self, find: Callable[[str], Any]) -> None:
        self._find = find

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        method: Any = handler_call_details.method
        return self._find(method.decode("utf-8", "replace") if isinstance(method, bytes) else method)


async def _abort(context: Context, error: BaseException, path: str) -> NoReturn:
    """Ends the call with the status of `error`; raises grpc's own exception, which grpc.aio wants to see."""
    if isinstance(error, grpc.aio.BaseError):
        raise error
    if isinstance(error, asyncio.CancelledError):
        # grpc.aio would leave the client without an answer, if it was the servicer that cancelled something of its own.
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise error
    code, text = status_of(error, path)
    await context.abort(_CODES.get(code, grpc.StatusCode.UNKNOWN), shortened(text))
    raise AssertionError("abort raises")
