"""The stores over every kind of channel: what `core` says of them holds for a client too."""

from __future__ import annotations

import asyncio
import os
from contextlib import aclosing
from pathlib import Path

import pytest
from client_world import VERSION, WAYS, client_of

from orlop.client import connect
from orlop.client.content import PIECE
from orlop.core import digest as digests
from orlop.core.container import Container, Runtime
from orlop.core.content import read_whole, write_whole
from orlop.core.descriptor import Descriptor
from orlop.core.image import Image
from orlop.core.namespace import Namespace
from orlop.core.scope import Scope
from orlop.core.snapshot import Kind, SnapshotInfo
from orlop.core.typed import SPEC_URL, Typed
from orlop.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    OutOfRange,
    Unavailable,
    Unimplemented,
    Unknown,
)

pytestmark = [pytest.mark.root, pytest.mark.parametrize("way", WAYS)]
DATA = os.urandom(PIECE + 12345)
DIGEST = digests.of(DATA)


async def test_content_is_written_and_read_in_pieces(tmp_path: Path, way: str) -> None:
    async with client_of(tmp_path, way) as client:
        info = await write_whole(client.content, client.scope, "r", DATA, DIGEST, {"a": "b"})
        assert (info.digest, info.size, info.labels) == (DIGEST, len(DATA), {"a": "b"})
        assert await read_whole(client.content, client.scope, DIGEST, 1 << 30) == DATA
        reader = await client.content.open_reader(client.scope, DIGEST)
        assert await reader.read(len(DATA) - 5, 100) == DATA[-5:]
        assert await reader.read(len(DATA), 1) == await reader.read(3, 0) == b""
        with pytest.raises(Unimplemented):
            reader.fileno()
        await reader.close()
        assert [one.digest for one in await client.content.list(client.scope)] == [DIGEST]
        changed = await client.content.update(client.scope, info, ["labels.a"])
        assert changed.labels == {"a": "b"}
        with pytest.raises(OutOfRange):
            await read_whole(client.content, client.scope, DIGEST, 10)
        assert await write_whole(client.content, client.scope, "again", DATA, DIGEST) == await client.content.info(
            client.scope, DIGEST
        )
        await client.content.delete(client.scope, DIGEST)
        with pytest.raises(NotFound, match=DIGEST):
            await client.content.info(client.scope, DIGEST)


async def test_an_ingest_goes_on_where_it_stopped(tmp_path: Path, way: str) -> None:
    async with client_of(tmp_path, way) as client:
        content, scope = client.content, client.scope
        async with await content.open_writer(scope, "r", len(DATA), DIGEST) as writer:
            assert await writer.write(DATA[:1000]) == 1000
        status = await content.status(scope, "r")
        assert (status.ref, status.offset, status.total) == ("r", 1000, len(DATA))
        assert [one.ref for one in await content.statuses(scope)] == ["r"]
        async with await content.open_writer(scope, "r", len(DATA), DIGEST) as writer:
            found = await writer.status()
            assert (found.offset, found.started_at) == (1000, status.started_at)
            assert writer.digest() == digests.of(DATA[:1000])
            await writer.write(DATA[1000:])
            assert (await writer.commit(len(DATA), DIGEST)).size == len(DATA)
        assert not await content.statuses(scope)
        assert await read_whole(content, scope, DIGEST, 1 << 30) == DATA


async def test_an_ingest_starts_again_and_is_aborted(tmp_path: Path, way: str) -> None:
    async with client_of(tmp_path, way) as client:
        content, scope = client.content, client.scope
        async with await content.open_writer(scope, "r") as writer:
            await writer.write(b"wrong")
            await writer.truncate(0)
            assert (await writer.status()).offset == 0
            with pytest.raises(Unimplemented):
                await writer.truncate(1)
            await writer.write(b"right")
        assert (await content.status(scope, "r")).offset == 5
        await content.abort(scope, "r")
        with pytest.raises(NotFound):
            await content.status(scope, "r")


async def test_a_commit_of_another_digest_is_refused_and_ends_the_writer(tmp_path: Path, way: str) -> None:
    async with client_of(tmp_path, way) as client:
        writer = await client.content.open_writer(client.scope, "r")
        await writer.write(b"x")
        with pytest.raises(FailedPrecondition, match="unexpected commit digest"):
            await writer.commit(0, DIGEST)
        with pytest.raises(FailedPrecondition, match="stream has ended"):
            await writer.write(b"y")
        await writer.close()
        await writer.close()


async def test_a_ref_that_is_written_is_locked_and_a_blob_that_is_there_is_told(tmp_path: Path, way: str) -> None:
    async with client_of(tmp_path, way) as client:
        async with await client.content.open_writer(client.scope, "r"):
            with pytest.raises(Unavailable):
                await client.content.open_writer(client.scope, "r")
        await write_whole(client.content, client.scope, "x", b"x")
        with pytest.raises(AlreadyExists):
            await client.content.open_writer(client.scope, "y", 1, digests.of(b"x"))


async def test_writers_leave_no_task_behind(tmp_path: Path, way: str) -> None:
    async with client_of(tmp_path, way) as client:
        await write_whole(client.content, client.scope, "first", b"first")  # which starts what writers need, once
        before = len(asyncio.all_tasks())
        for number in range(20):
            await write_whole(client.content, client.scope, f"r{number}", bytes([number]))
            async with await client.content.open_writer(client.scope, f"left{number}") as writer:
                await writer.write(b"x")
        assert len(asyncio.all_tasks()) <= before + 2  # the transport's own


async def test_images_are_made_changed_listed_and_removed(tmp_path: Path, way: str) -> None:
    target = Descriptor("application/vnd.oci.image.manifest.v1+json", DIGEST, 5, {"note": "x"})
    async with client_of(tmp_path, way) as client:
        images, scope = client.images, client.scope
        made = await images.create(scope, Image("docker.io/library/a:latest", target, {"k": "v"}), epoch=5_000_000_000)
        assert (made.target, made.labels, made.created_at) == (target, {"k": "v"}, 5_000_000_000)
        with pytest.raises(AlreadyExists, match=r'image "docker\.io/library/a:latest"'):
            await images.create(scope, made)
        changed = await images.update(scope, Image(made.name, target, {"k": "w"}), ["labels.k"])
        assert changed.labels == {"k": "w"}
        assert await images.list(scope, ["labels.k==w"]) == [changed]
        assert await images.list(Scope("other")) == []
        assert await client.image("a") == await client.image(made.name) == changed
        with pytest.raises(NotFound):
            await client.image("b")
        with pytest.raises(InvalidArgument):
            await client.image("B A D")
        await images.delete(scope, made.name, target=target, sync=True)
        assert await images.list(scope) == []


async def test_containers_are_made_changed_listed_and_removed(tmp_path: Path, way: str) -> None:
    spec = Typed(SPEC_URL, b"{}")
    async with client_of(tmp_path, way) as client:
        containers, scope = client.containers, client.scope
        made = await containers.create(scope, Container("c", Runtime("io.containerd.runc.v2"), {"a": "b"}, spec=spec))
        assert (made.id, made.runtime.name, made.labels, made.spec) == ("c", "io.containerd.runc.v2", {"a": "b"}, spec)
        assert await containers.get(scope, "c") == made
        with pytest.raises(AlreadyExists):
            await containers.create(scope, made)
        changed = Container("c", made.runtime, {"a": "c"}, spec=spec)
        assert (await containers.update(scope, changed, ["labels"])).labels == {"a": "c"}
        assert [one.id for one in await containers.list(scope, ["id==c"])] == ["c"]
        await containers.delete(scope, "c")
        with pytest.raises(NotFound, match='container "c"'):
            await containers.get(scope, "c")


async def test_snapshots_go_through_every_verb(tmp_path: Path, way: str) -> None:
    async with client_of(tmp_path, way) as client:
        snapshots, scope, sn = client.snapshots, client.scope, "native"
        mounts = await snapshots.prepare(scope, sn, "a", "", {"x": "y"})
        assert await snapshots.mounts(scope, sn, "a") == mounts
        Path(mounts[0].source, "file").write_text("x")
        await snapshots.commit(scope, sn, "base", "a", {"x": "z"})
        info = await snapshots.stat(scope, sn, "base")
        assert (info.kind, info.parent, info.labels) == (Kind.COMMITTED, "", {"x": "z"})
        assert (await snapshots.usage(scope, sn, "base")).inodes >= 1
        view = await snapshots.view(scope, sn, "v", "base")
        assert "ro" in view[0].options
        updated = await snapshots.update(scope, sn, SnapshotInfo("base", Kind.COMMITTED, labels={"n": "1"}), ["labels"])
        assert updated.labels == {"n": "1"}
        assert {one.name: one.kind for one in await snapshots.list(scope, sn)} == {
            "base": Kind.COMMITTED,
            "v": Kind.VIEW,
        }
        with pytest.raises(FailedPrecondition):
            await snapshots.remove(scope, sn, "base")
        await snapshots.remove(scope, sn, "v")
        await snapshots.remove(scope, sn, "base")
        assert await snapshots.list(scope, sn) == []
        with pytest.raises(InvalidArgument, match="nosuch"):
            await snapshots.prepare(scope, "nosuch", "a")


async def test_a_lease_holds_what_is_made_in_it_and_ends(tmp_path: Path, way: str) -> None:
    async with client_of(tmp_path, way) as client:
        async with client.lease() as scope:
            [lease] = await client.leases.list(client.scope)
            assert (scope.namespace, scope.lease) == ("ns", lease.id)
            assert set(lease.labels) == {"containerd.io/gc.expire"}
            await write_whole(client.content, scope, "r", b"x")
            await client.snapshots.prepare(scope, "native", "s")
            assert {one.id for one in await client.leases.resources(scope, lease.id)} >= {digests.of(b"x"), "s"}
        assert await client.leases.list(client.scope) == []
        async with client.lease() as scope:
            await client.leases.delete(client.scope, scope.lease)  # somebody else ends it
        with pytest.raises(NotFound):
            await write_whole(client.content, scope, "r2", b"y")


async def test_namespaces_say_what_is_preferred_in_them(tmp_path: Path, way: str) -> None:
    async with client_of(tmp_path, way) as client:
        labels = {"containerd.io/defaults/snapshotter": "native", "containerd.io/defaults/runtime": "x.y.z"}
        await client.namespaces.create(Namespace("ns", labels))
        assert (await client.snapshotter(), await client.runtime()) == ("native", "x.y.z")
        await client.namespaces.update(Namespace("ns", {}), [f"labels.{key}" for key in labels])
        assert (await client.snapshotter(), await client.runtime()) == ("overlayfs", "io.containerd.runc.v2")
        assert [one.name for one in await client.namespaces.list()] == ["ns"]
        await client.namespaces.delete("ns")
        assert (await client.snapshotter(), await client.runtime()) == ("overlayfs", "io.containerd.runc.v2")


async def test_events_are_heard_until_the_listener_leaves(tmp_path: Path, way: str) -> None:
    async with client_of(tmp_path, way) as client:
        heard: list[str] = []
        first, second = asyncio.Event(), asyncio.Event()

        async def listen() -> None:
            async with aclosing(client.events.subscribe(["topic~=|^/namespaces/|"])) as events:
                async for event in events:
                    heard.append(f"{event.namespace} {event.topic} {event.event.type_name}")
                    first.set()
                    if event.topic == "/namespaces/delete":
                        break
            second.set()

        async with asyncio.TaskGroup() as group:
            group.create_task(listen())
            await client.namespaces.create(Namespace("n", {}))
            while not first.is_set():  # there is no answer that says that it listens
                await client.namespaces.update(Namespace("n", {"a": "b"}), ["labels.a"])
                await client.containers.list(client.scope)
            await client.namespaces.delete("n")
            await second.wait()
        assert heard[-1] == "n /namespaces/delete containerd.events.NamespaceDelete"
        with pytest.raises(Unknown, match="filters: parse error"):
            await anext(client.events.subscribe(["=="]))


async def test_the_version_is_told_and_what_is_not_served_is_told_too(tmp_path: Path, way: str) -> None:
    async with client_of(tmp_path, way) as client:
        assert (await client.version.get()).version == VERSION
        with pytest.raises(Unimplemented, match=r"containerd\.services\.tasks\.v1\.Tasks"):
            await client.tasks.list(client.scope)


async def test_a_client_of_no_daemon_is_told_so(tmp_path: Path, way: str) -> None:
    if way != "embedded":
        async with connect(str(tmp_path / "nothing")) as client:
            with pytest.raises(Unavailable):
                await client.version.get()
        return
    async with client_of(tmp_path, way) as client:
        pass
    with pytest.raises(Unavailable, match="the channel is closed"):
        await client.version.get()
