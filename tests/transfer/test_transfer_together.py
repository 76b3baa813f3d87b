"""Layers unpacked beside each other make the same image as one after another."""

from __future__ import annotations

import dataclasses
import io
import os
import tarfile
from pathlib import Path

import pytest
from images_world import NS, Silent
from transfer_world import AMD64, PullWorld, layer_of, pull_world

from orlop.core import digest as digests
from orlop.core.snapshot import Kind
from orlop.errors import OrlopError
from orlop.images.unpack import chain_ids
from orlop.layers.differ import WalkingDiffer
from orlop.layers.keep import Keepers
from orlop.metadata.snapshots import NamespacedSnapshots
from orlop.mounts.mount import unmount_all
from orlop.snapshots import probe
from orlop.snapshots.overlayfs import OverlaySnapshotter
from orlop.transfer.unpacking import UnpackTarget

pytestmark = pytest.mark.root


def tar_of(*entries: tuple[str, bytes | None, int]) -> bytes:
    """Files, or directories where there is no content, with these modes."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, data, mode in entries:
            entry = tarfile.TarInfo(name)
            entry.mode = mode
            if data is None:
                entry.type = tarfile.DIRTYPE
                tar.addfile(entry)
            else:
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))
    return out.getvalue()


LAYERS = [
    tar_of(("tmp", None, 0o1777), ("etc", None, 0o755), ("etc/a", b"1", 0o644), ("etc/b", b"2", 0o600)),
    tar_of(("etc", None, 0o755), ("etc/.wh.a", b"", 0o644), ("etc/c", b"3", 0o644)),
    tar_of(("tmp/named-only-on-the-way", b"4", 0o644)),
    tar_of(("etc", None, 0o711), ("etc/.wh..wh..opq", b"", 0o644), ("etc/d", b"5", 0o640)),
]


async def _pulled(root: Path, at_once: int, *, keeps: bool) -> list[tuple[str, int, bytes]]:
    root.mkdir()
    async with pull_world(root) as world:
        (root / "overlay").mkdir()
        driver = OverlaySnapshotter(root / "overlay", keeps_layers=keeps)
        try:
            world.snapshots = NamespacedSnapshots(world.db, {"native": driver}, Silent())  # type: ignore[dict-item]
            world.stores = dataclasses.replace(world.stores, snapshots=world.snapshots)
            differ = WalkingDiffer(world.content, world.mounts, keepers=Keepers([driver] if keeps else []))
            world.registry.serve(world.registry.image(LAYERS))
            puller = world.puller()
            target = UnpackTarget(AMD64, "native", differ, at_once=at_once)
            await world.pull(puller=type(puller)(world.stores, world.registry, world.fetches, [target], {}))
            return await _tree(world)
        finally:
            await driver.close()
            unmount_all(root)  # a view still lies over the layers: their mounts stay with it


async def _tree(world: PullWorld) -> list[tuple[str, int, bytes]]:
    top = chain_ids([digests.of(layer) for layer in LAYERS])[-1]
    assert [info.kind for info in await world.snapshots.list(NS, "native")] == [Kind.COMMITTED] * len(LAYERS)
    mounts = await world.snapshots.view(NS, "native", "look", top)
    found = []
    with world.mounts.mounted(mounts, readonly=True) as seen:
        for folder, _, files in os.walk(seen):
            for name in (".", *files):
                path = Path(folder, name)
                data = path.read_bytes() if path.is_file() else b""
                found.append((str(path.relative_to(seen)), path.stat().st_mode, data))
    await world.snapshots.remove(NS, "native", "look")
    return sorted(found)


@pytest.mark.parametrize("keeps", [False, True])
async def test_the_tree_is_the_same(tmp_path: Path, keeps: bool) -> None:
    if keeps and (why := probe.refusal(tmp_path)):
        pytest.skip(why)
    together = await _pulled(tmp_path / "together", 3, keeps=keeps)
    assert together == await _pulled(tmp_path / "apart", 1, keeps=keeps)
    names = {name: mode & 0o7777 for name, mode, _ in together}
    assert names["tmp"] == 0o1777
    assert {name for name in names if name.startswith("etc/")} == {"etc/d"}


async def test_when_one_layer_is_wrong_nothing_above_it_stays(tmp_path: Path) -> None:
    async with pull_world(tmp_path) as world:
        driver = OverlaySnapshotter(tmp_path / "overlay", keeps_layers=False)
        try:
            world.snapshots = NamespacedSnapshots(world.db, {"native": driver}, Silent())  # type: ignore[dict-item]
            world.stores = dataclasses.replace(world.stores, snapshots=world.snapshots)
            layers = [layer_of("a"), layer_of("b"), layer_of("c")]
            world.registry.serve(world.registry.image([layers[0], b"x" * 1000, layers[2]]))
            puller = world.puller()
            target = UnpackTarget(AMD64, "native", world.differ, at_once=3)
            with pytest.raises(OrlopError, match="failed to extract layer"):
                await world.pull(puller=type(puller)(world.stores, world.registry, world.fetches, [target], {}))
            kept = {info.name for info in await world.snapshots.list(NS, "native")}
            assert kept <= {digests.of(layers[0])}
        finally:
            await driver.close()
