"""The store of leases, and how what a call makes joins its lease."""

from __future__ import annotations

import base64
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence

import apsw

from orlop.core import clock, digest, filters
from orlop.core.labels import stored
from orlop.core.lease import Lease, Resource
from orlop.core.scope import Scope
from orlop.errors import AlreadyExists, InvalidArgument, NotFound, Unimplemented, Unknown
from orlop.metadata import records
from orlop.metadata.database import Database

_ORDER = {"content": 0, "images": 1, "ingests": 2, "snapshots": 3}


async def _nothing() -> None:
    return


class Leases:
    """Leases by namespace. `collect` is what a synchronous deletion waits for; the collector sets it. `on_end` is
    told the namespace and id of each lease that a client deletes, or that has expired and is collected."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self.collect: Callable[[], Awaitable[None]] = _nothing
        self.on_end: list[Callable[[str, str], None]] = []

    async def create(self, scope: Scope, id: str = "", labels: Mapping[str, str] | None = None) -> Lease:
        """Raises AlreadyExists if `id` is taken; empty, it is made up. Labels have no limit of size here.

        It lasts with the first thing that is made under it and lasts: that is written after it, to the same log.
        """
        lease = Lease(id or _made_up(), stored(labels), clock.now())

        def change(connection: apsw.Connection) -> None:
            records.ensure_namespace(connection, scope.namespace)
            connection.execute(
                "INSERT INTO leases (namespace, id, labels, created_at) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
                (scope.namespace, lease.id, records.dump_labels(lease.labels), lease.created_at),
            )
            if not connection.changes():
                raise AlreadyExists(f'lease "{lease.id}"')

        await self._db.write(change, durable=False)
        return lease

    async def delete(self, scope: Scope, id: str, *, sync: bool = False) -> None:
        """Raises NotFound. With `sync`, what the lease alone held is gone on return, files included."""

        def change(connection: apsw.Connection) -> None:
            key = (scope.namespace, id)
            connection.execute("DELETE FROM leases WHERE namespace = ? AND id = ?", key)
            if not connection.changes():
                raise NotFound(f'lease "{id}"')
            connection.execute("DELETE FROM lease_resources WHERE namespace = ? AND lease = ?", key)

        await self._db.write(change, removes=1, frees=True)
        for told in self.on_end:
            told(scope.namespace, id)
        if sync:
            await self.collect()

    async def add_resource(self, scope: Scope, id: str, resource: Resource) -> None:
        """Lists `resource` under the lease; neither it nor its snapshotter need exist yet."""
        _check(resource)

        def change(connection: apsw.Connection) -> None:
            _require(connection, scope.namespace, id, f'lease "{id}"')
            _list(connection, scope.namespace, id, resource)

        await self._db.write(change, durable=scope.lasts)

    async def delete_resource(self, scope: Scope, id: str, resource: Resource) -> None:
        """Succeeds for a resource that is not listed."""
        _check(resource)

        def change(connection: apsw.Connection) -> None:
            _require(connection, scope.namespace, id, f'lease "{id}"')
            connection.execute(
                "DELETE FROM lease_resources WHERE namespace = ? AND lease = ? AND type = ? AND id = ?",
                (scope.namespace, id, resource.type, resource.id),
            )

        await self._db.write(change, removes=1, frees=True)

    async def resources(self, scope: Scope, id: str) -> list[Resource]:
        """What the lease lists: content, images, ingests, snapshots by snapshotter, each sorted by id."""

        def query(connection: apsw.Connection) -> list[Resource]:
            _require(connection, scope.namespace, id, f'lease "{id}"')
            rows = connection.execute(
                "SELECT type, id FROM lease_resources WHERE namespace = ? AND lease = ? ORDER BY type, id",
                (scope.namespace, id),
            )
            return [Resource(type, resource) for type, resource in rows]

        return sorted(self._db.read(query), key=lambda resource: _ORDER[resource.type.partition("/")[0]])

    async def list(self, scope: Scope, filters_: Sequence[str] = ()) -> list[Lease]:
        """The leases that match, by id."""
        matches = filters.parse(filters_)

        def query(connection: apsw.Connection) -> list[Lease]:
            rows = connection.execute(
                "SELECT id, labels, created_at FROM leases WHERE namespace = ? ORDER BY id", (scope.namespace,)
            )
            return [Lease(id, records.load_labels(text), created_at) for id, text, created_at in rows]

        return [lease for lease in self._db.read(query) if matches(_adaptor(lease))]


def join(connection: apsw.Connection, scope: Scope, type: str, id: str) -> None:
    """Lists a resource under the lease of a call, inside its transaction; without a lease it does nothing.

    Raises NotFound if the lease does not exist.
    """
    if scope.lease:
        require(connection, scope)
        _list(connection, scope.namespace, scope.lease, Resource(type, id))


def require(connection: apsw.Connection, scope: Scope) -> None:
    """Raises NotFound if the lease of a call does not exist; a call may have none."""
    if scope.lease:
        _require(connection, scope.namespace, scope.lease, "lease does not exist")


def leave(connection: apsw.Connection, scope: Scope, type: str, id: str) -> None:
    """Takes a resource out of the lease of a call, where it has one."""
    if scope.lease:
        connection.execute(
            "DELETE FROM lease_resources WHERE namespace = ? AND lease = ? AND type = ? AND id = ?",
            (scope.namespace, scope.lease, type, id),
        )


def _exists(connection: apsw.Connection, namespace: str, id: str) -> bool:
    row = connection.execute("SELECT 1 FROM leases WHERE namespace = ? AND id = ?", (namespace, id)).fetchone()
    return row is not None


def _require(connection: apsw.Connection, namespace: str, id: str, what: str) -> None:
    if not _exists(connection, namespace, id):
        raise NotFound(what)


def _list(connection: apsw.Connection, namespace: str, lease: str, resource: Resource) -> None:
    # An update of a row that is there tells the collector that somebody has just relied on it.
    connection.execute(
        "INSERT INTO lease_resources (namespace, lease, type, id) VALUES (?, ?, ?, ?) "
        "ON CONFLICT (namespace, lease, type, id) DO UPDATE SET id = excluded.id",
        (namespace, lease, resource.type, resource.id),
    )


def _check(resource: Resource) -> None:
    kind, slash, rest = resource.type.partition("/")
    if kind in ("content", "ingests", "images"):
        if slash:
            raise InvalidArgument(f"invalid resource type {resource.type}")
    elif kind == "snapshots":
        if not rest or "/" in rest:
            raise InvalidArgument(f"invalid snapshot resource type {resource.type}")
    else:
        raise Unimplemented(f"resource type {resource.type} not supported yet")
    if not resource.id:
        raise Unknown("key required")
    if kind == "content":
        why = digest.problem(resource.id)
        if why:
            raise InvalidArgument(f"invalid content resource id {resource.id}: {why}")


def _adaptor(lease: Lease) -> filters.Adaptor:
    def value(path: Sequence[str]) -> tuple[str, bool]:
        if path[0] == "id" and len(path) == 1:
            return lease.id, True
        if path[0] == "labels" and len(path) > 1:
            return filters.labels_field(path[1:], lease.labels)
        return "", False

    return value


def _made_up() -> str:
    """An id in the form clients know: nanoseconds of the second, and four random characters."""
    return f"{clock.now() % 1_000_000_000}-{base64.urlsafe_b64encode(os.urandom(3)).decode()}"
