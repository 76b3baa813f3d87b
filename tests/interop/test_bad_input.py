"""Bad input to a real daemon over its sockets: each is refused in the known words, and the daemon goes on as before."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import io
import json
import os
import socket
import struct
import subprocess
import sys
import tarfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import busybox_image
import grpc.aio
import pytest
import zstandard
from google.protobuf.any_pb2 import Any as WireAny
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from real_daemon import Daemon

from orlop.api.services.containers.v1 import containers_pb2
from orlop.api.services.content.v1 import content_pb2
from orlop.api.services.diff.v1 import diff_pb2
from orlop.api.services.events.v1 import events_pb2
from orlop.api.services.images.v1 import images_pb2
from orlop.api.services.introspection.v1 import introspection_pb2
from orlop.api.services.leases.v1 import leases_pb2
from orlop.api.services.namespaces.v1 import namespace_pb2
from orlop.api.services.sandbox.v1 import sandbox_pb2
from orlop.api.services.snapshots.v1 import snapshots_pb2
from orlop.api.services.tasks.v1 import tasks_pb2
from orlop.api.services.ttrpc.events.v1 import events_pb2 as ttrpc_events_pb2
from orlop.api.ttrpc import request_pb2 as ttrpc_wire
from orlop.api.types import descriptor_pb2, event_pb2
from orlop.api.types import sandbox_pb2 as sandbox_types
from orlop.client.client import Client
from orlop.core.descriptor import Descriptor
from orlop.core.image import Image
from orlop.core.scope import Scope
from orlop.errors import (
    AlreadyExists,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    NotFound,
    OrlopError,
    OutOfRange,
    ResourceExhausted,
    Unavailable,
    Unimplemented,
    Unknown,
)
from orlop.layers import media
from orlop.rpc.channel import MAX_MESSAGE, GrpcChannel, Stub
from orlop.rpc.scope import headers_of
from orlop.rpc.ttrpc.frame import HEADER, MAX_PAYLOAD

pytestmark = [pytest.mark.root, pytest.mark.ctr]

DIGEST = "sha256:" + "0" * 64
TARGET = descriptor_pb2.Descriptor(media_type="application/x", digest=DIGEST, size=1)
LONG = "x" * 100_000

SERVICES = [
    service
    for module in (
        "containers.v1.containers_pb2",
        "content.v1.content_pb2",
        "diff.v1.diff_pb2",
        "events.v1.events_pb2",
        "images.v1.images_pb2",
        "introspection.v1.introspection_pb2",
        "leases.v1.leases_pb2",
        "namespaces.v1.namespace_pb2",
        "sandbox.v1.sandbox_pb2",
        "snapshots.v1.snapshots_pb2",
        "tasks.v1.tasks_pb2",
        "version.v1.version_pb2",
    )
    for service in import_module(f"orlop.api.services.{module}").DESCRIPTOR.services_by_name.values()
    if service.name != "Controller"
]


@pytest.fixture(scope="module", params=["native", "grpcio"])
def served(
    request: pytest.FixtureRequest, make_daemon: Callable[..., Daemon], tmp_path_factory: pytest.TempPathFactory
) -> Daemon:
    config = tmp_path_factory.mktemp("config") / "config.toml"
    config.write_text(f'version = 4\n[plugins."io.containerd.server.v1.grpc"]\nengine = "{request.param}"\n')
    return make_daemon("--config", str(config))


@pytest.fixture
def daemon(served: Daemon) -> Iterator[Daemon]:
    """The daemon, which after the test is the same process, answers, and has met nothing that it did not expect."""
    assert served.process is not None
    pid = served.process.pid
    before = (served.work / "log").stat().st_size
    yield served
    assert served.process.pid == pid
    assert served.process.poll() is None
    assert "Server:" in served.ctr("version").stdout
    with (served.work / "log").open() as log:
        log.seek(before)
        assert "Traceback" not in log.read()


@asynccontextmanager
async def connected(daemon: Daemon, namespace: str) -> AsyncIterator[Client]:
    client = Client(GrpcChannel(daemon.address), namespace)
    try:
        yield client
    finally:
        await client.close()


@asynccontextmanager
async def leased(daemon: Daemon, namespace: str) -> AsyncIterator[Client]:
    """A client with a lease in its scope, so that no collection takes what a test has not named yet."""
    async with connected(daemon, namespace) as client:
        lease = await client.leases.create(client.scope)
        client.scope = Scope(namespace, lease.id)
        yield client
        await client.leases.delete(client.scope, lease.id)


async def call(client: Client, service: Any, method: str, *requests: Message, scope: Scope | None = None) -> list[Any]:
    """The answers of a method of any kind; in the client's scope unless another is given."""
    stub = Stub(client.channel, service, headers_of(scope or client.scope))
    descriptor = service.methods_by_name[method]

    async def sent() -> AsyncIterator[Message]:
        for request in requests:
            yield request

    async with asyncio.timeout(20):
        if descriptor.client_streaming:
            return [answer async for answer in stub.duplex(method, sent())]
        if descriptor.server_streaming:
            return [answer async for answer in stub.stream(method, requests[0])]
        return [await stub.call(method, requests[0])]


async def refused(answer: Awaitable[Any]) -> OrlopError | None:
    """The error with which a call is refused; None if it is not."""
    try:
        await answer
    except OrlopError as error:
        return error
    return None


def of(module: Any, name: str) -> Any:
    return module.DESCRIPTOR.services_by_name[name]


# What every service has in common.

NO_NAMESPACE_NEEDED = {
    "containerd.services.namespaces.v1.Namespaces",
    "containerd.services.introspection.v1.Introspection",
    "containerd.services.version.v1.Version",
}


def empty_requests() -> Iterator[tuple[Any, Any]]:
    for service in SERVICES:
        for method in service.methods:
            # Subscribe needs nothing and never ends.
            if method.name != "Subscribe":
                yield service, method


def request_of(method: Any) -> Message:
    kind: type[Message] = method.input_type._concrete_class
    return kind()


REQUIRED = [
    (of(containers_pb2, "Containers"), "Create"),
    (of(containers_pb2, "Containers"), "Update"),
    (of(content_pb2, "Content"), "Update"),
    (of(content_pb2, "Content"), "Write"),
    (of(diff_pb2, "Diff"), "Apply"),
    (of(events_pb2, "Events"), "Publish"),
    (of(events_pb2, "Events"), "Forward"),
    (of(images_pb2, "Images"), "Create"),
    (of(images_pb2, "Images"), "Update"),
    (of(leases_pb2, "Leases"), "AddResource"),
    (of(leases_pb2, "Leases"), "DeleteResource"),
    (of(namespace_pb2, "Namespaces"), "Create"),
    (of(namespace_pb2, "Namespaces"), "Update"),
    (of(sandbox_pb2, "Store"), "Create"),
    (of(sandbox_pb2, "Store"), "Update"),
    (of(snapshots_pb2, "Snapshots"), "Update"),
    (of(tasks_pb2, "Tasks"), "Exec"),
]


async def test_an_empty_request_is_answered_by_every_method(daemon: Daemon) -> None:
    async with connected(daemon, "empty") as client:
        for service, method in empty_requests():
            needs = any((one, name) == (service, method.name) for one, name in REQUIRED)
            refusal = await refused(call(client, service, method.name, request_of(method)))
            assert not isinstance(refusal, (Unknown, Internal, Unavailable)), (service.name, method.name, refusal)
            assert not needs or isinstance(refusal, InvalidArgument), (service.name, method.name, refusal)


async def test_a_message_without_its_inner_part_is_refused(daemon: Daemon) -> None:
    async with connected(daemon, "inner") as client:
        await client.images.create(client.scope, Image("there", Descriptor("application/x", DIGEST, 1)))
        images, store = of(images_pb2, "Images"), of(sandbox_pb2, "Store")
        for service, method, request in (
            (images, "Create", images_pb2.CreateImageRequest(image=images_pb2.Image(name="n"))),
            (images, "Update", images_pb2.UpdateImageRequest(image=images_pb2.Image(name="there"))),
            (
                of(containers_pb2, "Containers"),
                "Create",
                containers_pb2.CreateContainerRequest(container=containers_pb2.Container(id="c")),
            ),
            (store, "Create", sandbox_pb2.StoreCreateRequest(sandbox=sandbox_types.Sandbox(sandbox_id="s"))),
            (
                of(leases_pb2, "Leases"),
                "AddResource",
                leases_pb2.AddResourceRequest(id="l", resource=leases_pb2.Resource()),
            ),
        ):
            with pytest.raises((InvalidArgument, Unimplemented)):
                await call(client, service, method, request)
        await client.images.delete(client.scope, "there")


async def test_a_call_without_a_namespace_is_refused_where_one_is_needed(daemon: Daemon) -> None:
    async with connected(daemon, "unused") as client:
        for service, method in empty_requests():
            stub = Stub(client.channel, service)
            if service.full_name in NO_NAMESPACE_NEEDED or method.server_streaming:
                continue
            with pytest.raises((FailedPrecondition, InvalidArgument, Unimplemented)) as caught:
                await stub.call(method.name, request_of(method))
            if isinstance(caught.value, FailedPrecondition):
                assert str(caught.value).endswith("namespace is required: failed precondition")
        with pytest.raises(FailedPrecondition, match=r"^namespace is required: failed precondition$"):
            await Stub(client.channel, of(images_pb2, "Images")).call("List", images_pb2.ListImagesRequest())
        with pytest.raises(FailedPrecondition, match=r"^namespace is required: failed precondition$"):
            await anext(
                Stub(client.channel, of(snapshots_pb2, "Snapshots")).stream(
                    "List", snapshots_pb2.ListSnapshotsRequest(snapshotter="native")
                )
            )


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("../x", 'namespace validation: identifier "../x" must match'),
        ("a b", 'namespace validation: identifier "a b" must match'),
        ("a..b", 'namespace validation: identifier "a..b" must match'),
        ("x" * 77, "greater than maximum length (76 characters)"),
    ],
)
async def test_a_malformed_namespace_is_refused_by_every_kind_of_call(daemon: Daemon, name: str, words: str) -> None:
    async with connected(daemon, name) as client:
        for attempt in (
            lambda: client.images.list(client.scope),
            lambda: client.content.list(client.scope),
            lambda: client.content.open_writer(client.scope, "ref"),
        ):
            with pytest.raises(InvalidArgument) as caught:
                await attempt()
            assert words in str(caught.value)


async def test_headers_beyond_the_limit_are_refused_and_the_connection_goes_on(daemon: Daemon) -> None:
    async with connected(daemon, "x" * 50_000) as client:
        with pytest.raises((InvalidArgument, ResourceExhausted, Unknown)):  # Unknown: HTTP's status 431
            await client.images.list(client.scope)
        assert await client.images.list(Scope("default")) == []


# Names, labels, digests, filters, masks, numbers.


@pytest.mark.parametrize("name", ["", "\0", "a\0b", "../../x", "a/b", "-a", "é", "a\n", "x" * 77, LONG])
async def test_names_that_must_be_identifiers_are_refused(daemon: Daemon, name: str) -> None:
    async with connected(daemon, "names") as client:
        for service, method, request in (
            (
                of(namespace_pb2, "Namespaces"),
                "Create",
                namespace_pb2.CreateNamespaceRequest(namespace=namespace_pb2.Namespace(name=name)),
            ),
            (
                of(containers_pb2, "Containers"),
                "Create",
                containers_pb2.CreateContainerRequest(
                    container=containers_pb2.Container(
                        id=name, runtime=containers_pb2.Container.Runtime(name="io.containerd.runc.v2")
                    )
                ),
            ),
            (
                of(sandbox_pb2, "Store"),
                "Create",
                sandbox_pb2.StoreCreateRequest(
                    sandbox=sandbox_types.Sandbox(sandbox_id=name, runtime=sandbox_types.Sandbox.Runtime(name="r"))
                ),
            ),
            (of(events_pb2, "Events"), "Publish", events_pb2.PublishRequest(topic=f"/{name}/x")),
            (
                of(events_pb2, "Events"),
                "Forward",
                events_pb2.ForwardRequest(envelope=event_pb2.Envelope(namespace=name, topic="/t")),
            ),
            (of(snapshots_pb2, "Snapshots"), "List", snapshots_pb2.ListSnapshotsRequest(snapshotter=name)),
        ):
            if name == "a/b" and service.name == "Events" and method == "Publish":
                continue  # two components
            with pytest.raises(InvalidArgument):
                await call(client, service, method, request)


@pytest.mark.parametrize("key", ["\0", "a\0b", "../../../../x", "/etc/passwd", "\u202e\n", "é", LONG])
async def test_names_that_may_be_anything_never_become_paths(daemon: Daemon, key: str, tmp_path: Path) -> None:
    """Image names, snapshot keys, lease ids and ingest refs are any text, and come back as they were."""
    before = set(daemon.work.iterdir()) | set(Path("/").iterdir())
    async with leased(daemon, "anything") as client:
        scope = client.scope
        await client.images.create(scope, Image(key, Descriptor("application/x", DIGEST, 1)))
        assert [image.name for image in await client.images.list(scope)] == [key]
        await client.images.delete(scope, key)
        for snapshotter in ("overlayfs", "native"):
            mounts = await client.snapshots.prepare(scope, snapshotter, key)
            assert all(str(daemon.work) in f"{mount.source}{mount.options}" for mount in mounts)
            assert (await client.snapshots.stat(scope, snapshotter, key)).name == key
            await client.snapshots.remove(scope, snapshotter, key)
        assert (await client.leases.create(scope, key)).id == key
        await client.leases.delete(scope, key)
        async with await client.content.open_writer(scope, key) as writer:
            await writer.write(b"x")
        assert [status.ref for status in await client.content.statuses(scope)] == [key]
        await client.content.abort(scope, key)
    assert set(daemon.work.iterdir()) | set(Path("/").iterdir()) == before


@pytest.mark.parametrize(
    "digest",
    [
        *("", "x", "sha256:", "sha256:0", "sha256:../../../x", "sha256:" + LONG),
        *(DIGEST.upper(), "md5:" + "0" * 32, DIGEST + "0"),
    ],
)
async def test_malformed_digests_are_refused_by_every_call(daemon: Daemon, digest: str) -> None:
    async with leased(daemon, "digests") as client:
        content = of(content_pb2, "Content")
        for method, request in (
            ("Info", content_pb2.InfoRequest(digest=digest)),
            ("Update", content_pb2.UpdateRequest(info=content_pb2.Info(digest=digest))),
            ("Delete", content_pb2.DeleteContentRequest(digest=digest)),
            ("Read", content_pb2.ReadContentRequest(digest=digest)),
        ):
            with pytest.raises(InvalidArgument):
                await call(client, content, method, request)
        image = images_pb2.Image(name="n", target=descriptor_pb2.Descriptor(media_type="m", digest=digest, size=1))
        with pytest.raises(InvalidArgument, match=r"target\.Digest"):
            await call(client, of(images_pb2, "Images"), "Create", images_pb2.CreateImageRequest(image=image))
        resource = leases_pb2.Resource(type="content", id=digest)
        await client.leases.create(client.scope, "l")
        with pytest.raises((InvalidArgument, Unknown)):
            await call(
                client,
                of(leases_pb2, "Leases"),
                "AddResource",
                leases_pb2.AddResourceRequest(id="l", resource=resource),
            )
        await client.leases.delete(client.scope, "l")
        if digest:
            # It opens, as with containerd, and never matches.
            async with await client.content.open_writer(client.scope, "ref", expected=digest) as writer:
                await writer.write(b"x")
                with pytest.raises(FailedPrecondition, match="unexpected commit digest"):
                    await writer.commit(1)
            await client.content.abort(client.scope, "ref")
            assert await client.content.list(client.scope) == []


async def test_labels_that_are_too_long_are_refused_by_every_store_that_has_them(daemon: Daemon) -> None:
    labels = {"k": "v" * 4096}
    words = r"label key and value length \(4097 bytes\) greater than maximum size \(4096 bytes\), key: k"
    async with leased(daemon, "labels") as client:
        runtime = containers_pb2.Container.Runtime(name="io.containerd.runc.v2")
        for service, method, requests in (
            (
                of(namespace_pb2, "Namespaces"),
                "Create",
                [namespace_pb2.CreateNamespaceRequest(namespace=namespace_pb2.Namespace(name="n", labels=labels))],
            ),
            (
                of(containers_pb2, "Containers"),
                "Create",
                [
                    containers_pb2.CreateContainerRequest(
                        container=containers_pb2.Container(id="c", runtime=runtime, labels=labels)
                    )
                ],
            ),
            (
                of(images_pb2, "Images"),
                "Create",
                [images_pb2.CreateImageRequest(image=images_pb2.Image(name="i", target=TARGET, labels=labels))],
            ),
            (
                of(snapshots_pb2, "Snapshots"),
                "Prepare",
                [snapshots_pb2.PrepareSnapshotRequest(snapshotter="native", key="k", labels=labels)],
            ),
            (
                of(content_pb2, "Content"),
                "Write",
                [
                    content_pb2.WriteContentRequest(action=content_pb2.WRITE, ref="r", data=b"labels"),
                    content_pb2.WriteContentRequest(action=content_pb2.COMMIT, ref="r", offset=6, labels=labels),
                ],
            ),
        ):
            with pytest.raises(InvalidArgument, match=words):
                await call(client, service, method, *requests)
        assert await client.images.list(client.scope) == []
        assert await client.content.list(client.scope) == []
        assert await client.snapshots.list(client.scope, "native") == []
        await client.content.abort(client.scope, "r")


@pytest.mark.parametrize("text", ["==", "name=", "name=~x", "name==", 'name=="x', ".", "name==x,,", "\0", "a" * 70_000])
async def test_malformed_filters_are_refused_by_every_list(daemon: Daemon, text: str) -> None:
    async with connected(daemon, "filters") as client:
        for service, method, request, kind in (
            ("containers", "List", containers_pb2.ListContainersRequest(filters=[text]), InvalidArgument),
            ("containers", "ListStream", containers_pb2.ListContainersRequest(filters=[text]), InvalidArgument),
            ("images", "List", images_pb2.ListImagesRequest(filters=[text]), InvalidArgument),
            ("content", "List", content_pb2.ListContentRequest(filters=[text]), InvalidArgument),
            ("content", "ListStatuses", content_pb2.ListStatusesRequest(filters=[text]), InvalidArgument),
            ("leases", "List", leases_pb2.ListRequest(filters=[text]), InvalidArgument),
            ("store", "List", sandbox_pb2.StoreListRequest(filters=[text]), InvalidArgument),
            ("introspection", "Plugins", introspection_pb2.PluginsRequest(filters=[text]), InvalidArgument),
            ("snapshots", "List", snapshots_pb2.ListSnapshotsRequest(snapshotter="native", filters=[text]), Unknown),
            ("tasks", "Metrics", tasks_pb2.MetricsRequest(filters=[text]), Unknown),
            ("events", "Subscribe", events_pb2.SubscribeRequest(filters=[text]), Unknown),
        ):
            found = next(one for one in SERVICES if one.name.lower() == service)
            with pytest.raises(OrlopError, match=r"parse error: \[") as caught:
                await call(client, found, method, request)
            assert isinstance(caught.value, kind), (service, method, caught.value)


async def test_filters_that_would_cost_without_end_are_cheap_or_refused(daemon: Daemon) -> None:
    async with connected(daemon, "cost") as client:
        scope = client.scope
        await client.images.create(scope, Image("a" * 30_000, Descriptor("application/x", DIGEST, 1)))
        assert await client.images.list(scope, ['name~="(a+)+b"']) == []
        assert await client.images.list(scope, ["name~=/(((a{1,1000}){1,1000}){1,1000})/"]) == []
        with pytest.raises(InvalidArgument):
            await client.images.list(scope, ["name==x"] * 200_000)
        await client.images.delete(scope, "a" * 30_000)


@pytest.mark.parametrize("path", ["", "name", "labels.", "target.digest", "no.such", "labels\0", LONG])
async def test_masks_that_name_no_field_change_nothing(daemon: Daemon, path: str) -> None:
    async with leased(daemon, "masks") as client:
        scope = client.scope
        await client.images.create(scope, Image("i", Descriptor("application/x", DIGEST, 1), labels={"a": "b"}))
        await call(
            client,
            of(namespace_pb2, "Namespaces"),
            "Update",
            namespace_pb2.UpdateNamespaceRequest(namespace=namespace_pb2.Namespace(name="masks")),
        )
        await client.snapshots.prepare(scope, "native", "k", labels={"a": "b"})
        mask = FieldMask(paths=[path])
        try:
            for service, request in (
                (
                    of(images_pb2, "Images"),
                    images_pb2.UpdateImageRequest(image=images_pb2.Image(name="i", target=TARGET), update_mask=mask),
                ),
                (
                    of(snapshots_pb2, "Snapshots"),
                    snapshots_pb2.UpdateSnapshotRequest(
                        snapshotter="native", info=snapshots_pb2.Info(name="k"), update_mask=mask
                    ),
                ),
                (
                    of(namespace_pb2, "Namespaces"),
                    namespace_pb2.UpdateNamespaceRequest(
                        namespace=namespace_pb2.Namespace(name="masks"), update_mask=mask
                    ),
                ),
            ):
                if path == "labels.":
                    continue  # the label with an empty key
                with pytest.raises(InvalidArgument):
                    await call(client, service, "Update", request)
            assert (await client.images.get(scope, "i")).labels == {"a": "b"}
            assert (await client.snapshots.stat(scope, "native", "k")).labels == {"a": "b"}
        finally:
            await client.images.delete(scope, "i")
            await client.snapshots.remove(scope, "native", "k")


OUT_OF_RANGE = [
    Timestamp(seconds=2**63 - 1, nanos=2**31 - 1),
    Timestamp(seconds=-(2**63), nanos=-(2**31)),
    Timestamp(seconds=2**62),
    Timestamp(seconds=1, nanos=-7),
]


async def test_times_out_of_range_are_refused_or_bounded(daemon: Daemon) -> None:
    async with connected(daemon, "times") as client:
        images = of(images_pb2, "Images")
        for stamp in OUT_OF_RANGE[:3]:
            image = images_pb2.Image(name="t", target=TARGET, created_at=stamp, updated_at=stamp)
            with pytest.raises(InvalidArgument, match="source_date_epoch"):
                await call(
                    client, images, "Create", images_pb2.CreateImageRequest(image=image, source_date_epoch=stamp)
                )
        await call(client, images, "Create", images_pb2.CreateImageRequest(image=image))
        await client.images.delete(client.scope, "t")


async def test_an_event_with_a_time_out_of_range_ends_no_subscription(daemon: Daemon) -> None:
    events = of(events_pb2, "Events")
    async with connected(daemon, "events") as client:
        broken = WireAny(type_url="containerd.events.ContainerCreate", value=b"\xff\xff")
        request = events_pb2.SubscribeRequest(filters=["event.id==x", "namespace==events"])
        answers = Stub(client.channel, events).stream("Subscribe", request)
        first = asyncio.ensure_future(anext(answers))
        async with asyncio.timeout(20):
            while not first.done():  # until the subscription is there
                await call(client, events, "Publish", events_pb2.PublishRequest(topic="/begin"))
                await asyncio.wait([first], timeout=0.1)
        for stamp in OUT_OF_RANGE:
            envelope = event_pb2.Envelope(namespace="events", topic="/odd", timestamp=stamp, event=broken)
            await call(client, events, "Forward", events_pb2.ForwardRequest(envelope=envelope))
        await call(client, events, "Publish", events_pb2.PublishRequest(topic="/end"))
        seen = 0
        async with asyncio.timeout(20):
            async for answer in answers:
                seen += answer.topic == "/odd"
                answer.timestamp.ToJsonString()  # is one
                if answer.topic == "/end":
                    break
        assert seen == len(OUT_OF_RANGE)


async def test_a_long_name_in_an_error_does_not_hide_the_error(daemon: Daemon) -> None:
    async with connected(daemon, "long") as client:
        for name in (LONG, "é" * 50_000, "%\n" * 20_000):
            with pytest.raises(NotFound, match=r"^plugin (x|é|%\n){100}"):
                await call(
                    client,
                    of(introspection_pb2, "Introspection"),
                    "PluginInfo",
                    introspection_pb2.PluginInfoRequest(type=name),
                )
        # A client of the gRPC project with its own, smaller limits sees it too.
        async with grpc.aio.insecure_channel(f"unix:{daemon.address}") as channel:
            request = introspection_pb2.PluginInfoRequest(type="\0" * 50_000).SerializeToString()
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await channel.unary_unary("/containerd.services.introspection.v1.Introspection/PluginInfo")(request)
            assert caught.value.code() == grpc.StatusCode.NOT_FOUND


# Messages.


async def test_a_message_over_the_limit_is_refused_and_the_connection_goes_on(daemon: Daemon) -> None:
    async with grpc.aio.insecure_channel(
        f"unix:{daemon.address}", options=(("grpc.max_send_message_length", -1),)
    ) as channel:
        metadata = (("containerd-namespace", "default"),)
        large = bytes(MAX_MESSAGE + 1)
        for attempt in (
            lambda: channel.unary_unary("/containerd.services.images.v1.Images/List")(large, metadata=metadata),
            lambda: channel.stream_stream("/containerd.services.content.v1.Content/Write")(
                iter([large]), metadata=metadata
            ).read(),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await attempt()
            assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary("/containerd.services.images.v1.Images/List")(b"\xff\xff", metadata=metadata)
        assert caught.value.code() == grpc.StatusCode.INTERNAL
        assert await channel.unary_unary("/containerd.services.version.v1.Version/Version")(b"")


def http2(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def literal(name: bytes, value: bytes) -> bytes:
    """A header of HPACK, neither indexed nor compressed."""
    return b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + http2(4, 0, 0, b"")
HEADERS = b"".join(
    literal(name, value)
    for name, value in (
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", b"/containerd.services.version.v1.Version/Version"),
        (b":authority", b"localhost"),
        (b"content-type", b"application/grpc"),
        (b"te", b"trailers"),
    )
)
OPENING = PREFACE + http2(1, 4, 1, HEADERS)
END = 1


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"GET / HTTP/1.1\r\n\r\n", id="another protocol"),
        pytest.param(os.urandom(512), id="noise"),
        pytest.param(PREFACE + http2(1, 4 | END, 1, b"\xff" * 40), id="broken headers"),
        pytest.param(PREFACE + http2(1, 4 | END, 2, HEADERS), id="a stream number of the server"),
        pytest.param(PREFACE + b"\xff\xff\xff" + b"\0\0" + b"\0\0\0\1", id="a frame over the limit"),
        pytest.param(OPENING + http2(0, END, 1, b""), id="no message"),
        pytest.param(OPENING + http2(0, END, 1, b"\0\0\0"), id="a cut prefix"),
        pytest.param(OPENING + http2(0, END, 1, b"\0" + struct.pack(">I", 100) + b"ten bytes."), id="a cut message"),
        pytest.param(OPENING + http2(0, END, 1, b"\1" + struct.pack(">I", 2) + b"\0\0"), id="an unknown compression"),
        pytest.param(OPENING + http2(0, END, 1, b"\0\xff\xff\xff\xff" + b"x" * 100), id="a length of 4 GiB"),
        pytest.param(OPENING + http2(3, 0, 1, b"\0\0\0\1"), id="a reset"),
    ],
)
def test_broken_http2_is_answered_or_cut_off(daemon: Daemon, data: bytes) -> None:
    """The client ends its side; what it waits for then is the end of the connection or of the call, not a silence."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(20)
        client.connect(daemon.address)
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
        try:
            while client.recv(65536):
                pass
        except ConnectionResetError:
            pass


def test_clients_that_vanish_in_a_message_leave_nothing_behind(daemon: Daemon) -> None:
    def descriptors() -> int:
        assert daemon.process is not None
        return len(os.listdir(f"/proc/{daemon.process.pid}/fd"))

    daemon.ctr("version")
    before = descriptors()
    for _ in range(50):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(daemon.address)
            client.sendall(OPENING + http2(0, 0, 1, b"\0" + struct.pack(">I", 1 << 20) + b"x" * 1000))
    for _ in range(100):
        daemon.ctr("version")
        if descriptors() <= before + 5:
            break
    assert descriptors() <= before + 5


def ttrpc(stream: int, request: ttrpc_wire.Request) -> bytes:
    payload = request.SerializeToString()
    return HEADER.pack(len(payload), stream, 1, 0) + payload


def heard(client: socket.socket) -> ttrpc_wire.Response:
    with client.makefile("rb") as file:
        length, *_ = HEADER.unpack(file.read(HEADER.size))
        return ttrpc_wire.Response.FromString(file.read(length))


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (HEADER.pack(MAX_PAYLOAD + 1, 1, 1, 0) + bytes(MAX_PAYLOAD + 1), 8),
        (HEADER.pack(2, 1, 1, 0) + b"\xff\xff", 3),
        (ttrpc(1, ttrpc_wire.Request(service="none", method="Forward")), 12),
        (ttrpc(1, ttrpc_wire.Request(service="containerd.services.events.ttrpc.v1.Events", method="Forward")), 3),
    ],
)
def test_a_bad_ttrpc_message_is_refused_and_the_connection_goes_on(daemon: Daemon, data: bytes, code: int) -> None:
    envelope = event_pb2.Envelope(namespace="ttrpc", topic="/t", timestamp=OUT_OF_RANGE[0])
    good = ttrpc_wire.Request(
        service="containerd.services.events.ttrpc.v1.Events",
        method="Forward",
        payload=ttrpc_events_pb2.ForwardRequest(envelope=envelope).SerializeToString(),
    )
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(20)
        client.connect(f"{daemon.address}.ttrpc")
        client.sendall(data)
        assert heard(client).status.code == code
        client.sendall(ttrpc(3, good))
        assert heard(client).status.code == 0
        client.sendall(HEADER.pack(1000, 5, 1, 0) + b"cut short")


# Content.


async def test_a_wrong_digest_or_size_at_commit_makes_no_blob(daemon: Daemon) -> None:
    async with leased(daemon, "commits") as client:
        scope = client.scope
        async with await client.content.open_writer(scope, "size", 10) as writer:
            await writer.write(b"x")
            with pytest.raises(FailedPrecondition, match="failed size validation: 1 != 10"):
                await writer.commit(10)
        async with await client.content.open_writer(scope, "digest") as writer:
            await writer.write(b"x")
            with pytest.raises(FailedPrecondition, match="unexpected commit digest"):
                await writer.commit(1, DIGEST)
        assert await client.content.list(scope) == []
        for ref in ("size", "digest"):
            await client.content.abort(scope, ref)


async def test_offsets_and_totals_that_do_not_fit_are_refused(daemon: Daemon) -> None:
    content = of(content_pb2, "Content")
    async with leased(daemon, "offsets") as client:
        for offset in (1, 2**63 - 1):
            request = content_pb2.WriteContentRequest(action=content_pb2.WRITE, ref="r", offset=offset, data=b"x")
            with pytest.raises(OutOfRange, match=rf"write @{offset} must occur at current offset 0"):
                await call(client, content, "Write", request)
        async with await client.content.open_writer(client.scope, "r") as writer:
            await writer.write(b"range")
            info = await writer.commit(5)
        assert await call(client, content, "Read", content_pb2.ReadContentRequest(digest=info.digest, offset=-5))
        for offset in (6, 2**63 - 1):
            request = content_pb2.ReadContentRequest(digest=info.digest, offset=offset, size=2**63 - 1)
            with pytest.raises(OutOfRange, match="read past object length 5 bytes"):
                await call(client, content, "Read", request)


async def test_two_writers_of_one_ref_are_kept_apart(daemon: Daemon) -> None:
    async with leased(daemon, "writers") as client, connected(daemon, "writers") as other:
        async with await client.content.open_writer(client.scope, "ref") as writer:
            await writer.write(b"first")
            with pytest.raises(Unavailable, match="locked"):
                await other.content.open_writer(other.scope, "ref")
            assert (await writer.commit(5)).digest == f"sha256:{hashlib.sha256(b'first').hexdigest()}"
        async with await other.content.open_writer(other.scope, "ref") as writer:
            assert (await writer.status()).offset == 0
        await client.content.abort(client.scope, "ref")


# Layers and images.


def packed(*entries: tarfile.TarInfo, data: bytes = b"owned") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for entry in entries:
            entry.size = len(data) if entry.isreg() else 0
            tar.addfile(entry, io.BytesIO(data))
    return out.getvalue()


def entry(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.linkname, made.mode = kind, link, 0o644
    return made


async def put(client: Client, data: bytes) -> Descriptor:
    async with await client.content.open_writer(client.scope, f"layer-{len(data)}") as writer:
        await writer.write(data)
        try:
            info = await writer.commit(len(data))
        except AlreadyExists:
            return Descriptor(media.OCI_LAYER_GZIP, f"sha256:{hashlib.sha256(data).hexdigest()}", len(data))
    return Descriptor(media.OCI_LAYER_GZIP, info.digest, info.size)


@pytest.mark.parametrize("snapshotter", ["overlayfs", "native"])
async def test_a_hostile_layer_reaches_nothing_outside(daemon: Daemon, snapshotter: str, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("kept")
    up = "../" * 20
    hostile = [
        packed(entry(f"{up}{outside}/new")),
        packed(entry(f"{outside}/new")),
        packed(entry("l", tarfile.SYMTYPE, str(outside)), entry("l/new"), entry("l/kept")),
        packed(entry("l", tarfile.SYMTYPE, f"{up}{outside}"), entry("l/new"), entry("l/.wh.kept")),
        packed(entry("h", tarfile.LNKTYPE, f"{up}{outside}/kept"), entry("h")),
        packed(entry("l", tarfile.SYMTYPE, str(outside)), entry("h", tarfile.LNKTYPE, "l/kept"), entry("h")),
        packed(entry(f"{up}{outside}/.wh.kept")),
        packed(entry("l", tarfile.SYMTYPE, str(outside)), entry("l/.wh..wh..opq")),
        packed(entry("d", tarfile.DIRTYPE), entry("d", tarfile.SYMTYPE, str(outside)), entry("d/new")),
        packed(entry("..", tarfile.SYMTYPE, str(outside)), entry("../new")),
    ]
    async with leased(daemon, "hostile") as client:
        for data in hostile:
            mounts = await client.snapshots.prepare(client.scope, snapshotter, "target")
            layer = await put(client, gzip.compress(data))
            refusal = await refused(client.differ.apply(client.scope, layer, mounts))
            assert refusal is None or isinstance(refusal, Unknown)
            assert [path.name for path in outside.iterdir()] == ["kept"]
            assert (outside / "kept").read_text() == "kept"
            assert (outside / "kept").stat().st_nlink == 1
            await client.snapshots.remove(client.scope, snapshotter, "target")


async def test_a_corrupt_layer_is_refused_and_leaves_no_mount(daemon: Daemon) -> None:
    good = packed(entry("f"), data=os.urandom(5000))
    squeezed = gzip.compress(good)
    damaged = bytearray(squeezed)
    damaged[len(damaged) // 2] ^= 0xFF
    layers = [
        squeezed[: len(squeezed) // 2],
        bytes(damaged),
        gzip.compress(good[:700]),
        gzip.compress(good[:148] + b"00000000" + good[156:]),
        gzip.compress(b"no archive at all" * 100),
        b"neither compressed nor an archive" * 100,
        zstandard.compress(good)[:-10],
        squeezed + b"what follows",
    ]
    async with leased(daemon, "corrupt") as client:
        for data in layers:
            layer = await put(client, data)
            for snapshotter in ("overlayfs", "native"):
                mounts = await client.snapshots.prepare(client.scope, snapshotter, "target")
                with pytest.raises(Unknown):
                    await client.differ.apply(client.scope, layer, mounts)
                await client.snapshots.remove(client.scope, snapshotter, "target")
        mounts = await client.snapshots.prepare(client.scope, "native", "target")
        with pytest.raises(NotFound, match="failed to get reader from content store"):
            await client.differ.apply(client.scope, Descriptor(media.OCI_LAYER_GZIP, DIGEST, 1), mounts)
        with pytest.raises(Unknown, match="no processor for media-type"):
            await client.differ.apply(client.scope, Descriptor("text/plain", layer.digest, layer.size), mounts)
        await client.snapshots.remove(client.scope, "native", "target")
    assert not list((daemon.work / "root/tmpmounts").iterdir())


async def test_a_bomb_is_refused_before_it_has_gone_off(daemon: Daemon) -> None:
    """Eight GiB of zeros in some 300 kilobytes, behind the end of an archive so that the test writes no file."""
    squeezer = zstandard.ZstdCompressor().compressobj()
    zeros = bytes(64 << 20)
    once = squeezer.compress(zeros) + squeezer.flush()
    frames = zstandard.compress(packed(entry("f"))) + once * 128
    async with leased(daemon, "bomb") as client:
        layer = await put(client, frames)
        mounts = await client.snapshots.prepare(client.scope, "native", "target")
        with pytest.raises(ResourceExhausted, match="grows more than 10000 times"):
            await client.differ.apply(client.scope, layer, mounts)
        await client.snapshots.remove(client.scope, "native", "target")


def replaced(archive: bytes, pick: Callable[[str, bytes], bool], change: Callable[[bytes], bytes | None]) -> bytes:
    """`archive` with the files that `pick` chooses changed, or left out where `change` gives None."""
    out = io.BytesIO()
    with tarfile.open(fileobj=io.BytesIO(archive)) as old, tarfile.open(fileobj=out, mode="w") as new:
        for member in old:
            data: bytes | None = old.extractfile(member).read()  # type: ignore[union-attr]
            assert data is not None
            if pick(member.name, data):
                data = change(data)
            if data is not None:
                member.size = len(data)
                new.addfile(member, io.BytesIO(data))
    return out.getvalue()


def is_index(name: str, data: bytes) -> bool:
    return name == "index.json"


def is_manifest(name: str, data: bytes) -> bool:
    return name.startswith("blobs/") and b'"layers"' in data[:4096]


def is_config(name: str, data: bytes) -> bool:
    return name.startswith("blobs/") and b'"rootfs"' in data[:4096]


def is_layer(name: str, data: bytes) -> bool:
    return name.startswith("blobs/") and data[:2] == b"\x1f\x8b"


@pytest.fixture(scope="module")
def layout() -> bytes:
    return busybox_image.oci_layout()


@pytest.mark.parametrize("pick", [is_index, is_manifest, is_config, is_layer])
@pytest.mark.parametrize(
    "change",
    [
        lambda data: None,
        lambda data: b"",
        lambda data: data[: len(data) // 2],
        lambda data: b"\xff\xfe" + data,
        lambda data: b"[" * 100_000,
        lambda data: json.dumps({"manifests": 7, "layers": "x", "config": None, "rootfs": []}).encode(),
    ],
    ids=["missing", "empty", "cut", "noise", "deep", "other types"],
)
async def test_a_corrupt_part_of_an_archive_is_refused_and_nothing_is_unpacked(
    daemon: Daemon, layout: bytes, tmp_path: Path, name: str, pick: Any, change: Any
) -> None:
    archive = tmp_path / "damaged.tar"
    archive.write_bytes(replaced(layout, pick, change))
    async with connected(daemon, name) as client:
        with pytest.raises(OrlopError), archive.open("rb") as source:
            await client.import_archive(source)
        assert await client.snapshots.list(client.scope, "overlayfs") == []
        if pick in (is_index, is_manifest):
            # An image of which the rest is missing is one: `ctr images check` calls it incomplete.
            assert await client.images.list(client.scope) == []
    other = Daemon(daemon.work, namespace=f"{name}-ctr")
    assert other.ctr("images", "import", archive, check=False).returncode != 0


# The configuration.


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("version = 4\n[grpc", "failed to load TOML"),
        ("version = 9", "got `9`"),
        ("version = 4\noom_score = 'high'", "oom_score: expected int, got str"),
        ("version = 4\nplugins.'io.containerd.server.v1.grpc'.gid = 'staff'", "gid: expected int"),
        ("version = 4\nplugins.'io.containerd.server.v1.grpc'.engine = 'twisted'", "engine"),
        ("version = 4\nimports = ['/no/such/file.toml']", "/no/such/file.toml"),
        ("version = 4\n[timeouts]\n'io.containerd.timeout.task.state' = 'soon'", "soon"),
        ("version = 4\nrequired_plugins = ['io.containerd.snapshotter.v1.none']", "io.containerd.snapshotter.v1.none"),
    ],
)
def test_a_configuration_with_an_error_stops_the_start_and_names_it(tmp_path: Path, text: str, words: str) -> None:
    config = tmp_path / "config.toml"
    config.write_text(text)
    command = [
        *(Path(sys.executable).parent / "orlopd", "--config", config),
        *("--root", tmp_path / "root", "--state", tmp_path / "state", "--address", tmp_path / "s"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    said = done.stderr.splitlines()[-1]
    assert words in said
    assert not (tmp_path / "s").exists()


def test_an_unknown_key_is_named_in_a_warning(tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text("version = 4\noom_scor = 1\n[plugins.'io.containerd.server.v1.grpc']\ngidd = 1\n")
    command = [Path(sys.executable).parent / "orlopd", "--config", config, "config", "dump"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert f"file={config} key=oom_scor nearest=oom_score" in done.stderr
    assert "plugin=io.containerd.server.v1.grpc key=gidd nearest=gid" in done.stderr
