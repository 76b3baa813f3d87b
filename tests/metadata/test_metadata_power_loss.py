"""Blobs, layers, snapshots and images after a power loss at every step: each whole or absent, and none lost that a call
had answered for. `power_loss` says what is taken to be lost."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from images_world import Silent
from power_loss import Disk, watch

from orlop.content.local import LocalStore
from orlop.core.content import read_whole
from orlop.core.scope import Scope
from orlop.layers.differ import WalkingDiffer
from orlop.layers.keep import Keepers
from orlop.metadata.content import NamespacedContent
from orlop.metadata.database import Database
from orlop.metadata.extractions import remove_unfinished
from orlop.metadata.images import ImageStore
from orlop.metadata.schema import MIGRATIONS
from orlop.metadata.snapshots import NamespacedSnapshots
from orlop.mounts.mount import unmount_all
from orlop.mounts.temporary import TemporaryMounts
from orlop.snapshots import probe
from orlop.snapshots.overlayfs import OverlaySnapshotter

pytestmark = pytest.mark.root
NS, SN = Scope("ns"), "overlayfs"

# What is watched. A word is printed after each step, when a client would have been answered.
WORK = """
import asyncio, gzip, sys
from pathlib import Path
sys.path[:0] = sys.argv[2:]
from layer_world import archive
from test_metadata_power_loss import NS, SN, World, opened
from orlop.core.content import write_whole
from orlop.core.descriptor import Descriptor
from orlop.core.image import Image
from orlop.layers import media

LAYERS = {"base": archive({"d/": None, "d/one": "1", "gone": "g"}), "top": archive({"d/two": "2", ".wh.gone": ""})}

async def work(root):
    async with opened(root) as world:
        print("opened", flush=True)
        parent = ""
        for name, data in LAYERS.items():
            blob = gzip.compress(data, mtime=0)
            info = await write_whole(world.content, NS, name, blob)
            print(f"blob-{name}", flush=True)
            layer = Descriptor(media.OCI_LAYER_GZIP, info.digest, len(blob))
            mounts = await world.snapshots.prepare(NS, SN, f"make-{name}", parent)
            await world.differ.apply(NS, layer, mounts)
            await world.snapshots.commit(NS, SN, name, f"make-{name}")
            print(name, flush=True)
            parent = name
        await world.images.create(NS, Image("image", layer))
        print("image", flush=True)
        await world.snapshots.prepare(NS, SN, "k", "top")
        print("k", flush=True)
        for name in ("k", "top"):
            await world.snapshots.remove(NS, SN, name)
        print("removed", flush=True)
        await world.snapshots.cleanup(SN)

asyncio.run(work(Path(sys.argv[1])))
"""
# The same as one thing with many steps, of which nobody is told before its end.
AT_ONCE = """
import asyncio, gzip, sys
from dataclasses import replace
from pathlib import Path
sys.path[:0] = sys.argv[2:]
from layer_world import archive
from test_metadata_power_loss import NS, SN, World, opened
from orlop.core.content import write_whole
from orlop.core.descriptor import Descriptor
from orlop.core.image import Image
from orlop.core.snapshot import EXTRACTING, EXTRACTION
from orlop.layers import media

LAYERS = {"base": archive({"d/": None, "d/one": "1", "gone": "g"}), "top": archive({"d/two": "2", ".wh.gone": ""})}
STEP = replace(NS, lasts=False)

async def work(root):
    async with opened(root) as world:
        print("opened", flush=True)
        parent = ""
        for name, data in LAYERS.items():
            blob = gzip.compress(data, mtime=0)
            info = await write_whole(world.content, STEP, name, blob)
            layer = Descriptor(media.OCI_LAYER_GZIP, info.digest, len(blob))
            key = EXTRACTION + name
            mounts = await world.snapshots.prepare(STEP, SN, key, parent, {EXTRACTING: "true"})
            await world.differ.apply(STEP, layer, mounts)
            await world.snapshots.commit(STEP, SN, name, key)
            parent = name
        await world.images.create(NS, Image("image", layer))
        await world.db.settle()
        print("blob-base blob-top base top image", flush=True)

asyncio.run(work(Path(sys.argv[1])))
"""
FILES = {"base": {"d", "d/one", "gone"}, "top": {"d", "d/one", "d/two"}}


class World:
    def __init__(self, root: Path) -> None:
        self.db = Database(root / "meta.db", MIGRATIONS)
        self.backend = LocalStore(root)
        self.content = NamespacedContent(self.db, self.backend, Silent(), "shared")
        self.images = ImageStore(self.db, Silent())
        self.driver = OverlaySnapshotter(root / "driver", keeps_layers=True)
        self.snapshots = NamespacedSnapshots(self.db, {SN: self.driver}, Silent())
        self.temporary = TemporaryMounts(root.parent / "mounts")
        self.differ = WalkingDiffer(self.content, self.temporary, keepers=Keepers([self.driver]))


@asynccontextmanager
async def opened(root: Path) -> AsyncIterator[World]:
    world = World(root)
    try:
        yield world
    finally:
        await world.driver.close()
        world.backend.close()
        world.db.close()


@pytest.fixture(autouse=True)
def _possible(tmp_path: Path) -> Iterator[None]:
    if shutil.which("strace") is None or subprocess.run(["strace", "-o", "/dev/null", "true"]).returncode:
        pytest.skip("needs strace, and to be allowed to trace")
    if refusal := probe.refusal(tmp_path):
        pytest.skip(refusal)
    yield
    unmount_all(tmp_path)


async def check(root: Path, said: set[str]) -> None:
    async with opened(root) as world:
        await remove_unfinished(world.db)  # as every start does
        for info in await world.content.list(NS):
            data = await read_whole(world.content, NS, info.digest, 1 << 20)
            assert len(data) == info.size
        blobs = len(await world.content.list(NS))
        assert blobs >= sum(word.startswith("blob-") for word in said)
        assert [image.name for image in await world.images.list(NS)] == ["image"] or "image" not in said
        names = {info.name for info in await world.snapshots.list(NS, SN)}
        assert names >= (said & {"base"})
        if "removed" not in said and "k" not in said:
            assert names >= (said & {"top"})
        for name in names & FILES.keys():
            with world.temporary.mounted(await world.snapshots.view(NS, SN, f"look-{name}", name)) as seen:
                shown = {os.path.relpath(os.path.join(at, one), seen) for at, d, f in os.walk(seen) for one in d + f}
                assert shown == FILES[name]
                assert Path(seen, "d/one").read_text() == "1"
        await world.snapshots.cleanup(SN)  # as every start does: it ends commits that were cut off
        for name in ("look-top", "look-base", "k", "make-top", "make-base", "top", "base"):
            if name in {info.name for info in await world.snapshots.list(NS, SN)}:
                await world.snapshots.remove(NS, SN, name)
        await world.snapshots.cleanup(SN)
        assert os.listdir(root / "driver/layers") == []
        assert os.listdir(root / "driver/snapshots") == []


@pytest.fixture
def quick(tmp_path: Path) -> Iterator[Path]:
    """A file system in memory, whose syncs cost nothing."""
    place = tmp_path / "quick"
    place.mkdir()
    with tempfile.NamedTemporaryFile(prefix="orlop-power-", dir="/dev/shm") as image:
        image.truncate(256 << 20)
        subprocess.run(["mkfs.ext4", "-q", image.name], check=True)
        subprocess.run(["mount", "-o", "loop", image.name, place], check=True)
        yield place
        unmount_all(tmp_path)


@pytest.mark.parametrize(("work", "least"), [(WORK, 60), (AT_ONCE, 30)], ids=["steps", "at-once"])
async def test_each_thing_is_whole_or_absent_after_a_power_loss(
    tmp_path: Path, quick: Path, work: str, least: int
) -> None:
    root, log = tmp_path / "watched/root", tmp_path / "log"
    root.mkdir(parents=True)
    here = Path(__file__).parent
    tests, project = here.parent, here.parent.parent
    places = [str(path) for path in (here, tests / "support", tests / "snapshots", project / "examples")]
    done = await asyncio.to_thread(watch, [sys.executable, "-c", work, str(root), *places], log)
    assert done.returncode == 0, done.stderr
    assert os.listdir(root / "driver/snapshots") != []
    disk = Disk(root)
    seen: set[object] = set()
    for number, said in enumerate(disk.moments(log)):
        for names in (False, True):
            key = disk.key(names=names), said
            if "opened" not in said or key in seen:
                continue
            seen.add(key)
            place = quick / f"{number}-{names}"
            place.mkdir()
            disk.write(place / "root", names=names)
            try:
                await check(place / "root", set(said.split()))
            except BaseException as error:
                error.add_note(f"lost at moment {number}, names {'kept' if names else 'lost'}, after {said.split()}")
                raise
            unmount_all(place)
            shutil.rmtree(place)
    assert len(seen) > least
