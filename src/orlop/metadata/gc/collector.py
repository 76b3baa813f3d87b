"""One collection: mark from a consistent read, remove records in bounded batches, then free what stood behind them.

The mark does not stop writers. What they commit meanwhile is followed by row: each batch is removed in a write
transaction of its own, in which every row that was written since the mark counts as a root. So nothing that a request
has referenced in the meantime is taken; at worst something is kept until the next run.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import apsw

from orlop import faults
from orlop.api.events import image_pb2, snapshot_pb2
from orlop.core import clock
from orlop.core.event import Publisher
from orlop.metadata.database import Database
from orlop.metadata.gc.graph import COLLECTABLE, Graph
from orlop.metadata.gc.references import Kind, Node
from orlop.metadata.gc.refresh import refresh

_LOGGER = logging.getLogger(__name__)

BATCH = 500
"""Rows removed in one transaction: bounds how long a writer waits."""

Garbage = tuple[str, int, Node]


class SnapshotFiles(Protocol):
    """The side of the snapshot store that frees what no record names."""

    async def cleanup(self, snapshotter: str) -> None: ...

    @property
    def snapshotters(self) -> Iterable[str]: ...


class ContentFiles(Protocol):
    """The side of the content store that frees what no record names."""

    async def cleanup(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Collection:
    """What one run did, and for how long it held up writers (seconds)."""

    removed: int
    paused: float


class Collector:
    """Collects garbage; runs must not overlap (the scheduler sees to that)."""

    def __init__(
        self,
        db: Database,
        publisher: Publisher,
        snapshots: SnapshotFiles,
        content: ContentFiles,
        *,
        others: Sequence[Callable[[], Awaitable[None]]] = (),
        on_lease: Sequence[Callable[[str, str], None]] = (),
        now: Callable[[], int] = clock.now,
    ) -> None:
        self._db = db
        self._publisher = publisher
        self._snapshots = snapshots
        self._content = content
        self._others = others
        """What else frees things without a record. It comes first: mounts keep snapshots busy."""
        self._on_lease = on_lease
        """Told the namespace and id of each lease that has expired and is removed."""
        self._now = now

    async def collect(self) -> Collection:
        """Removes everything that is unreachable, files included."""
        touched: set[tuple[str, int]] = set()
        self._db.listeners.append(touched.update)
        try:
            now = self._now()
            graph = await asyncio.to_thread(self._db.read, lambda connection: Graph.read(connection, now))
            faults.point("gc.marked")
            removed, paused = await self._remove(graph, touched)
        finally:
            self._db.listeners.remove(touched.update)
        self._tell(removed)
        faults.point("gc.removed")
        await self._free()
        return Collection(len(removed), paused)

    async def _remove(self, graph: Graph, touched: set[tuple[str, int]]) -> tuple[list[Node], float]:
        # Children before parents: a child's row is always the younger one.
        garbage = sorted(graph.garbage(), key=lambda item: (item[0], -item[1]))
        removed: list[Node] = []
        paused = 0.0
        for start in range(0, len(garbage), BATCH):
            batch = garbage[start : start + BATCH]

            def sweep(connection: apsw.Connection, batch: list[Garbage] = batch) -> tuple[list[Node], float]:
                begun = clock.monotonic()
                survivors = graph.reachable(refresh(graph, connection, touched | self._db.uncommitted))
                gone = [node for table, row, node in batch if node not in survivors and _delete(connection, table, row)]
                return gone, clock.monotonic() - begun

            gone, seconds = await self._db.write(sweep, frees=True)
            removed.extend(gone)
            paused += seconds
        return removed, paused

    def _tell(self, removed: list[Node]) -> None:
        for node in removed:
            if node.kind is Kind.LEASE:
                for told in self._on_lease:
                    told(node.namespace, node.key)
            elif node.kind is Kind.IMAGE:
                self._publisher.publish(node.namespace, "/images/delete", image_pb2.ImageDelete(name=node.key))
            elif node.kind is Kind.SNAPSHOT:
                snapshotter, _, key = node.key.partition("/")
                event = snapshot_pb2.SnapshotRemove(key=key, snapshotter=snapshotter)
                self._publisher.publish(node.namespace, "/snapshot/remove", event)

    async def _free(self) -> None:
        """Frees files without a record. What one refuses is logged and left for the next run."""
        for free in self._others:
            try:
                await free()
            except Exception:
                _LOGGER.exception("freeing what was collected")
        for snapshotter in self._snapshots.snapshotters:
            try:
                await self._snapshots.cleanup(snapshotter)
            except Exception:
                _LOGGER.exception("freeing removed snapshots of %s", snapshotter)
        await self._content.cleanup()


def _delete(connection: apsw.Connection, table: str, row: int) -> bool:
    """Removes a record; False if it has gone in the meantime."""
    if table not in COLLECTABLE:
        raise ValueError(f"records of {table} are never collected")
    if table == "leases":
        connection.execute(
            "DELETE FROM lease_resources WHERE (namespace, lease) IN (SELECT namespace, id FROM leases WHERE row = ?)",
            (row,),
        )
    connection.execute(f"DELETE FROM {table} WHERE row = ?", (row,))
    return bool(connection.changes())
