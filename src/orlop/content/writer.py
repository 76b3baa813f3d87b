"""The holder of an ingest: appends, digests as it goes, and commits."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from pathlib import Path
from typing import TypeVar

from orlop import faults
from orlop.content import disk
from orlop.content.blobs import INLINE, BlobDirectory, digest_of_file, hash_file
from orlop.content.ingests import IngestDirectory
from orlop.core import clock
from orlop.core import digest as digests
from orlop.core.content import ContentInfo, IngestStatus
from orlop.errors import AlreadyExists, FailedPrecondition, NotFound, Unknown

T = TypeVar("T")

DESCRIBED_FROM = 1 << 20
"""Bytes of an open ingest that are worth the files by which it outlives this process."""
_WRITEBACK = 16 << 20
"""Bytes after which the disk begins with them."""


class LocalWriter:
    """An ingest that is open.

    What blocks runs in a thread of `executor`, one call at a time: a caller that is cancelled leaves its thread
    behind, and whoever closes waits for it. `release` is called once, when the ingest is closed or committed.
    """

    def __init__(
        self,
        directory: IngestDirectory,
        blobs: BlobDirectory,
        status: IngestStatus,
        algorithm: str,
        executor: Executor,
        release: Callable[[], None],
        *,
        is_described: bool,
    ) -> None:
        """Opens the data and digests what is there; `status` is what its files tell, or are to tell. Blocks."""
        self._directory = directory
        self._blobs = blobs
        self._ref = status.ref
        self._total = status.total
        self._started_at = status.started_at
        self._updated_at = status.updated_at
        self._algorithm = algorithm
        self._executor = executor
        self._release = release
        self._one_at_a_time = threading.Lock()
        self._is_described = is_described
        self._is_over = False
        """Nothing is left to be done by anybody who closes it."""
        self._committed = ""
        self._synced = -1
        """The offset up to which the data is durable."""
        self._hasher = hashlib.new(algorithm)
        self._descriptor = self._open(directory.data)
        try:
            self._offset = hash_file(self._descriptor, self._hasher)
            self._written_back = self._offset
            os.lseek(self._descriptor, self._offset, os.SEEK_SET)
        except BaseException:
            os.close(self._descriptor)
            raise

    @property
    def is_there(self) -> bool:
        """Whether nobody has aborted it."""
        return self._directory.data.exists()

    async def status(self) -> IngestStatus:
        return self.status_now()

    def status_now(self) -> IngestStatus:
        return IngestStatus(
            ref=self._ref,
            offset=self._offset,
            total=self._total,
            started_at=self._started_at,
            updated_at=self._updated_at,
        )

    def digest(self) -> str:
        """The digest of what has arrived so far; after a commit that of the blob."""
        return self._committed or f"{self._algorithm}:{self._hasher.hexdigest()}"

    def share(self) -> int:
        """A descriptor of the data for somebody who reads it by position; theirs to close."""
        self._require_open("share")
        return os.dup(self._descriptor)

    async def write(self, data: bytes) -> int:
        """Appends `data`; returns the offset after it. After a failure the ingest is as it was before.

        Raises ResourceExhausted, naming the path and the bytes free, if the disk is full.
        """
        is_quick = len(data) <= INLINE and (self._is_described or self._offset + len(data) < DESCRIBED_FROM)
        if is_quick and not self._one_at_a_time.locked():
            self._write(data)
        else:
            await self._in_thread(lambda: self._write(data))
        return self._offset

    async def truncate(self, size: int) -> None:
        """Starts again: `size` must be 0."""
        if size != 0:
            raise Unknown("Truncate: unsupported size")
        await self._in_thread(self._truncate)

    async def sync(self) -> None:
        """What has arrived is durable on return."""
        await self._in_thread(self._sync)

    async def commit(self, size: int = 0, expected: str = "", labels: Mapping[str, str] | None = None) -> ContentInfo:
        """Makes the ingest the blob `expected`, durable on return; labels are not kept here.

        The writer is closed whatever happens. Raises FailedPrecondition for another size or digest, AlreadyExists if
        the blob is there: then the ingest is gone.
        """
        return await self._to_the_end(lambda: self._commit(size, expected))

    async def close(self) -> None:
        """Lets the ingest go; what has arrived stays, and is durable."""
        if not self._is_over:
            await self._to_the_end(self._close)

    def close_soon(self) -> None:
        """Closes in a thread, for a holder that nobody waits for."""
        self._executor.submit(self._close)

    async def _in_thread(self, step: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, step)

    async def _to_the_end(self, step: Callable[[], T]) -> T:
        """Runs `step` even if the caller is cancelled before it has begun: a lock hangs on it."""
        return await asyncio.shield(asyncio.get_running_loop().run_in_executor(self._executor, step))

    def _open(self, path: Path) -> int:
        with disk.named_failures(path):
            try:
                return disk.open_file(path, os.O_RDWR | os.O_CREAT)
            except PermissionError:
                # A commit died between making it read-only and renaming it.
                path.chmod(0o644)
                return disk.open_file(path, os.O_RDWR)

    def _require_open(self, verb: str) -> None:
        if self._descriptor < 0:
            raise FailedPrecondition(f"cannot {verb} on closed writer")

    def _write(self, data: bytes) -> None:
        with self._one_at_a_time:
            self._require_open("write")
            try:
                if self._offset + len(data) >= DESCRIBED_FROM:
                    self._describe()
                disk.write_all(self._descriptor, data)
                faults.point("content.write.written")
            except OSError as error:
                # A part of it may be in the file: what is digested and what is stored must stay the same.
                os.ftruncate(self._descriptor, self._offset)
                os.lseek(self._descriptor, self._offset, os.SEEK_SET)
                self._synced = -1
                raise disk.failure(error, self._directory.data) from error
            self._hasher.update(data)
            self._offset += len(data)
            if self._offset - self._written_back >= _WRITEBACK:
                self._written_back = self._offset
                disk.start_writeback(self._descriptor)
            self._updated_at = clock.now()

    def _describe(self) -> None:
        """While it is not, a crash takes the ingest along."""
        if not self._is_described:
            self._directory.describe(self.status_now())
            self._is_described = True

    def _truncate(self) -> None:
        with self._one_at_a_time:
            self._require_open("truncate")
            with disk.named_failures(self._directory.data):
                os.ftruncate(self._descriptor, 0)
                os.lseek(self._descriptor, 0, os.SEEK_SET)
            self._offset, self._written_back, self._synced = 0, 0, -1
            self._hasher = hashlib.new(self._algorithm)
            self._updated_at = clock.now()

    def _sync(self) -> None:
        with self._one_at_a_time:
            self._require_open("sync")
            with disk.named_failures(self._directory.data):
                self._sync_data()

    def _sync_data(self) -> None:
        if self._synced != self._offset:
            os.fsync(self._descriptor)
            self._synced = self._offset

    def _commit(self, size: int, expected: str) -> ContentInfo:
        with self._one_at_a_time:
            self._require_open("commit")
            try:
                try:
                    digest = self._check(size, expected)
                    self._make_durable()
                finally:
                    self._let_go()
                return self._adopt(digest)
            except BaseException:
                with contextlib.suppress(OSError):  # a full disk; the reason is told already
                    self._describe()
                raise
            finally:
                self._is_over = True
                self._release()

    def _check(self, size: int, expected: str) -> str:
        if size > 0 and size != self._offset:
            raise FailedPrecondition(f"unexpected commit size {self._offset}, expected {size}")
        digest = self.digest()
        algorithm = digests.algorithm_of(expected) if not digests.problem(expected) else self._algorithm
        if algorithm != self._algorithm:
            digest = digest_of_file(self._descriptor, algorithm)[0]
        if expected and digest != expected:
            raise FailedPrecondition(f"unexpected commit digest {digest}, expected {expected}")
        return digest

    def _make_durable(self) -> None:
        with disk.named_failures(self._directory.data):
            self._sync_data()
            faults.point("content.commit.synced")
            os.fchmod(self._descriptor, disk.BLOB_MODE)
            faults.point("content.commit.readonly")

    def _adopt(self, digest: str) -> ContentInfo:
        self._committed = digest
        data = self._directory.data
        try:
            with disk.named_failures(data):
                adopted = self._blobs.adopt(data, digest)
        except NotFound as error:
            raise Unknown(f"ingest {self._ref} was aborted: {error}") from error
        faults.point("content.commit.renamed")
        with disk.named_failures(data):
            # Also where the blob was there: who put it there may not have come this far.
            self._blobs.sync(digest)
            faults.point("content.commit.durable")
            self._directory.remove()
        faults.point("content.commit.done")
        if not adopted:
            raise AlreadyExists(f"content {digest}")
        return self._blobs.info(digest)

    def _close(self) -> None:
        with self._one_at_a_time:
            if self._descriptor < 0:
                return
            try:
                with disk.named_failures(self._directory.data):
                    self._sync_data()
                    if not self._is_described:
                        self._describe()
                    elif self._directory.path.exists():
                        self._directory.touch(self._updated_at)
            finally:
                self._let_go()
                self._is_over = True
                self._release()

    def _let_go(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        os.close(descriptor)
