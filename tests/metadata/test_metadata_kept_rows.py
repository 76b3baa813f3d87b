from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orlop.metadata.database import Database
from orlop.metadata.kept_rows import KeptRows, row_query

_SCHEMA = ("CREATE TABLE things (row INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT UNIQUE, size INTEGER) STRICT",)
_QUERY = row_query("things", "size", "name")


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Database]:
    database = Database(tmp_path / "test.db", _SCHEMA)
    yield database
    database.close()


class Things:
    """Kept rows that note what was read."""

    def __init__(self, db: Database, limit: int = 10) -> None:
        self.db = db
        self.read: list[int] = []
        self.rows = KeptRows(db, "things", _QUERY, self.load, limit)

    def load(self, columns: tuple[Any, ...]) -> int:
        self.read.append(columns[0])
        return int(columns[0])

    def put(self, name: str, size: int) -> None:
        self.db.write_now(
            lambda connection: connection.execute(
                "INSERT INTO things (name, size) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET size = excluded.size",
                (name, size),
            ).fetchall()
        )


def test_a_row_is_read_once_until_it_is_written(db: Database) -> None:
    things = Things(db)
    things.put("a", 1)
    things.put("b", 5)
    assert [things.rows.find("a") for _ in range(3)] == [1, 1, 1]
    things.put("b", 6)
    assert (things.rows.find("a"), things.read) == (1, [1])
    things.put("a", 2)
    assert (things.rows.find("a"), things.rows.find("b"), things.read) == (2, 6, [1, 2, 6])


def test_a_row_that_is_deleted_is_not_found_and_one_that_comes_again_is(db: Database) -> None:
    things = Things(db)
    assert things.rows.find("a") is None
    things.put("a", 1)
    assert things.rows.find("a") == 1
    db.write_now(lambda connection: connection.execute("DELETE FROM things WHERE name = 'a'").fetchall())
    assert things.rows.find("a") is None
    things.put("a", 3)
    assert things.rows.find("a") == 3


def test_a_change_that_comes_while_a_row_is_read_is_not_missed(db: Database) -> None:
    things = Things(db)
    things.put("a", 1)

    def load(columns: tuple[Any, ...]) -> int:
        if columns[0] == 1:
            things.put("a", 2)
        return int(columns[0])

    rows = KeptRows(db, "things", _QUERY, load)
    assert (rows.find("a"), rows.find("a")) == (1, 2)


def test_no_more_rows_are_kept_than_the_limit(db: Database) -> None:
    things = Things(db, limit=2)
    for number, name in enumerate("abc"):
        things.put(name, number)
    assert [things.rows.find(name) for name in "abccba"] == [0, 1, 2, 2, 1, 0]
    assert things.read == [0, 1, 2, 0]
