"""Content: blobs by digest, and the ingests that become blobs.

Two protocols: `Backend` is a store of bytes that knows no namespaces (plugin type `io.containerd.content.v1`);
`ContentStore` is what callers use, namespaced records over a backend.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from orlop.core.scope import Scope
from orlop.errors import AlreadyExists, OutOfRange


@dataclass(frozen=True, slots=True)
class ContentInfo:
    """A blob of `size` bytes; times are nanoseconds since 1970."""

    digest: str
    size: int
    created_at: int = 0
    updated_at: int = 0
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class IngestStatus:
    """`offset` bytes of `total` (0 where unknown) have arrived under `ref`."""

    ref: str
    offset: int
    total: int = 0
    expected: str = ""
    started_at: int = 0
    updated_at: int = 0


class Reader(Protocol):
    """Random access to a blob; close it."""

    size: int

    async def read(self, offset: int, size: int) -> bytes:
        """At most `size` bytes from `offset`; empty at the end."""

    def fileno(self) -> int:
        """A descriptor of the blob's file, for readers that work in a thread. Valid until `close`."""

    async def close(self) -> None: ...


class Writer(Protocol):
    """An ingest that this holder alone may write. Close it: the ingest stays unless it was committed or aborted."""

    async def status(self) -> IngestStatus: ...

    def digest(self) -> str:
        """The digest of what has arrived so far."""

    def share(self) -> int:
        """A new descriptor of the ingest's file, to read there what has arrived while more does; -1 for none."""

    async def write(self, data: bytes) -> int:
        """Appends; returns the offset after it."""

    async def truncate(self, size: int) -> None:
        """Only to 0: starts again."""

    async def sync(self) -> None:
        """What has arrived is durable on return; a commit that follows has less to wait for."""

    async def commit(self, size: int = 0, expected: str = "", labels: Mapping[str, str] | None = None) -> ContentInfo:
        """Makes the ingest the blob `expected`, durable on return. 0 and empty leave size and digest unchecked.

        Raises FailedPrecondition for another size or digest, AlreadyExists if the blob is there.
        """

    async def close(self) -> None: ...


class BlobWatcher(Protocol):
    """Somebody who can use what is in a blob while it arrives."""

    def watched(self, writer: Writer) -> Writer:
        """A writer that does as `writer` does, and to be used instead of it."""


class Backend(Protocol):
    """Bytes on disk, by digest."""

    async def open_writer(self, ref: str, total: int = 0, expected: str = "") -> Writer:
        """Raises Unavailable while another holder has `ref` open."""

    async def open_reader(self, digest: str) -> Reader: ...

    async def info(self, digest: str) -> ContentInfo: ...

    async def delete(self, digest: str) -> None: ...

    def walk(self) -> AsyncIterator[ContentInfo]: ...

    async def status(self, ref: str) -> IngestStatus: ...

    async def statuses(self) -> list[IngestStatus]: ...

    async def abort(self, ref: str) -> None: ...


class ContentStore(Protocol):
    """Blobs and ingests of a namespace."""

    async def info(self, scope: Scope, digest: str) -> ContentInfo: ...

    async def update(self, scope: Scope, info: ContentInfo, fields: Sequence[str] | None) -> ContentInfo: ...

    async def delete(self, scope: Scope, digest: str) -> None: ...

    async def open_reader(self, scope: Scope, digest: str) -> Reader: ...

    async def open_writer(
        self, scope: Scope, ref: str, total: int = 0, expected: str = "", *, outlives_lease: bool = False
    ) -> Writer:
        """The ingest joins the lease of `scope`; one that `outlives_lease` lives a day, and its blob joins."""

    async def status(self, scope: Scope, ref: str) -> IngestStatus: ...

    async def statuses(self, scope: Scope, filters: Sequence[str] = ()) -> list[IngestStatus]: ...

    async def abort(self, scope: Scope, ref: str) -> None: ...

    async def list(self, scope: Scope, filters: Sequence[str] = ()) -> list[ContentInfo]: ...


async def read_whole(store: ContentStore, scope: Scope, digest: str, limit: int) -> bytes:
    """The whole blob. Raises OutOfRange, naming the limit, if it is longer than `limit` bytes."""
    reader = await store.open_reader(scope, digest)
    try:
        if reader.size > limit:
            raise OutOfRange(f"content {digest}: {reader.size} bytes, at most {limit} are read whole")
        parts = []
        offset = 0
        while offset < reader.size:
            part = await reader.read(offset, min(1 << 20, reader.size - offset))
            if not part:
                break
            parts.append(part)
            offset += len(part)
        return b"".join(parts)
    finally:
        await reader.close()


async def write_whole(
    store: ContentStore,
    scope: Scope,
    ref: str,
    data: bytes | Iterable[bytes],
    expected: str = "",
    labels: Mapping[str, str] | None = None,
) -> ContentInfo:
    """Stores `data` under its digest. A blob that is already there is fine: its record is returned."""
    pieces = [data] if isinstance(data, bytes) else data
    try:
        writer = await store.open_writer(scope, ref, 0, expected)
    except AlreadyExists:
        return await store.info(scope, expected)
    try:
        await writer.truncate(0)
        for piece in pieces:
            await writer.write(piece)
        digest = writer.digest()
        try:
            return await writer.commit(0, expected, labels)
        except AlreadyExists:
            return await store.info(scope, digest)
    finally:
        await writer.close()
