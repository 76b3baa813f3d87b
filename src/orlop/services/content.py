"""The service `containerd.services.content.v1.Content`."""

from __future__ import annotations

from collections.abc import AsyncIterator

from google.protobuf.empty_pb2 import Empty

from orlop.api.services.content.v1 import content_pb2 as pb
from orlop.core import digest as digests
from orlop.core.content import BlobWatcher, ContentStore, Writer
from orlop.core.scope import Scope
from orlop.core.wire import common
from orlop.core.wire import content as wire
from orlop.errors import AlreadyExists, DataLoss, InvalidArgument, NotFound, OrlopError, OutOfRange, Unknown
from orlop.rpc.scope import scope_of
from orlop.rpc.service import Call

_INFOS_A_MESSAGE = 100
_BYTES_A_MESSAGE = 1 << 20


class ContentService:
    def __init__(self, store: ContentStore, watcher: BlobWatcher | None = None) -> None:
        self._store = store
        self._watcher = watcher

    async def Info(self, request: pb.InfoRequest, call: Call) -> pb.InfoResponse:
        digest = _validated(request.digest)
        return pb.InfoResponse(info=wire.info(await self._store.info(scope_of(call), digest)))

    async def Update(self, request: pb.UpdateRequest, call: Call) -> pb.UpdateResponse:
        _validated(request.info.digest)
        fields = common.mask_of(request)
        info = await self._store.update(scope_of(call), wire.info_of(request.info), fields)
        return pb.UpdateResponse(info=wire.info(info))

    async def List(self, request: pb.ListContentRequest, call: Call) -> AsyncIterator[pb.ListContentResponse]:
        infos = await self._store.list(scope_of(call), request.filters)
        for start in range(0, len(infos), _INFOS_A_MESSAGE):
            page = infos[start : start + _INFOS_A_MESSAGE]
            yield pb.ListContentResponse(info=[wire.info(info) for info in page])

    async def Delete(self, request: pb.DeleteContentRequest, call: Call) -> Empty:
        why = digests.problem(request.digest)
        if why:
            raise InvalidArgument.verbatim(why)
        await self._store.delete(scope_of(call), request.digest)
        return Empty()

    async def Read(self, request: pb.ReadContentRequest, call: Call) -> AsyncIterator[pb.ReadContentResponse]:
        why = digests.problem(request.digest)
        if why:
            raise InvalidArgument.verbatim(f"{request.digest}: {why}")
        reader = await self._store.open_reader(scope_of(call), request.digest)
        try:
            start = max(request.offset, 0)
            if start > reader.size:
                raise OutOfRange.verbatim(f"read past object length {reader.size} bytes")
            rest = reader.size - start
            size = min(request.size, rest) if request.size > 0 else rest
            sent = 0
            while sent < size:
                data = await reader.read(start + sent, min(_BYTES_A_MESSAGE, size - sent))
                if not data:
                    raise DataLoss(f"content {request.digest}: ends at {start + sent} of {reader.size} bytes")
                # Offsets count from the start of this read, not of the blob.
                yield pb.ReadContentResponse(offset=sent, data=data)
                sent += len(data)
        finally:
            await reader.close()

    async def Status(self, request: pb.StatusRequest, call: Call) -> pb.StatusResponse:
        try:
            status = await self._store.status(scope_of(call), request.ref)
        except OrlopError as error:
            raise error.within(f'could not get status for ref "{request.ref}"') from error
        return pb.StatusResponse(status=wire.status(status))

    async def ListStatuses(self, request: pb.ListStatusesRequest, call: Call) -> pb.ListStatusesResponse:
        statuses = await self._store.statuses(scope_of(call), request.filters)
        return pb.ListStatusesResponse(statuses=[wire.status(status) for status in statuses])

    async def Abort(self, request: pb.AbortRequest, call: Call) -> Empty:
        await self._store.abort(scope_of(call), request.ref)
        return Empty()

    async def Write(
        self, requests: AsyncIterator[pb.WriteContentRequest], call: Call
    ) -> AsyncIterator[pb.WriteContentResponse]:
        """One answer a request. The last one is sent once more before the stream ends well, as clients know it."""
        request = await anext(requests, None)
        if request is None:
            raise Unknown("EOF")
        if not request.ref:
            raise InvalidArgument.verbatim("first message must have a reference")
        scope = scope_of(call)
        writer: Writer = await self._store.open_writer(scope, request.ref, request.total, request.expected)
        if self._watcher is not None:
            writer = self._watcher.watched(writer)
        try:
            stream = _WriteStream(self._store, scope, request.ref, writer)
            while request is not None:
                yield await stream.answer(request)
                if request.action == pb.WriteAction.COMMIT:
                    break
                request = await anext(requests, None)
            yield stream.last()
        finally:
            await writer.close()


class _WriteStream:
    """The state of one write: a single response, whose fields keep the values of earlier answers until set anew."""

    def __init__(self, store: ContentStore, scope: Scope, ref: str, writer: Writer) -> None:
        self._store = store
        self._scope = scope
        self._ref = ref
        self._writer = writer
        self._total = 0
        self._expected = ""
        self._response = pb.WriteContentResponse()

    async def answer(self, request: pb.WriteContentRequest) -> pb.WriteContentResponse:
        response = self._response
        response.action = request.action
        status = await self._writer.status()
        response.offset = status.offset
        if request.expected:
            self._expected = request.expected
            await self._refuse_present(request.expected)
        if request.total > 0:
            self._total = request.total
        if request.action == pb.WriteAction.STAT:
            response.started_at.CopyFrom(common.timestamp(status.started_at))
            response.updated_at.CopyFrom(common.timestamp(status.updated_at))
            response.total = self._total
            response.digest = self._writer.digest()
        elif request.action in (pb.WriteAction.WRITE, pb.WriteAction.COMMIT):
            response.offset = await self._write(request, status.offset)
            if request.action == pb.WriteAction.COMMIT:
                await self._writer.commit(self._total, self._expected, dict(request.labels))
            response.digest = self._writer.digest()
        return self.last()

    def last(self) -> pb.WriteContentResponse:
        """A copy of the response as it is: a transport may hold on to what it was given."""
        copy = pb.WriteContentResponse()
        copy.CopyFrom(self._response)
        return copy

    async def _write(self, request: pb.WriteContentRequest, offset: int) -> int:
        """Appends what came; returns the offset after it. Offset 0 in the middle of an ingest starts it again."""
        if request.offset > 0 and request.offset != offset:
            raise OutOfRange.verbatim(f"write @{request.offset} must occur at current offset {offset}")
        if request.offset == 0 and offset > 0:
            await self._writer.truncate(0)
            offset = 0
        data = request.data  # each look at the field makes a copy of what is in it
        if not data:
            return offset
        after = await self._writer.write(data)
        if after - offset != len(data):
            raise DataLoss.verbatim(f"wrote {after - offset} of {len(data)} bytes")
        return after

    async def _refuse_present(self, digest: str) -> None:
        """The blob came by another way meanwhile: the ingest is of no use."""
        try:
            await self._store.info(self._scope, digest)
        except NotFound:
            return
        await self._writer.close()
        try:
            await self._store.abort(self._scope, self._ref)
        except NotFound:
            pass
        raise AlreadyExists.verbatim(f"blob with expected digest {digest} exists")


def _validated(digest: str) -> str:
    if digests.problem(digest):
        raise InvalidArgument.verbatim(f'"{digest}" failed validation')
    return digest
