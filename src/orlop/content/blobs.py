"""Blobs on disk: `blobs/<algorithm>/<encoded>`, as in an OCI image layout (image-spec 1.1, image-layout.md)."""

from __future__ import annotations

import asyncio
import hashlib
import os
import threading
from collections.abc import Iterator
from concurrent.futures import Executor
from pathlib import Path

from orlop.content import disk
from orlop.core import digest as digests
from orlop.core.content import ContentInfo
from orlop.core.settling import Settling
from orlop.errors import FailedPrecondition, NotFound

INLINE = 32 << 10
"""Bytes that are read or written on the loop itself: a hop to a thread costs more than they do."""

_CHUNK = 1 << 20


class BlobDirectory:
    """Blobs below `root`. Its methods block; a digest is checked before it becomes part of a path."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._prefix = f"{root}/"
        self._names: dict[Path, Settling] = {}

    def path(self, digest: str) -> str:
        """Where the blob is or would be. Raises InvalidArgument if `digest` is none."""
        return self._prefix + digests.validate(digest).replace(":", "/", 1)

    def info(self, digest: str) -> ContentInfo:
        """Raises NotFound if the blob is not there."""
        path = self.path(digest)
        try:
            stat = os.stat(path, follow_symlinks=False)
        except FileNotFoundError:
            raise NotFound(f"content {digest}") from None
        return ContentInfo(digest, stat.st_size, created_at=stat.st_mtime_ns, updated_at=stat.st_mtime_ns)

    def open(self, digest: str) -> int:
        """A descriptor to read the blob by. Raises NotFound if it is not there."""
        path = self.path(digest)
        try:
            return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            raise NotFound(f"content {digest}") from None
        except OSError as error:
            raise disk.failure(error, Path(path)) from error

    def adopt(self, data: Path, digest: str) -> bool:
        """Moves the finished file `data` to its place; `sync` makes that durable. False if the blob is there."""
        target = Path(self.path(digest))
        if disk.make_directory(target.parent):
            disk.sync_directory(self._root)
        if target.exists():
            return False
        data.rename(target)
        return True

    def sync(self, digest: str) -> None:
        """The name of the blob is durable on return."""
        directory = Path(self.path(digest)).parent
        names = self._names.setdefault(directory, Settling(lambda: disk.sync_directory(directory)))
        names.settle(names.changed())

    def remove(self, digest: str) -> None:
        """Raises NotFound if the blob is not there."""
        path = Path(self.path(digest))
        try:
            with disk.named_failures(path):
                path.unlink()
        except NotFound:
            raise NotFound(f"content {digest}") from None

    def walk(self) -> Iterator[ContentInfo]:
        """Every blob; files whose names are no digests are passed over."""
        for algorithm in sorted(os.listdir(self._root)):
            for encoded in sorted(os.listdir(self._root / algorithm)):
                digest = f"{algorithm}:{encoded}"
                if digests.problem(digest):
                    continue
                try:
                    yield self.info(digest)
                except NotFound:
                    continue

    def verify(self, digest: str) -> bool:
        """Whether the blob's bytes have its digest."""
        descriptor = self.open(digest)
        try:
            return digest_of_file(descriptor, digests.algorithm_of(digest))[0] == digest
        finally:
            os.close(descriptor)


def digest_of_file(descriptor: int, algorithm: str) -> tuple[str, int]:
    """The digest and length of a file."""
    hasher = hashlib.new(algorithm)
    size = hash_file(descriptor, hasher)
    return f"{algorithm}:{hasher.hexdigest()}", size


def hash_file(descriptor: int, hasher: hashlib._Hash) -> int:
    """Feeds a whole file to `hasher`; returns its length."""
    offset = 0
    buffer = bytearray(_CHUNK)
    view = memoryview(buffer)
    while count := os.preadv(descriptor, [buffer], offset):
        hasher.update(view[:count])
        offset += count
    return offset


class BlobReader:
    """Random access to one blob, by descriptor: it stays readable when the blob is deleted meanwhile."""

    def __init__(self, descriptor: int, path: str, executor: Executor) -> None:
        self.size = os.fstat(descriptor).st_size
        self._descriptor = descriptor
        self._path = path
        self._executor = executor
        self._lock = threading.Lock()
        self._busy = 0
        self._closed = False

    async def read(self, offset: int, size: int) -> bytes:
        """At most `size` bytes from `offset`; empty at the end."""
        size = min(size, self.size - offset)
        if size <= 0:
            return b""
        if size <= INLINE:
            return self._read(offset, size)
        return await asyncio.get_running_loop().run_in_executor(self._executor, self._read, offset, size)

    def fileno(self) -> int:
        return self._descriptor

    async def close(self) -> None:
        with self._lock:
            self._closed = True
            self._close_if_done()

    def _read(self, offset: int, size: int) -> bytes:
        # A cancelled caller may close while a thread still reads: the descriptor goes with its last user, lest the
        # thread read whatever file has been given its number.
        with self._lock:
            if self._closed:
                raise FailedPrecondition(f"content {os.path.basename(self._path)}: reader is closed")
            self._busy += 1
        try:
            data = os.pread(self._descriptor, size, offset)
            while len(data) < size:
                more = os.pread(self._descriptor, size - len(data), offset + len(data))
                if not more:
                    break
                data += more
            return data
        except OSError as error:
            raise disk.failure(error, Path(self._path)) from error
        finally:
            with self._lock:
                self._busy -= 1
                self._close_if_done()

    def _close_if_done(self) -> None:
        if self._closed and not self._busy and self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
