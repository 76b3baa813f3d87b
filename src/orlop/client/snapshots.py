"""Snapshots and differs over a channel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from google.protobuf.field_mask_pb2 import FieldMask

from orlop.api.services.diff.v1 import diff_pb2
from orlop.api.services.snapshots.v1 import snapshots_pb2 as pb
from orlop.client.remote import Remote
from orlop.core.descriptor import Descriptor
from orlop.core.mount import Mount
from orlop.core.scope import Scope
from orlop.core.snapshot import SnapshotInfo, Usage
from orlop.core.typed import Typed
from orlop.core.wire import common
from orlop.core.wire import snapshot as wire


class Snapshots(Remote):
    service = pb.DESCRIPTOR.services_by_name["Snapshots"]

    async def prepare(
        self, scope: Scope, snapshotter: str, key: str, parent: str = "", labels: Mapping[str, str] | None = None
    ) -> list[Mount]:
        request = pb.PrepareSnapshotRequest(snapshotter=snapshotter, key=key, parent=parent, labels=labels or {})
        return common.mounts_of((await self._call("Prepare", request, scope)).mounts)

    async def view(
        self, scope: Scope, snapshotter: str, key: str, parent: str = "", labels: Mapping[str, str] | None = None
    ) -> list[Mount]:
        request = pb.ViewSnapshotRequest(snapshotter=snapshotter, key=key, parent=parent, labels=labels or {})
        return common.mounts_of((await self._call("View", request, scope)).mounts)

    async def mounts(self, scope: Scope, snapshotter: str, key: str) -> list[Mount]:
        request = pb.MountsRequest(snapshotter=snapshotter, key=key)
        return common.mounts_of((await self._call("Mounts", request, scope)).mounts)

    async def commit(
        self,
        scope: Scope,
        snapshotter: str,
        name: str,
        key: str,
        labels: Mapping[str, str] | None = None,
        parent: str = "",
    ) -> None:
        request = pb.CommitSnapshotRequest(
            snapshotter=snapshotter, name=name, key=key, labels=labels or {}, parent=parent
        )
        await self._call("Commit", request, scope)

    async def remove(self, scope: Scope, snapshotter: str, key: str) -> None:
        await self._call("Remove", pb.RemoveSnapshotRequest(snapshotter=snapshotter, key=key), scope)

    async def stat(self, scope: Scope, snapshotter: str, key: str) -> SnapshotInfo:
        request = pb.StatSnapshotRequest(snapshotter=snapshotter, key=key)
        return wire.info_of((await self._call("Stat", request, scope)).info)

    async def update(
        self, scope: Scope, snapshotter: str, info: SnapshotInfo, fields: Sequence[str] | None
    ) -> SnapshotInfo:
        request = pb.UpdateSnapshotRequest(snapshotter=snapshotter, info=wire.info(info))
        if fields is not None:
            request.update_mask.CopyFrom(FieldMask(paths=fields))
        return wire.info_of((await self._call("Update", request, scope)).info)

    async def usage(self, scope: Scope, snapshotter: str, key: str) -> Usage:
        answer = await self._call("Usage", pb.UsageRequest(snapshotter=snapshotter, key=key), scope)
        return Usage(answer.size, answer.inodes)

    async def list(self, scope: Scope, snapshotter: str, filters: Sequence[str] = ()) -> list[SnapshotInfo]:
        answers = self._stream("List", pb.ListSnapshotsRequest(snapshotter=snapshotter, filters=filters), scope)
        return [wire.info_of(info) async for answer in answers for info in answer.info]


class Differs(Remote):
    service = diff_pb2.DESCRIPTOR.services_by_name["Diff"]

    async def apply(
        self,
        scope: Scope,
        layer: Descriptor,
        mounts: Sequence[Mount],
        *,
        payloads: Mapping[str, Typed] | None = None,
        sync_fs: bool = False,
    ) -> Descriptor:
        request = diff_pb2.ApplyRequest(
            diff=common.descriptor(layer),
            mounts=common.mounts(mounts),
            payloads=common.anys_of(payloads or {}),
            sync_fs=sync_fs,
        )
        return common.descriptor_of((await self._call("Apply", request, scope)).applied)

    async def compare(
        self,
        scope: Scope,
        lower: Sequence[Mount],
        upper: Sequence[Mount],
        *,
        media_type: str = "",
        ref: str = "",
        labels: Mapping[str, str] | None = None,
        epoch: int | None = None,
    ) -> Descriptor:
        request = diff_pb2.DiffRequest(
            left=common.mounts(lower),
            right=common.mounts(upper),
            media_type=media_type,
            ref=ref,
            labels=labels or {},
        )
        if epoch is not None:
            request.source_date_epoch.CopyFrom(common.timestamp(epoch))
        return common.descriptor_of((await self._call("Diff", request, scope)).diff)
