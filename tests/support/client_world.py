"""A daemon's stores and services without the daemon, and clients of them in the ways there are."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from orlop.api.services.containers.v1 import containers_pb2
from orlop.api.services.content.v1 import content_pb2
from orlop.api.services.events.v1 import events_pb2
from orlop.api.services.images.v1 import images_pb2
from orlop.api.services.leases.v1 import leases_pb2
from orlop.api.services.namespaces.v1 import namespace_pb2
from orlop.api.services.snapshots.v1 import snapshots_pb2
from orlop.api.services.version.v1 import version_pb2
from orlop.client import Client, connect, embedded
from orlop.content.local import LocalStore
from orlop.events.exchange import Exchange
from orlop.metadata.containers import ContainerStore
from orlop.metadata.content import NamespacedContent
from orlop.metadata.database import Database
from orlop.metadata.images import ImageStore
from orlop.metadata.leases import Leases
from orlop.metadata.namespaces import NamespaceStore
from orlop.metadata.schema import MIGRATIONS
from orlop.metadata.snapshots import NamespacedSnapshots
from orlop.rpc.server import GrpcServer
from orlop.rpc.service import Service
from orlop.services.containers import ContainersService
from orlop.services.content import ContentService
from orlop.services.events import EventsService
from orlop.services.images import ImagesService
from orlop.services.leases import LeasesService
from orlop.services.namespaces import NamespacesService
from orlop.services.snapshots import SnapshotsService
from orlop.services.version import VersionService
from orlop.snapshots.native import NativeSnapshotter

WAYS = ["embedded", "native", "grpcio"]
VERSION = "1.2.3"


@asynccontextmanager
async def served(root: Path) -> AsyncIterator[list[Service]]:
    """The services over stores in `root`."""
    db = Database(root / "meta.db", MIGRATIONS, sync=False)
    (root / "content").mkdir(exist_ok=True)
    backend = LocalStore(root / "content")
    driver = NativeSnapshotter(root / "snapshots")
    exchange = Exchange()
    try:
        yield [
            Service(file.DESCRIPTOR.services_by_name[name], servicer)
            for file, name, servicer in (
                (containers_pb2, "Containers", ContainersService(ContainerStore(db, exchange))),
                (content_pb2, "Content", ContentService(NamespacedContent(db, backend, exchange, "shared"))),
                (events_pb2, "Events", EventsService(exchange)),
                (images_pb2, "Images", ImagesService(ImageStore(db, exchange))),
                (leases_pb2, "Leases", LeasesService(Leases(db))),
                (namespace_pb2, "Namespaces", NamespacesService(NamespaceStore(db, exchange))),
                (
                    snapshots_pb2,
                    "Snapshots",
                    SnapshotsService(NamespacedSnapshots(db, {"native": driver}, exchange)),
                ),
                (version_pb2, "Version", VersionService(VERSION, "r")),
            )
        ]
    finally:
        await driver.close()
        backend.close()
        db.close()


@asynccontextmanager
async def client_of(root: Path, way: str) -> AsyncIterator[Client]:
    """A client of services in `root`: in this process, or over a socket that one of the engines serves."""
    async with served(root) as services:
        if way == "embedded":
            async with embedded(services, "ns") as client:
                yield client
            return
        with tempfile.TemporaryDirectory(prefix="orlop-", dir="/tmp") as folder:  # a socket's path is short
            server = GrpcServer(way)  # type: ignore[arg-type]
            for service in services:
                server.add(service)
            await server.start(f"{folder}/s")
            try:
                async with connect(f"{folder}/s", "ns") as client:
                    yield client
            finally:
                await server.stop()
