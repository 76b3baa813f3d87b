"""Content by namespace: records of blobs and ingests over a backend that knows no namespaces.

A blob is stored once; every namespace that has it has a record, with labels and times of its own. The backend's files
follow the records: a file is written before its record, and removed, by `cleanup`, after the last record is gone.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import apsw

from orlop import faults
from orlop.api.events import content_pb2 as events
from orlop.core import clock, filters, labels
from orlop.core.content import Backend, ContentInfo, IngestStatus, Reader
from orlop.core.event import Publisher
from orlop.core.scope import Scope
from orlop.errors import AlreadyExists, DataLoss, InvalidArgument, NotFound
from orlop.metadata import leases, records
from orlop.metadata.database import Database
from orlop.metadata.gate import Gate
from orlop.metadata.ingests import NamespacedWriter
from orlop.metadata.kept_rows import KeptRows, row_query

_log = logging.getLogger(__name__)

SHARED = "shared"
ISOLATED = "isolated"
SHAREABLE = "containerd.io/namespace.shareable"

_INGEST_LIFE = 24 * 3600 * 1_000_000_000
_SWEEP_AT_ONCE = 64


class NamespacedContent:
    """Blobs and ingests of namespaces (`core.content.ContentStore`). Belongs to one event loop.

    `policy` is `shared`, where a namespace may have a blob that another one brought by naming its digest, or
    `isolated`, where it must bring the bytes, except for blobs of a namespace that is labelled shareable.
    """

    def __init__(self, db: Database, backend: Backend, publisher: Publisher, policy: str = SHARED) -> None:
        if policy not in (SHARED, ISOLATED):
            raise InvalidArgument(f"unknown content_sharing_policy {policy!r} (has {SHARED}, {ISOLATED})")
        self._db = db
        self._backend = backend
        self._publisher = publisher
        self._policy = policy
        self._gate = Gate()
        self._infos = KeptRows(db, "blobs", row_query("blobs", _COLUMNS, "namespace", "digest"), _info)

    async def info(self, scope: Scope, digest: str) -> ContentInfo:
        """Raises NotFound. Any text may be asked for: what is no digest is not found."""
        info = self._infos.find(scope.namespace, digest)
        if info is None:
            raise _missing(digest)
        return info

    async def update(self, scope: Scope, info: ContentInfo, fields: Sequence[str] | None) -> ContentInfo:
        """Replaces all labels, or with `fields` those that it names; a label without a value goes."""

        def change(connection: apsw.Connection) -> ContentInfo:
            found = _require(connection, scope.namespace, info.digest)
            given = _updated(found, info, fields or ["labels"])
            labels.validate(given, "info.Labels")
            updated = replace(found, labels=labels.stored(given), updated_at=clock.now())
            connection.execute(
                "UPDATE blobs SET labels = ?, updated_at = ? WHERE namespace = ? AND digest = ?",
                (records.dump_labels(updated.labels), updated.updated_at, scope.namespace, info.digest),
            )
            return updated

        return await self._db.write(change, durable=scope.lasts)

    async def delete(self, scope: Scope, digest: str) -> None:
        """Removes the namespace's record; the file goes at the next collection. Raises NotFound."""

        def change(connection: apsw.Connection) -> None:
            _require(connection, scope.namespace, digest)
            _forget(connection, scope.namespace, digest)
            leases.leave(connection, scope, "content", digest)

        await self._db.write(change, removes=1, frees=True)
        self._publisher.publish(scope.namespace, "/content/delete", events.ContentDelete(digest=digest))

    async def open_reader(self, scope: Scope, digest: str) -> Reader:
        """Raises NotFound, also where the file is lost: then the records are dropped, so that it can come again.

        Raises DataLoss if the file has another size than the record.
        """
        info = await self.info(scope, digest)
        try:
            reader = await self._backend.open_reader(digest)
        except NotFound:
            await self._drop_lost(digest)
            raise
        if reader.size != info.size:
            await reader.close()
            raise DataLoss(f"content {digest}: {reader.size} bytes on disk, {info.size} were committed")
        return reader

    async def open_writer(
        self, scope: Scope, ref: str, total: int = 0, expected: str = "", *, outlives_lease: bool = False
    ) -> NamespacedWriter:
        """Starts the ingest `ref` of the namespace or goes on with it; it joins the caller's lease, or lives a day.

        What is new may be lost with the power, as what is written to it may. Raises AlreadyExists if the namespace has
        `expected`: then that joins the lease. Raises NotFound if the lease does not exist, and Unavailable while `ref`
        is open elsewhere.
        """
        if not ref:
            raise InvalidArgument("ref must not be empty")
        async with self._gate.passing():
            stored = await self._stored(expected)
            holder = Scope(scope.namespace) if outlives_lease else scope
            opened = await self._db.write(
                lambda connection: self._open(connection, scope, holder, ref, total, expected, stored),
                durable=scope.lasts and stored is not None,
            )
            if opened is None:
                raise AlreadyExists(f"content {expected}")
            backend_ref, shared = opened
            faults.point("metadata.content.ingest")
            writer = None if shared else await self._backend.open_writer(backend_ref, total)
            return NamespacedWriter(
                self._db, self._backend, self._publisher, self._gate, scope, ref, backend_ref, writer, shared
            )

    async def status(self, scope: Scope, ref: str) -> IngestStatus:
        """Raises NotFound."""
        row = self._db.look(lambda connection: _ingest_row(connection, scope.namespace, ref))
        if row is None:
            raise NotFound(f"reference {ref}")
        return replace(await self._backend.status(_backend_ref(scope.namespace, row, ref)), ref=ref)

    async def statuses(self, scope: Scope, filters_: Sequence[str] = ()) -> list[IngestStatus]:
        """The ingests whose `ref` matches; those that have nothing on disk yet are left out."""
        matches = filters.parse(filters_)
        rows = self._db.read(lambda connection: _ingest_rows(connection, scope.namespace))
        found = []
        for ref, row in rows:
            if not matches(_ref_adaptor(ref)):
                continue
            try:
                status = await self._backend.status(_backend_ref(scope.namespace, row, ref))
            except NotFound:
                continue
            found.append(replace(status, ref=ref))
        return found

    async def abort(self, scope: Scope, ref: str) -> None:
        """Removes the ingest, open or not. Raises NotFound."""

        def change(connection: apsw.Connection) -> int:
            row = _ingest_row(connection, scope.namespace, ref)
            if row is None:
                raise NotFound(f"reference {ref}")
            connection.execute("DELETE FROM ingests WHERE row = ?", (row,))
            leases.leave(connection, scope, "ingests", ref)
            return row

        row = await self._db.write(change, frees=True)
        faults.point("metadata.content.aborted")
        await self._abort_backend(_backend_ref(scope.namespace, row, ref))

    async def list(self, scope: Scope, filters_: Sequence[str] = ()) -> list[ContentInfo]:
        """The blobs that match, by digest."""
        matches = filters.parse(filters_)
        infos = self._db.read(lambda connection: _infos(connection, scope.namespace))
        return [info for info in infos if matches(_adaptor(info))]

    async def cleanup(self) -> None:
        """Frees the backend of blobs that no namespace has and no ingest stands for, and of unknown ingests.

        Safe beside writers: none commits or opens while a batch of files is looked up and removed. An ingest's record
        is older than its files and its number is never used again, so a look after the files were listed is enough.
        """
        on_disk = {status.ref for status in await self._backend.statuses()}
        for ref in on_disk - await asyncio.to_thread(self._db.read, _backend_refs):
            await self._abort_backend(ref)
        stored = [info.digest async for info in self._backend.walk()]
        used = await asyncio.to_thread(self._db.read, _digests)
        doomed = [digest for digest in stored if digest not in used]
        for start in range(0, len(doomed), _SWEEP_AT_ONCE):
            batch = doomed[start : start + _SWEEP_AT_ONCE]
            async with self._gate.closed():
                for digest in self._db.read(partial(_unused, digests=batch)):
                    faults.point("metadata.content.sweep")
                    await self._delete_backend(digest)

    async def _stored(self, digest: str) -> ContentInfo | None:
        """The backend's blob, if `digest` is one that it has."""
        if not digest:
            return None
        try:
            return await self._backend.info(digest)
        except (NotFound, InvalidArgument):
            return None

    def _open(
        self,
        connection: apsw.Connection,
        scope: Scope,
        holder: Scope,
        ref: str,
        total: int,
        expected: str,
        stored: ContentInfo | None,
    ) -> tuple[str, ContentInfo | None] | None:
        """The ingest's name in the backend, and the blob that it stands for; None if the namespace has the blob.

        The blob joins the lease of `scope`, the ingest that of `holder`.
        """
        leases.require(connection, scope)
        if expected and _find(connection, scope.namespace, expected) is not None:
            if stored is not None:
                leases.join(connection, scope, "content", expected)
                return None
            _forget(connection, scope.namespace, expected)
        shared = stored if stored and total in (0, stored.size) and self._may_share(connection, expected) else None
        records.ensure_namespace(connection, scope.namespace)
        leases.join(connection, holder, "ingests", ref)
        rows: list[tuple[Any, ...]] = connection.execute(
            "INSERT INTO ingests (namespace, ref, expected, expires_at) VALUES (?, ?, ?, ?) "
            "ON CONFLICT (namespace, ref) DO UPDATE SET expected = excluded.expected, expires_at = excluded.expires_at "
            "RETURNING row",
            (scope.namespace, ref, expected if shared else "", None if holder.lease else clock.now() + _INGEST_LIFE),
        ).fetchall()
        return _backend_ref(scope.namespace, rows[0][0], ref), shared

    def _may_share(self, connection: apsw.Connection, digest: str) -> bool:
        if self._policy == SHARED:
            return True
        rows = connection.execute(
            "SELECT namespaces.labels FROM namespaces JOIN blobs ON blobs.namespace = namespaces.name "
            "WHERE blobs.digest = ?",
            (digest,),
        )
        return any(records.load_labels(text).get(SHAREABLE) == "true" for (text,) in rows)

    async def _drop_lost(self, digest: str) -> None:
        """Forgets a blob in every namespace, if its file is still missing when nobody commits it."""
        async with self._gate.closed():
            if await self._stored(digest) is None:
                await self._db.write(
                    lambda connection: connection.execute("DELETE FROM blobs WHERE digest = ?", (digest,)).fetchall()
                )

    async def _abort_backend(self, backend_ref: str) -> None:
        try:
            await self._backend.abort(backend_ref)
        except NotFound:
            return

    async def _delete_backend(self, digest: str) -> None:
        try:
            await self._backend.delete(digest)
        except NotFound:
            return


_COLUMNS = "digest, size, labels, created_at, updated_at"


def _info(row: tuple[Any, ...]) -> ContentInfo:
    digest, size, text, created_at, updated_at = row
    return ContentInfo(digest, size, created_at, updated_at, records.load_labels(text))


def _infos(connection: apsw.Connection, namespace: str) -> list[ContentInfo]:
    rows = connection.execute(f"SELECT {_COLUMNS} FROM blobs WHERE namespace = ? ORDER BY digest", (namespace,))
    found = []
    for row in rows:
        try:
            found.append(_info(row))
        except DataLoss as error:
            # One bad record must not hide the others; who asks for it by digest is told.
            _log.error("namespace %s: content %s is left out of the list: %s", namespace, row[0], error)
    return found


def _find(connection: apsw.Connection, namespace: str, digest: str) -> ContentInfo | None:
    row = connection.execute(
        f"SELECT {_COLUMNS} FROM blobs WHERE namespace = ? AND digest = ?", (namespace, digest)
    ).fetchone()
    return None if row is None else _info(row)


def _require(connection: apsw.Connection, namespace: str, digest: str) -> ContentInfo:
    info = _find(connection, namespace, digest)
    if info is None:
        raise _missing(digest)
    return info


def _missing(digest: str) -> NotFound:
    return NotFound(f"content digest {digest}")


def _forget(connection: apsw.Connection, namespace: str, digest: str) -> None:
    connection.execute("DELETE FROM blobs WHERE namespace = ? AND digest = ?", (namespace, digest))


def _updated(found: ContentInfo, given: ContentInfo, fields: Sequence[str]) -> Mapping[str, str]:
    """The labels of `found` with what `fields` name taken from `given`. A label's key is all behind `labels.`."""
    result = dict(found.labels)
    for path in fields:
        if path == "labels":
            result = dict(given.labels)
        elif path.startswith("labels."):
            key = path.removeprefix("labels.")
            result[key] = given.labels.get(key, "")
        else:
            raise InvalidArgument(f'cannot update "{path}" field on content info "{given.digest}"')
    return result


def _ingest_row(connection: apsw.Connection, namespace: str, ref: str) -> int | None:
    row = connection.execute("SELECT row FROM ingests WHERE namespace = ? AND ref = ?", (namespace, ref)).fetchone()
    return None if row is None else int(row[0])


def _ingest_rows(connection: apsw.Connection, namespace: str) -> list[tuple[str, int]]:
    rows = connection.execute("SELECT ref, row FROM ingests WHERE namespace = ? ORDER BY ref", (namespace,))
    return [(ref, row) for ref, row in rows]


def _backend_ref(namespace: str, row: int, ref: str) -> str:
    return f"{namespace}/{row}/{ref}"


def _backend_refs(connection: apsw.Connection) -> set[str]:
    rows = connection.execute("SELECT namespace, row, ref FROM ingests")
    return {_backend_ref(namespace, row, ref) for namespace, row, ref in rows}


def _digests(connection: apsw.Connection) -> set[str]:
    rows = connection.execute("SELECT digest FROM blobs UNION SELECT expected FROM ingests WHERE expected <> ''")
    return {digest for (digest,) in rows}


def _unused(connection: apsw.Connection, digests: Sequence[str]) -> list[str]:
    """Those that no namespace has and no ingest stands for."""
    query = "SELECT 1 FROM blobs WHERE digest = ?1 UNION ALL SELECT 1 FROM ingests WHERE expected = ?1 LIMIT 1"
    return [digest for digest in digests if connection.execute(query, (digest,)).fetchone() is None]


def _adaptor(info: ContentInfo) -> filters.Adaptor:
    def value(path: Sequence[str]) -> tuple[str, bool]:
        if path[0] == "digest" and len(path) == 1:
            return info.digest, True
        if path[0] == "labels" and len(path) > 1:
            return filters.labels_field(path[1:], info.labels)
        return "", False

    return value


def _ref_adaptor(ref: str) -> filters.Adaptor:
    return lambda path: (ref, True) if path[0] == "ref" else ("", False)
