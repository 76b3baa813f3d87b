"""The Namespaces, Containers, Images and sandbox Store services, over real stores and without a transport."""

from __future__ import annotations

import contextlib

import pytest

from orlop.api.services.containers.v1 import containers_pb2
from orlop.api.services.images.v1 import images_pb2
from orlop.api.services.namespaces.v1 import namespace_pb2
from orlop.api.services.sandbox.v1 import sandbox_pb2
from orlop.core.event import Silent
from orlop.errors import FailedPrecondition, InvalidArgument
from orlop.metadata.containers import ContainerStore
from orlop.metadata.database import Database
from orlop.metadata.images import ImageStore
from orlop.metadata.namespaces import NamespaceStore
from orlop.metadata.sandboxes import SandboxStore
from orlop.metadata.schema import MIGRATIONS
from orlop.rpc.service import Call
from orlop.services.containers import ContainersService
from orlop.services.images import ImagesService
from orlop.services.namespaces import NamespacesService
from orlop.services.sandboxes import SandboxStoreService

CALL = Call({"containerd-namespace": "n"})


@pytest.fixture
def db(tmp_path):
    with contextlib.closing(Database(tmp_path / "meta.db", MIGRATIONS, sync=False)) as made:
        yield made


async def test_containers_come_back_one_a_message(db):
    service = ContainersService(ContainerStore(db, Silent()))
    for id in ("b", "a"):
        sent = {"id": id, "runtime": {"name": "r", "options": {"type_url": "t", "value": b"\0"}}, "spec": {}}
        made = await service.Create(containers_pb2.CreateContainerRequest(container=sent), CALL)
        assert made.container.runtime.options.value == b"\0"
        assert made.container.HasField("spec")
        assert made.container.created_at == made.container.updated_at
    messages = service.ListStream(containers_pb2.ListContainersRequest(), CALL)
    assert [message.container.id async for message in messages] == ["a", "b"]
    update = containers_pb2.UpdateContainerRequest(
        container={"id": "a", "labels": {"k/l.m": "v"}}, update_mask={"paths": ["labels.k/l.m"]}
    )
    assert (await service.Update(update, CALL)).container.labels == {"k/l.m": "v"}
    with pytest.raises(InvalidArgument):
        await service.Create(containers_pb2.CreateContainerRequest(), CALL)
    with pytest.raises(FailedPrecondition):
        await service.Get(containers_pb2.GetContainerRequest(id="a"), Call())


async def test_images_take_their_times_from_the_source_date_epoch(db):
    service = ImagesService(ImageStore(db, Silent()))
    image = {"name": "i", "target": {"digest": "sha256:" + "a" * 64, "size": 1, "media_type": "m"}}
    request = images_pb2.CreateImageRequest(image=image, source_date_epoch={"seconds": 5, "nanos": 6})
    made = (await service.Create(request, CALL)).image
    assert (made.created_at.seconds, made.updated_at.nanos) == (5, 6)
    listed = await service.List(images_pb2.ListImagesRequest(filters=["target.digest~=^sha256:aa.*$"]), CALL)
    assert [image.name for image in listed.images] == ["i"]
    with pytest.raises(InvalidArgument, match=r"target\.Digest"):
        await service.Create(images_pb2.CreateImageRequest(image={"name": "bare"}), CALL)


async def test_a_sandbox_needs_a_runtime_that_may_have_no_name(db):
    service = SandboxStoreService(SandboxStore(db, Silent()))
    await service.Create(sandbox_pb2.StoreCreateRequest(sandbox={"sandbox_id": "s", "runtime": {}}), CALL)
    assert (await service.Get(sandbox_pb2.StoreGetRequest(sandbox_id="s"), CALL)).sandbox.runtime.name == ""
    with pytest.raises(InvalidArgument, match="runtime"):
        await service.Create(sandbox_pb2.StoreCreateRequest(sandbox={"sandbox_id": "t"}), CALL)


async def test_the_answer_to_a_namespace_update_is_empty(db):
    service = NamespacesService(NamespaceStore(db, Silent()))
    request = namespace_pb2.UpdateNamespaceRequest(namespace={"name": "n", "labels": {"k": "v"}})
    assert not (await service.Update(request, Call())).HasField("namespace")
    assert (await service.Get(namespace_pb2.GetNamespaceRequest(name="n"), Call())).namespace.labels == {"k": "v"}
    listed = await service.List(namespace_pb2.ListNamespacesRequest(filter="name==x"), Call())
    assert [space.name for space in listed.namespaces] == ["n"]
