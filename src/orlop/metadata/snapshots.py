"""Snapshots by namespace: records over drivers that know no namespaces.

A driver knows a snapshot as `<namespace>/<number>/<key>`, and what was committed by the number of the active that it
was. It makes one before its record is written, and loses one after its record is gone; what has no record, `cleanup`
removes. The number tells where a commit was cut off between driver and record: the same call finishes it, `cleanup`
ends it for good.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections import deque
from collections.abc import Awaitable, Coroutine, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import apsw

from orlop import faults
from orlop.api.events import snapshot_pb2 as events
from orlop.core import clock, filters, labels
from orlop.core.event import Publisher
from orlop.core.mount import Mount
from orlop.core.scope import Scope
from orlop.core.snapshot import EXTRACTING, BulkRemover, Kind, SnapshotInfo, Snapshotter, Usage
from orlop.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, OrlopError, Unknown
from orlop.metadata import leases, records
from orlop.metadata import snapshot_records as rows
from orlop.metadata.database import Database
from orlop.metadata.gate import Gate
from orlop.metadata.reservations import Reservations
from orlop.metadata.snapshot_records import SnapshotRecord

REF_LABEL = "containerd.io/snapshot.ref"
_INHERITED_PREFIX = "containerd.io/snapshot/"
_ROWS_AT_ONCE = 64

T = TypeVar("T")

_log = logging.getLogger(__name__)


class NamespacedSnapshots:
    """The snapshots of namespaces (`core.snapshot.SnapshotStore`) over `drivers` by name. Belongs to one event loop."""

    def __init__(self, db: Database, drivers: Mapping[str, Snapshotter], publisher: Publisher) -> None:
        self._db = db
        self._drivers = dict(drivers)
        self._publisher = publisher
        self._gates = {name: Gate() for name in self._drivers}
        self._names = Reservations()
        self._kept = rows.kept(db)
        self._new_rows: deque[int] = deque()

    @property
    def snapshotters(self) -> list[str]:
        return sorted(self._drivers)

    async def prepare(
        self, scope: Scope, snapshotter: str, key: str, parent: str = "", labels: Mapping[str, str] | None = None
    ) -> list[Mount]:
        """An active snapshot of `parent`.

        Raises AlreadyExists where `key`, or what the label `containerd.io/snapshot.ref` names, is there; it then
        joins the lease of `scope`. Raises NotFound or InvalidArgument for the parent.
        """
        mounts = await self._create(scope, snapshotter, key, parent, labels, Kind.ACTIVE)
        event = events.SnapshotPrepare(key=key, parent=parent, snapshotter=snapshotter)
        self._publisher.publish(scope.namespace, "/snapshot/prepare", event)
        return mounts

    async def view(
        self, scope: Scope, snapshotter: str, key: str, parent: str = "", labels: Mapping[str, str] | None = None
    ) -> list[Mount]:
        """As `prepare`, for reading only; nobody is told."""
        return await self._create(scope, snapshotter, key, parent, labels, Kind.VIEW)

    async def mounts(self, scope: Scope, snapshotter: str, key: str) -> list[Mount]:
        """Raises NotFound, and FailedPrecondition for a committed snapshot."""
        driver = self._driver(snapshotter)
        return await driver.mounts(self._get(scope, snapshotter, key).backend)

    async def commit(
        self,
        scope: Scope,
        snapshotter: str,
        name: str,
        key: str,
        labels: Mapping[str, str] | None = None,
        parent: str = "",
    ) -> None:
        """The active `key` becomes the committed `name`, with `labels` alone.

        Raises AlreadyExists if `name` is taken (it then joins the lease), NotFound, and FailedPrecondition if `key`
        is not active. `parent` counts only where `key` has none.
        """
        driver = self._driver(snapshotter)
        _validate(labels)
        names = [(scope.namespace, snapshotter, each) for each in {name, key}]
        async with self._gates[snapshotter].passing(), self._names.held(*names):
            await _undisturbed(self._commit(driver, scope, snapshotter, name, key, dict(labels or {}), parent))
        event = events.SnapshotCommit(key=key, name=name, snapshotter=snapshotter)
        self._publisher.publish(scope.namespace, "/snapshot/commit", event)

    async def remove(self, scope: Scope, snapshotter: str, key: str) -> None:
        """Removes the record; the disk is freed at the next collection. Raises FailedPrecondition for a parent."""
        self._driver(snapshotter)

        def change(connection: apsw.Connection) -> None:
            rows.require(connection, scope.namespace, snapshotter, key, f"snapshot {key} does not exist")
            children = connection.execute(
                "SELECT 1 FROM snapshots WHERE namespace = ? AND snapshotter = ? AND parent = ? LIMIT 1",
                (scope.namespace, snapshotter, key),
            )
            if children.fetchone():
                raise FailedPrecondition("cannot remove snapshot with child")
            rows.forget(connection, scope, snapshotter, key)

        async with self._names.held((scope.namespace, snapshotter, key)):
            await self._db.write(change, removes=1, frees=True, durable=scope.lasts)
        event = events.SnapshotRemove(key=key, snapshotter=snapshotter)
        self._publisher.publish(scope.namespace, "/snapshot/remove", event)

    async def stat(self, scope: Scope, snapshotter: str, key: str) -> SnapshotInfo:
        driver = self._driver(snapshotter)
        record = self._get(scope, snapshotter, key)
        return _merged(record, await driver.stat(record.backend))

    async def update(
        self, scope: Scope, snapshotter: str, info: SnapshotInfo, fields: Sequence[str] | None
    ) -> SnapshotInfo:
        """Replaces all labels, or with `fields` those that it names. Raises InvalidArgument for any other field."""
        driver = self._driver(snapshotter)
        if not info.name:
            raise InvalidArgument.verbatim("invalid argument")

        def change(connection: apsw.Connection) -> SnapshotRecord:
            where = (scope.namespace, snapshotter, info.name)
            record = rows.require(connection, *where, f"snapshot {info.name} does not exist")
            given = _updated_labels(record.info, info, fields)
            labels.validate(given, "info.Labels")
            updated = dataclasses.replace(record.info, labels=labels.stored(given), updated_at=clock.now())
            connection.execute(
                "UPDATE snapshots SET labels = ?, updated_at = ? WHERE namespace = ? AND snapshotter = ? AND name = ?",
                (records.dump_labels(updated.labels), updated.updated_at, *where),
            )
            return SnapshotRecord(updated, record.backend)

        record = await self._db.write(change)
        inherited = SnapshotInfo(record.backend, Kind.UNKNOWN, labels=_inherited(record.info.labels))
        return _merged(record, await driver.update(inherited, None))

    async def usage(self, scope: Scope, snapshotter: str, key: str) -> Usage:
        driver = self._driver(snapshotter)
        return await driver.usage(self._get(scope, snapshotter, key).backend)

    async def cleanup(self, snapshotter: str) -> None:
        """Removes from the driver what no namespace has a record of, children first, and frees its disk."""
        driver = self._driver(snapshotter)
        async with self._gates[snapshotter].closed():
            kept = self._db.read(lambda connection: rows.backends(connection, snapshotter))
            found = await driver.walk()
            # First the record, then the files that tell which it is: a crash in between is made good next time.
            await self._end_commits(snapshotter, kept, found)
            for name in await _remove(driver, [info.name for info in reversed(found) if info.name not in kept]):
                _log.warning("snapshotter %s keeps %s for now: it has a child", snapshotter, name)
        await driver.cleanup()

    async def _end_commits(
        self, snapshotter: str, kept: Mapping[str, tuple[str, str]], found: Iterable[SnapshotInfo]
    ) -> None:
        """Drops the records of actives that the driver has committed under a name of which there is no record."""
        known = {info.name for info in found}
        committed = {rows.origin(info.name) for info in found if info.kind is Kind.COMMITTED and info.name not in kept}
        lost = [backend for backend in kept if backend not in known and rows.origin(backend) in committed - {""}]
        if not lost:
            return

        def change(connection: apsw.Connection) -> list[str]:
            gone = []
            for backend in lost:
                connection.execute(
                    "DELETE FROM snapshots WHERE snapshotter = ? AND backend = ?", (snapshotter, backend)
                )
                gone += [backend] * connection.changes()
            return gone

        for backend in await self._db.write(change, removes=len(lost), frees=True):
            namespace, key = kept[backend]
            _log.warning("snapshotter %s: the commit of %s was cut off, its content is gone", snapshotter, backend)
            event = events.SnapshotRemove(key=key, snapshotter=snapshotter)
            self._publisher.publish(namespace, "/snapshot/remove", event)

    def _driver(self, snapshotter: str) -> Snapshotter:
        if not snapshotter:
            raise InvalidArgument("snapshotter argument missing")
        driver = self._drivers.get(snapshotter)
        if driver is None:
            raise InvalidArgument(f"snapshotter not loaded: {snapshotter}")
        return driver

    def _get(self, scope: Scope, snapshotter: str, key: str) -> SnapshotRecord:
        record = self._kept.find(scope.namespace, snapshotter, key)
        if record is None:
            raise NotFound(f"snapshot {key} does not exist")
        return record

    def _backend_of_parent(self, scope: Scope, snapshotter: str, parent: str) -> str:
        if not parent:
            return ""
        record = self._kept.find(scope.namespace, snapshotter, parent)
        if record is None:
            raise NotFound(f"parent snapshot {parent} does not exist")
        return record.backend

    async def _rely_on(self, scope: Scope, snapshotter: str, name: str) -> bool:
        """Whether there is a snapshot `name`, which then joins the lease."""

        def join(connection: apsw.Connection) -> bool:
            if rows.find(connection, scope.namespace, snapshotter, name) is None:
                return False
            leases.join(connection, scope, f"snapshots/{snapshotter}", name)
            return True

        is_there = self._kept.find(scope.namespace, snapshotter, name) is not None
        return is_there and await self._db.write(join, durable=scope.lasts)

    async def _new_row(self) -> int:
        """One that was never given before. Many are taken at once: each time, the disk must have heard of it."""
        while not self._new_rows:
            self._new_rows.extend(await self._db.write(lambda connection: rows.reserve(connection, _ROWS_AT_ONCE)))
        return self._new_rows.popleft()

    async def _create(
        self,
        scope: Scope,
        snapshotter: str,
        key: str,
        parent: str,
        labels_: Mapping[str, str] | None,
        kind: Kind,
    ) -> list[Mount]:
        driver = self._driver(snapshotter)
        _validate(labels_)
        new = SnapshotInfo(key, kind, parent, dict(labels_ or {}))
        names = {key, new.labels.get(REF_LABEL, "")} - {""}
        async with (
            self._gates[snapshotter].passing(),
            self._names.held(*((scope.namespace, snapshotter, name) for name in names)),
        ):
            return await _undisturbed(self._make(driver, scope, snapshotter, new))

    async def _make(self, driver: Snapshotter, scope: Scope, snapshotter: str, new: SnapshotInfo) -> list[Mount]:
        target = new.labels.get(REF_LABEL, "")

        for name, what in ((target, f'target snapshot "{target}"'), (new.name, f'snapshot "{new.name}"')):
            if name and await self._rely_on(scope, snapshotter, name):
                raise AlreadyExists(what)
        above = self._backend_of_parent(scope, snapshotter, new.parent)
        if not new.name:
            raise Unknown("bucket name required")
        # Before any work; the record that is made at last asks for both once more.
        self._db.look(lambda connection: leases.require(connection, scope))
        row = await self._new_row()
        backend = f"{scope.namespace}/{row}/{new.name}"
        make = driver.view if new.kind is Kind.VIEW else driver.prepare
        try:
            mounts = await make(backend, above, _inherited(new.labels))
        except AlreadyExists as error:
            await self._adopt(driver, scope, snapshotter, new, above, error)
            raise AlreadyExists(f'target snapshot "{target}" from snapshotter') from error
        faults.point("metadata.snapshots.made")
        try:
            now = clock.now()
            made = dataclasses.replace(new, created_at=now, updated_at=now)
            await self._db.write(
                lambda connection: rows.insert(connection, scope, snapshotter, made, row, backend, above),
                durable=scope.lasts,
            )
        except BaseException:
            await self._take_back(driver, snapshotter, backend)
            raise
        return mounts

    async def _adopt(
        self,
        driver: Snapshotter,
        scope: Scope,
        snapshotter: str,
        new: SnapshotInfo,
        above: str,
        refusal: AlreadyExists,
    ) -> None:
        """Records a committed snapshot that the driver already has as what was asked for under `snapshot.ref`."""
        target = new.labels.get(REF_LABEL, "")
        if not target:
            raise Unknown(f"unexpected error from snapshotter: {refusal}") from refusal
        candidates = [
            info
            for info in await driver.walk()
            if info.kind is Kind.COMMITTED and info.labels.get(REF_LABEL) == target and info.parent == above
        ]
        if not candidates:
            raise NotFound(f'target snapshot "{target}" in backend') from refusal
        found = candidates[0]
        labels_ = {key: value for key, value in {**found.labels, **new.labels}.items() if key != EXTRACTING}
        adopted = dataclasses.replace(found, name=target, parent=new.parent, labels=labels_, kind=Kind.COMMITTED)

        def record(connection: apsw.Connection) -> None:
            if new.parent and rows.parent_backend(connection, scope, snapshotter, new.parent) != found.parent:
                raise InvalidArgument(f"mismatched parent {new.parent} from target {target}")
            rows.insert(connection, scope, snapshotter, adopted, None, found.name, above)

        await self._db.write(record)

    async def _commit(
        self,
        driver: Snapshotter,
        scope: Scope,
        snapshotter: str,
        name: str,
        key: str,
        labels_: dict[str, str],
        parent: str,
    ) -> None:
        if not self._db.look(lambda connection: rows.has_any(connection, scope, snapshotter)):
            raise NotFound(f'can not find snapshotter "{snapshotter}"')
        if not name:
            raise Unknown("bucket name required")
        if await self._rely_on(scope, snapshotter, name):
            raise AlreadyExists(f'snapshot "{name}"')

        def find(connection: apsw.Connection) -> tuple[SnapshotRecord, str, str]:
            leases.require(connection, scope)
            record = rows.require(connection, scope.namespace, snapshotter, key, f"snapshot {key} does not exist")
            above = record.info.parent or parent
            return record, above, rows.parent_backend(connection, scope, snapshotter, above)

        record, above, above_backend = self._db.read(find)
        backend = f"{rows.origin(record.backend)}/{name}"
        rebase = "" if record.info.parent else above_backend
        try:
            await driver.commit(backend, record.backend, _inherited(labels_), rebase)
        except (NotFound, AlreadyExists) as error:
            await self._resume_commit(driver, backend, above_backend, labels_, error)
        faults.point("metadata.snapshots.committed")
        now = clock.now()
        committed = SnapshotInfo(name, Kind.COMMITTED, above, labels_, now, now)

        def change(connection: apsw.Connection) -> None:
            rows.forget(connection, scope, snapshotter, key)
            rows.insert(connection, scope, snapshotter, committed, None, backend, above_backend)

        await self._db.write(change, durable=scope.lasts)

    @staticmethod
    async def _resume_commit(
        driver: Snapshotter, backend: str, above: str, labels_: Mapping[str, str], refusal: OrlopError
    ) -> None:
        """Goes on where a commit of the same names was cut off before its record. Raises `refusal` if none was."""
        try:
            found = await driver.stat(backend)
        except NotFound:
            raise refusal from None
        if found.kind is not Kind.COMMITTED or found.parent != above:
            raise refusal
        await driver.update(SnapshotInfo(backend, Kind.UNKNOWN, labels=_inherited(labels_)), None)

    @staticmethod
    async def _take_back(driver: Snapshotter, snapshotter: str, backend: str) -> None:
        try:
            await driver.remove(backend)
        except OrlopError as error:
            _log.error("snapshotter %s: %s has no record and stays until collection: %s", snapshotter, backend, error)

    async def list(self, scope: Scope, snapshotter: str, filters_: Sequence[str] = ()) -> list[SnapshotInfo]:
        """The snapshots that match, by key. Raises Unknown for a filter that cannot be read, as containerd does."""
        driver = self._driver(snapshotter)
        try:
            matches = filters.parse(filters_)
        except InvalidArgument as error:
            raise Unknown.verbatim(str(error)) from error

        # First the driver, then the records: what is made in between is left out, not half shown.
        known = {info.name: info for info in await driver.walk()}
        stored = self._db.read(lambda connection: rows.all_of(connection, scope, snapshotter))
        found = [_merged(record, known[record.backend]) for record in stored if record.backend in known]
        return [info for info in found if matches(_adaptor(info))]


async def _remove(driver: Snapshotter, names: Sequence[str]) -> list[str]:
    """Removes snapshots, children first, but for those that have a child and are returned."""
    if isinstance(driver, BulkRemover):
        return await driver.remove_all(names) if names else []
    kept = []
    for name in names:
        try:
            await driver.remove(name)
        except FailedPrecondition:
            kept.append(name)
    return kept


async def _undisturbed(work: Coroutine[Any, Any, T]) -> T:
    """Runs `work` to its end, also where the caller is cancelled meanwhile: driver and record belong together."""
    task = asyncio.ensure_future(work)
    waiting: Awaitable[T] = asyncio.shield(task)
    try:
        return await waiting
    except asyncio.CancelledError:
        await asyncio.wait({task})
        if not task.cancelled() and task.exception() is not None:
            _log.info("a snapshot call that was cancelled had failed: %s", task.exception())
        raise


def _validate(given: Mapping[str, str] | None) -> None:
    labels.validate(given or {}, "info.Labels")


def _inherited(given: Mapping[str, str]) -> dict[str, str]:
    """The labels that a driver gets to see."""
    return {
        key: value
        for key, value in given.items()
        if key in (REF_LABEL, EXTRACTING) or key.startswith(_INHERITED_PREFIX)
    }


def _merged(record: SnapshotRecord, driver: SnapshotInfo) -> SnapshotInfo:
    # That a snapshot is being filled is ours to say: a driver may have kept what it was told of that.
    own = {key: value for key, value in driver.labels.items() if key != EXTRACTING}
    return dataclasses.replace(record.info, kind=driver.kind, labels={**own, **record.info.labels})


def _updated_labels(old: SnapshotInfo, new: SnapshotInfo, fields: Sequence[str] | None) -> dict[str, str]:
    if not fields:
        return dict(new.labels)
    given = dict(old.labels)
    for field in fields:
        if field == "labels":
            given = dict(new.labels)
        elif field.startswith("labels."):
            key = field.removeprefix("labels.")
            given[key] = new.labels.get(key, "")
        else:
            raise InvalidArgument(f'cannot update "{field}" field on snapshot "{new.name}"')
    return given


def _adaptor(info: SnapshotInfo) -> filters.Adaptor:
    def field(path: Sequence[str]) -> tuple[str, bool]:
        match list(path):
            case ["kind"]:
                return info.kind.name.lower(), info.kind is not Kind.UNKNOWN
            case ["name"]:
                return info.name, bool(info.name)
            case ["parent"]:
                return info.parent, bool(info.parent)
            case ["labels", *rest]:
                return filters.labels_field(rest, dict(info.labels))
        return "", False

    return field
