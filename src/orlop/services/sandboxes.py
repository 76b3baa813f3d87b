"""The sandbox Store service. Sandboxes run by the Controller service, which is another one."""

from __future__ import annotations

from orlop.api.services.sandbox.v1 import sandbox_pb2 as pb
from orlop.core.sandbox import Sandbox, SandboxStore
from orlop.core.wire import sandbox as wire
from orlop.errors import InvalidArgument
from orlop.rpc.scope import scope_of
from orlop.rpc.service import Call


class SandboxStoreService:
    def __init__(self, store: SandboxStore) -> None:
        self._store = store

    async def Create(self, request: pb.StoreCreateRequest, call: Call) -> pb.StoreCreateResponse:
        if not request.sandbox.HasField("runtime"):
            raise InvalidArgument("the request has no sandbox with a runtime")
        made = await self._store.create(scope_of(call), wire.sandbox_of(request.sandbox))
        return pb.StoreCreateResponse(sandbox=wire.sandbox(made))

    async def Update(self, request: pb.StoreUpdateRequest, call: Call) -> pb.StoreUpdateResponse:
        updated = await self._store.update(scope_of(call), _update_in(request), list(request.fields))
        return pb.StoreUpdateResponse(sandbox=wire.sandbox(updated))

    async def Delete(self, request: pb.StoreDeleteRequest, call: Call) -> pb.StoreDeleteResponse:
        await self._store.delete(scope_of(call), request.sandbox_id)
        return pb.StoreDeleteResponse()

    async def List(self, request: pb.StoreListRequest, call: Call) -> pb.StoreListResponse:
        sandboxes = await self._store.list(scope_of(call), request.filters)
        return pb.StoreListResponse(list=map(wire.sandbox, sandboxes))

    async def Get(self, request: pb.StoreGetRequest, call: Call) -> pb.StoreGetResponse:
        return pb.StoreGetResponse(sandbox=wire.sandbox(await self._store.get(scope_of(call), request.sandbox_id)))


def _update_in(request: pb.StoreUpdateRequest) -> Sandbox:
    """A mask that leaves the runtime alone does not need one."""
    needs_runtime = not request.fields or "runtime" in request.fields
    if not request.HasField("sandbox") or (needs_runtime and not request.sandbox.HasField("runtime")):
        raise InvalidArgument("the request has no sandbox with a runtime")
    return wire.sandbox_of(request.sandbox)
