"""What the conformance suite runs over: a driver, and every way by which its snapshots can be had.

A way is `driver` (the driver itself), `store` (records by namespace over it), or the service and its client over a
channel: `in-process`, or a unix socket that the engine `native` or `grpcio` serves.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from google.protobuf.message import Message
from layer_world import IndexingSnapshotter

from orlop.api.services.snapshots.v1 import snapshots_pb2
from orlop.client.snapshots import Snapshots
from orlop.core.mount import Mount
from orlop.core.scope import Scope
from orlop.core.snapshot import SnapshotInfo, SnapshotStore, Snapshotter, Usage
from orlop.errors import OrlopError
from orlop.metadata.database import Database
from orlop.metadata.schema import MIGRATIONS
from orlop.metadata.snapshots import NamespacedSnapshots
from orlop.rpc.channel import Channel, GrpcChannel, InProcessChannel
from orlop.rpc.server import GrpcServer
from orlop.rpc.service import Service
from orlop.services.snapshots import SnapshotsService
from orlop.snapshots.directories import DirectorySnapshotter
from orlop.snapshots.erofs import ErofsSnapshotter
from orlop.snapshots.native import NativeSnapshotter
from orlop.snapshots.overlayfs import OverlaySnapshotter

KINDS: Mapping[str, Callable[[Path], DirectorySnapshotter]] = {
    "overlayfs": OverlaySnapshotter,
    "native": NativeSnapshotter,
    "indexed": IndexingSnapshotter,
    "erofs": ErofsSnapshotter,
}
ENGINES = ("native", "grpcio")
CHANNELS = ("in-process", *ENGINES)
SCOPE = Scope("conformance")
DESCRIPTOR = snapshots_pb2.DESCRIPTOR.services_by_name["Snapshots"]


class Deaf:
    """Hears no events."""

    def publish(self, namespace: str, topic: str, payload: Message) -> None:
        pass


@dataclass(frozen=True)
class Subject:
    """The snapshots of the driver `kind`, had by `way`; everything lies in `root`."""

    kind: str
    way: str
    root: Path

    def __str__(self) -> str:
        return f"{self.kind}-{self.way}"

    @property
    def keeps_layers(self) -> bool:
        """Whether a committed snapshot is another thing on disk than the active one was."""
        return self.kind in ("indexed", "erofs")

    @property
    def directories(self) -> Path:
        """Where the driver keeps one directory for each snapshot."""
        return self.root / "driver/snapshots"

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Snapshotter]:
        async with AsyncExitStack() as stack:
            driver = KINDS[self.kind](self.root / "driver")
            stack.push_async_callback(driver.close)
            if self.way == "driver":
                yield driver
                return
            db = Database(self.root / "meta.db", MIGRATIONS, sync=False)
            stack.callback(db.close)
            store = NamespacedSnapshots(db, {self.kind: driver}, Deaf())
            if self.way == "store":
                yield AsDriver(store, self.kind, store.cleanup, driver.close)
                return
            channel = await stack.enter_async_context(served(self.way, store, self.root / "s"))
            yield AsDriver(Snapshots(channel), self.kind, store.cleanup, channel.close)


@asynccontextmanager
async def served(way: str, store: SnapshotStore, address: Path) -> AsyncIterator[Channel]:
    """A channel to the service over `store`."""
    service = Service(DESCRIPTOR, SnapshotsService(store))
    async with AsyncExitStack() as stack:
        channel: Channel
        if way == "in-process":
            channel = InProcessChannel([service])
        else:
            server = GrpcServer("native" if way == "native" else "grpcio")
            server.add(service)
            await server.start(str(address))
            stack.push_async_callback(server.stop)
            channel = GrpcChannel(str(address))
        stack.push_async_callback(channel.close)
        yield channel


class AsDriver:
    """The snapshots of one namespace and one snapshotter, told as a driver tells of its own.

    `cleanup` is what frees the disk, which no client can ask for.
    """

    def __init__(
        self,
        store: SnapshotStore,
        snapshotter: str,
        cleanup: Callable[[str], Awaitable[None]],
        close: Callable[[], Awaitable[None]],
    ) -> None:
        self._store = store
        self._name = snapshotter
        self._cleanup = cleanup
        self._close = close

    async def prepare(self, key: str, parent: str = "", labels: Mapping[str, str] | None = None) -> list[Mount]:
        with _in_a_drivers_words():
            return await self._store.prepare(SCOPE, self._name, key, parent, labels)

    async def view(self, key: str, parent: str = "", labels: Mapping[str, str] | None = None) -> list[Mount]:
        with _in_a_drivers_words():
            return await self._store.view(SCOPE, self._name, key, parent, labels)

    async def mounts(self, key: str) -> list[Mount]:
        with _in_a_drivers_words():
            return await self._store.mounts(SCOPE, self._name, key)

    async def commit(self, name: str, key: str, labels: Mapping[str, str] | None = None, parent: str = "") -> None:
        with _in_a_drivers_words():
            await self._store.commit(SCOPE, self._name, name, key, labels, parent)

    async def remove(self, key: str) -> None:
        with _in_a_drivers_words():
            await self._store.remove(SCOPE, self._name, key)

    async def stat(self, key: str) -> SnapshotInfo:
        with _in_a_drivers_words():
            return await self._store.stat(SCOPE, self._name, key)

    async def update(self, info: SnapshotInfo, fields: Sequence[str] | None) -> SnapshotInfo:
        with _in_a_drivers_words():
            return await self._store.update(SCOPE, self._name, info, fields)

    async def usage(self, key: str) -> Usage:
        with _in_a_drivers_words():
            return await self._store.usage(SCOPE, self._name, key)

    async def walk(self) -> list[SnapshotInfo]:
        """A list is in the order of keys; a driver's, parents before children."""
        infos = {info.name: info for info in await self._store.list(SCOPE, self._name)}

        def depth(name: str) -> int:
            return 1 + depth(infos[name].parent) if name else 0

        return sorted(infos.values(), key=lambda info: (depth(info.name), info.name))

    async def cleanup(self) -> None:
        await self._cleanup(self._name)

    async def close(self) -> None:
        await self._close()


@contextlib.contextmanager
def _in_a_drivers_words() -> Iterator[None]:
    """A driver under a store names `<namespace>/<number>/<key>` in its refusals; by itself it says `<key>`."""
    try:
        yield
    except OrlopError as error:
        raise type(error).verbatim(re.sub(rf"\b{SCOPE.namespace}/\d+/", "", str(error))) from error
