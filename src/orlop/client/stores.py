"""The stores of records, over a channel: what `core/` says of them holds here too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from google.protobuf.empty_pb2 import Empty
from google.protobuf.field_mask_pb2 import FieldMask

from orlop.api.services.containers.v1 import containers_pb2
from orlop.api.services.images.v1 import images_pb2
from orlop.api.services.introspection.v1 import introspection_pb2
from orlop.api.services.leases.v1 import leases_pb2
from orlop.api.services.namespaces.v1 import namespace_pb2
from orlop.api.services.version.v1 import version_pb2
from orlop.client.remote import Remote
from orlop.core.container import Container
from orlop.core.descriptor import Descriptor
from orlop.core.image import Image
from orlop.core.lease import Lease, Resource
from orlop.core.namespace import Namespace
from orlop.core.scope import Scope
from orlop.core.wire import common
from orlop.core.wire import container as container_wire
from orlop.core.wire import image as image_wire
from orlop.core.wire import lease as lease_wire
from orlop.core.wire import namespace as namespace_wire


def _mask(fields: Sequence[str] | None) -> FieldMask | None:
    return None if fields is None else FieldMask(paths=fields)


class Containers(Remote):
    service = containers_pb2.DESCRIPTOR.services_by_name["Containers"]

    async def get(self, scope: Scope, id: str) -> Container:
        answer = await self._call("Get", containers_pb2.GetContainerRequest(id=id), scope)
        return container_wire.container_of(answer.container)

    async def create(self, scope: Scope, container: Container) -> Container:
        request = containers_pb2.CreateContainerRequest(container=container_wire.container(container))
        return container_wire.container_of((await self._call("Create", request, scope)).container)

    async def update(self, scope: Scope, container: Container, fields: Sequence[str] | None) -> Container:
        request = containers_pb2.UpdateContainerRequest(
            container=container_wire.container(container), update_mask=_mask(fields)
        )
        return container_wire.container_of((await self._call("Update", request, scope)).container)

    async def delete(self, scope: Scope, id: str) -> None:
        await self._call("Delete", containers_pb2.DeleteContainerRequest(id=id), scope)

    async def list(self, scope: Scope, filters: Sequence[str] = ()) -> list[Container]:
        answers = self._stream("ListStream", containers_pb2.ListContainersRequest(filters=filters), scope)
        return [container_wire.container_of(answer.container) async for answer in answers]


class Images(Remote):
    service = images_pb2.DESCRIPTOR.services_by_name["Images"]

    async def get(self, scope: Scope, name: str) -> Image:
        answer = await self._call("Get", images_pb2.GetImageRequest(name=name), scope)
        return image_wire.image_of(answer.image)

    async def create(self, scope: Scope, image: Image, *, epoch: int | None = None) -> Image:
        request = images_pb2.CreateImageRequest(image=image_wire.image(image))
        if epoch is not None:
            request.source_date_epoch.CopyFrom(common.timestamp(epoch))
        return image_wire.image_of((await self._call("Create", request, scope)).image)

    async def update(
        self, scope: Scope, image: Image, fields: Sequence[str] | None, *, epoch: int | None = None
    ) -> Image:
        request = images_pb2.UpdateImageRequest(image=image_wire.image(image), update_mask=_mask(fields))
        if epoch is not None:
            request.source_date_epoch.CopyFrom(common.timestamp(epoch))
        return image_wire.image_of((await self._call("Update", request, scope)).image)

    async def delete(self, scope: Scope, name: str, *, target: Descriptor | None = None, sync: bool = False) -> None:
        request = images_pb2.DeleteImageRequest(name=name, sync=sync)
        if target is not None:
            request.target.CopyFrom(common.descriptor(target))
        await self._call("Delete", request, scope)

    async def list(self, scope: Scope, filters: Sequence[str] = ()) -> list[Image]:
        answer = await self._call("List", images_pb2.ListImagesRequest(filters=filters), scope)
        return [image_wire.image_of(image) for image in answer.images]


class Leases(Remote):
    service = leases_pb2.DESCRIPTOR.services_by_name["Leases"]

    async def create(self, scope: Scope, id: str = "", labels: Mapping[str, str] | None = None) -> Lease:
        answer = await self._call("Create", leases_pb2.CreateRequest(id=id, labels=labels or {}), scope)
        return lease_wire.lease_of(answer.lease)

    async def delete(self, scope: Scope, id: str, *, sync: bool = False) -> None:
        await self._call("Delete", leases_pb2.DeleteRequest(id=id, sync=sync), scope)

    async def add_resource(self, scope: Scope, id: str, resource: Resource) -> None:
        request = leases_pb2.AddResourceRequest(id=id, resource=lease_wire.resource(resource))
        await self._call("AddResource", request, scope)

    async def delete_resource(self, scope: Scope, id: str, resource: Resource) -> None:
        request = leases_pb2.DeleteResourceRequest(id=id, resource=lease_wire.resource(resource))
        await self._call("DeleteResource", request, scope)

    async def resources(self, scope: Scope, id: str) -> list[Resource]:
        answer = await self._call("ListResources", leases_pb2.ListResourcesRequest(id=id), scope)
        return [lease_wire.resource_of(resource) for resource in answer.resources]

    async def list(self, scope: Scope, filters: Sequence[str] = ()) -> list[Lease]:
        answer = await self._call("List", leases_pb2.ListRequest(filters=filters), scope)
        return [lease_wire.lease_of(lease) for lease in answer.leases]


class Namespaces(Remote):
    service = namespace_pb2.DESCRIPTOR.services_by_name["Namespaces"]

    async def get(self, name: str) -> Namespace:
        answer = await self._call("Get", namespace_pb2.GetNamespaceRequest(name=name))
        return namespace_wire.namespace_of(answer.namespace)

    async def create(self, namespace: Namespace) -> Namespace:
        request = namespace_pb2.CreateNamespaceRequest(namespace=namespace_wire.namespace(namespace))
        return namespace_wire.namespace_of((await self._call("Create", request)).namespace)

    async def update(self, namespace: Namespace, fields: Sequence[str] | None) -> Namespace:
        request = namespace_pb2.UpdateNamespaceRequest(
            namespace=namespace_wire.namespace(namespace), update_mask=_mask(fields)
        )
        return namespace_wire.namespace_of((await self._call("Update", request)).namespace)

    async def delete(self, name: str) -> None:
        await self._call("Delete", namespace_pb2.DeleteNamespaceRequest(name=name))

    async def list(self) -> list[Namespace]:
        answer = await self._call("List", namespace_pb2.ListNamespacesRequest())
        return [namespace_wire.namespace_of(namespace) for namespace in answer.namespaces]


class Introspection(Remote):
    """What the daemon is: messages of the wire, which say it best."""

    service = introspection_pb2.DESCRIPTOR.services_by_name["Introspection"]

    async def server(self) -> introspection_pb2.ServerResponse:
        answer: introspection_pb2.ServerResponse = await self._call("Server", Empty())
        return answer

    async def plugins(self, filters: Sequence[str] = ()) -> Sequence[introspection_pb2.Plugin]:
        answer: introspection_pb2.PluginsResponse = await self._call(
            "Plugins", introspection_pb2.PluginsRequest(filters=filters)
        )
        return answer.plugins


class Version(Remote):
    service = version_pb2.DESCRIPTOR.services_by_name["Version"]

    async def get(self) -> version_pb2.VersionResponse:
        """The daemon's version and revision."""
        answer: version_pb2.VersionResponse = await self._call("Version", Empty())
        return answer
