"""Merged layers after kills and repairs, and layers on a disk that is really full. The limits are small ones here."""

from __future__ import annotations

import asyncio
import gzip
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from layer_world import SCOPE, Layered, archive, layered

from orlop.errors import ResourceExhausted
from orlop.mounts.mount import unmount_all
from orlop.mounts.temporary import TemporaryMounts
from orlop.snapshots import merged_layers, overlayfs, probe

pytestmark = pytest.mark.root

LAYERS = [archive({f"f{number}": str(number)}) for number in range(4)]
NAMES = {f"f{number}" for number in range(4)}

# Makes a chain that is merged when it is mounted, and lets it go; killed at the point that it is given.
WORK = """
import asyncio, sys
from pathlib import Path
from orlop import faults
from orlop.mounts.temporary import TemporaryMounts
from orlop.snapshots import merged_layers, overlayfs
sys.path.insert(0, sys.argv[3])
from layer_world import layered
from test_snapshots_merged_faults import chain
merged_layers.LOWERS_LIMIT, overlayfs.STEP = 3, 2

async def work(root):
    with layered(root, TemporaryMounts(root.parent / "mounts")) as world:
        await chain(world)
        faults.arm(sys.argv[2], "kill")
        await world.driver.prepare("k", "l3")
        for key in ("k", "l3", "l2", "l1", "l0"):
            await world.driver.remove(key)
        await world.driver.cleanup()

asyncio.run(work(Path(sys.argv[1])))
"""


async def chain(world: Layered) -> None:
    for number, data in enumerate(LAYERS):
        await world.layer(f"l{number}", f"l{number - 1}" if number else "", data)


@pytest.fixture(autouse=True)
def _small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    if refusal := probe.refusal(tmp_path):
        pytest.skip(refusal)
    monkeypatch.setattr(merged_layers, "LOWERS_LIMIT", 3)
    monkeypatch.setattr(overlayfs, "STEP", 2)
    yield
    unmount_all(tmp_path)


@pytest.mark.parametrize("point", ["synced", "renamed", "removed"])
async def test_a_kill_leaves_what_is_merged_whole_or_absent(
    tmp_path: Path, temporary: TemporaryMounts, point: str
) -> None:
    root = tmp_path / "world"
    command = [sys.executable, "-c", WORK, str(root), f"snapshots.merged.{point}", str(Path(__file__).parent)]
    ended = await asyncio.to_thread(subprocess.run, command)
    assert ended.returncode == -signal.SIGKILL
    with layered(root, temporary) as world:
        if point != "removed":
            with temporary.mounted(await world.driver.view("look", "l3")) as seen:
                assert set(os.listdir(seen)) == NAMES
            for info in reversed(await world.driver.walk()):
                if info.name in {"look", "k"}:
                    await world.driver.remove(info.name)
            for number in reversed(range(4)):
                await world.driver.remove(f"l{number}")
        await world.driver.cleanup()
        assert not os.listdir(root / "driver/merged")
        assert world.kept == []


async def test_a_layer_that_is_mended_is_merged_again(tmp_path: Path, temporary: TemporaryMounts) -> None:
    with layered(tmp_path / "world", temporary) as world:
        await chain(world)
        await world.driver.prepare("k", "l3")
        (merged,) = (world.root / "driver/merged").iterdir()
        (world.root / "driver/layers/1/tar").unlink()
        await world.apply(await world.driver.prepare("mend"), LAYERS[0])
        assert not merged.exists()
        with temporary.mounted(await world.driver.mounts("k")) as seen:
            assert merged.exists()
            assert Path(seen, "f0").read_text() == "0"
        await world.driver.close()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small file system, of a file."""
    image, root = tmp_path / "disk", tmp_path / "full"
    root.mkdir()
    with image.open("wb") as file:
        file.truncate(24 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", image], check=True)
    subprocess.run(["mount", "-o", "loop", image, root], check=True)
    yield root
    unmount_all(root)


async def test_a_disk_that_is_full_refuses_layers_until_there_is_room(disk: Path, temporary: TemporaryMounts) -> None:
    with layered(disk / "world", temporary) as world:
        await chain(world)
        kept = world.kept
        mounts = await world.driver.prepare("big", "l1")
        descriptor = world.files.put(gzip.compress(archive({"big": "x" * (2 << 20)})))
        filler = fill(disk)
        with pytest.raises(ResourceExhausted, match="no space left on device"):
            await world.differ.apply(SCOPE, descriptor, mounts)
        with pytest.raises(ResourceExhausted, match="no space left on device"):
            await world.driver.prepare("k", "l3")
        assert world.kept == kept
        assert not os.listdir(disk / "world/driver/merged")
        filler.unlink()
        await world.differ.apply(SCOPE, descriptor, mounts)
        with temporary.mounted(await world.driver.prepare("k", "l3")) as seen:
            assert set(os.listdir(seen)) == NAMES
        await world.driver.close()


def fill(disk: Path) -> Path:
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (1 << 20, 4096):
            try:
                while file.write(bytes(size)):
                    pass
            except OSError:
                continue
    return filler
