"""The Leases service."""

from __future__ import annotations

from google.protobuf.empty_pb2 import Empty

from orlop.api.services.leases.v1 import leases_pb2 as pb
from orlop.core.lease import LeaseStore, Resource
from orlop.core.wire import lease as wire
from orlop.errors import InvalidArgument
from orlop.rpc.scope import scope_of
from orlop.rpc.service import Call


class LeasesService:
    def __init__(self, store: LeaseStore) -> None:
        self._store = store

    async def Create(self, request: pb.CreateRequest, call: Call) -> pb.CreateResponse:
        lease = await self._store.create(scope_of(call), request.id, dict(request.labels))
        return pb.CreateResponse(lease=wire.lease(lease))

    async def Delete(self, request: pb.DeleteRequest, call: Call) -> Empty:
        await self._store.delete(scope_of(call), request.id, sync=request.sync)
        return Empty()

    async def List(self, request: pb.ListRequest, call: Call) -> pb.ListResponse:
        leases = await self._store.list(scope_of(call), request.filters)
        return pb.ListResponse(leases=[wire.lease(lease) for lease in leases])

    async def AddResource(self, request: pb.AddResourceRequest, call: Call) -> Empty:
        await self._store.add_resource(scope_of(call), request.id, _resource_in(request))
        return Empty()

    async def DeleteResource(self, request: pb.DeleteResourceRequest, call: Call) -> Empty:
        await self._store.delete_resource(scope_of(call), request.id, _resource_in(request))
        return Empty()

    async def ListResources(self, request: pb.ListResourcesRequest, call: Call) -> pb.ListResourcesResponse:
        resources = await self._store.resources(scope_of(call), request.id)
        return pb.ListResourcesResponse(resources=[wire.resource(resource) for resource in resources])


def _resource_in(request: pb.AddResourceRequest | pb.DeleteResourceRequest) -> Resource:
    if not request.HasField("resource"):
        raise InvalidArgument(f'lease "{request.id}": the request names no resource')
    return wire.resource_of(request.resource)
