"""The store of namespaces."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import apsw

from orlop.api.events import namespace_pb2 as events
from orlop.core import fieldpath, identifiers, labels
from orlop.core.event import Publisher
from orlop.core.labels import stored
from orlop.core.namespace import Namespace
from orlop.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, Unknown
from orlop.metadata import records
from orlop.metadata.database import Database
from orlop.metadata.kept_rows import KeptRows, row_query

_CONTENTS = (("images", "images"), ("blobs", "blobs"), ("containers", "containers"))
"""What keeps a namespace from deletion, by table and in the words of the refusal; snapshots come after it."""

_VANISHING = ("lease_resources", "leases", "sandboxes", "ingests")
"""What goes with its namespace."""


class NamespaceStore:
    def __init__(self, db: Database, publisher: Publisher) -> None:
        self._db = db
        self._publisher = publisher
        self._labels = KeptRows(db, "namespaces", row_query("namespaces", "labels", "name"), _labels)

    async def get(self, name: str) -> Namespace:
        """Never fails: an unknown name has no labels."""
        return Namespace(name, self._labels.find(name) or {})

    async def list(self) -> list[Namespace]:
        """All namespaces, by name."""

        def query(connection: apsw.Connection) -> list[Namespace]:
            rows = connection.execute("SELECT name, labels FROM namespaces ORDER BY name")
            return list(
                records.each_readable(rows, lambda row: Namespace(row[0], records.load_labels(row[1])), "namespace")
            )

        return self._db.read(query)

    async def create(self, namespace: Namespace) -> Namespace:
        """Raises InvalidArgument for a name or label that is malformed, AlreadyExists if the name is taken."""
        identifiers.validate(namespace.name)
        labels.validate(namespace.labels, "namespace.Labels")
        made = Namespace(namespace.name, stored(namespace.labels))

        def change(connection: apsw.Connection) -> None:
            if _labels_of(connection, made.name) is not None:
                raise AlreadyExists(f'namespace "{made.name}"')
            _put(connection, made)

        await self._db.write(change)
        self._publisher.publish(
            made.name, "/namespaces/create", events.NamespaceCreate(name=made.name, labels=made.labels)
        )
        return made

    async def update(self, namespace: Namespace, fields: Sequence[str] | None) -> Namespace:
        """Replaces the labels that `fields` (`labels.<key>`) name, or all. A name that is not there is made."""
        try:
            labels.validate(namespace.labels, "namespace.Labels")
        except InvalidArgument as error:
            raise Unknown(str(error)) from error  # the kind that clients get here
        for path in fields or ():
            if fieldpath.key_of(path, "labels") is None:
                raise InvalidArgument.verbatim(f'cannot update "{path}" field')

        def change(connection: apsw.Connection) -> Namespace:
            old = _labels_of(connection, namespace.name)
            if old is None:
                identifiers.validate(namespace.name)
            new = old or {}
            for path in ["labels"] if fields is None else fields:
                new = fieldpath.masked(path, "labels", new, namespace.labels, "") or {}
            _put(connection, Namespace(namespace.name, new))
            return Namespace(namespace.name, stored(new))

        updated = await self._db.write(change)
        self._publisher.publish(
            namespace.name,
            "/namespaces/update",
            events.NamespaceUpdate(name=namespace.name, labels=dict(namespace.labels)),
        )
        return updated

    async def delete(self, name: str) -> None:
        """Raises FailedPrecondition, saying what is in it, unless it is empty; leases and sandboxes do not count."""

        def change(connection: apsw.Connection) -> None:
            contents = _contents(connection, name)
            if contents:
                raise FailedPrecondition(f'namespace "{name}" must be empty, but it still has {", ".join(contents)}')
            if _labels_of(connection, name) is None:
                raise NotFound(f'namespace "{name}"')
            for table in _VANISHING:
                connection.execute(f"DELETE FROM {table} WHERE namespace = ?", (name,))
            connection.execute("DELETE FROM namespaces WHERE name = ?", (name,))

        await self._db.write(change, removes=1, frees=True)
        self._publisher.publish(name, "/namespaces/delete", events.NamespaceDelete(name=name))


def _labels_of(connection: apsw.Connection, name: str) -> dict[str, str] | None:
    row = connection.execute("SELECT labels FROM namespaces WHERE name = ?", (name,)).fetchone()
    return None if row is None else _labels(row)


def _labels(row: tuple[Any, ...]) -> dict[str, str]:
    return records.load_labels(row[0])


def _put(connection: apsw.Connection, namespace: Namespace) -> None:
    connection.execute(
        "INSERT INTO namespaces (name, labels) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET labels = excluded.labels",
        (namespace.name, records.dump_labels(namespace.labels)),
    )


def _contents(connection: apsw.Connection, name: str) -> list[str]:
    found = [
        word
        for table, word in _CONTENTS
        if connection.execute(f"SELECT 1 FROM {table} WHERE namespace = ? LIMIT 1", (name,)).fetchone()
    ]
    snapshotters = connection.execute(
        "SELECT DISTINCT snapshotter FROM snapshots WHERE namespace = ? ORDER BY snapshotter", (name,)
    )
    return found + [f'snapshots on "{snapshotter}" snapshotter' for (snapshotter,) in snapshotters]
