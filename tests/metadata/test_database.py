"""The database: groups, full disks, crashes, versions."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys

import apsw
import pytest
from syncs import counted_syncs

from orlop import faults
from orlop.errors import DataLoss, FailedPrecondition, ResourceExhausted, Unavailable
from orlop.metadata.database import Database

MIGRATIONS = ("CREATE TABLE things (row INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, body BLOB) STRICT",)


def put(name, body=b""):
    def change(connection):
        connection.execute("INSERT INTO things (name, body) VALUES (?, ?)", (name, body))
        return connection.last_insert_rowid()

    return change


def names(db):
    return db.read(lambda connection: [row[0] for row in connection.execute("SELECT name FROM things ORDER BY row")])


@contextlib.contextmanager
def opened(path, **options):
    db = Database(path, MIGRATIONS, **options)
    try:
        yield db
    finally:
        db.close()


async def test_concurrent_writes_all_happen_and_a_failing_one_fails_alone(tmp_path):
    with opened(tmp_path / "meta.db") as db:
        tasks = [db.write(put("same" if index % 4 == 0 else f"n{index}")) for index in range(64)]
        results = await asyncio.gather(*tasks, return_exceptions=True)
        refused = [result for result in results if isinstance(result, apsw.ConstraintError)]
        assert len(refused) == 15
        assert len(names(db)) == 49


async def test_listeners_hear_what_was_written_and_hooks_how_much_was_removed(tmp_path):
    with opened(tmp_path / "meta.db") as db:
        touched, removed = [], []
        db.listeners.append(touched.append)
        db.on_mutation.append(removed.append)
        row = await db.write(put("a"))
        await db.write(lambda connection: connection.execute("DELETE FROM things") and None, removes=1)
        await db.write(lambda connection: None, removes=5)
        assert touched == [{("things", row)}]
        assert removed == [0, 1]


async def test_a_change_sees_what_its_transaction_wrote_so_far(tmp_path):
    with opened(tmp_path / "meta.db") as db:

        def change(connection):
            row = put("a")(connection)
            return ("things", row) in db.uncommitted

        assert await db.write(change)


async def test_a_caller_that_gives_up_does_not_stop_the_writer(tmp_path):
    with opened(tmp_path / "meta.db") as db:
        task = asyncio.ensure_future(db.write(put("a")))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await db.write(put("b"))
        assert names(db)[-1] == "b"


async def test_closing_finishes_what_is_queued_and_refuses_what_comes_after(tmp_path):
    db = Database(tmp_path / "meta.db", MIGRATIONS)
    writes = [asyncio.ensure_future(db.write(put(str(index)))) for index in range(20)]
    await asyncio.sleep(0)
    await asyncio.to_thread(db.close)
    await asyncio.gather(*writes)
    with pytest.raises(Unavailable):
        await db.write(put("late"))
    with pytest.raises(Unavailable):
        names(db)
    with opened(tmp_path / "meta.db") as again:
        assert len(names(again)) == 20


def test_files_are_private_whatever_the_umask(tmp_path):
    before = os.umask(0)
    try:
        with opened(tmp_path / "new" / "meta.db") as db:
            db.write_now(put("a"))
            assert (tmp_path / "new").stat().st_mode & 0o777 == 0o700
            for file in (tmp_path / "new").iterdir():
                assert file.stat().st_mode & 0o777 == 0o600, file.name
    finally:
        os.umask(before)


def test_a_newer_schema_is_refused_and_left_as_it_is(tmp_path):
    path = tmp_path / "meta.db"
    Database(path, (*MIGRATIONS, "CREATE TABLE later (row INTEGER PRIMARY KEY)")).close()
    before = path.read_bytes()
    with pytest.raises(FailedPrecondition, match="schema version 2, this orlop knows up to 1"):
        Database(path, MIGRATIONS)
    assert path.read_bytes() == before


def test_an_older_schema_is_brought_forward(tmp_path):
    path = tmp_path / "meta.db"
    with opened(path) as db:
        db.write_now(put("a"))
    db = Database(path, (*MIGRATIONS, "ALTER TABLE things ADD COLUMN size INTEGER NOT NULL DEFAULT 7"))
    assert db.read(lambda connection: connection.execute("SELECT name, size FROM things").fetchall()) == [("a", 7)]
    db.close()


def test_what_is_no_database_is_reported_as_lost(tmp_path):
    (tmp_path / "meta.db").write_bytes(b"not a database at all" * 500)
    with pytest.raises(DataLoss):
        Database(tmp_path / "meta.db", MIGRATIONS)


def test_damage_is_found_after_an_unclean_stop(tmp_path):
    path = tmp_path / "meta.db"
    with opened(path) as db:
        for index in range(200):
            db.write_now(put(str(index), b"x" * 500))
    damaged = bytearray(path.read_bytes())
    damaged[8192:16384] = b"\xff" * 8192
    path.write_bytes(damaged)
    path.with_name("meta.db.open").touch()
    with pytest.raises(DataLoss):
        Database(path, MIGRATIONS)


async def test_a_storage_failure_is_final_and_told_once(tmp_path):
    told = []
    with opened(tmp_path / "meta.db", on_fatal=told.append) as db:
        faults.arm("metadata.commit", "1*error(EIO)")
        try:
            with pytest.raises(Unavailable):
                await db.write(put("a"))
        finally:
            faults.disarm()
        with pytest.raises(Unavailable):
            await db.write(put("b"))
        assert len(told) == 1
        assert names(db) == []


async def test_a_full_disk_at_the_commit_fails_one_by_one(tmp_path):
    with opened(tmp_path / "meta.db") as db:
        faults.arm("metadata.commit", "1*error(ENOSPC)")
        try:
            await asyncio.gather(*(db.write(put(str(index))) for index in range(8)))
        finally:
            faults.disarm()
        assert len(names(db)) == 8


@pytest.mark.root
def test_a_full_disk_refuses_additions_and_allows_deletions(tmp_path):
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", tmp_path], check=True)
    try:
        with opened(tmp_path / "meta.db", reserve_size=1 << 20) as db:
            with pytest.raises(ResourceExhausted):  # noqa: PT012
                for index in range(10_000):
                    db.write_now(put(str(index), b"x" * 2000))
            stored = names(db)
            with pytest.raises(ResourceExhausted):
                db.write_now(put("large", b"x" * 100_000))
            for name in stored:
                db.write_now(
                    lambda connection, name=name: (
                        connection.execute("DELETE FROM things WHERE name = ?", (name,)) and None
                    ),
                    removes=1,
                    frees=True,
                )
            assert names(db) == []
    finally:
        subprocess.run(["umount", tmp_path], check=True)


_WRITER = """
import sys
from pathlib import Path
from orlop.metadata.database import Database
db = Database(Path(sys.argv[1]), (sys.argv[2],))
for index in range(100000):
    db.write_now(lambda c: c.execute("INSERT INTO things (name) VALUES (?)", (str(index),)) and None)
    print(index, flush=True)
"""


def test_what_was_written_survives_a_kill(tmp_path):
    path = tmp_path / "meta.db"
    arguments = [sys.executable, "-c", _WRITER, str(path), MIGRATIONS[0]]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as child:
        last = -1
        for line in child.stdout:
            last = int(line)
            if last == 40:
                # Another process may read meanwhile.
                with contextlib.closing(apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)) as reader:
                    assert reader.execute("SELECT count(*) FROM things").fetchone()[0] > last
                child.send_signal(signal.SIGKILL)
    with opened(path) as db:
        found = names(db)
        assert found[: last + 1] == [str(index) for index in range(last + 1)]
        assert len(found) <= last + 2


async def test_a_change_that_need_not_last_waits_for_no_sync_and_lasts_with_the_next_that_does(tmp_path):
    with counted_syncs() as synced, opened(tmp_path / "meta.db") as db:
        await db.write(put("first"))
        synced.clear()
        await db.write(put("a"), durable=False)
        assert names(db) == ["first", "a"]
        assert synced == []
        await db.write(put("b"))
        assert [name.endswith("-wal") for name in synced] == [True]
        await db.settle()
        assert len(synced) == 1
        await db.write(put("c"), durable=False)
        await db.settle()
        assert len(synced) == 2
