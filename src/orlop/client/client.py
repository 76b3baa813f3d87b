"""A client: the stores of a daemon, and what programs do with several of them together."""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from functools import cached_property
from typing import TYPE_CHECKING, BinaryIO

from orlop.core import clock, rfc3339
from orlop.core.image import Image
from orlop.core.platform import host
from orlop.core.scope import Scope
from orlop.errors import AlreadyExists, NotFound
from orlop.rpc.channel import Channel, GrpcChannel, InProcessChannel
from orlop.rpc.service import Service

if TYPE_CHECKING:
    from orlop.client.content import Content
    from orlop.client.integrity import Integrity
    from orlop.client.snapshots import Differs, Snapshots
    from orlop.client.stores import Containers, Images, Introspection, Leases, Namespaces, Version
    from orlop.client.streaming import Streaming
    from orlop.client.tasks import Events, RemoteTasks
    from orlop.client.transfer import Transfer
    from orlop.core.descriptor import Descriptor
    from orlop.images.convert import Conversion

DEFAULT_ADDRESS = "/run/orlop/orlop.sock"
DEFAULT_SNAPSHOTTER = "overlayfs"
SNAPSHOTTER_LABEL = "containerd.io/defaults/snapshotter"
RUNTIME_LABEL = "containerd.io/defaults/runtime"
DEFAULT_RUNTIME = "io.containerd.runc.v2"

LEASE_SECONDS = 24 * 3600


class Client:
    """What a daemon has, in one namespace. The stores are those of `orlop.core`; `scope` is what they are asked in."""

    def __init__(self, channel: Channel, namespace: str = "default") -> None:
        self.channel = channel
        self.scope = Scope(namespace)

    # Each is imported when it is first used: a short command should not wait for what it does not need.

    @cached_property
    def containers(self) -> Containers:
        from orlop.client.stores import Containers

        return Containers(self.channel)

    @cached_property
    def content(self) -> Content:
        from orlop.client.content import Content

        return Content(self.channel)

    @cached_property
    def differ(self) -> Differs:
        from orlop.client.snapshots import Differs

        return Differs(self.channel)

    @cached_property
    def events(self) -> Events:
        from orlop.client.tasks import Events

        return Events(self.channel)

    @cached_property
    def images(self) -> Images:
        from orlop.client.stores import Images

        return Images(self.channel)

    @cached_property
    def integrity(self) -> Integrity:
        from orlop.client.integrity import Integrity

        return Integrity(self.channel)

    @cached_property
    def introspection(self) -> Introspection:
        from orlop.client.stores import Introspection

        return Introspection(self.channel)

    @cached_property
    def leases(self) -> Leases:
        from orlop.client.stores import Leases

        return Leases(self.channel)

    @cached_property
    def namespaces(self) -> Namespaces:
        from orlop.client.stores import Namespaces

        return Namespaces(self.channel)

    @cached_property
    def snapshots(self) -> Snapshots:
        from orlop.client.snapshots import Snapshots

        return Snapshots(self.channel)

    @cached_property
    def tasks(self) -> RemoteTasks:
        from orlop.client.tasks import RemoteTasks

        return RemoteTasks(self.channel)

    @cached_property
    def streaming(self) -> Streaming:
        from orlop.client.streaming import Streaming

        return Streaming(self.channel)

    @cached_property
    def transfer(self) -> Transfer:
        from orlop.client.transfer import Transfer

        return Transfer(self.channel)

    @cached_property
    def version(self) -> Version:
        from orlop.client.stores import Version

        return Version(self.channel)

    @asynccontextmanager
    async def lease(self) -> AsyncIterator[Scope]:
        """A scope whose lease holds what is made inside; it ends by itself after a day if this program dies."""
        expires = rfc3339.render(clock.now() + LEASE_SECONDS * 1_000_000_000)
        lease = await self.leases.create(self.scope, uuid.uuid4().hex, {"containerd.io/gc.expire": expires})
        try:
            yield Scope(self.scope.namespace, lease.id)
        finally:
            await asyncio.shield(self._end(lease.id))

    async def snapshotter(self) -> str:
        """The snapshotter that this namespace prefers."""
        labels = (await self.namespaces.get(self.scope.namespace)).labels
        return labels.get(SNAPSHOTTER_LABEL) or DEFAULT_SNAPSHOTTER

    async def runtime(self) -> str:
        """The runtime that this namespace prefers."""
        return (await self.namespaces.get(self.scope.namespace)).labels.get(RUNTIME_LABEL) or DEFAULT_RUNTIME

    async def image(self, name: str) -> Image:
        """The image of that name, or of what it is short for. Raises NotFound."""
        from orlop.images import names

        try:
            return await self.images.get(self.scope, name)
        except NotFound:
            full = names.normalize(name)
            if full == name:
                raise
            return await self.images.get(self.scope, full)

    async def import_archive(
        self,
        source: BinaryIO,
        *,
        name: str = "",
        unpack: bool = True,
        progress: Callable[[int], None] = lambda _: None,
    ) -> list[Image]:
        """Imports the images of an archive and unpacks them for this host. `name` is for an archive whose image has
        none; `progress` is told the bytes read, in another thread."""
        from orlop.images import importer

        async with self.lease() as scope:
            images = await importer.import_archive(
                self.content, self.images, scope, source, name=name, progress=progress
            )
            for image in images if unpack else ():
                await self.unpack(image, scope)
        return images

    async def unpack(self, image: Image, scope: Scope | None = None) -> str:
        """Unpacks `image` for this host, as far as it is not; returns the name of its topmost snapshot.

        `scope`, where given, should have a lease: only that holds what is under way.
        """
        from orlop.images import unpack

        if scope is None:
            async with self.lease() as leased:
                return await self.unpack(image, leased)
        return await unpack.unpack(
            self.content, self.snapshots, self.differ, scope, image.target, host(), await self.snapshotter()
        )

    async def convert(
        self, image: Image, name: str, conversion: Conversion, progress: Callable[[Descriptor, int], None] | None = None
    ) -> Image:
        """Stores what `conversion` makes of `image` under `name`, which may be its own; labels stay.

        `progress` is told a layer and the bytes of it that have been read, in another thread.
        """
        from orlop.images import convert

        async with self.lease() as scope:
            tell = progress or (lambda _, __: None)
            target = await convert.convert(self.content, scope, image.target, conversion, tell)
            made = Image(name, target, image.labels)
            try:
                return await self.images.create(scope, made)
            except AlreadyExists:
                return await self.images.update(scope, made, ["target", "labels"])

    async def close(self) -> None:
        await self.channel.close()

    async def _end(self, lease: str) -> None:
        try:
            await self.leases.delete(self.scope, lease)
        except NotFound:
            return


@asynccontextmanager
async def connect(address: str = "", namespace: str = "") -> AsyncIterator[Client]:
    """A client of the daemon at `address`. Empty arguments stand for `ORLOP_ADDRESS` and `ORLOP_NAMESPACE`, and those
    for the defaults."""
    channel = GrpcChannel(address or os.environ.get("ORLOP_ADDRESS", "") or DEFAULT_ADDRESS)
    client = Client(channel, namespace or os.environ.get("ORLOP_NAMESPACE", "") or "default")
    try:
        yield client
    finally:
        await client.close()


@asynccontextmanager
async def embedded(services: Iterable[Service], namespace: str = "default") -> AsyncIterator[Client]:
    """A client of services in this process: `async with Daemon(...) as daemon, embedded(daemon.services) as client`."""
    client = Client(InProcessChannel(services), namespace)
    try:
        yield client
    finally:
        await client.close()
