"""containerd.services.diff.v1.Diff."""

from __future__ import annotations

from orlop.api.services.diff.v1 import diff_pb2
from orlop.core.diff import Differ
from orlop.core.wire import common
from orlop.errors import InvalidArgument
from orlop.rpc.scope import scope_of
from orlop.rpc.service import Call


class DiffService:
    """Decodes, asks a differ, encodes."""

    def __init__(self, differ: Differ) -> None:
        self._differ = differ

    async def Apply(self, request: diff_pb2.ApplyRequest, call: Call) -> diff_pb2.ApplyResponse:
        scope = scope_of(call)
        if not request.HasField("diff"):
            raise InvalidArgument("diff descriptor is required")
        applied = await self._differ.apply(
            scope,
            common.descriptor_of(request.diff),
            common.mounts_of(request.mounts),
            payloads={id: common.typed_of(payload) for id, payload in request.payloads.items()},
            sync_fs=request.sync_fs,
        )
        return diff_pb2.ApplyResponse(applied=common.descriptor(applied))

    async def Diff(self, request: diff_pb2.DiffRequest, call: Call) -> diff_pb2.DiffResponse:
        epoch = common.nanoseconds(request.source_date_epoch) if request.HasField("source_date_epoch") else None
        made = await self._differ.compare(
            scope_of(call),
            common.mounts_of(request.left),
            common.mounts_of(request.right),
            media_type=request.media_type,
            ref=request.ref,
            labels=dict(request.labels),
            epoch=epoch,
        )
        return diff_pb2.DiffResponse(diff=common.descriptor(made))
