"""A SQLite database with one writer and many readers.

One thread owns the only connection that writes and checkpoints (SQLite before 3.51.3 can lose pages otherwise, and a
second writer would only wait). Changes that are asked for at the same time share one transaction, and so one sync:
each then runs in a savepoint of its own, so that a change that fails undoes itself alone. A change that a loss of
power may take back waits for no sync: it lasts with the next one that does, as all are in one log. Readers have a
connection a thread, `query_only`, and never wait for the writer.

A full disk fails the change that needs room and no other; changes that free something may use the reserve. An
input/output error is final: the kernel drops dirty pages after it has told of them once, so that a second try would
only seem to succeed. Beside the file lie `<name>.reserve`, and `<name>.open` while a process has it open.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import queue
import threading
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import apsw

from orlop import faults
from orlop.core import futures
from orlop.errors import DataLoss, FailedPrecondition, ResourceExhausted, Unavailable
from orlop.metadata import reserve
from orlop.metadata.reserve import Reserve

T = TypeVar("T")

Change = Callable[[apsw.Connection], T]
"""What runs inside a transaction. It must not await, must not keep the connection, and may be run again from its
start where the transaction it was part of had to be undone."""

_GROUP_LIMIT = 128
_LOG_KEPT = 4 << 20
"""Bytes of write-ahead log that stay allocated once they were: room for deletions on a full disk."""

_DAMAGED = (apsw.IOError, apsw.CorruptError, apsw.NotADBError)
_log = logging.getLogger(__name__)


class _LoopFuture:
    """The future of a caller on an event loop, as the writer's thread deals with one of `concurrent.futures`."""

    __slots__ = ("_done", "awaited")

    def __init__(self) -> None:
        self.awaited: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._done = False

    def set_running_or_notify_cancel(self) -> bool:
        return not self.awaited.cancelled()

    def done(self) -> bool:
        return self._done

    def set_result(self, result: Any) -> None:
        self._tell(self.awaited.set_result, result)

    def set_exception(self, error: BaseException) -> None:
        self._tell(self.awaited.set_exception, error)

    def _tell(self, tell: Callable[[Any], None], outcome: Any) -> None:
        self._done = True
        futures.answer(self.awaited, tell, outcome)


@dataclass(slots=True)
class _Request:
    change: Change[Any]
    removes: int
    frees: bool
    lasts: bool
    future: Future[Any] | _LoopFuture
    result: Any = None
    has_changed: bool = False


class Database:
    """A database file whose schema is brought to the newest of `migrations` when it is opened.

    Opening raises FailedPrecondition, without touching the file, if a newer version has written it or the file system
    is read-only, and DataLoss if it is damaged, which is looked for after an unclean stop only. `on_fatal` is called in
    the writer's thread when the storage has failed; every later write raises Unavailable.
    """

    def __init__(
        self,
        path: Path,
        migrations: Sequence[str],
        *,
        sync: bool = True,
        on_fatal: Callable[[BaseException], None] | None = None,
        reserve_size: int = reserve.SIZE,
    ) -> None:
        self.path = path
        self.listeners: list[Callable[[set[tuple[str, int]]], None]] = []
        """Called in the writer thread after each commit with the (table, row) pairs that it inserted or updated."""
        self.on_change: list[Callable[[set[tuple[str, int]]], None]] = []
        """Called as `listeners`, with the rows that it deleted, too, before anybody is told that it is done."""
        self.on_mutation: list[Callable[[int], None]] = []
        """Called in the writer thread after the commit of each change that wrote something, with its `removes`."""
        self.on_fatal = on_fatal
        self._readers = threading.local()
        self._all_readers: weakref.WeakSet[apsw.Connection] = weakref.WeakSet()
        self._lock = threading.Lock()
        self._queue: queue.SimpleQueue[_Request | None] = queue.SimpleQueue()
        self._broken: BaseException | None = None
        self._closed = False
        self._touched: set[tuple[str, int]] = set()
        self._deleted: set[tuple[str, int]] = set()
        self._marker = path.with_name(f"{path.name}.open")
        self._syncs = sync
        self._synchronous = ""
        self._is_settled = True
        self._writer = self._open(migrations)
        self._writer.set_update_hook(self._on_update)
        self._reserve = Reserve(path.with_name(f"{path.name}.reserve"), reserve_size)
        self._thread = threading.Thread(target=self._run, name=f"writer-{path.name}", daemon=True)
        self._thread.start()

    @property
    def uncommitted(self) -> set[tuple[str, int]]:
        """For a change: the (table, row) pairs that its transaction has written so far, its neighbours' included."""
        return self._touched

    async def write(self, change: Change[T], *, removes: int = 0, frees: bool = False, durable: bool = True) -> T:
        """Runs `change` in the writer's thread; its result is durable on return, or else with the next that is.

        `removes` counts the objects it deletes, for the collector's schedule. `frees` says that it makes room: on a
        full disk such a change may use the reserve. An exception of `change` undoes it and is raised here. A caller
        that is cancelled while the change runs does not stop it. Raises ResourceExhausted if the disk is full.
        """
        future = _LoopFuture()
        self._submit(_Request(change, removes, frees, durable, future))
        result: T = await future.awaited
        return result

    async def settle(self) -> None:
        """What was written before is durable on return."""
        if not self._is_settled:
            await self.write(_touch)

    def write_now(self, change: Change[T], *, removes: int = 0, frees: bool = False) -> T:
        """As `write`, for callers that may block."""
        future: Future[T] = Future()
        self._submit(_Request(change, removes, frees, True, future))
        return future.result()

    def read(self, query: Change[T]) -> T:
        """Runs `query` on this thread's reader, within one consistent read, and sees every committed write.

        It runs at once on the calling thread: what may take long belongs into a thread.
        """
        reader = self._reader()
        if reader.in_transaction:
            return query(reader)
        reader.execute("BEGIN")
        try:
            return query(reader)
        finally:
            reader.execute("COMMIT")
            self._let_go(reader)

    def look(self, query: Change[T]) -> T:
        """As `read`, for a query of a single statement, which needs no transaction to be consistent in itself."""
        reader = self._reader()
        try:
            return query(reader)
        finally:
            self._let_go(reader)

    def close(self) -> None:
        """Finishes what is queued, checkpoints and closes. Reads and writes after it raise Unavailable."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._queue.put(None)
        self._thread.join()
        for reader in list(self._all_readers):
            # A reader that another thread is still using is closed by that thread.
            with contextlib.suppress(apsw.ThreadingViolationError, apsw.BusyError):
                reader.close()
        self._writer.close()
        if self._broken is None:
            self._marker.unlink(missing_ok=True)

    def _submit(self, request: _Request) -> None:
        with self._lock:
            if self._closed or self._broken is not None:
                raise Unavailable(f"database {self.path} is closed" + (f": {self._broken}" if self._broken else ""))
            self._queue.put(request)

    # Opening.

    def _open(self, migrations: Sequence[str]) -> apsw.Connection:
        try:
            self._make_file()
            self._refuse_newer(len(migrations))
            writer = self._connect_writer()
            try:
                self._migrate(writer, migrations)
            except BaseException:
                writer.close()
                raise
            return writer
        except _DAMAGED as error:
            raise DataLoss(f"database {self.path}: {error}") from error
        except (apsw.ReadOnlyError, apsw.CantOpenError) as error:
            raise FailedPrecondition(f"database {self.path} cannot be written: {error}") from error
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise ResourceExhausted(f"database {self.path}: {error.strerror}") from error
            raise FailedPrecondition(f"database {self.path} cannot be opened: {error}") from error

    def _make_file(self) -> None:
        """Makes the file private from its first moment. SQLite's side files take their mode from it."""
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Only where it is missing: a descriptor closed here would drop SQLite's locks of a file in use.
        if not self.path.exists():
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))

    def _refuse_newer(self, known: int) -> None:
        if not self.path.stat().st_size:
            return
        with contextlib.closing(apsw.Connection(str(self.path), flags=apsw.SQLITE_OPEN_READWRITE)) as connection:
            connection.pragma("query_only", True)
            version = int(connection.pragma("user_version"))
        if version > known:
            raise FailedPrecondition(
                f"database {self.path} has schema version {version}, this orlop knows up to {known}: "
                "it was written by a newer one"
            )

    def _connect_writer(self) -> apsw.Connection:
        was_unclean = self._marker.exists()
        writer = apsw.Connection(str(self.path), flags=apsw.SQLITE_OPEN_READWRITE)
        try:
            if was_unclean:
                self._check(writer)
            writer.pragma("auto_vacuum", 2)
            writer.pragma("journal_mode", "wal")
            writer.pragma("journal_size_limit", _LOG_KEPT)
            self._demand(writer, durable=True)
            writer.pragma("foreign_keys", True)
            writer.pragma("trusted_schema", False)
        except BaseException:
            writer.close()
            raise
        self._mark_open()
        return writer

    def _demand(self, writer: apsw.Connection, *, durable: bool) -> None:
        """`durable`: the next commit syncs the log, and with it what earlier ones have left there."""
        synchronous = ("full" if durable else "normal") if self._syncs else "off"
        if self._synchronous != synchronous:
            writer.pragma("synchronous", synchronous)
            self._synchronous = synchronous

    def _check(self, writer: apsw.Connection) -> None:
        _log.warning("database %s was not closed cleanly: checking it", self.path)
        problems = [row[0] for row in writer.execute("PRAGMA quick_check(3)") if row[0] != "ok"]
        if problems:
            raise DataLoss(f"database {self.path} is damaged ({'; '.join(problems)}); it was left as it is")

    def _mark_open(self) -> None:
        os.close(os.open(self._marker, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        directory = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def _migrate(self, writer: apsw.Connection, migrations: Sequence[str]) -> None:
        for step in range(int(writer.pragma("user_version")), len(migrations)):
            with writer:
                writer.execute(migrations[step])
                writer.execute(f"PRAGMA user_version = {step + 1}")
            faults.point("metadata.migrated")

    # Reading.

    def _reader(self) -> apsw.Connection:
        reader: apsw.Connection | None = getattr(self._readers, "connection", None)
        return self._new_reader() if reader is None or self._closed else reader

    def _new_reader(self) -> apsw.Connection:
        with self._lock:
            if self._closed:
                raise Unavailable(f"database {self.path} is closed")
            reader = apsw.Connection(str(self.path), flags=apsw.SQLITE_OPEN_READWRITE)
            reader.set_busy_timeout(5000)
            reader.pragma("query_only", True)
            reader.pragma("wal_autocheckpoint", 0)
            reader.pragma("trusted_schema", False)
            self._readers.connection = reader
            self._all_readers.add(reader)
            return reader

    def _let_go(self, reader: apsw.Connection) -> None:
        """Closes `reader` if the database was closed while it was in use, so that `close` had to leave it alone."""
        if self._closed:
            with contextlib.suppress(apsw.ThreadingViolationError, apsw.BusyError):
                reader.close()

    # Writing: everything below runs in the writer's thread.

    def _on_update(self, kind: int, _database: str, table: str, row: int) -> None:
        (self._deleted if kind == apsw.SQLITE_DELETE else self._touched).add((table, row))

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
            # A caller may give up until here; from now on its change happens.
            self._serve([item for item in group if item and item.future.set_running_or_notify_cancel()])

    def _serve(self, group: list[_Request]) -> None:
        """Commits `group` together; where the disk is full for that, one by one."""
        if self._reserve.is_spent and not self._reserve.make():
            full = ResourceExhausted(f"database {self.path}: disk is full, only deletions are possible")
            for request in group:
                if not request.frees:
                    request.future.set_exception(full)
            group = [request for request in group if request.frees]
        if not group:
            return
        try:
            self._commit(group)
        except BaseException as error:
            self._undo()
            if not _is_full(error):
                self._fail(group, error)
                return
            for request in group:
                if not request.future.done():
                    self._serve_alone(request)

    def _serve_alone(self, request: _Request) -> None:
        """Commits one change. Where the disk is full and the change frees something, room is made for it."""
        remedies = iter((self._reuse_log, self._use_reserve) if request.frees else ())
        while not request.future.done():
            try:
                self._commit([request])
            except BaseException as error:
                self._undo()
                remedy = next(remedies, None) if _is_full(error) else None
                if remedy is None:
                    self._fail([request], error)
                else:
                    remedy()

    def _reuse_log(self) -> None:
        """Has the next transaction write over the log from its start, which needs no new room, if readers allow."""
        with contextlib.suppress(apsw.FullError, apsw.BusyError):
            self._writer.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_RESTART)

    def _use_reserve(self) -> None:
        if self._reserve.spend():
            _log.warning("database %s: disk is full, using the reserve", self.path)
        # The log's pages now have room in the file, after which the log itself is free again.
        self._reuse_log()

    def _commit(self, group: list[_Request]) -> None:
        """One transaction for all; answers those that succeeded and those that failed by themselves."""
        if self._broken is not None:
            raise self._broken
        self._touched, self._deleted = set(), set()
        failed: list[tuple[_Request, BaseException]] = []
        done: list[_Request] = []
        durable = any(request.lasts for request in group)
        self._demand(self._writer, durable=durable)
        alone = len(group) == 1
        self._writer.execute("BEGIN IMMEDIATE")
        for request in group:
            try:
                self._apply(request, alone)
            except BaseException as error:
                if _is_full(error) or isinstance(error, _DAMAGED) or not self._writer.in_transaction:
                    raise
                self._writer.execute("ROLLBACK; BEGIN" if alone else "ROLLBACK TO change; RELEASE change")
                failed.append((request, error))
            else:
                done.append(request)
        faults.point("metadata.commit")
        self._writer.execute("COMMIT")
        if any(request.has_changed for request in done):
            self._is_settled = durable
        faults.point("metadata.committed")
        self._tell(done)
        for request in done:
            request.future.set_result(request.result)
        for request, reason in failed:
            request.future.set_exception(reason)

    def _apply(self, request: _Request, alone: bool) -> None:
        before = self._writer.total_changes()
        if alone:
            request.result = request.change(self._writer)
        else:
            self._writer.execute("SAVEPOINT change")
            request.result = request.change(self._writer)
            self._writer.execute("RELEASE change")
        request.has_changed = self._writer.total_changes() != before

    def _tell(self, done: list[_Request]) -> None:
        touched, self._touched = self._touched, set()
        try:
            changed = touched | self._deleted
            for changed_in in self.on_change:
                changed_in(changed)
            if touched:
                for listener in list(self.listeners):
                    listener(touched)
            for request in done:
                if request.has_changed:
                    for hook in list(self.on_mutation):
                        hook(request.removes)
        except Exception:
            # What is committed is committed: its caller must not be told otherwise.
            _log.exception("database %s: a listener failed", self.path)

    def _undo(self) -> None:
        if self._writer.in_transaction:
            with contextlib.suppress(apsw.Error):
                self._writer.execute("ROLLBACK")

    def _fail(self, group: list[_Request], error: BaseException) -> None:
        answer: BaseException = error
        if _is_full(error):
            answer = ResourceExhausted(f"database {self.path}: disk is full")
        elif isinstance(error, apsw.BusyError):
            answer = Unavailable(f"database {self.path}: another process is writing")
        elif isinstance(error, apsw.ReadOnlyError):
            answer = FailedPrecondition(f"database {self.path} is on a read-only file system")
        elif isinstance(error, (*_DAMAGED, OSError)):
            answer = Unavailable(f"database {self.path}: {error}")
            self._break(error)
        for request in group:
            if not request.future.done():
                request.future.set_exception(answer)

    def _break(self, error: BaseException) -> None:
        if self._broken is not None:
            return
        self._broken = error
        _log.critical("database %s: the storage has failed, nothing more is written: %s", self.path, error)
        if self.on_fatal is not None:
            self.on_fatal(error)


def _touch(connection: apsw.Connection) -> None:
    """Writes what is there once more: a transaction that changes nothing is not synced."""
    connection.pragma("user_version", connection.pragma("user_version"))


def _is_full(error: BaseException) -> bool:
    return isinstance(error, apsw.FullError) or (isinstance(error, OSError) and error.errno == errno.ENOSPC)
