"""A daemon whose disk is full: what needs room is refused, what frees it works, and then everything does again."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from real_daemon import Daemon, end_leftovers

from orlop.client.client import Client
from orlop.core.descriptor import Descriptor
from orlop.core.image import Image
from orlop.core.lease import Resource
from orlop.errors import OrlopError, ResourceExhausted
from orlop.layers import media
from orlop.layers.tar import REGULAR, Entry
from orlop.layers.write import END, head
from orlop.rpc.channel import GrpcChannel

pytestmark = [pytest.mark.root, pytest.mark.ctr]

SIZE = 40 << 20
"""Bytes of the disk, of which the daemon keeps 8 MiB back."""
PIECE = 1 << 20


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    """A daemon whose root is a small disk of its own."""
    daemon = Daemon(Path(tempfile.mkdtemp(prefix="orlop-", dir="/tmp")))
    root = daemon.work / "root"
    root.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "none", root], check=True)
    try:
        daemon.start()
        yield daemon
        assert daemon.stop() == 0
    finally:
        if daemon.process is not None and daemon.process.poll() is None:
            daemon.process.kill()
            daemon.process.wait()
        end_leftovers(daemon.work)
        shutil.rmtree(daemon.work)


@asynccontextmanager
async def connected(daemon: Daemon) -> AsyncIterator[Client]:
    client = Client(GrpcChannel(daemon.address))
    try:
        yield client
    finally:
        await client.close()


async def fill(client: Client, ref: str) -> None:
    """Writes to the ingest `ref` until there is no room."""
    async with await client.content.open_writer(client.scope, ref) as writer:
        for _ in range(2 * SIZE // PIECE):
            await writer.write(os.urandom(PIECE))


async def put(client: Client, data: bytes) -> Descriptor:
    async with await client.content.open_writer(client.scope, hashlib.sha256(data).hexdigest()) as writer:
        await writer.write(data)
        digest = (await writer.commit(len(data), labels={"containerd.io/gc.root": "test"})).digest
    return Descriptor(media.OCI_LAYER, digest, len(data))


def layer(name: bytes, data: bytes) -> bytes:
    return head(Entry(name, REGULAR, 0o644, 0, 0, len(data), 0, 0, len(data))) + data + bytes(-len(data) % 512) + END


async def test_a_full_disk_ends_an_ingest_which_goes_on_when_there_is_room(daemon: Daemon) -> None:
    async with connected(daemon) as client:
        blob = await put(client, os.urandom(4 * PIECE))
        await client.leases.create(client.scope, "lease")
        with pytest.raises(ResourceExhausted, match="no space left on device"):
            await fill(client, "ref")
        had = (await client.content.status(client.scope, "ref")).offset
        assert had > 0
        await client.content.delete(client.scope, blob.digest)
        await client.leases.delete(client.scope, "lease", sync=True)
        async with await client.content.open_writer(client.scope, "ref") as writer:
            assert (await writer.status()).offset == had
            await writer.write(bytes(PIECE))
            info = await writer.commit(had + PIECE)
        assert info.size == had + PIECE


@pytest.mark.parametrize("snapshotter", ["overlayfs", "native"])
async def test_a_full_disk_ends_an_apply_and_its_snapshot_can_be_removed(daemon: Daemon, snapshotter: str) -> None:
    async with connected(daemon) as client:
        scope = client.scope
        await client.leases.create(scope, "lease")
        large = await put(client, layer(b"large", os.urandom(20 * PIECE)))
        mounts = await client.snapshots.prepare(scope, snapshotter, "target", labels={"containerd.io/gc.root": "t"})
        with pytest.raises(OrlopError, match="no space left on device"):
            await client.differ.apply(scope, large, mounts)
        await client.snapshots.remove(scope, snapshotter, "target")
        await client.content.delete(scope, large.digest)
        await client.leases.delete(scope, "lease", sync=True)
        assert shutil.disk_usage(daemon.work / "root").free > 25 * PIECE
        small = await put(client, layer(b"small", os.urandom(PIECE)))
        mounts = await client.snapshots.prepare(scope, snapshotter, "target")
        await client.differ.apply(scope, small, mounts)
        assert not list((daemon.work / "root/tmpmounts").iterdir())


async def test_a_full_disk_refuses_records_and_lets_everything_be_deleted(daemon: Daemon) -> None:
    async with connected(daemon) as client:
        scope = client.scope
        target = Descriptor("application/x", f"sha256:{'0' * 64}", 1)
        await client.leases.create(scope, "lease")
        with pytest.raises(ResourceExhausted):
            await fill(client, "ref")
        # What is left is less than a megabyte: records take it up.
        labels = {f"key{number}": "x" * 4000 for number in range(20)}
        made = 0
        with pytest.raises(ResourceExhausted):  # noqa: PT012
            for number in range(1000):
                await client.images.create(scope, Image(f"image{number}", target, labels=labels))
                made += 1
        for _ in range(2):  # and it stays so, for every kind of record
            with pytest.raises(ResourceExhausted):
                await client.images.create(scope, Image("one more", target, labels=labels))
        with pytest.raises(ResourceExhausted):  # noqa: PT012
            for number in range(100_000):
                await client.leases.add_resource(scope, "lease", Resource("images", f"{number}" + "x" * 4000))
        assert len(await client.images.list(scope)) == made
        for image in await client.images.list(scope):
            await client.images.delete(scope, image.name)
        await client.content.abort(scope, "ref")
        await client.leases.delete(scope, "lease", sync=True)
        assert shutil.disk_usage(daemon.work / "root").free > 15 * PIECE
        await client.images.create(scope, Image("room again", target))
        await fill_and_remove(client)


async def fill_and_remove(client: Client) -> None:
    with pytest.raises(ResourceExhausted):
        await fill(client, "again")
    await client.content.abort(client.scope, "again")


async def test_a_daemon_starts_on_a_full_disk(daemon: Daemon) -> None:
    async with connected(daemon) as client:
        with pytest.raises(ResourceExhausted):
            await fill(client, "ref")
    assert shutil.disk_usage(daemon.work / "root").free < PIECE
    assert daemon.stop() == 0
    daemon.start()
    async with connected(daemon) as client:
        assert [status.ref for status in await client.content.statuses(client.scope)] == ["ref"]
        await client.content.abort(client.scope, "ref")
        await put(client, b"there is room again")
