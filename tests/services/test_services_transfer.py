"""The Transfer and Streaming services, by the client library, on every engine and in process."""

from __future__ import annotations

import asyncio
import io
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import busybox_image
import pytest
from client_world import WAYS
from images_world import BUSYBOX, entries_of
from transfer_world import AMD64, REFERENCE, PullWorld, Registry, layer_of, pull_world

from orlop.api.services.streaming.v1 import streaming_pb2
from orlop.api.services.transfer.v1 import transfer_pb2
from orlop.client import Client, connect, embedded
from orlop.core.registry import Credential, RegistryOptions
from orlop.core.transfer import ExportEnd, ImageReference, ImportEnd, Progress, RegistryEnd, StoreEnd, UnpackRequest
from orlop.errors import InvalidArgument, NotFound, Unimplemented
from orlop.rpc.server import GrpcServer
from orlop.rpc.service import Service
from orlop.services.streaming import StreamingService
from orlop.services.transfer import TransferService
from orlop.transfer.archive import Archives
from orlop.transfer.local import LocalTransfers
from orlop.transfer.locks import Locks
from orlop.transfer.push import Pusher
from orlop.transfer.streams import OpenStreams


class Asking(Registry):
    """A registry that asks for credentials before it answers."""

    options = RegistryOptions()
    given: Credential | None = None

    def repository(self, reference: str, options: RegistryOptions) -> Registry:
        self.options = options
        return self

    async def resolve(self):  # type: ignore[no-untyped-def]
        if self.options.credentials is not None:
            self.given = await self.options.credentials.of("registry.example", REFERENCE, ["Basic realm=x"])
        if self.options.log is not None:
            self.options.log("HEAD /v2/")
        return await super().resolve()


@asynccontextmanager
async def served(root: Path, way: str) -> AsyncIterator[tuple[PullWorld, Client, OpenStreams]]:
    async with pull_world(root) as world:
        world.registry = Asking()
        puller = world.puller()
        streams = OpenStreams()
        archives = Archives(world.stores, puller.targets, Locks())
        transfers = LocalTransfers(
            world.stores, archives, puller, Pusher(world.stores, world.registry, asyncio.Semaphore(3))
        )
        services = [
            Service(streaming_pb2.DESCRIPTOR.services_by_name["Streaming"], StreamingService(streams)),
            Service(transfer_pb2.DESCRIPTOR.services_by_name["Transfer"], TransferService([transfers], streams)),
        ]
        if way == "embedded":
            async with embedded(services, "images") as client:
                yield world, client, streams
            return
        with tempfile.TemporaryDirectory(prefix="orlop-", dir="/tmp") as folder:
            server = GrpcServer(way)  # type: ignore[arg-type]
            for service in services:
                server.add(service)
            await server.start(f"{folder}/s")
            try:
                async with connect(f"{folder}/s", "images") as client:
                    yield world, client, streams
            finally:
                await server.stop()


class Sink:
    def __init__(self) -> None:
        self.data = io.BytesIO()
        self.finished = False

    async def write(self, data: bytes) -> None:
        self.data.write(data)

    async def finish(self) -> None:
        self.finished = True


async def pieces(data: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(data), 100_000):
        yield data[start : start + 100_000]


@pytest.mark.root
@pytest.mark.parametrize("way", WAYS)
async def test_an_image_goes_in_and_out_again(tmp_path: Path, way: str) -> None:
    async with served(tmp_path, way) as (world, client, streams):
        told: list[Progress] = []
        await client.transfer.import_archive(
            client.scope,
            ImportEnd(pieces(busybox_image.oci_layout())),
            StoreEnd(
                "",
                extra_references=[ImageReference("import", is_prefix=True, allow_overwrite=True)],
                unpacks=[UnpackRequest(AMD64, "native")],
            ),
            told.append,
        )
        assert [progress.event for progress in told] == ["Importing", "saved", "Completed import"]
        assert told[1].name == BUSYBOX
        assert len(await world.snapshots.list(client.scope, "native")) == 1
        sink = Sink()
        await client.transfer.export_archive(client.scope, StoreEnd(BUSYBOX), ExportEnd(sink))
        assert sink.finished
        exported = entries_of(sink.data.getvalue())
        blobs = {name: data for name, data in entries_of(busybox_image.oci_layout()).items() if "blobs" in name}
        assert {name: data for name, data in exported.items() if "blobs" in name} == blobs
        await client.transfer.tag(client.scope, BUSYBOX, StoreEnd("example.org/y:1"))
        assert "example.org/y:1" in await world.names()
        assert await world.leases.list(client.scope) == []
        assert streams._streams == {}


class Store:
    async def of(self, host: str, reference: str, challenges: Sequence[str]) -> Credential | None:
        return Credential(f"{host} {reference} {challenges[0]}", "secret")


@pytest.mark.root
@pytest.mark.parametrize("way", WAYS)
async def test_a_pull_asks_its_client_for_credentials_and_tells_it_what_happens(tmp_path: Path, way: str) -> None:
    async with served(tmp_path, way) as (world, client, streams):
        world.registry.serve(world.registry.image([layer_of("a")]))
        told: list[Progress] = []
        lines: list[str] = []
        options = RegistryOptions(credentials=Store(), log=lines.append, default_scheme="http", headers={"a": "b"})
        await client.transfer.pull(client.scope, RegistryEnd(REFERENCE, options), StoreEnd(REFERENCE), told.append)
        assert isinstance(world.registry, Asking)
        assert world.registry.given == Credential(f"registry.example {REFERENCE} Basic realm=x", "secret")
        assert (world.registry.options.default_scheme, world.registry.options.headers) == ("http", {"a": "b"})
        assert told[0].event == f"Resolving from OCI Registry ({REFERENCE})"
        assert told[-1].event == f"Completed pull from OCI Registry ({REFERENCE})"
        assert lines == ["HEAD /v2/"]
        assert streams._streams == {}


@pytest.mark.parametrize("way", WAYS)
async def test_a_client_that_leaves_takes_its_transfer_along(tmp_path: Path, way: str) -> None:
    async with served(tmp_path, way) as (world, client, streams):
        manifest = world.registry.image([layer_of("a")])
        world.registry.serve(manifest)
        world.registry.hold[manifest["digest"]] = asyncio.Event()
        pulling = asyncio.create_task(
            client.transfer.pull(client.scope, RegistryEnd(REFERENCE), StoreEnd(REFERENCE), lambda _: None)
        )
        await world.until(lambda: bool(world.registry.fetched))
        pulling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await pulling
        await world.until(lambda: not world.fetches._arriving and not streams._streams)
        assert await world.names() == []


@pytest.mark.parametrize("way", WAYS)
async def test_what_cannot_be_is_refused_in_the_words_that_clients_know(tmp_path: Path, way: str) -> None:
    async with served(tmp_path, way) as (_, client, _streams):
        with pytest.raises(NotFound, match=r'image "x": not found'):
            await client.transfer.tag(client.scope, "x", StoreEnd("y"))
        with pytest.raises(InvalidArgument, match="unrecognized image format"):
            await client.transfer.import_archive(client.scope, ImportEnd(pieces(bytes(2048))), StoreEnd("x"))
        source = StoreEnd("", extra_references=[ImageReference("x", is_prefix=True)])
        with pytest.raises(Unimplemented, match="prefix lookup on export not implemented"):
            await client.transfer.export_archive(client.scope, source, ExportEnd(Sink()))
        request = transfer_pb2.TransferRequest(options=transfer_pb2.TransferOptions(progress_stream="none"))
        request.source.type_url = "type.googleapis.com/containerd.types.transfer.ImageStore"
        request.destination.type_url = "containerd.types.transfer.ImageStore"
        with pytest.raises(NotFound, match="not found"):
            await client.transfer._call("Transfer", request, client.scope)
        request.options.progress_stream = ""
        with pytest.raises(
            Unimplemented,
            match=r"method Transfer not implemented for type\.googleapis\.com/containerd\.types\.transfer\.ImageStore "
            r"to containerd\.types\.transfer\.ImageStore",
        ):
            await client.transfer._call("Transfer", request, client.scope)
