"""The store of sandbox records. It sends no events: the controller does."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import apsw

from orlop.core import clock, fieldpath, filters, identifiers
from orlop.core.container import Runtime
from orlop.core.event import Publisher
from orlop.core.labels import stored
from orlop.core.sandbox import Sandbox
from orlop.core.scope import Scope
from orlop.core.typed import Typed
from orlop.errors import AlreadyExists, InvalidArgument, NotFound
from orlop.metadata import records
from orlop.metadata.database import Database

_MUTABLE = ("labels", "extensions", "spec", "runtime")
_COLUMNS = (
    "id, runtime_name, runtime_options_url, runtime_options_value, spec_url, spec_value, "
    "labels, extensions, sandboxer, created_at, updated_at"
)


class SandboxStore:
    def __init__(self, db: Database, publisher: Publisher) -> None:
        self._db = db
        self._publisher = publisher

    async def get(self, scope: Scope, id: str) -> Sandbox:
        return self._db.read(lambda connection: _require(connection, scope.namespace, id))

    async def list(self, scope: Scope, filters: Sequence[str] = ()) -> list[Sandbox]:
        """The sandboxes that match, by id."""
        matches = records.parse_filters(filters)

        def query(connection: apsw.Connection) -> list[Sandbox]:
            rows = connection.execute(
                f"SELECT {_COLUMNS} FROM sandboxes WHERE namespace = ? ORDER BY id",
                (scope.namespace,),
            )
            return [box for box in records.each_readable(rows, _load, "sandbox") if matches(_adaptor(box))]

        return await asyncio.to_thread(self._db.read, query)

    async def create(self, scope: Scope, sandbox: Sandbox) -> Sandbox:
        """Raises InvalidArgument for a malformed id, AlreadyExists. The runtime's name may be empty."""
        identifiers.validate(sandbox.id, "failed to validate sandbox: invalid sandbox ID")
        now = clock.now()
        made = replace(sandbox, labels=stored(sandbox.labels), created_at=now, updated_at=now)

        def change(connection: apsw.Connection) -> None:
            if _find(connection, scope.namespace, made.id) is not None:
                raise AlreadyExists(f'write error: sandbox bucket "{made.id}" already exists')
            records.ensure_namespace(connection, scope.namespace)
            connection.execute(
                "UPDATE namespaces SET had_sandboxes = 1 WHERE name = ? AND NOT had_sandboxes", (scope.namespace,)
            )
            connection.execute(
                f"INSERT INTO sandboxes (namespace, {_COLUMNS}) VALUES (?{', ?' * 11})",
                (scope.namespace, *_dump(made)),
            )

        await self._db.write(change)
        return made

    async def update(self, scope: Scope, sandbox: Sandbox, fields: Sequence[str]) -> Sandbox:
        """Replaces what `fields` name; none stand for labels, extensions, spec and the runtime's options."""

        def change(connection: apsw.Connection) -> Sandbox:
            new = old = _require(connection, scope.namespace, sandbox.id)
            if not fields and old.runtime.name != sandbox.runtime.name:
                raise InvalidArgument("sandbox.Runtime.Name field is immutable")
            for path in fields or _MUTABLE:
                new = _masked(new, sandbox, path)
            new = replace(new, labels=stored(new.labels), updated_at=clock.now())
            connection.execute(
                "UPDATE sandboxes SET runtime_name = ?, runtime_options_url = ?, runtime_options_value = ?, "
                "spec_url = ?, spec_value = ?, labels = ?, extensions = ?, sandboxer = ?, created_at = ?, "
                "updated_at = ? WHERE namespace = ? AND id = ?",
                (*_dump(new)[1:], scope.namespace, new.id),
            )
            return new

        return await self._db.write(change)

    async def delete(self, scope: Scope, id: str) -> None:
        def change(connection: apsw.Connection) -> None:
            _require_any(connection, scope.namespace)
            connection.execute("DELETE FROM sandboxes WHERE namespace = ? AND id = ?", (scope.namespace, id))
            if not connection.changes():
                raise NotFound(f'failed to delete sandbox "{id}"')

        await self._db.write(change, removes=1, frees=True)


def _find(connection: apsw.Connection, namespace: str, id: str) -> Sandbox | None:
    row = connection.execute(
        f"SELECT {_COLUMNS} FROM sandboxes WHERE namespace = ? AND id = ?",
        (namespace, id),
    ).fetchone()
    return None if row is None else _load(row)


def _require(connection: apsw.Connection, namespace: str, id: str) -> Sandbox:
    sandbox = _find(connection, namespace, id)
    if sandbox is None:
        _require_any(connection, namespace)
        raise NotFound(f'bucket "{id}" not found')
    return sandbox


def _require_any(connection: apsw.Connection, namespace: str) -> None:
    """Raises NotFound where the namespace never had a sandbox: clients know another text for that."""
    row = connection.execute("SELECT had_sandboxes FROM namespaces WHERE name = ?", (namespace,)).fetchone()
    if row is None or not row[0]:
        raise NotFound("no sandbox buckets")


def _load(row: tuple[Any, ...]) -> Sandbox:
    return Sandbox(
        id=row[0],
        runtime=Runtime(row[1], records.typed_of(row[2], row[3])),
        spec=records.typed_of(row[4], row[5]),
        labels=records.load_labels(row[6]),
        extensions=records.load_extensions(row[7]),
        sandboxer=row[8],
        created_at=row[9],
        updated_at=row[10],
    )


def _dump(sandbox: Sandbox) -> tuple[Any, ...]:
    return (
        sandbox.id,
        sandbox.runtime.name,
        *records.typed_columns(sandbox.runtime.options),
        *records.typed_columns(sandbox.spec),
        records.dump_labels(sandbox.labels),
        records.dump_extensions(sandbox.extensions),
        sandbox.sandboxer,
        sandbox.created_at,
        sandbox.updated_at,
    )


def _masked(old: Sandbox, new: Sandbox, path: str) -> Sandbox:
    changed_labels = fieldpath.masked(path, "labels", old.labels, new.labels, "")
    if changed_labels is not None:
        return replace(old, labels=changed_labels)
    extensions = fieldpath.masked(path, "extensions", old.extensions, new.extensions, Typed("", b""))
    if extensions is not None:
        return replace(old, extensions=extensions)
    match path:
        case "spec":
            return replace(old, spec=new.spec)
        case "runtime":
            return replace(old, runtime=new.runtime)
    raise InvalidArgument(f'cannot update "{path}" field on sandbox "{old.id}"')


def _adaptor(sandbox: Sandbox) -> filters.Adaptor:
    def value(path: Sequence[str]) -> tuple[str, bool]:
        match path[0]:
            case "id":
                return sandbox.id, bool(sandbox.id)
            case "labels":
                return filters.labels_field(path[1:], sandbox.labels)
        return "", False

    return value
