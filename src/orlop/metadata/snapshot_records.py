"""The rows of snapshots: what a namespace calls one, and the name that its driver knows it by.

Every function with a connection belongs into a transaction of its caller.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import apsw

from orlop.core.scope import Scope
from orlop.core.snapshot import Kind, SnapshotInfo
from orlop.errors import NotFound
from orlop.metadata import leases, records
from orlop.metadata.database import Database
from orlop.metadata.kept_rows import KeptRows, row_query


@dataclass(frozen=True, slots=True)
class SnapshotRecord:
    """A row: what callers see, but for the kind, and the driver's name for it."""

    info: SnapshotInfo
    backend: str


_COLUMNS = "name, parent, backend, labels, created_at, updated_at"


def _record(row: tuple[Any, ...]) -> SnapshotRecord:
    name, parent, backend, text, created_at, updated_at = row
    return SnapshotRecord(
        SnapshotInfo(name, Kind.UNKNOWN, parent, records.load_labels(text), created_at, updated_at), backend
    )


def kept(db: Database) -> KeptRows[SnapshotRecord]:
    """The rows by namespace, snapshotter and name."""
    return KeptRows(db, "snapshots", row_query("snapshots", _COLUMNS, "namespace", "snapshotter", "name"), _record)


def find(connection: apsw.Connection, namespace: str, snapshotter: str, name: str) -> SnapshotRecord | None:
    row = connection.execute(
        f"SELECT {_COLUMNS} FROM snapshots WHERE namespace = ? AND snapshotter = ? AND name = ?",
        (namespace, snapshotter, name),
    ).fetchone()
    return None if row is None else _record(row)


def require(connection: apsw.Connection, namespace: str, snapshotter: str, name: str, what: str) -> SnapshotRecord:
    record = find(connection, namespace, snapshotter, name)
    if record is None:
        raise NotFound(what)
    return record


def has_any(connection: apsw.Connection, scope: Scope, snapshotter: str) -> bool:
    query = "SELECT 1 FROM snapshots WHERE namespace = ? AND snapshotter = ? LIMIT 1"
    return connection.execute(query, (scope.namespace, snapshotter)).fetchone() is not None


def all_of(connection: apsw.Connection, scope: Scope, snapshotter: str) -> list[SnapshotRecord]:
    """By name."""
    rows = connection.execute(
        f"SELECT {_COLUMNS} FROM snapshots WHERE namespace = ? AND snapshotter = ? ORDER BY name",
        (scope.namespace, snapshotter),
    )
    return [_record(row) for row in rows]


def parent_backend(connection: apsw.Connection, scope: Scope, snapshotter: str, parent: str) -> str:
    if not parent:
        return ""
    what = f"parent snapshot {parent} does not exist"
    return require(connection, scope.namespace, snapshotter, parent, what).backend


def backends(connection: apsw.Connection, snapshotter: str) -> dict[str, tuple[str, str]]:
    """Namespace and name of each record, by the driver's name."""
    rows = connection.execute("SELECT backend, namespace, name FROM snapshots WHERE snapshotter = ?", (snapshotter,))
    return {backend: (namespace, name) for backend, namespace, name in rows}


def origin(backend: str) -> str:
    """`<namespace>/<number>` of a driver's name that a store has given; empty for one of the driver's own."""
    namespace, *rest = backend.split("/", 2)
    return f"{namespace}/{rest[0]}" if len(rest) == 2 and rest[0].isdecimal() else ""


def reserve(connection: apsw.Connection, count: int) -> range:
    """Rows that were never given before, nor will be."""
    connection.execute("UPDATE sqlite_sequence SET seq = seq + ? WHERE name = 'snapshots'", (count,))
    if not connection.changes():
        connection.execute("INSERT INTO sqlite_sequence (name, seq) VALUES ('snapshots', ?)", (count,))
    rows: list[tuple[Any, ...]] = connection.execute(
        "SELECT seq FROM sqlite_sequence WHERE name = 'snapshots'"
    ).fetchall()
    last = int(rows[0][0])
    return range(last - count + 1, last + 1)


def insert(
    connection: apsw.Connection,
    scope: Scope,
    snapshotter: str,
    info: SnapshotInfo,
    row: int | None,
    backend: str,
    above: str,
) -> None:
    if parent_backend(connection, scope, snapshotter, info.parent) != above:
        raise NotFound(f"parent snapshot {info.parent} does not exist")
    records.ensure_namespace(connection, scope.namespace)
    leases.join(connection, scope, f"snapshots/{snapshotter}", info.name)
    connection.execute(
        f"INSERT INTO snapshots (row, namespace, snapshotter, {_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            row,
            scope.namespace,
            snapshotter,
            info.name,
            info.parent,
            backend,
            records.dump_labels(info.labels),
            info.created_at,
            info.updated_at,
        ),
    )


def forget(connection: apsw.Connection, scope: Scope, snapshotter: str, name: str) -> None:
    connection.execute(
        "DELETE FROM snapshots WHERE namespace = ? AND snapshotter = ? AND name = ?",
        (scope.namespace, snapshotter, name),
    )
    leases.leave(connection, scope, f"snapshots/{snapshotter}", name)
