"""Chains of kept layers that are longer than an overlay takes."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
from layer_world import Layered, archive

from orlop import faults
from orlop.core.layer import Traits
from orlop.core.mount import Mount
from orlop.core.snapshot import Kind
from orlop.errors import NotFound, ResourceExhausted
from orlop.layers.index import index_layer
from orlop.mounts.options import split_lowers
from orlop.mounts.temporary import TemporaryMounts
from orlop.snapshots.merged_layers import LOWERS_LIMIT, STEP, fits

pytestmark = pytest.mark.root
COUNT = 520


async def stack(world: Layered, count: int) -> str:
    """Committed snapshots of `count` layers, l0 at the bottom: each adds a file and takes one away.

    Made as a pull makes them, which gives each its parent when it is committed: nothing is mounted.
    """
    parent = ""
    with world.driver._records.transaction():
        for number in range(count):
            await one_layer(world, number, parent)
            parent = f"l{number}"
    return parent


async def one_layer(world: Layered, number: int, parent: str) -> None:
    driver = world.driver
    taken = {f".wh.f{number - 1}": ""} if number % 2 else {}
    data = archive({f"f{number}": str(number), "d/": None, f"d/{number % 100}": str(number), **taken})
    record = driver._records.create(Kind.ACTIVE, f"make-{number}", "", {})
    os.makedirs(driver._content(record.id))
    with driver._layers.place(record.id) as into:
        index_layer([data], into.tar, into.index)
        into.keep(f"sha256:{hashlib.sha256(data).hexdigest()}", "", Traits())
    driver._commit(f"l{number}", f"make-{number}", {}, parent)


def expected(count: int) -> tuple[set[str], dict[str, str]]:
    """The names at the top, and what is in the files of `d`."""
    top = {f"f{number}" for number in range(count) if number % 2 or number == count - 1} | {"d"}
    return top, {str(number % 100): str(number) for number in range(count)}


def seen(root: str) -> tuple[set[str], dict[str, str]]:
    return set(os.listdir(root)), {path.name: path.read_text() for path in Path(root, "d").iterdir()}


def lowers(mount: Mount) -> list[str]:
    (option,) = (option for option in mount.options if option.startswith("lowerdir="))
    return split_lowers(option.removeprefix("lowerdir="))[0]


async def test_the_lowest_of_too_many_layers_are_merged_and_shared(world: Layered, temporary: TemporaryMounts) -> None:
    parent = await stack(world, COUNT)
    (few,) = await world.driver.view("few", f"l{LOWERS_LIMIT - 1}")
    assert len(lowers(few)) == LOWERS_LIMIT
    assert not list((world.root / "driver/merged").iterdir())
    await world.driver.remove("few")
    faults.arm("snapshots.merged.synced", "error(ENOSPC)")
    try:
        with pytest.raises(ResourceExhausted, match="no space left on device"):
            await world.driver.prepare("k", parent)
    finally:
        faults.disarm()
    assert not list((world.root / "driver/merged").iterdir())
    with pytest.raises(NotFound):
        await world.driver.stat("k")
    (mount,) = await world.driver.prepare("k", parent)
    assert len(lowers(mount)) == COUNT - STEP + 1
    with temporary.mounted([mount]) as root:
        assert seen(root) == expected(COUNT)
        Path(root, "f1").unlink()
        Path(root, "d/new").touch()
    (other,) = await world.driver.view("other", f"l{COUNT - 2}")
    assert lowers(other)[-1] == lowers(mount)[-1]
    with temporary.mounted([other]) as root:
        assert seen(root) == expected(COUNT - 1)
    (merged,) = (world.root / "driver/merged").iterdir()
    for key in ("k", "other", *(f"l{number}" for number in reversed(range(STEP - 1, COUNT)))):
        await world.driver.remove(key)
    await world.driver.cleanup()
    assert not merged.exists()
    assert merged.name not in world.mounted


def test_what_fits_is_what_overlay_and_the_page_take() -> None:
    paths = [f"/var/lib/orlop/snapshotter/l/{number}" for number in range(1000, 1500)]
    assert fits(paths, ["index=off"])
    assert not fits([*paths, "/var/lib/orlop/snapshotter/l/1"], [])
    directories = [f"/var/lib/orlop/snapshotter/snapshots/{number}/fs" for number in range(10000, 10500)]
    assert fits(directories[:400], ["index=off"])
    assert not fits(directories, [])
    assert not fits([*paths[:1], *directories[:250]], [])  # what they have in common is short
