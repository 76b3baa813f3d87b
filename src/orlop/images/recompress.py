"""A layer compressed otherwise: the same archive, the same diff id, another blob."""

from __future__ import annotations

import asyncio
import threading
import uuid
from collections.abc import Callable, Iterator

from orlop.core.content import ContentInfo, ContentStore, Reader, Writer
from orlop.core.descriptor import Descriptor
from orlop.core.labels import UNCOMPRESSED
from orlop.core.scope import Scope
from orlop.errors import AlreadyExists, FailedPrecondition, NotFound
from orlop.layers.compression import Compression, compressor, decompress, detect
from orlop.layers.pipeline import Ahead, Digester, in_thread

_PIECE = 1 << 20


async def compression_of(content: ContentStore, scope: Scope, digest: str) -> Compression:
    """What a blob is compressed with, by its first bytes."""
    reader = await content.open_reader(scope, digest)
    try:
        return detect(await reader.read(0, 16))
    finally:
        await reader.close()


async def held(content: ContentStore, scope: Scope, digest: str) -> ContentInfo | None:
    """The blob, which the lease of `scope` holds from now on: nothing else may do so. None if it is not there."""
    try:
        writer = await content.open_writer(scope, f"convert-{uuid.uuid4().hex[:12]}", 0, digest)
    except AlreadyExists:
        return await content.info(scope, digest)
    try:
        status = await writer.status()
    finally:
        await writer.close()
    await _abort(content, scope, status.ref)
    return None


async def recompress(
    content: ContentStore,
    scope: Scope,
    layer: Descriptor,
    diff_id: str,
    to: Compression,
    progress: Callable[[int], None] = lambda _: None,
) -> ContentInfo:
    """Stores `layer` compressed as `to`: always the same bytes of the same layer. `progress` is told, in another
    thread, the bytes read.

    Raises FailedPrecondition where the layer's archive is not `diff_id`, Unknown where it is damaged.
    """
    labels = {} if to is Compression.NONE else {UNCOMPRESSED: diff_id}
    if to is Compression.NONE and (known := await held(content, scope, diff_id)):
        return known
    # Of its own, so that two conversions of one layer at a time do not wait for each other.
    ref = f"convert-{uuid.uuid4().hex[:12]}-{layer.digest}"
    reader = await content.open_reader(scope, layer.digest)
    committed = False
    try:
        writer = await content.open_writer(scope, ref)
        try:
            work = _Recompression(reader, writer, to, asyncio.get_running_loop(), progress)
            found = await in_thread(work.run)
            if found != diff_id:
                raise FailedPrecondition(
                    f"layer {layer.digest}: its archive is {found}, the image config says {diff_id}"
                )
            info = await _commit(content, scope, writer, labels)
            committed = True
        finally:
            await writer.close()
    finally:
        await reader.close()
        if not committed:
            await asyncio.shield(_abort(content, scope, ref))
    return info


async def _commit(content: ContentStore, scope: Scope, writer: Writer, labels: dict[str, str]) -> ContentInfo:
    digest = writer.digest()
    try:
        return await writer.commit(0, digest, labels)
    except AlreadyExists:
        # What was there may lack the label.
        info = ContentInfo(digest, 0, labels=labels)
        return (
            await content.update(scope, info, [f"labels.{key}" for key in labels])
            if labels
            else await content.info(scope, digest)
        )


async def _abort(content: ContentStore, scope: Scope, ref: str) -> None:
    try:
        await content.abort(scope, ref)
    except NotFound:
        return


class _Recompression:
    """Reads, decompresses, digests and compresses in threads; only the stores' calls are made in the event loop."""

    def __init__(
        self,
        reader: Reader,
        writer: Writer,
        to: Compression,
        loop: asyncio.AbstractEventLoop,
        progress: Callable[[int], None],
    ) -> None:
        self._reader, self._writer = reader, writer
        self._compressor = compressor(to)
        self._loop = loop
        self._progress = progress
        self._parts: list[bytes] = []
        self._size = 0

    def run(self, stop: threading.Event) -> str:
        """Returns the diff id."""
        with Ahead(decompress(self._chunks()), stop) as ahead, Digester() as digester:
            for piece in digester.passing(ahead):
                self._store(self._compressor.compress(piece))
            self._store(self._compressor.flush())
            self._flush()
        return digester.digest

    def _chunks(self) -> Iterator[bytes]:
        offset = 0
        while offset < self._reader.size:
            reading = asyncio.run_coroutine_threadsafe(self._reader.read(offset, _PIECE), self._loop)
            chunk = reading.result()
            if not chunk:
                return
            offset += len(chunk)
            self._progress(offset)
            yield chunk

    def _store(self, data: bytes) -> None:
        self._parts.append(data)
        self._size += len(data)
        if self._size >= _PIECE:
            self._flush()

    def _flush(self) -> None:
        data = b"".join(self._parts)
        self._parts, self._size = [], 0
        if data:
            asyncio.run_coroutine_threadsafe(_write(self._writer, data), self._loop).result()


async def _write(writer: Writer, data: bytes) -> None:
    await writer.write(data)
