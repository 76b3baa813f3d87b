"""Images between a daemon and registries: real ones by every client there is, and one that is faulty."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from faulty_registry import FaultyRegistry, changed
from images_world import small_image
from real_daemon import IMAGE, Archives, Daemon, end_leftovers
from real_registry import PASSWORD, USER, Registry, serve
from registry_world import FixedCredentials
from transfer_world import layer_of

from orlop.client import Client, connect
from orlop.core import digest as digests
from orlop.core import media
from orlop.core.platform import host
from orlop.core.registry import RegistryOptions
from orlop.core.transfer import RegistryEnd, StoreEnd, UnpackRequest
from orlop.errors import OrlopError, ResourceExhausted, Unavailable
from orlop.images.unpack import chain_ids

pytestmark = [
    pytest.mark.root,
    pytest.mark.ctr,
    pytest.mark.skipif(not shutil.which("docker-registry"), reason="needs docker-registry"),
]

NEWEST = os.environ.get("ORLOP_TEST_CTR", "")
"""The path of a ctr that transfers by the daemon (2.0 and later)."""
MEGABYTE = 1 << 20


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    with serve(tmp_path / "registry") as found:
        yield found


@contextmanager
def own_daemon(root_size: int = 0) -> Iterator[Daemon]:
    """A daemon that a test may kill; with a size its root is a small disk."""
    daemon = Daemon(Path(tempfile.mkdtemp(prefix="orlop-", dir="/tmp")))
    if root_size:
        (daemon.work / "root").mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={root_size}", "none", daemon.work / "root"], check=True)
    try:
        daemon.start()
        yield daemon
    finally:
        if daemon.process is not None and daemon.process.poll() is None:
            daemon.stop()
        end_leftovers(daemon.work)
        shutil.rmtree(daemon.work)


@asynccontextmanager
async def client_of(daemon: Daemon) -> Any:
    async with connect(daemon.address) as client:
        yield client


async def pull(client: Client, reference: str, **options: Any) -> None:
    end = StoreEnd(reference, platforms=[host()], unpacks=[UnpackRequest(host())])
    await client.transfer.pull(client.scope, RegistryEnd(reference, RegistryOptions(**options)), end)


async def push(client: Client, image: str, reference: str, **options: Any) -> None:
    await client.transfer.push(client.scope, StoreEnd(image), RegistryEnd(reference, RegistryOptions(**options)))


def test_the_older_way_where_the_client_fetches_and_the_daemon_stores(daemon: Daemon, registry: Registry) -> None:
    name = f"{registry.address}/app/busybox:1"
    daemon.ctr("images", "tag", IMAGE, name)
    try:
        daemon.ctr("images", "push", "--plain-http", name)
        daemon.ctr("images", "rm", "--sync", name)
        daemon.ctr("images", "pull", "--plain-http", name)
        assert daemon.ctr("run", "--rm", name, f"r{os.getpid()}", "echo", "ran").stdout == "ran\n"
    finally:
        daemon.ctr("images", "rm", "--sync", name, check=False)


@pytest.mark.skipif(not NEWEST, reason="ORLOP_TEST_CTR names no newer ctr")
def test_the_newest_client_lets_the_daemon_do_it(daemon: Daemon, registry: Registry, tmp_path: Path) -> None:
    def ctr(*arguments: str | Path) -> str:
        return daemon.ctr(*arguments, program=NEWEST).stdout

    name, other = f"{registry.address}/app/busybox:1", f"{registry.address}/app/busybox:2"
    ctr("images", "tag", IMAGE, name)
    assert "pushed content" in ctr("images", "push", "--plain-http", name)
    ctr("images", "rm", "--sync", name)
    assert "saved" in ctr("images", "pull", "--plain-http", name)
    ctr("images", "tag", name, other)
    ctr("images", "export", tmp_path / "out.tar", name)
    ctr("images", "export", "--local", tmp_path / "local.tar", name)
    assert (tmp_path / "out.tar").read_bytes() == (tmp_path / "local.tar").read_bytes()
    ctr("images", "rm", "--sync", name, other)
    assert name in ctr("images", "import", tmp_path / "out.tar")
    ctr("images", "rm", "--sync", name)
    assert ctr("leases", "ls", "-q") == ""


@pytest.mark.skipif(not NEWEST, reason="ORLOP_TEST_CTR names no newer ctr")
def test_the_newest_client_has_plain_layers_compressed(daemon: Daemon, archives: Archives) -> None:
    name = "docker.io/library/busybox:docker"
    daemon.ctr("images", "import", "--compress-blobs", archives.docker, program=NEWEST)
    digest = next(line.split()[2] for line in daemon.ctr("images", "ls").stdout.splitlines() if name in line)
    manifest = json.loads(daemon.ctr("content", "get", digest).stdout)
    assert [layer["mediaType"] for layer in manifest["layers"]] == [media.DOCKER_LAYER_GZIP]
    assert daemon.ctr("run", "--rm", name, f"c{os.getpid()}", "echo", "ran").stdout == "ran\n"
    daemon.ctr("images", "rm", "--sync", name)


async def test_a_private_registry_asks_and_the_client_answers(daemon: Daemon, tmp_path: Path) -> None:
    with serve(tmp_path / "private", basic=True) as private:
        async with client_of(daemon) as client:
            name = f"{private.address}/app/busybox:1"
            credentials = FixedCredentials(USER, PASSWORD)
            await push(client, IMAGE, name, credentials=credentials, default_scheme="http")
            await pull(client, name, credentials=credentials, default_scheme="http")
            assert credentials.asked
            with pytest.raises(OrlopError, match=private.address):
                await pull(client, name, default_scheme="http")
            await client.images.delete(client.scope, name, sync=True)


def _serve(registry: FaultyRegistry, layers: list[bytes]) -> tuple[str, list[str]]:
    """An image of these tars; its reference and the digests of its layers."""
    blobs = [gzip.compress(layer, 1, mtime=0) for layer in layers]
    manifest, config, *_ = small_image(("linux", host().architecture), blobs)
    for blob in (config, *blobs):
        registry.add_blob(blob)
    registry.add_manifest("app", "1", manifest, media.OCI_MANIFEST)
    return f"{registry.address}/app:1", [digests.of(blob) for blob in blobs]


async def test_a_daemon_killed_in_mid_pull_goes_on_where_it_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = layer_of("big", 6 * MEGABYTE)
    monkeypatch.setenv("ORLOP_FAULTS", "transfer.fetch.written=4*off->kill")  # manifest, config, two megabytes
    with own_daemon() as daemon:
        monkeypatch.delenv("ORLOP_FAULTS")
        async with FaultyRegistry() as registry:
            name, [digest] = _serve(registry, [layer])
            async with client_of(daemon) as client:
                with pytest.raises(Unavailable):
                    await pull(client, name, default_scheme="http")
            assert daemon.process is not None
            assert await asyncio.to_thread(daemon.process.wait, 30) == -signal.SIGKILL
            await asyncio.to_thread(daemon.start)
            registry.seen.clear()
            async with client_of(daemon) as client:
                assert await client.images.list(client.scope) == []
                assert "removed 1 snapshots that were not finished" in (daemon.work / "log").read_text()
                assert await client.snapshots.list(client.scope, "overlayfs") == []
                made = await client.leases.create(client.scope, "collect")
                await client.leases.delete(client.scope, made.id, sync=True)
                files = daemon.work / "root" / "io.containerd.snapshotter.v1.overlayfs"
                assert [*files.glob("snapshots/*"), *files.glob("layers/*")] == []
                await pull(client, name, default_scheme="http")
                await client.snapshots.stat(client.scope, "overlayfs", chain_ids([digests.of(layer)])[0])
            asked = [seen.headers.get("Range", "bytes=0-") for seen in registry.seen if digest in seen.path]
            first = min(int(one.removeprefix("bytes=").partition("-")[0]) for one in asked)
            assert first >= 2 * MEGABYTE
            assert not [seen for seen in registry.seen if seen.method == "GET" and "manifests" in seen.path]


async def test_a_full_disk_fails_the_pull_and_nothing_else() -> None:
    with own_daemon(root_size=48 * MEGABYTE) as daemon:
        async with FaultyRegistry() as registry, client_of(daemon) as client:
            name, [digest] = _serve(registry, [layer_of("big", 64 * MEGABYTE)])
            with pytest.raises(ResourceExhausted, match=f"{name}.*{digest}"):
                await pull(client, name, default_scheme="http")
            assert await client.images.list(client.scope) == []
            assert {info.digest for info in await client.content.list(client.scope)}.isdisjoint({digest})
            assert await client.content.statuses(client.scope) == []  # the disk is free again
            name, _ = _serve(registry, [layer_of("small", 1000)])
            await pull(client, name, default_scheme="http")


def _flipped(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


@pytest.mark.parametrize("change", [_flipped, lambda data: data + b"x"], ids=["other", "longer"])
async def test_what_a_registry_lies_about_is_named_and_the_rest_kept(
    daemon: Daemon, change: Callable[[bytes], bytes]
) -> None:
    async with FaultyRegistry() as registry, client_of(daemon) as client:
        name, [_, bad] = _serve(registry, [layer_of("a", 1000), layer_of("b", 1000)])
        registry.on("GET", bad, changed(body=change), times=20)
        with pytest.raises(OrlopError, match=f"{name}.*{bad}"):
            await pull(client, name, default_scheme="http")
        kept = {info.digest for info in await client.content.list(client.scope)}
        assert bad not in kept
        assert name not in {image.name for image in await client.images.list(client.scope)}
        assert not [one for one in await client.content.statuses(client.scope) if bad in one.ref]
        registry._orders.clear()
        await pull(client, name, default_scheme="http")
        await client.images.delete(client.scope, name, sync=True)


async def test_ten_clients_pull_one_image_and_each_blob_is_asked_for_once(daemon: Daemon) -> None:
    async with FaultyRegistry() as registry:
        name, layers = _serve(registry, [layer_of("a", MEGABYTE), layer_of("b", 1000)])

        async def one() -> None:
            async with client_of(daemon) as client:
                await pull(client, name, default_scheme="http")

        await asyncio.gather(*(one() for _ in range(10)))
        for digest in layers:
            assert registry.count("GET", digest) == 1
        async with client_of(daemon) as client:
            await client.images.delete(client.scope, name, sync=True)
