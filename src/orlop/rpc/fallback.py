"""grpc.aio beside the native engine, from the first call that needs it on.

Its library takes 10 MB, and most daemons never see such a call.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Iterable
from typing import TYPE_CHECKING

from orlop.rpc.dispatch import Limits
from orlop.rpc.service import Service

if TYPE_CHECKING:
    from orlop.rpc.grpcio import GrpcioEngine

_CHUNK = 256 << 10
_BACKLOG = 128


class Fallback:
    """Listens in place of a GrpcioEngine that is not there yet.

    The first connection has one started, which takes the place; what came before that is relayed to it.
    """

    def __init__(self, services: Iterable[Service], limits: Limits) -> None:
        self._services = tuple(services)
        self._limits = limits
        self._address = ""
        self._listener: asyncio.Server | None = None
        self._engine: asyncio.Task[GrpcioEngine] | None = None
        self._relays: set[asyncio.Task[None]] = set()

    async def start(self, address: str) -> None:
        """Listens on the unix socket `address`, whose folder is ours alone."""
        self._address = address
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listener.bind(address)
            self._listener = await asyncio.start_unix_server(
                self._accept, sock=listener, limit=_CHUNK, backlog=_BACKLOG
            )
        except BaseException:
            listener.close()
            raise

    async def stop(self, grace: float | None) -> None:
        if self._listener is not None:
            self._listener.close()
        if self._engine is not None:
            with contextlib.suppress(OSError, RuntimeError):  # its start failed, as its callers were told
                await (await self._engine).stop(grace)
        relays = list(self._relays)
        for relay in relays:
            relay.cancel()
        if relays:
            await asyncio.wait(relays)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._relays.add(task)
        try:
            if self._engine is None or (self._engine.done() and self._engine.exception() is not None):
                self._engine = asyncio.create_task(self._start_engine())
            await asyncio.shield(self._engine)
            # One side is gone, and the other sees its connection end; or `stop` cancels us, and nobody else awaits us.
            with contextlib.suppress(OSError, asyncio.CancelledError):
                await _relay(reader, writer, *await asyncio.open_unix_connection(self._address, limit=_CHUNK))
        finally:
            writer.close()
            self._relays.discard(task)

    async def _start_engine(self) -> GrpcioEngine:
        """Starts the engine and puts it in our place. We stay, for who was on the way to us."""
        from orlop.rpc.grpcio import GrpcioEngine

        engine = GrpcioEngine(self._services, self._limits)
        aside = os.path.join(os.path.dirname(self._address), "h")
        await engine.start(aside)
        os.rename(aside, self._address)
        return engine


async def _relay(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    inner_reader: asyncio.StreamReader,
    inner_writer: asyncio.StreamWriter,
) -> None:
    """Carries bytes both ways until one side has no more: HTTP/2 has no use for half a connection."""
    ways = [asyncio.create_task(_carry(reader, inner_writer)), asyncio.create_task(_carry(inner_reader, writer))]
    try:
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
    finally:
        inner_writer.close()
        for way in ways:
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(_CHUNK):
        writer.write(data)
        await writer.drain()
