"""A driver's records: what is durable when, and what a failure undoes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from syncs import counted_syncs

from orlop.core.snapshot import Kind
from orlop.snapshots.storage import Records


@pytest.fixture
def synced() -> Iterator[list[str]]:
    with counted_syncs() as synced:
        yield synced


def test_a_change_that_need_not_last_waits_for_no_sync(tmp_path: Path, synced: list[str]) -> None:
    records = Records(tmp_path / "metadata.db")
    records.create(Kind.ACTIVE, "first", "", {})  # begins the log
    synced.clear()
    with records.transaction(durable=False):
        records.create(Kind.ACTIVE, "a", "", {})
    assert synced == []
    records.create(Kind.ACTIVE, "b", "", {})
    assert [name.endswith("-wal") for name in synced] == [True]
    records.close()


def broken_off(records: Records, key: str) -> None:
    with records.transaction():
        records.create(Kind.ACTIVE, key, "", {})
        raise RuntimeError


def test_what_fails_inside_leaves_the_rest_of_its_transaction(tmp_path: Path) -> None:
    records = Records(tmp_path / "metadata.db")
    with records.transaction():
        records.create(Kind.ACTIVE, "a", "", {})
        with pytest.raises(RuntimeError):
            broken_off(records, "b")
    assert [record.info.name for record in records.all()] == ["a"]
    with pytest.raises(RuntimeError):
        broken_off(records, "c")
    assert [record.info.name for record in records.all()] == ["a"]
    records.close()
