"""The Mounts service (`containerd.services.mounts.v1`)."""

from __future__ import annotations

from collections.abc import AsyncIterator

from google.protobuf.empty_pb2 import Empty

from orlop.api.services.mounts.v1 import mounts_pb2 as pb
from orlop.api.types import mount_pb2
from orlop.core.activation import Activation, MountManager
from orlop.core.wire import common
from orlop.errors import Unimplemented
from orlop.rpc.scope import scope_of
from orlop.rpc.service import Call


class MountsService:
    def __init__(self, manager: MountManager) -> None:
        self._manager = manager

    async def Activate(self, request: pb.ActivateRequest, call: Call) -> pb.ActivateResponse:
        activation = await self._manager.activate(
            scope_of(call),
            request.name,
            common.mounts_of(request.mounts),
            labels=dict(request.labels),
            temporary=request.temporary,
        )
        return pb.ActivateResponse(info=_info(activation))

    async def Deactivate(self, request: pb.DeactivateRequest, call: Call) -> Empty:
        await self._manager.deactivate(scope_of(call), request.name)
        return Empty()

    async def Info(self, request: pb.InfoRequest, call: Call) -> pb.InfoResponse:
        return pb.InfoResponse(info=_info(await self._manager.info(scope_of(call), request.name)))

    async def Update(self, request: pb.UpdateRequest, call: Call) -> pb.UpdateResponse:
        """As with containerd: an activation stays as it was made."""
        raise Unimplemented.verbatim("not implemented")

    async def List(self, request: pb.ListRequest, call: Call) -> AsyncIterator[pb.ListMessage]:
        """Filters have no effect, as with containerd."""
        for activation in await self._manager.list(scope_of(call)):
            yield pb.ListMessage(info=_info(activation))


def _info(activation: Activation) -> mount_pb2.ActivationInfo:
    return mount_pb2.ActivationInfo(
        name=activation.name,
        active=[
            mount_pb2.ActiveMount(
                mount=common.mount(one.mount), mounted_at=common.timestamp(one.mounted_at), mount_point=one.point
            )
            for one in activation.active
        ],
        system=common.mounts(activation.system),
        labels=dict(activation.labels),
    )
