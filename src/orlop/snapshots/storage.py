"""A driver's own record of its snapshots: keys, kinds, parents, labels and usage, in SQLite.

A snapshot's files lie in a directory named by its row's id, which is never given again. One connection, used by one
thread at a time. Changes become durable in the order in which they were made.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import apsw

from orlop.core import clock
from orlop.core.snapshot import Kind, SnapshotInfo, Usage
from orlop.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unavailable,
    Unknown,
)

_MIGRATIONS = (
    """
    CREATE TABLE snapshots (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        key TEXT NOT NULL UNIQUE,
        kind INTEGER NOT NULL,
        parent INTEGER REFERENCES snapshots (id),
        labels TEXT NOT NULL,
        size INTEGER NOT NULL,
        inodes INTEGER NOT NULL,
        created_at INTEGER NOT NULL,
        updated_at INTEGER NOT NULL
    ) STRICT;
    CREATE INDEX snapshots_by_parent ON snapshots (parent);
    """,
    """
    CREATE TABLE layers (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        diff_id TEXT NOT NULL UNIQUE,
        size INTEGER NOT NULL,
        disk INTEGER NOT NULL,
        damaged INTEGER NOT NULL DEFAULT 0
    ) STRICT;
    CREATE TABLE layer_sources (
        source TEXT PRIMARY KEY,
        layer INTEGER NOT NULL REFERENCES layers (id) ON DELETE CASCADE
    ) STRICT;
    CREATE INDEX layer_sources_by_layer ON layer_sources (layer);
    ALTER TABLE snapshots ADD COLUMN layer INTEGER REFERENCES layers (id);
    ALTER TABLE snapshots ADD COLUMN bare INTEGER NOT NULL DEFAULT 0;
    CREATE INDEX snapshots_by_layer ON snapshots (layer);
    """,
    # Of layers that are older than the question, nobody knows.
    """
    ALTER TABLE layers ADD COLUMN implied INTEGER NOT NULL DEFAULT 1;
    ALTER TABLE layers ADD COLUMN whiteouts INTEGER NOT NULL DEFAULT 1;
    ALTER TABLE snapshots ADD COLUMN unpacked TEXT NOT NULL DEFAULT '';
    """,
)
_FILES = "s.id, s.layer, s.bare, l.implied"
_COLUMNS = f"{_FILES}, s.key, s.kind, p.key, s.labels, s.size, s.inodes, s.created_at, s.updated_at, s.unpacked"
_FROM = "FROM snapshots AS s LEFT JOIN snapshots AS p ON p.id = s.parent LEFT JOIN layers AS l ON l.id = s.layer"


@dataclass(frozen=True, slots=True)
class Files:
    """What a snapshot has on disk: its directory, named by `id`, which counts for nothing where it is `bare`, and
    below that the layer that was kept as tar and index (its id). `implied`: that may have directories which must be
    shown as they are below."""

    id: int
    layer: int | None = None
    bare: bool = False
    implied: bool = False


@dataclass(frozen=True, slots=True)
class Record:
    """A snapshot; `parents` are nearest first. `usage` is that of its directory, `unpacked` says why a layer that was
    to be kept was not."""

    files: Files
    info: SnapshotInfo
    usage: Usage
    parents: tuple[Files, ...] = ()
    unpacked: str = ""

    @property
    def id(self) -> int:
        return self.files.id


class Records:
    """The database at `path`. Safe to use from several threads; they take turns, but for who reads by `committed`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._reader: apsw.Connection | None = None
        self._lock = threading.RLock()
        # The file must never be readable by others, not even for the moment before a chmod.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        os.chmod(path, 0o600)
        self._connection: apsw.Connection | None = apsw.Connection(str(path))
        for name, value in (("journal_mode", "wal"), ("foreign_keys", True), ("trusted_schema", False)):
            self._connection.pragma(name, value)
        self._synchronous = ""
        self._spoilt: BaseException | None = None
        """What a part of the transaction has failed with."""
        self._demand("full")
        self._migrate(path, self._connection)

    @contextlib.contextmanager
    def transaction(self, *, durable: bool = True) -> Iterator[apsw.Connection]:
        """What is done inside is done whole or not at all, and nobody else reads or writes meanwhile. One inside
        another is a part of that one: where it fails, all does.

        It is durable on return, or else with the next change that is. Raises ResourceExhausted for a full disk.
        """
        with self.reading() as connection:
            try:
                with self._part() if connection.in_transaction else self._whole(connection, durable=durable):
                    yield connection
            except apsw.FullError as error:
                raise ResourceExhausted.verbatim("snapshot records: no space left on device") from error

    @contextlib.contextmanager
    def reading(self) -> Iterator[apsw.Connection]:
        """Nobody else reads or writes meanwhile, so that reads need no transaction to fit together."""
        with self._lock:
            if self._connection is None:
                raise Unavailable("snapshotter is closed")
            yield self._connection

    @contextlib.contextmanager
    def _part(self) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            self._spoilt = error
            raise

    @contextlib.contextmanager
    def _whole(self, connection: apsw.Connection, *, durable: bool) -> Iterator[None]:
        # Not by `with connection`: that keeps the interpreter's lock while the disk syncs.
        self._demand("full" if durable else "normal")
        connection.execute("BEGIN")
        try:
            yield
            if self._spoilt is not None:
                raise self._spoilt
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
        finally:
            self._spoilt = None

    def _demand(self, synchronous: str) -> None:
        """`full`: the next commit syncs the log, and with it what earlier ones have left there."""
        if self._connection is not None and self._synchronous != synchronous:
            self._connection.pragma("synchronous", synchronous)
            self._synchronous = synchronous

    def settle(self) -> None:
        """What was changed before is durable on return."""
        with self.transaction() as connection:
            # Written once more: a transaction that changes nothing is not synced.
            connection.pragma("user_version", connection.pragma("user_version"))

    def get(self, key: str) -> Record:
        """Raises NotFound."""
        with self.reading() as connection:
            return self._get(connection, key)

    def committed(self, key: str) -> Record:
        """As `get`, but for a thread that must not wait for others, and always the same: that of the event loop."""
        if self._connection is None:
            raise Unavailable("snapshotter is closed")
        if self._reader is None:
            self._reader = apsw.Connection(str(self._path))
            self._reader.pragma("query_only", True)
        return self._get(self._reader, key)

    def create(self, kind: Kind, key: str, parent: str, labels: Mapping[str, str]) -> Record:
        """A new active snapshot or view. Raises AlreadyExists, NotFound or InvalidArgument (the parent)."""
        with self.transaction() as connection:
            parent_id = self.parent_of_new(key, parent)
            now = clock.now()
            connection.execute(
                "INSERT INTO snapshots (key, kind, parent, labels, size, inodes, created_at, updated_at) "
                "VALUES (?, ?, ?, ?, 0, 0, ?, ?)",
                (key, int(kind), parent_id, json.dumps(dict(labels)), now, now),
            )
            return self.get(key)

    def parent_of_new(self, key: str, parent: str) -> int | None:
        """The id of `parent`, if it is not empty. Raises as `create`."""
        if not key:
            raise Unknown("bucket name required")
        with self.reading() as connection:
            id = None
            if parent:
                row = connection.execute("SELECT id, kind FROM snapshots WHERE key = ?", (parent,)).fetchone()
                if row is None:
                    raise NotFound(f'missing parent "{parent}" bucket')
                if row[1] != Kind.COMMITTED:
                    raise InvalidArgument(f'parent "{parent}" is not committed snapshot')
                id = int(row[0])
            self._refuse_taken(connection, key, f"snapshot {key}")
            return id

    def commit(
        self,
        key: str,
        name: str,
        labels: Mapping[str, str],
        usage: Usage,
        parent: str = "",
        *,
        bare: bool = False,
    ) -> None:
        """The active `key` becomes the committed `name`, on top of `parent` where it had none.

        `bare`: its directory holds nothing that the layer kept in it does not say.
        """
        if not name:
            raise Unknown("bucket name required")
        with self.transaction() as connection:
            self._refuse_taken(connection, name, f"committed snapshot {name}")
            row = connection.execute("SELECT id, kind, parent FROM snapshots WHERE key = ?", (key,)).fetchone()
            if row is None:
                raise NotFound(f'failed to get active snapshot "{key}"')
            id, kind, parent_id = row
            if kind != Kind.ACTIVE:
                raise FailedPrecondition(f'snapshot "{key}" is not active')
            if parent:
                parent_id = self._rebased(connection, key, parent, parent_id)
            now = clock.now()
            connection.execute(
                "UPDATE snapshots SET key = ?, kind = ?, parent = ?, labels = ?, size = ?, inodes = ?, "
                "created_at = ?, updated_at = ?, bare = ? WHERE id = ?",
                (
                    name,
                    int(Kind.COMMITTED),
                    parent_id,
                    json.dumps(dict(labels)),
                    usage.size,
                    usage.inodes,
                    now,
                    now,
                    int(bare),
                    id,
                ),
            )

    def remove(self, key: str, *, durable: bool = True) -> int:
        """Forgets `key`; returns the id of its directory. Raises NotFound, FailedPrecondition if it has children."""
        with self.transaction(durable=durable) as connection:
            row = connection.execute("SELECT id FROM snapshots WHERE key = ?", (key,)).fetchone()
            if row is None:
                raise NotFound(f"snapshot {key}")
            if connection.execute("SELECT 1 FROM snapshots WHERE parent = ? LIMIT 1", row).fetchone():
                raise FailedPrecondition("cannot remove snapshot with child")
            connection.execute("DELETE FROM snapshots WHERE id = ?", row)
            return int(row[0])

    def remove_all(self, keys: Sequence[str]) -> list[str]:
        """Forgets those of `keys` that have no children by then, which may be lost; returns the others."""
        with self.transaction(durable=False) as connection:
            childless = "NOT EXISTS (SELECT 1 FROM snapshots WHERE parent = s.id)"
            kept = []
            for key in keys:
                connection.execute(f"DELETE FROM snapshots AS s WHERE key = ? AND {childless}", (key,))  # noqa: S608
                if not connection.changes():
                    kept.append(key)
            return kept

    def update(self, info: SnapshotInfo, fields: Sequence[str] | None) -> Record:
        """Replaces labels as `fields` (`labels`, `labels.<key>`; none: all of them) say."""
        with self.transaction() as connection:
            record = self.get(info.name)
            labels = merged_labels(record.info, info, fields)
            connection.execute(
                "UPDATE snapshots SET labels = ?, updated_at = ? WHERE id = ?",
                (json.dumps(labels), clock.now(), record.id),
            )
            return self.get(info.name)

    def all(self) -> list[Record]:
        """Every snapshot, parents before children."""
        with self.reading() as connection:
            rows = connection.execute(
                "WITH RECURSIVE tree (id, depth) AS (SELECT id, 0 FROM snapshots WHERE parent IS NULL UNION ALL "  # noqa: S608
                "SELECT child.id, tree.depth + 1 FROM snapshots AS child JOIN tree ON child.parent = tree.id) "
                f"SELECT {_COLUMNS} {_FROM} JOIN tree ON tree.id = s.id ORDER BY tree.depth, s.key"
            ).fetchall()
        return [_record(row) for row in rows]

    def ids(self) -> set[int]:
        with self.reading() as connection:
            return {row[0] for row in connection.execute("SELECT id FROM snapshots")}

    def close(self) -> None:
        """Safe to call again."""
        with self._lock:
            for connection in (self._reader, self._connection):
                if connection is not None:
                    connection.close()
            self._reader = self._connection = None

    @staticmethod
    def _migrate(path: Path, connection: apsw.Connection) -> None:
        version = int(connection.pragma("user_version"))
        if version > len(_MIGRATIONS):
            raise FailedPrecondition(
                f"database {path} has schema version {version}, this orlop knows up to {len(_MIGRATIONS)}"
            )
        for step in range(version, len(_MIGRATIONS)):
            with connection:
                connection.execute(_MIGRATIONS[step])
                connection.execute(f"PRAGMA user_version = {step + 1}")

    @classmethod
    def _get(cls, connection: apsw.Connection, key: str) -> Record:
        row = connection.execute(f"SELECT {_COLUMNS} {_FROM} WHERE s.key = ?", (key,)).fetchone()
        if row is None:
            raise NotFound("snapshot does not exist")
        return _record(row, cls._parents(connection, row[0]))

    @staticmethod
    def _parents(connection: apsw.Connection, id: Any) -> tuple[Files, ...]:
        rows = connection.execute(
            "WITH RECURSIVE chain (id, depth) AS (SELECT parent, 1 FROM snapshots WHERE id = ? UNION ALL "  # noqa: S608
            "SELECT s.parent, chain.depth + 1 FROM snapshots AS s JOIN chain ON s.id = chain.id) "
            f"SELECT {_FILES} FROM chain JOIN snapshots AS s ON s.id = chain.id "
            "LEFT JOIN layers AS l ON l.id = s.layer ORDER BY chain.depth",
            (id,),
        )
        return tuple(_files(*row) for row in rows)

    @staticmethod
    def _refuse_taken(connection: apsw.Connection, key: str, what: str) -> None:
        if connection.execute("SELECT 1 FROM snapshots WHERE key = ?", (key,)).fetchone():
            raise AlreadyExists(what)

    @staticmethod
    def _rebased(connection: apsw.Connection, key: str, parent: str, now: int | None) -> int:
        row = connection.execute("SELECT id, kind FROM snapshots WHERE key = ?", (parent,)).fetchone()
        if row is None:
            raise NotFound(f'missing parent "{parent}" of snapshot "{key}"')
        if now is not None and now != row[0]:
            raise InvalidArgument(f'cannot change parent of active snapshot "{key}" on commit')
        if row[1] != Kind.COMMITTED:
            raise FailedPrecondition(f'parent "{parent}" is not committed')
        return int(row[0])


def merged_labels(old: SnapshotInfo, new: SnapshotInfo, fields: Sequence[str] | None) -> dict[str, str]:
    """The labels after an update; without `fields` all are replaced. Raises InvalidArgument for another field."""
    if not fields:
        return {key: value for key, value in new.labels.items() if value}
    labels = dict(old.labels)
    for field in fields:
        name, _, key = field.partition(".")
        if name != "labels" or field == "labels.":
            raise InvalidArgument(f'cannot update "{field}" field on snapshot "{new.name}"')
        if not key:
            labels = dict(new.labels)
        else:
            labels[key] = new.labels.get(key, "")
    return {key: value for key, value in labels.items() if value}


def _record(row: apsw.SQLiteValues, parents: tuple[Files, ...] = ()) -> Record:
    key, kind, parent, labels, size, inodes, created_at, updated_at, unpacked = row[4:]
    info = SnapshotInfo(str(key), Kind(kind), str(parent or ""), json.loads(str(labels)), created_at, updated_at)  # type: ignore[arg-type]
    return Record(_files(*row[:4]), info, Usage(size, inodes), parents, str(unpacked))  # type: ignore[arg-type]


def _files(id: Any, layer: Any, bare: Any, implied: Any) -> Files:
    return Files(id, layer, bool(bare), bool(implied))
