"""Transfers that the daemon does: pull, push, import, export, tag (the Transfer service).

    async with connect() as client:
        await client.transfer.pull(
            client.scope,
            RegistryEnd("docker.io/library/busybox:1"),
            StoreEnd("docker.io/library/busybox:1", platforms=[host()], unpacks=[UnpackRequest(host())]),
            progress=lambda progress: print(progress.event, progress.name, progress.progress, progress.total),
        )

Names are full references. Each call holds what is under way by the lease of its scope, or the daemon makes one. A call
that is cancelled stops the daemon's work; what a pull has received is there for the next. `options.credentials` of a
`RegistryEnd` is asked here, in this program, whenever a host wants to know who asks.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager

from google.protobuf.message import Message

from orlop.api.services.transfer.v1 import transfer_pb2
from orlop.api.types.transfer import importexport_pb2, registry_pb2
from orlop.api.types.transfer.progress_pb2 import Progress as ProgressMessage
from orlop.client.remote import Remote
from orlop.client.streaming import ClientStream, Streaming
from orlop.core.registry import Credentials
from orlop.core.scope import Scope
from orlop.core.transfer import ByteSink, ExportEnd, ImportEnd, Progress, RegistryEnd, StoreEnd
from orlop.core.wire import common
from orlop.core.wire import transfer as wire
from orlop.errors import Canceled
from orlop.rpc.channel import Channel
from orlop.transfer import bytestream

Told = Callable[[Progress], None]


def _nothing(_: Progress) -> None:
    return


class Transfer(Remote):
    service = transfer_pb2.DESCRIPTOR.services_by_name["Transfer"]

    def __init__(self, channel: Channel) -> None:
        super().__init__(channel)
        self._streaming = Streaming(channel)

    async def pull(self, scope: Scope, source: RegistryEnd, destination: StoreEnd, progress: Told = _nothing) -> None:
        """Fetches an image, unpacks it as `destination` says, and stores it under the names that are given there."""
        async with self._registry(scope, source) as registry:
            await self._transfer(scope, registry, wire.store(destination), progress)

    async def push(self, scope: Scope, source: StoreEnd, destination: RegistryEnd, progress: Told = _nothing) -> None:
        """Uploads an image, for all its platforms or those of `source`, under the reference of `destination`."""
        async with self._registry(scope, destination) as registry:
            await self._transfer(scope, wire.store(source), registry, progress)

    async def tag(self, scope: Scope, source: str, destination: StoreEnd) -> None:
        """Stores what `source` names under further names. Raises NotFound."""
        await self._transfer(scope, wire.store(StoreEnd(source)), wire.store(destination), _nothing)

    async def import_archive(
        self, scope: Scope, source: ImportEnd, destination: StoreEnd, progress: Told = _nothing
    ) -> None:
        """Sends an archive (OCI layout or `docker save`, plain, gzip or zstd) and stores the images in it."""
        async with self._streaming.open(scope, "import") as stream:
            message = importexport_pb2.ImageImportStream(
                stream=stream.id, media_type=source.media_type, force_compress=source.force_compress
            )
            async with _beside(_send(source.pieces, stream)):
                await self._transfer(scope, message, wire.store(destination), progress)

    async def export_archive(
        self, scope: Scope, source: StoreEnd, destination: ExportEnd, progress: Told = _nothing
    ) -> None:
        """Writes an archive of the image, and of the `extra_references`, to the sink of `destination`."""
        async with self._streaming.open(scope, "export") as stream:
            message = importexport_pb2.ImageExportStream(
                stream=stream.id,
                media_type=destination.media_type,
                platforms=wire.platforms(destination.platforms),
                all_platforms=destination.all_platforms,
                skip_compatibility_manifest=destination.skip_docker_manifest,
                skip_non_distributable=destination.skip_non_distributable,
            )
            receiving = asyncio.create_task(_receive(stream, destination.sink))
            try:
                await self._transfer(scope, wire.store(source), message, progress)
                await receiving
            finally:
                receiving.cancel()
                await asyncio.wait([receiving])

    async def _transfer(self, scope: Scope, source: Message, destination: Message, progress: Told) -> None:
        request = transfer_pb2.TransferRequest(
            source=common.any_of(common.pack(source)), destination=common.any_of(common.pack(destination))
        )
        if progress is _nothing:
            await self._call("Transfer", request, scope)
            return
        async with self._streaming.open(scope, "progress") as stream:
            request.options.progress_stream = stream.id
            telling = asyncio.create_task(_tell(stream, progress))
            try:
                await self._call("Transfer", request, scope)
                await telling  # the daemon has sent everything, and ended the stream
            finally:
                telling.cancel()
                await asyncio.wait([telling])

    @asynccontextmanager
    async def _registry(self, scope: Scope, end: RegistryEnd) -> AsyncIterator[registry_pb2.OCIRegistry]:
        options = end.options
        resolver = registry_pb2.RegistryResolver(
            headers=dict(options.headers), host_dir=options.host_dir, default_scheme=options.default_scheme
        )
        async with AsyncExitStack() as undo:
            if options.credentials is not None:
                stream = await undo.enter_async_context(self._streaming.open(scope, "creds"))
                resolver.auth_stream = stream.id
                await undo.enter_async_context(_beside(_answer(stream, options.credentials)))
            if options.log is not None:
                stream = await undo.enter_async_context(self._streaming.open(scope, "http-debug-logs"))
                resolver.logs_stream, resolver.http_debug = stream.id, registry_pb2.HTTPDebug.DEBUG
                await undo.enter_async_context(_beside(_lines(stream, options.log)))
            yield registry_pb2.OCIRegistry(reference=end.reference, resolver=resolver)


@asynccontextmanager
async def _beside(work: Awaitable[None]) -> AsyncIterator[None]:
    """Does `work` until what is inside ends; its failure is raised unless the inside fails first."""
    task = asyncio.ensure_future(work)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])
    if not task.cancelled():
        task.result()


async def _tell(stream: ClientStream, progress: Told) -> None:
    while (message := await stream.receive()) is not None:
        progress(wire.progress_of(common.parsed(message, ProgressMessage())))


async def _send(pieces: AsyncIterator[bytes], stream: ClientStream) -> None:
    sender = bytestream.ByteSender(stream)
    try:
        async for piece in pieces:
            await sender.write(piece)
        await sender.flush()
        await stream.end()
    except Canceled:
        return  # the daemon has what it needs, or its answer tells why not


async def _receive(stream: ClientStream, sink: ByteSink) -> None:
    async for piece in bytestream.receive(stream, bytestream.WINDOW):
        await sink.write(piece)
    await sink.finish()


async def _lines(stream: ClientStream, log: Callable[[str], None]) -> None:
    rest = b""
    async for piece in bytestream.receive(stream):
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            log(line.decode(errors="replace"))


async def _answer(stream: ClientStream, credentials: Credentials) -> None:
    while (message := await stream.receive()) is not None:
        request = common.parsed(message, registry_pb2.AuthRequest())
        found = await credentials.of(request.host, request.reference, list(request.wwwauthenticate))
        response = registry_pb2.AuthResponse(authType=registry_pb2.AuthType.NONE)
        if found is not None and found.username:
            response = registry_pb2.AuthResponse(
                authType=registry_pb2.AuthType.CREDENTIALS, username=found.username, secret=found.secret
            )
        elif found is not None:
            response = registry_pb2.AuthResponse(authType=registry_pb2.AuthType.REFRESH, secret=found.secret)
        await stream.send(common.pack(response))
