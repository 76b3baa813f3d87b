"""Pulls from a registry in memory: what is fetched, what is kept, what is told."""

from __future__ import annotations

import asyncio
import gzip
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from images_world import NS, Silent, encoded
from transfer_world import AMD64, ARM64, REFERENCE, PullWorld, layer_of, pull_world

from orlop.core import digest as digests
from orlop.core import media
from orlop.core.descriptor import Descriptor
from orlop.core.lease import Resource
from orlop.core.mount import Mount
from orlop.core.scope import Scope
from orlop.core.verifier import Judgement
from orlop.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, OrlopError, Unavailable, Unknown
from orlop.images.unpack import chain_ids
from orlop.metadata.snapshots import NamespacedSnapshots
from orlop.snapshots.native import NativeSnapshotter

pytestmark = pytest.mark.root

LAYERS = [layer_of("a", 5000), layer_of("b", 70_000), layer_of("c", 300)]
BLOBS = [gzip.compress(layer, mtime=0) for layer in LAYERS]
CHAIN = chain_ids([digests.of(layer) for layer in LAYERS])


async def test_an_image_is_fetched_unpacked_named_and_held(tmp_path: Path) -> None:
    async with pull_world(tmp_path) as world:
        manifest = world.registry.image(LAYERS)
        world.registry.serve(manifest)
        await world.pull()
        image = await world.images.get(NS, REFERENCE)
        assert image.target.digest == manifest["digest"]
        assert await world.digests() == set(world.registry.blobs)
        assert (await world.snapshots.stat(NS, "native", CHAIN[-1])).labels["containerd.io/snapshot.ref"] == CHAIN[-1]
        labels = await world.labels(digests.of(BLOBS[1]))
        assert labels["containerd.io/uncompressed"] == digests.of(LAYERS[1])
        assert labels["containerd.io/distribution.source.registry.example"] == "app"
        labels = await world.labels(manifest["digest"])
        assert labels["containerd.io/gc.ref.content.l.2"] == digests.of(BLOBS[2])
        assert await world.leases.list(NS) == []
        events = [(told.event, told.name) for told in world.told]
        assert events[:3] == [
            (f"Resolving from OCI Registry ({REFERENCE})", ""),
            (f"Pulling from OCI Registry ({REFERENCE})", ""),
            ("fetching image content", REFERENCE),
        ]
        assert events[-2:] == [("saved", REFERENCE), (f"Completed pull from OCI Registry ({REFERENCE})", "")]
        layer = f"layer-{digests.of(BLOBS[0])}"
        passing = ("downloading", "extracting")  # told where it takes long enough
        assert [event for event, name in events if name == layer and event not in passing] == [
            *("waiting", "complete", "extracted")
        ]
        assert {told.parents for told in world.told if told.name == layer} == {(f"manifest-{manifest['digest']}",)}


async def test_a_second_pull_fetches_nothing_but_asks_what_the_name_is(tmp_path: Path) -> None:
    async with pull_world(tmp_path) as world:
        world.registry.serve(world.registry.image(LAYERS))
        await world.pull()
        world.registry.asked.clear()
        await world.pull()
        assert world.registry.asked == []
        assert "already exists" in {told.event for told in world.told}


async def test_a_layer_whose_snapshot_is_here_is_told_at_once_whether_its_blob_is_here_or_not(tmp_path: Path) -> None:
    async with pull_world(tmp_path) as world:
        world.registry.serve(world.registry.image(LAYERS[:1]))
        await world.pull()
        for digest in await world.digests():
            await world.content.delete(NS, digest)
        world.registry.serve(world.registry.image(LAYERS))
        world.told.clear()
        await world.pull()
        told = [(one.event, one.name.partition("-")[2]) for one in world.told if one.name.startswith("layer-")]
        assert [event for event, name in told if name == digests.of(BLOBS[0])] == ["waiting", "already exists"]
        begun = next(at for at, (event, name) in enumerate(told) if name == digests.of(BLOBS[1]) and event != "waiting")
        assert told.index(("already exists", digests.of(BLOBS[0]))) < begun


async def test_only_the_platforms_that_are_wanted_are_fetched(tmp_path: Path) -> None:
    async with pull_world(tmp_path) as world:
        wanted, other = world.registry.image(LAYERS), world.registry.image([layer_of("x")], ARM64)
        world.registry.serve(world.registry.index(other, wanted))
        await world.pull(platforms=[AMD64])
        assert other["digest"] not in await world.digests()
        await world.snapshots.stat(NS, "native", CHAIN[-1])
        await world.pull(platforms=[AMD64], all_metadata=True)
        fetched = await world.digests()
        assert other["digest"] in fetched
        assert len(set(world.registry.blobs) - fetched) == 1  # its layer
        await world.pull()
        assert await world.digests() == set(world.registry.blobs)


async def test_a_platform_that_is_not_there_is_named_with_those_that_are(tmp_path: Path) -> None:
    async with pull_world(tmp_path) as world:
        world.registry.serve(world.registry.index(world.registry.image(LAYERS)))
        with pytest.raises(NotFound, match=r"no manifest for linux/arm64 \(has linux/amd64\)"):
            await world.pull(platforms=[ARM64])
        assert await world.names() == []


async def test_a_broken_blob_goes_on_where_it_stopped(tmp_path: Path) -> None:
    async with pull_world(tmp_path) as world:
        world.registry.serve(world.registry.image(LAYERS))
        world.registry.break_at[digests.of(BLOBS[1])] = 40_000
        with pytest.raises(Unavailable, match="connection reset"):
            await world.pull()
        assert await world.names() == []
        with pytest.raises(NotFound):
            await world.snapshots.stat(NS, "native", CHAIN[1])
        world.registry.asked.clear()
        await world.pull()
        assert (digests.of(BLOBS[1]), 40_000) in world.registry.asked
        assert await world.leases.list(NS) == []


async def test_what_was_verified_is_kept_for_the_next_pull(tmp_path: Path) -> None:
    async with pull_world(tmp_path) as world:
        manifest = world.registry.image(LAYERS)
        world.registry.serve(manifest)
        world.registry.break_at[digests.of(BLOBS[2])] = 0
        with pytest.raises(Unavailable):
            await world.pull()
        (lease,) = await world.leases.list(NS)
        assert "containerd.io/gc.expire" in lease.labels
        held = await world.leases.resources(NS, lease.id)
        assert Resource("content", manifest["digest"]) in held


@pytest.mark.parametrize("change", ["other", "longer", "shorter"])
async def test_content_that_is_not_what_was_promised_is_not_kept(tmp_path: Path, change: str) -> None:
    async with pull_world(tmp_path) as world:
        world.registry.serve(world.registry.image(LAYERS))
        blob = digests.of(BLOBS[1])
        good = world.registry.blobs[blob]
        bad = {"other": good[:-1] + b"x", "longer": good + b"x", "shorter": good[:-1]}[change]
        world.registry.blobs[blob] = bad
        with pytest.raises(OrlopError, match=f"{REFERENCE}.*{blob}"):
            await world.pull()
        assert await world.names() == []
        assert blob not in await world.digests()
        ingests = {status.ref for status in await world.content.statuses(NS)}
        assert (f"layer-{blob}" in ingests) == (change == "shorter")  # only that can become right
        with pytest.raises(NotFound):
            await world.snapshots.stat(NS, "native", CHAIN[1])
        world.registry.blobs[blob] = good
        await world.pull()
        assert await world.names() == [REFERENCE]


async def test_a_layer_that_is_not_what_the_config_says_is_refused(tmp_path: Path) -> None:
    async with pull_world(tmp_path) as world:
        config = encoded({"os": "linux", "architecture": "amd64", "rootfs": {"diff_ids": [digests.of(LAYERS[1])]}})
        manifest = {
            "schemaVersion": 2,
            "config": world.registry.put(config, media.OCI_CONFIG),
            "layers": [world.registry.put(BLOBS[0], media.OCI_LAYER_GZIP)],
        }
        world.registry.serve(world.registry.put(encoded(manifest), media.OCI_MANIFEST))
        with pytest.raises(FailedPrecondition, match="wrong diff id"):
            await world.pull()
        assert await world.names() == []
        assert await world.snapshots.list(NS, "native") == []


async def test_two_pulls_at_a_time_fetch_each_blob_once(tmp_path: Path) -> None:
    async with pull_world(tmp_path) as world:
        world.registry.serve(world.registry.image(LAYERS))
        puller = world.puller()
        await asyncio.gather(*(world.pull(puller=puller) for _ in range(5)))
        asked = [digest for digest, _ in world.registry.asked]
        assert sorted(asked) == sorted(world.registry.blobs)


async def test_when_one_of_two_pulls_is_cancelled_the_other_goes_on_from_there(tmp_path: Path) -> None:
    async with pull_world(tmp_path) as world:
        world.registry.serve(world.registry.image(LAYERS))
        blob = digests.of(BLOBS[1])
        world.registry.hold[blob] = asyncio.Event()
        puller = world.puller()
        first = asyncio.create_task(world.pull(puller=puller))
        second = asyncio.create_task(world.pull(puller=puller))
        await world.until(lambda: blob in world.registry.fetched)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        world.registry.hold.pop(blob).set()
        await second
        assert await world.names() == [REFERENCE]


async def test_namespaces_share_what_is_fetched(tmp_path: Path) -> None:
    async with pull_world(tmp_path) as world:
        world.registry.serve(world.registry.image(LAYERS))
        await world.pull()
        world.registry.asked.clear()
        await world.pull(Scope("other"))
        assert world.registry.asked == []
        assert {info.digest for info in await world.content.list(Scope("other"))} == set(world.registry.blobs)


class Watching:
    """A differ that tells how many blobs were here when it began, and only then lets the layer come."""

    def __init__(self, world: PullWorld, begun: asyncio.Event) -> None:
        self._world, self._begun, self._differ = world, begun, world.differ
        self.had: list[int] = []

    async def apply(self, *arguments: Any, **more: Any) -> Descriptor:
        return await self._differ.apply(*arguments, **more)

    async def compare(self, *arguments: Any, **more: Any) -> Descriptor:
        return await self._differ.compare(*arguments, **more)

    async def apply_stream(self, layer: Descriptor, *arguments: Any, **more: Any) -> Descriptor:
        self.had.append(len(await self._world.digests()))
        self._begun.set()
        return await self._differ.apply_stream(layer, *arguments, **more)

    async def verified(self, *arguments: Any) -> None:
        await self._differ.verified(*arguments)


async def test_a_layer_is_unpacked_while_it_arrives(tmp_path: Path) -> None:
    async with pull_world(tmp_path) as world:
        world.registry.serve(world.registry.image(LAYERS[1:2]))
        begun = world.registry.hold[digests.of(BLOBS[1])] = asyncio.Event()
        watching = Watching(world, begun)
        world.differ = watching  # type: ignore[assignment]
        await world.pull()
        assert watching.had == [2]  # manifest and config alone


@pytest.mark.parametrize("layer_type", [media.OCI_LAYER, media.DOCKER_LAYER])
async def test_uncompressed_layers_are_taken(tmp_path: Path, layer_type: str) -> None:
    async with pull_world(tmp_path) as world:
        world.registry.serve(world.registry.image(LAYERS, layer_type=layer_type))
        await world.pull()
        await world.snapshots.stat(NS, "native", CHAIN[-1])


async def test_a_layer_that_comes_twice_is_fetched_once(tmp_path: Path) -> None:
    async with pull_world(tmp_path) as world:
        world.registry.serve(world.registry.image([LAYERS[0], LAYERS[1], LAYERS[0]]))
        await world.pull()
        assert [digest for digest, _ in world.registry.asked].count(digests.of(BLOBS[0])) == 1


async def test_an_artifact_is_stored_and_not_unpacked(tmp_path: Path) -> None:
    async with pull_world(tmp_path) as world:
        manifest = {
            "schemaVersion": 2,
            "artifactType": "application/vnd.example",
            "config": world.registry.put(b"{}", "application/vnd.oci.empty.v1+json"),
            "layers": [world.registry.put(b"text", "text/plain")],
        }
        world.registry.serve(world.registry.put(encoded(manifest), media.OCI_MANIFEST))
        await world.pull()
        assert await world.digests() == set(world.registry.blobs)
        assert await world.snapshots.list(NS, "native") == []


@pytest.mark.parametrize("media_type", ["application/vnd.docker.distribution.manifest.v1+prettyjws", "text/plain"])
async def test_schema_1_is_refused_by_name(tmp_path: Path, media_type: str) -> None:
    async with pull_world(tmp_path) as world:
        world.registry.serve(world.registry.put(b"{}", media_type))
        with pytest.raises(InvalidArgument, match="schema 1 image manifests are no longer supported"):
            await world.pull()


async def test_an_index_that_names_itself_ends(tmp_path: Path) -> None:
    async with pull_world(tmp_path) as world:
        inner = world.registry.index()
        circle = world.registry.put(b"{}", media.OCI_INDEX)
        world.registry.serve(world.registry.index(inner, circle | {"digest": inner["digest"], "size": inner["size"]}))
        with pytest.raises(NotFound, match="no manifest for any platform"):
            await world.pull()


async def test_indexes_in_indexes_end_somewhere(tmp_path: Path) -> None:
    async with pull_world(tmp_path) as world:
        described = world.registry.image(LAYERS)
        for _ in range(12):
            described = world.registry.index(described)
        world.registry.serve(described)
        with pytest.raises(InvalidArgument, match="nested more than"):
            await world.pull()


async def test_a_document_that_is_too_long_is_not_fetched(tmp_path: Path) -> None:
    async with pull_world(tmp_path) as world:
        manifest = world.registry.image(LAYERS)
        world.registry.serve(manifest)
        assert world.registry.root is not None
        world.registry.root = replace(world.registry.root, size=100 << 20)
        with pytest.raises(InvalidArgument, match="at most"):
            await world.pull()
        assert world.registry.asked == []


async def test_an_image_that_a_verifier_does_not_allow_is_not_pulled(tmp_path: Path) -> None:
    class No:
        async def verify(self, name: str, descriptor: Descriptor) -> Judgement:
            return Judgement(False, "not signed")

    async with pull_world(tmp_path) as world:
        world.registry.serve(world.registry.image(LAYERS))
        with pytest.raises(Unknown, match=f"image verifier v blocked pull of {REFERENCE} with digest .*not signed"):
            await world.pull(puller=world.puller(verifiers={"v": No()}))
        assert world.registry.asked == []


async def test_an_ingest_that_a_client_has_open_is_waited_for(tmp_path: Path) -> None:
    async with pull_world(tmp_path) as world:
        world.registry.serve(world.registry.image(LAYERS))
        blob = digests.of(BLOBS[0])
        writer = await world.content.open_writer(NS, f"layer-{blob}", len(BLOBS[0]), blob)
        pulling = asyncio.create_task(world.pull())
        await world.until(lambda: len(world.registry.fetched) >= 2)
        await writer.write(BLOBS[0])
        try:
            await writer.commit(len(BLOBS[0]), blob)
        except AlreadyExists:
            pass
        await pulling
        assert blob not in world.registry.fetched


async def test_a_docker_manifest_that_does_not_say_what_its_config_is_is_rewritten(tmp_path: Path) -> None:
    async with pull_world(tmp_path) as world:
        config = {"os": "linux", "architecture": "amd64", "rootfs": {"diff_ids": [digests.of(LAYERS[0])]}}
        registry = world.registry
        manifest = {
            "schemaVersion": 2,
            "mediaType": media.DOCKER_MANIFEST,
            "layers": [registry.put(BLOBS[0], media.DOCKER_LAYER_GZIP)],
            "config": registry.put(encoded(config), "application/octet-stream"),
            "annotations": {"b": "<&>\u2028é", "a": "1"},
            "unknown": 1,
        }
        registry.serve(registry.put(encoded(manifest), media.DOCKER_MANIFEST))
        await world.pull()
        await world.snapshots.stat(NS, "native", digests.of(LAYERS[0]))
        image = await world.images.get(NS, REFERENCE)
        reader = await world.content.open_reader(NS, image.target.digest)
        config_digest, layer_digest = manifest["config"]["digest"], manifest["layers"][0]["digest"]
        assert (
            (await reader.read(0, reader.size)).decode()
            == f"""{{
   "schemaVersion": 2,
   "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
   "config": {{
      "mediaType": "application/vnd.docker.container.image.v1+json",
      "digest": "{config_digest}",
      "size": {len(encoded(config))}
   }},
   "layers": [
      {{
         "mediaType": "application/vnd.docker.image.rootfs.diff.tar.gzip",
         "digest": "{layer_digest}",
         "size": {len(BLOBS[0])}
      }}
   ],
   "annotations": {{
      "a": "1",
      "b": "\\u003c\\u0026\\u003e\\u2028é"
   }}
}}"""
        )
        await reader.close()
        assert set((await world.labels(image.target.digest)).values()) == {config_digest, layer_digest}
        assert await world.leases.list(NS) == []


async def test_a_pull_that_is_cancelled_while_a_snapshot_is_made_leaves_none(tmp_path: Path) -> None:
    async with pull_world(tmp_path) as world:
        begun, go_on = asyncio.Event(), asyncio.Event()

        class Slow(NativeSnapshotter):
            async def prepare(self, key: str, *more: Any, **others: Any) -> list[Mount]:
                begun.set()
                await go_on.wait()
                return await super().prepare(key, *more, **others)

        driver = Slow(tmp_path / "slow")
        world.snapshots = NamespacedSnapshots(world.db, {"native": driver}, Silent())
        world.stores = replace(world.stores, snapshots=world.snapshots)
        world.registry.serve(world.registry.image(LAYERS[:1]))
        pulling = asyncio.create_task(world.pull())
        await begun.wait()
        pulling.cancel()
        await asyncio.sleep(0)
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await pulling
        assert await world.snapshots.list(NS, "native") == []
        await driver.close()
