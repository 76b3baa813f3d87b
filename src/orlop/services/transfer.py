"""The service `containerd.services.transfer.v1.Transfer`."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, suppress

from google.protobuf.empty_pb2 import Empty

from orlop.api.services.transfer.v1 import transfer_pb2
from orlop.api.types.transfer import imagestore_pb2, importexport_pb2, registry_pb2
from orlop.core.registry import RegistryOptions
from orlop.core.scope import Scope
from orlop.core.stream import Stream, Streams
from orlop.core.transfer import End, ExportEnd, ImportEnd, Progress, RegistryEnd, Report, Transferrer
from orlop.core.typed import Typed
from orlop.core.wire import common
from orlop.core.wire import transfer as wire
from orlop.errors import Canceled, InvalidArgument, Unimplemented
from orlop.rpc.scope import scope_of
from orlop.rpc.service import Call
from orlop.transfer import bytestream, progress
from orlop.transfer.credentials import StreamCredentials

_log = logging.getLogger(__name__)


class TransferService:
    """Decodes the ends, joins them to their streams, and asks the transferrers in turn."""

    def __init__(self, transferrers: Sequence[Transferrer], streams: Streams) -> None:
        self._transferrers = transferrers
        self._streams = streams

    async def Transfer(self, request: transfer_pb2.TransferRequest, call: Call) -> Empty:
        scope = scope_of(call)
        source, destination = common.typed_of(request.source), common.typed_of(request.destination)
        async with AsyncExitStack() as undo:
            report: Report = _ignore
            if request.options.progress_stream:
                stream = self._streams.get(scope, request.options.progress_stream)
                report = await undo.enter_async_context(progress.reporting(stream))
            ends = _Ends(self._streams, scope, undo)
            one, other = ends.of(source), ends.of(destination)
            if one is not None and other is not None:
                for transferrer in self._transferrers:
                    if await transferrer.transfer(scope, one, other, report):
                        return Empty()
            raise Unimplemented.verbatim(
                f"method Transfer not implemented for {source.type_url} to {destination.type_url}"
            )


def _ignore(_: Progress) -> None:
    return


class _Ends:
    """Makes ends of what a request says, in a scope; their streams are closed by `undo`."""

    def __init__(self, streams: Streams, scope: Scope, undo: AsyncExitStack) -> None:
        self._streams, self._scope, self._undo = streams, scope, undo

    def of(self, typed: Typed) -> End | None:
        """None for a type that no transfer knows."""
        match typed.type_url:
            case "containerd.types.transfer.ImageStore":
                return wire.store_of(common.parsed(typed, imagestore_pb2.ImageStore()))
            case "containerd.types.transfer.OCIRegistry":
                return self._registry(common.parsed(typed, registry_pb2.OCIRegistry()))
            case "containerd.types.transfer.ImageImportStream":
                importing = common.parsed(typed, importexport_pb2.ImageImportStream())
                pieces = bytestream.receive(self._stream(importing.stream))
                return ImportEnd(pieces, importing.media_type, importing.force_compress)
            case "containerd.types.transfer.ImageExportStream":
                return self._export(common.parsed(typed, importexport_pb2.ImageExportStream()))
        return None

    def _export(self, message: importexport_pb2.ImageExportStream) -> ExportEnd:
        return ExportEnd(
            bytestream.ByteSender(self._stream(message.stream)),
            message.media_type,
            tuple(common.platform_of(platform) for platform in message.platforms),
            message.all_platforms,
            message.skip_compatibility_manifest,
            message.skip_non_distributable,
        )

    def _registry(self, message: registry_pb2.OCIRegistry) -> RegistryEnd:
        resolver = message.resolver
        options = RegistryOptions(
            host_dir=resolver.host_dir,
            default_scheme=resolver.default_scheme,
            headers=dict(resolver.headers),
            credentials=StreamCredentials(self._stream(resolver.auth_stream)) if resolver.auth_stream else None,
            log=self._log(resolver),
        )
        return RegistryEnd(message.reference, options)

    def _log(self, resolver: registry_pb2.RegistryResolver) -> Callable[[str], None] | None:
        if resolver.http_debug == registry_pb2.HTTPDebug.DISABLED:
            return None
        if not resolver.logs_stream:
            return _log.info
        return _LogStream(self._stream(resolver.logs_stream), self._undo).write

    def _stream(self, id: str) -> Stream:
        stream = self._streams.get(self._scope, id)
        self._undo.push_async_callback(stream.close)
        return stream


class _LogStream:
    """Lines that a client reads over a stream of bytes; one that is gone or does not read loses them."""

    def __init__(self, stream: Stream, undo: AsyncExitStack) -> None:
        self._sender = bytestream.ByteSender(stream)
        self._lines: asyncio.Queue[str | None] = asyncio.Queue(1000)
        self._sending = asyncio.create_task(self._send())
        undo.push_async_callback(self._finish)

    def write(self, line: str) -> None:
        with suppress(asyncio.QueueFull):
            self._lines.put_nowait(line)

    async def _send(self) -> None:
        with suppress(Canceled, InvalidArgument):
            while (line := await self._lines.get()) is not None:
                await self._sender.write(f"{line}\n".encode())
                await self._sender.flush()
            await self._sender.finish()

    async def _finish(self) -> None:
        with suppress(asyncio.QueueFull):
            self._lines.put_nowait(None)
        await asyncio.wait([self._sending], timeout=bytestream.PATIENCE)
        self._sending.cancel()
