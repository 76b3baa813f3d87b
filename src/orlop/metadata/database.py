"""A SQLite database with one writer and many readers.

One thread owns the only connection that writes and checkpoints (SQLite before 3.51.3 can lose pages otherwise, and a
second writer would only wait). Changes that are asked for at the same time share one transaction, and so one sync:
each runs in a savepoint of its own, so that a change that fails undoes itself alone. Readers have a connection a
thread, `query_only`, and never wait for the writer.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

import apsw

from orlop import faults
from orlop.errors import FailedPrecondition, ResourceExhausted, Unavailable

T = TypeVar("T")

Change = Callable[[apsw.Connection], T]
"""What runs inside a transaction. It must not await, and must not keep the connection."""

_GROUP_LIMIT = 128


class Database:
    """A database file whose schema is brought to the newest of `migrations` when it is opened."""

    def __init__(self, path: Path, migrations: Sequence[str], *, sync: bool = True) -> None:
        self.path = path
        self._readers = threading.local()
        self._all_readers: list[apsw.Connection] = []
        self._readers_lock = threading.Lock()
        self._queue: queue.SimpleQueue[tuple[Change[Any], Future[Any]] | None] = queue.SimpleQueue()
        self._broken: BaseException | None = None
        self._closed = False
        self.listeners: list[Callable[[set[tuple[str, int]]], None]] = []
        """Called in the writer thread after each commit with the (table, row) pairs that it inserted or updated."""
        self._touched: set[tuple[str, int]] = set()
        self._writer = self._connect(write=True, sync=sync)
        self._migrate(migrations)
        self._writer.set_update_hook(self._on_update)
        self._thread = threading.Thread(target=self._run, name=f"writer-{path.name}", daemon=True)
        self._thread.start()

    async def write(self, change: Change[T]) -> T:
        """Runs `change` in the writer's thread; its result is durable on return.

        An exception of `change` undoes it and is raised here. Raises ResourceExhausted if the disk is full.
        """
        return await asyncio.wrap_future(self._submit(change))

    def write_now(self, change: Change[T]) -> T:
        """As `write`, for callers that may block."""
        return self._submit(change).result()

    def read(self, query: Change[T]) -> T:
        """Runs `query` on this thread's reader, within one consistent read, and sees every committed write.

        It runs at once on the calling thread: what may take long belongs into a thread.
        """
        reader = self._reader()
        with contextlib.closing(reader.cursor()) as cursor:
            cursor.execute("BEGIN")
        try:
            return query(reader)
        finally:
            reader.execute("COMMIT")

    def close(self) -> None:
        """Finishes what is queued, checkpoints and closes. Reads and writes after it raise Unavailable."""
        if self._closed:
            return
        self._closed = True
        self._queue.put(None)
        self._thread.join()
        for reader in self._all_readers:
            reader.close()
        self._writer.close()

    def _submit(self, change: Change[T]) -> Future[T]:
        if self._closed or self._broken is not None:
            raise Unavailable(f"database {self.path} is closed" + (f": {self._broken}" if self._broken else ""))
        future: Future[T] = Future()
        self._queue.put((change, future))
        return future

    def _connect(self, *, write: bool, sync: bool = True) -> apsw.Connection:
        flags = apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE
        connection = apsw.Connection(str(self.path), flags=flags)
        if write:
            connection.pragma("auto_vacuum", 2)
            connection.pragma("journal_mode", "wal")
            connection.pragma("synchronous", "full" if sync else "off")
            connection.pragma("foreign_keys", True)
        else:
            connection.pragma("query_only", True)
            connection.pragma("wal_autocheckpoint", 0)
        connection.pragma("trusted_schema", False)
        return connection

    def _reader(self) -> apsw.Connection:
        reader: apsw.Connection | None = getattr(self._readers, "connection", None)
        if reader is None:
            if self._closed:
                raise Unavailable(f"database {self.path} is closed")
            reader = self._readers.connection = self._connect(write=False)
            with self._readers_lock:
                self._all_readers.append(reader)
        return reader

    def _migrate(self, migrations: Sequence[str]) -> None:
        version = int(self._writer.pragma("user_version"))
        if version > len(migrations):
            raise FailedPrecondition(
                f"database {self.path} has schema version {version}, this orlop knows up to {len(migrations)}: "
                "it was written by a newer one"
            )
        for step in range(version, len(migrations)):
            with self._writer:
                self._writer.execute(migrations[step])
                self._writer.execute(f"PRAGMA user_version = {step + 1}")

    def _on_update(self, _type: int, _database: str, table: str, row: int) -> None:
        self._touched.add((table, row))

    def _run(self) -> None:
        stopping = False
        while not stopping:
            group = [self._queue.get()]
            while len(group) < _GROUP_LIMIT:
                try:
                    group.append(self._queue.get_nowait())
                except queue.Empty:
                    break
            stopping = None in group
            self._commit([item for item in group if item is not None])

    def _commit(self, group: list[tuple[Change[Any], Future[Any]]]) -> None:
        if not group:
            return
        self._touched = set()
        done: list[tuple[Future[Any], Any]] = []
        try:
            self._writer.execute("BEGIN IMMEDIATE")
            for change, future in group:
                if not future.set_running_or_notify_cancel():
                    continue
                try:
                    with self._writer:
                        result = change(self._writer)
                except apsw.FullError:
                    raise
                except BaseException as error:
                    future.set_exception(error)
                else:
                    done.append((future, result))
            faults.point("metadata.commit")
            self._writer.execute("COMMIT")
        except BaseException as error:
            self._fail(error, group)
            return
        if self._touched:
            for listener in self.listeners:
                listener(self._touched)
        for future, result in done:
            future.set_result(result)

    def _fail(self, error: BaseException, group: list[tuple[Change[Any], Future[Any]]]) -> None:
        if self._writer.in_transaction:
            self._writer.execute("ROLLBACK")
        if isinstance(error, apsw.FullError):
            error = ResourceExhausted(f"database {self.path}: disk is full")
        elif isinstance(error, apsw.IOError | apsw.CorruptError):
            self._broken = error
        for _, future in group:
            if not future.done():
                future.set_exception(error)
