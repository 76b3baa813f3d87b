"""The fast gRPC engine: pygrpc-native, its HTTP/2 in Rust.

It is used through its low-level front, without the layer that imitates grpc.aio: a call is one task of ours and nothing
else. The front cannot take messages that a client streams; such calls, and those of methods that nobody has, it passes
through a private unix socket to grpc.aio, which is started by the first of them.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Iterable
from contextlib import aclosing
from typing import Any

from pygrpc_native import EVENT_CANCEL, STREAM_CLOSED, STREAM_FULL, NativeGrpcFront

from orlop.rpc.dispatch import MAX_METADATA, MAX_STREAMS, Headers, Limits, paths, shortened
from orlop.rpc.fallback import Fallback
from orlop.rpc.service import Call, Method, Service
from orlop.rpc.status import status_of

log = logging.getLogger(__name__)

_BATCH = 64
_FIRST_PAUSE, _LONGEST_PAUSE = 0.0005, 0.02
"""Seconds between two tries to send to a client that is behind."""

Details = tuple[Iterable[tuple[str, str | bytes]], str, float | None]


class NativeEngine:
    def __init__(self, services: Iterable[Service], limits: Limits) -> None:
        services = tuple(services)
        self._limits = limits
        self._fallback = Fallback(services, limits)
        self._methods = [(path, method) for path, method in paths(services).items() if not method.client_streaming]
        self._front: Any = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._calls: dict[int, asyncio.Task[None]] = {}
        self._stopping = False

    async def start(self, address: str) -> None:
        """Listens on the unix socket `address`, which must not be there yet, in a folder that only we can enter."""
        self._loop = asyncio.get_running_loop()
        inner = os.path.join(os.path.dirname(address), "f")
        await self._fallback.start(inner)
        self._front = NativeGrpcFront(
            f"unix:{address}",
            [],
            call_details=True,
            delay_stream_headers=True,
            keepalive_permit_without_calls=True,
            max_concurrent_streams=MAX_STREAMS,
            max_metadata_size=MAX_METADATA,
        )
        self._front.set_fallback(inner)
        self._front.add_methods([(path, method.server_streaming) for path, method in self._methods])
        self._front.start()
        threading.Thread(target=self._receive, name="grpc-receive", daemon=True).start()

    async def stop(self, grace: float | None) -> None:
        self._stopping = True
        tasks = list(self._calls.values())
        async with asyncio.TaskGroup() as group:
            group.create_task(self._fallback.stop(grace))
            if tasks and grace:
                await asyncio.wait(tasks, timeout=grace)
            for task in tasks:
                task.cancel()
            if tasks:
                await asyncio.wait(tasks)
        if self._front is not None:
            await asyncio.to_thread(self._front.close)
            self._front = None

    def _receive(self) -> None:
        """Takes what the front has received and hands it to the event loop; a thread's work."""
        front, loop = self._front, self._loop
        assert loop is not None
        while (events := front.recv_batch_details(_BATCH)) is not None:
            try:
                loop.call_soon_threadsafe(self._begin, events)
            except RuntimeError:  # the loop was closed and nobody stopped us
                front.close()
                return

    def _begin(self, events: list[tuple[int, int, int, bytes, object, Details]]) -> None:
        loop, methods, calls = self._loop, self._methods, self._calls
        assert loop is not None
        for kind, call_id, number, payload, _, details in events:
            if kind == EVENT_CANCEL:
                if (task := calls.get(call_id)) is not None:
                    task.cancel()
            elif not self._stopping:
                path, method = methods[number]
                run = self._run_stream if method.server_streaming else self._run_unary
                calls[call_id] = loop.create_task(run(call_id, path, method, payload, details))

    async def _run_unary(self, call_id: int, path: str, method: Method, payload: bytes, details: Details) -> None:
        try:
            limits = self._limits
            response = await method.function(limits.decode(method, payload), Call(Headers(details[0])))  # type: ignore[misc]
            self._front.respond(call_id, limits.encode(response))
        except BaseException as error:
            self._fail(call_id, path, error)
        finally:
            del self._calls[call_id]

    async def _run_stream(self, call_id: int, path: str, method: Method, payload: bytes, details: Details) -> None:
        try:
            limits = self._limits
            responses = method.function(limits.decode(method, payload), Call(Headers(details[0])))  # type: ignore[misc]
            async with aclosing(responses):
                async for response in responses:
                    if not await self._send(call_id, limits.encode(response)):
                        return
            self._front.stream_end(call_id)
        except BaseException as error:
            self._fail(call_id, path, error)
        finally:
            del self._calls[call_id]

    async def _send(self, call_id: int, payload: bytes) -> bool:
        """Sends one message of a stream when the client has room for it; False if the client is gone.

        The front does not tell when there is room, and its blocking call would cost a thread for every client that
        does not read: so this looks again after a pause.
        """
        pause = _FIRST_PAUSE
        while (sent := self._front.stream_try_send(call_id, payload)) == STREAM_FULL:
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)
        return bool(sent != STREAM_CLOSED)

    def _fail(self, call_id: int, path: str, error: BaseException) -> None:
        """Tells the client of `error`. One that is gone already is told nothing by the front."""
        if not isinstance(error, (Exception, asyncio.CancelledError)):
            raise error
        code, text = status_of(error, path)
        self._front.fail(call_id, code, shortened(text))
        if isinstance(error, asyncio.CancelledError):
            raise error
