"""A driver's records: what is durable when, and what a failure undoes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from syncs import counted_syncs

from orlop.core.layer import Traits
from orlop.core.snapshot import Kind, Usage
from orlop.snapshots.layer_records import LayerRecords
from orlop.snapshots.native import NativeSnapshotter
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


async def test_snapshots_that_are_removed_are_synced_together_before_their_directories_go(
    tmp_path: Path, synced: list[str]
) -> None:
    snapshotter = NativeSnapshotter(tmp_path)
    for key in ("a", "b", "c"):
        await snapshotter.prepare(key)
    synced.clear()
    await snapshotter.remove("a")
    assert await snapshotter.remove_all(["b", "c"]) == []
    assert (synced, len(list((tmp_path / "snapshots").iterdir()))) == ([], 3)
    await snapshotter.cleanup()
    assert ([name.endswith("-wal") for name in synced], list((tmp_path / "snapshots").iterdir())) == ([True], [])
    await snapshotter.cleanup()
    assert len(synced) == 1
    await snapshotter.close()


def test_of_many_that_are_removed_those_with_children_stay(tmp_path: Path) -> None:
    records = Records(tmp_path / "metadata.db")
    records.create(Kind.ACTIVE, "active", "", {})
    records.commit("active", "parent", {}, Usage())
    records.create(Kind.ACTIVE, "child", "parent", {})
    records.create(Kind.ACTIVE, "other", "", {})
    assert records.remove_all(["other", "parent"]) == ["parent"]
    assert records.remove_all(["child", "parent"]) == []
    assert records.all() == []
    records.close()


def broken_off(records: Records, key: str) -> None:
    with records.transaction():
        records.create(Kind.ACTIVE, key, "", {})
        raise RuntimeError


def swallowed(records: Records) -> None:
    with records.transaction():
        records.create(Kind.ACTIVE, "a", "", {})
        with suppress(RuntimeError):
            broken_off(records, "b")


def test_what_fails_inside_undoes_the_whole(tmp_path: Path) -> None:
    records = Records(tmp_path / "metadata.db")
    records.create(Kind.ACTIVE, "before", "", {})
    with pytest.raises(RuntimeError):
        swallowed(records)
    with pytest.raises(RuntimeError):
        broken_off(records, "c")
    records.create(Kind.ACTIVE, "after", "", {})
    assert [record.info.name for record in records.all()] == ["after", "before"]
    records.close()


def test_numbers_of_layers_are_given_once(tmp_path: Path) -> None:
    seen: list[int] = []
    for _ in range(2):
        records = Records(tmp_path / "metadata.db")
        layers = LayerRecords(records)
        seen += [layers.reserve() for _ in range(100)]
        layers.add(seen[-1], f"sha256:{len(seen)}", 1, 1, Traits())
        records.close()
    assert len(set(seen)) == len(seen) == 200
