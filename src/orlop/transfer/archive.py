"""Import and export: archives that come and go over streams."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass

from orlop.core.content import BlobWatcher, ContentInfo
from orlop.core.descriptor import Descriptor
from orlop.core.image import Image
from orlop.core.mount import Mount
from orlop.core.platform import Platform
from orlop.core.scope import Scope
from orlop.core.transfer import ExportEnd, ImportEnd, Progress, Report, StoreEnd
from orlop.errors import NotFound, Unimplemented
from orlop.images import children, documents, exporter, importer, select, unpack
from orlop.images.documents import DescriptorDocument
from orlop.transfer import naming
from orlop.transfer.locks import Locks
from orlop.transfer.stores import Stores
from orlop.transfer.unpacking import MARKS, Unpacks, UnpackTarget

_BATCH = 1 << 20
"""Bytes that are handed to the thread that reads an archive at a time."""


@dataclass(frozen=True, slots=True)
class Archives:
    """Imports and exports, one archive a call."""

    stores: Stores
    targets: Sequence[UnpackTarget]
    locks: Locks
    watcher: BlobWatcher | None = None

    async def import_archive(self, scope: Scope, source: ImportEnd, end: StoreEnd, report: Report) -> list[Image]:
        """Returns the images stored. Raises NotFound for an archive in which nothing has a name, or nothing is for the
        platforms that are wanted. What is for others gets no name either: its content is not kept."""
        report(Progress("Importing"))
        async with self.stores.leased(scope) as leased:
            pieces = threaded(source.pieces, asyncio.get_running_loop())
            index, found = await importer.read_archive(
                self.stores.content,
                leased,
                pieces,
                compressed=not source.media_type,
                compress=source.force_compress,
                watcher=self.watcher if end.unpacks else None,
            )
            entries = await self._keep(leased, index, found, end)
            named = [*naming.names_of_root(end, index)]
            for entry in entries:
                named += naming.names_in_archive(end, entry)
            for platform, target in Unpacks.of(end.unpacks, self.targets).matched:
                for entry in {entry.digest: entry for entry in entries}.values():
                    await self._unpack(leased, entry, platform, target)
            images = await naming.store(self.stores.images, leased, named)
        for image in images:
            report(Progress("saved", image.name, descriptor=image.target))
        report(Progress("Completed import"))
        return images

    async def _keep(
        self, scope: Scope, index: Descriptor, found: Sequence[DescriptorDocument], end: StoreEnd
    ) -> list[Descriptor]:
        """The entries of an archive's index that are wanted, with all that is wanted of them kept under the index.

        Raises NotFound, naming what there is, where the archive has images and none for the platforms asked for.
        """
        platforms = () if end.all_metadata else end.platforms
        wanted = []
        for entry, fits in select.choose(found, platforms, end.manifest_limit):
            target = entry.noun()
            if fits and (
                await children.label(self.stores.content, scope, target, platforms, end.manifest_limit) or not platforms
            ):
                wanted.append(target)
        if found and not wanted:
            has = {str(entry.platform.noun()): None for entry in found if entry.platform is not None}
            shown = f" (has {', '.join(has)})" if has else ""
            raise NotFound(f"archive: no image for {' or '.join(map(str, platforms))}{shown}")
        labels = children.labels_for(entry.noun() for entry in found)
        if labels:
            update = ContentInfo(index.digest, 0, labels=labels)
            await self.stores.content.update(scope, update, [f"labels.{key}" for key in labels])
        return wanted

    async def export_archive(self, scope: Scope, source: StoreEnd, end: ExportEnd, report: Report) -> None:
        """Returns when the client has taken the whole archive, as far as it tells."""
        report(Progress("Exporting"))
        async with self.stores.leased(scope) as leased:
            await exporter.export_archive(
                self.stores.content,
                leased,
                await self._images(leased, source),
                end.sink.write,
                platforms=end.platforms,
                all_platforms=end.all_platforms,
                docker_manifest=not end.skip_docker_manifest,
                non_distributable=not end.skip_non_distributable,
            )
            await end.sink.finish()
        report(Progress("Completed export"))

    async def _images(self, scope: Scope, source: StoreEnd) -> list[Image]:
        names = [source.name] if source.name else []
        for reference in source.extra_references:
            if reference.is_prefix:
                raise Unimplemented("prefix lookup on export not implemented")
            names.append(reference.name)
        return [await self.stores.images.get(scope, name) for name in names]

    async def _unpack(self, scope: Scope, entry: Descriptor, platform: Platform, target: UnpackTarget) -> None:
        """Unpacks what `entry` has for `platform`, if it has anything."""
        stores = self.stores
        try:
            _, manifest = await select.manifest_for(stores.content, scope, entry, platform)
        except NotFound:
            return
        config = manifest.config.noun()
        layers = [layer.noun() for layer in manifest.layers if target.takes_layer(layer.media_type)]
        if not target.takes_config(config.media_type) or not layers:
            return
        document = await documents.read_config(stores.content, scope, config)
        if not target.fits(document.platform):
            return
        chain = unpack.Chain.of(config, layers, document.rootfs.diff_ids)

        async def apply(number: int, mounts: Sequence[Mount]) -> Descriptor:
            return await target.differ.apply(scope, layers[number], mounts)

        async with self.locks.hold((scope.namespace, target.snapshotter, chain.ids[-1])):
            await unpack.unpack_chain(
                stores.content, stores.snapshots, scope, chain, target.snapshotter, apply, target.at_once, marks=MARKS
            )


def threaded(pieces: AsyncIterator[bytes], loop: asyncio.AbstractEventLoop) -> Iterator[bytes]:
    """`pieces`, for a thread that blocks until the loop has some."""

    async def batch() -> bytes:
        parts: list[bytes] = []
        size = 0
        while size < _BATCH and (piece := await anext(pieces, None)) is not None:
            parts.append(piece)
            size += len(piece)
        return b"".join(parts)

    while data := asyncio.run_coroutine_threadsafe(batch(), loop).result():
        yield data
