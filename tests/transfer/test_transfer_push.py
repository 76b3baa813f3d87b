"""Pushes to a registry in memory: order, what is left out, where blobs may be mounted from."""

from __future__ import annotations

import asyncio
import gzip
from pathlib import Path
from typing import Any

import pytest
from images_world import NS, encoded
from transfer_world import AMD64, ARM64, REFERENCE, PullWorld, Registry, layer_of, pull_world

from orlop.core import digest as digests
from orlop.core import media
from orlop.core.content import ContentInfo
from orlop.core.descriptor import Descriptor
from orlop.core.platform import Platform
from orlop.core.transfer import RegistryEnd, StoreEnd
from orlop.errors import NotFound, Unknown
from orlop.transfer.push import REFERRER, Pusher

LAYERS = [layer_of("a", 5000), layer_of("b", 70_000)]
BLOBS = [digests.of(gzip.compress(layer, mtime=0)) for layer in LAYERS]
S390X = Platform("linux", "s390x")
OTHER = "registry.example/other:2"


async def _push(world: PullWorld, **more: Any) -> Registry:
    to = Registry(reference=OTHER)
    world.told.clear()
    pusher = Pusher(world.stores, to, asyncio.Semaphore(3))
    await pusher.push(NS, StoreEnd(REFERENCE, **more), RegistryEnd(OTHER), world.told.append)
    return to


async def test_children_go_before_what_names_them_and_the_tag_last(tmp_path: Path) -> None:
    async with pull_world(tmp_path) as world:
        one, two = world.registry.image(LAYERS), world.registry.image([layer_of("x")], ARM64)
        index = world.registry.index(one, two)
        world.registry.serve(index)
        await world.pull(unpack=False)
        to = await _push(world)
        assert to.blobs == world.registry.blobs
        assert to.tagged == [index["digest"]]
        assert to.pushed[-1] == index["digest"]
        for blob in BLOBS:
            assert to.pushed.index(blob) < to.pushed.index(one["digest"])
        assert to.mounted_from[BLOBS[0]] == ["app"]
        events = [told.event for told in world.told]
        assert events[:2] == [f"Pushing to OCI Registry ({OTHER})", "pushing content"]
        assert events[-2:] == ["pushed content", f"Completed push to OCI Registry ({OTHER})"]
        layer = [told.event for told in world.told if told.name == f"layer-{BLOBS[0]}"]
        assert [event for event in layer if event != "uploading"] == ["waiting", "complete"]


async def test_one_platform_of_an_index_is_pushed_as_its_manifest(tmp_path: Path) -> None:
    async with pull_world(tmp_path) as world:
        one = world.registry.image(LAYERS)
        world.registry.serve(world.registry.index(one, world.registry.image([layer_of("x")], ARM64)))
        await world.pull(platforms=[AMD64])
        to = await _push(world, platforms=[AMD64])
        assert to.tagged == [one["digest"]]
        assert set(BLOBS) < set(to.blobs)
        with pytest.raises(NotFound, match=r"no manifest for linux/s390x \(has linux/amd64, linux/arm64\)"):
            await _push(world, platforms=[S390X])


async def test_a_platform_that_is_not_here_is_named(tmp_path: Path) -> None:
    async with pull_world(tmp_path) as world:
        one, two = world.registry.image(LAYERS), world.registry.image([layer_of("x")], ARM64)
        world.registry.serve(world.registry.index(one, two))
        await world.pull(platforms=[AMD64])
        with pytest.raises(
            NotFound, match=rf'"{REFERENCE}": what it has for linux/arm64 is not here .*{two["digest"]}'
        ):
            await _push(world)


class Strict(Registry):
    """Refuses an index that names what it does not have, as most registries do."""

    async def tag(self, descriptor: Descriptor, open_reader: Any) -> None:
        raise Unknown("unexpected status: 400 Bad Request: MANIFEST_BLOB_UNKNOWN")


async def test_a_part_of_an_index_that_the_registry_refuses_is_told_as_such(tmp_path: Path) -> None:
    async with pull_world(tmp_path) as world:
        images = [world.registry.image([layer_of(str(one))], one) for one in (AMD64, ARM64, S390X)]
        world.registry.serve(world.registry.index(*images))
        await world.pull(unpack=False)
        pusher = Pusher(world.stores, Strict(reference=OTHER), asyncio.Semaphore(3))
        source = StoreEnd(REFERENCE, platforms=[AMD64, ARM64])
        with pytest.raises(Unknown, match=r"index without linux/s390x, which .*: .*MANIFEST_BLOB_UNKNOWN"):
            await pusher.push(NS, source, RegistryEnd(OTHER), world.told.append)
        source = StoreEnd(REFERENCE)
        with pytest.raises(Unknown, match=r"^unexpected status"):
            await pusher.push(NS, source, RegistryEnd(OTHER), world.told.append)


async def test_layers_that_may_not_be_handed_out_stay(tmp_path: Path) -> None:
    async with pull_world(tmp_path) as world:
        foreign = "application/vnd.oci.image.layer.nondistributable.v1.tar"
        world.registry.serve(world.registry.image(LAYERS[:1], layer_type=foreign))
        await world.pull()
        to = await _push(world)
        assert digests.of(LAYERS[0]) not in to.blobs


async def test_what_refers_to_a_manifest_goes_with_it(tmp_path: Path) -> None:
    async with pull_world(tmp_path) as world:
        manifest = world.registry.image(LAYERS)
        world.registry.serve(manifest)
        await world.pull()
        empty = await world.put(b"{}", "application/vnd.oci.empty.v1+json")
        pointer = {"mediaType": empty.media_type, "digest": empty.digest, "size": empty.size}
        document = {"schemaVersion": 2, "mediaType": media.OCI_MANIFEST, "config": pointer, "layers": []}
        signature = await world.put(encoded(document | {"subject": manifest}), media.OCI_MANIFEST)
        key = f"{REFERRER}sha256.{signature.digest[7:19]}"
        update = ContentInfo(manifest["digest"], 0, labels={key: signature.digest})
        await world.content.update(NS, update, [f"labels.{key}"])
        to = await _push(world)
        assert signature.digest in to.pushed


async def test_a_blob_that_the_registry_has_need_not_be_here(tmp_path: Path) -> None:
    async with pull_world(tmp_path) as world:
        world.registry.serve(world.registry.image(LAYERS))
        await world.pull()
        await world.content.delete(NS, BLOBS[0])
        with pytest.raises(
            NotFound, match=rf'"{REFERENCE}": {media.OCI_LAYER_GZIP.replace("+", ".")} is not here: .*{BLOBS[0]}'
        ):
            await _push(world)
        pusher = Pusher(world.stores, world.registry, asyncio.Semaphore(3))
        await pusher.push(NS, StoreEnd(REFERENCE), RegistryEnd(REFERENCE), world.told.append)
        assert "already exists" in {told.event for told in world.told}


async def test_an_image_that_is_not_here_is_not_found(tmp_path: Path) -> None:
    async with pull_world(tmp_path) as world:
        with pytest.raises(NotFound, match=f'image "{REFERENCE}"'):
            await _push(world)
