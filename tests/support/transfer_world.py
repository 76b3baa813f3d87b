"""Stores of a daemon with the pull over them, and a registry in memory that counts and misbehaves on order."""

from __future__ import annotations

import asyncio
import gzip
import io
import os
import tarfile
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from images_world import NS, Silent, World, described, encoded

from orlop.core import digest as digests
from orlop.core import media
from orlop.core.content import Reader
from orlop.core.descriptor import Descriptor
from orlop.core.platform import Platform
from orlop.core.registry import RegistryOptions
from orlop.core.transfer import Progress, RegistryEnd, StoreEnd, UnpackRequest
from orlop.errors import NotFound, Unavailable
from orlop.layers.differ import WalkingDiffer
from orlop.metadata.leases import Leases
from orlop.metadata.snapshots import NamespacedSnapshots
from orlop.mounts.temporary import TemporaryMounts
from orlop.snapshots.native import NativeSnapshotter
from orlop.transfer.fetch import Fetches
from orlop.transfer.pull import Puller
from orlop.transfer.stores import Stores
from orlop.transfer.unpacking import UnpackTarget

REFERENCE = "registry.example/app:1"
AMD64 = Platform("linux", "amd64")
ARM64 = Platform("linux", "arm64")


@dataclass
class Registry:
    """Implements `core.registry.Registries` and `Repository`: blobs by digest, one root."""

    blobs: dict[str, bytes] = field(default_factory=dict)
    root: Descriptor | None = None
    reference: str = REFERENCE
    asked: list[tuple[str, int]] = field(default_factory=list)
    """The digests and offsets of all fetches."""
    piece: int = 1000
    break_at: dict[str, int] = field(default_factory=dict)
    """Bytes after which a blob's first fetch breaks."""
    hold: dict[str, Any] = field(default_factory=dict)
    """Events that a blob's bytes wait for after the first piece."""
    pushed: list[str] = field(default_factory=list)
    tagged: list[str] = field(default_factory=list)
    mounted_from: dict[str, Sequence[str]] = field(default_factory=dict)

    @property
    def fetched(self) -> set[str]:
        return {digest for digest, _ in self.asked}

    def put(self, data: bytes, media_type: str, **more: Any) -> dict[str, Any]:
        self.blobs[digests.of(data)] = data
        return described(data, media_type, **more)

    def image(self, layers: Sequence[bytes], platform: Platform = AMD64, layer_type: str = "") -> dict[str, Any]:
        """Puts an image of these tars, gzipped; returns its manifest's description."""
        config = {
            "os": platform.os,
            "architecture": platform.architecture,
            "rootfs": {"type": "layers", "diff_ids": [digests.of(layer) for layer in layers]},
        }
        manifest = {
            "schemaVersion": 2,
            "mediaType": media.OCI_MANIFEST,
            "config": self.put(encoded(config), media.OCI_CONFIG),
            "layers": [
                self.put(gzip.compress(layer, mtime=0), media.OCI_LAYER_GZIP)
                if not layer_type
                else self.put(layer, layer_type)
                for layer in layers
            ],
        }
        shown = {"os": platform.os, "architecture": platform.architecture}
        return self.put(encoded(manifest), media.OCI_MANIFEST, platform=shown)

    def index(self, *manifests: dict[str, Any]) -> dict[str, Any]:
        document = {"schemaVersion": 2, "mediaType": media.OCI_INDEX, "manifests": manifests}
        return self.put(encoded(document), media.OCI_INDEX)

    def serve(self, described: dict[str, Any]) -> None:
        self.root = Descriptor(described["mediaType"], described["digest"], described["size"])

    def repository(self, reference: str, options: RegistryOptions) -> Registry:
        return self

    async def resolve(self) -> Descriptor:
        if self.root is None:
            raise NotFound(self.reference)
        return self.root

    @asynccontextmanager
    async def fetch(self, descriptor: Descriptor, offset: int = 0) -> AsyncIterator[AsyncIterator[bytes]]:
        self.asked.append((descriptor.digest, offset))
        yield self._pieces(descriptor.digest, offset)

    async def _pieces(self, digest: str, offset: int) -> AsyncIterator[bytes]:
        data = self.blobs[digest]
        end = self.break_at.pop(digest, None)
        while offset < len(data):
            if end is not None and offset >= end:
                raise Unavailable(f"{self.reference}: {digest}: connection reset")
            piece = data[offset : offset + self.piece]
            offset += len(piece)
            yield piece
            if digest in self.hold:
                await self.hold[digest].wait()

    async def push(
        self,
        descriptor: Descriptor,
        open_reader: Callable[[], Awaitable[Reader]],
        *,
        mount_from: Sequence[str] = (),
        progress: Callable[[int], None] = lambda _: None,
    ) -> bool:
        self.mounted_from[descriptor.digest] = mount_from
        if descriptor.digest in self.blobs:
            return False
        self.blobs[descriptor.digest] = await _whole(open_reader)
        self.pushed.append(descriptor.digest)
        progress(descriptor.size)
        return True

    async def tag(self, descriptor: Descriptor, open_reader: Callable[[], Awaitable[Reader]]) -> None:
        self.blobs[descriptor.digest] = await _whole(open_reader)
        self.pushed.append(descriptor.digest)
        self.tagged.append(descriptor.digest)

    async def referrers(self, digest: str, artifact_type: str = "") -> list[Descriptor]:
        return []

    async def close(self) -> None:
        return


async def _whole(open_reader: Callable[[], Awaitable[Reader]]) -> bytes:
    reader = await open_reader()
    try:
        return await reader.read(0, reader.size)
    finally:
        await reader.close()


class PullWorld(World):
    """A world with a native snapshotter, and pulls into it from `registry`."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.registry = Registry()
        self.leases = Leases(self.db)
        self.mounts = TemporaryMounts(root / "tmpmounts")
        self.driver = NativeSnapshotter(root / "snapshots")
        self.snapshots = NamespacedSnapshots(self.db, {"native": self.driver}, Silent())
        self.differ = WalkingDiffer(self.content, self.mounts)
        self.stores = Stores(self.content, self.images, self.snapshots, self.leases, self.db.settle)
        self.fetches = Fetches(self.content, self.leases, 3)
        self.told: list[Progress] = []

    def puller(self, **more: Any) -> Puller:
        targets = [UnpackTarget(AMD64, "native", self.differ)]
        return Puller(self.stores, self.registry, self.fetches, targets, more.pop("verifiers", {}), **more)

    async def pull(self, scope: Any = NS, puller: Puller | None = None, unpack: bool = True, **more: Any) -> None:
        end = StoreEnd(REFERENCE, unpacks=[UnpackRequest(AMD64, "native")] if unpack else [], **more)
        await (puller or self.puller()).pull(scope, RegistryEnd(REFERENCE), end, self.told.append)

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(30):
            while not condition():  # noqa: ASYNC110
                await asyncio.sleep(0)

    async def digests(self) -> set[str]:
        return {info.digest for info in await self.content.list(NS)}


@asynccontextmanager
async def pull_world(root: Path) -> AsyncIterator[PullWorld]:
    it = PullWorld(root)
    try:
        yield it
    finally:
        await it.driver.close()
        it.mounts.close()
        it.backend.close()
        it.db.close()


def layer_of(name: str, size: int = 100) -> bytes:
    """A tar with one file of random bytes."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        entry = tarfile.TarInfo(name)
        entry.size = size
        tar.addfile(entry, io.BytesIO(os.urandom(size)))
    return out.getvalue()
