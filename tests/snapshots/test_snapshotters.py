"""What is each driver's own, and what it does when it is interrupted."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conformance import bind_options
from subjects import KINDS

from orlop import faults
from orlop.core.mount import Mount
from orlop.errors import NotFound, Unknown
from orlop.mounts.mount import mount_all, unmount_all
from orlop.snapshots import trees
from orlop.snapshots.directories import DirectorySnapshotter
from orlop.snapshots.native import NativeSnapshotter
from orlop.snapshots.overlayfs import UPPERDIR_LABEL, OverlaySnapshotter

pytestmark = pytest.mark.root


@pytest.fixture(params=sorted(KINDS))
def driver(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[DirectorySnapshotter]:
    made = KINDS[request.param](tmp_path / "root")
    yield made
    made._records.close()


def names(driver: DirectorySnapshotter) -> set[str]:
    return set(os.listdir(driver.root / "snapshots"))


async def test_overlay_mounts_have_their_options_in_containerds_order(tmp_path: Path) -> None:
    driver = OverlaySnapshotter(tmp_path, mount_options=["volatile"])
    tail = ("volatile", *(["index=off"] if Path("/sys/module/overlay/parameters/index").exists() else []))
    place = f"{tmp_path}/snapshots"
    assert await driver.prepare("k1") == [Mount("bind", f"{place}/1/fs", ("rw", "rbind"))]
    assert await driver.view("v0") == [Mount("bind", f"{place}/2/fs", ("ro", "rbind"))]
    await driver.commit("a", "k1")
    assert await driver.view("v1", "a") == [Mount("bind", f"{place}/1/fs", ("ro", "rbind"))]
    upper = (f"workdir={place}/4/work", f"upperdir={place}/4/fs")
    assert await driver.prepare("k2", "a") == [Mount("overlay", "overlay", (*upper, f"lowerdir={place}/1/fs", *tail))]
    await driver.commit("b", "k2")
    lowers = f"lowerdir={place}/4/fs:{place}/1/fs"
    assert await driver.view("v2", "b") == [Mount("overlay", "overlay", (lowers, *tail))]
    await driver.close()


async def test_native_mounts_are_one_bind_with_rbind_first(tmp_path: Path) -> None:
    driver = NativeSnapshotter(tmp_path)
    assert bind_options(await driver.prepare("k")) == ("rbind", "rw")
    await driver.commit("a", "k")
    assert await driver.view("v", "a") == [Mount("bind", f"{tmp_path}/snapshots/1", ("rbind", "ro"))]
    await driver.close()


async def test_modes_let_nobody_else_in(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    driver = OverlaySnapshotter(tmp_path)
    await driver.prepare("k")
    modes = {"": 0o700, "snapshots": 0o700, "metadata.db": 0o600, "snapshots/1/fs": 0o755, "snapshots/1/work": 0o711}
    assert {name: stat.S_IMODE((tmp_path / name).stat().st_mode) for name in modes} == modes
    await driver.close()


async def test_the_root_directory_gets_its_parents_or_the_mapped_owner(tmp_path: Path) -> None:
    driver = OverlaySnapshotter(tmp_path)
    mapping = {"containerd.io/snapshot/uidmapping": "0:1000:10", "containerd.io/snapshot/gidmapping": "5:1:2,0:2000:1"}
    await driver.prepare("k", "", mapping)
    await driver.commit("a", "k")
    await driver.prepare("child", "a")
    for id in (1, 2):
        status = (tmp_path / f"snapshots/{id}/fs").stat()
        assert (status.st_uid, status.st_gid) == (1000, 2000)
    with pytest.raises(Unknown, match="failed to unmarshal snapshot ID mapped labels: input value bad unparsable: "):
        await driver.prepare("x", "", {**mapping, "containerd.io/snapshot/uidmapping": "bad"})
    assert names(driver) == {"1", "2"}
    await driver.close()


async def test_the_upper_directory_shows_as_a_label_where_configured(tmp_path: Path) -> None:
    driver = OverlaySnapshotter(tmp_path, upperdir_label=True)
    await driver.prepare("k")
    assert (await driver.stat("k")).labels == {UPPERDIR_LABEL: f"{tmp_path}/snapshots/1/fs"}
    assert (await driver.walk())[0].labels == (await driver.stat("k")).labels
    await driver.close()


async def test_sync_remove_frees_the_disk_at_once(tmp_path: Path) -> None:
    driver = OverlaySnapshotter(tmp_path, sync_remove=True)
    await driver.prepare("k")
    await driver.remove("k")
    assert names(driver) == set()
    await driver.close()


async def test_removal_never_goes_through_a_mount_and_leaves_it_for_later(
    driver: DirectorySnapshotter, tmp_path: Path
) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").touch()
    await driver.prepare("k")
    await driver.prepare("other")
    inside = tmp_path / "root/snapshots/1/inside"
    inside.mkdir()
    mount_all([Mount("bind", str(precious), ("rbind", "rw"))], inside)
    await driver.remove("k")
    await driver.remove("other")
    await driver.cleanup()
    assert (precious / "file").exists()
    assert names(driver) == {"1"}
    unmount_all(tmp_path)
    await driver.cleanup()
    assert names(driver) == set()


def test_a_tree_deeper_than_a_path_can_say_is_measured_and_removed(tmp_path: Path) -> None:
    top = tmp_path / "tree"
    top.mkdir()
    fd = os.open(top, os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("directory", dir_fd=fd)
        inner = os.open("directory", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = inner
    os.close(fd)
    assert trees.usage(str(top)).inodes >= 256
    trees.remove(str(top))
    assert list(tmp_path.iterdir()) == []


async def test_concurrent_calls_make_one_of_each_name(driver: DirectorySnapshotter) -> None:
    results = await asyncio.gather(*(driver.prepare("same") for _ in range(8)), return_exceptions=True)
    assert sum(isinstance(result, list) for result in results) == 1
    await driver.cleanup()
    assert len(names(driver)) == 1


WORK = """
import asyncio, sys
from pathlib import Path
from orlop.snapshots.native import NativeSnapshotter
from orlop.snapshots.overlayfs import OverlaySnapshotter
from orlop import faults

async def main():
    kind = {"overlayfs": OverlaySnapshotter, "native": NativeSnapshotter}[sys.argv[1]]
    driver = kind(Path(sys.argv[2]))
    await driver.prepare("base-key")
    await driver.commit("base", "base-key")
    faults.arm(sys.argv[3], "kill")
    await driver.prepare("key", "base")
    await driver.commit("name", "key")
    await driver.remove("name")
    await driver.cleanup()

asyncio.run(main())
"""
POINTS = [
    "snapshots.create.filled",
    "snapshots.create.renamed",
    "snapshots.create.synced",
    "snapshots.create.committed",
    "snapshots.commit.measured",
    "snapshots.commit.recorded",
    "snapshots.remove.recorded",
    "snapshots.cleanup.removed",
]


@pytest.mark.parametrize("kind", ["native", "overlayfs"])
@pytest.mark.parametrize("point", POINTS)
async def test_a_crash_at_any_step_leaves_each_snapshot_whole_or_absent(tmp_path: Path, kind: str, point: str) -> None:
    root = tmp_path / "root"
    died = await asyncio.to_thread(subprocess.run, [sys.executable, "-c", WORK, kind, str(root), point], check=False)
    assert died.returncode == -signal.SIGKILL
    driver = KINDS[kind](root)
    await driver.cleanup()
    records = {record.info.name: record for record in driver._records.all()}
    assert names(driver) == {str(record.id) for record in records.values()}
    assert "base" in records
    assert not {"key", "name"} <= set(records)
    for name in set(records) - {"base"}:
        await driver.remove(name)
    await driver.prepare("key", "base")
    await driver.close()


def test_the_crash_test_knows_every_fault_point(tmp_path: Path) -> None:
    async def all_of_it() -> None:
        driver = OverlaySnapshotter(tmp_path)
        await driver.prepare("k")
        await driver.commit("n", "k")
        await driver.remove("n")
        await driver.cleanup()
        await driver.close()

    faults.arm("none", "off")
    try:
        asyncio.run(all_of_it())
        assert {name for name in faults.seen if name.startswith("snapshots.")} == {
            *POINTS,
            # Of these, and of what else happens to layers, test_snapshots_layers_crash has more to say.
            "snapshots.layers.forgotten",
            "snapshots.layers.unmounted",
        }
    finally:
        faults.disarm()


async def test_a_failing_step_undoes_what_was_made(driver: DirectorySnapshotter) -> None:
    faults.arm("snapshots.create.synced", "1*error(EIO)")
    try:
        with pytest.raises(OSError, match="fault"):
            await driver.prepare("k")
    finally:
        faults.disarm()
    assert names(driver) == set()
    with pytest.raises(NotFound):
        await driver.stat("k")
    await driver.prepare("k")
