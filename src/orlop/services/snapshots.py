"""The Snapshots service (`containerd.services.snapshots.v1`)."""

from __future__ import annotations

from collections.abc import AsyncIterator

from google.protobuf.empty_pb2 import Empty

from orlop.api.services.snapshots.v1 import snapshots_pb2 as pb
from orlop.core.snapshot import SnapshotStore
from orlop.core.wire import common
from orlop.core.wire import snapshot as wire
from orlop.errors import InvalidArgument, Unimplemented
from orlop.rpc.scope import scope_of
from orlop.rpc.service import Call

_PAGE = 100


class SnapshotsService:
    def __init__(self, store: SnapshotStore) -> None:
        self._store = store

    async def Prepare(self, request: pb.PrepareSnapshotRequest, call: Call) -> pb.PrepareSnapshotResponse:
        mounts = await self._store.prepare(
            scope_of(call), request.snapshotter, request.key, request.parent, dict(request.labels)
        )
        return pb.PrepareSnapshotResponse(mounts=common.mounts(mounts))

    async def View(self, request: pb.ViewSnapshotRequest, call: Call) -> pb.ViewSnapshotResponse:
        mounts = await self._store.view(
            scope_of(call), request.snapshotter, request.key, request.parent, dict(request.labels)
        )
        return pb.ViewSnapshotResponse(mounts=common.mounts(mounts))

    async def Mounts(self, request: pb.MountsRequest, call: Call) -> pb.MountsResponse:
        mounts = await self._store.mounts(scope_of(call), request.snapshotter, request.key)
        return pb.MountsResponse(mounts=common.mounts(mounts))

    async def Commit(self, request: pb.CommitSnapshotRequest, call: Call) -> Empty:
        await self._store.commit(
            scope_of(call), request.snapshotter, request.name, request.key, dict(request.labels), request.parent
        )
        return Empty()

    async def Remove(self, request: pb.RemoveSnapshotRequest, call: Call) -> Empty:
        await self._store.remove(scope_of(call), request.snapshotter, request.key)
        return Empty()

    async def Stat(self, request: pb.StatSnapshotRequest, call: Call) -> pb.StatSnapshotResponse:
        info = await self._store.stat(scope_of(call), request.snapshotter, request.key)
        return pb.StatSnapshotResponse(info=wire.info(info))

    async def Update(self, request: pb.UpdateSnapshotRequest, call: Call) -> pb.UpdateSnapshotResponse:
        if not request.HasField("info"):
            raise InvalidArgument("info is required")
        info = await self._store.update(
            scope_of(call), request.snapshotter, wire.info_of(request.info), common.mask_of(request)
        )
        return pb.UpdateSnapshotResponse(info=wire.info(info))

    async def List(self, request: pb.ListSnapshotsRequest, call: Call) -> AsyncIterator[pb.ListSnapshotsResponse]:
        infos = await self._store.list(scope_of(call), request.snapshotter, list(request.filters))
        for start in range(0, len(infos), _PAGE):
            yield pb.ListSnapshotsResponse(info=[wire.info(info) for info in infos[start : start + _PAGE]])

    async def Usage(self, request: pb.UsageRequest, call: Call) -> pb.UsageResponse:
        return wire.usage(await self._store.usage(scope_of(call), request.snapshotter, request.key))

    async def Cleanup(self, request: pb.CleanupRequest, call: Call) -> Empty:
        """Not for clients, as with containerd: freeing disk belongs to collection."""
        raise Unimplemented("snapshotter does not implement Cleanup method")
