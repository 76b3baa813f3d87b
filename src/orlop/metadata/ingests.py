"""The holder of a namespace's ingest: what it commits becomes a record of the namespace.

A writer that was opened for a blob which another namespace has already is *complete* from the start: it has no ingest
in the backend until something is written or truncated.
"""

from __future__ import annotations

from collections.abc import Mapping

import apsw

from orlop import faults
from orlop.api.events import content_pb2 as events
from orlop.core import clock, labels
from orlop.core.content import Backend, ContentInfo, IngestStatus, Writer
from orlop.core.event import Publisher
from orlop.core.scope import Scope
from orlop.errors import AlreadyExists, FailedPrecondition
from orlop.metadata import leases, records
from orlop.metadata.database import Database
from orlop.metadata.gate import Gate

_COPY_CHUNK = 1 << 20


class NamespacedWriter:
    """An open ingest of a namespace. `shared` is the blob that it stands for, until it has a `writer` of its own."""

    def __init__(
        self,
        db: Database,
        backend: Backend,
        publisher: Publisher,
        gate: Gate,
        scope: Scope,
        ref: str,
        backend_ref: str,
        writer: Writer | None,
        shared: ContentInfo | None,
    ) -> None:
        self._db = db
        self._backend = backend
        self._publisher = publisher
        self._gate = gate
        self._scope = scope
        self._ref = ref
        self._backend_ref = backend_ref
        self._writer = writer
        self._shared = shared
        self._started_at = clock.now()

    async def status(self) -> IngestStatus:
        if self._writer is not None:
            status = await self._writer.status()
            return IngestStatus(
                ref=self._ref,
                offset=status.offset,
                total=status.total,
                started_at=status.started_at,
                updated_at=status.updated_at,
            )
        blob = self._blob()
        return IngestStatus(self._ref, blob.size, blob.size, blob.digest, self._started_at, self._started_at)

    def digest(self) -> str:
        return self._blob().digest if self._writer is None else self._writer.digest()

    def share(self) -> int:
        return -1 if self._writer is None else self._writer.share()

    async def write(self, data: bytes) -> int:
        """Appends. What is appended to a complete ingest comes behind a copy of the blob."""
        if self._writer is None:
            blob = self._blob()
            if not data:
                return blob.size
            self._writer = await self._copy(blob)
        return await self._writer.write(data)

    async def truncate(self, size: int) -> None:
        if self._writer is None:
            self._writer = await self._backend.open_writer(self._backend_ref)
        await self._writer.truncate(size)

    async def sync(self) -> None:
        if self._writer is not None:
            await self._writer.sync()

    async def commit(self, size: int = 0, expected: str = "", labels: Mapping[str, str] | None = None) -> ContentInfo:
        """Makes the record of the blob: the blob is durable on return, and its record where the scope is to last.

        Raises InvalidArgument for a label that is too long, FailedPrecondition for another size or digest, and
        AlreadyExists if the namespace has the blob: then the ingest is gone, and the blob is in the caller's lease.
        """
        try:
            await self.sync()  # so that the sweep need not wait for the disk, but only for a rename
            async with self._gate.passing():
                blob = await self._commit_blob(size, expected, labels)
                info = await self._record(blob, labels)
        finally:
            await self.close()
        event = events.ContentCreate(digest=info.digest, size=info.size)
        self._publisher.publish(self._scope.namespace, "/content/create", event)
        return info

    async def close(self) -> None:
        if self._writer is not None:
            await self._writer.close()

    def _blob(self) -> ContentInfo:
        if self._shared is None:
            raise FailedPrecondition(f'"{self._ref}" has no writer')
        return self._shared

    async def _copy(self, blob: ContentInfo) -> Writer:
        writer = await self._backend.open_writer(self._backend_ref, blob.size)
        try:
            await writer.truncate(0)
            reader = await self._backend.open_reader(blob.digest)
            try:
                offset = 0
                while data := await reader.read(offset, _COPY_CHUNK):
                    offset = await writer.write(data)
            finally:
                await reader.close()
        except BaseException:
            await writer.close()
            raise
        return writer

    async def _commit_blob(self, size: int, expected: str, given: Mapping[str, str] | None) -> ContentInfo:
        labels.validate(given or {}, "info.Labels")
        status = await self.status()
        if size not in (0, status.offset):
            raise FailedPrecondition(f'"{self._ref}" failed size validation: {status.offset} != {size}')
        if self._writer is None:
            blob = self._blob()
            if expected and expected != blob.digest:
                raise FailedPrecondition(f'"{self._ref}" unexpected digest')
            return await self._backend.info(blob.digest)
        try:
            return await self._writer.commit(status.offset, expected)
        except AlreadyExists:
            return ContentInfo(self._writer.digest(), status.offset)

    async def _record(self, blob: ContentInfo, given: Mapping[str, str] | None) -> ContentInfo:
        faults.point("metadata.content.unrecorded")
        now = clock.now()
        info = ContentInfo(blob.digest, blob.size, now, now, labels.stored(given))
        scope = self._scope

        def change(connection: apsw.Connection) -> bool:
            records.ensure_namespace(connection, scope.namespace)
            connection.execute(
                "INSERT INTO blobs (namespace, digest, size, labels, created_at, updated_at) "
                "VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (namespace, digest) DO NOTHING",
                (scope.namespace, info.digest, info.size, records.dump_labels(info.labels), now, now),
            )
            is_new = connection.changes() > 0
            connection.execute("DELETE FROM ingests WHERE namespace = ? AND ref = ?", (scope.namespace, self._ref))
            leases.leave(connection, scope, "ingests", self._ref)
            leases.join(connection, scope, "content", info.digest)
            return is_new

        if not await self._db.write(change, durable=scope.lasts):
            raise AlreadyExists(f"content {info.digest}")
        return info
