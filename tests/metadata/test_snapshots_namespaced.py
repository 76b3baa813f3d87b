"""Snapshots by namespace over real drivers, also through the service."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message

from orlop import faults
from orlop.api.services.snapshots.v1 import snapshots_pb2 as pb
from orlop.core.mount import Mount
from orlop.core.scope import Scope
from orlop.core.snapshot import Kind, SnapshotInfo
from orlop.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    OrlopError,
    Unimplemented,
    Unknown,
)
from orlop.metadata.database import Database
from orlop.metadata.leases import Leases
from orlop.metadata.schema import MIGRATIONS
from orlop.metadata.snapshots import REF_LABEL, NamespacedSnapshots
from orlop.rpc.service import Call
from orlop.services.snapshots import SnapshotsService
from orlop.snapshots.overlayfs import OverlaySnapshotter

pytestmark = pytest.mark.root
NS = Scope("ns")
SN = "overlayfs"


class Heard:
    def __init__(self) -> None:
        self.events: list[tuple[str, str, dict[str, str]]] = []

    def publish(self, namespace: str, topic: str, payload: Message) -> None:
        fields = {field.name: value for field, value in payload.ListFields()}
        self.events.append((namespace, topic, fields))


class Remote(OverlaySnapshotter):
    """A driver that already has what a label names."""

    async def prepare(self, key: str, parent: str = "", labels: Mapping[str, str] | None = None) -> list[Mount]:
        if (labels or {}).get(REF_LABEL, "").startswith("remote"):
            raise AlreadyExists("found")
        return await super().prepare(key, parent, labels)


class World:
    def __init__(self, root: Path) -> None:
        self.heard = Heard()
        self.driver = Remote(root / "overlay")
        self.db = Database(root / "meta.db", MIGRATIONS, sync=False)
        self.leases = Leases(self.db)
        self.store = NamespacedSnapshots(self.db, {SN: self.driver}, self.heard)

    async def layer(self, name: str, parent: str = "", scope: Scope = NS) -> None:
        await self.store.prepare(scope, SN, f"make-{name}", parent)
        await self.store.commit(scope, SN, name, f"make-{name}")

    async def held(self, lease: str) -> list[str]:
        return [resource.id for resource in await self.leases.resources(NS, lease)]


@asynccontextmanager
async def world(root: Path) -> AsyncIterator[World]:
    made = World(root)
    try:
        yield made
    finally:
        await made.driver.close()
        made.db.close()


async def refusal(call: Any) -> tuple[type[OrlopError], str]:
    with pytest.raises(OrlopError) as caught:
        await call
    return type(caught.value), str(caught.value)


async def test_refusals_have_the_codes_and_texts_that_clients_match(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        store = w.store
        assert await refusal(store.commit(NS, SN, "n", "k")) == (
            NotFound,
            'can not find snapshotter "overlayfs": not found',
        )
        await store.prepare(NS, SN, "k")
        await store.view(NS, SN, "v")
        await w.layer("base")
        await w.layer("top", "base")
        missing = (NotFound, "snapshot x does not exist: not found")
        taken = (AlreadyExists, 'snapshot "k": already exists')
        expected = [
            (store.prepare(NS, "", "x"), (InvalidArgument, "snapshotter argument missing: invalid argument")),
            (store.stat(NS, "zfs", "x"), (InvalidArgument, "snapshotter not loaded: zfs: invalid argument")),
            (store.prepare(NS, SN, "k"), taken),
            (store.view(NS, SN, "k"), taken),
            (store.prepare(NS, SN, "y", "x"), (NotFound, "parent snapshot x does not exist: not found")),
            (store.prepare(NS, SN, ""), (Unknown, "bucket name required")),
            (store.commit(NS, SN, "", "k"), (Unknown, "bucket name required")),
            (store.mounts(NS, SN, "x"), missing),
            (store.stat(NS, SN, "x"), missing),
            (store.usage(NS, SN, "x"), missing),
            (store.remove(NS, SN, "x"), missing),
            (store.commit(NS, SN, "y", "x"), missing),
            (store.commit(NS, SN, "base", "x"), (AlreadyExists, 'snapshot "base": already exists')),
            (
                store.remove(NS, SN, "base"),
                (FailedPrecondition, "cannot remove snapshot with child: failed precondition"),
            ),
            (store.update(NS, SN, SnapshotInfo("", Kind.UNKNOWN), None), (InvalidArgument, "invalid argument")),
            (
                store.update(NS, SN, SnapshotInfo("k", Kind.UNKNOWN), ["parent"]),
                (InvalidArgument, 'cannot update "parent" field on snapshot "k": invalid argument'),
            ),
        ]
        for call, answer in expected:
            assert await refusal(call) == answer
        kind, text = await refusal(store.prepare(NS, SN, "y", "k"))
        assert kind is InvalidArgument
        assert text == 'failed to create snapshot: parent "ns/1/k" is not committed snapshot: invalid argument'
        kind, text = await refusal(store.commit(NS, SN, "y", "v"))
        assert kind is FailedPrecondition
        assert text == 'failed to commit snapshot ns/2/v: snapshot "ns/2/v" is not active: failed precondition'
        kind, text = await refusal(store.mounts(NS, SN, "base"))
        assert kind is FailedPrecondition
        assert text.startswith("failed to get active mount: requested snapshot ns/")
        kind, text = await refusal(store.prepare(NS, SN, "z", "", {"k": "v" * 4096}))
        assert kind is InvalidArgument
        assert text.startswith("info.Labels: label key and value length")


async def test_events_tell_of_prepare_commit_and_remove_and_not_of_views(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        await w.layer("base")
        await w.store.view(NS, SN, "v", "base")
        await w.store.remove(NS, SN, "v")
        assert w.heard.events == [
            ("ns", "/snapshot/prepare", {"key": "make-base", "snapshotter": SN}),
            ("ns", "/snapshot/commit", {"key": "make-base", "name": "base", "snapshotter": SN}),
            ("ns", "/snapshot/remove", {"key": "v", "snapshotter": SN}),
        ]


async def test_the_driver_sees_inherited_labels_and_commit_keeps_its_own_alone(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        given = {"mine": "1", "containerd.io/snapshot/x": "2", REF_LABEL: "chain", "empty": ""}
        await w.store.prepare(NS, SN, "k", "", given)
        assert (await w.driver.walk())[0].labels == {"containerd.io/snapshot/x": "2", REF_LABEL: "chain"}
        assert (await w.store.stat(NS, SN, "k")).labels == {key: value for key, value in given.items() if value}
        await w.store.commit(NS, SN, "chain", "k", {"new": "3"})
        info = await w.store.stat(NS, SN, "chain")
        assert (info.kind, info.labels) == (Kind.COMMITTED, {"new": "3"})
        assert await refusal(w.store.prepare(NS, SN, "again", "", given)) == (
            AlreadyExists,
            'target snapshot "chain": already exists',
        )


async def test_what_is_made_or_found_joins_the_lease(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        await w.leases.create(NS, "l")
        leased = Scope("ns", "l")
        await w.store.prepare(leased, SN, "k")
        assert await w.held("l") == ["k"]
        await w.store.commit(leased, SN, "base", "k")
        assert await w.held("l") == ["base"]
        await w.layer("other")
        await refusal(w.store.commit(leased, SN, "other", "missing"))
        assert await w.held("l") == ["base", "other"]
        await w.store.remove(leased, SN, "base")
        assert await w.held("l") == ["other"]
        unknown = Scope("ns", "nobody")
        assert await refusal(w.store.prepare(unknown, SN, "x")) == (NotFound, "lease does not exist: not found")
        assert {info.name for info in await w.driver.walk()} == {"ns/2/other", "ns/1/base"}


async def test_namespaces_do_not_see_each_others_snapshots(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        await w.layer("base")
        other = Scope("other")
        assert await w.store.list(other, SN) == []
        await w.layer("base", scope=other)
        assert [info.name for info in await w.store.list(other, SN)] == ["base"]
        await refusal(w.store.prepare(other, SN, "k", "make-base"))


async def test_lists_are_in_order_and_filtered(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        await w.layer("b")
        await w.store.prepare(NS, SN, "a", "b", {"x.y": "1"})
        await w.store.view(NS, SN, "c", "b")

        async def names(*filters: str) -> list[str]:
            return [info.name for info in await w.store.list(NS, SN, filters)]

        assert await names() == ["a", "b", "c"]
        assert await names("kind==active", "kind==committed") == ["a", "b"]
        assert await names("parent==b,kind!=view") == ["a"]
        assert await names('labels."x.y"==1') == ["a"]
        kind, text = await refusal(w.store.list(NS, SN, ["="]))
        assert kind is Unknown
        assert "parse error" in text


async def test_commit_rebases_an_active_without_parent_and_ignores_the_field_otherwise(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        await w.layer("base")
        await w.layer("other")
        await w.store.prepare(NS, SN, "k")
        await w.store.commit(NS, SN, "top", "k", parent="base")
        assert (await w.store.stat(NS, SN, "top")).parent == "base"
        await w.store.prepare(NS, SN, "k", "base")
        await w.store.commit(NS, SN, "second", "k", parent="other")
        assert (await w.store.stat(NS, SN, "second")).parent == "base"
        await w.store.prepare(NS, SN, "k")
        assert await refusal(w.store.commit(NS, SN, "third", "k", parent="x")) == (
            NotFound,
            "parent snapshot x does not exist: not found",
        )


async def test_a_remote_snapshot_is_adopted_under_its_reference(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        await w.driver.prepare("theirs")
        await w.driver.commit("somewhere", "theirs", {REF_LABEL: "remote-1", "containerd.io/snapshot/x": "1"})
        found = await refusal(w.store.prepare(NS, SN, "k", "", {REF_LABEL: "remote-1", "mine": "1"}))
        assert found == (AlreadyExists, 'target snapshot "remote-1" from snapshotter: already exists')
        info = await w.store.stat(NS, SN, "remote-1")
        assert info.kind is Kind.COMMITTED
        assert info.labels == {REF_LABEL: "remote-1", "containerd.io/snapshot/x": "1", "mine": "1"}
        assert await refusal(w.store.prepare(NS, SN, "k", "", {REF_LABEL: "remote-2"})) == (
            NotFound,
            'target snapshot "remote-2" in backend: not found',
        )
        await w.store.cleanup(SN)
        assert [each.name for each in await w.driver.walk()] == ["somewhere"]


async def test_cleanup_removes_what_no_namespace_has_children_first(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        await w.layer("base")
        await w.layer("top", "base")
        await w.layer("kept")
        await w.store.remove(NS, SN, "top")
        await w.store.remove(NS, SN, "base")
        await w.store.cleanup(SN)
        assert [info.name.rpartition("/")[2] for info in await w.driver.walk()] == ["kept"]
        assert len(list((tmp_path / "overlay/snapshots").iterdir())) == 1


async def test_cleanup_spares_what_is_just_being_made(tmp_path: Path) -> None:
    async with world(tmp_path) as w:

        async def make(number: int) -> None:
            await w.layer(f"layer{number}")

        async with asyncio.TaskGroup() as group:
            for number in range(20):
                group.create_task(make(number))
                group.create_task(w.store.cleanup(SN))
        assert len(await w.store.list(NS, SN)) == 20
        assert len(await w.driver.walk()) == 20


@pytest.mark.parametrize("point", ["metadata.snapshots.made", "metadata.snapshots.committed"])
async def test_a_failure_between_driver_and_record_leaves_nothing_after_collection(tmp_path: Path, point: str) -> None:
    async with world(tmp_path) as w:
        await w.layer("base")
        faults.arm(point, "1*error(EIO)")
        try:
            with pytest.raises(OSError, match="fault"):
                await w.layer("top", "base")
        finally:
            faults.disarm()
        for info in await w.store.list(NS, SN):
            assert info.name in ("base", "make-top")
        await w.store.cleanup(SN)
        assert [info.name.rpartition("/")[2] for info in await w.driver.walk()] == ["base"]


async def cut_off_commit(w: World) -> None:
    """The driver has committed `key` as `name`, and the record says nothing of it."""
    await w.layer("base")
    await w.store.prepare(NS, SN, "key", "base")
    faults.arm("metadata.snapshots.committed", "1*error(EIO)")
    try:
        with pytest.raises(OSError, match="fault"):
            await w.store.commit(NS, SN, "name", "key", {"a": "1"})
    finally:
        faults.disarm()


async def test_a_commit_cut_off_before_its_record_is_finished_by_the_same_call(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        await cut_off_commit(w)
        assert (await refusal(w.store.commit(NS, SN, "another", "key")))[0] is NotFound
        await w.store.commit(NS, SN, "name", "key", {"b": "2", "containerd.io/snapshot/x": "3"})
        info = await w.store.stat(NS, SN, "name")
        assert (info.kind, info.parent) == (Kind.COMMITTED, "base")
        assert info.labels == {"b": "2", "containerd.io/snapshot/x": "3"}
        await w.store.cleanup(SN)
        assert [info.name for info in await w.store.list(NS, SN)] == ["base", "name"]
        assert len(await w.driver.walk()) == 2


async def test_a_commit_cut_off_before_its_record_is_ended_by_cleanup(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        await cut_off_commit(w)
        assert (await refusal(w.store.stat(NS, SN, "key")))[0] is NotFound
        assert (await refusal(w.store.prepare(NS, SN, "key", "base")))[0] is AlreadyExists
        w.heard.events.clear()
        await w.store.cleanup(SN)
        assert w.heard.events == [("ns", "/snapshot/remove", {"key": "key", "snapshotter": SN})]
        assert len(await w.driver.walk()) == 1
        await w.store.prepare(NS, SN, "key", "base")
        await w.store.commit(NS, SN, "name", "key")


async def test_cleanup_keeps_the_records_of_a_driver_that_has_lost_its_snapshots(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        await w.layer("base")
        await w.store.prepare(NS, SN, "key", "base")
        for info in reversed(await w.driver.walk()):
            await w.driver.remove(info.name)
        await w.store.cleanup(SN)
        for name in ("base", "key"):
            assert (await refusal(w.store.view(NS, SN, name)))[0] is AlreadyExists


async def test_a_record_that_cannot_be_written_takes_the_drivers_snapshot_back(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        await w.leases.create(NS, "l")
        gone = asyncio.Event()

        class Slow(OverlaySnapshotter):
            async def prepare(self, key: str, parent: str = "", labels: Mapping[str, str] | None = None) -> list[Mount]:
                mounts = await super().prepare(key, parent, labels)
                await w.leases.delete(NS, "l")
                gone.set()
                return mounts

        driver = Slow(tmp_path / "slow")
        store = NamespacedSnapshots(w.db, {"slow": driver}, w.heard)
        assert await refusal(store.prepare(Scope("ns", "l"), "slow", "k")) == (
            NotFound,
            "lease does not exist: not found",
        )
        assert gone.is_set()
        assert await driver.walk() == []
        await driver.close()


async def test_an_update_that_names_no_field_replaces_all_labels(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        await w.store.prepare(NS, SN, "k", "", {"a": "1"})
        for fields in (None, []):
            given = SnapshotInfo("k", Kind.UNKNOWN, labels={str(fields): "2"})
            assert (await w.store.update(NS, SN, given, fields)).labels == given.labels


async def test_of_many_commits_to_one_name_one_wins_and_the_others_keep_their_key(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        keys = [f"k{number}" for number in range(6)]
        for key in keys:
            await w.store.prepare(NS, SN, key)
        results = await asyncio.gather(*(w.store.commit(NS, SN, "name", key) for key in keys), return_exceptions=True)
        lost = [key for key, result in zip(keys, results, strict=True) if isinstance(result, AlreadyExists)]
        assert len(lost) == 5
        for key in lost:
            assert await w.store.mounts(NS, SN, key)
            await w.store.remove(NS, SN, key)


def message_labels(info: pb.Info) -> dict[str, str]:
    return dict(info.labels)


async def test_the_service_offers_all_verbs(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        service = SnapshotsService(w.store)
        call = Call({"containerd-namespace": "ns"})
        made = await service.Prepare(pb.PrepareSnapshotRequest(snapshotter=SN, key="k", labels={"a": "1"}), call)
        assert list(made.mounts[0].options) == ["rw", "rbind"]
        mounts = await service.Mounts(pb.MountsRequest(snapshotter=SN, key="k"), call)
        assert mounts.mounts == made.mounts
        await service.Commit(pb.CommitSnapshotRequest(snapshotter=SN, key="k", name="base"), call)
        view = await service.View(pb.ViewSnapshotRequest(snapshotter=SN, key="v", parent="base"), call)
        assert list(view.mounts[0].options) == ["ro", "rbind"]
        request = pb.UpdateSnapshotRequest(
            snapshotter=SN, info=pb.Info(name="base", labels={"b": "2"}), update_mask=FieldMask(paths=["labels.b"])
        )
        assert message_labels((await service.Update(request, call)).info) == {"b": "2"}
        stat = (await service.Stat(pb.StatSnapshotRequest(snapshotter=SN, key="v"), call)).info
        assert (stat.name, stat.kind, stat.parent) == ("v", pb.VIEW, "base")
        assert stat.created_at == stat.updated_at
        assert (await service.Usage(pb.UsageRequest(snapshotter=SN, key="base"), call)).inodes == 1
        await service.Remove(pb.RemoveSnapshotRequest(snapshotter=SN, key="v"), call)
        pages: Sequence[pb.ListSnapshotsResponse] = [
            page async for page in service.List(pb.ListSnapshotsRequest(snapshotter=SN), call)
        ]
        assert [[info.name for info in page.info] for page in pages] == [["base"]]
        with pytest.raises(Unimplemented, match=r"^snapshotter does not implement Cleanup method: not implemented$"):
            await service.Cleanup(pb.CleanupRequest(snapshotter=SN), call)
        with pytest.raises(InvalidArgument):
            await service.Update(pb.UpdateSnapshotRequest(snapshotter=SN), call)


async def test_lists_come_a_hundred_at_a_time_and_empty_ones_without_a_message(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        service = SnapshotsService(w.store)
        call = Call({"containerd-namespace": "ns"})
        request = pb.ListSnapshotsRequest(snapshotter=SN)
        assert [page async for page in service.List(request, call)] == []
        for number in range(101):
            await w.store.view(NS, SN, f"v{number}")
        assert [len(page.info) async for page in service.List(request, call)] == [100, 1]
