"""Snapshots by namespace after a kill -9 at every step between two durable ones."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import apsw
import pytest
from google.protobuf.message import Message

from orlop import faults
from orlop.core.scope import Scope
from orlop.core.snapshot import Kind
from orlop.metadata.database import Database
from orlop.metadata.schema import MIGRATIONS
from orlop.metadata.snapshots import NamespacedSnapshots
from orlop.mounts.mount import unmount_all
from orlop.mounts.temporary import TemporaryMounts
from orlop.snapshots.overlayfs import OverlaySnapshotter

pytestmark = pytest.mark.root
NS = Scope("ns")
SN = "overlayfs"

# What the child does, and the names that are there after each step.
STEPS: list[tuple[list[str], set[str]]] = [
    (["prepare", "make-base", ""], {"make-base"}),
    (["write", "make-base", "one"], {"make-base"}),
    (["commit", "base", "make-base"], {"base"}),
    (["prepare", "make-top", "base"], {"base", "make-top"}),
    (["write", "make-top", "two"], {"base", "make-top"}),
    (["commit", "top", "make-top"], {"base", "top"}),
    (["remove", "top"], {"base"}),
    (["cleanup"], {"base"}),
]
ALL = [step for step, _ in STEPS]
MOST = 12
"""More often than this the steps come past no point."""
FILES = {
    "make-base": [set(), {"one"}],
    "base": [{"one"}],
    "make-top": [{"one"}, {"one", "two"}],
    "top": [{"one", "two"}],
}

# Does steps in children, each killed at a point one passing later than the child before it, until one is not killed.
# A line is printed for each step that was done: the number of the child.
WORK = """
import asyncio, itertools, json, os, signal, sys
from pathlib import Path
from orlop import faults
from orlop.core.scope import Scope
from orlop.metadata.database import Database
from orlop.metadata.schema import MIGRATIONS
from orlop.metadata.snapshots import NamespacedSnapshots
from orlop.snapshots.overlayfs import OverlaySnapshotter

class Deaf:
    def publish(self, namespace, topic, payload): pass

async def work(root, steps, passed):
    ns, sn = Scope("ns"), "overlayfs"
    db = Database(root / "meta.db", MIGRATIONS, sync=False)
    store = NamespacedSnapshots(db, {sn: OverlaySnapshotter(root / "driver")}, Deaf())
    async def write(key, name):
        (mount,) = await store.mounts(ns, sn, key)
        uppers = [option.removeprefix("upperdir=") for option in mount.options if option.startswith("upperdir=")]
        Path(uppers[0] if uppers else mount.source, name).touch()
    for verb, *arguments in steps:
        match verb:
            case "write": await write(*arguments)
            case "cleanup": await store.cleanup(sn)
            case _: await getattr(store, verb)(ns, sn, *arguments)
        print(passed, flush=True)

point, steps, *places = sys.argv[1:]
for passed, place in enumerate(places):
    child = os.fork()
    if not child:
        Path(place).mkdir(exist_ok=True)
        faults.arm(point, f"{passed}*off->kill" if passed else "kill")
        asyncio.run(work(Path(place), json.loads(steps), passed))
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    if status != signal.SIGKILL:
        sys.exit(0 if status == 0 else "a child failed")
"""
POINTS = [
    "metadata.commit",
    "metadata.committed",
    "metadata.migrated",
    "metadata.snapshots.committed",
    "metadata.snapshots.made",
    "snapshots.cleanup.removed",
    "snapshots.commit.measured",
    "snapshots.commit.recorded",
    "snapshots.create.committed",
    "snapshots.create.filled",
    "snapshots.create.renamed",
    "snapshots.create.synced",
    "snapshots.layers.forgotten",
    "snapshots.layers.unmounted",
    "snapshots.remove.recorded",
]


@pytest.fixture
def temporary(tmp_path: Path) -> Iterator[TemporaryMounts]:
    made = TemporaryMounts(tmp_path / "mounts")
    yield made
    made.close()
    unmount_all(tmp_path)


async def deaths(point: str, steps: Sequence[list[str]], *places: Path) -> list[tuple[Path, int]]:
    """Does `steps` in each place, in a process that is killed when it comes past `point` for the first time in the
    first place, the second time in the second. Returns the places where it was, and how many steps were done there.
    """
    command = [sys.executable, "-c", WORK, point, json.dumps(steps), *map(str, places)]
    ended = await asyncio.to_thread(subprocess.run, command, stdout=subprocess.PIPE, text=True, check=True)
    done = Counter(int(line) for line in ended.stdout.splitlines())
    killed = list(itertools.takewhile(lambda item: done[item[0]] < len(steps), enumerate(places)))
    assert killed, f"nothing comes past {point}"
    return [(place, done[passed]) for passed, place in killed]


class Deaf:
    """Hears no events."""

    def publish(self, namespace: str, topic: str, payload: Message) -> None:
        pass


@dataclass
class World:
    root: Path
    db: Database
    driver: OverlaySnapshotter
    store: NamespacedSnapshots

    async def names(self) -> set[str]:
        return {info.name for info in await self.store.list(NS, SN)}

    def records(self) -> dict[str, str]:
        """The driver's name for each record, by name."""

        def query(connection: apsw.Connection) -> dict[str, str]:
            rows = connection.execute("SELECT name, backend FROM snapshots")
            return {str(name): str(backend) for name, backend in rows}

        return self.db.read(query)

    def directories(self) -> int:
        return len(os.listdir(self.root / "driver/snapshots"))

    async def do_all(self) -> None:
        """The steps, but for what is written."""
        for verb, *arguments in ALL:
            if verb == "cleanup":
                await self.store.cleanup(SN)
            elif verb != "write":
                await getattr(self.store, verb)(NS, SN, *arguments)

    async def check_clean(self) -> None:
        """After a cleanup: records, the driver's snapshots and directories are the same ones."""
        records = self.records()
        assert records.keys() == await self.names()
        assert {info.name for info in await self.driver.walk()} == set(records.values())
        assert self.directories() == len(records)


@asynccontextmanager
async def reopened(root: Path) -> AsyncIterator[World]:
    db = Database(root / "meta.db", MIGRATIONS, sync=False)
    driver = OverlaySnapshotter(root / "driver")
    try:
        yield World(root, db, driver, NamespacedSnapshots(db, {SN: driver}, Deaf()))
    finally:
        await driver.close()
        db.close()


async def check_whole(world: World, temporary: TemporaryMounts, name: str) -> None:
    info = await world.store.stat(NS, SN, name)
    await world.store.usage(NS, SN, name)
    if info.kind is Kind.ACTIVE:
        mounts = await world.store.mounts(NS, SN, name)
    else:
        assert info.kind is Kind.COMMITTED
        mounts = await world.store.view(NS, SN, "look", name)
    with temporary.mounted(mounts) as root:
        assert set(os.listdir(root)) in FILES[name]
    if info.kind is Kind.COMMITTED:
        await world.store.remove(NS, SN, "look")


@pytest.mark.parametrize("point", POINTS)
async def test_a_kill_at_any_step_leaves_each_name_whole_or_absent(
    tmp_path: Path, temporary: TemporaryMounts, point: str
) -> None:
    killed = await deaths(point, ALL, *(tmp_path / str(number) for number in range(MOST + 1)))
    assert len(killed) <= MOST
    for place, done in killed:
        before = STEPS[done - 1][1] if done else set()
        after = STEPS[done][1]
        # A commit that nobody was told of may have lost the key and not made the name.
        possible = (before, after, before & after)
        async with reopened(place) as world:
            assert await world.names() in possible
            await world.store.cleanup(SN)
            left = await world.names()
            assert left in possible
            await world.check_clean()
            for name in left:
                await check_whole(world, temporary, name)
            for name in sorted(left, key="base".__eq__):
                await world.store.remove(NS, SN, name)
            await world.store.cleanup(SN)
            assert (world.records(), world.directories()) == ({}, 0)
            await world.do_all()


async def test_a_commit_killed_before_its_record_is_finished_by_the_same_call(
    tmp_path: Path, temporary: TemporaryMounts
) -> None:
    for place, done in await deaths("metadata.snapshots.committed", ALL, tmp_path / "first", tmp_path / "second"):
        _, name, key = STEPS[done][0]
        async with reopened(place) as world:
            await world.store.commit(NS, SN, name, key)
            await check_whole(world, temporary, name)
            await world.store.cleanup(SN)
            assert await world.names() == STEPS[done][1]
            await world.check_clean()


@pytest.mark.parametrize("point", ["metadata.commit", "metadata.committed", "snapshots.remove.recorded"])
async def test_a_cleanup_that_is_killed_too_is_made_good_by_the_next(tmp_path: Path, point: str) -> None:
    place = tmp_path / "second"
    assert (place, 5) in await deaths("metadata.snapshots.committed", ALL, tmp_path / "first", place)
    assert await deaths(point, [["cleanup"]], place) == [(place, 0)]
    async with reopened(place) as world:
        await world.store.cleanup(SN)
        assert await world.names() == {"base"}
        await world.check_clean()


def test_the_crash_test_of_the_store_knows_every_fault_point(tmp_path: Path) -> None:
    async def all_of_it() -> None:
        async with reopened(tmp_path) as world:
            await world.do_all()

    faults.arm("none", "off")
    try:
        asyncio.run(all_of_it())
        assert {name for name in faults.seen if name.startswith(("snapshots.", "metadata."))} == set(POINTS)
    finally:
        faults.disarm()
