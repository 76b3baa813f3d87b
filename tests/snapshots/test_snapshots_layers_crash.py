"""Kept layers after a kill -9 at every step between two durable ones."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from layer_world import archive, layered, mounted_below

from orlop.mounts.mount import unmount_all
from orlop.mounts.temporary import TemporaryMounts
from orlop.snapshots import probe

pytestmark = pytest.mark.root

# Does everything that a layer goes through, and is killed at the point that it is given.
WORK = """
import asyncio, sys
from pathlib import Path
from orlop import faults
from orlop.mounts.temporary import TemporaryMounts
sys.path.insert(0, sys.argv[3])
from layer_world import archive, layered

async def work(root):
    with layered(root, TemporaryMounts(root.parent / "mounts")) as world:
        await world.layer("base", "", archive({"one": "1"}))
        print("base", flush=True)
        await world.layer("top", "base", archive({"two": "2"}))
        print("top", flush=True)
        await world.driver.prepare("k", "top")
        print("k", flush=True)
        (root / "driver/layers/2/tar").unlink()
        await world.apply(await world.driver.prepare("mend"), archive({"two": "2"}))
        await world.driver.remove("mend")
        print("mended", flush=True)
        for key in ("k", "top"):
            await world.driver.remove(key)
        print("removed", flush=True)
        await world.driver.cleanup()
        print("cleaned", flush=True)

faults.arm(sys.argv[2], sys.argv[4])
asyncio.run(work(Path(sys.argv[1])))
"""
POINTS = [
    "snapshots.layers.forgotten",
    "snapshots.layers.kept",
    "snapshots.layers.mounted",
    "snapshots.layers.placed",
    "snapshots.layers.removed",
    "snapshots.layers.renamed",
    "snapshots.layers.replaced",
    "snapshots.layers.synced",
    "snapshots.layers.unmounted",
]


@pytest.fixture(autouse=True)
def _clean(tmp_path: Path) -> Iterator[None]:
    if refusal := probe.refusal(tmp_path):
        pytest.skip(refusal)
    yield
    unmount_all(tmp_path)


def killed(root: Path, point: str, passed: int) -> list[str] | None:
    """What was done before the kill; None where the work came to its end."""
    actions = f"{passed}*off->kill" if passed else "kill"
    command = [sys.executable, "-c", WORK, str(root), point, str(Path(__file__).parent), actions]
    ended = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    assert ended.returncode in (0, -signal.SIGKILL)
    return None if ended.returncode == 0 else ended.stdout.split()


@pytest.mark.parametrize("point", POINTS)
async def test_a_kill_at_any_step_leaves_each_layer_whole_or_absent(
    tmp_path: Path, temporary: TemporaryMounts, point: str
) -> None:
    for passed in range(8):
        root = tmp_path / str(passed)
        done = await asyncio.to_thread(killed, root, point, passed)
        if done is None:
            assert passed, f"nothing comes past {point}"
            return
        with layered(root, temporary) as world:
            names = {info.name for info in await world.driver.walk()}
            if "base" in done:
                assert "base" in names
            if "top" in done and "mended" not in done:
                assert "top" in names
            for name, files in (("base", {"one"}), ("top", {"one", "two"})):
                if name not in names:
                    continue
                if name == "top" and "k" in done and not (root / "driver/layers/2/tar").exists():
                    # Killed before it was mended, as the work had removed it: it is now.
                    await world.apply(await world.driver.prepare("mend again"), archive({"two": "2"}))
                    await world.driver.remove("mend again")
                with temporary.mounted(await world.driver.view("look", name)) as seen:
                    assert set(os.listdir(seen)) == files
                await world.driver.remove("look")
            for name in ("mend", "k", "make-top", "make-base", "top", "base"):
                if name in {info.name for info in await world.driver.walk()}:
                    await world.driver.remove(name)
            await world.driver.cleanup()
            assert (world.kept, world.mounted) == ([], [])
            await world.layer("base", "", archive({"one": "1"}))
            with temporary.mounted(await world.driver.view("look", "base")) as seen:
                assert os.listdir(seen) == ["one"]
            for name in ("look", "base"):
                await world.driver.remove(name)
            await world.driver.cleanup()
            assert mounted_below(root) == []
    raise AssertionError(f"{point} is passed without end")
