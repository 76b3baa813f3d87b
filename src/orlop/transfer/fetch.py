"""Blobs from a registry into the content store: each fetched once, checked, resumed where it stopped.

An ingest is in no lease, so that it lives a day: what a pull that failed or was killed had received is there for the
next. The blob that it becomes is in the pull's.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Self

from orlop import faults
from orlop.core import digest as digests
from orlop.core.content import ContentInfo, ContentStore, Writer
from orlop.core.descriptor import Descriptor
from orlop.core.labels import MAX_SIZE
from orlop.core.lease import LeaseStore, Resource
from orlop.core.reference import Reference
from orlop.core.registry import Repository
from orlop.core.scope import Scope
from orlop.errors import (
    AlreadyExists,
    DataLoss,
    FailedPrecondition,
    OrlopError,
    ResourceExhausted,
    Unavailable,
)
from orlop.transfer.arrival import Arrival
from orlop.transfer.refs import ref_of

BATCH = 1 << 20
"""Bytes that are gathered before they are written."""
SOURCE = "containerd.io/distribution.source."
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 1.0
"""Seconds between two looks at an ingest that a client has open."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where the blobs of one pull come from, and for whom."""

    scope: Scope
    repository: Repository
    reference: Reference


class Fetches:
    """What is on its way, by digest; one for the daemon, so that no blob is fetched twice at a time.

    Who asks for a blob that another fetches waits, and finds it afterwards; or, where that did not succeed, goes on
    with what is there.
    """

    def __init__(self, content: ContentStore, leases: LeaseStore, layers_at_once: int) -> None:
        self._content = content
        self._leases = leases
        self._arriving: dict[str, Arrival] = {}
        self._layers = asyncio.Semaphore(layers_at_once)

    def arriving(self, digest: str) -> Arrival | None:
        return self._arriving.get(digest)

    async def layer(self, origin: Origin, descriptor: Descriptor, arrival: Arrival) -> bool:
        """As `blob`; no more layers at a time than the daemon may fetch."""
        return await self.blob(origin, descriptor, arrival, self._layers)

    async def blob(
        self,
        origin: Origin,
        descriptor: Descriptor,
        arrival: Arrival | None = None,
        slots: asyncio.Semaphore | None = None,
    ) -> bool:
        """Fetches a blob unless it is here; False if it was. `arrival` tells of what comes, if it comes by this call.

        It waits for one of `slots` first. Raises FailedPrecondition for content of another digest or size, and
        what the registry raises.
        """
        arrival = arrival or Arrival()
        digests.validate(descriptor.digest, f"{origin.reference}: {descriptor.media_type} {descriptor.digest!r}")
        whole = False
        try:
            while (other := self._arriving.get(descriptor.digest)) is not None:
                await other.over.wait()
            self._arriving[descriptor.digest] = arrival
            try:
                fetched = await self._blob(origin, descriptor, arrival, slots)
                whole = True
                return fetched
            finally:
                del self._arriving[descriptor.digest]
        finally:
            arrival.end(whole=whole)

    async def keep(self, scope: Scope, digest: str) -> None:
        """Lists a blob in the lease of the scope."""
        if scope.lease:
            await self._leases.add_resource(scope, scope.lease, Resource("content", digest))

    async def label(self, origin: Origin, digest: str) -> None:
        """Notes on a blob that the origin's repository has it, as far as that fits into a label."""
        info = await self._content.info(origin.scope, digest)
        key, value = self._source(origin, info)
        if value and info.labels.get(key) != value:
            update = ContentInfo(digest, 0, labels={key: value})
            await self._content.update(origin.scope, update, [f"labels.{key}"])

    async def _blob(
        self, origin: Origin, descriptor: Descriptor, arrival: Arrival, slots: asyncio.Semaphore | None
    ) -> bool:
        async with contextlib.AsyncExitStack() as slot:
            turn = await slot.enter_async_context(_Turn(slots))
            try:
                writer = await self._open(origin.scope, descriptor)
            except AlreadyExists:
                await self.label(origin, descriptor.digest)
                return False
            try:
                await turn.come()
                came = await self._fill(origin, descriptor, writer, arrival)
                await slot.aclose()  # the next one may come while this one is made durable
                await self._commit(origin, descriptor, writer, arrival)
                return came
            except (FailedPrecondition, DataLoss, ResourceExhausted):
                # It is of no use to anybody, or others need the room more.
                await _let_go(writer)
                with contextlib.suppress(OrlopError):
                    await self._content.abort(origin.scope, ref_of(descriptor))
                raise
            finally:
                arrival.close()
                await _let_go(writer)

    async def _open(self, scope: Scope, descriptor: Descriptor) -> Writer:
        """The ingest, once no client that pulls by itself has it open."""
        pause = _FIRST_PAUSE
        while True:
            try:
                return await self._content.open_writer(
                    scope, ref_of(descriptor), descriptor.size, descriptor.digest, outlives_lease=True
                )
            except Unavailable:
                await asyncio.sleep(pause)
                pause = min(pause * 2, _LONGEST_PAUSE)

    async def _fill(self, origin: Origin, descriptor: Descriptor, writer: Writer, arrival: Arrival) -> bool:
        """False where the blob is here, in another namespace."""
        offset = (await writer.status()).offset
        shared = offset == descriptor.size and writer.digest() == descriptor.digest
        if not shared:
            if offset >= descriptor.size:
                await writer.truncate(0)
                offset = 0
            arrival.grow(offset)
            arrival.open(writer.share())
            await self._receive(origin, descriptor, writer, arrival)
        faults.point("transfer.fetch.received")
        return not shared

    async def _commit(self, origin: Origin, descriptor: Descriptor, writer: Writer, arrival: Arrival) -> None:
        key, value = self._source(origin, ContentInfo(descriptor.digest, descriptor.size))
        try:
            await writer.commit(descriptor.size, descriptor.digest, {key: value} if value else {})
        except AlreadyExists:
            await self.label(origin, descriptor.digest)
        except FailedPrecondition as error:
            raise FailedPrecondition.verbatim(
                f"{origin.reference}: {descriptor.media_type} {descriptor.digest}: what came has digest "
                f"{writer.digest()} and {arrival.offset} bytes: {error}"
            ) from error

    async def _receive(self, origin: Origin, descriptor: Descriptor, writer: Writer, arrival: Arrival) -> None:
        what = f"{origin.reference}: {descriptor.media_type} {descriptor.digest}"
        try:
            async with origin.repository.fetch(descriptor, arrival.offset) as pieces:
                await _write(_bounded(pieces, descriptor.size - arrival.offset, what), writer, arrival)
        except ResourceExhausted as error:
            raise error.within(what) from error
        if arrival.offset < descriptor.size:
            raise Unavailable(f"{what}: ended at {arrival.offset} of {descriptor.size} bytes")

    @staticmethod
    def _source(origin: Origin, info: ContentInfo) -> tuple[str, str]:
        """The label that names the repositories which have the blob, with this one among them."""
        key = f"{SOURCE}{origin.reference.host_name}"
        known = {name for name in info.labels.get(key, "").split(",") if name}
        value = ",".join(sorted(known | {origin.reference.path}))
        return key, value if len(key) + len(value) <= MAX_SIZE else ""


class _Turn:
    """A place in the queue for one of `slots`: what comes before it can be done while others have theirs."""

    def __init__(self, slots: asyncio.Semaphore | None) -> None:
        self._slots = slots
        self._coming: asyncio.Task[bool] | None = None

    async def __aenter__(self) -> Self:
        if self._slots is not None:
            self._coming = asyncio.create_task(self._slots.acquire())
        return self

    async def come(self) -> None:
        if self._coming is not None:
            await self._coming

    async def __aexit__(self, *_: object) -> None:
        if self._slots is None or self._coming is None:
            return
        self._coming.cancel()
        await asyncio.wait([self._coming])
        if not self._coming.cancelled():
            self._slots.release()


async def _let_go(writer: Writer) -> None:
    """Closes it; where that fails too, as on a full disk, what failed before is what is told."""
    with contextlib.suppress(OrlopError):
        await writer.close()


async def _bounded(pieces: AsyncIterator[bytes], size: int, what: str) -> AsyncIterator[bytes]:
    """`pieces`, of which there are no more than `size` bytes."""
    async for piece in pieces:
        size -= len(piece)
        if size < 0:
            raise FailedPrecondition(f"{what}: the registry sends more bytes than its descriptor says")
        yield piece


async def _write(pieces: AsyncIterator[bytes], writer: Writer, arrival: Arrival) -> None:
    """Writes what comes in batches; while one is written the next is received."""

    async def write(batch: bytes) -> None:
        arrival.grow(await writer.write(batch))
        faults.point("transfer.fetch.written")

    writing: asyncio.Task[None] | None = None
    try:
        async for batch in _batches(pieces):
            if writing is not None:
                await writing
            writing = asyncio.create_task(write(batch))
    finally:
        if writing is not None:
            # What was received is kept, also when the rest does not come.
            await asyncio.wait([writing])
    if writing is not None:
        writing.result()


async def _batches(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """`pieces` gathered to what is worth a write; where they end by an error, what came before it too."""
    parts: list[bytes] = []
    size = 0
    try:
        async for piece in pieces:
            parts.append(piece)
            size += len(piece)
            if size >= BATCH:
                yield b"".join(parts)
                parts, size = [], 0
    except OrlopError:
        if parts:
            yield b"".join(parts)
        raise
    if parts:
        yield b"".join(parts)
