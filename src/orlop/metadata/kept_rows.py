"""Rows that were read and are kept until somebody writes them: clients ask for the same few again and again."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from orlop.metadata.database import Database

T = TypeVar("T")

_LIMIT = 128


class KeptRows(Generic[T]):
    """The rows of `table` as `load` makes values of their columns; callers share these and change none.

    `query` selects a row's number and then its columns by the key that `find` is given. At most `limit` rows are kept.
    Safe to use from several threads.
    """

    def __init__(
        self, db: Database, table: str, query: str, load: Callable[[tuple[Any, ...]], T], limit: int = _LIMIT
    ) -> None:
        self._db = db
        self._table = table
        self._query = query
        self._load = load
        self._limit = limit
        self._kept: dict[tuple[str, ...], T] = {}
        self._keys: dict[int, tuple[str, ...]] = {}
        """The keys of `_kept` by the number of their row."""
        self._lock = threading.Lock()
        self._changes = 0
        db.on_change.append(self._forget)

    def find(self, *key: str) -> T | None:
        """The row as it is after every committed write; None if there is none. Raises what `load` does."""
        kept = self._kept.get(key)
        return self._read(key) if kept is None else kept

    def _read(self, key: tuple[str, ...]) -> T | None:
        changes = self._changes
        row = self._db.look(lambda connection: connection.execute(self._query, key).fetchone())
        if row is None:
            return None
        number, *columns = row
        value = self._load(tuple(columns))
        with self._lock:
            # A change that came in between may have been committed before the row was read, or after it.
            if changes == self._changes:
                self._kept[key] = value
                self._keys[number] = key
                if len(self._kept) > self._limit:
                    oldest = next(iter(self._keys))
                    del self._kept[self._keys.pop(oldest)]
        return value

    def _forget(self, changed: set[tuple[str, int]]) -> None:
        with self._lock:
            for table, number in changed:
                if table == self._table:
                    self._changes += 1
                    key = self._keys.pop(number, None)
                    if key is not None:
                        del self._kept[key]


def row_query(table: str, columns: str, *keys: str) -> str:
    """Selects what `KeptRows` wants by the columns `keys`, which tell rows apart."""
    return f"SELECT rowid, {columns} FROM {table} WHERE {' AND '.join(f'{key} = ?' for key in keys)}"
