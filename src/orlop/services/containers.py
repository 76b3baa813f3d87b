"""The Containers service."""

from __future__ import annotations

from collections.abc import AsyncIterator

from google.protobuf.empty_pb2 import Empty

from orlop.api.services.containers.v1 import containers_pb2 as pb
from orlop.core.container import Container, ContainerStore
from orlop.core.wire import common
from orlop.core.wire import container as wire
from orlop.errors import InvalidArgument
from orlop.rpc.scope import scope_of
from orlop.rpc.service import Call


class ContainersService:
    def __init__(self, store: ContainerStore) -> None:
        self._store = store

    async def Get(self, request: pb.GetContainerRequest, call: Call) -> pb.GetContainerResponse:
        return pb.GetContainerResponse(container=wire.container(await self._store.get(scope_of(call), request.id)))

    async def List(self, request: pb.ListContainersRequest, call: Call) -> pb.ListContainersResponse:
        containers = await self._store.list(scope_of(call), request.filters)
        return pb.ListContainersResponse(containers=map(wire.container, containers))

    async def ListStream(self, request: pb.ListContainersRequest, call: Call) -> AsyncIterator[pb.ListContainerMessage]:
        for container in await self._store.list(scope_of(call), request.filters):
            yield pb.ListContainerMessage(container=wire.container(container))

    async def Create(self, request: pb.CreateContainerRequest, call: Call) -> pb.CreateContainerResponse:
        made = await self._store.create(scope_of(call), _container_in(request))
        return pb.CreateContainerResponse(container=wire.container(made))

    async def Update(self, request: pb.UpdateContainerRequest, call: Call) -> pb.UpdateContainerResponse:
        updated = await self._store.update(scope_of(call), _container_in(request), common.mask_of(request))
        return pb.UpdateContainerResponse(container=wire.container(updated))

    async def Delete(self, request: pb.DeleteContainerRequest, call: Call) -> Empty:
        await self._store.delete(scope_of(call), request.id)
        return Empty()


def _container_in(request: pb.CreateContainerRequest | pb.UpdateContainerRequest) -> Container:
    if not request.HasField("container"):
        raise InvalidArgument("the request has no container")
    return wire.container_of(request.container)
