"""Content-addressed blobs on a local disk.

A blob is written as an *ingest* under a caller's ref and becomes a blob when it is committed: synced, checked against
its digest, renamed into place. A crash at any moment leaves either the ingest or the blob, never half of one. The
layout is containerd's, so that either daemon reads what the other wrote.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from orlop.content import disk
from orlop.content.blobs import BlobDirectory, BlobReader
from orlop.content.ingests import IngestDirectory, ingest_directories
from orlop.content.writer import LocalWriter
from orlop.core import clock, duration
from orlop.core import digest as digests
from orlop.core.content import ContentInfo, IngestStatus
from orlop.errors import AlreadyExists, InvalidArgument, NotFound, Unavailable

T = TypeVar("T")

_THREADS = 16


class LocalStore:
    """The blobs and ingests below `root`, which exists. One process at a time may use it; close it at the end."""

    def __init__(self, root: Path) -> None:
        """Makes what is missing below `root` and clears away ingests that a crash left before they were whole."""
        self._ingests = root / "ingest"
        self._open_since: dict[str, int] = {}
        self._open_writers: dict[str, LocalWriter] = {}
        self._open_lock = threading.Lock()
        self._executor = ThreadPoolExecutor(_THREADS, thread_name_prefix="content")
        with disk.named_failures(root):
            disk.make_directory(root / "blobs")
            disk.make_directory(self._ingests)
            for directory in ingest_directories(self._ingests):
                if directory.status() is None:
                    directory.remove()
        self._blobs = BlobDirectory(root / "blobs")

    async def open_writer(self, ref: str, total: int = 0, expected: str = "") -> LocalWriter:
        """Starts the ingest `ref`, or goes on with it: what is there is digested again.

        An ingest that was started with another total starts anew. Raises Unavailable while `ref` is open elsewhere,
        AlreadyExists if `expected` is here.
        """
        if not ref:
            raise InvalidArgument("ref must not be empty")
        if expected and not digests.problem(expected):
            self._refuse_present(expected)
        self._claim(ref)
        opening = asyncio.get_running_loop().run_in_executor(self._executor, self._open, ref, total, expected)
        try:
            return await asyncio.shield(opening)
        except asyncio.CancelledError:
            opening.add_done_callback(self._close_unclaimed)
            raise

    async def open_reader(self, digest: str) -> BlobReader:
        """Raises NotFound if the blob is not here."""
        return BlobReader(self._blobs.open(digest), self._blobs.path(digest), self._executor)

    async def info(self, digest: str) -> ContentInfo:
        return self._blobs.info(digest)

    async def delete(self, digest: str) -> None:
        await self._in_thread(lambda: self._blobs.remove(digest))

    async def verify(self, digest: str) -> bool:
        """Whether the blob's bytes have its digest: reads all of it."""
        return await self._in_thread(lambda: self._blobs.verify(digest))

    async def walk(self) -> AsyncIterator[ContentInfo]:
        for info in await self._in_thread(lambda: list(self._blobs.walk())):
            yield info

    async def status(self, ref: str) -> IngestStatus:
        if (writer := self._open_writers.get(ref)) is not None and writer.is_there:
            return writer.status_now()
        status = await self._in_thread(IngestDirectory.of(self._ingests, ref).status)
        if status is None:
            raise NotFound(f"ingest ref {ref}")
        return status

    async def statuses(self) -> list[IngestStatus]:
        return await self._in_thread(self._statuses)

    async def abort(self, ref: str) -> None:
        """Removes the ingest, open or not: who has it open cannot commit it any more."""
        if not await self._in_thread(lambda: self._abort(ref)):
            raise NotFound(f'ingest ref "{ref}"')

    def close(self) -> None:
        """Waits for what its threads do."""
        self._executor.shutdown()

    async def _in_thread(self, step: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, step)

    def _refuse_present(self, digest: str) -> None:
        try:
            self._blobs.info(digest)
        except NotFound:
            return
        raise AlreadyExists(f"content {digest}")

    def _claim(self, ref: str) -> None:
        with self._open_lock:
            now = clock.now()
            since = self._open_since.get(ref)
            if since is None:
                self._open_since[ref] = now
            else:
                shown = datetime.fromtimestamp(since / 1e9, UTC).strftime("%Y-%m-%d %H:%M:%S.%f +0000 UTC")
                raise Unavailable(f"ref {ref} locked for {duration.render(now - since)} (since {shown})")

    def _release(self, ref: str) -> None:
        with self._open_lock:
            self._open_since.pop(ref, None)
            self._open_writers.pop(ref, None)

    def _open(self, ref: str, total: int, expected: str) -> LocalWriter:
        try:
            directory = IngestDirectory.of(self._ingests, ref)
            with disk.named_failures(directory.path):
                status = directory.status()
                other_total = status is not None and 0 < total != status.total > 0
                is_new = status is None or status.ref != ref or other_total
                if status is None or is_new:
                    directory.create()
                    now = clock.now()
                    status = IngestStatus(ref=ref, offset=0, total=total, started_at=now, updated_at=now)
                writer = LocalWriter(
                    directory,
                    self._blobs,
                    status,
                    digests.algorithm_of(expected),
                    self._executor,
                    release=lambda: self._release(ref),
                    is_described=not is_new,
                )
                with self._open_lock:
                    self._open_writers[ref] = writer
                return writer
        except BaseException:
            self._release(ref)
            raise

    def _close_unclaimed(self, opening: asyncio.Future[LocalWriter]) -> None:
        if not opening.cancelled() and opening.exception() is None:
            opening.result().close_soon()

    def _statuses(self) -> list[IngestStatus]:
        """Those that are open tell by themselves."""
        with self._open_lock:
            writers = dict(self._open_writers)
        found = {ref: writer.status_now() for ref, writer in writers.items() if writer.is_there}
        for directory in ingest_directories(self._ingests):
            if (status := directory.status()) is not None:
                found.setdefault(status.ref, status)
        return list(found.values())

    def _abort(self, ref: str) -> bool:
        directory = IngestDirectory.of(self._ingests, ref)
        with disk.named_failures(directory.path):
            return directory.remove()
