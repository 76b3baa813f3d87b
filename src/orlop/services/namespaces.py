"""The Namespaces service. Its calls need no namespace of their own."""

from __future__ import annotations

from google.protobuf.empty_pb2 import Empty

from orlop.api.services.namespaces.v1 import namespace_pb2 as pb
from orlop.core.namespace import Namespace, NamespaceStore
from orlop.core.wire import common
from orlop.core.wire import namespace as wire
from orlop.errors import InvalidArgument
from orlop.rpc.service import Call


class NamespacesService:
    def __init__(self, store: NamespaceStore) -> None:
        self._store = store

    async def Get(self, request: pb.GetNamespaceRequest, call: Call) -> pb.GetNamespaceResponse:
        return pb.GetNamespaceResponse(namespace=wire.namespace(await self._store.get(request.name)))

    async def List(self, request: pb.ListNamespacesRequest, call: Call) -> pb.ListNamespacesResponse:
        """The filter is ignored, as containerd does."""
        return pb.ListNamespacesResponse(namespaces=map(wire.namespace, await self._store.list()))

    async def Create(self, request: pb.CreateNamespaceRequest, call: Call) -> pb.CreateNamespaceResponse:
        made = await self._store.create(_namespace_in(request))
        return pb.CreateNamespaceResponse(namespace=wire.namespace(made))

    async def Update(self, request: pb.UpdateNamespaceRequest, call: Call) -> pb.UpdateNamespaceResponse:
        """The answer is empty, as containerd's is."""
        await self._store.update(_namespace_in(request), common.mask_of(request))
        return pb.UpdateNamespaceResponse()

    async def Delete(self, request: pb.DeleteNamespaceRequest, call: Call) -> Empty:
        await self._store.delete(request.name)
        return Empty()


def _namespace_in(request: pb.CreateNamespaceRequest | pb.UpdateNamespaceRequest) -> Namespace:
    if not request.HasField("namespace"):
        raise InvalidArgument("the request has no namespace")
    return wire.namespace_of(request.namespace)
