"""The content store over a channel: a `core.content.ContentStore` whose blobs are in the daemon."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from google.protobuf.field_mask_pb2 import FieldMask

from orlop.api.services.content.v1 import content_pb2 as pb
from orlop.client.remote import Remote
from orlop.core.content import ContentInfo, IngestStatus
from orlop.core.scope import Scope
from orlop.core.wire import content as wire
from orlop.core.wire.common import nanoseconds
from orlop.errors import FailedPrecondition, OrlopError, Unimplemented

PIECE = 4 << 20
"""Bytes of a write message: well below the 16 MiB that a server takes."""


class Content(Remote):
    service = pb.DESCRIPTOR.services_by_name["Content"]

    async def info(self, scope: Scope, digest: str) -> ContentInfo:
        answer = await self._call("Info", pb.InfoRequest(digest=digest), scope)
        return wire.info_of(answer.info)

    async def update(self, scope: Scope, info: ContentInfo, fields: Sequence[str] | None) -> ContentInfo:
        request = pb.UpdateRequest(info=wire.info(info))
        if fields is not None:
            request.update_mask.CopyFrom(FieldMask(paths=fields))
        return wire.info_of((await self._call("Update", request, scope)).info)

    async def delete(self, scope: Scope, digest: str) -> None:
        await self._call("Delete", pb.DeleteContentRequest(digest=digest), scope)

    async def open_reader(self, scope: Scope, digest: str) -> BlobReader:
        info = await self.info(scope, digest)
        return BlobReader(self, scope, digest, info.size)

    async def open_writer(
        self, scope: Scope, ref: str, total: int = 0, expected: str = "", *, outlives_lease: bool = False
    ) -> IngestWriter:
        if outlives_lease and scope.lease:
            raise Unimplemented("an ingest that outlives the lease of its blob, by a client")
        writer = IngestWriter(self, scope, ref, total, expected)
        try:
            await writer.status()
        except BaseException:
            await writer.close()
            raise
        return writer

    async def status(self, scope: Scope, ref: str) -> IngestStatus:
        return wire.status_of((await self._call("Status", pb.StatusRequest(ref=ref), scope)).status)

    async def statuses(self, scope: Scope, filters: Sequence[str] = ()) -> list[IngestStatus]:
        answer = await self._call("ListStatuses", pb.ListStatusesRequest(filters=filters), scope)
        return [wire.status_of(status) for status in answer.statuses]

    async def abort(self, scope: Scope, ref: str) -> None:
        await self._call("Abort", pb.AbortRequest(ref=ref), scope)

    async def list(self, scope: Scope, filters: Sequence[str] = ()) -> list[ContentInfo]:
        answers = self._stream("List", pb.ListContentRequest(filters=filters), scope)
        return [wire.info_of(info) async for answer in answers for info in answer.info]

    def read(self, scope: Scope, digest: str, offset: int, size: int) -> AsyncIterator[pb.ReadContentResponse]:
        return self._stream("Read", pb.ReadContentRequest(digest=digest, offset=offset, size=size), scope)

    def write(self, scope: Scope, requests: AsyncIterator[pb.WriteContentRequest]) -> AsyncIterator[Any]:
        return self._duplex("Write", requests, scope)


class BlobReader:
    """Random access to a blob of the daemon, a request a read."""

    def __init__(self, content: Content, scope: Scope, digest: str, size: int) -> None:
        self.size = size
        self._content, self._scope, self._digest = content, scope, digest

    async def read(self, offset: int, size: int) -> bytes:
        if offset >= self.size or size <= 0:
            return b""
        parts = [answer.data async for answer in self._content.read(self._scope, self._digest, offset, size)]
        return b"".join(parts)

    def fileno(self) -> int:
        raise Unimplemented("a blob of a remote daemon has no descriptor here")

    async def close(self) -> None:
        return


class IngestWriter:
    """One Write stream: each message is answered before the next is sent, as the protocol wants it."""

    def __init__(self, content: Content, scope: Scope, ref: str, total: int, expected: str) -> None:
        self._ref, self._total, self._expected = ref, total, expected
        self._messages: asyncio.Queue[pb.WriteContentRequest | None] = asyncio.Queue()
        self._answers = content.write(scope, self._requests())
        self._last = pb.WriteContentResponse()
        self._ended = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def status(self) -> IngestStatus:
        answer = await self._ask(pb.WriteContentRequest(action=pb.STAT))
        return IngestStatus(
            self._ref,
            answer.offset,
            answer.total,
            self._expected,
            nanoseconds(answer.started_at),
            nanoseconds(answer.updated_at),
        )

    def digest(self) -> str:
        return self._last.digest

    def share(self) -> int:
        return -1

    async def write(self, data: bytes) -> int:
        for start in range(0, len(data), PIECE):
            piece = data[start : start + PIECE]
            await self._ask(pb.WriteContentRequest(action=pb.WRITE, offset=self._last.offset, data=piece))
        return self._last.offset

    async def truncate(self, size: int) -> None:
        if size:
            raise Unimplemented("an ingest is truncated to 0 only")
        if self._last.offset:
            await self._ask(pb.WriteContentRequest(action=pb.WRITE, offset=0))

    async def sync(self) -> None:
        """The daemon syncs when it commits."""

    async def commit(self, size: int = 0, expected: str = "", labels: Mapping[str, str] | None = None) -> ContentInfo:
        answer = await self._ask(
            pb.WriteContentRequest(
                action=pb.COMMIT,
                total=size,
                offset=self._last.offset,
                expected=expected or self._expected,
                labels=labels or {},
            )
        )
        return ContentInfo(answer.digest, answer.offset, labels=labels or {})

    async def close(self) -> None:
        """Ends the stream; what was written and not committed stays in the daemon."""
        if not self._ended:
            self._end()
            try:
                async for _ in self._answers:
                    pass  # the server repeats its last answer before it ends
            except OrlopError:
                return  # every request has its answer; how the stream ends changes none of them

    def _end(self) -> None:
        self._ended = True
        self._messages.put_nowait(None)

    async def _requests(self) -> AsyncIterator[pb.WriteContentRequest]:
        while (message := await self._messages.get()) is not None:
            yield message

    async def _ask(self, message: pb.WriteContentRequest) -> pb.WriteContentResponse:
        message.ref, message.total = self._ref, message.total or self._total
        message.expected = message.expected or self._expected
        if self._ended:
            raise FailedPrecondition(f"ingest {self._ref!r}: the stream has ended")
        self._messages.put_nowait(message)
        try:
            answer: pb.WriteContentResponse = await anext(self._answers)
        except StopAsyncIteration:
            self._end()
            raise FailedPrecondition(f"ingest {self._ref!r}: the daemon ended the stream") from None
        except BaseException:
            self._end()
            raise
        self._last = answer
        return answer
