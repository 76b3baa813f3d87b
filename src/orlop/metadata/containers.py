"""The store of container records."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import apsw

from orlop.api.events import container_pb2 as events
from orlop.core import clock, fieldpath, filters, identifiers, labels
from orlop.core.container import Container, Runtime
from orlop.core.event import Publisher
from orlop.core.labels import stored
from orlop.core.scope import Scope
from orlop.core.typed import Typed
from orlop.core.wire import common
from orlop.errors import AlreadyExists, InvalidArgument, NotFound, OrlopError
from orlop.metadata import records
from orlop.metadata.database import Database
from orlop.metadata.kept_rows import KeptRows, row_query

_MUTABLE = ("labels", "spec", "extensions", "image", "snapshotkey")
_COLUMNS = (
    "id, labels, image, runtime_name, runtime_options_url, runtime_options_value, spec_url, spec_value, "
    "snapshotter, snapshot_key, sandbox, extensions, created_at, updated_at"
)


class ContainerStore:
    def __init__(self, db: Database, publisher: Publisher) -> None:
        self._db = db
        self._publisher = publisher
        self._kept = KeptRows(db, "containers", row_query("containers", _COLUMNS, "namespace", "id"), _load)

    async def get(self, scope: Scope, id: str) -> Container:
        container = self._kept.find(scope.namespace, id)
        if container is None:
            raise NotFound(f'container "{id}" in namespace "{scope.namespace}"')
        return container

    async def list(self, scope: Scope, filters: Sequence[str] = ()) -> list[Container]:
        """The containers that match, by id."""
        matches = records.parse_filters(filters)

        def query(connection: apsw.Connection) -> list[Container]:
            rows = connection.execute(
                f"SELECT {_COLUMNS} FROM containers WHERE namespace = ? ORDER BY id",
                (scope.namespace,),
            )
            containers = records.each_readable(rows, _load, "container")
            return [container for container in containers if matches(_adaptor(container))]

        return await asyncio.to_thread(self._db.read, query)

    async def create(self, scope: Scope, container: Container) -> Container:
        """Raises InvalidArgument, naming the field, AlreadyExists if the id is taken."""
        _validate(container, "create container failed validation")
        now = clock.now()
        made = replace(container, labels=stored(container.labels), created_at=now, updated_at=now)

        def change(connection: apsw.Connection) -> None:
            connection.execute(
                "INSERT INTO namespaces (name, had_containers) VALUES (?, 1) "
                "ON CONFLICT (name) DO UPDATE SET had_containers = 1 WHERE NOT had_containers",
                (scope.namespace,),
            )
            connection.execute(
                f"INSERT INTO containers (namespace, {_COLUMNS}) VALUES (?{', ?' * 14}) ON CONFLICT DO NOTHING",
                (scope.namespace, *_dump(made)),
            )
            if not connection.changes():
                raise AlreadyExists(f'container "{made.id}"')

        await self._db.write(change)
        self._publisher.publish(
            scope.namespace,
            "/containers/create",
            events.ContainerCreate(
                id=made.id,
                image=made.image,
                runtime=events.ContainerCreate.Runtime(
                    name=made.runtime.name, options=common.any_of(made.runtime.options)
                ),
            ),
        )
        return made

    async def update(self, scope: Scope, container: Container, fields: Sequence[str] | None) -> Container:
        """Replaces what `fields` (mask paths) name; None stands for everything mutable."""
        if not container.id:
            raise InvalidArgument.verbatim("Container.ID required")

        def change(connection: apsw.Connection) -> Container:
            old = _find(connection, scope.namespace, container.id)
            if old is None:
                raise _missing(connection, scope.namespace, container.id, "update", f'container "{container.id}"')
            if fields is None:
                _refuse_changed_immutables(old, container)
            new = old
            for path in _MUTABLE if fields is None else fields:
                new = _masked(new, container, path)
            _validate(new, "update failed validation")
            new = replace(new, labels=stored(new.labels), updated_at=clock.now())
            connection.execute(
                "UPDATE containers SET labels = ?, image = ?, spec_url = ?, spec_value = ?, snapshot_key = ?, "
                "extensions = ?, updated_at = ? WHERE namespace = ? AND id = ?",
                (
                    records.dump_labels(new.labels),
                    new.image,
                    *records.typed_columns(new.spec),
                    new.snapshot_key,
                    records.dump_extensions(new.extensions),
                    new.updated_at,
                    scope.namespace,
                    new.id,
                ),
            )
            return new

        updated = await self._db.write(change)
        self._publisher.publish(
            scope.namespace,
            "/containers/update",
            events.ContainerUpdate(
                id=updated.id, image=updated.image, labels=dict(updated.labels), snapshot_key=updated.snapshot_key
            ),
        )
        return updated

    async def delete(self, scope: Scope, id: str) -> None:
        """Whether it has a task or a snapshot does not matter here."""

        def change(connection: apsw.Connection) -> None:
            connection.execute("DELETE FROM containers WHERE namespace = ? AND id = ?", (scope.namespace, id))
            if not connection.changes():
                raise _missing(connection, scope.namespace, id, "delete", f"container {id}")

        await self._db.write(change, removes=1, frees=True)
        self._publisher.publish(scope.namespace, "/containers/delete", events.ContainerDelete(id=id))


def _find(connection: apsw.Connection, namespace: str, id: str) -> Container | None:
    row = connection.execute(
        f"SELECT {_COLUMNS} FROM containers WHERE namespace = ? AND id = ?",
        (namespace, id),
    ).fetchone()
    return None if row is None else _load(row)


def _load(row: tuple[Any, ...]) -> Container:
    return Container(
        id=row[0],
        labels=records.load_labels(row[1]),
        image=row[2],
        runtime=Runtime(row[3], records.typed_of(row[4], row[5])),
        spec=records.typed_of(row[6], row[7]),
        snapshotter=row[8],
        snapshot_key=row[9],
        sandbox=row[10],
        extensions=records.load_extensions(row[11]),
        created_at=row[12],
        updated_at=row[13],
    )


def _dump(container: Container) -> tuple[Any, ...]:
    return (
        container.id,
        records.dump_labels(container.labels),
        container.image,
        container.runtime.name,
        *records.typed_columns(container.runtime.options),
        *records.typed_columns(container.spec),
        container.snapshotter,
        container.snapshot_key,
        container.sandbox,
        records.dump_extensions(container.extensions),
        container.created_at,
        container.updated_at,
    )


def _missing(connection: apsw.Connection, namespace: str, id: str, verb: str, what: str) -> NotFound:
    row = connection.execute("SELECT had_containers FROM namespaces WHERE name = ?", (namespace,)).fetchone()
    if row is not None and row[0]:
        return NotFound(what)
    return NotFound(f'cannot {verb} container "{id}" in namespace "{namespace}"')


def _refuse_changed_immutables(old: Container, new: Container) -> None:
    if old.snapshotter != new.snapshotter:
        raise InvalidArgument("container.Snapshotter field is immutable")
    if old.runtime.name != new.runtime.name:
        raise InvalidArgument("container.Runtime.Name field is immutable")


def _masked(old: Container, new: Container, path: str) -> Container:
    changed_labels = fieldpath.masked(path, "labels", old.labels, new.labels, "")
    if changed_labels is not None:
        return replace(old, labels=changed_labels)
    extensions = fieldpath.masked(path, "extensions", old.extensions, new.extensions, Typed("", b""))
    if extensions is not None:
        return replace(old, extensions=extensions)
    match path:
        case "spec":
            return replace(old, spec=new.spec)
        case "image":
            return replace(old, image=new.image)
        case "snapshotkey":
            return replace(old, snapshot_key=new.snapshot_key)
    raise InvalidArgument(f'cannot update "{path}" field on "{old.id}"')


def _validate(container: Container, prefix: str) -> None:
    try:
        identifiers.validate(container.id, "container.ID")
        if "" in container.extensions:
            raise InvalidArgument("container.Extension keys must not be zero-length")
        labels.validate(container.labels, "containers.Labels")
        if not container.runtime.name:
            raise InvalidArgument("container.Runtime.Name must be set")
        if container.snapshot_key and not container.snapshotter:
            raise InvalidArgument("container.Snapshotter must be set if container.SnapshotKey is set")
    except OrlopError as error:
        raise error.within(prefix) from error


def _adaptor(container: Container) -> filters.Adaptor:
    def value(path: Sequence[str]) -> tuple[str, bool]:
        match path[0]:
            case "id":
                return container.id, bool(container.id)
            case "runtime" if path[1:2] == ("name",):
                return container.runtime.name, bool(container.runtime.name)
            case "image":
                return container.image, bool(container.image)
            case "labels":
                return filters.labels_field(path[1:], container.labels)
        return "", False

    return value
