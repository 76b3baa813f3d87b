"""Snapshotters that have a layer somewhere else, and what they are told so that they can look for it."""

from __future__ import annotations

import gzip
from collections.abc import Mapping
from pathlib import Path

import pytest
from images_world import NS, Silent
from transfer_world import AMD64, REFERENCE, PullWorld, layer_of, pull_world

from orlop.core import digest as digests
from orlop.core.mount import Mount
from orlop.core.snapshot import EXTRACTING
from orlop.errors import AlreadyExists
from orlop.images.unpack import chain_ids
from orlop.metadata.snapshots import NamespacedSnapshots
from orlop.snapshots.native import NativeSnapshotter
from orlop.transfer.pull import Puller
from orlop.transfer.stores import Stores
from orlop.transfer.unpacking import UnpackTarget

pytestmark = pytest.mark.root

LAYERS = [layer_of("a", 5000), layer_of("b", 7000)]
BLOBS = [digests.of(gzip.compress(layer, mtime=0)) for layer in LAYERS]
CHAIN = chain_ids([digests.of(layer) for layer in LAYERS])


class Elsewhere(NativeSnapshotter):
    """Has the snapshots `has` without being given their layers."""

    def __init__(self, root: Path, has: set[str]) -> None:
        super().__init__(root)
        self.has = has
        self.asked: list[dict[str, str]] = []

    async def prepare(self, key: str, parent: str = "", labels: Mapping[str, str] | None = None) -> list[Mount]:
        self.asked.append(dict(labels or {}))
        ref = (labels or {}).get("containerd.io/snapshot.ref", "")
        if ref in self.has:
            await super().prepare(key, parent, labels)
            await self.commit(f"mine {ref}", key, labels)
            raise AlreadyExists(ref)
        return await super().prepare(key, parent, labels)


def remote(world: PullWorld, driver: Elsewhere) -> Puller:
    """Pulls into `driver`."""
    world.snapshots = NamespacedSnapshots(world.db, {"native": driver}, Silent())
    world.stores = Stores(world.content, world.images, world.snapshots, world.leases, world.db.settle)
    target = UnpackTarget(AMD64, "native", world.differ, remote=True)
    return Puller(world.stores, world.registry, world.fetches, [target], {})


async def test_a_layer_that_the_snapshotter_has_is_not_fetched_and_those_above_it_are(tmp_path: Path) -> None:
    async with pull_world(tmp_path) as world:
        driver = Elsewhere(tmp_path / "elsewhere", {CHAIN[0]})
        world.registry.serve(world.registry.image(LAYERS))
        await world.pull(puller=remote(world, driver))
        assert BLOBS[0] not in world.registry.fetched
        assert BLOBS[1] in world.registry.fetched
        assert (await world.snapshots.stat(NS, "native", CHAIN[1])).parent == CHAIN[0]
        assert EXTRACTING not in (await world.snapshots.stat(NS, "native", CHAIN[0])).labels
        assert [one.event for one in world.told if one.name == f"layer-{BLOBS[0]}"] == ["waiting", "already exists"]
        await driver.close()


async def test_it_is_told_what_image_and_layers_it_is_about(tmp_path: Path) -> None:
    async with pull_world(tmp_path) as world:
        driver = Elsewhere(tmp_path / "elsewhere", set())
        manifest = world.registry.image(LAYERS)
        world.registry.serve(manifest)
        await world.pull(puller=remote(world, driver))
        for number, labels in enumerate(driver.asked):
            prefix = "containerd.io/snapshot/cri."
            assert {key: labels[key] for key in labels if key.startswith(prefix)} == {
                f"{prefix}image-ref": REFERENCE,
                f"{prefix}manifest-digest": manifest["digest"],
                f"{prefix}layer-digest": BLOBS[number],
                f"{prefix}image-layers": ",".join(BLOBS[number:]),
            }
            assert labels["containerd.io/snapshot.ref"] == CHAIN[number]
        assert len(driver.asked) == 2
        await driver.close()
