"""The `walking` differ: layers applied entry by entry, and made by walking two trees.

All work on files is done by one thread a call, which owns its mounts too: a call that is cancelled waits until that
thread has seen it and has put everything back.
"""

from __future__ import annotations

import asyncio
import base64
import secrets
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Protocol

from orlop import faults
from orlop.core import clock
from orlop.core.content import ContentInfo, ContentStore, Writer
from orlop.core.descriptor import Descriptor
from orlop.core.diff import LOOSE
from orlop.core.layer import LayerPlace
from orlop.core.mount import Mount
from orlop.core.scope import Scope
from orlop.core.typed import Typed
from orlop.errors import AlreadyExists, Canceled, NotFound, OrlopError, Unimplemented, Unknown, of_call
from orlop.layers import apply as application
from orlop.layers import compare as comparison
from orlop.layers import keep, media, processors, syncing
from orlop.layers.ahead import LayersAhead
from orlop.layers.compression import Compression, Limits, compressor, decompress
from orlop.layers.keep import Keepers
from orlop.layers.pipeline import Ahead, Digester, in_thread, pieces_of
from orlop.layers.processors import StreamProcessor
from orlop.layers.stream import ByteStream
from orlop.layers.tar import TarReader
from orlop.mounts.options import split_lowers

UNCOMPRESSED_LABEL = "containerd.io/uncompressed"

_PIECE = 1 << 18
_CHAIN_LIMIT = 16
_COMPRESSIONS = {
    media.OCI_LAYER: Compression.NONE,
    media.OCI_LAYER_GZIP: Compression.GZIP,
    media.OCI_LAYER_ZSTD: Compression.ZSTD,
}


class Mounter(Protocol):
    """Temporary mounts, as `orlop.mounts.temporary.TemporaryMounts` makes them."""

    def mounted(self, mounts: Sequence[Mount], *, readonly: bool = False) -> AbstractContextManager[str]: ...


class WalkingDiffer:
    """Implements `orlop.core.diff.StreamDiffer` over a content store and temporary mounts."""

    def __init__(
        self,
        content: ContentStore,
        mounts: Mounter,
        stream_processors: Sequence[StreamProcessor] = (),
        *,
        keepers: Keepers | None = None,
        watcher: LayersAhead | None = None,
        limits: Limits | None = None,
        entries_limit: int = 10_000_000,
    ) -> None:
        self._content = content
        self._keepers = keepers or Keepers()
        self.watcher = watcher
        self._mounts = mounts
        self._processors = stream_processors
        self._limits = limits or Limits()
        self._entries_limit = entries_limit

    async def apply(
        self,
        scope: Scope,
        layer: Descriptor,
        mounts: Sequence[Mount],
        *,
        payloads: Mapping[str, Typed] | None = None,
        sync_fs: bool = False,
    ) -> Descriptor:
        """Unpacks `layer`; with `sync_fs` it is on disk when this returns. Raises as `core.diff.Differ` says."""
        try:
            reader = await self._content.open_reader(scope, layer.digest)
        except OrlopError as error:
            if not layer.digest:
                raise NotFound("failed to get reader from content store: content digest ") from error
            raise error.within("failed to get reader from content store") from error
        try:
            return await self._apply_pieces(layer, pieces_of(reader), mounts, payloads, sync_fs, self._source(layer))
        finally:
            await reader.close()

    async def apply_stream(
        self,
        layer: Descriptor,
        source: Iterable[bytes],
        mounts: Sequence[Mount],
        *,
        payloads: Mapping[str, Typed] | None = None,
        sync_fs: bool = False,
    ) -> Descriptor:
        """As `apply`, with the blob's bytes from `source`, perhaps while they arrive."""
        # Whether they are those of the blob shows at their end: what they become proves nothing of it before.
        return await self._apply_pieces(layer, source, mounts, payloads, sync_fs, "")

    async def verified(self, layer: Descriptor, applied: Descriptor) -> None:
        """The next `apply` of the same blob finds the layer that is kept, and reads nothing."""
        if source := self._source(layer):
            await asyncio.to_thread(self._keepers.remember, applied.digest, source)

    def _source(self, layer: Descriptor) -> str:
        """What names the tar that the stored blob of `layer` becomes; empty where programs decide that."""
        opening = media.opening(layer.media_type)
        if opening is None or any(layer.media_type in processor.accepts for processor in self._processors):
            return ""
        return media.source(layer.digest, opening)

    async def _apply_pieces(
        self,
        layer: Descriptor,
        pieces: Iterable[bytes],
        mounts: Sequence[Mount],
        payloads: Mapping[str, Typed] | None,
        sync_fs: bool,
        source: str,
    ) -> Descriptor:
        try:
            stages = self._stages(layer.media_type, payloads or {})
        except OrlopError as error:
            raise error.within(f"failed to get stream processor for {layer.media_type}") from error
        return await in_thread(lambda stop: self._apply_or_keep(iter(pieces), stages, mounts, sync_fs, source, stop))

    def _stages(self, media_type: str, payloads: Mapping[str, Typed]) -> list[_Stage]:
        """What a layer of `media_type` goes through until it is a tar. The administrator's programs come first."""
        stages: list[_Stage] = []
        while True:
            if len(stages) > _CHAIN_LIMIT:
                raise Unknown(f"more than {_CHAIN_LIMIT} processors in turn")
            processor = next((one for one in self._processors if media_type in one.accepts), None)
            if processor is not None:
                stages.append(_program(processor, media_type, payloads.get(processor.id)))
                media_type = processor.returns
                if media_type == media.OCI_LAYER:
                    return stages
                continue
            match media.opening(media_type):
                case media.Opening.RAW:
                    return stages
                case media.Opening.DETECTED:
                    stages.append(lambda chunks, _: decompress(chunks, self._limits))
                    return stages
            raise Unknown("no processor for media-type")

    def _apply_or_keep(
        self,
        chunks: Iterator[bytes],
        stages: Sequence[_Stage],
        mounts: Sequence[Mount],
        sync_fs: bool,
        source: str,
        stop: threading.Event,
    ) -> Descriptor:
        place = self._keepers.place(mounts)
        if place is None:
            return self._apply(chunks, stages, self._keepers.current(mounts), sync_fs, stop)
        with place as into:
            overlaid = bool(_overlay(mounts)[0])
            if source and self.watcher is not None:
                self.watcher.settle(source.partition(" ")[0], stop)
            if source and (layer := into.known(source, overlaid=overlaid)) is not None:
                return Descriptor(media.OCI_LAYER, layer.diff_id, layer.size)
            try:
                return self._keep(chunks, stages, mounts, sync_fs, source, into, stop)
            except OSError as error:
                raise of_call(error, "failed to store layer") from error

    def _keep(
        self,
        chunks: Iterator[bytes],
        stages: Sequence[_Stage],
        mounts: Sequence[Mount],
        sync_fs: bool,
        source: str,
        into: LayerPlace,
        stop: threading.Event,
    ) -> Descriptor:
        """The layer as tar and index, or unpacked from that tar where no index can say what is in it."""
        for stage in stages:
            chunks = stage(chunks, stop)
        overlaid = bool(_overlay(mounts)[0])
        with Ahead(chunks, stop) as ahead, Digester() as digester:
            traits = keep.index(into, digester.passing(ahead), overlaid=overlaid, entries_limit=self._entries_limit)
        if traits is not None:
            into.keep(digester.digest, source, traits)
        else:
            archive = TarReader(ByteStream(keep.written(into)), entries_limit=self._entries_limit)
            self._onto(mounts, archive, sync_fs)
        return Descriptor(media.OCI_LAYER, digester.digest, digester.size)

    def _apply(
        self,
        chunks: Iterator[bytes],
        stages: Sequence[_Stage],
        mounts: Sequence[Mount],
        sync_fs: bool,
        stop: threading.Event,
    ) -> Descriptor:
        for stage in stages:
            chunks = stage(chunks, stop)
        with Ahead(chunks, stop) as ahead, Digester() as digester:
            stream = ByteStream(digester.passing(ahead))
            self._onto(mounts, TarReader(stream, entries_limit=self._entries_limit), sync_fs)
            stream.drain()
        return Descriptor(media.OCI_LAYER, digester.digest, digester.size)

    def _onto(self, mounts: Sequence[Mount], archive: TarReader, sync_fs: bool) -> None:
        nested = application.in_user_namespace()
        upper, lowers = _overlay(mounts)
        if upper and not nested:
            application.apply(
                archive, upper, application.Options(overlay=True, lowers=lowers, loose=LOOSE in mounts[0].options)
            )
            faults.point("layers.apply.written")
            if sync_fs:
                syncing.syncfs(upper)
            return
        with self._mounts.mounted(mounts) as root:
            try:
                application.apply(archive, root, application.Options(devices=not nested))
            except OrlopError as error:
                raise error.within(f"mount callback failed on {root}") from error
        faults.point("layers.apply.written")
        if sync_fs and len(mounts) == 1 and mounts[0].type == "bind":
            syncing.syncfs(mounts[0].source)

    async def compare(
        self,
        scope: Scope,
        lower: Sequence[Mount],
        upper: Sequence[Mount],
        *,
        media_type: str = "",
        ref: str = "",
        labels: Mapping[str, str] | None = None,
        epoch: int | None = None,
    ) -> Descriptor:
        """Stores the layer that makes `upper` of `lower`. An ingest under the caller's own `ref` outlives a failure."""
        media_type = media_type or media.OCI_LAYER_GZIP
        compression = _COMPRESSIONS.get(media_type)
        if compression is None:
            raise Unimplemented(f"unsupported diff media type: {media_type}")
        name = ref or _unique_ref()
        try:
            writer = await self._content.open_writer(scope, name)
        except OrlopError as error:
            raise error.within("failed to open writer") from error
        committed = False
        try:
            await writer.truncate(0)
            loop = asyncio.get_running_loop()

            def work(stop: threading.Event) -> str:
                def store(data: bytes) -> None:
                    if stop.is_set():
                        raise Canceled("layer")
                    asyncio.run_coroutine_threadsafe(_write(writer, data), loop).result()

                return self._compare(lower, upper, compression, epoch, store)

            diff_id = await in_thread(work)
            faults.point("layers.compare.written")
            info = await self._commit(scope, writer, dict(labels or {}), compression, diff_id)
            committed = True
        finally:
            await writer.close()
            if not committed and not ref:
                await self._content.abort(scope, name)
        return Descriptor(media_type, info.digest, info.size)

    def _compare(
        self,
        lower: Sequence[Mount],
        upper: Sequence[Mount],
        compression: Compression,
        epoch: int | None,
        store: Callable[[bytes], None],
    ) -> str:
        """Writes the layer to `store`; returns its diff id."""
        lower, upper = self._keepers.current(lower), self._keepers.current(upper)
        with self._mounts.mounted(lower) as before, self._mounts.mounted(upper, readonly=True) as after:
            try:
                with Digester() as digester:
                    output = _Output(compression, digester, store)
                    comparison.compare(before, after, output.add, epoch=epoch)
                    output.finish()
            except OSError as error:
                failed = Unknown(f"failed to create diff tar stream: {(error.strerror or str(error)).lower()}")
                raise failed.within(f"mount callback failed on {after}") from error
            except OrlopError as error:
                raise error.within(f"mount callback failed on {after}") from error
        return digester.digest

    async def _commit(
        self, scope: Scope, writer: Writer, labels: dict[str, str], compression: Compression, diff_id: str
    ) -> ContentInfo:
        if compression is not Compression.NONE:
            labels[UNCOMPRESSED_LABEL] = diff_id
        digest = writer.digest()
        try:
            return await writer.commit(0, digest, labels)
        except AlreadyExists:
            info = await self._content.info(scope, digest)
        wanted = labels.get(UNCOMPRESSED_LABEL)
        if wanted and UNCOMPRESSED_LABEL not in info.labels:
            info = replace(info, labels={**info.labels, UNCOMPRESSED_LABEL: wanted})
            info = await self._content.update(scope, info, [f"labels.{UNCOMPRESSED_LABEL}"])
        return info


_Stage = Callable[[Iterator[bytes], threading.Event], Iterator[bytes]]


class _Output:
    """Gathers what is written to pieces worth handing over, digests them, compresses them and stores them."""

    def __init__(self, compression: Compression, digester: Digester, store: Callable[[bytes], None]) -> None:
        self._compressor = compressor(compression)
        self._digester = digester
        self._store = store
        self._parts: list[bytes] = []
        self._size = 0

    def add(self, data: bytes) -> None:
        self._parts.append(data)
        self._size += len(data)
        if self._size >= _PIECE:
            self._flush()

    def finish(self) -> None:
        self._flush()
        self._store_some(self._compressor.flush())

    def _flush(self) -> None:
        piece = b"".join(self._parts)
        self._parts.clear()
        self._size = 0
        self._digester.add(piece)
        self._store_some(self._compressor.compress(piece))

    def _store_some(self, data: bytes) -> None:
        if data:
            self._store(data)


async def _write(writer: Writer, data: bytes) -> None:
    await writer.write(data)


def _program(processor: StreamProcessor, media_type: str, payload: Typed | None) -> _Stage:
    program = processor.program()
    return lambda chunks, stop: processors.run(processor, program, media_type, payload, chunks, stop)


def _overlay(mounts: Sequence[Mount]) -> tuple[str, list[str]]:
    """The upper and lower directories of `mounts` where they are one writable overlay, else an empty upper."""
    if len(mounts) != 1 or mounts[0].type != "overlay":
        return "", []
    upper, lowers = "", []
    for option in mounts[0].options:
        key, _, value = option.partition("=")
        if key == "upperdir":
            upper = value
        elif key == "lowerdir":
            lowers = split_lowers(value)[0]
    return upper, lowers


def _unique_ref() -> str:
    return f"{clock.now()}-{base64.urlsafe_b64encode(secrets.token_bytes(3)).decode()}"
