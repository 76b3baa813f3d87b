"""The one suite for snapshotters, over the drivers themselves and over every way that leads to them."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
from conformance import Conformance, DeepConformance
from subjects import CHANNELS, DESCRIPTOR, KINDS, SCOPE, Deaf, Subject, served

from orlop.api.services.snapshots.v1 import snapshots_pb2 as pb
from orlop.client.snapshots import Snapshots
from orlop.core.scope import Scope
from orlop.core.snapshot import Kind
from orlop.errors import FailedPrecondition, InvalidArgument, NotFound, Unimplemented, Unknown
from orlop.metadata.database import Database
from orlop.metadata.schema import MIGRATIONS
from orlop.metadata.snapshots import NamespacedSnapshots
from orlop.rpc.channel import Stub
from orlop.rpc.scope import headers_of
from orlop.snapshots.overlayfs import OverlaySnapshotter

pytestmark = pytest.mark.root
SN = "overlayfs"


@pytest.fixture(params=sorted(KINDS))
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def subject(request: pytest.FixtureRequest, kind: str, tmp_path: Path) -> Subject:
    return Subject(kind, request.param, tmp_path / "root")


@pytest.mark.parametrize("subject", ["driver"], indirect=True)
class TestInProcess(Conformance, DeepConformance):
    """Each driver by itself."""


@pytest.mark.parametrize("subject", ["store"], indirect=True)
class TestByNamespace(Conformance):
    """Each driver under records by namespace, still in process."""


@pytest.mark.parametrize("subject", CHANNELS, indirect=True)
class TestThroughTheApi(Conformance):
    """Each driver as a client has it."""


@pytest.fixture(params=CHANNELS)
def way(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@asynccontextmanager
async def client(way: str, root: Path) -> AsyncIterator[tuple[Snapshots, Stub]]:
    """The client, and the bare methods, of a service over overlayfs."""
    async with AsyncExitStack() as stack:
        driver = OverlaySnapshotter(root / "driver")
        stack.push_async_callback(driver.close)
        db = Database(root / "meta.db", MIGRATIONS, sync=False)
        stack.callback(db.close)
        store = NamespacedSnapshots(db, {SN: driver}, Deaf())
        channel = await stack.enter_async_context(served(way, store, root / "s"))
        yield Snapshots(channel), Stub(channel, DESCRIPTOR, headers_of(SCOPE))


async def test_freeing_the_disk_is_not_for_clients(way: str, tmp_path: Path) -> None:
    async with client(way, tmp_path) as (_, stub):
        with pytest.raises(Unimplemented, match=r"^snapshotter does not implement Cleanup method: not implemented$"):
            await stub.call("Cleanup", pb.CleanupRequest(snapshotter=SN))


async def test_refusals_reach_a_client_with_their_code_and_their_whole_text(way: str, tmp_path: Path) -> None:
    async with client(way, tmp_path) as (snapshots, stub):
        with pytest.raises(InvalidArgument, match=r"^snapshotter not loaded: zfs: invalid argument$"):
            await snapshots.prepare(SCOPE, "zfs", "k")
        with pytest.raises(InvalidArgument, match=r"^snapshotter argument missing: invalid argument$"):
            await snapshots.list(SCOPE, "")
        with pytest.raises(Unknown, match=r"parse error"):
            await snapshots.list(SCOPE, SN, ["="])
        with pytest.raises(Unknown, match=r"^bucket name required$"):
            await snapshots.prepare(SCOPE, SN, "")
        with pytest.raises(InvalidArgument, match=r"^info is required: invalid argument$"):
            await stub.call("Update", pb.UpdateSnapshotRequest(snapshotter=SN))
        with pytest.raises(NotFound, match=r"^snapshot no\u00e9\nsuch does not exist: not found$"):
            await snapshots.mounts(SCOPE, SN, "no\u00e9\nsuch")
        await snapshots.view(SCOPE, SN, "v")
        refused = r'^failed to commit snapshot conformance/1/v: snapshot "conformance/1/v" is not active: '
        with pytest.raises(FailedPrecondition, match=refused):
            await snapshots.commit(SCOPE, SN, "n", "v")


async def test_a_client_has_the_snapshots_of_its_namespace_alone(way: str, tmp_path: Path) -> None:
    other = Scope("other")
    async with client(way, tmp_path) as (snapshots, _):
        await snapshots.prepare(SCOPE, SN, "k")
        assert await snapshots.list(other, SN) == []
        await snapshots.view(other, SN, "k")
        assert [info.kind for info in await snapshots.list(SCOPE, SN, ["name==k"])] == [Kind.ACTIVE]
        with pytest.raises(NotFound, match=r"^lease does not exist: not found$"):
            await snapshots.prepare(Scope("other", "lost"), SN, "leased")


@pytest.mark.parametrize("subject", CHANNELS, indirect=True)
async def test_a_client_has_the_mounts_that_the_driver_gives(subject: Subject) -> None:
    async with subject.opened() as snapshots:
        await snapshots.prepare("k")
        await snapshots.commit("base", "k")
        made = [await snapshots.prepare("child", "base"), await snapshots.view("view", "base")]
        assert made == [await snapshots.mounts("child"), await snapshots.mounts("view")]
    async with dataclasses.replace(subject, way="driver").opened() as driver:
        own = {info.name.rpartition("/")[2]: info.name for info in await driver.walk()}
        assert made == [await driver.mounts(own["child"]), await driver.mounts(own["view"])]


async def test_a_list_of_many_pages_arrives_whole_and_in_order(way: str, tmp_path: Path) -> None:
    async with client(way, tmp_path) as (snapshots, _):
        names = [f"v{number:03}" for number in range(101)]
        await asyncio.gather(*(snapshots.view(SCOPE, SN, name) for name in reversed(names)))
        assert [info.name for info in await snapshots.list(SCOPE, SN)] == names
