"""The mount manager: records, mounts and what is collected."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from orlop import faults
from orlop.core.activation import MountHandler
from orlop.core.container import Container, Runtime
from orlop.core.event import Silent
from orlop.core.mount import Mount
from orlop.core.scope import Scope
from orlop.errors import AlreadyExists, NotFound, Unimplemented, Unknown
from orlop.metadata.activations import Activations
from orlop.metadata.containers import ContainerStore
from orlop.metadata.database import Database
from orlop.metadata.gc.collector import Collector
from orlop.metadata.leases import Leases
from orlop.metadata.schema import MIGRATIONS
from orlop.mounts import mountinfo
from orlop.mounts.handlers import ErofsHandler
from orlop.mounts.mount import unmount_all

pytestmark = pytest.mark.root
NS = Scope("ns")


class Files:
    snapshotters: tuple[str, ...] = ()

    async def cleanup(self, snapshotter: str = "") -> None: ...


@dataclass
class World:
    root: Path
    db: Database
    manager: Activations

    def again(self) -> Activations:
        handlers: dict[str, MountHandler] = {"erofs": ErofsHandler()}
        self.manager = Activations(self.db, self.root / "state", handlers, [str(self.root)])
        return self.manager

    async def collect(self) -> None:
        await Collector(self.db, Silent(), Files(), Files(), others=[self.manager.cleanup]).collect()

    @property
    def source(self) -> Mount:
        return Mount("bind", str(self.root / "source"), ("rbind",))

    @property
    def mounted(self) -> list[str]:
        below = os.fsencode(self.root)
        return [os.fsdecode(entry.point) for entry in mountinfo.read() if entry.lies_below(below)]

    @property
    def directories(self) -> list[str]:
        return os.listdir(self.root / "state" / "t")


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    (tmp_path / "source").mkdir()
    db = Database(tmp_path / "meta.db", MIGRATIONS)
    made = World(tmp_path, db, Activations(db, tmp_path / "state", {}, []))
    made.again()
    yield made
    unmount_all(tmp_path)
    db.close()


async def test_an_activation_is_listed_until_it_is_deactivated(world: World) -> None:
    done = await world.manager.activate(NS, "a", [world.source], temporary=True, labels={"k": "v"})
    assert world.mounted == [done.active[0].point]
    assert await world.manager.info(NS, "a") == done
    assert await world.manager.list(NS) == [done]
    assert await world.manager.list(Scope("other")) == []
    with pytest.raises(AlreadyExists, match='mount "a"'):
        await world.manager.activate(NS, "a", [world.source], temporary=True)
    await world.manager.deactivate(NS, "a")
    assert (world.mounted, world.directories) == ([], [])
    with pytest.raises(NotFound, match=r'^mount "a" not found$'):
        await world.manager.info(NS, "a")
    with pytest.raises(NotFound, match='missing mount "a" bucket'):
        await world.manager.deactivate(NS, "a")


async def test_what_is_refused_leaves_no_record(world: World) -> None:
    with pytest.raises(Unimplemented, match=r"^not implemented$"):
        await world.manager.activate(NS, "a", [world.source])
    with pytest.raises(Unknown, match="bucket name required"):
        await world.manager.activate(NS, "", [world.source], temporary=True)
    with pytest.raises(Unknown, match="mount failed"):
        await world.manager.activate(NS, "a", [Mount("bind", f"{world.root}/none", ("rbind",))], temporary=True)
    assert (world.mounted, world.directories) == ([], [])
    await world.manager.activate(NS, "a", [world.source], temporary=True)


async def test_it_survives_a_restart_and_not_a_reboot(world: World) -> None:
    kept = await world.manager.activate(NS, "kept", [world.source], temporary=True)
    lost = await world.manager.activate(NS, "lost", [world.source], temporary=True)
    unmount_all(lost.active[0].point)  # as a reboot does
    manager = world.again()
    await manager.recover()
    assert await manager.list(NS) == [kept]
    assert world.mounted == [kept.active[0].point]


@pytest.mark.parametrize("point", ["mounts.activate.recorded", "mounts.activate.mounted"])
async def test_what_was_not_completed_is_gone_after_a_restart(world: World, point: str) -> None:
    async def dead(*_: object) -> None: ...

    world.manager._undo = dead  # type: ignore[method-assign]  # nobody tidies after a kill
    faults.arm(point, "error(EIO)")
    try:
        with pytest.raises(OSError, match="Input/output"):
            await world.manager.activate(NS, "a", [world.source], temporary=True)
    finally:
        faults.disarm()
    manager = world.again()
    await manager.recover()
    assert (world.mounted, world.directories, await manager.list(NS)) == ([], [], [])
    await manager.activate(NS, "a", [world.source], temporary=True)


async def test_collection_keeps_what_a_lease_or_a_container_holds(world: World) -> None:
    leases, containers = Leases(world.db), ContainerStore(world.db, Silent())
    await leases.create(NS, "l")
    await containers.create(NS, Container("c", runtime=Runtime("io.containerd.runc.v2")))
    await world.manager.activate(Scope("ns", "l"), "leased", [world.source], temporary=True)
    by_container = {"containerd.io/gc.bref.container": "c"}
    await world.manager.activate(NS, "contained", [world.source], temporary=True, labels=by_container)
    await world.manager.activate(NS, "alone", [world.source], temporary=True)
    await world.collect()
    assert [one.name for one in await world.manager.list(NS)] == ["contained", "leased"]
    assert len(world.mounted) == 2
    await leases.delete(NS, "l")
    await containers.delete(NS, "c")
    await world.collect()
    assert (world.mounted, await world.manager.list(NS)) == ([], [])
